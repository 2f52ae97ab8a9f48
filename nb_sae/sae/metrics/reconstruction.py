"""How near a reconstruction is to its rows: FVU about the mean, cosine, L0; for tensors and for rows in chunks."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.errors import ShapeError
from nb_sae.sae.metrics.rows import check_finite


def fvu(x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]) -> float:
    """Fraction of variance unexplained about the mean: Σ‖x−x̂‖² / Σ‖x−x̄‖².

    0 is perfect; the mean of the rows gives 1; a bad reconstruction gives more. It is a ratio of sums, not a mean of
    ratios per row, and the mean is that of the rows it is measured on. NaN when all rows are equal.

    Raises:
        ShapeError: not the reconstructions of these rows.
        NonFiniteError: NaN or infinity on either side.

    Source:
        1 − R² of multivariate regression. The MSAE code has a mean of per-row ratios under a similar name.
    """
    _check_pair(x, x_hat)
    x, x_hat = exact(x), exact(x_hat)
    total = (x - x.mean(0)).square().sum()
    return float((x - x_hat).square().sum() / total) if total > 0 else float("nan")


def cosine(x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]) -> float:
    """Mean over rows of cos(x, x̂), in model units. A large common mean makes it high for any reconstruction.

    A row of norm 0, on either side, has no direction and counts as 0. Raises as `fvu`.
    """
    _check_pair(x, x_hat)
    return float(torch.nn.functional.cosine_similarity(exact(x), exact(x_hat), dim=-1).mean())


def l0(latents: Float[Tensor, "rows d_sae"]) -> float:
    """Mean number of active latents per row: a count, never a fraction of zeros."""
    return float(exact((latents != 0).sum(-1)).mean())


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
        x = exact(x)
        if self._shift is None:
            self._shift = x.mean(0)
            self._sum = torch.zeros_like(self._shift)
        shifted = x - self._shift
        self.rows += x.shape[0]
        self._sum += shifted.sum(0)
        self._square += float(shifted.square().sum())
        for level, (x_hat, count) in enumerate(zip(reconstructions, active, strict=True)):
            x_hat = exact(x_hat)
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


def exact(x: Tensor) -> Tensor:
    """Float64 where the tensor is; on the CPU for Apple's MPS, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _check_pair(x: Tensor, x_hat: Tensor) -> None:
    if x.ndim != 2 or x.shape != x_hat.shape:
        raise ShapeError(
            f"Rows of shape {tuple(x.shape)} and reconstructions of shape {tuple(x_hat.shape)} were given; expected "
            "two tensors (rows, d_in). Decode the latents of the same rows."
        )
    check_finite(x)
    check_finite(x_hat, what="reconstructions")
