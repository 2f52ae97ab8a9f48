"""How rows are read back: memory-mapped shards and selections of them. Their shuffled order is `order`'s."""

from __future__ import annotations

from collections.abc import Sequence
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

RESIDENT_BYTES_CAP = 2 * 1024**3
"""On the CPU: beyond this the page cache serves as well as a copy."""
RESIDENT_SHARE = 0.25


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

    def parts(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Runs of rows of the reader that rows `start … stop-1` of the selection are."""
        if stop <= start:
            return []
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        found = []
        while first < len(self.starts) and self._offsets[first] < stop:
            shift = int(self.starts[first] - self._offsets[first])
            found.append(
                (max(start, int(self._offsets[first])) + shift, min(stop, int(self._offsets[first + 1])) + shift)
            )
            first += 1
        return found

    def read_range(self, reader: RowReader, start: int, stop: int) -> Tensor:
        """Rows `start … stop-1` of the selection."""
        if stop <= start:
            return reader.read_range(0, 0)
        first, last = self.base(np.array([start, stop - 1]))
        if last - first == stop - 1 - start:
            return reader.read_range(int(first), int(last) + 1)
        return reader.read(self.base(np.arange(start, stop)))


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


def check_share(batch_rows: int, share: tuple[int, int]) -> None:
    """Refuse a share that there is not, or batches that cannot be shared out evenly."""
    index, count = share
    if not 0 <= index < count:
        raise ConfigError(f"share={share} does not exist. Give (i, n) with i from 0 to n - 1.")
    if batch_rows % count:
        raise ConfigError(
            f"A batch of {batch_rows:,} rows cannot be shared out evenly among {count} processes. Give a multiple of "
            f"{count} as TrainConfig.batch_rows, at most the rows of the store."
        )
