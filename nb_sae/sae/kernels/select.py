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

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Selected:
    """Which budget first selects each positive latent.

    Attributes:
        bits: `(batch, d_sae)` bits of relu(pre).
        first: `(batch, d_sae)` uint8: the first bucket that selects it; a larger number where it is selected by none
            or not positive.
        limits: Smallest positive value selected within each bucket's budget, as bits; 0 where there is none.
    """

    bits: Array
    first: Array
    limits: list[int]


def by_rows(function: Callable[[slice], Any], rows: int) -> list[Any]:
    """Run a function on blocks of rows, one thread each; it must let go of the interpreter's lock to gain."""
    threads = min(torch.get_num_threads(), rows)
    if threads <= 1:
        return [function(slice(0, rows))]
    edges = np.linspace(0, rows, threads + 1).astype(int).tolist()
    blocks = [slice(start, stop) for start, stop in pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, blocks))


def positive_bits(pre: Tensor) -> Array:
    """Bits of relu(pre) as integers, 0 where pre is not positive. A NaN becomes the largest number of all."""
    integers = pre.contiguous().view(BITS[pre.dtype])
    return integers.clamp_min(0).numpy()


def count_positive(bits: Array) -> Array:
    """Positive latents of each row."""
    counts = np.empty(len(bits), dtype=np.int64)

    def block(rows: slice) -> None:
        counts[rows] = np.count_nonzero(bits[rows], axis=1)

    by_rows(block, len(bits))
    return counts


def select(bits: Array, budgets: Sequence[int], *, everything: bool, batch: bool) -> Selected:
    """Nested selection with exactly k latents per row (or k · rows in the batch) in every budget.

    Of equal values the earlier latent is taken. `everything`: the last budget takes all that is positive.
    """
    rows, d_sae = bits.shape
    bounded = list(budgets[:-1] if everything else budgets)
    first = np.full(bits.shape, len(budgets), dtype=np.uint8)
    lines, marks = (bits.reshape(1, -1), first.reshape(1, -1)) if batch else (bits, first)
    counts = [k * rows for k in bounded] if batch else bounded
    # Value and latent in one integer: no two are equal, so that thresholds settle ties too.
    keyed = not batch and bits.itemsize == 2 and d_sae <= 2**16
    work = _mark_keyed if keyed else _mark_by_value

    def block(part: slice) -> list[int]:
        here, there = lines[part], marks[part]
        if everything:
            np.subtract(there, here > 0, out=there, casting="unsafe")
        return work(here, there, counts)

    found = np.array(by_rows(block, len(lines)), dtype=np.int64)
    limits = found.min(axis=0, initial=np.iinfo(np.int64).max).tolist()
    if everything:
        limits.append(_smallest(bits))
    largest = np.iinfo(np.int64).max
    return Selected(bits, first, [0 if limit == largest else int(limit) for limit in limits])


def _smallest(bits: Array) -> int:
    """The smallest number above 0; the largest int64 if there is none."""
    wrapped = bits.view(np.dtype(f"u{bits.itemsize}")) - 1  # 0 becomes the largest of all
    least = int(wrapped.min()) + 1
    return least if least <= np.iinfo(bits.dtype).max else np.iinfo(np.int64).max


def _mark_keyed(bits: Array, first: Array, counts: Sequence[int]) -> list[int]:
    """Mark buckets of each row, from keys that hold value and latent; gives the smallest value of each budget."""
    if not counts:
        return []
    d_sae = bits.shape[1]
    keys = np.left_shift(bits, 16, dtype=np.int32)
    keys |= np.arange(d_sae - 1, -1, -1, dtype=np.int32)
    limits: dict[int, Array] = {}
    ordered, low = keys.copy(), 0
    for k in sorted(counts, reverse=True):  # each partition works on what the one before it kept
        if k < d_sae:
            ordered[:, low:].partition(d_sae - k - low, axis=1)
            low = d_sae - k
            limits[k] = ordered[:, low].copy()
        else:
            limits[k] = np.zeros(len(bits), dtype=np.int32)
    smallest = []
    for k in counts:
        first -= keys >= np.maximum(limits[k], 1 << 16)[:, None]
        smallest.append(_least(limits[k] >> 16, bits))
    return smallest


def _mark_by_value(bits: Array, first: Array, counts: Sequence[int]) -> list[int]:
    """The same from the values alone; positions that tie at a threshold are looked at one by one."""
    size = bits.shape[1]
    limits: dict[int, Array] = {}
    ordered, low = bits.copy() if counts else bits, 0
    for k in sorted(counts, reverse=True):
        if k < size:
            ordered[:, low:].partition(size - k - low, axis=1)
            low = size - k
        limits[k] = ordered[:, size - min(k, size)].copy()
    smallest = []
    for k in counts:
        limit = limits[k]
        mine = bits >= np.maximum(limit, 1)[:, None]
        bounded = limit > 0
        surplus = np.count_nonzero(mine, axis=1) - k
        if np.any(surplus[bounded] > 0):
            for row in np.flatnonzero(bounded & (surplus > 0)):
                ties = np.flatnonzero(bits[row] == limit[row])
                mine[row, ties[len(ties) - surplus[row] :]] = False
        first -= mine
        smallest.append(_least(limit, bits))
    return smallest


def _least(limit: Array, bits: Array) -> int:
    """Smallest positive value selected: the threshold, or in rows that have too few, the smallest positive one."""
    open_rows = limit == 0
    closed = limit[~open_rows].min(initial=np.iinfo(limit.dtype).max) if not open_rows.all() else None
    least = np.iinfo(np.int64).max if closed is None else int(closed)
    return min(least, _smallest(bits[open_rows])) if open_rows.any() else least
