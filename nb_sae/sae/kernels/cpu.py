"""Nested loss on a processor: gathers for small buckets, dense products for large ones.

Costs, measured on two cores with AVX-512 at batch 1,024, d 768, d_sae 6,144: a dense float32 product of that size takes
53 ms, of bfloat16 8 ms (matrix units); gathering and adding one decoder row for every row of the batch 0.035 ms and
0.028 ms. So a gathered latent costs as much as about 5 (float32) or 23 (bfloat16) latents of a dense product, and a
bucket is gathered if it is smaller than d_sae over that number. A gathered dot product, which ∂loss/∂pre needs, costs
about 13 latents in float32 and never pays in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nb_sae.sae.kernels.plan import Computed, Levels, Plan
from nb_sae.sae.kernels.select import BITS, Array, Selected, by_rows, count_positive, positive_bits, select

SUM_COST = {torch.float32: 5, torch.bfloat16: 23, torch.float16: 23}
"""Latents of a dense product that cost as much as one gathered and added."""
DOT_COST = {torch.float32: 13}
"""The same for a gathered dot product."""
TILE_BYTES = 256
"""Bytes of a decoder row that are gathered at once: 6,144 such pieces stay in the second-level cache."""


def able(pre: Tensor) -> bool:
    """Whether this way handles the tensor."""
    return pre.device.type == "cpu" and pre.dtype in BITS and not torch.compiler.is_compiling()


def gathered(
    indices: Tensor, offsets: Tensor, values: Tensor, table: Tensor, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Σ values · table rows for each bag, `(bags, columns)`, by slices of columns that stay in the cache."""
    step = max(16, TILE_BYTES // table.element_size())
    out = torch.empty(len(offsets) - 1, table.shape[1], dtype=out_dtype or table.dtype)
    for start in range(0, table.shape[1], step):
        piece = table[:, start : start + step]
        out[:, start : start + step] = F.embedding_bag(
            indices, piece, offsets, per_sample_weights=values, mode="sum", include_last_offset=True
        )
    return out


@dataclass
class _Bag:
    """The latents of a gathered bucket: positions in the flat `(batch, d_sae)`, ascending, and where bags begin.

    There is one bag for each row and group.
    """

    flat: Tensor
    offsets: Tensor
    latents: Tensor
    values: Tensor


def cpu(
    target: Tensor, pre: Tensor, W_dec: Tensor, b_dec: Tensor, row_weights: Tensor | None, plan: Plan, gradients: bool
) -> Computed:
    """See `nb_sae.sae.nested.nested_loss`."""
    return _Pass(target, pre, W_dec, b_dec, row_weights, plan).run(gradients)


class _Pass:
    """One call."""

    def __init__(
        self, target: Tensor, pre: Tensor, W_dec: Tensor, b_dec: Tensor, row_weights: Tensor | None, plan: Plan
    ) -> None:
        self.full, self.pre, self.dtype = plan, pre, pre.dtype
        self.batch, self.d_sae = pre.shape
        bits = positive_bits(pre)
        merged, everything = _merge(bits, plan)
        self.plan = plan.merged(merged)
        self.chosen: Selected = select(bits, self.plan.budgets, everything=everything, batch=plan.selection == "batch")
        self.W, self.W_dec = W_dec.to(pre.dtype), W_dec
        self.levels = Levels(target, b_dec, row_weights, self.plan)
        self.bags: dict[int, _Bag] = {}
        for bucket in range(merged):
            if self._is_small(bucket, everything and bucket == merged - 1):
                self.bags[bucket] = self._bag(bucket)

    def run(self, gradients: bool) -> Computed:
        plan, buckets = self.plan, range(len(self.plan.budgets))
        fired = np.zeros((len(buckets), self.d_sae), dtype=bool)
        for bucket in buckets:
            if bucket in self.bags:
                fired[bucket, self.bags[bucket].latents.numpy()] = True
                self.levels.add(self._gathered_cells(self.bags[bucket]))
            else:
                mine = self._mine(bucket)
                fired[bucket] = mine.any(axis=0)
                codes = self._codes(mine)
                self.levels.add([codes[:, a:b] @ self.W[a:b] for a, b in plan.groups])
        loss, errors, residual = self.levels.finish()
        loss = loss + 0 * self.pre.sum()  # the bits of a NaN may read as "not positive": it must show all the same
        again = [min(i, len(buckets) - 1) for i in range(len(self.full.budgets))]  # merged budgets share a level
        wide = len(plan.widths)
        errors = errors.view(-1, wide)[again].flatten()
        seen = torch.from_numpy(np.logical_or.accumulate(fired, axis=0))[again]
        bits = torch.tensor([self.chosen.limits[i] for i in again], dtype=BITS[self.dtype])
        thresholds = bits.view(self.dtype)
        if not gradients:
            return Computed(loss, errors, residual, seen, thresholds)
        tails = self.levels.tails()
        return Computed(
            loss,
            errors,
            residual,
            seen,
            thresholds,
            self._grad_pre(tails),
            self._decoder_gradient(tails),
            tails[0][0].sum(0),
        )

    def _is_small(self, bucket: int, is_rest: bool) -> bool:
        before = self.plan.budgets[bucket - 1] if bucket else 0
        added = self.plan.budgets[bucket] - before
        if is_rest:  # its budget may be far above what is positive
            marks = self.chosen.first
            added = sum(by_rows(lambda rows: int(np.count_nonzero(marks[rows] == bucket)), self.batch)) / self.batch
        return added * SUM_COST[self.dtype] <= self.d_sae

    def _mine(self, bucket: int) -> Array:
        return self.chosen.first == bucket

    def _codes(self, mine: Array) -> Tensor:
        """Values of one bucket as a dense matrix: bits times 0 or 1."""
        bits, out = self.chosen.bits, np.empty_like(self.chosen.bits)
        by_rows(lambda rows: np.multiply(bits[rows], mine[rows].view(np.int8), out=out[rows]), self.batch)
        return torch.from_numpy(out).view(self.dtype)

    def _bag(self, bucket: int) -> _Bag:
        d_sae, groups = self.d_sae, self.plan.groups
        flat = np.flatnonzero(self.chosen.first == bucket)
        edges = np.arange(self.batch)[:, None] * d_sae + np.array([start for start, _ in groups])
        offsets = np.append(np.searchsorted(flat, edges.ravel()), len(flat))
        values = torch.from_numpy(self.chosen.bits.ravel().take(flat)).view(self.dtype)
        return _Bag(torch.from_numpy(flat), torch.from_numpy(offsets), torch.from_numpy(flat % d_sae), values)

    def _gathered_cells(self, bag: _Bag) -> Sequence[Tensor]:
        sums = gathered(bag.latents, bag.offsets, bag.values, self.W)
        return sums.view(self.batch, len(self.plan.widths), -1).unbind(1)

    def _grad_pre(self, tails: list[list[Tensor]]) -> Tensor:
        """⟨decoder row, tail of the latent's cell⟩ where selected, 0 elsewhere."""
        bits = BITS[self.dtype]
        out = torch.zeros(self.batch, self.d_sae, dtype=bits).numpy()
        dots: dict[int, Tensor] = {}
        for bucket in range(len(self.plan.budgets)):
            if bucket in self.bags and self._dots_pay(self.bags[bucket]):
                dots[bucket] = self._gathered_dots(self.bags[bucket], tails[bucket][0])
                continue
            product = self._product(tails[bucket])
            if bucket in self.bags:
                dots[bucket] = product.view(-1).index_select(0, self.bags[bucket].flat)
                continue
            found, mine = product.view(bits).numpy(), self._mine(bucket)

            def keep(rows: slice, found: Array = found, mine: Array = mine) -> None:
                np.multiply(found[rows], mine[rows].view(np.int8), out=found[rows])
                np.bitwise_or(out[rows], found[rows], out=out[rows])  # buckets are disjoint

            by_rows(keep, self.batch)
        grad = torch.from_numpy(out).view(self.dtype)
        for bucket, values in dots.items():
            grad.view(-1).index_copy_(0, self.bags[bucket].flat, values)
        return grad

    def _product(self, tails: list[Tensor]) -> Tensor:
        if len(tails) == 1:
            return tails[0].to(self.dtype) @ self.W.T
        pieces = [tail.to(self.dtype) @ self.W[a:b].T for tail, (a, b) in zip(tails, self.plan.groups, strict=True)]
        return torch.cat(pieces, dim=1)

    def _dots_pay(self, bag: _Bag) -> bool:
        cost = DOT_COST.get(self.dtype)
        return cost is not None and len(self.plan.widths) == 1 and len(bag.flat) * cost <= self.batch * self.d_sae

    def _gathered_dots(self, bag: _Bag, tail: Tensor) -> Tensor:
        rows = torch.bucketize(torch.arange(len(bag.flat)), bag.offsets, right=True) - 1
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            tail, self.W, bag.latents, bag.offsets[:-1], rows, 0
        )

    def _decoder_gradient(self, tails: list[list[Tensor]]) -> Tensor:
        """Σ over rows of value · tail of the latent's cell."""
        grad: Tensor | None = None
        if self.bags:
            grad = self._gathered_decoder_gradient(tails)
        for bucket in range(len(self.plan.budgets)):
            if bucket in self.bags:
                continue
            codes = self._codes(self._mine(bucket))
            pieces = [
                codes[:, a:b].T @ tail.to(self.dtype)
                for tail, (a, b) in zip(tails[bucket], self.plan.groups, strict=True)
            ]
            product = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            grad = product.to(torch.float32) if grad is None else grad.add_(product)
        return grad if grad is not None else torch.zeros(self.W.shape)

    def _gathered_decoder_gradient(self, tails: list[list[Tensor]]) -> Tensor:
        """All gathered buckets at once: hits sorted by latent, one bag for each latent over a table of tails."""
        wide, small = len(self.plan.widths), sorted(self.bags)
        stacked = [tails[bucket][group] for bucket in small for group in range(wide)]
        table = torch.stack([tail.to(self.dtype) for tail in stacked], dim=1).flatten(0, 1)
        columns = len(stacked)
        keys = []
        for number, bucket in enumerate(small):
            bag = self.bags[bucket]
            sizes = bag.offsets.diff().numpy()
            place = (np.arange(self.batch)[:, None] * columns + number * wide + np.arange(wide)).ravel()
            keys.append(bag.latents.numpy() * len(table) + np.repeat(place, sizes))
        kind = np.int32 if self.d_sae * len(table) < 2**31 else np.int64
        order = np.concatenate(keys).astype(kind)
        order.sort()
        latents, places = np.divmod(order, kind(len(table)))
        counts = np.bincount(latents, minlength=self.d_sae)
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(kind)
        flat = (places // columns).astype(np.int64) * self.d_sae + latents
        values = torch.from_numpy(self.chosen.bits.ravel().take(flat)).view(self.dtype)
        return gathered(torch.from_numpy(places), torch.from_numpy(offsets), values, table, torch.float32)


def _merge(bits: Array, plan: Plan) -> tuple[int, bool]:
    """How many budgets differ on this batch, and whether the last of them takes everything positive."""
    rows, d_sae = bits.shape
    budgets = plan.budgets
    if budgets[-1] * 16 <= d_sae and plan.selection == "row":
        return len(budgets), False  # not worth counting; a row with fewer positives is handled all the same
    counts = count_positive(bits)
    most = counts.sum() / rows if plan.selection == "batch" else counts.max()
    for number, k in enumerate(budgets):
        if k >= most:
            return number + 1, True
    return len(budgets), False
