"""The shuffled order of an epoch, and how the processes of a training run share it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 256 * 1024
"""A block is read in one go; this much is read at the speed of a sequential read."""
BUFFER_BYTES = 256 * 1024 * 1024
"""Blocks that are shuffled together, row by row. Two such buffers are held at a time."""
LANES = 192
"""Parts of a large buffer that are dealt out in turn. Divisible by the numbers of processes that are common."""


class ShuffledOrder:
    """The order in which an epoch sees `rows` rows: a function of the arguments and nothing else.

    Blocks of neighbouring rows are put in random order, a buffer is filled with the next blocks, and its rows
    are put in random order. A store of fewer than `LANES` blocks is therefore shuffled completely.

    A buffer of more is cut into `LANES` lanes, each is shuffled by itself, and the order takes one row of each
    lane in turn. So every batch holds rows of all lanes, and n processes that each train on every n-th row of it read
    the n-th part of the lanes: disjoint ones, if n divides `LANES`.

    `share=(i, n)` leaves only what process i of n reads; positions are then counted in its own rows.
    """

    def __init__(
        self, rows: int, *, seed: int, epoch: int, block_rows: int, buffer_rows: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.rows = rows
        self._seed, self._epoch, self._block_rows = seed, epoch, block_rows
        self._index, self.shares = share
        blocks = -(-rows // block_rows)
        self._blocks = self._random(0).permutation(blocks)
        self._blocks_per_buffer = max(buffer_rows // block_rows, 1)
        sizes = np.minimum(self._blocks * block_rows + block_rows, rows) - self._blocks * block_rows
        ends = np.cumsum(sizes)
        last = np.append(np.arange(self._blocks_per_buffer, blocks, self._blocks_per_buffer), blocks) - 1
        self._starts = np.concatenate([[0], ends[last]]) if blocks else np.zeros(1, dtype=np.int64)
        self.starts = (self._starts - self._index + self.shares - 1) // self.shares
        """Where each buffer begins in the order, and the number of rows at the end."""

    @property
    def buffers(self) -> int:
        """How many buffers there are."""
        return len(self.starts) - 1

    def runs(self, buffer: int) -> list[tuple[int, int]]:
        """The rows of a buffer that have to be read, as ascending runs, neighbouring blocks joined."""
        runs = self._runs(buffer)
        offsets = np.concatenate([[0], np.cumsum([stop - start for start, stop in runs])])
        wanted = []
        for first, end in self._spans(buffer):
            low = int(np.searchsorted(offsets, first, side="right")) - 1
            for (start, stop), offset in zip(runs[low:], offsets[low:], strict=False):
                if offset >= end:
                    break
                wanted.append((start + max(first - int(offset), 0), min(stop, start + end - int(offset))))
        return wanted

    def places(self, buffer: int) -> np.ndarray:
        """Position in the rows of `runs`, in the order of the epoch."""
        spans = np.array(self._spans(buffer))
        before = np.concatenate([[0], np.cumsum(spans[:, 1] - spans[:, 0])])
        mine = self._mine(buffer)
        span = np.searchsorted(spans[:, 0], mine, side="right") - 1
        return before[span] + mine - spans[span, 0]

    def row_numbers(self, buffer: int) -> np.ndarray:
        """Row numbers of a buffer in the order of the epoch."""
        rows = np.concatenate([np.arange(start, stop) for start, stop in self._runs(buffer)])
        return rows[self._mine(buffer)]

    def _mine(self, buffer: int) -> np.ndarray:
        return self._permutation(buffer)[self._phase(buffer) :: self.shares]

    def _phase(self, buffer: int) -> int:
        """The first position of the buffer that is this share's."""
        return int((self._index - self._starts[buffer]) % self.shares)

    def _size(self, buffer: int) -> int:
        return int(self._starts[buffer + 1] - self._starts[buffer])

    def _lanes(self, buffer: int) -> int:
        first = buffer * self._blocks_per_buffer
        return LANES if len(self._blocks[first : first + self._blocks_per_buffer]) >= LANES else 1

    def _spans(self, buffer: int) -> list[tuple[int, int]]:
        """The stretches of the buffer's ascending rows that hold this share's."""
        lanes, size = self._lanes(buffer), self._size(buffer)
        length = size // lanes
        common = math.gcd(lanes, self.shares)
        taken = range(self._phase(buffer) % common, lanes, common)
        spans = [(lane * length, (lane + 1) * length) for lane in taken]
        # What the lanes leave, fewer rows than there are lanes, is read by all.
        return spans if lanes * length == size else [*spans, (lanes * length, size)]

    def _permutation(self, buffer: int) -> np.ndarray:
        """Position in the ascending rows of the buffer, in the order of the epoch of all shares."""
        lanes, size = self._lanes(buffer), self._size(buffer)
        random = self._random(buffer + 1)
        if lanes == 1:
            return random.permutation(size)
        length = size // lanes
        dealt = random.permuted(np.tile(np.arange(length), (lanes, 1)), axis=1) + np.arange(lanes)[:, None] * length
        return np.concatenate([dealt.T.ravel(), np.arange(lanes * length, size)])

    def _runs(self, buffer: int) -> list[tuple[int, int]]:
        first = buffer * self._blocks_per_buffer
        blocks = np.sort(self._blocks[first : first + self._blocks_per_buffer])
        breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
        joined = np.split(blocks, breaks)
        size = self._block_rows
        return [(int(run[0]) * size, min((int(run[-1]) + 1) * size, self.rows)) for run in joined]

    def _random(self, stream: int) -> np.random.Generator:
        sequence = np.random.SeedSequence(entropy=self._seed % 2**64, spawn_key=(self._epoch, stream))
        return np.random.Generator(np.random.PCG64(sequence))


def order_of_epoch(
    rows: int, *, row_bytes: int, seed: int, epoch: int, share: tuple[int, int] = (0, 1)
) -> ShuffledOrder:
    """The order for rows of a width and dtype; the same whether or not the rows fit into memory."""
    block_rows = min(max(BLOCK_BYTES // row_bytes, 16), 4096)
    buffer_rows = max(BUFFER_BYTES // row_bytes, block_rows)
    return ShuffledOrder(rows, seed=seed, epoch=epoch, block_rows=block_rows, buffer_rows=buffer_rows, share=share)


Take = Callable[[int, int], Tensor]
"""Rows `start … stop-1` of a buffer, in the order of the epoch, as stored, on the device."""


def iterate_batches(
    order: ShuffledOrder, batch_rows: int, *, skip: int, open_buffer: Callable[[int], Take], ahead: bool
) -> Iterator[Tensor]:
    """Full batches of an epoch in float32, or a share of each.

    Args:
        order: The order of the rows.
        batch_rows: Rows of a batch of all shares together; a shorter store gives one batch of all its rows.
        skip: Batches to leave out at the start, without reading them.
        open_buffer: Reads a buffer and returns how to take rows from it.
        ahead: Read the next buffer in a thread while this one is used.
    """
    batch_rows = min(batch_rows, order.rows)
    batches = order.rows // batch_rows if batch_rows else 0
    if skip >= batches:
        return
    batch_rows //= order.shares
    position, end = skip * batch_rows, batches * batch_rows
    pieces: list[Tensor] = []
    missing = batch_rows
    with _Buffers(order, open_buffer, first=position, end=end, ahead=ahead) as buffers:
        for number, take in buffers:
            start, stop = int(order.starts[number]), min(int(order.starts[number + 1]), end)
            while position < stop:
                count = min(missing, stop - position)
                pieces.append(take(position - start, position - start + count))
                position += count
                missing -= count
                if not missing:
                    batch = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                    pieces, missing = [], batch_rows
                    yield batch.float()
            del take


class _Buffers:
    """The buffers from row `first` of the order to row `end`, opened one ahead."""

    def __init__(
        self, order: ShuffledOrder, open_buffer: Callable[[int], Take], *, first: int, end: int, ahead: bool
    ) -> None:
        low = int(np.searchsorted(order.starts, first, side="right")) - 1
        high = int(np.searchsorted(order.starts, end, side="left"))
        self._numbers = range(low, high)
        self._open = open_buffer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nb_sae-rows") if ahead else None

    def __enter__(self) -> Iterator[tuple[int, Take]]:
        return self._iterate()

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _iterate(self) -> Iterator[tuple[int, Take]]:
        if self._pool is None:
            for number in self._numbers:
                yield number, self._open(number)
            return
        coming = self._pool.submit(self._open, self._numbers[0])
        for number in self._numbers:
            take = coming.result()
            if number + 1 in self._numbers:
                coming = self._pool.submit(self._open, number + 1)
            yield number, take


def open_resident(order: ShuffledOrder, resident: Tensor) -> Callable[[int], Take]:
    """Take rows from a tensor that holds them all."""

    def open_buffer(number: int) -> Take:
        rows = torch.from_numpy(order.row_numbers(number)).to(resident.device)
        return lambda start, stop: resident.index_select(0, rows[start:stop])

    return open_buffer


def open_streamed(
    order: ShuffledOrder, read_runs: Callable[[Sequence[tuple[int, int]]], Tensor], *, device: torch.device
) -> Callable[[int], Take]:
    """Take rows from a buffer that is filled by sequential reads."""

    def open_buffer(number: int) -> Take:
        rows = read_runs(order.runs(number))
        rows = rows.to(device)
        places = torch.from_numpy(order.places(number)).to(device)
        return lambda start, stop: rows.index_select(0, places[start:stop])

    return open_buffer
