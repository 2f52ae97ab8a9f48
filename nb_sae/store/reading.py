"""How rows are read back: memory-mapped shards, selections of them, and the shuffled order of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nb_sae.atomic import FileMark
from nb_sae.errors import ConfigError, CorruptShardError, NotEnoughMemoryError
from nb_sae.machine import memory_bytes
from nb_sae.store.files import DTYPES, check_content, map_tensor
from nb_sae.store.manifest import Shard

BLOCK_BYTES = 256 * 1024
"""A block is read in one go; this much is read at the speed of a sequential read."""
BUFFER_BYTES = 256 * 1024 * 1024
"""Blocks that are shuffled together, row by row. Two such buffers are held at a time."""
RESIDENT_BYTES_CAP = 2 * 1024**3
"""On the CPU: beyond this the page cache serves as well as a copy."""
RESIDENT_SHARE = 0.25
_READ_ROWS = 16_384


class RowReader(Protocol):
    """Rows by number, in the dtype they are stored in."""

    rows: int
    d_in: int
    dtype: torch.dtype
    in_memory: bool

    def read_range(self, start: int, stop: int) -> Tensor:
        """Rows `start … stop-1`; may share memory with the store, so callers never write to it."""
        ...

    def read(self, rows: np.ndarray) -> Tensor:
        """A copy of the rows with these numbers, in this order."""
        ...


class TensorReader:
    """Rows of one tensor, in memory or memory-mapped."""

    def __init__(self, x: Tensor, *, in_memory: bool) -> None:
        self.x = x
        self.rows, self.d_in = x.shape
        self.dtype = x.dtype
        self.in_memory = in_memory

    def read_range(self, start: int, stop: int) -> Tensor:
        """See `RowReader`."""
        return self.x[start:stop]

    def read(self, rows: np.ndarray) -> Tensor:
        """See `RowReader`."""
        return self.x.index_select(0, torch.from_numpy(rows))


class ShardReader:
    """Rows of memory-mapped shards; each shard's checksum is compared when it is first touched."""

    in_memory = False

    def __init__(self, folder: Path, shards: Sequence[Shard], *, d_in: int, dtype: str) -> None:
        self._folder = folder
        self._shards = shards
        self._starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards], dtype=np.int64)])
        self._mapped: list[Tensor | None] = [None] * len(shards)
        self.rows = int(self._starts[-1])
        self.d_in = d_in
        self.dtype = DTYPES[dtype]

    def read_range(self, start: int, stop: int) -> Tensor:
        """See `RowReader`."""
        pieces = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for number in range(max(first, 0), len(self._shards)):
            base = int(self._starts[number])
            if base >= stop:
                break
            piece = self._shard(number)[max(start - base, 0) : stop - base]
            if len(piece):
                pieces.append(piece)
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces) if pieces else torch.empty(0, self.d_in, dtype=self.dtype)

    def read(self, rows: np.ndarray) -> Tensor:
        """See `RowReader`."""
        out = torch.empty(len(rows), self.d_in, dtype=self.dtype)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(owners):
            where = np.flatnonzero(owners == number)
            local = torch.from_numpy(rows[where] - self._starts[number])
            if len(where) == len(rows):
                return self._shard(int(number)).index_select(0, local)
            out[torch.from_numpy(where)] = self._shard(int(number)).index_select(0, local)
        return out

    def _shard(self, number: int) -> Tensor:
        mapped = self._mapped[number]
        if mapped is None:
            shard = self._shards[number]
            path = self._folder / shard.file
            check_content(path, FileMark(shard.bytes, shard.sha256))
            mapped = map_tensor(path, "x")
            if mapped.shape != (shard.rows, self.d_in) or mapped.dtype != self.dtype:
                raise CorruptShardError(
                    f"{path} holds {tuple(mapped.shape)} of {mapped.dtype}, the manifest says "
                    f"{(shard.rows, self.d_in)} of {self.dtype}. Collect again with overwrite=True."
                )
            self._mapped[number] = mapped
        return mapped


class Selection:
    """Some rows of a reader, as ascending runs `start … stop-1`, numbered from 0."""

    def __init__(self, starts: np.ndarray, stops: np.ndarray) -> None:
        self.starts = starts.astype(np.int64)
        self.stops = stops.astype(np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self.stops - self.starts)]).astype(np.int64)

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> Selection:
        """The rows where a boolean mask holds."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
        return cls(edges[0::2], edges[1::2])

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def base(self, rows: np.ndarray) -> np.ndarray:
        """Row numbers of the reader for row numbers of the selection."""
        run = np.searchsorted(self._offsets, rows, side="right") - 1
        return self.starts[run] + rows - self._offsets[run]

    def read_range(self, reader: RowReader, start: int, stop: int) -> Tensor:
        """Rows `start … stop-1` of the selection."""
        if stop <= start:
            return reader.read_range(0, 0)
        first, last = self.base(np.array([start, stop - 1]))
        if last - first == stop - 1 - start:
            return reader.read_range(int(first), int(last) + 1)
        return reader.read(self.base(np.arange(start, stop)))


class ShuffledOrder:
    """The order in which an epoch sees `rows` rows: a function of the arguments and nothing else.

    Blocks of neighbouring rows are put in random order, a buffer is filled with the next blocks, and its rows
    are put in random order. A store that fits one buffer is therefore shuffled completely.
    """

    def __init__(self, rows: int, *, seed: int, epoch: int, block_rows: int, buffer_rows: int) -> None:
        self.rows = rows
        self._seed, self._epoch, self._block_rows = seed, epoch, block_rows
        blocks = -(-rows // block_rows)
        self._blocks = self._random(0).permutation(blocks)
        self._blocks_per_buffer = max(buffer_rows // block_rows, 1)
        sizes = np.minimum(self._blocks * block_rows + block_rows, rows) - self._blocks * block_rows
        ends = np.cumsum(sizes)
        last = np.append(np.arange(self._blocks_per_buffer, blocks, self._blocks_per_buffer), blocks) - 1
        self.starts = np.concatenate([[0], ends[last]]) if blocks else np.zeros(1, dtype=np.int64)
        """Where each buffer begins in the order, and the number of rows at the end."""

    @property
    def buffers(self) -> int:
        """How many buffers there are."""
        return len(self.starts) - 1

    def runs(self, buffer: int) -> list[tuple[int, int]]:
        """The rows of a buffer as ascending runs, neighbouring blocks joined."""
        first = buffer * self._blocks_per_buffer
        blocks = np.sort(self._blocks[first : first + self._blocks_per_buffer])
        breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
        joined = np.split(blocks, breaks)
        size = self._block_rows
        return [(int(run[0]) * size, min((int(run[-1]) + 1) * size, self.rows)) for run in joined]

    def permutation(self, buffer: int) -> np.ndarray:
        """Position in the ascending rows of the buffer, in the order of the epoch."""
        size = int(self.starts[buffer + 1] - self.starts[buffer])
        return self._random(buffer + 1).permutation(size)

    def row_numbers(self, buffer: int) -> np.ndarray:
        """Row numbers of a buffer in the order of the epoch."""
        rows = np.concatenate([np.arange(start, stop) for start, stop in self.runs(buffer)])
        return rows[self.permutation(buffer)]

    def _random(self, stream: int) -> np.random.Generator:
        sequence = np.random.SeedSequence(entropy=self._seed % 2**64, spawn_key=(self._epoch, stream))
        return np.random.Generator(np.random.PCG64(sequence))


def order_of_epoch(rows: int, *, row_bytes: int, seed: int, epoch: int) -> ShuffledOrder:
    """The order for rows of a width and dtype; the same whether or not the rows fit into memory."""
    block_rows = min(max(BLOCK_BYTES // row_bytes, 16), 4096)
    return ShuffledOrder(
        rows, seed=seed, epoch=epoch, block_rows=block_rows, buffer_rows=max(BUFFER_BYTES // row_bytes, block_rows)
    )


Take = Callable[[int, int], Tensor]
"""Rows `start … stop-1` of a buffer, in the order of the epoch, as stored, on the device."""


def iterate_batches(
    order: ShuffledOrder, batch_rows: int, *, skip: int, open_buffer: Callable[[int], Take], ahead: bool
) -> Iterator[Tensor]:
    """Full batches of an epoch in float32.

    Args:
        order: The order of the rows.
        batch_rows: Rows of a batch; a shorter store gives one batch of all its rows.
        skip: Batches to leave out at the start, without reading them.
        open_buffer: Reads a buffer and returns how to take rows from it.
        ahead: Read the next buffer in a thread while this one is used.
    """
    batch_rows = min(batch_rows, order.rows)
    batches = order.rows // batch_rows if batch_rows else 0
    if skip >= batches:
        return
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
    order: ShuffledOrder,
    read_range: Callable[[int, int], Tensor],
    *,
    d_in: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[int], Take]:
    """Take rows from a buffer that is filled by sequential reads."""

    def open_buffer(number: int) -> Take:
        rows = torch.empty(int(order.starts[number + 1] - order.starts[number]), d_in, dtype=dtype)
        filled = 0
        for first, end in order.runs(number):
            for start in range(first, end, _READ_ROWS):
                piece = read_range(start, min(start + _READ_ROWS, end))
                rows[filled : filled + len(piece)] = piece
                filled += len(piece)
        rows = rows.to(device)
        places = torch.from_numpy(order.permutation(number)).to(device)
        return lambda start, stop: rows.index_select(0, places[start:stop])

    return open_buffer


def resident_budget(device: torch.device) -> int:
    """Bytes of rows that may be kept on a device: a quarter of what it has (GPU: of what is free)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * RESIDENT_SHARE)
    return min(int(memory_bytes() * RESIDENT_SHARE), RESIDENT_BYTES_CAP)


def check_fits(rows: int, d_in: int) -> None:
    """Refuse to put more rows into memory at once than the machine can hold."""
    need = rows * d_in * 4
    if need > memory_bytes():
        raise NotEnoughMemoryError(
            f"{rows:,} rows of {d_in} in float32 need {need / 1e9:,.1f} GB, the machine has "
            f"{memory_bytes() / 1e9:,.1f} GB. Read them in pieces with chunks() or batches()."
        )


def check_batch_rows(name: str, value: int) -> None:
    """Refuse a number of rows below 1."""
    if value < 1:
        raise ConfigError(f"{name}={value} is below 1. Give the number of rows of a batch or chunk, for example 4096.")
