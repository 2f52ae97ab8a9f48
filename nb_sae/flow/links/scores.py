"""What one pair of sites is scored by: its matches, its null and its threshold, whatever the rule of matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor

from nb_sae.errors import ConfigError, closest
from nb_sae.flow.links.matching import Nearest
from nb_sae.flow.links.nulls import upper_quantile
from nb_sae.flow.links.routes import Route

Thresholds = str | Mapping[Any, float]
"""`"null"`, `"paper"`, or lane of the source → number, or (source site, target site) → number."""
_LANES = ("residual", "attention", "mlp")


@dataclass(frozen=True)
class Chance:
    """What random rows give."""

    draws: Float[Tensor, " draws"]
    """The largest score of each random row, ascending."""
    expected: float | None
    """Their mean by the formula, where there is one."""
    p_of: Callable[[Array, int], Array]
    """(scores, how many the best is taken of) → chance of a score at least so large."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The matches of one pair of sites with what chance gives."""

    route: Route
    d_in: int
    nearest: Nearest
    """A source number of −1 is no match."""
    chance: Chance
    paper: float | None
    """What the paper fixes as threshold; None for a score that it fixes nothing for."""
    threshold: float
    chosen_by: str
    """"null", "paper" or "given": where the threshold comes from."""

    @property
    def targets(self) -> int:
        """Latents of the target site."""
        return len(self.nearest.cosines)

    @property
    def sources(self) -> int:
        """Latents of the source site."""
        return len(self.nearest.carried)

    def best(self) -> tuple[Array, Array, Array]:
        """Best score of each target latent, its source (−1: none above 0) and its p."""
        scores = self.nearest.cosines[:, 0].numpy()
        sources = np.where(scores > 0, self.nearest.sources[:, 0].numpy(), -1)
        return scores, sources, self.chance.p_of(scores, self.sources)

    def forward(self) -> tuple[Array, Array, Array]:
        """Best score of each source latent, its target (−1: none above 0) and its p."""
        scores = self.nearest.carried.numpy()
        targets = np.where(scores > 0, self.nearest.carried_to.numpy(), -1)
        return scores, targets, self.chance.p_of(scores, self.targets)


def threshold_of(
    route: Route, draws: Float[Tensor, " draws"], thresholds: Thresholds, *, paper: float | None
) -> tuple[float, str]:
    """The threshold of one pair of sites, and what it is: "null", "paper" or "given".

    Args:
        route: The pair.
        draws: Largest scores of random rows, ascending.
        thresholds: As the user gave them.
        paper: What the paper fixes; None for a score that it fixes nothing for.
    """
    if isinstance(thresholds, Mapping):
        for key in ((route.source, route.target), route.lane):
            if key in thresholds:
                return float(thresholds[key]), "given"
    if thresholds == "paper" and paper is not None:
        return paper, "paper"
    chance = upper_quantile(draws)
    return (paper, "paper") if paper is not None and paper >= chance else (chance, "null")


def check_thresholds(thresholds: Thresholds, routes: list[Route]) -> None:
    """Raises `ConfigError` for an unknown word, a pair of sites that is not matched, or a number that is no cosine."""
    if not isinstance(thresholds, Mapping):
        if thresholds not in ("null", "paper"):
            raise ConfigError(
                f"thresholds={thresholds!r}: use 'null' (the larger of the paper's value and the 99.9th percentile of "
                "the null), 'paper' (0.5 along the residual stream, 0.15 for modules), or a dict of numbers by lane "
                "or by (source site, target site)."
            )
        return
    pairs = {(route.source, route.target) for route in routes}
    for key, value in thresholds.items():
        if key not in pairs and key not in _LANES:
            near = closest(str(key), [*_LANES, *map(str, pairs)])
            raise ConfigError(
                f"thresholds holds {key!r}. {near}Use a lane of the source ({', '.join(_LANES)}) or a pair "
                "(source site, target site) that is matched."
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"thresholds[{key!r}]={value!r} must be a number from 0 to 1.")
