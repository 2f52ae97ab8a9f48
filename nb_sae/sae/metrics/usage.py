"""Which latents are used: counts of rows, dead latents with the number of rows that says so, density histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.sae.metrics.rows import Coder, Rows, chunks_of, rows_at_a_time


@dataclass(frozen=True)
class Dead:
    """How many latents were active on none of `rows` rows. Without the number of rows the count means nothing."""

    count: int
    d_sae: int
    rows: int

    @property
    def fraction(self) -> float:
        """Of all latents, 0–1."""
        return self.count / self.d_sae

    @property
    def density_below(self) -> float:
        """What silence on so many rows shows, at 95 % confidence: the density is below 3 / rows (rule of three)."""
        return min(1.0, 3 / self.rows)


@dataclass(frozen=True)
class DensityHistogram:
    """How many latents have which density, in bins of log10, the never-active apart."""

    edges: tuple[float, ...]
    """log10 of density, ascending, the last is 0 (active on every row)."""
    latents: tuple[int, ...]
    """Latents in [edge, next edge); the last bin holds its right edge too."""
    never: int
    """Latents active on no row: they have no logarithm and are in no bin."""
    rows: int
    """The first edge is at or below 1 / rows: nothing rarer can be seen."""
    uniform: float
    """log10 of the mean density: where every latent would be if chance alone chose as many of them per row."""

    @property
    def frame(self) -> pl.DataFrame:
        """`low, high` (log10 of density; null: never active) and `latents`."""
        schema = pl.Schema({"low": pl.Float64, "high": pl.Float64, "latents": pl.UInt64})
        return pl.DataFrame(
            {
                "low": [None, *self.edges[:-1]],
                "high": [None, *self.edges[1:]],
                "latents": [self.never, *self.latents],
            },
            schema=schema,
        )


@torch.no_grad()
def count_active(
    dictionary: Coder, rows: Rows, *, k: int | None = None, chunk_rows: int | None = None
) -> tuple[Int[Tensor, " d_sae"], int]:
    """On how many rows each latent is active, and how many rows there were.

    Args:
        dictionary: Whose latents.
        rows: `(rows, d_in)` or a store; its length costs no memory.
        k: Active latents per row; None: the trained rule.
        chunk_rows: Rows encoded at a time; None: what fits.
    """
    counts, total = torch.zeros(dictionary.d_sae, dtype=torch.long, device=dictionary.device), 0
    for part in chunks_of(rows, rows_at_a_time(chunk_rows, dictionary)):
        counts += (dictionary.encode(part.to(dictionary.device), k) != 0).sum(0)
        total += len(part)
    return counts.cpu(), total


def dead_fraction(active_rows: Int[Tensor, " d_sae"]) -> float:
    """Fraction of latents that were active on no row. `dead` states the number of rows beside it."""
    return float((active_rows == 0).float().mean())


def dead(active_rows: Int[Tensor, " d_sae"], rows: int) -> Dead:
    """Latents active on none of `rows` rows, from `count_active`.

    Raises:
        ConfigError: a latent was active on more rows than there were.
    """
    _check_counts(active_rows, rows)
    return Dead(count=int((active_rows == 0).sum()), d_sae=len(active_rows), rows=int(rows))


def density_histogram(active_rows: Int[Tensor, " d_sae"], rows: int, *, bins_per_decade: int = 4) -> DensityHistogram:
    """Histogram of log10(active rows / rows), with the latents that were never active in a bin of their own.

    Args:
        active_rows: From `count_active`.
        rows: How many rows were read.
        bins_per_decade: Bins between two powers of ten.

    Raises:
        ConfigError: no rows, no bins, or a latent active on more rows than there were.

    Source:
        Bricken et al. 2023, Towards Monosemanticity, "feature density histograms".
    """
    _check_counts(active_rows, rows)
    if bins_per_decade < 1:
        raise ConfigError(f"bins_per_decade={bins_per_decade} must be at least 1.")
    steps = max(1, math.ceil(math.log10(rows) * bins_per_decade - 1e-9))
    edges = [-step / bins_per_decade for step in range(steps, 0, -1)] + [0.0]
    density = active_rows[active_rows > 0].double().cpu() / rows
    # An edge at 10^-2 must hold 1 in 100 whatever the last bit of its logarithm says.
    place = torch.searchsorted(10 ** torch.tensor(edges[1:-1], dtype=torch.double) * (1 - 1e-12), density, right=True)
    counts = torch.bincount(place, minlength=steps)
    mean = float(active_rows.double().mean() / rows)
    return DensityHistogram(
        edges=tuple(edges),
        latents=tuple(counts.tolist()),
        never=int((active_rows == 0).sum()),
        rows=int(rows),
        uniform=math.log10(mean) if mean > 0 else float("-inf"),
    )


def _check_counts(active_rows: Tensor, rows: int) -> None:
    if active_rows.ndim != 1 or not len(active_rows) or rows < 1:
        raise ConfigError(
            f"Counts of shape {tuple(active_rows.shape)} over {rows} rows were given; expected one count per latent "
            "and at least one row, as count_active gives them."
        )
    most = int(active_rows.max())
    if most > rows or int(active_rows.min()) < 0:
        raise ConfigError(f"A latent was active on {most} of {rows} rows. Give the number of rows that were counted.")
