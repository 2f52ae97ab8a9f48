"""Deactivation: what becomes of a latent when its matched predecessor is scaled in the running model, and of the loss.

Owns the experiment and its controls; `nb_sae.flow.effects.counting` says what is active beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.flow.effects.contexts import Contexts
from nb_sae.flow.effects.counting import count
from nb_sae.flow.effects.scaling import flat, scaling
from nb_sae.flow.effects.trials import How, Trial, control_of, plan_of
from nb_sae.flow.schema import DEACTIVATION
from nb_sae.flow.settings import check_whole
from nb_sae.flow.sources import (
    Flow,
    SourceLane,
    dictionary_at,
    matches_of,
    sources_of,
)
from nb_sae.hooks import capture, intervene
from nb_sae.models.contexts import Batch
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import activations_of
from nb_sae.sae.origin import check_model
from nb_sae.statistics import one_among_p


@dataclass(frozen=True, repr=False)
class Deactivation:
    """How much a latent depends on its predecessor, beside how much it depends on unrelated latents."""

    frame: pl.DataFrame
    """`schema.DEACTIVATION`: one line per latent, source site, way of choosing and factor; `how` "control" for latents
    of the source site that are none of its matches, "control of top5" for five of them at once and "control of random5"
    for those like that one. Where no row has both active, `change` and `success` are null."""
    about: Mapping[str, Any]
    """`site`, `sources` (lane → site), `rows` and `contexts` that were run, `latents`, `loss` (clean, nats per token;
    null without one), `seed`."""

    def summary(self) -> pl.DataFrame:
        """`source_site, how, factor, latents, rows, change, success, loss`: means over latents that have rows."""
        keys = ["source_site", "how", "factor"]
        measured = self.frame.drop_nulls("change")
        numbers = [pl.col(name).mean() for name in ("change", "success", "loss")]
        agg = measured.group_by(keys, maintain_order=True).agg(
            pl.col("latent").n_unique().alias("latents"), pl.col("rows").sum(), *numbers
        )
        return agg.sort(["source_site", "factor", "how"])

    def against_control(self) -> pl.DataFrame:
        """`source_site, how, factor, latents, change, control, p`: each latent beside its own controls.

        `change` and `control` are means over the latents that have both. `p` is two-sided and exact: a predecessor that
        is like its controls ranks among them as any of them does (`statistics.one_among_p`).
        """
        keys = ["source_site", "latent", "factor"]
        measured = self.frame.drop_nulls("change")
        own = pl.col("how").is_in(get_args(How))
        rest = measured.filter(~own).group_by(*keys, rest="how").agg(controls="change")
        ways = measured.filter(own).with_columns(
            rest=pl.col("how").replace_strict({how: control_of(how) for how in get_args(How)})
        )
        both = ways.join(rest, on=[*keys, "rest"], maintain_order="left")
        lines = both.with_columns(
            control=pl.col("controls").list.mean(),
            others=pl.col("controls").list.len(),
            above=(
                (pl.col("change") - pl.col("controls")).list.eval(pl.element().sign()).list.sum()
                + pl.col("controls").list.len()
            )
            / 2,
        )
        groups = lines.group_by("source_site", "how", "factor", maintain_order=True)
        found = groups.agg(pl.len().alias("latents"), pl.col("change", "control").mean(), "above", "others")
        p = [one_among_p(np.array(a), np.array(n)) for a, n in found.select("above", "others").iter_rows()]
        return found.drop("above", "others").with_columns(pl.Series("p", p, dtype=pl.Float64))

    def __repr__(self) -> str:
        means = (
            self.frame.drop_nulls("change").group_by("how", "factor", maintain_order=True).agg(pl.col("change").mean())
        )
        lines = means.iter_rows()
        shown = ", ".join(f"{how} r={factor:g}: {change:+.2f}" for how, factor, change in lines)
        return (
            f"Deactivation({self.about['site']!r}, {len(self.about['latents'])} latents; change {shown or 'of none'})"
        )


@torch.no_grad()
def deactivate(
    flow: Flow,
    dictionaries: Mapping[str, Dictionary],
    model: Any,
    inputs: Any,
    *,
    site: str,
    latents: Sequence[int] | None = None,
    factor: float | Sequence[float] = 0.0,
    how: How | Sequence[How] = "top1",
    lanes: SourceLane | Sequence[SourceLane] | None = None,
    controls: int = 3,
    loss: bool | None = None,
    special_tokens: bool = False,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> Deactivation:
    """Scale the predecessors of a latent where they act, h ← h + a (r − 1) v, and read the latent again.

    a is the predecessor's activation, v its decoder row, r the factor: 0 turns it off, 1 is the identity bit for bit,
    below 0 reverses it. On the rows on which the latent and its predecessor are active, `change` is the mean of
    1 − z_new / z_old and `success` the share of rows on which the latent is off afterwards. A control is another latent
    of the same source site, none of the latent's matches, as often and as strongly active as the predecessor and
    active together with the latent; of "top5" five of them at once. It is measured on its own rows. Memory does not
    grow with the number of inputs.

    Args:
        flow: From `feature_flow`.
        dictionaries: Those from which it was made.
        model: From `load_lm` or `load_clip`: the model that they were trained on.
        inputs: Texts or pictures, or what the model takes: token ids with −1 on padding, or pixels.
        site: Of the latents that are watched.
        latents: Which; None: `counting.DRAWN` of them, drawn by chance among those active together with a predecessor.
        factor: r, or several.
        how: Which predecessors: "top1", the best match; "top5", five at once; "random5", one of the five by chance;
            "permutation", the partner in a flow made with `rule="permutation"`.
        lanes: By which routes, each on its own; None: every one that the flow has.
        controls: Per latent, source site and factor; fewer where there are not so many.
        loss: Measure the loss of the next token. None: where the model has one.
        special_tokens: Count BOS, EOS and the like of texts among the rows.
        seed: Of the draws.
        batch: Contexts per forward pass.
        progress: Show the progress.

    Raises:
        ConfigError: a site, lane or latent that is not there, fewer than five sources kept in the flow, another model
            than the dictionaries were trained on, or the loss of a model that has none.
        HookError: the model lacks a site.

    Source:
        Laptev et al. 2025, Analyze Feature Flow, section 5.2.
    """
    check_whole(controls=controls, seed=seed)
    ways, factors, sources = _asked(flow, site, how, factor, lanes)
    for one in (site, *sources.values()):
        check_model(model, dictionary_at(dictionaries, one, flow), one)
    contexts = Contexts(model, inputs, batch=batch, special_tokens=special_tokens)
    measures_loss = _has_loss(model, contexts, asked=loss)
    matches: dict[SourceLane, Any] = {lane: matches_of(flow, site, lane) for lane in sources}
    counted = count(contexts, dictionaries, site, sources, matches, latents, seed=seed)
    plan = plan_of(flow, counted, sources, ways, factors, controls=controls, seed=seed)
    run = _Run(contexts, dictionaries, site, sources, measures_loss=measures_loss)
    with progress_bar(len(contexts), "inputs", f"deactivate {len(plan)} sources", enabled=progress) as bar:
        for given in contexts:
            run.batch(given, plan)
            bar.update(min(len(given.given), bar.total - bar.done if bar.total else 0))
    about = {
        "site": site,
        "sources": sources,
        "latents": list(counted.watched),
        "rows": counted.rows,
        "contexts": run.contexts_seen,
        "loss": run.clean_loss / run.tokens if run.tokens else None,
        "rule": flow.about.get("rule"),
        "seed": seed,
    }
    return Deactivation(_frame(plan, site, sources, run), about)


def _asked(
    flow: Flow, site: str, how: Any, factor: Any, lanes: Any
) -> tuple[list[str], list[float], dict[SourceLane, str]]:
    """Ways, factors and sources as lists, checked."""
    ways = list(how) if isinstance(how, list | tuple) else [how]
    if not ways or any(one not in get_args(How) for one in ways):
        raise ConfigError(f"how={how!r}: choose from {', '.join(get_args(How))}.")
    if "permutation" in ways and flow.about.get("rule") != "permutation":
        raise ConfigError(
            f"how='permutation' needs partners: this flow was matched by {flow.about.get('rule')!r}. Give "
            "feature_flow(…, rule='permutation')."
        )
    factors = list(factor) if isinstance(factor, Sequence | np.ndarray) else [factor]
    if not factors or not all(isinstance(one, int | float | np.number) and math.isfinite(one) for one in factors):
        raise ConfigError(f"factor={factor!r}: expected a finite number or several, such as 0 or (0, -1, -8).")
    known = sources_of(flow, site)
    if not known:
        raise ConfigError(f"Nothing lies before {site!r} in this flow. Choose a later site of {', '.join(flow.sites)}.")
    wanted = list(known) if lanes is None else list(lanes) if isinstance(lanes, list | tuple) else [lanes]
    missing = [lane for lane in wanted if lane not in known]
    if missing or not wanted:
        raise ConfigError(f"lanes={lanes!r}: {site!r} is matched with {', '.join(known)}. Choose among these.")
    return ways, [float(one) for one in factors], {lane: known[lane] for lane in known if lane in wanted}


def _has_loss(model: Any, contexts: Contexts, *, asked: bool | None) -> bool:
    """Whether the loss is measured. Raises `ConfigError` where it was asked for and the model has none."""
    if asked is False:
        return False
    check = getattr(model, "require_next_token", None)
    if check is None or contexts.modality != "text":
        if asked:
            raise ConfigError(
                f"{getattr(model, 'name', 'The model')} predicts no next token, so there is no loss to measure. Leave "
                "out loss=True."
            )
        return False
    try:
        check()
    except ConfigError:
        if asked:
            raise
        return False
    return True


class _Run:
    """Runs batches clean and edited, and adds up what the trials see."""

    def __init__(
        self,
        contexts: Contexts,
        dictionaries: Mapping[str, Dictionary],
        site: str,
        sources: Mapping[SourceLane, str],
        *,
        measures_loss: bool,
    ) -> None:
        self.model, self.modality = contexts.model, contexts.modality
        self.dictionaries, self.site, self.sources = dictionaries, site, sources
        self.measures_loss = measures_loss
        self.tokens = self.contexts_seen = 0
        self.clean_loss = 0.0

    def batch(self, given: Batch, plan: Sequence[Trial]) -> None:
        """One batch without an edit, and once more for every trial that has something to scale in it."""
        seen, loss, tokens = self._forward(given.given, [*dict.fromkeys(self.sources.values()), self.site])
        self.clean_loss, self.tokens = self.clean_loss + loss, self.tokens + tokens
        self.contexts_seen += len(given.given)
        target = seen[self.site]
        before = self._encoded(target, self.site) * given.counted(target.shape).flatten()[:, None]
        sources = {lane: _Source(seen[one], self._encoded(seen[one], one)) for lane, one in self.sources.items()}
        for trial in plan:
            source = sources[trial.lane]
            acts = source.latents[:, trial.sources]
            hit = (acts > 0).any(1)
            rows = ((before[:, trial.latent] > 0) & _as_rows(hit, source.rows, target)).nonzero()[:, 0]
            if len(rows) or (self.measures_loss and bool(hit.any())):
                edit = scaling(
                    self.dictionaries[self.sources[trial.lane]], self.sources[trial.lane], source.rows, acts,
                    trial.sources, trial.factor,
                )  # fmt: skip
                with intervene(self.model, edit):
                    changed, new_loss, _ = self._forward(given.given, [self.site])
                trial.loss += new_loss - loss
                self._compare(trial, target, changed[self.site], rows)

    def _compare(self, trial: Trial, old: Tensor, new: Tensor, rows: Tensor) -> None:
        if not len(rows):
            return
        dictionary = self.dictionaries[self.site]
        # Both are encoded as the same few rows: another number of rows may give another last digit.
        z_old, z_new = (
            activations_of(dictionary, flat(one)[rows.to(one.device)].float(), [trial.latent])[:, 0].double().cpu()
            for one in (old, new)
        )
        kept = z_old > 0
        trial.rows += int(kept.sum())
        trial.change += float((1 - z_new[kept] / z_old[kept]).sum())
        trial.off += int((z_new[kept] == 0).sum())

    def _forward(self, given: Tensor, sites: Sequence[str]) -> tuple[Mapping[str, Tensor], float, int]:
        """What the sites give, and the loss summed over tokens with their number (0 without a loss)."""
        if not self.measures_loss:
            return self.model.capture_rows(given, sites, self.modality), 0.0, 0
        with capture(self.model, sites) as seen:
            losses = self.model.token_losses(given).double()
        return seen, float(losses.nansum()), int((~losses.isnan()).sum())

    def _encoded(self, rows: Tensor, site: str) -> Float[Tensor, "rows d_sae"]:
        return self.dictionaries[site].encode(flat(rows).float()).cpu()


@dataclass(frozen=True)
class _Source:
    rows: Tensor
    """As the model gives them."""
    latents: Float[Tensor, "rows d_sae"] = field(repr=False)


def _as_rows(hit: Bool[Tensor, " rows"], source: Tensor, target: Tensor) -> Bool[Tensor, " target_rows"]:
    """Where the source acts, by the rows of the target: the same tokens, or whether any token of the input is hit."""
    if source.shape[:-1] == target.shape[:-1]:
        return hit
    if target.ndim == 2 and source.ndim == 3:
        return hit.reshape(source.shape[:-1]).any(1)
    raise ConfigError(
        f"The source gives rows {tuple(source.shape[:-1])}, the watched site {tuple(target.shape[:-1])}: they are not "
        "the same tokens."
    )


def _frame(plan: Sequence[Trial], site: str, sources: Mapping[SourceLane, str], run: _Run) -> pl.DataFrame:
    def lines() -> Iterator[tuple[Any, ...]]:
        for trial in plan:
            rows = trial.rows
            shares = (trial.change / rows, trial.off / rows) if rows else (None, None)
            loss = trial.loss / run.clean_loss if run.clean_loss else None
            yield (
                site, trial.latent, sources[trial.lane], trial.sources[0], trial.how, trial.factor, rows, *shares, loss
            )  # fmt: skip

    return pl.DataFrame(list(lines()), schema=DEACTIVATION, orient="row")
