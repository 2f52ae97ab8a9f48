"""What a model loses when the rows of a site are replaced by their reconstructions.

Nothing here runs or knows a model: the user's own functions do, with `hooks.intervene` and a `Dictionary`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.metrics.rows import check_finite

Loss = float | Tensor | Callable[[], float | Tensor]
"""A loss, or a function without arguments that computes it."""


@dataclass(frozen=True)
class LossRecovered:
    """How much of what a site does for the model its reconstructions keep."""

    value: float
    """(ablated − spliced) / (ablated − clean). 1: nothing lost; 0: as bad as the ablation, which is the null; below 0:
    worse. NaN where it is undefined, see `reason`."""
    clean: float
    spliced: float
    ablated: float
    reason: str = ""
    """Why `value` is NaN."""

    @property
    def increase(self) -> float:
        """spliced − clean, in the unit of the loss: the number to quote beside the ratio."""
        return self.spliced - self.clean


@dataclass(frozen=True)
class ZeroShot:
    """What a CLIP's zero-shot classifier makes of reconstructed image embeddings, each with what chance gives."""

    accuracy: float
    """From the image embeddings."""
    accuracy_reconstructed: float
    accuracy_null: float
    """Of always answering the most frequent label of these rows."""
    agreement: float
    """Fraction of rows with the same answer from both."""
    agreement_null: float
    """The same with the reconstruction of another row."""
    kl: float
    """Mean KL(p(x) ‖ p(x̂)), nats."""
    kl_null: float
    """The same with the reconstruction of another row."""
    rows: int


def loss_recovered(clean: Loss, spliced: Loss, ablated: Loss, *, tolerance: float = 1e-6) -> LossRecovered:
    """(ablated − spliced) / (ablated − clean): the share of a site's effect on the loss that x̂ keeps.

    Args:
        clean: Loss of the model as it is.
        spliced: Loss with the rows of the site replaced by their reconstructions.
        ablated: Loss with them replaced by what says nothing: their mean, or 0. State which; 0 is far from any row, so
            it flatters.
        tolerance: ablated must be above clean by this share of |clean|, else the site does nothing here that could be
            recovered.

    Raises:
        ConfigError: a loss is not one number.

    Source:
        Bricken et al. 2023, Towards Monosemanticity; Rajamanoharan et al. 2024, arXiv:2404.16014.
    """
    losses = {"clean": _number("clean", clean), "spliced": _number("spliced", spliced)}
    losses["ablated"] = _number("ablated", ablated)
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    difference = losses["ablated"] - losses["clean"]
    reason = ""
    if bad:
        reason = f"the loss is not finite: {', '.join(bad)}"
    elif abs(difference) <= tolerance * max(abs(losses["clean"]), 1e-12):
        reason = "ablating the site does not change the loss, so there is nothing to recover"
    elif difference < 0:
        reason = "ablating the site lowers the loss, so the ratio has no meaning"
    value = math.nan if reason else (losses["ablated"] - losses["spliced"]) / difference
    return LossRecovered(value, losses["clean"], losses["spliced"], losses["ablated"], reason)


@torch.no_grad()
def next_token_loss(
    logits: Float[Tensor, "batch positions vocabulary"],
    ids: Int[Tensor, "batch positions"],
    *,
    keep: Bool[Tensor, "batch positions"] | None = None,
) -> float:
    """Mean cross-entropy of the next token, nats per token.

    Args:
        logits: Of the model; those of the last position predict nothing that is known.
        ids: The tokens.
        keep: False on padding; a token counts if it is kept.
    """
    _check_logits(logits, ids.shape)
    counted = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
    counted = counted[:, 1:]
    if not counted.any():
        raise ConfigError(
            "No token is left to predict. Give contexts of two tokens or more and a mask that keeps some."
        )
    return float(F.cross_entropy(logits[:, :-1][counted].double(), ids[:, 1:][counted]))


@torch.no_grad()
def prediction_kl(
    clean: Float[Tensor, "*batch classes"],
    spliced: Float[Tensor, "*batch classes"],
    *,
    keep: Bool[Tensor, "*batch"] | None = None,
) -> float:
    """Mean KL(p_clean ‖ p_spliced) of the predictions, nats; 0 if the model answers the same.

    Read it against the same number for an ablation of the site: that is what keeping nothing costs.

    Args:
        clean: Logits of the model as it is; −inf for what it cannot answer.
        spliced: Logits with the rows of the site replaced.
        keep: False on padding.

    Raises:
        ShapeError: other predictions than those of `clean`.
        ConfigError: no prediction is kept.
    """
    _check_logits(spliced, clean.shape[:-1])
    if spliced.shape != clean.shape:
        raise ShapeError(
            f"Logits of {clean.shape[-1]} and of {spliced.shape[-1]} classes were given; expected as many."
        )
    kl = kl_of_rows(clean, spliced)
    kl = kl.flatten() if keep is None else kl[keep]
    if not len(kl):
        raise ConfigError("No prediction is left to compare. Give a mask that keeps some.")
    return float(kl.mean())


def kl_of_rows(
    clean: Float[Tensor, "*batch classes"], other: Float[Tensor, "*batch classes"]
) -> Float[Tensor, "*batch"]:
    """KL(p_clean ‖ p_other) of each prediction, nats, double; from logits or log-probabilities."""
    log_p, log_q = F.log_softmax(clean.double(), -1), F.log_softmax(other.double(), -1)
    return torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1)  # 0 · log 0 is 0


@torch.no_grad()
def zero_shot(
    images: Float[Tensor, "rows d_in"],
    reconstructed: Float[Tensor, "rows d_in"],
    texts: Float[Tensor, "classes d_in"],
    labels: Int[Tensor, " rows"],
    *,
    logit_scale: float = 100.0,
    seed: int = 0,
) -> ZeroShot:
    """Zero-shot classification by image embeddings and by their reconstructions.

    Args:
        images: Embeddings, model units.
        reconstructed: What the dictionary makes of them.
        texts: Embedding of each class's prompt.
        labels: Class of each image.
        logit_scale: exp of CLIP's learned temperature.
        seed: Of the shuffle for the nulls.

    Raises:
        ShapeError: embeddings, reconstructions and texts do not fit together.
        ConfigError: labels outside the classes.
        NonFiniteError: NaN or infinity in one of them.
    """
    if images.shape != reconstructed.shape or texts.ndim != 2 or texts.shape[1] != images.shape[-1]:
        raise ShapeError(
            f"Embeddings {tuple(images.shape)}, reconstructions {tuple(reconstructed.shape)} and texts "
            f"{tuple(texts.shape)} were given; expected (rows, d_in) twice and (classes, d_in)."
        )
    if labels.shape != images.shape[:1] or not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= len(texts):
        raise ConfigError(f"Labels must be one number from 0 to {len(texts) - 1} for each of {len(images)} images.")
    for what, given in (("images", images), ("reconstructions", reconstructed), ("texts", texts)):
        check_finite(given, what=what)
    prompts = F.normalize(texts.double(), dim=-1)
    logits, logits_hat = (logit_scale * F.normalize(x.double(), dim=-1) @ prompts.T for x in (images, reconstructed))
    other = logits_hat[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(images.device)]
    says = logits.argmax(-1)
    return ZeroShot(
        accuracy=float((says == labels).double().mean()),
        accuracy_reconstructed=float((logits_hat.argmax(-1) == labels).double().mean()),
        accuracy_null=int(torch.bincount(labels).max()) / len(labels),
        agreement=float((says == logits_hat.argmax(-1)).double().mean()),
        agreement_null=float((says == other.argmax(-1)).double().mean()),
        kl=prediction_kl(logits, logits_hat),
        kl_null=prediction_kl(logits, other),
        rows=len(labels),
    )


def _number(name: str, loss: Loss) -> float:
    value = loss() if callable(loss) else loss
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ConfigError(f"The {name} loss has shape {tuple(value.shape)}; expected one number. Take its mean.")
    return float(value)


def _check_logits(logits: Tensor, shape: tuple[int, ...]) -> None:
    if logits.shape[:-1] != shape:
        raise ShapeError(f"Logits of shape {tuple(logits.shape)} were given; expected {(*shape, 'classes')}.")
