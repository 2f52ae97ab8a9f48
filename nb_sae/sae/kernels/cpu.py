"""Nested loss on a processor: gathers for small buckets, dense products for large ones (costs: `gather.py`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nb_sae.sae.kernels.gather import DOT_COST, SUM_COST, gathered
from nb_sae.sae.kernels.plan import Computed, Levels, Plan
from nb_sae.sae.kernels.select import (
    BITS,
    Array,
    Hits,
    Selected,
    count_positive,
    float_bits,
    select,
)

PRODUCT_ROWS = 512
"""Rows of one dense product of codes."""
KEY_BITS = 63
"""Of an integer that latent, place and value share."""


def able(pre: Tensor) -> bool:
    """Whether this way handles the tensor."""
    return pre.device.type == "cpu" and pre.dtype in BITS and not torch.compiler.is_compiling()


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
    target: Tensor,
    pre: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    row_weights: Tensor | None,
    plan: Plan,
    gradients: bool,
    scale: Tensor | None = None,
) -> Computed:
    """See `nb_sae.sae.nested.nested_loss`."""
    return _Pass(target, pre, W_dec, b_dec, row_weights, plan, scale).run(gradients)


class _Pass:
    """One call."""

    def __init__(
        self,
        target: Tensor,
        pre: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        row_weights: Tensor | None,
        plan: Plan,
        scale: Tensor | None,
    ) -> None:
        self.full, self.pre, self.dtype = plan, pre, pre.dtype
        self.batch, self.d_sae = pre.shape
        self.bits = float_bits(pre)
        self.plan, everything = _merge(self.bits, plan)
        wide = len(plan.widths) > 1
        added = np.diff(self.plan.budgets, prepend=0)
        listed = [bucket for bucket, many in enumerate(added) if many * SUM_COST[self.dtype] <= self.d_sae]
        self.chosen: Selected = select(
            self.bits,
            self.plan.budgets,
            listed=listed,
            everything=everything,
            batch=plan.selection == "batch",
            ascending=wide,
        )
        self.W = W_dec.to(pre.dtype)
        # Levels with factors of their own stay apart where their latents are the same.
        self.levels = Levels(target, b_dec, row_weights, self.plan if scale is None else plan, scale)
        self.bags = {bucket: self._bag(hits) for bucket, hits in self.chosen.hits.items()}

    def run(self, gradients: bool) -> Computed:
        plan, buckets = self.plan, range(len(self.plan.budgets))
        fired = np.zeros((len(buckets), self.d_sae), dtype=bool)
        scratch = self._scratch()
        for bucket in buckets:
            if bucket in self.bags:
                hits, bag = self.chosen.hits[bucket], self.bags[bucket]
                fired[bucket, hits.latents if hits.values.all() else hits.latents[hits.values > 0]] = True
                sums = gathered(bag.latents, bag.offsets, bag.values, self.W)
                self.levels.add(sums.view(self.batch, len(plan.widths), -1).unbind(1))
            else:
                fired[bucket] = self._mark(bucket, scratch)
                codes = torch.from_numpy(scratch).view(self.dtype)
                self.levels.add(self._cells(codes))
        apart = self.levels.plan is self.full
        for _ in range(len(buckets), len(self.full.budgets) if apart else 0):
            self.levels.add(None)
        loss, errors, residual = self.levels.finish()
        loss = loss + 0 * self.pre.sum()  # the bits of a NaN may read as "not positive": it must show all the same
        again = [min(i, len(buckets) - 1) for i in range(len(self.full.budgets))]  # merged budgets share a level
        if not apart:
            errors = errors.view(-1, len(plan.widths))[again].flatten()
        seen = torch.from_numpy(np.logical_or.accumulate(fired, axis=0))[again]
        limits = torch.tensor([self.chosen.limits[i] for i in again], dtype=BITS[self.dtype]).view(self.dtype)
        if not gradients:
            return Computed(loss, errors, residual, seen, limits)
        tails = self.levels.tails()
        levels = self.levels
        grad_pre = self._grad_pre(tails, scratch)
        return Computed(
            loss,
            errors,
            residual,
            seen,
            limits,
            grad_pre,
            self._decoder_gradient(tails, scratch),
            levels.grad_bias,
            levels.grad_scale,
        )

    def _scratch(self) -> Array:
        """One matrix of codes, used again for each dense bucket."""
        return np.empty(self.bits.shape if len(self.bags) < len(self.plan.budgets) else (0, 0), self.bits.dtype)

    def _bag(self, hits: Hits) -> _Bag:
        """Bags of one row each, or of one row and group where widths are nested."""
        edges, groups = hits.edges, self.plan.groups
        sizes = np.diff(edges)
        rows = np.repeat(np.arange(self.batch), sizes)
        flat = rows * self.d_sae + hits.latents
        offsets = edges
        if len(groups) > 1:
            starts = np.arange(self.batch)[:, None] * self.d_sae + np.array([start for start, _ in groups])
            offsets = np.append(np.searchsorted(flat, starts.ravel()), len(flat))
        values = torch.from_numpy(hits.values).view(self.dtype)
        latents = torch.from_numpy(hits.latents)
        return _Bag(torch.from_numpy(flat), torch.from_numpy(offsets).int(), latents, values)

    def _mark(self, bucket: int, out: Array) -> Array:
        """Values of one bucket as a dense matrix, bits times 0 or 1; gives which columns have any."""
        mine = self.chosen.first == bucket
        np.multiply(self.bits, mine.view(np.int8), out=out)
        return mine.any(axis=0)

    def _cells(self, codes: Tensor) -> list[Tensor]:
        """Dense products, by blocks of rows: oneDNN takes up to twice as long for 1,024 rows at once."""
        blocks = codes.split(PRODUCT_ROWS)
        return [torch.cat([block[:, a:b] @ self.W[a:b] for block in blocks]) for a, b in self.plan.groups]

    def _grad_pre(self, tails: list[list[Tensor]], scratch: Array) -> Tensor:
        """⟨decoder row, tail of the latent's cell⟩ where selected, 0 elsewhere."""
        product = torch.from_numpy(scratch if scratch.size else np.empty_like(self.bits)).view(self.dtype)
        found = product.view(BITS[self.dtype]).numpy()
        out = np.zeros_like(self.bits)
        dots: dict[int, Tensor] = {}
        for bucket in range(len(self.plan.budgets)):
            bag = self.bags.get(bucket)
            if bag is not None and self._dots_pay(bag):
                dots[bucket] = self._gathered_dots(bag, tails[bucket][0])
                continue
            self._product(tails[bucket], product)
            if bag is not None:
                dots[bucket] = product.view(-1).index_select(0, bag.flat)
                continue
            mine = self.chosen.first == bucket
            np.multiply(found, mine.view(np.int8), out=found)
            np.bitwise_or(out, found, out=out)  # buckets are disjoint
        grad = torch.from_numpy(out).view(self.dtype)
        for bucket, values in dots.items():
            bag = self.bags[bucket]
            grad.view(-1).index_copy_(0, bag.flat, values.mul_(bag.values > 0))
        return grad

    def _product(self, tails: list[Tensor], out: Tensor) -> None:
        if len(tails) == 1:
            torch.mm(tails[0].to(self.dtype), self.W.T, out=out)
            return
        for tail, (a, b) in zip(tails, self.plan.groups, strict=True):
            out[:, a:b] = tail.to(self.dtype) @ self.W[a:b].T

    def _dots_pay(self, bag: _Bag) -> bool:
        cost = DOT_COST.get(self.dtype)
        return cost is not None and len(self.plan.widths) == 1 and len(bag.flat) * cost <= self.batch * self.d_sae

    def _gathered_dots(self, bag: _Bag, tail: Tensor) -> Tensor:
        rows = (bag.flat // self.d_sae).int()
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            tail.to(self.dtype), self.W, bag.latents, bag.offsets[:-1], rows, 0
        )

    def _decoder_gradient(self, tails: list[list[Tensor]], scratch: Array) -> Tensor:
        """Σ over rows of value · tail of the latent's cell."""
        grad = self._gathered_gradient(tails) if self.bags else None
        if len(self.bags) == len(self.plan.budgets):
            return grad if grad is not None else torch.zeros(self.W.shape)
        codes = torch.from_numpy(scratch).view(self.dtype)
        for bucket in range(len(self.plan.budgets)):
            if bucket in self.bags:
                continue
            self._mark(bucket, scratch)
            for tail, (a, b) in zip(tails[bucket], self.plan.groups, strict=True):
                product = codes[:, a:b].T @ tail.to(self.dtype)
                if grad is None and len(product) == self.d_sae:
                    grad = product.float()
                    continue
                grad = torch.zeros(self.W.shape) if grad is None else grad
                grad[a:b] += product
        return grad if grad is not None else torch.zeros(self.W.shape)

    def _gathered_gradient(self, tails: list[list[Tensor]]) -> Tensor:
        """All gathered buckets at once: hits sorted by latent, one bag for each latent over a table of tails."""
        wide, small = len(self.plan.widths), sorted(self.bags)
        stacked = [tails[bucket][group] for bucket in small for group in range(wide)]
        table = torch.stack([tail.to(self.dtype) for tail in stacked], dim=1).flatten(0, 1)
        columns, shift = len(stacked), int(len(table) - 1).bit_length()
        # Latent, place in the table and value in one integer: one sort puts all three in order.
        value_bits = 8 * self.bits.itemsize
        packed = (self.d_sae << shift) < 2 ** (KEY_BITS - value_bits)
        low = value_bits if packed else 0
        kept = []
        for number, bucket in enumerate(small):
            hits, offsets = self.chosen.hits[bucket], self.bags[bucket].offsets
            places = np.arange(self.batch)[:, None] * columns + number * wide + np.arange(wide)
            key = hits.latents.astype(np.int64) << (shift + low)
            key |= np.repeat(places.ravel() << low, np.diff(offsets.numpy()))
            if packed:
                key |= hits.values
            kept.append(key)
        order = kept[0] if len(kept) == 1 else np.concatenate(kept)
        if packed:
            order.sort()
            bits = order.astype(self.bits.dtype)  # the lowest bits
        else:
            turn = np.argsort(order)
            order = order[turn]
            bits = np.concatenate([self.chosen.hits[bucket].values for bucket in small])[turn]
        edges = np.searchsorted(order, np.arange(self.d_sae + 1) << (shift + low))
        order >>= low
        order &= (1 << shift) - 1
        kind = np.int32 if len(order) < 2**31 else np.int64
        places, offsets = torch.from_numpy(order.astype(kind)), torch.from_numpy(edges.astype(kind))
        return gathered(places, offsets, torch.from_numpy(bits).view(self.dtype), table, torch.float32)


def _merge(bits: Array, plan: Plan) -> tuple[Plan, bool]:
    """Budgets that differ on this batch, and whether the last of them takes everything positive.

    A budget at or above the largest number of positives selects them all, as does every larger one: they are one level
    with the sum of their weights.
    """
    rows, d_sae = bits.shape
    budgets = plan.budgets
    if budgets[-1] * 16 <= d_sae and plan.selection == "row":
        return plan, False  # not worth counting; a row with fewer positives is handled all the same
    counts = count_positive(bits)
    most = -(-int(counts.sum()) // rows) if plan.selection == "batch" else int(counts.max())
    for number, k in enumerate(budgets):
        if k >= most:
            merged = plan.merged(number + 1)
            before = budgets[number - 1] if number else 0
            return replace(merged, budgets=(*budgets[:number], max(most, before + 1))), True
    return plan, False
