"""Nested losses: every budget and every width of one dictionary from one pass over its active latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nb_sae.machine import reading_waits
from nb_sae.sae.kernels.cpu import able, cpu
from nb_sae.sae.kernels.dense import dense
from nb_sae.sae.kernels.gpu import gpu, pays
from nb_sae.sae.kernels.plan import Computed, Plan, Selection


@dataclass(frozen=True)
class NestedLoss:
    """What `nested_loss` gives. Levels are budgets × widths, budgets outer, sparsest and narrowest first.

    Attributes:
        loss: Scalar with exact gradients to `pre`, `W_dec` and `b_dec`.
        errors: `(levels,)`, detached: plain mean squared error over rows and dimensions (row weights left out).
        residual: `(batch, d_out)`, detached: target − x̂ of the last level.
        fired: `(n_budgets, d_sae)`, bool: selected with a value above 0 by at least one row within that budget.
        thresholds: `(n_budgets,)`, detached: the smallest positive value selected within each budget in this batch;
            0 where nothing was positive.
    """

    loss: Float[Tensor, ""]
    errors: Float[Tensor, " levels"]
    residual: Float[Tensor, "batch d_out"]
    fired: Bool[Tensor, "n_budgets d_sae"]
    thresholds: Float[Tensor, " n_budgets"]


def nested_loss(
    target: Float[Tensor, "batch d_out"],
    pre: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
    *,
    budgets: Sequence[int],
    widths: Sequence[int] | None = None,
    level_weights: Sequence[float],
    level_scale: Float[Tensor, " levels"] | None = None,
    row_weights: Float[Tensor, " batch"] | None = None,
    selection: Selection = "row",
    first: Int[Tensor, "batch d_sae"] | None = None,
) -> NestedLoss:
    """Weighted reconstruction error of all levels, with exact gradients, each active latent touched once per pass.

    The reconstruction of budget k and width w is x̂ = b_dec + Σ relu(pre_j) W_dec_j over the latents j < w among the k
    largest of the row, the sum times level_scale_l if that is given. The loss is
    Σ_l level_weights_l · mean_n[row_weights_n · mean_d (target − x̂_l)²]. A latent enters at one budget b(j) and one
    width c(j), so its gradient needs only the sum of the errors of the levels from there on. Weights are numbers, hence
    gradients are made while the levels are, and no level keeps a matrix of `(batch, d_sae)`.

    Among equal values, which one is selected is not promised; every budget selects exactly k, and budgets nest.

    Args:
        target: What is reconstructed. It gets no gradient.
        pre: Encoder output; its dtype is the one that matrix products are made in.
        W_dec: Decoder, one row per latent.
        b_dec: Decoder bias.
        budgets: Ascending numbers of active latents per row, at most d_sae.
        widths: Ascending prefixes of the dictionary, the last being d_sae. None: the whole dictionary only.
        level_weights: One number per level, budgets outer and widths inner.
        level_scale: One positive factor per level, with gradients; None: 1.
        row_weights: One number per row; None: 1.
        selection: "row": the k largest of each row. "batch": the k · batch largest of the whole batch.
        first: The selection, where it was made elsewhere: which budget first selects each latent of each row, uint8;
            n_budgets where none does.

    Raises:
        ConfigError: budgets, widths or weights do not fit each other or the dictionary.
        ShapeError: the tensors do not fit each other.

    Source:
        Budgets: Zaigrajew et al. 2025, Interpreting CLIP with Hierarchical Sparse Autoencoders, arXiv:2502.20578,
        section 3. Widths: Bussmann et al. 2025, Matryoshka SAEs, arXiv:2503.17547. One pass for all budgets: Balagansky
        et al. 2025, HierarchicalTopK, arXiv:2505.24473. "batch": Bussmann et al. 2024, BatchTopK, arXiv:2412.06410.
    """
    plan = Plan.make(
        target,
        pre,
        W_dec,
        b_dec,
        budgets=budgets,
        widths=widths,
        level_weights=level_weights,
        row_weights=row_weights,
        selection=selection,
    )
    return NestedLoss(*_Nested.apply(target.detach(), pre, W_dec, b_dec, row_weights, plan, level_scale, first))  # pyright: ignore


def _way(pre: Tensor, plan: Plan, first: Tensor | None) -> Callable[..., Computed]:
    """The fastest exact way for this device and dtype."""
    if first is not None:
        return partial(dense, first=first)
    if able(pre):
        return cpu
    return gpu if pays(pre, plan) else dense


def scaled(grad: Tensor, scale: Tensor) -> Tensor:
    """A gradient times a scalar, in place. On a CPU looking at the factor costs nothing, and it is nearly always 1."""
    return grad if not reading_waits(scale.device) and scale.item() == 1 else grad.mul_(scale)


class _Nested(torch.autograd.Function):
    """Loss and gradients in one go; backward only scales what forward kept."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        pre: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        row_weights: Tensor | None,
        plan: Plan,
        level_scale: Tensor | None,
        first: Tensor | None,
    ) -> tuple[Tensor, ...]:
        gradients = any(ctx.needs_input_grad)
        with torch.autocast(pre.device.type, enabled=False):  # pre's dtype says what to compute in
            done = _way(pre, plan, first)(target, pre, W_dec, b_dec, row_weights, plan, gradients, level_scale)
        ctx.dtypes = pre.dtype, W_dec.dtype, b_dec.dtype
        if gradients:
            ctx.gradients = done.grad_pre, done.grad_decoder, done.grad_bias
            ctx.grad_scale = None if level_scale is None else done.grad_scale
        rest = done.errors, done.residual, done.fired, done.thresholds
        ctx.mark_non_differentiable(*rest)
        return done.loss, *rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        kept, ctx.gradients = ctx.gradients, None
        if kept is None:
            raise RuntimeError("The gradients of this nested loss were used already. Compute the loss again.")
        pre, W_dec, b_dec = (scaled(grad, grads[0]).to(dtype) for grad, dtype in zip(kept, ctx.dtypes, strict=True))
        grad_scale = None if ctx.grad_scale is None else ctx.grad_scale * grads[0]
        return None, pre, W_dec, b_dec, None, None, grad_scale, None
