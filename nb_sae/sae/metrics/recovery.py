"""Quality against the number of active latents: one encode, every k."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import torch
from torch import Tensor

from nb_sae.errors import ShapeError
from nb_sae.sae.metrics.reconstruction import RunningQuality
from nb_sae.sae.metrics.rows import (
    Coder,
    Rows,
    check_ks,
    chunks_with_targets,
    decode_at,
    rows_at_a_time,
    targets_of,
)

RECOVERY = pl.Schema(
    {
        "k": pl.UInt32,  # active latents per row allowed
        "fvu": pl.Float64,  # Σ‖x−x̂‖² / Σ‖x−x̄‖²
        "cosine": pl.Float64,  # mean over rows of cos(x, x̂), model units
        "l0": pl.Float64,  # mean number of active latents per row
        "dead": pl.Float64,  # fraction of latents active on none of these rows within this k
        "rows": pl.UInt64,
    }
)


def recovery_curve(
    dictionary: Coder, rows: Rows, ks: Sequence[int] | None = None, *, chunk_rows: int | None = None
) -> pl.DataFrame:
    """FVU, cosine, L0 and dead latents when the k strongest latents are kept, for every k.

    Args:
        dictionary: A dictionary or a classical baseline.
        rows: `(rows, d_in)` or a store; its length costs no memory. A transcoder takes `ns.pair(x, y)`, and everything
            is then said about y.
        ks: Ascending. None: powers of two up to `d_sae`, and `d_sae` itself (every positive latent).
        chunk_rows: Rows encoded at a time; None: what fits.

    Returns:
        `k, fvu, cosine, l0, dead, rows`. FVU by chance: the mean of the rows alone has 1.

    Raises:
        ConfigError: ks out of range or not ascending.
        ShapeError: no rows, or of another width.
        NonFiniteError: NaN or infinity in the rows.
        StoreError: a transcoder without the rows that it should write.

    Source:
        "Progressive recovery" of Zaigrajew et al. 2025, arXiv:2502.20578. Its FVU is a mean of per-row ratios.
    """
    meter = Meter(dictionary, default_ks(dictionary.d_sae) if ks is None else ks)
    targets = targets_of(dictionary, rows)
    for part, target in chunks_with_targets(rows, targets, rows_at_a_time(chunk_rows, dictionary)):
        meter.add(part, target)
    return pl.DataFrame(meter.lines(), schema=RECOVERY)


def default_ks(d_sae: int) -> tuple[int, ...]:
    """1, 2, 4, … and `d_sae`."""
    powers = [2**power for power in range(d_sae.bit_length()) if 2**power < d_sae]
    return (*powers, d_sae)


class Meter:
    """What one dictionary makes of rows that come in chunks, at each k and, if asked, at its own trained rule."""

    def __init__(self, coder: Coder, ks: Sequence[int], *, own_rule: bool = False) -> None:
        self.coder = coder
        self.ks = check_ks(ks, coder.d_sae)
        self.own_rule = own_rule
        levels = len(self.ks) + own_rule
        self._quality = RunningQuality(levels)
        self._used = torch.zeros(levels, coder.d_sae, dtype=torch.bool, device=coder.device)

    @torch.no_grad()
    def add(self, rows: Tensor, targets: Tensor) -> None:
        """One chunk `(rows, d_in)` with what its reconstructions should be: the rows themselves but for a transcoder.

        Raises:
            ShapeError: another width.
        """
        if rows.shape[1] != self.coder.d_in:
            raise ShapeError(f"Rows of width {rows.shape[1]} were given; this dictionary takes {self.coder.d_in}.")
        x = rows.to(self.coder.device)
        values, indices = self.coder.encode(x, self.ks[-1], sparse=True)
        active = values != 0
        x_hats = decode_at(self.coder, x, values, indices, self.ks)
        counts = [active[:, :k].sum(-1) for k in self.ks]
        for level, k in enumerate(self.ks):
            self._used[level][indices[:, :k][active[:, :k]]] = True
        if self.own_rule:
            latents = self.coder.encode(x)
            whole = getattr(self.coder, "row_norm", None) is not None
            x_hats.append(self.coder.reconstruct(x) if whole else self.coder.decode(latents))  # pyright: ignore
            counts.append((latents != 0).sum(-1))
            self._used[-1] |= (latents != 0).any(0)
        self._quality.add(targets.to(self.coder.device), x_hats, counts)

    def lines(self) -> list[dict[str, float | None]]:
        """One line per k with the columns of `RECOVERY`; the own rule is the last one, with k None."""
        names: list[int | None] = [*self.ks, *([None] if self.own_rule else [])]
        dead = (~self._used).double().mean(-1).tolist()
        return [
            {"k": k, **numbers, "dead": silent, "rows": self._quality.rows}
            for k, numbers, silent in zip(names, self._quality.result(), dead, strict=True)
        ]
