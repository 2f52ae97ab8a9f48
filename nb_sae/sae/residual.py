"""Budgets in rounds: each one encodes what the budgets before it left unexplained, with the same encoder.

The first budget takes the k_1 strongest latents of a row as any top-k SAE does. The second takes its k_2 − k_1 from the
encoder applied to x − x̂_1, and so on. It is one dictionary and one code: latents that were taken stay, none is taken
twice, and every reconstruction is the sum of decoder rows. An encoder that is asked once has to know from x alone how
large the 64th latent will be after 63 others; here it sees what they left.

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
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Latents in the order in which they are taken: the first k' are those of every smaller k'.

    A k between two budgets ends within its round; one above the last budget adds a round.
    """
    left = x - b_dec
    values: list[Tensor] = []
    indices: list[Tensor] = []
    for start, stop in _rounds(budgets, k):
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
        row_weights: One number per row; None: 1.
    """
    fixed = tuple(budgets), tuple(level_weights)
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
    ) -> tuple[Tensor, ...]:
        dtype, d_sae = pre.dtype, pre.shape[1]
        encoder, bias, table = W_enc.to(dtype), b_enc.to(dtype), W_dec.to(dtype)
        rounds: list[_Round] = []
        error = b_dec - target
        taken: list[Tensor] = []
        for number, (start, stop) in enumerate(_rounds(budgets, budgets[-1])):
            seen = pre if number == 0 else torch.addmm(bias, -error.to(dtype), encoder)
            values, indices = strongest(seen, stop - start, without=taken)
            taken.append(indices)
            after = error + sum_rows(indices, values, table)
            rounds.append(_Round(-error, values, indices, after))
            error = after
        squares = torch.stack([one.error.square().mean(-1) for one in rounds])
        weighted = squares if row_weights is None else squares * row_weights
        level_weights = torch.tensor(weights, dtype=squares.dtype).to(squares.device, non_blocking=True)
        # A row without a positive latent still selects; a NaN must show although it is never "positive".
        loss = level_weights @ weighted.mean(1) + 0 * pre.sum()
        fired = torch.zeros(len(rounds), d_sae, dtype=torch.int32, device=pre.device)
        for number, one in enumerate(rounds):
            fired[number].index_add_(0, one.indices.flatten(), (one.values > 0).int().flatten())
        limits = torch.stack([one.values.amin() for one in rounds]).cummin(0).values
        _Residual._gradients(ctx, rounds, (target, encoder, table), row_weights, weights)
        ctx.dtypes = W_enc.dtype, b_enc.dtype, W_dec.dtype, b_dec.dtype
        rest = squares.mean(1), -error, fired.cumsum(0) > 0, limits
        ctx.mark_non_differentiable(*rest)
        return loss, *rest

    @staticmethod
    def _gradients(
        ctx: Any,
        rounds: list[_Round],
        tensors: tuple[Tensor, Tensor, Tensor],
        row_weights: Tensor | None,
        weights: tuple[float, ...],
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
        for number in reversed(range(len(rounds))):
            one = rounds[number]
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
        named = Named.of([one.indices for one in rounds], d_sae, dtype)
        grad_W_dec = named.sum([one.values for one in rounds], felt, turned=False)
        grad_W_enc = named.sum(slopes, [one.residual.to(dtype) for one in rounds], turned=True)
        ctx.gradients = grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept, ctx.gradients = ctx.gradients, None
        if kept is None:
            raise RuntimeError("The gradients of this loss were used already. Compute the loss again.")
        given = [scaled(one, grads[0]).to(dtype) for one, dtype in zip(kept, ctx.dtypes, strict=True)]
        return None, None, *given, None, None, None


def _rounds(budgets: Sequence[int], k: int) -> list[tuple[int, int]]:
    """First and last + 1 rank of each round up to k."""
    return list(pairwise((0, *(budget for budget in budgets if budget < k), k)))
