"""Nested losses: every budget and every width of one dictionary from one pass over its active latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nb_sae.errors import ConfigError, ShapeError

Selection = Literal["row", "batch"]


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
    row_weights: Float[Tensor, " batch"] | None = None,
    selection: Selection = "row",
) -> NestedLoss:
    """Weighted reconstruction error of all levels, with exact gradients, each active latent touched once per pass.

    The reconstruction of budget k and width w is x̂ = b_dec + Σ relu(pre_j) W_dec_j over the latents j < w among the k
    largest of the row; the loss is Σ_l level_weights_l · mean_n[row_weights_n · mean_d (target − x̂_l)²]. A latent
    enters at one budget b(j) and one width c(j), so its gradient needs only the sum of the errors of the levels from
    there on. Weights are numbers, hence gradients are made while the levels are, and no level keeps a matrix of
    `(batch, d_sae)`.

    Among equal values, which one is selected is not promised; every budget selects exactly k, and budgets nest.

    Args:
        target: What is reconstructed. It gets no gradient.
        pre: Encoder output; its dtype is the one that matrix products are made in.
        W_dec: Decoder, one row per latent.
        b_dec: Decoder bias.
        budgets: Ascending numbers of active latents per row, at most d_sae.
        widths: Ascending prefixes of the dictionary, the last being d_sae. None: the whole dictionary only.
        level_weights: One number per level, budgets outer and widths inner.
        row_weights: One number per row; None: 1.
        selection: "row": the k largest of each row. "batch": the k · batch largest of the whole batch.

    Raises:
        ConfigError: budgets, widths or weights do not fit each other or the dictionary.
        ShapeError: the tensors do not fit each other.

    Source:
        Budgets: Zaigrajew et al. 2025, Interpreting CLIP with Hierarchical Sparse Autoencoders, arXiv:2502.20578,
        section 3. Widths: Bussmann et al. 2025, Matryoshka SAEs, arXiv:2503.17547. One pass for all budgets: Balagansky
        et al. 2025, HierarchicalTopK, arXiv:2505.24473. "batch": Bussmann et al. 2024, BatchTopK, arXiv:2412.06410.
    """
    plan = _Plan.make(target, pre, W_dec, b_dec, budgets, widths, level_weights, row_weights, selection)
    return NestedLoss(*_Nested.apply(target.detach(), pre, W_dec, b_dec, row_weights, plan))  # pyright: ignore


@dataclass(frozen=True)
class _Plan:
    """The numbers of one call, checked."""

    budgets: tuple[int, ...]
    widths: tuple[int, ...]
    weights: tuple[float, ...]
    selection: Selection

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First and last + 1 latent of what each width adds."""
        return list(pairwise((0, *self.widths)))

    @classmethod
    def make(
        cls,
        target: Tensor,
        pre: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        budgets: Sequence[int],
        widths: Sequence[int] | None,
        level_weights: Sequence[float],
        row_weights: Tensor | None,
        selection: Selection,
    ) -> _Plan:
        batch, d_sae = pre.shape
        wanted = {"target": (batch, W_dec.shape[1]), "W_dec": (d_sae, W_dec.shape[1]), "b_dec": (W_dec.shape[1],)}
        given = {"target": target, "W_dec": W_dec, "b_dec": b_dec}
        if row_weights is not None:
            wanted["row_weights"], given["row_weights"] = (batch,), row_weights
        for name, shape in wanted.items():
            if tuple(given[name].shape) != shape:
                raise ShapeError(f"{name} has shape {tuple(given[name].shape)}; pre {tuple(pre.shape)} needs {shape}.")
        if batch == 0:
            raise ShapeError("The batch has no rows. Give at least one.")
        budgets = tuple(int(k) for k in budgets)
        widths = tuple(int(w) for w in widths) if widths is not None else (d_sae,)
        for name, numbers in (("budgets", budgets), ("widths", widths)):
            if not numbers or numbers[0] < 1 or numbers[-1] > d_sae or any(b <= a for a, b in pairwise(numbers)):
                raise ConfigError(f"{name}={numbers} must rise strictly within [1, d_sae={d_sae}].")
        if widths[-1] != d_sae:
            raise ConfigError(f"widths={widths} must end at d_sae={d_sae}. Add it as the last width.")
        if len(level_weights) != len(budgets) * len(widths):
            raise ConfigError(
                f"level_weights has {len(level_weights)} numbers; {len(budgets)} budgets × {len(widths)} widths need "
                f"{len(budgets) * len(widths)}."
            )
        if selection not in ("row", "batch"):
            raise ConfigError(f'selection="{selection}" must be "row" or "batch".')
        return cls(budgets, widths, tuple(float(w) for w in level_weights), selection)


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
        plan: _Plan,
    ) -> tuple[Tensor, ...]:
        gradients = any(ctx.needs_input_grad)
        done = _dense(target, pre, W_dec, b_dec, row_weights, plan, gradients)
        ctx.dtypes = pre.dtype, W_dec.dtype, b_dec.dtype
        if gradients:
            ctx.save_for_backward(*done[5:])
        ctx.mark_non_differentiable(*done[1:5])
        return done[:5]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        scale = grads[0]
        pre, W_dec, b_dec = (
            (kept * scale).to(dtype) for kept, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, pre, W_dec, b_dec, None, None


def _buckets(pre: Tensor, plan: _Plan) -> Tensor:
    """Which budget first selects each latent of each row, `(batch, d_sae)`; n_budgets where none does."""
    many = len(pre) if plan.selection == "batch" else 1
    flat = pre.reshape(1, -1) if plan.selection == "batch" else pre
    indices = torch.topk(flat, plan.budgets[-1] * many, dim=-1, sorted=True).indices
    first = torch.repeat_interleave(
        torch.arange(len(plan.budgets), dtype=torch.uint8, device=pre.device),
        torch.tensor([(b - a) * many for a, b in pairwise((0, *plan.budgets))], device=pre.device),
        output_size=plan.budgets[-1] * many,
    )
    none = torch.full_like(flat, len(plan.budgets), dtype=torch.uint8)
    return none.scatter_(-1, indices, first.expand_as(indices)).view_as(pre)


def _dense(
    target: Tensor, pre: Tensor, W_dec: Tensor, b_dec: Tensor, row_weights: Tensor | None, plan: _Plan, gradients: bool
) -> tuple[Tensor, ...]:
    """Masked dense products, one bucket at a time. Works everywhere."""
    latents, W = pre.relu(), W_dec.to(pre.dtype)
    first = _buckets(pre, plan).masked_fill_(latents == 0, len(plan.budgets))
    total = [torch.zeros_like(target) for _ in plan.widths]
    differences: list[list[Tensor]] = []
    seen = torch.zeros(pre.shape[1], dtype=torch.bool, device=pre.device)
    smallest = pre.new_full((), torch.inf)
    fired, thresholds = [], []
    for bucket in range(len(plan.budgets)):
        mine = first == bucket
        codes = torch.where(mine, latents, 0)
        seen = seen | mine.any(0)
        smallest = torch.minimum(smallest, torch.where(mine, latents, torch.inf).amin())
        fired.append(seen)
        thresholds.append(smallest)
        row: list[Tensor] = []
        x_hat = b_dec.to(target.dtype)
        for group, (start, stop) in enumerate(plan.groups):
            total[group] = total[group] + (codes[:, start:stop] @ W[start:stop]).to(target.dtype)
            x_hat = x_hat + total[group]
            row.append(x_hat - target)
        differences.append(row)
    squares = torch.stack([d.square().mean(1) for row in differences for d in row])
    weights = torch.tensor(plan.weights, dtype=target.dtype, device=target.device)
    weighted = squares if row_weights is None else squares * row_weights
    limits = torch.stack(thresholds)
    out = (
        weights @ weighted.mean(1),
        squares.mean(1),
        -differences[-1][-1],
        torch.stack(fired),
        torch.where(limits.isinf(), 0, limits),
    )
    if not gradients:
        return out
    scale = 2 / target.numel() * (1 if row_weights is None else row_weights[:, None])
    grad_pre, grad_W = torch.zeros_like(pre), torch.zeros_like(W_dec)
    later = [torch.zeros_like(target) for _ in plan.widths]
    for bucket in reversed(range(len(plan.budgets))):
        mine = first == bucket
        codes = torch.where(mine, latents, 0)
        wider = torch.zeros_like(target)
        for group in reversed(range(len(plan.widths))):
            start, stop = plan.groups[group]
            wider = wider + plan.weights[bucket * len(plan.widths) + group] * differences[bucket][group]
            later[group] = later[group] + wider
            error = (later[group] * scale).to(pre.dtype)
            grad_pre[:, start:stop] += torch.where(mine[:, start:stop], error @ W[start:stop].T, 0)
            grad_W[start:stop] += (codes[:, start:stop].T @ error).to(grad_W.dtype)
    return *out, grad_pre, grad_W, (later[0] * scale).sum(0)
