"""What a model keeps of its output when a site's rows are replaced by their reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError, InputError, ShapeError
from nb_sae.flow.effects.contexts import Contexts
from nb_sae.flow.schema import RECOVERED
from nb_sae.flow.settings import check_whole
from nb_sae.flow.sources import named_dictionaries
from nb_sae.hooks import intervene
from nb_sae.models.clip import ClipModel
from nb_sae.models.contexts import Batch
from nb_sae.models.lm import LanguageModel
from nb_sae.models.next_token import losses_of
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.metrics import loss_recovered
from nb_sae.sae.metrics.downstream import kl_of_rows
from nb_sae.sae.origin import check_model
from nb_sae.types import Edit, Modality

Ablate = Literal["zero", "mean"]
CLEAN, ABLATED = "clean", "ablated"


def recovered(
    model: LanguageModel | ClipModel,
    dictionaries: Dictionary | Mapping[str, Dictionary],
    inputs: Any,
    *,
    k: int | Sequence[int] | None = None,
    ablate: Ablate = "zero",
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    special_tokens: bool = False,
    batch: int = 8,
    progress: bool = True,
) -> pl.DataFrame:
    """How much of a model's output is kept when one site at a time runs on reconstructions: 1 all, 0 as ablated.

    Language models: cross-entropy of the next token and KL(model ‖ spliced), in nats over every token but the first of
    a context. CLIP: cosine of the embedding with the model's own, and with `labels` the zero-shot accuracy, where
    answers that tie count as their share. recovered = (ablated − spliced) / (ablated − clean), for cosine and accuracy
    of 1 − the number. The ablation is the null, and 0 is far from any row, so it flatters: read `spliced` beside it.

    The model runs once per batch for itself, once for the ablation of each site, and once for each site and k.

    Args:
        model: From `load_lm` or `load_clip`.
        dictionaries: One, or several by site.
        inputs: Texts or pictures, as `ActivationStore.collect` takes them; a list of them; token ids or pixels.
        k: Active latents per row, or several numbers. None: the trained rule.
        ablate: What the rows become instead: 0, or the mean of the dictionary's training rows.
        labels: Number of the right prompt for every input, for zero-shot accuracy.
        prompts: The texts to choose from.
        templates: Texts with `{}` for the prompt; their embeddings are averaged.
        special_tokens: Also replace the rows of BOS, EOS and the like, which stores leave out unless told otherwise.
        batch: Contexts per forward pass.
        progress: Show a progress bar.

    Returns:
        `RECOVERED`: one line per site, k and measure.

    Raises:
        ConfigError: an encoder or a model without a head (no next token); no mean for `ablate="mean"`; labels without
            prompts; a dictionary without a site, of another site or model, or a transcoder.
        HookError: a site that the model lacks, or of the other tower.
        ShapeError: a dictionary of another width than its site.
        InputError: no inputs, or another number of labels.

    Source:
        Bricken et al. 2023, Towards Monosemanticity (loss recovered); KL: Rajamanoharan et al. 2024, arXiv:2404.16014.
    """
    named = _by_site(dictionaries)
    ks = dict.fromkeys(named, _ks(k))
    return measure(
        model, named, inputs, ks, ablate=ablate, labels=labels, prompts=prompts, templates=templates,
        special_tokens=special_tokens, batch=batch, progress=progress,
    )  # fmt: skip


def measure(
    model: Any,
    named: Mapping[str, Dictionary],
    inputs: Any,
    ks: Mapping[str, Sequence[int | None]],
    *,
    ablate: Ablate = "zero",
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    special_tokens: bool = False,
    batch: int = 8,
    progress: bool = True,
) -> pl.DataFrame:
    """`recovered` with the k's of every site: None is the trained rule."""
    if ablate not in get_args(Ablate):
        raise ConfigError(f"ablate={ablate!r}: use 'zero' or 'mean' (of the dictionary's training rows).")
    for site, one in named.items():
        check_model(model, one, site)
    contexts = Contexts(model, inputs, batch=batch, special_tokens=special_tokens)
    output = _output_of(model, contexts.modality, labels, prompts, templates, len(contexts))
    splices = [_Splice(site, k, one, ablate) for site, one in named.items() for k in (ABLATED, *ks[site])]
    for site, one in named.items():
        width = model.site(site, contexts.modality).width
        if width != one.d_in:
            raise ShapeError(f"Site {site!r} of {model.name} has width {width}; its dictionary takes {one.d_in}.")
    runs = {CLEAN: output.empty()} | {one.key: output.empty() for one in splices}
    with progress_bar(len(contexts), contexts.modality + "s", "run on reconstructions", enabled=progress) as bar:
        done = 0
        for number, given in enumerate(contexts):
            clean = output.run(given)
            output.add(runs[CLEAN], given, clean, clean)
            for one in splices:
                with intervene(model, one.edit(given)):
                    found = output.run(given)
                output.add(runs[one.key], given, clean, found)
            reached = min((number + 1) * batch, len(contexts))
            bar.update(reached - done)
            done = reached
    lines = [
        {
            "site": one.site,
            "k": one.shown_k,
            "measure": measure,
            "recovered": None if (value := loss_recovered(*losses)).reason else value.value,
            "clean": shown[0],
            "spliced": shown[1],
            "ablated": shown[2],
            "count": count,
            "reason": value.reason or None,
        }
        for one in splices
        if one.k != ABLATED
        for measure, losses, shown, count in output.result(runs[CLEAN], runs[one.key], runs[(one.site, ABLATED)])
    ]
    return pl.DataFrame(lines, schema=RECOVERED)


@dataclass(frozen=True)
class _Splice:
    """What one site becomes in one run."""

    site: str
    k: Any
    """A number, None for the trained rule, or `ABLATED`."""
    dictionary: Dictionary
    ablate: Ablate
    replaces: Edit = field(init=False)

    def __post_init__(self) -> None:
        if self.k != ABLATED:
            edit = self.dictionary.splice(self.k, site=self.site)
        elif self.ablate == "zero":
            edit = Edit(self.site, torch.zeros_like, f"zeros at {self.site!r}")
        else:
            mean = self.dictionary.mean
            if mean is None:
                raise ConfigError(f"The dictionary of {self.site!r} does not know the mean of its rows. Use 'zero'.")
            edit = Edit(self.site, lambda x: mean.to(x).expand_as(x).clone(), f"the mean at {self.site!r}")
        object.__setattr__(self, "replaces", edit)

    @property
    def key(self) -> Any:
        return (self.site, self.k)

    @property
    def shown_k(self) -> int | None:
        own = self.dictionary.rank_budgets[-1] if self.dictionary.sets_k else None
        return own if self.k is None else self.k

    def edit(self, batch: Batch) -> Edit:
        """The same, but rows of padding and special tokens stay as they are."""

        def apply(x: Tensor) -> Tensor:
            counted = batch.counted(x.shape).view(x.shape[:-1]).to(x.device)
            replaced = self.replaces.apply(x)
            return replaced if bool(counted.all()) else torch.where(counted[..., None], replaced, x)

        return Edit(self.site, apply, self.replaces.label)


Result = Iterator[tuple[str, tuple[float, float, float], tuple[float, float, float], int]]


class _Output(Protocol):
    """What is measured of a model's output, summed over batches: `clean` is its own output for the same batch."""

    def empty(self) -> dict[str, Any]: ...

    def run(self, batch: Batch) -> Tensor: ...

    def add(self, sums: dict[str, Any], batch: Batch, clean: Tensor, found: Tensor) -> None: ...

    def result(self, clean: dict[str, Any], spliced: dict[str, Any], ablated: dict[str, Any]) -> Result:
        """Measure, losses to compare and numbers to show (clean, spliced, ablated), over how many."""
        ...


class _NextToken:
    """Cross-entropy and KL of a language model."""

    def __init__(self, model: LanguageModel) -> None:
        model.require_next_token()
        self.model = model

    def empty(self) -> dict[str, Any]:
        return {"cross_entropy": 0.0, "kl": 0.0, "count": 0}

    @torch.no_grad()
    def run(self, batch: Batch) -> Tensor:
        return self.model.logits(batch.given)

    @torch.no_grad()
    def add(self, sums: dict[str, Any], batch: Batch, clean: Tensor, found: Tensor) -> None:
        losses = losses_of(found, batch.given).double()
        predicted = ~losses.isnan() if found is clean else ~losses_of(clean, batch.given).isnan()
        sums["count"] += int(predicted.sum())
        sums["cross_entropy"] += float(losses[predicted].sum())
        if found is not clean:
            for row, mask in enumerate(predicted):
                sums["kl"] += float(kl_of_rows(clean[row, :-1][mask], found[row, :-1][mask]).sum())

    def result(self, clean: dict[str, Any], spliced: dict[str, Any], ablated: dict[str, Any]) -> Result:
        count = clean["count"]
        if not count:
            raise InputError("No context has a second token, so there is no next token to predict. Give longer texts.")
        for name in ("cross_entropy", "kl"):
            means = (clean[name] / count, spliced[name] / count, ablated[name] / count)
            yield name, means, means, count


class _Embedding:
    """Cosine and zero-shot accuracy of a CLIP."""

    def __init__(self, model: ClipModel, modality: Modality, classes: Tensor | None, labels: Tensor | None) -> None:
        self.model, self.classes, self.labels = model, classes, labels
        self.modality: Modality = modality
        self.site = f"{modality}_embed"

    def empty(self) -> dict[str, Any]:
        return {"cosine": 0.0, "right": 0.0, "count": 0}

    def run(self, batch: Batch) -> Tensor:
        return self.model.capture_rows(batch.given, [self.site], self.modality)[self.site].double()

    @torch.no_grad()
    def add(self, sums: dict[str, Any], batch: Batch, clean: Tensor, found: Tensor) -> None:
        unit = F.normalize(found, dim=-1)
        sums["cosine"] += float((F.normalize(clean, dim=-1) * unit).sum())
        if self.classes is not None and self.labels is not None:
            labels = self.labels[sums["count"] : sums["count"] + len(found)].to(unit.device)
            scores = unit @ self.classes.T
            best = scores == scores.amax(-1, keepdim=True)
            sums["right"] += float((best.gather(1, labels[:, None])[:, 0] / best.sum(-1)).sum())
        sums["count"] += len(found)

    def result(self, clean: dict[str, Any], spliced: dict[str, Any], ablated: dict[str, Any]) -> Result:
        for name, key in (("cosine", "cosine"), ("zero_shot", "right"))[: 1 + (self.labels is not None)]:
            means = tuple(one[key] / one["count"] for one in (clean, spliced, ablated))
            yield name, (1 - means[0], 1 - means[1], 1 - means[2]), (means[0], means[1], means[2]), clean["count"]


def _output_of(
    model: Any,
    modality: Modality,
    labels: Sequence[int] | None,
    prompts: Sequence[str] | None,
    templates: Sequence[str] | None,
    inputs: int,
) -> _Output:
    if isinstance(model, LanguageModel):
        if labels is not None or prompts is not None:
            raise ConfigError(f"{model.name} is a language model: labels= and prompts= are for CLIP. Leave them out.")
        return _NextToken(model)
    if (labels is None) != (prompts is None):
        raise ConfigError("Zero-shot accuracy needs both labels= (a number for every input) and prompts=. Give both.")
    if labels is None or prompts is None:
        return _Embedding(model, modality, None, None)
    if modality == "text":
        raise ConfigError("Zero-shot accuracy is of pictures. Give pictures, or leave out labels= and prompts=.")
    numbers = np.asarray(labels)
    if (
        numbers.shape != (inputs,)
        or numbers.dtype.kind not in "iu"
        or not ((numbers >= 0) & (numbers < len(prompts))).all()
    ):
        raise InputError(
            f"{len(labels):,} labels were given for {inputs:,} inputs; expected one number from 0 to "
            f"{len(prompts) - 1} for each."
        )
    classes = model.class_embeddings(prompts, templates).double()
    return _Embedding(model, modality, classes, torch.as_tensor(numbers, dtype=torch.long))


def _by_site(dictionaries: Dictionary | Mapping[str, Dictionary]) -> dict[str, Dictionary]:
    if isinstance(dictionaries, Dictionary):
        return {dictionaries.splice().site: dictionaries}
    return named_dictionaries(dictionaries)


def _ks(k: int | Sequence[int] | None) -> list[int | None]:
    if k is None:
        return [None]
    listed = list(k) if isinstance(k, Sequence) and not isinstance(k, str) else [k]
    if not listed:
        raise ConfigError("k=[] asks for nothing. Give numbers of active latents per row, or leave it out.")
    for one in listed:
        check_whole(1, k=one)
    return [*dict.fromkeys(map(int, listed))]
