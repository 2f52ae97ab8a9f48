"""Stores that lie behind fsspec: on an object store, a web server, in memory. Nothing is memory-mapped there.

`place_of` gives a `RemotePath` for an address such as `s3://bucket/acts`, which stands in for a `pathlib.Path` wherever
a store touches its folder. Files are written whole, the manifest last. There are no locks and no free-space check, and
what a shard holds is checked by its size alone: to hash it would be to download it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nb_sae.atomic import FileMark
from nb_sae.errors import ConfigError, CorruptShardError, MissingDependencyError
from nb_sae.store.files import DTYPES
from nb_sae.store.manifest import Shard

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(?:::|://)")
_LOCAL = ("file", "local")
_GAP_BYTES = 256 * 1024
"""Two runs of rows that lie nearer to each other are fetched in one request."""
_HEADER_BYTES = 1024


def place_of(path: str | Path) -> Path:
    """The folder that a path or an address names; an address of something else than local files is a `RemotePath`.

    Raises:
        ConfigError: fsspec knows no such kind of address.
        MissingDependencyError: the package for that kind is not installed.
    """
    kind = _ADDRESS.match(str(path))
    if kind is None:
        return Path(path).expanduser()
    try:
        from fsspec.core import url_to_fs

        system, inside = url_to_fs(str(path))
    except ImportError as error:
        raise MissingDependencyError(f"{path} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be opened: {error}. Give a folder, or an address that fsspec knows."
        ) from error
    if kind[1] in _LOCAL:
        return Path(inside)
    return cast("Path", RemotePath(system, inside, str(path).rstrip("/")))


@dataclass(frozen=True)
class _Size:
    st_size: int


class RemotePath:
    """What stores use of `pathlib.Path`, over a file system of fsspec."""

    def __init__(self, system: Any, inside: str, address: str) -> None:
        self.system, self.inside, self._address = system, inside.rstrip("/"), address

    def __str__(self) -> str:
        return self._address

    def __repr__(self) -> str:
        return f"RemotePath({self._address!r})"

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.system, f"{self.inside}/{name}", f"{self._address}/{name}")

    def __lt__(self, other: RemotePath) -> bool:
        return self.inside < other.inside

    @property
    def name(self) -> str:
        """The last part."""
        return self.inside.rsplit("/", 1)[-1]

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in."""
        return RemotePath(self.system, self.inside.rpartition("/")[0], self._address.rpartition("/")[0])

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self.name.rsplit(".", 1)[0]

    def with_suffix(self, suffix: str) -> RemotePath:
        """The same with another ending."""
        change = len(self.name) - len(self.stem)
        return RemotePath(self.system, self.inside[:-change] + suffix, self._address[:-change] + suffix)

    def exists(self) -> bool:
        """Whether something is there."""
        return bool(self.system.exists(self.inside))

    def is_file(self) -> bool:
        """Whether a file is there."""
        return bool(self.system.isfile(self.inside))

    def is_dir(self) -> bool:
        """Whether files lie below it: object stores have no folders."""
        return bool(self.system.isdir(self.inside))

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def stat(self) -> _Size:
        """Its size."""
        return _Size(int(self.system.info(self.inside)["size"]))

    def read_bytes(self) -> bytes:
        """All of it."""
        return self.system.cat_file(self.inside)

    def write(self, parts: Iterable[bytes | memoryview]) -> FileMark:
        """Write a whole file; it appears when it is closed."""
        digest, size = hashlib.sha256(), 0
        with self.system.open(self.inside, "wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
                size += len(part)
        return FileMark(size, digest.hexdigest())

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies directly below."""
        self.system.invalidate_cache(self.inside)
        for one in self.system.ls(self.inside, detail=False):
            yield self / one.rstrip("/").rsplit("/", 1)[-1]

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What lies directly below with a name of a pattern."""
        return (one for one in (self.iterdir() if self.is_dir() else ()) if fnmatch.fnmatch(one.name, pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        try:
            self.system.rm_file(self.inside)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder, where the file system has such a thing."""
        del parents
        self.system.makedirs(self.inside, exist_ok=exist_ok)

    def rmdir(self) -> None:
        """Remove an empty folder."""
        self.system.rmdir(self.inside)

    def sizes(self) -> dict[str, int]:
        """Size of every file directly below, by name, in one request."""
        self.system.invalidate_cache(self.inside)
        return {
            one["name"].rsplit("/", 1)[-1]: int(one["size"] or 0) for one in self.system.ls(self.inside, detail=True)
        }


class RemoteShardReader:
    """Rows of shards that are fetched in ranges of bytes, those of a call at the same time. See `RowReader`."""

    in_memory = False

    def __init__(self, folder: RemotePath, shards: Sequence[Shard], *, d_in: int, dtype: str) -> None:
        self._folder, self._shards = folder, shards
        self._starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards], dtype=np.int64)])
        self.rows = int(self._starts[-1])
        self.d_in = d_in
        self.dtype = DTYPES[dtype]
        self._row_bytes = d_in * self.dtype.itemsize
        self._offsets: dict[int, int] = {}

    def read_range(self, start: int, stop: int) -> Tensor:
        """See `RowReader`."""
        return self.read_runs([(start, stop)])

    def read(self, rows: np.ndarray) -> Tensor:
        """See `RowReader`."""
        wanted, back = np.unique(rows, return_inverse=True)
        if not len(wanted):
            return torch.empty(0, self.d_in, dtype=self.dtype)
        pieces = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        runs = [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
        return self.read_runs(runs)[torch.from_numpy(back.reshape(-1))]

    def read_runs(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """The rows of ascending runs, one after the other."""
        out = torch.empty(sum(max(stop - start, 0) for start, stop in runs), self.d_in, dtype=self.dtype)
        fetches: list[tuple[int, int, int]] = []
        pieces: list[tuple[int, int, int, int]] = []  # which fetch, first row in it, rows, first row of `out`
        filled = 0
        for start, stop in runs:
            for shard, first, end in self._by_shard(start, stop):
                last = fetches[-1] if fetches else (-1, 0, 0)
                if last[0] == shard and (first - last[2]) * self._row_bytes <= _GAP_BYTES:
                    fetches[-1] = (shard, last[1], end)
                else:
                    fetches.append((shard, first, end))
                pieces.append((len(fetches) - 1, first - fetches[-1][1], end - first, filled))
                filled += end - first
        content = self._fetch(fetches)
        for fetch, first, count, place in pieces:
            out[place : place + count] = content[fetch][first : first + count]
        return out

    def _by_shard(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """`(shard, first row in it, last + 1)` of the parts of a run."""
        number = max(int(np.searchsorted(self._starts, start, side="right")) - 1, 0)
        while number < len(self._shards) and self._starts[number] < stop:
            base, rows = int(self._starts[number]), self._shards[number].rows
            first, end = max(start - base, 0), min(stop - base, rows)
            if end > first:
                yield number, first, end
            number += 1

    def _fetch(self, fetches: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        self._learn_offsets(sorted({shard for shard, _, _ in fetches} - set(self._offsets)))
        size = self._row_bytes
        found = self._ranges(
            [shard for shard, _, _ in fetches],
            [self._offsets[shard] + first * size for shard, first, _ in fetches],
            [self._offsets[shard] + end * size for shard, _, end in fetches],
        )
        rows = []
        for (shard, first, end), content in zip(fetches, found, strict=True):
            if len(content) != (end - first) * size:
                raise CorruptShardError(
                    f"{self._folder / self._shards[shard].file} is shorter than its manifest says. Restore it, or "
                    "collect again with overwrite=True."
                )
            # bytearray: torch wants memory that could be written to.
            rows.append(torch.frombuffer(bytearray(content), dtype=self.dtype).view(-1, self.d_in))
        return rows

    def _learn_offsets(self, shards: Sequence[int]) -> None:
        """Where the rows begin in each shard, from its header."""
        heads = self._ranges(shards, [0] * len(shards), [_HEADER_BYTES] * len(shards))
        for number, head in zip(shards, heads, strict=True):
            shard = self._shards[number]
            try:
                (length,) = struct.unpack("<Q", head[:8])
                entry = json.loads(head[8 : 8 + length])["x"]
                begin, end = entry["data_offsets"]
                right = entry["shape"] == [shard.rows, self.d_in] and end - begin == shard.rows * self._row_bytes
            except (struct.error, ValueError, KeyError, TypeError) as error:
                raise CorruptShardError(
                    f"{self._folder / shard.file} is not a shard ({error!r}). Restore it."
                ) from error
            if not right:
                raise CorruptShardError(
                    f"{self._folder / shard.file} holds {entry['shape']}, the manifest says "
                    f"{[shard.rows, self.d_in]}. Collect again with overwrite=True."
                )
            self._offsets[number] = 8 + length + begin

    def _ranges(self, shards: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        paths = [(self._folder / self._shards[shard].file).inside for shard in shards]
        ends = [min(end, self._shards[shard].bytes) for shard, end in zip(shards, ends, strict=True)]
        found = self._folder.system.cat_ranges(paths, list(starts), ends, on_error="return") if paths else []
        for shard, content in zip(shards, found, strict=True):
            if isinstance(content, BaseException):
                raise CorruptShardError(
                    f"{self._folder / self._shards[shard].file} cannot be read ({content!r}). Restore it, or check the "
                    "connection."
                ) from content
        return found
