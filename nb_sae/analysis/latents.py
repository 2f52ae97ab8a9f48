"""What each latent does over all rows: how often, how strongly, at which level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nb_sae.analysis.examples import ActivationGrid, Ints
from nb_sae.analysis.schema import LATENTS
from nb_sae.analysis.sums import Floats


def sums_by_level(latent: Ints, value: NDArray[np.float32], level: Ints, *, d_sae: int, levels: int) -> Floats:
    """`(d_sae, levels)`: sum of activations by the first budget that selects the latent, which `level` gives."""
    flat = np.bincount(latent * levels + level, weights=value.astype(np.float64), minlength=d_sae * levels)
    return flat.astype(np.float64, copy=False).reshape(d_sae, levels)  # of no activations, numpy counts integers


def median_level(by_level: Floats) -> NDArray[np.uint8]:
    """Activation-weighted median of the first budget in which a latent is selected; the last one if never."""
    cumulative = by_level.cumsum(1)
    half = cumulative[:, -1:] / 2
    reached = (cumulative >= half) & (half > 0)
    return np.where(reached.any(1), reached.argmax(1), by_level.shape[1] - 1).astype(np.uint8)


def width_level(widths: Sequence[int]) -> NDArray[np.uint8]:
    """First of the nested widths (ascending, the last is d_sae) that holds each latent."""
    return np.searchsorted(widths, np.arange(widths[-1]), side="right").astype(np.uint8)


def unused(by_level: Floats) -> list[float]:
    """Per budget, the fraction of latents that were never selected within it."""
    return [float((by_level[:, : level + 1].sum(1) == 0).mean()) for level in range(by_level.shape[1])]


def latents_frame(
    rows: int, active: Ints, maxima: NDArray[np.float32], total: Floats, level: NDArray[np.uint8], grid: ActivationGrid
) -> pl.DataFrame:
    """The `latents` table, from active rows, maximum, sum of activations, level and grid of every latent."""
    histograms = [grid.histogram(latent) for latent in range(len(active))]
    return pl.DataFrame(
        {
            "latent": np.arange(len(active), dtype=np.uint32),
            "density": active / max(1, rows),
            "active_rows": active.astype(np.uint64),
            "mean": np.divide(total, active, out=np.zeros_like(total), where=active > 0),
            "max": maxima.astype(np.float64),
            "level": level,
            "dead": active == 0,
            "histogram": [counts for counts, _ in histograms],
            "histogram_max": [edge for _, edge in histograms],
        },
        schema=LATENTS,
    )
