"""What a linear classifier of the rows makes of their reconstructions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.metrics.rows import check_finite


@dataclass(frozen=True)
class Probe:
    """A linear classifier of rows: softmax(normed(x − mean) W + b)."""

    W: Float[Tensor, "d_in classes"]
    b: Float[Tensor, " classes"]
    mean: Float[Tensor, " d_in"]
    """Of the rows it was trained on. What is left after it is taken away is brought to norm 1."""
    history: tuple[float, ...]
    """Cross-entropy on the validation rows after each iteration, nats."""
    validation_rows: Int[Tensor, " validation"]
    """Which of the given rows were kept for choosing the best iteration."""

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0 … classes − 1."""
        return self.W.shape[1]

    @property
    def validation_loss(self) -> float:
        """Cross-entropy of these weights on the validation rows, nats."""
        return min(self.history)

    def log_probabilities(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows classes"]:
        """log p(class | row)."""
        return F.log_softmax(_features(x, self.mean) @ self.W + self.b, dim=-1)


@dataclass(frozen=True)
class ProbeFidelity:
    """The probe's answers on reconstructions beside its answers on the rows, each with what chance gives."""

    kl: float
    """Mean over rows of KL(p(x) ‖ p(x̂)), nats."""
    kl_std: float
    """Standard deviation over rows."""
    kl_null: float
    """The same with the reconstruction of another row, drawn by shuffling."""
    agreement: float
    """Fraction of rows with argmax p(x) = argmax p(x̂). Not an accuracy."""
    agreement_null: float
    """The same with the reconstruction of another row."""
    accuracy: float
    """Fraction of rows whose label the probe gets right from x."""
    accuracy_reconstructed: float
    """The same from x̂."""
    accuracy_null: float
    """Of always answering the most frequent label of these rows."""
    rows: int


def train_probe(
    x: Float[Tensor, "rows d_in"],
    labels: Int[Tensor, " rows"],
    *,
    classes: int | None = None,
    validation: float = 0.2,
    groups: Int[Tensor, " rows"] | None = None,
    optimiser: Literal["lbfgs", "adamw"] = "lbfgs",
    weight_decay: float = 1e-4,
    iterations: int = 300,
    patience: int = 15,
    seed: int = 0,
) -> Probe:
    """Multinomial logistic regression on rows, full batch; the weights of the best iteration are kept as a copy.

    Args:
        x: Rows in model units. They are centred and brought to norm 1, so the scale of the model does not matter.
        labels: 0 … classes − 1.
        classes: How many there are; None: the largest label + 1.
        validation: Fraction of the rows kept for choosing the iteration.
        groups: Rows with the same number stay on one side, for example all tokens of an input.
        optimiser: "lbfgs" with strong Wolfe conditions, or "adamw" at learning rate 0.05.
        weight_decay: λ of λ/2·‖W‖² in the loss (L-BFGS), or AdamW's.
        iterations: At most.
        patience: Stop after so many iterations without a better validation loss.
        seed: Of the validation rows.

    Raises:
        ShapeError: rows and labels do not match.
        ConfigError: fewer than two classes, a label outside, too few rows to keep some back, or no such optimiser.
        NonFiniteError: NaN or infinity in the rows.

    Source:
        The linear evaluation of Zaigrajew et al. 2025, arXiv:2502.20578; its code keeps the last weights, not the best.
    """
    if optimiser not in ("lbfgs", "adamw") or iterations < 1:
        raise ConfigError(f"optimiser={optimiser!r}, iterations={iterations}: use 'lbfgs' or 'adamw', and at least 1.")
    classes = _check_labels(x, labels, classes)
    train, held = split_rows(len(x), validation, groups=groups, seed=seed)
    x, labels = x.detach().float(), labels.to(x.device, torch.long)
    mean = x[train].mean(0)
    features, held_features = _features(x[train], mean), _features(x[held], mean)
    W = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    b = torch.zeros(classes, device=x.device, requires_grad=True)

    def loss() -> Tensor:
        return F.cross_entropy(features @ W + b, labels[train])

    step = _lbfgs_step([W, b], loss, weight_decay) if optimiser == "lbfgs" else _adamw_step([W, b], loss, weight_decay)
    history: list[float] = []
    best = W.detach().clone(), b.detach().clone()
    waited = 0
    for _ in range(iterations):
        step()
        with torch.no_grad():
            reached = float(F.cross_entropy(held_features @ W + b, labels[held]))
        waited = 0 if math.isfinite(reached) and reached < min(history, default=math.inf) else waited + 1
        if waited == 0:
            best = W.detach().clone(), b.detach().clone()
        history.append(reached if math.isfinite(reached) else math.inf)
        if waited >= patience:
            break
    return Probe(*best, mean=mean, history=tuple(history), validation_rows=held)


@torch.no_grad()
def probe_fidelity(
    probe: Probe,
    x: Float[Tensor, "rows d_in"],
    x_hat: Float[Tensor, "rows d_in"],
    labels: Int[Tensor, " rows"],
    *,
    seed: int = 0,
) -> ProbeFidelity:
    """KL, agreement and label accuracy on rows that the probe has not seen.

    Args:
        probe: From `train_probe`.
        x: Held-out rows.
        x_hat: Their reconstructions, of the sparse code that is judged.
        labels: Of the rows.
        seed: Of the shuffle for the nulls.
    """
    _check_labels(x, labels, probe.classes)
    if x.shape != x_hat.shape:
        raise ShapeError(f"Rows {tuple(x.shape)} and reconstructions {tuple(x_hat.shape)} should have one shape.")
    check_finite(x_hat, what="reconstructions")
    labels = labels.to(probe.W.device, torch.long)
    log_p = probe.log_probabilities(x.to(probe.W.device)).double()
    log_q = probe.log_probabilities(x_hat.to(probe.W.device)).double()
    other = log_q[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(log_q.device)]
    kl, kl_other = (((log_p.exp() * (log_p - q)).sum(-1)) for q in (log_q, other))
    says, says_hat = log_p.argmax(-1), log_q.argmax(-1)
    return ProbeFidelity(
        kl=float(kl.mean()),
        kl_std=float(kl.std(correction=0)),
        kl_null=float(kl_other.mean()),
        agreement=float((says == says_hat).double().mean()),
        agreement_null=float((says == other.argmax(-1)).double().mean()),
        accuracy=float((says == labels).double().mean()),
        accuracy_reconstructed=float((says_hat == labels).double().mean()),
        accuracy_null=int(torch.bincount(labels).max()) / len(labels),
        rows=len(x),
    )


def linear_probe(
    x: Float[Tensor, "rows d_in"],
    x_hat: Float[Tensor, "rows d_in"],
    labels: Int[Tensor, " rows"],
    *,
    test: float = 0.3,
    groups: Int[Tensor, " rows"] | None = None,
    seed: int = 0,
) -> ProbeFidelity:
    """Train a probe on a part of the rows, judge the reconstructions of the rest. See `train_probe`, `ProbeFidelity`.

    Args:
        x: Rows in model units.
        x_hat: Their reconstructions.
        labels: 0 … classes − 1.
        test: Fraction of rows (of groups, where given) that the probe never sees.
        groups: Rows with the same number stay on one side; give `input_id` where an input has many rows.
        seed: Of both splits and of the null.
    """
    classes = _check_labels(x, labels, None)
    train, held = split_rows(len(x), test, groups=groups, seed=seed)
    inner = None if groups is None else groups[train.to(groups.device)]
    probe = train_probe(x[train], labels[train.to(labels.device)], classes=classes, groups=inner, seed=seed + 1)
    return probe_fidelity(probe, x[held], x_hat[held.to(x_hat.device)], labels[held.to(labels.device)], seed=seed + 2)


def split_rows(
    rows: int, fraction: float, *, groups: Int[Tensor, " rows"] | None = None, seed: int = 0
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Row numbers to use and to hold back, ascending; whole groups only.

    Raises:
        ConfigError: a side would be empty.
    """
    if groups is not None and groups.shape != (rows,):
        raise ShapeError(f"groups of shape {tuple(groups.shape)} for {rows} rows; expected one number per row.")
    member = torch.arange(rows) if groups is None else groups.cpu().unique(return_inverse=True)[1]
    count = int(member.max()) + 1 if rows else 0
    held = round(fraction * count)
    if not 0 < held < count:
        what = "rows" if groups is None else "groups"
        raise ConfigError(f"{fraction} of {count} {what} leaves one side empty. Give more rows or another fraction.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    is_held = torch.zeros(count, dtype=torch.bool).scatter(0, order[:held], True)[member]
    return (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0]


def _features(x: Tensor, mean: Tensor) -> Tensor:
    return F.normalize(x.float() - mean, dim=-1)


def _lbfgs_step(parameters: list[Tensor], loss: Callable[[], Tensor], weight_decay: float) -> Callable[[], None]:
    # One iteration per call: the optimiser keeps its history between calls, and we look at the validation rows.
    optimiser = torch.optim.LBFGS(parameters, max_iter=1, max_eval=20, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss() + weight_decay / 2 * parameters[0].square().sum()
        value.backward()
        return value

    return lambda: optimiser.step(closure)  # pyright: ignore[reportReturnType]


def _adamw_step(parameters: list[Tensor], loss: Callable[[], Tensor], weight_decay: float) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(parameters, lr=0.05, weight_decay=weight_decay)

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    return step


def _check_labels(x: Tensor, labels: Tensor, classes: int | None) -> int:
    if x.ndim != 2 or labels.shape != x.shape[:1] or labels.is_floating_point():
        raise ShapeError(
            f"Rows of shape {tuple(x.shape)} and labels of shape {tuple(labels.shape)} ({labels.dtype}) were given; "
            "expected (rows, d_in) and one whole number per row."
        )
    if not len(labels):
        raise ShapeError("No rows were given.")
    check_finite(x)
    low, high = int(labels.min()), int(labels.max())
    classes = high + 1 if classes is None else classes
    if classes < 2 or low < 0 or high >= classes:
        raise ConfigError(f"Labels from {low} to {high} for {classes} classes; expected 0 … classes − 1, at least two.")
    return classes
