"""The numbers that judge a reconstruction, each defined once.

FVU is about the mean of the rows it is measured on: Σ‖x−x̂‖² / Σ‖x−x̄‖², not a mean of per-row ratios. L0 is a count
of active latents per row, never a fraction. Cosine is between x and x̂ in model units.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def fvu(x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]) -> float:
    """Fraction of variance unexplained about the mean. NaN when all rows are equal (nothing to explain)."""
    x, x_hat = x.double(), x_hat.double()
    total = (x - x.mean(0)).square().sum()
    return float((x - x_hat).square().sum() / total) if total > 0 else float("nan")


def cosine(x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]) -> float:
    """Mean over rows of cos(x, x̂)."""
    return float(torch.nn.functional.cosine_similarity(x.double(), x_hat.double(), dim=-1).mean())


def l0(latents: Float[Tensor, "rows d_sae"]) -> float:
    """Mean number of active latents per row."""
    return float((latents != 0).sum(-1).double().mean())


def dead_fraction(active_rows: Int[Tensor, " d_sae"]) -> float:
    """Fraction of latents that were active on no row."""
    return float((active_rows == 0).double().mean())


class RunningQuality:
    """The same numbers over rows that come in chunks; several reconstructions of the same rows side by side.

    Sums are kept in float64 and about the mean of the first chunk, so that a large mean does not drown the variance.
    """

    def __init__(self, levels: int) -> None:
        self.rows = 0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(())
        self._square = 0.0
        self._error = [0.0] * levels
        self._cosine = [0.0] * levels
        self._active = [0.0] * levels

    def add(
        self,
        x: Float[Tensor, "rows d_in"],
        reconstructions: list[Float[Tensor, "rows d_in"]],
        active: list[Int[Tensor, " rows"]],
    ) -> None:
        """One chunk: rows, one reconstruction per level, and the number of active latents per row and level."""
        x = x.double()
        if self._shift is None:
            self._shift = x.mean(0)
            self._sum = torch.zeros_like(self._shift)
        shifted = x - self._shift
        self.rows += x.shape[0]
        self._sum += shifted.sum(0)
        self._square += float(shifted.square().sum())
        for level, (x_hat, count) in enumerate(zip(reconstructions, active, strict=True)):
            x_hat = x_hat.double()
            self._error[level] += float((x - x_hat).square().sum())
            self._cosine[level] += float(torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).sum())
            self._active[level] += float(count.sum())

    def result(self) -> list[dict[str, float]]:
        """`fvu`, `cosine` and `l0` of each level."""
        variance = self._square - float(self._sum.square().sum()) / max(1, self.rows)
        return [
            {
                "fvu": error / variance if variance > 0 else float("nan"),
                "cosine": cos / max(1, self.rows),
                "l0": count / max(1, self.rows),
            }
            for error, cos, count in zip(self._error, self._cosine, self._active, strict=True)
        ]
