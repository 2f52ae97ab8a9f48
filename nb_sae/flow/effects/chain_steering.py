"""Steering along a chain: one edit per site, with a strength that follows the layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import polars as pl

from nb_sae.errors import ConfigError
from nb_sae.flow.sources import LANES, Flow, check_sites, dictionary_at
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import Unit, latent_number
from nb_sae.types import Edit

Mode = Literal["single", "cumulative"]
Schedule = Literal["constant", "exponential", "linear"]
RATE = -0.05
"""Of the exponential schedule, per layer (Laptev et al. 2025)."""
LAST = 1.0
"""Where the linear schedule ends (s* of the paper)."""


class ChainedFlow(Flow, Protocol):
    """A flow that can be followed; `FeatureFlow` is one."""

    def chain(self, site: str, latent: int) -> pl.DataFrame:
        """`schema.CHAIN` of a latent, by step; negative steps lie towards the input."""
        ...


@dataclass(frozen=True)
class ChainStep:
    """One latent of a chain, and how strongly it is changed."""

    site: str
    latent: int
    layer: int
    strength: float
    """In the unit that was asked for; for `scale` a factor."""


def steer_chain(
    flow: ChainedFlow,
    dictionaries: Mapping[str, Dictionary],
    site: str,
    latent: int,
    *,
    add: float | None = None,
    set: float | None = None,  # noqa: A002 (the users' word)
    scale: float | None = None,
    mode: Mode = "single",
    schedule: Schedule = "constant",
    rate: float = RATE,
    last: float = LAST,
    lanes: Sequence[str] = ("residual",),
    unit: Unit = "activation",
    analyses: Mapping[str, Any] | None = None,
) -> list[Edit]:
    """Edits for `ns.intervene` that steer a latent, alone or with those it comes from, at every token.

    With strength s at layer l: "constant" s; "exponential" s·exp(rate · l); "linear" from s at the first layer of the
    chain to `last` at the layer of the latent. Of `scale`, whose neutral value is 1, the schedule is that of s − 1 for
    "exponential"; for "linear" it ends at `last` as it is.

    Args:
        flow: From `feature_flow`.
        dictionaries: Those from which it was made.
        site: Where the chain ends.
        latent: Its number there.
        add: s, what is added to the activation at every token; or
        set: the activation at every token; or
        scale: what the activation is multiplied with. Exactly one of the three.
        mode: "single": this latent alone. "cumulative": also those before it on its chain, from the first on.
        schedule: How the strength depends on the layer.
        rate: Of the exponential schedule, per layer.
        last: Where the linear schedule ends.
        lanes: What is followed towards the input; the chain ends where it leaves them.
        unit: Of `add` and `set`: "p99" counts in the 99th percentile of each latent, which brings the layers to one
            scale (the folding of the paper).
        analyses: Site → `Analysis`, for `unit="p99"`.

    Returns:
        One edit per latent of the chain, first site first.

    Raises:
        ConfigError: no such site or latent, not exactly one of add, set, scale, an unknown mode or schedule, or a
            dictionary or analysis that is missing.

    Source:
        Laptev et al. 2025, Analyze Feature Flow, section 5.3.
    """
    what, strength = one_change(add=add, set=set, scale=scale)
    how: dict[str, Any] = {"mode": mode, "schedule": schedule, "rate": rate, "last": last, "lanes": lanes}
    edits = []
    for step in chain_steps(flow, dictionaries, site, latent, what, strength, **how):
        change: dict[str, Any] = {what: step.strength, "unit": unit, "analysis": (analyses or {}).get(step.site)}
        edits.append(dictionaries[step.site].steer(step.latent, site=step.site, **change))
    return edits


def one_change(**given: float | None) -> tuple[str, float]:
    """Which of add, set and scale was given, and its value. Raises `ConfigError` for none or several."""
    named = [(what, value) for what, value in given.items() if value is not None]
    if len(named) != 1 or not isinstance(named[0][1], int | float | np.number) or not math.isfinite(named[0][1]):
        told = ", ".join(f"{what}={value}" for what, value in named) or "nothing"
        raise ConfigError(f"{told} was given. Give one of add=, set=, scale= with a finite number.")
    return named[0][0], float(named[0][1])


def chain_steps(
    flow: ChainedFlow,
    dictionaries: Mapping[str, Dictionary],
    site: str,
    latent: int,
    what: str,
    strength: float,
    *,
    mode: Mode,
    schedule: Schedule,
    rate: float,
    last: float,
    lanes: Sequence[str],
) -> list[ChainStep]:
    """The latents that `steer_chain` changes and by how much, first site first."""
    for name, value, known in (("mode", mode, Mode), ("schedule", schedule, Schedule)):
        if value not in get_args(known):
            raise ConfigError(f"{name}={value!r}: choose from {', '.join(get_args(known))}.")
    followed = [lanes] if isinstance(lanes, str) else list(lanes)
    if any(lane not in LANES for lane in followed):
        raise ConfigError(f"lanes={lanes!r}: choose from {', '.join(LANES)}.")
    check_sites(flow, [site])
    latent = latent_number(latent, None, dictionary_at(dictionaries, site, flow).d_sae)
    chain = flow.chain(site, latent).filter(pl.col("step") <= 0).sort("step", descending=True)
    nodes = []
    for step, place, number, layer, lane in chain.select("step", "site", "latent", "layer", "lane").iter_rows():
        if step < 0 and (mode == "single" or lane not in followed):
            break
        dictionary_at(dictionaries, place, flow)
        nodes.insert(0, (place, number, layer))
    first, end = nodes[0][2], nodes[-1][2]
    return [
        ChainStep(place, number, layer, strength_at(what, strength, schedule, layer, first, end, rate=rate, last=last))
        for place, number, layer in nodes
    ]


def strength_at(
    what: str, strength: float, schedule: Schedule, layer: int, first: int, end: int, *, rate: float, last: float
) -> float:
    """The strength at one layer of a chain from layer `first` to layer `end`."""
    if schedule == "exponential":
        neutral = 1.0 if what == "scale" else 0.0
        return neutral + (strength - neutral) * math.exp(rate * layer)
    if schedule == "linear" and end > first:
        return strength + (last - strength) * (layer - first) / (end - first)
    return strength
