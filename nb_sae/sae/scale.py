"""The scale of training: rows are centred and brought to a mean square norm of d, and the weights carry it back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import StoreError
from nb_sae.sae.config import SAEConfig
from nb_sae.sae.model import SAE
from nb_sae.types import RowStatistics


@dataclass(frozen=True)
class Scale:
    """x' = (x − mean) · factor, with factor = √(d / E‖x − mean‖²): E‖x'‖² = d.

    Source:
        Zaigrajew et al. 2025, arXiv:2502.20578 (the authors' later code; the first one lacked the square root).
    """

    mean: Float[Tensor, " d"]
    factor: float

    @classmethod
    def of(cls, statistics: RowStatistics, device: torch.device) -> Scale:
        """From the statistics of all rows.

        Raises:
            StoreError: all rows are equal, or they are so far apart that their squares overflow.
        """
        distance = statistics.mean_square_distance
        if not distance > 0:
            raise StoreError("All rows are equal: there is nothing to explain. Check the site and the inputs.")
        if not distance < float("inf"):
            raise StoreError(
                f"The rows hold NaN or infinity: their mean square distance is {distance}. Collect them in float32."
            )
        mean = torch.as_tensor(statistics.mean, device="cpu").float().to(device)
        return cls(mean, (len(mean) / distance) ** 0.5)

    def apply(self, rows: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Rows of the model as training sees them."""
        return (rows - self.mean) * self.factor


def start_bias(config: SAEConfig, rows: Float[Tensor, "rows d_out"], scale: Scale) -> Float[Tensor, " d_out"] | None:
    """Where `b_dec` starts, in normalised units; None is the mean. `rows` are a sample in normalised units."""
    if config.bias_init == "zeros":
        return -scale.mean * scale.factor
    if config.bias_init == "geometric_median":
        return geometric_median(rows)
    return None


@torch.no_grad()
def principal_axes(rows: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """Eigenvectors of the covariance of a sample of rows, one per column, weakest first; on the CPU in float64."""
    exact = rows.detach().cpu().double()
    exact = exact - exact.mean(0)
    return torch.linalg.eigh(exact.T @ exact / max(1, len(exact))).eigenvectors


def geometric_median(
    rows: Float[Tensor, "rows d"], *, steps: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d"]:
    """The point with the smallest sum of distances to the rows.

    Source:
        Weiszfeld 1937; as a start of `b_dec`: Bricken et al. 2023, Towards Monosemanticity.
    """
    point = rows.mean(0)
    for _ in range(steps):
        weights = 1 / (rows - point).norm(dim=-1).clamp_min(1e-8)
        moved = (weights[:, None] * rows).sum(0) / weights.sum()
        if float((moved - point).norm()) <= tolerance * float(point.norm().clamp_min(1.0)):
            return moved
        point = moved
    return point


@torch.no_grad()
def fold(
    sae: SAE, config: SAEConfig, scale: Scale, target: Scale | None = None, averaged: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights in model units with unit decoder rows, from weights in normalised units.

    With x' = (x − m)s and latents z' = z·s the encoder stays as it is and every bias and threshold is divided by s. A
    transcoder counts its latents in units of the target. `averaged` takes the place of the parameters (EMA).
    """
    named = {name: value.detach() for name, value in sae.named_parameters()} | (averaged or {})
    W_dec, b_dec, b_enc = named["W_dec"], named["b_dec"], named["b_enc"]
    W_enc = W_dec.T if sae.tied else named["W_enc"]
    if sae.axes is not None:
        back = sae.axes if sae.target_axes is None else sae.target_axes
        W_enc, W_dec, b_dec = sae.axes @ W_enc, W_dec @ back.T, b_dec @ back.T
    norms = W_dec.norm(dim=-1).clamp_min(1e-12)
    mean, out = scale.mean.to(W_enc.dtype), target or scale
    if sae.pre_bias:
        b_enc = b_enc / scale.factor
    else:
        W_enc = W_enc * (scale.factor / out.factor)
        b_enc = b_enc / out.factor - mean @ W_enc
    per_latent = {}
    if config.sparsity == "jump_relu":
        per_latent["threshold"] = named["log_threshold"].exp() / out.factor
    if config.sparsity == "batch_top_k":
        per_latent["threshold"] = sae.threshold[-1].expand(len(b_enc)) / out.factor
    if config.sparsity == "gated":
        per_latent["b_mag"] = named["b_mag"] / out.factor
        if not sae.pre_bias:  # the magnitude reads the same rows: without the encoder's bias it carries the offset
            per_latent["b_mag"] = per_latent["b_mag"] - (mean @ W_enc) * named["r_mag"].exp()
    unit = norms
    weights: dict[str, Tensor] = {}
    if "log_level_scale" in named:  # of the widest prefix at each budget; the last one is part of the weights
        levels = named["log_level_scale"].exp().view(len(config.budgets or (0,)), -1)[:, -1]
        weights["level_scale"] = levels / levels[-1]
        unit = norms * levels[-1]
    weights |= {name: value * unit for name, value in per_latent.items()}
    if config.sparsity == "gated":
        weights["r_mag"] = named["r_mag"]
    weights |= {
        "W_enc": W_enc * unit,
        "b_enc": b_enc * unit,
        "W_dec": F.normalize(W_dec, dim=-1),
        "b_dec": out.mean.to(b_dec.dtype) + b_dec / out.factor,
    }
    return {name: value.float().contiguous() for name, value in weights.items()}
