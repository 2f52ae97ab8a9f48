"""What each latent does over all rows: how often, how strongly, at which level."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nb_sae.analysis.examples import ActivationGrid, Ints
from nb_sae.analysis.schema import LATENTS


class LatentCounts:
    """Counters of every latent; memory is latents × (levels + bins)."""

    def __init__(self, d_sae: int, levels: int) -> None:
        self.rows = 0
        self.active = np.zeros(d_sae, np.int64)
        self.total = np.zeros(d_sae)
        self.maxima = np.zeros(d_sae, np.float32)
        self.by_level = np.zeros((d_sae, levels))
        """Sum of activations by the first budget that selects the latent."""

    def add(self, rows: int, latent: Ints, value: NDArray[np.float32], level: Ints) -> None:
        """Positive activations of some rows; `level` is the first budget that selects each."""
        d_sae, levels = self.by_level.shape
        self.rows += rows
        self.active += np.bincount(latent, minlength=d_sae)
        flat = np.bincount(latent * levels + level, weights=value, minlength=self.by_level.size)
        self.by_level += flat.reshape(self.by_level.shape)
        self.total = self.by_level.sum(1)
        np.maximum.at(self.maxima, latent, value)

    def median_level(self) -> NDArray[np.uint8]:
        """Activation-weighted median of the first budget in which a latent is selected; the last one if never."""
        cumulative = self.by_level.cumsum(1)
        half = cumulative[:, -1:] / 2
        reached = (cumulative >= half) & (half > 0)
        level = np.where(reached.any(1), reached.argmax(1), self.by_level.shape[1] - 1)
        return level.astype(np.uint8)

    def unused(self) -> list[float]:
        """Per budget, the fraction of latents that were never selected within it."""
        return [float((self.by_level[:, : level + 1].sum(1) == 0).mean()) for level in range(self.by_level.shape[1])]

    def frame(self, grid: ActivationGrid) -> pl.DataFrame:
        """The `latents` table."""
        histograms = [grid.histogram(latent) for latent in range(len(self.active))]
        active = self.active
        return pl.DataFrame(
            {
                "latent": np.arange(len(active), dtype=np.uint32),
                "density": active / max(1, self.rows),
                "active_rows": active.astype(np.uint64),
                "mean": np.divide(self.total, active, out=np.zeros_like(self.total), where=active > 0),
                "max": self.maxima.astype(np.float64),
                "level": self.median_level(),
                "dead": active == 0,
                "histogram": [counts for counts, _ in histograms],
                "histogram_max": [edge for _, edge in histograms],
            },
            schema=LATENTS,
        )
