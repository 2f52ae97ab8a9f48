"""Exact nested selection on a processor: NumPy partitions the bits of the values, several times faster than a top-k.

The bits of a float above 0, read as an integer, order as the floats do. Sorting and partitioning of integers is
vectorised in NumPy (AVX-512, AVX2), releases the interpreter's lock, and is therefore spread over threads by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
"""Floats that are handled, and the integers that their bits are read as."""

NOTHING = np.iinfo(np.int64).max
"""Stands for the smallest value where there is none."""

Array = np.ndarray[Any, Any]


BLOCK_ROWS = 64
"""Rows handled at once, so that what is made of them stays in the second-level cache."""


@dataclass(frozen=True)
class Hits:
    """The latents that one bucket selects.

    Attributes:
        latents: Latent numbers, row after row, ascending within a row where widths are nested.
        values: Bits of their values; 0 stands for a place that is left empty.
        edges: `(batch + 1,)` where rows begin.
    """

    latents: Array
    values: Array
    edges: Array


@dataclass(frozen=True)
class Selected:
    """Nested selection with exactly k positive latents per row (or k · rows in the batch), if there are so many.

    Attributes:
        hits: Latents of each bucket that was asked for as a list.
        first: `(batch, d_sae)` uint8: the bucket that selects a latent, for the other buckets; else another number.
        limits: Smallest positive value selected within each budget, as bits; 0 where there is none.
    """

    hits: dict[int, Hits]
    first: Array
    limits: list[int]


def by_rows(function: Callable[[slice], Any], rows: int) -> list[Any]:
    """Run a function on as many parts of the rows as torch uses threads, each in a thread of its own."""
    threads = min(torch.get_num_threads(), rows)
    edges = np.linspace(0, rows, threads + 1).astype(int).tolist()
    parts = [slice(start, stop) for start, stop in pairwise(edges)]
    if threads <= 1:
        return [function(parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, parts))


def float_bits(pre: Tensor) -> Array:
    """Bits of floats as integers, not copied: above 0 where the float is, and then in its order."""
    return pre.contiguous().view(BITS[pre.dtype]).numpy()


def count_positive(bits: Array) -> Array:
    """Positive latents of each row."""
    positive = bits > 0
    return np.array([np.count_nonzero(row) for row in positive])  # without an axis it is vectorised


def select(
    bits: Array, budgets: Sequence[int], *, listed: Sequence[int], everything: bool, batch: bool, ascending: bool
) -> Selected:
    """Nested selection; of equal values the earlier latent is taken.

    Args:
        bits: What `float_bits` gives.
        budgets: Ascending.
        listed: Buckets that are wanted as lists; the others are marked in `first`.
        everything: The last budget takes all that is positive, however much that is.
        batch: Budgets hold for the batch, not for each row.
        ascending: Lists ascend within a row.
    """
    none = len(budgets)
    first = np.empty(bits.shape if batch or len(listed) < none else (0, 0), dtype=np.uint8)
    if batch:
        limits = _by_value(bits, first, budgets, everything)
        hits = {bucket: _found(bits, first, bucket) for bucket in listed}
        return Selected(hits, first, _limits([limits]))
    added = {bucket: budgets[bucket] - (budgets[bucket - 1] if bucket else 0) for bucket in listed}
    latents = {bucket: np.empty((len(bits), many), dtype=np.int32) for bucket, many in added.items()}
    values = {bucket: np.empty((len(bits), many), dtype=bits.dtype) for bucket, many in added.items()}
    work = _Rows(bits, first, budgets, everything, ascending, latents, values)
    limits = _limits([found for part in by_rows(work, len(bits)) for found in part])
    edges = {bucket: np.arange(len(bits) + 1) * many for bucket, many in added.items()}
    return Selected({b: Hits(latents[b].ravel(), values[b].ravel(), edges[b]) for b in listed}, first, limits)


def strongest(
    seen: Tensor, many: int, *, without: Sequence[Tensor] = (), ordered: bool = False
) -> tuple[Tensor, Tensor]:
    """The `many` largest of each row, as values above or equal to 0 and as latent numbers; `seen` is used up.

    Args:
        seen: `(batch, d_sae)`.
        many: How many of each row.
        without: Latent numbers, `(batch, …)` each, that are not taken again.
        ordered: Strongest first.
    """
    taken = torch.cat(list(without), dim=1) if without else None
    if seen.device.type != "cpu" or seen.dtype not in BITS or torch.compiler.is_compiling():
        if taken is not None:
            seen.scatter_(1, taken, -torch.inf)
        values, indices = torch.topk(seen, many, dim=-1, sorted=ordered)
        return values.relu(), indices
    signed = seen.contiguous().view(BITS[seen.dtype])
    if taken is not None:
        signed.scatter_(1, taken, torch.iinfo(signed.dtype).min)  # as a float −0: below every other number's bits
    bits, (batch, d_sae) = signed.numpy(), seen.shape
    shift, kind = _packing(bits)
    numbers = np.arange(d_sae - 1, -1, -1, dtype=kind)
    latents, values = np.empty((batch, many), dtype=np.int64), np.empty((batch, many), dtype=bits.dtype)

    def take(part: slice) -> None:
        room = np.empty((min(BLOCK_ROWS, part.stop - part.start), d_sae), dtype=kind)
        for start in range(part.start, part.stop, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, part.stop))
            keys = room[: rows.stop - start]
            np.copyto(keys, bits[rows])
            np.left_shift(keys, shift, out=keys)
            np.bitwise_or(keys, numbers, out=keys)
            if many < d_sae:
                keys.partition(d_sae - many, axis=1)
            best = keys[:, d_sae - many :]
            if ordered:
                best = np.sort(best, axis=1)[:, ::-1]
            np.subtract(d_sae - 1, best & ((1 << shift) - 1), out=latents[rows])
            np.maximum(best >> shift, 0, out=values[rows], casting="unsafe")

    by_rows(take, batch)
    return torch.from_numpy(values).view(seen.dtype), torch.from_numpy(latents)


def _packing(bits: Array) -> tuple[int, type[np.signedinteger[Any]]]:
    """Bits of the latent number in an integer that also holds the value, and that integer's kind."""
    short = bits.itemsize == 2 and bits.shape[1] <= 2**16
    return (16, np.int32) if short else (32, np.int64)


def _limits(found: Sequence[Sequence[int]]) -> list[int]:
    return [least if least < NOTHING else 0 for least in (min(column) for column in zip(*found, strict=True))]


def _smallest(bits: Array) -> int:
    """The smallest number above 0; NOTHING if there is none."""
    wrapped = bits.view(np.dtype(f"u{bits.itemsize}")) - np.dtype(f"u{bits.itemsize}").type(1)  # 0 becomes the largest
    least = int(wrapped.min()) + 1
    return least if least <= np.iinfo(bits.dtype).max else NOTHING


class _Rows:
    """Selection in one block of rows. Value and latent make one integer: none are equal, so thresholds settle ties."""

    def __init__(
        self,
        bits: Array,
        first: Array,
        budgets: Sequence[int],
        everything: bool,
        ascending: bool,
        latents: dict[int, Array],
        values: dict[int, Array],
    ) -> None:
        self.bits, self.first, self.budgets = bits, first, budgets
        self.everything, self.ascending = everything, ascending
        self.latents, self.values = latents, values
        d_sae = bits.shape[1]
        self.shift, self.kind = _packing(bits)
        self.numbers = np.arange(d_sae - 1, -1, -1, dtype=self.kind)

    def __call__(self, part: slice) -> list[list[int]]:
        size, d_sae = min(BLOCK_ROWS, part.stop - part.start), self.bits.shape[1]
        # Room for one block, used again for the next: fresh memory costs more than what is done with it.
        room = np.empty((2, size, d_sae), dtype=self.kind), np.empty((2, size, d_sae), dtype=bool)
        starts = range(part.start, part.stop, size)
        return [self._block(slice(start, min(start + size, part.stop)), *room) for start in starts]

    def _block(self, rows: slice, numbers: Array, marks: Array) -> list[int]:
        budgets, d_sae = self.budgets, self.bits.shape[1]
        bits, none = self.bits[rows], len(budgets)
        marked = [bucket for bucket in range(none) if bucket not in self.latents]
        (keys, ordered), (mine, other) = numbers[:, : len(bits)], marks[:, : len(bits)]
        np.maximum(bits, 0, out=keys)
        np.left_shift(keys, self.shift, out=keys)
        np.bitwise_or(keys, self.numbers, out=keys)
        if marked:
            np.copyto(ordered, keys)
        else:
            ordered = keys
        low = 0
        edges = np.zeros((none, len(bits)), dtype=self.kind)  # the smallest key of each budget
        for bucket in reversed(range(none)):
            if self.everything and bucket == none - 1 and bucket in marked:
                continue  # no partition: its edge is the smallest positive value
            if budgets[bucket] < d_sae:  # each partition works on what the one before it kept
                place = d_sae - budgets[bucket]
                ordered[:, low:].partition(place - low, axis=1)
                low = place
                edges[bucket] = ordered[:, low]
        for bucket in self.latents:
            stop = d_sae - (budgets[bucket - 1] if bucket else 0)
            self._write(bucket, rows, ordered[:, d_sae - budgets[bucket] : stop])
        if marked:
            first = self.first[rows]
            first.fill(none)
            for bucket in marked:
                np.greater_equal(keys, np.maximum(edges[bucket], 1 << self.shift)[:, None], out=mine)
                if bucket:
                    np.less(keys, edges[bucket - 1][:, None], out=other)
                    np.logical_and(mine, other, out=mine)
                np.multiply(mine.view(np.uint8), np.uint8(none - bucket), out=other.view(np.uint8))
                np.subtract(first, other.view(np.uint8), out=first)
        return [self._least(edges[bucket] >> self.shift, bits) for bucket in range(none)]

    def _write(self, bucket: int, rows: slice, keys: Array) -> None:
        shift = self.shift
        latents = self.bits.shape[1] - 1 - (keys & ((1 << shift) - 1))
        values = keys >> shift
        if self.ascending:
            pairs = (latents << shift) | values
            pairs.sort(axis=1)
            latents, values = pairs >> shift, pairs & ((1 << shift) - 1)
        self.latents[bucket][rows] = latents
        self.values[bucket][rows] = values

    @staticmethod
    def _least(limit: Array, bits: Array) -> int:
        """Smallest positive value selected: the threshold, or in rows with too few, the smallest positive one."""
        least = int(limit.min())
        if least > 0:
            return least
        closed = limit[limit > 0]
        least = int(closed.min()) if len(closed) else NOTHING
        return min(least, _smallest(bits[limit == 0]))


def _by_value(bits: Array, first: Array, budgets: Sequence[int], everything: bool) -> list[int]:
    """Mark the buckets of a whole batch from the values alone; what ties at a threshold is looked at one by one."""
    rows, none = len(bits), len(budgets)
    first.fill(none)
    flat, marks = bits.ravel(), first.ravel()
    bounded = [bucket for bucket in range(none) if not (everything and bucket == none - 1)]
    positive = flat[flat > 0]
    limits = [NOTHING] * none
    ordered, low = positive.copy(), 0
    cuts: dict[int, int] = {}
    for bucket in reversed(bounded):
        place = len(positive) - budgets[bucket] * rows
        if place > 0:
            ordered[low:].partition(place - low)
            low = place
            cuts[bucket] = int(ordered[low])
    for bucket in range(none):
        cut = cuts.get(bucket)
        mine = flat >= (1 if cut is None else cut)
        if cut is not None:
            surplus = int(np.count_nonzero(mine)) - budgets[bucket] * rows
            mine[np.flatnonzero(flat == cut)[::-1][:surplus]] = False
        limits[bucket] = _smallest(bits) if cut is None else cut
        np.subtract(marks, mine.view(np.uint8), out=marks)
    return limits


def _found(bits: Array, first: Array, bucket: int) -> Hits:
    flat = np.flatnonzero(first == bucket)
    rows, d_sae = bits.shape
    edges = np.searchsorted(flat, np.arange(rows + 1) * d_sae)
    return Hits((flat % d_sae).astype(np.int32), bits.ravel().take(flat), edges)
