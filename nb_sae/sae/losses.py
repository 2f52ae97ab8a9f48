"""What training minimises, beside the nested reconstruction errors of `nested.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Errors of one batch at each nested width."""

    loss: Float[Tensor, ""]
    """Weighted over the widths, with gradients."""
    errors: Float[Tensor, " level"]
    """Mean squared error of each width, narrowest first; detached."""
    residual: Float[Tensor, "batch d_out"]
    """Target minus the reconstruction of the whole dictionary; detached."""


def dense_loss(
    target: Float[Tensor, "batch d_out"],
    latents: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
    *,
    widths: Sequence[int] | None,
    level_weights: Sequence[float],
    row_weights: Float[Tensor, " batch"] | None = None,
) -> Reconstruction:
    """Mean squared error of dense latents, at each prefix of the dictionary if widths are nested.

    Prefixes are decoded block by block and summed, so every latent is decoded once.

    Source:
        Bussmann et al. 2025, Learning Multi-Level Features with Matryoshka SAEs, arXiv:2503.17547.
    """
    x_hat = b_dec
    losses, errors = [], []
    residual = target
    for start, stop in pairwise((0, *(widths or (W_dec.shape[0],)))):
        block = latents[:, start:stop]
        x_hat = x_hat + (block @ W_dec[start:stop].to(block.dtype)).to(b_dec.dtype)
        residual = target - x_hat
        per_row = residual.square().mean(-1)
        errors.append(per_row.detach().mean())
        losses.append((per_row if row_weights is None else per_row * row_weights).mean())
    # Numbers of Python enter a product for nothing; a tensor made of them on a GPU would wait for it.
    loss = torch.stack([weight * one for weight, one in zip(level_weights, losses, strict=True)]).sum()
    return Reconstruction(loss, torch.stack(errors), residual.detach())


def l1_penalty(latents: Float[Tensor, "batch d_sae"], W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, ""]:
    """mean_n Σ_j latent_j ‖W_dec_j‖ / √d: the decoder's norms are part of it, so that scaling cannot evade it.

    Source:
        Conerly et al. 2024, Circuits Updates April 2024.
    """
    norms = W_dec.norm(dim=-1).to(latents.dtype)
    return (latents @ norms).to(W_dec.dtype).mean() / W_dec.shape[1] ** 0.5


class _JumpReLU(torch.autograd.Function):
    """z = pre · [pre > θ], and the gradient of θ by a rectangle of width ε around it."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        (grad,) = grads
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        grad_threshold = -(threshold / ctx.bandwidth) * (near * grad).sum(0)
        return grad * (pre > threshold), grad_threshold, None


class _Step(torch.autograd.Function):
    """[pre > θ] summed over latents, with the same estimator for θ; none for pre."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(threshold.dtype).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        (grad,) = grads
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return None, -(near * grad[:, None]).sum(0) / ctx.bandwidth, None


def jump_relu(
    pre: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Float[Tensor, "batch d_sae"]:
    """Latents above their own threshold; ∂/∂θ is estimated by a rectangle kernel.

    Source:
        Rajamanoharan et al. 2024, Jumping Ahead, arXiv:2407.14435, section 3 and equation 11.
    """
    return _JumpReLU.apply(pre, threshold, bandwidth)  # pyright: ignore[reportReturnType]


def l0_penalty(
    pre: Float[Tensor, "batch d_sae"],
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    target_l0: float,
    mean: Callable[[Tensor], Tensor] = lambda value: value,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(L0 / target − 1)², whose gradient reaches the thresholds alone, and L0 itself.

    `mean` makes of the L0 of these rows that of the whole batch, where several processes share it.

    Source:
        Rajamanoharan et al. 2024, Jumping Ahead, arXiv:2407.14435, appendix I.
    """
    l0 = mean(_Step.apply(pre, threshold, bandwidth).mean())  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    return (l0 / target_l0 - 1).square(), l0.detach()
