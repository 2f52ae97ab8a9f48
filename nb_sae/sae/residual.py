"""Budgets in rounds: each one encodes what the budgets before it left unexplained, with the same encoder.

The first budget takes the k_1 strongest latents of a row as any top-k SAE does. The second takes its k_2 − k_1 from the
encoder applied to x − x̂_1, and so on; with several looks each budget is itself filled in as many rounds. It is one
dictionary and one code: latents that were taken stay, none is taken twice, and every reconstruction is the sum of
decoder rows. An encoder that is asked once has to know from x alone how large the 64th latent will be after 63 others;
here it sees what they left.

Source:
    Nested budgets: Zaigrajew et al. 2025, arXiv:2502.20578. Encoding residuals step by step: Mallat and Zhang 1993,
    Matching pursuits; as an SAE, one latent at a time: Costa et al. 2025, From Flat to Hierarchical, arXiv:2506.03093.
    What blocks of latents buy and cost is measured in docs/quality.md; the gradient is explained at `_gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nb_sae.sae.kernels.gather import Named, dot_rows, sum_rows
from nb_sae.sae.kernels.select import strongest
from nb_sae.sae.nested import NestedLoss, scaled


@dataclass
class _Round:
    """What one budget adds."""

    residual: Tensor
    """What it saw, `(batch, d_in)`."""
    values: Tensor
    indices: Tensor
    error: Tensor
    """x̂ − target after it."""


def residual_encode(
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    *,
    budgets: Sequence[int],
    k: int,
    looks: int = 1,
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Latents in the order in which they are taken: the first k' are those of every smaller k'.

    Each budget is filled in `looks` rounds. A k between two rounds ends within the second; one above the last budget
    adds a round.
    """
    left = x - b_dec
    values: list[Tensor] = []
    indices: list[Tensor] = []
    for start, stop in rounds(budgets, k, looks):
        seen = torch.addmm(b_enc, left, W_enc)
        more_values, more = strongest(seen, stop - start, without=indices, ordered=True)
        values.append(more_values)
        indices.append(more)
        left = left - sum_rows(more, more_values, W_dec)
    return torch.cat(values, dim=1), torch.cat(indices, dim=1)


def residual_loss(
    target: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    *,
    pre: Float[Tensor, "batch d_sae"],
    budgets: Sequence[int],
    level_weights: Sequence[float],
    looks: int = 1,
    row_weights: Float[Tensor, " batch"] | None = None,
) -> NestedLoss:
    """Weighted reconstruction error of all budgets, with exact gradients through every round.

    Each round costs one product of `(batch, d_in, d_sae)` and passes over the latents it adds; gradients are made
    beside the values and touch active latents only.

    Args:
        target: The rows, `b_dec` not taken off.
        W_enc: Encoder.
        b_enc: Its bias.
        W_dec: Decoder.
        b_dec: Its bias.
        pre: Encoder output of the first round, (target − b_dec) W_enc + b_enc, as a value: its share of the gradient
            goes to the four parameters directly. Its dtype is that of the products.
        budgets: Ascending.
        level_weights: One number per budget.
        looks: Rounds in which each budget is filled; only its last one has a loss.
        row_weights: One number per row; None: 1.
    """
    fixed = tuple(budgets), tuple(level_weights), looks
    out = _Residual.apply(target.detach(), pre.detach(), W_enc, b_enc, W_dec, b_dec, row_weights, *fixed)
    return NestedLoss(*out)  # pyright: ignore[reportGeneralTypeIssues]


class _Residual(torch.autograd.Function):
    """Loss and gradients in one go; backward only scales what forward kept."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        pre: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        row_weights: Tensor | None,
        budgets: tuple[int, ...],
        weights: tuple[float, ...],
        looks: int,
    ) -> tuple[Tensor, ...]:
        dtype, d_sae = pre.dtype, pre.shape[1]
        encoder, bias, table = W_enc.to(dtype), b_enc.to(dtype), W_dec.to(dtype)
        done: list[_Round] = []
        error = b_dec - target
        taken: list[Tensor] = []
        spans = rounds(budgets, budgets[-1], looks)
        for start, stop in spans:
            seen = pre if not done else torch.addmm(bias, -error.to(dtype), encoder)
            values, indices = strongest(seen, stop - start, without=taken)
            taken.append(indices)
            after = error + sum_rows(indices, values, table)
            done.append(_Round(-error, values, indices, after))
            error = after
        ends = [number for number, (_, stop) in enumerate(spans) if stop in budgets]
        squares = torch.stack([done[number].error.square().mean(-1) for number in ends])
        weighted = squares if row_weights is None else squares * row_weights
        level_weights = torch.tensor(weights, dtype=squares.dtype).to(squares.device, non_blocking=True)
        # A row without a positive latent still selects; a NaN must show although it is never "positive".
        loss = level_weights @ weighted.mean(1) + 0 * pre.sum()
        fired = torch.zeros(len(done), d_sae, dtype=torch.int32, device=pre.device)
        for number, one in enumerate(done):
            fired[number].index_add_(0, one.indices.flatten(), (one.values > 0).int().flatten())
        limits = torch.stack([one.values.amin() for one in done]).cummin(0).values
        by_round = dict(zip(ends, weights, strict=True))
        of_rounds = [by_round.get(number, 0.0) for number in range(len(done))]
        _Residual._gradients(ctx, done, (target, encoder, table), row_weights, of_rounds)
        ctx.dtypes = W_enc.dtype, b_enc.dtype, W_dec.dtype, b_dec.dtype
        fired_by = (fired.cumsum(0) > 0).unbind()
        per_budget = [torch.stack([tensors[number] for number in ends]) for tensors in (fired_by, limits.unbind())]
        rest = squares.mean(1), -error, *per_budget
        ctx.mark_non_differentiable(*rest)
        return loss, *rest

    @staticmethod
    def _gradients(
        ctx: Any,
        done: list[_Round],
        tensors: tuple[Tensor, Tensor, Tensor],
        row_weights: Tensor | None,
        weights: Sequence[float],
    ) -> None:
        """From the last round to the first. A latent feels the errors of its own level and of all after it, less what
        the later rounds, which saw a residual that it made, answer to it.
        """
        target, encoder, table = tensors
        dtype, d_sae = table.dtype, len(table)
        turned = encoder.T.contiguous()
        scale = 2 / target.numel()
        tail, answer = torch.zeros_like(target), torch.zeros_like(target)
        felt: list[Tensor] = []
        slopes: list[Tensor] = []
        grad_b_enc = torch.zeros(d_sae, dtype=target.dtype, device=target.device)
        by_latent = grad_b_enc
        for number in reversed(range(len(done))):
            one = done[number]
            if weights[number]:
                direct = one.error * (scale * weights[number])
                tail = tail + (direct if row_weights is None else direct * row_weights[:, None])
            felt.append((tail - answer).to(dtype))
            slope = dot_rows(one.indices, felt[-1], table) * (one.values > 0)
            slopes.append(slope)
            by_latent = torch.zeros_like(grad_b_enc)
            by_latent.index_add_(0, one.indices.flatten(), slope.flatten().to(target.dtype))
            grad_b_enc += by_latent
            if number:
                answer = answer + sum_rows(one.indices, slope, turned)
        # Every round sees b_dec; of the first only the sum over rows is needed.
        grad_b_dec = tail.sum(0) - answer.sum(0) - encoder.to(target.dtype) @ by_latent
        felt.reverse()
        slopes.reverse()
        named = Named.of([one.indices for one in done], d_sae, dtype)
        grad_W_dec = named.sum([one.values for one in done], felt, turned=False)
        grad_W_enc = named.sum(slopes, [one.residual.to(dtype) for one in done], turned=True)
        ctx.gradients = grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept, ctx.gradients = ctx.gradients, None
        if kept is None:
            raise RuntimeError("The gradients of this loss were used already. Compute the loss again.")
        given = [scaled(one, grads[0]).to(dtype) for one, dtype in zip(kept, ctx.dtypes, strict=True)]
        return None, None, *given, None, None, None, None


def rounds(budgets: Sequence[int], k: int, looks: int = 1) -> list[tuple[int, int]]:
    """First and last + 1 rank of each round up to k. In two looks budgets (4, 8) are filled at 2, 4, 6 and 8."""
    stops: list[int] = []
    for start, stop in pairwise((0, *budgets)):
        between = {start + (stop - start) * look // looks for look in range(1, looks)}
        stops += [*sorted(between - {start}), stop]
    return list(pairwise((0, *(stop for stop in stops if stop < k), k)))
