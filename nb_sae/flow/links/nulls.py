"""How near the best of many random directions comes: the null that every cosine between two dictionaries is read with.

The largest of 8,192 random cosines in 512 dimensions is 0.17: above the 0.15 that the paper takes for a match.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError
from nb_sae.flow.settings import check_whole
from nb_sae.statistics import incomplete_beta

NullName = Literal["isotropic", "covariance"]
QUANTILE = 0.999
LEAST_DRAWS = 1000
"""With fewer there is no 99.9th percentile to speak of."""
BLOCK_BYTES = 32 * 2**20
_GRID = 4096
_EULER = 0.5772156649015329


def expected_largest(d_in: int, count: int) -> float:
    """Mean largest cosine of a random direction with `count` random unit rows, by the formula of extreme values.

    m / √d with m = a − (ln ln F + ln 4π) / (2a) + γ / a and a = √(2 ln F). A row alone has mean 0.

    Source:
        Cramér 1946, Mathematical Methods of Statistics, section 28.6 (the largest of normal deviates).
    """
    if count < 2:
        return 0.0
    a = math.sqrt(2 * math.log(count))
    m = a - (math.log(math.log(count)) + math.log(4 * math.pi)) / (2 * a) + _EULER / a
    return m / math.sqrt(d_in)


def chance_of_largest(cosines: Float[Array, "*lines"], d_in: int, count: int) -> Float[Array, "*lines"]:
    """P(the best of `count` random rows has at least this cosine): 1 − (1 − ½ I_{1−c²}((d−1)/2, ½))^F for c ≥ 0.

    Exact where the row that is matched points in a uniformly drawn direction and the others do, too. To four digits.

    Args:
        cosines: Any shape.
        d_in: Width of the rows, at least 2.
        count: Rows that the best is taken of.
    """
    cosines = np.clip(np.asarray(cosines, dtype=float), -1.0, 1.0)
    at, logs = _tail(d_in)
    with np.errstate(divide="ignore"):
        tail = np.exp(np.interp(np.arctanh(np.abs(cosines)), at, logs, right=-np.inf))
    tail = np.where(cosines < 0, 1 - tail, tail)
    with np.errstate(divide="ignore"):
        return -np.expm1(count * np.log1p(-tail))


@lru_cache(maxsize=32)
def _tail(d_in: int) -> tuple[Array, Array]:
    """log P(cosine ≥ c) on even steps of artanh c, where it is smooth, as far as it is a number above 0."""
    reach = min(18.0, math.acosh(math.exp(min(700.0, 700.0 / max(1, d_in - 1)))))
    at = np.linspace(0.0, reach, _GRID)
    tails = [incomplete_beta((d_in - 1) / 2, 0.5, 1 / math.cosh(z) ** 2) / 2 for z in at]
    return at, np.log(np.maximum(tails, 1e-320))


@torch.no_grad()
def isotropic_null(d_in: int, count: int, *, draws: int, seed: int) -> Float[Tensor, " draws"]:
    """The largest cosine of each of `draws` random rows with `count` random rows, ascending.

    Both in uniform directions; the rows they are compared with are drawn a block at a time and not kept.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = _uniform(draws, d_in, generator)
    block = max(1, BLOCK_BYTES // (4 * max(draws, d_in)))
    best = torch.full((draws,), -torch.inf)
    for first in range(0, count, block):
        rows = _uniform(min(block, count - first), d_in, generator)
        torch.maximum(best, (rows @ targets.T).amax(0), out=best)
    return best.sort().values


def _uniform(rows: int, d_in: int, generator: torch.Generator) -> Float[Tensor, "rows d_in"]:
    drawn = torch.randn(rows, d_in, generator=generator)
    return drawn.div_(drawn.norm(dim=-1, keepdim=True))


@torch.no_grad()
def covariance_null(
    targets: Float[Tensor, "targets d"], sources: Float[Tensor, "sources d"], *, draws: int, seed: int
) -> Float[Tensor, " draws"]:
    """The same with random rows that have the second moments of the targets' directions, and the sources as they are.

    Harder to exceed where the rows of both dictionaries fill few dimensions.

    Args:
        targets: Directions as rows; norms do not matter.
        sources: Directions as rows; norms do not matter.
        draws: Random rows.
        seed: Of the draw.
    """
    d_in = targets.shape[1]
    moments = torch.zeros(d_in, d_in, dtype=torch.double, device=targets.device)
    for part in targets.split(4096):
        unit = F.normalize(part.double(), dim=-1)
        moments += unit.T @ unit
    values, basis = torch.linalg.eigh(moments)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, d_in, generator=generator).to(targets)
    drawn = F.normalize((noise * values.clamp_min(0).sqrt().to(noise)) @ basis.T.to(noise), dim=-1)
    best = drawn.new_full((draws,), -torch.inf)
    for part in sources.split(max(1, BLOCK_BYTES // (4 * draws))):
        torch.maximum(best, (F.normalize(part, dim=-1) @ drawn.T).amax(0), out=best)
    return best.cpu().sort().values


def upper_quantile(draws: Float[Tensor, " draws"]) -> float:
    """99.9th percentile of ascending draws: the smallest that no more than 0.1 % of them exceed."""
    return float(draws[min(len(draws) - 1, math.ceil(QUANTILE * len(draws)) - 1)])


def chance_in(
    draws: Float[Tensor, " draws"], values: Float[Array, "*lines"], ratio: float = 1.0
) -> Float[Array, "*lines"]:
    """p = (1 + draws at least as large) / (1 + draws), of ascending draws: a p-value that is never 0.

    With `ratio` the best is taken of so many times as many as the draws were, 1 − (1 − p)^ratio: as if they were
    independent.
    """
    at = draws.double().numpy()
    above = len(at) - np.searchsorted(at, np.asarray(values, dtype=float), side="left")
    p = (above + 1.0) / (len(at) + 1.0)
    if ratio == 1:
        return p
    with np.errstate(divide="ignore"):
        return -np.expm1(ratio * np.log1p(-p))


def check_draws(draws: int) -> None:
    """Raises `ConfigError` where draws are too few for the percentile that thresholds are made of."""
    check_whole(draws=draws)
    if draws < LEAST_DRAWS:
        raise ConfigError(
            f"draws={draws:,} random rows cannot show a 99.9th percentile. Draw at least {LEAST_DRAWS:,}."
        )
