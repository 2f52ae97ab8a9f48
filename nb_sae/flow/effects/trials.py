"""What is scaled in a deactivation: the predecessors of each watched latent, and controls that are like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nb_sae.errors import ConfigError
from nb_sae.flow.effects.counting import Counted
from nb_sae.flow.sources import Flow, SourceLane, sources_of_latent
from nb_sae.sae.controls import matched_latents

How = Literal["top1", "top5", "random5", "permutation"]
TOP = 5
"""Sources of "top5" and "random5"."""
ENOUGH_ROWS = 10
"""A control should be active together with the watched latent on so many rows, or on as many as the predecessor is."""


@dataclass
class Trial:
    """One line of the table: what is scaled, and what was seen so far."""

    latent: int
    lane: SourceLane
    sources: list[int]
    """Latents that are scaled; the first stands in the table."""
    how: str
    factor: float
    rows: int = 0
    change: float = 0.0
    off: int = 0
    loss: float = 0.0
    """Summed over tokens: with the edit, less without."""


def plan_of(
    flow: Flow,
    counted: Counted,
    sources: Mapping[SourceLane, str],
    ways: Sequence[str],
    factors: Sequence[float],
    *,
    controls: int,
    seed: int,
) -> list[Trial]:
    """Every latent with every source lane, way and factor, and its controls."""
    plan = []
    for place, latent in enumerate(counted.watched):
        for lane, source in sources.items():
            ranked = sources_of_latent(flow, counted.site, latent, source)
            random = np.random.default_rng([seed, latent, list(sources).index(lane)])
            chosen = {how: _sources(ranked, how, latent, source, random) for how in ways if ranked}
            rest = {
                control_of(how): _control_sets(counted, lane, place, of, ranked, controls, seed)
                for how, of in chosen.items()
            }
            trials = [*chosen.items(), *((how, of) for how, sets in rest.items() for of in sets)]
            plan += [Trial(latent, lane, of, how, factor) for factor in factors for how, of in trials]
    return plan


def _sources(ranked: list[int], how: str, latent: int, source: str, random: np.random.Generator) -> list[int]:
    if how in ("top1", "permutation"):
        return ranked[:1]
    if len(ranked) < TOP:
        raise ConfigError(
            f"how={how!r} needs {TOP} sources; the flow keeps {len(ranked)} of latent {latent} at {source!r}. Make it "
            f"with feature_flow(…, top={TOP}) or more."
        )
    return ranked[:TOP] if how == "top5" else [int(random.choice(ranked[:TOP]))]


def control_of(how: str) -> str:
    """What the table calls the controls of a way of choosing: what is scaled at once is as many latents."""
    return "control" if how in ("top1", "permutation") else f"control of {how}"


def _control_sets(
    counted: Counted, lane: SourceLane, place: int, of: list[int], ranked: list[int], wanted: int, seed: int
) -> list[list[int]]:
    """Controls of latents that are scaled together: as many in each, one like each of them."""
    sets: list[list[int]] = [[] for _ in range(wanted)]
    used = list(ranked)
    for source in of:
        found = _controls(counted, lane, place, source, used, wanted, seed)
        used += found
        for one, latent in zip(sets, found, strict=False):
            one.append(latent)
    return [one for one in sets if one and len(one) == len(sets[0])]


def _controls(
    counted: Counted, lane: SourceLane, place: int, like: int, used: list[int], wanted: int, seed: int
) -> list[int]:
    """Latents of the source site like the predecessor, active together with the watched latent, none of its matches."""
    density, mean, together = counted.density[lane], counted.mean[lane], counted.together[lane][place]
    if not density[like] or not wanted:
        return []
    for enough in (min(ENOUGH_ROWS, max(1, int(together[like]))), 1):
        may = together >= enough
        may[used] = False
        if may.sum() >= wanted:
            break
    return matched_latents(density, mean, like, min(wanted, int(may.sum())), seed=seed, among=may)
