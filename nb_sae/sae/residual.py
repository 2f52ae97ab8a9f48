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
from torch.nn import functional as F

from nb_sae.sae.kernels.cpu import gathered
from nb_sae.sae.nested import NestedLoss


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
    taken_values: list[Tensor] = []
    taken: list[Tensor] = []
    for start, stop in _rounds(budgets, k):
        values, indices = _strongest(torch.addmm(b_enc, left, W_enc), taken, stop - start)
        taken_values.append(values)
        taken.append(indices)
        left = left - _sum_rows(indices, values, W_dec)
    return torch.cat(taken_values, dim=1), torch.cat(taken, dim=1)


def residual_loss(
    target: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch d_sae"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    *,
    budgets: Sequence[int],
    level_weights: Sequence[float],
    row_weights: Float[Tensor, " batch"] | None = None,
) -> NestedLoss:
    """Weighted reconstruction error of all budgets, with exact gradients through every round.

    Each round costs one product of `(batch, d_in, d_sae)` and passes over the latents it adds; gradients are made
    beside the values and touch active latents only.

    Args:
        target: The rows, `b_dec` not taken off.
        pre: Encoder output of the first round, (target − b_dec) W_enc + b_enc; its dtype is that of the products.
        W_enc: Encoder, for the rounds after the first.
        b_enc: Its bias.
        W_dec: Decoder.
        b_dec: Its bias.
        budgets: Ascending.
        level_weights: One number per budget.
        row_weights: One number per row; None: 1.
    """
    fixed = tuple(budgets), tuple(level_weights)
    out = _Residual.apply(target.detach(), pre, W_enc, b_enc, W_dec, b_dec, row_weights, *fixed)
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
            values, indices = _strongest(seen, taken, stop - start)
            taken.append(indices)
            after = error + _sum_rows(indices, values, table).to(target.dtype)
            rounds.append(_Round(-error, values, indices, after))
            error = after
        squares = torch.stack([one.error.square().mean(-1) for one in rounds])
        weighted = squares if row_weights is None else squares * row_weights
        level_weights = torch.tensor(weights, dtype=squares.dtype).to(squares.device, non_blocking=True)
        loss = level_weights @ weighted.mean(1)
        # A row without a positive latent still selects; a NaN must show although it is never "positive".
        loss = loss + 0 * pre.sum()
        fired = torch.zeros(len(rounds), d_sae, dtype=torch.int32, device=pre.device)
        for number, one in enumerate(rounds):
            fired[number].index_add_(0, one.indices.flatten(), (one.values > 0).int().flatten())
        seen_by = fired.cumsum(0) > 0
        limits = torch.stack([one.values[:, -1].amin() for one in rounds])
        _Residual._gradients(ctx, rounds, (target, encoder, table), row_weights, weights, d_sae)
        ctx.dtypes = pre.dtype, W_enc.dtype, b_enc.dtype, W_dec.dtype, b_dec.dtype
        rest = squares.mean(1), -error, seen_by, limits
        ctx.mark_non_differentiable(*rest)
        return loss, *rest

    @staticmethod
    def _gradients(
        ctx: Any,
        rounds: list[_Round],
        tensors: tuple[Tensor, Tensor, Tensor],
        row_weights: Tensor | None,
        weights: tuple[float, ...],
        d_sae: int,
    ) -> None:
        """From the last round to the first. A latent feels the errors of its own level and of all after it, less what
        the later rounds, which saw a residual that it made, answer to it.
        """
        target, encoder, table = tensors
        turned = encoder.T.contiguous()
        scale = 2 / target.numel()
        tail = torch.zeros_like(target)
        answer = torch.zeros_like(target)
        felt: list[Tensor] = []
        slopes: list[Tensor] = []
        for number in reversed(range(len(rounds))):
            one = rounds[number]
            direct = one.error * (scale * weights[number])
            tail = tail + (direct if row_weights is None else direct * row_weights[:, None])
            mine = tail - answer
            slope = _dot_rows(one.indices, mine.to(table.dtype), table) * (one.values > 0)
            felt.append(mine)
            slopes.append(slope)
            if number:
                answer = answer + _sum_rows(one.indices, slope, turned).to(target.dtype)
        felt.reverse()
        slopes.reverse()
        first = rounds[0]
        grad_pre = torch.zeros(len(target), d_sae, dtype=table.dtype, device=table.device)
        grad_pre.scatter_(1, first.indices, slopes[0].to(table.dtype))
        grad_W_dec = _by_latent([one.indices for one in rounds], [one.values for one in rounds], felt, d_sae)
        later = rounds[1:]
        if later:
            ids = [one.indices for one in later]
            grad_W_enc = _by_latent(ids, slopes[1:], [one.residual for one in later], d_sae).T
            grad_b_enc = torch.zeros(d_sae, dtype=target.dtype, device=target.device)
            for indices, slope in zip(ids, slopes[1:], strict=True):
                grad_b_enc.index_add_(0, indices.flatten(), slope.flatten().to(target.dtype))
        else:
            grad_W_enc, grad_b_enc = torch.zeros_like(encoder), torch.zeros_like(encoder[0])
        ctx.gradients = grad_pre, grad_W_enc, grad_b_enc, grad_W_dec, tail.sum(0) - answer.sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept, ctx.gradients = ctx.gradients, None
        if kept is None:
            raise RuntimeError("The gradients of this loss were used already. Compute the loss again.")
        scaled = [(one * grads[0].to(one.dtype)).to(dtype) for one, dtype in zip(kept, ctx.dtypes, strict=True)]
        return None, *scaled, None, None, None


def _rounds(budgets: Sequence[int], k: int) -> list[tuple[int, int]]:
    """First and last + 1 rank of each round up to k."""
    return list(pairwise((0, *(budget for budget in budgets if budget < k), k)))


def _strongest(seen: Tensor, taken: list[Tensor], many: int) -> tuple[Tensor, Tensor]:
    """The `many` largest that were not taken before, as ReLU values and latent numbers."""
    if taken:
        seen = seen.scatter(1, torch.cat(taken, dim=1), -torch.inf)
    values, indices = torch.topk(seen, many, dim=-1, sorted=True)
    return values.relu(), indices


def _sum_rows(indices: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """Σ values · table rows for each row of the batch."""
    if table.device.type == "cpu" and table.dtype in (torch.float32, torch.bfloat16):
        offsets = torch.arange(len(indices) + 1, dtype=torch.int32) * indices.shape[1]
        return gathered(indices.flatten().int(), offsets, values.flatten().to(table.dtype), table)
    return F.embedding_bag(indices, table, per_sample_weights=values.to(table.dtype), mode="sum")


def _dot_rows(indices: Tensor, vectors: Tensor, table: Tensor) -> Tensor:
    """⟨vector of the row, table row⟩ for each entry, `(batch, k)`."""
    batch, many = indices.shape
    offsets = torch.arange(batch, device=indices.device) * many
    own = torch.arange(batch, device=indices.device).repeat_interleave(many)
    if table.dtype == torch.bfloat16 and table.device.type == "cpu":  # that kernel is slow in bfloat16
        vectors, table = vectors.float(), table.float()
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(vectors, table, indices.flatten(), offsets, own, 0)
    return dots.view(batch, many)


def _by_latent(indices: list[Tensor], values: list[Tensor], tables: list[Tensor], d_sae: int) -> Tensor:
    """Σ value · row of the table over the entries of each latent, `(d_sae, d)`; one table per round."""
    batch = len(tables[0])
    latents = torch.cat([one.flatten() for one in indices])
    places = torch.cat(
        [
            torch.arange(batch, device=one.device).repeat_interleave(one.shape[1]) + number * batch
            for number, one in enumerate(indices)
        ]
    )
    ordered, order = torch.sort(latents, stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(d_sae + 1, device=latents.device))
    table = torch.cat(tables)
    weights = torch.cat([one.flatten() for one in values])[order].to(table.dtype)
    if table.device.type == "cpu" and table.dtype == torch.float32:
        return gathered(places[order].int(), offsets.int(), weights, table)
    return F.embedding_bag(
        places[order], table, offsets, per_sample_weights=weights, mode="sum", include_last_offset=True
    )
