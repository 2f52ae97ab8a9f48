"""Write and read the files of a store: atomically, with checksums, and memory-mapped.

Every file is written under a temporary name in its own folder, synced and renamed, so that a kill at any point
leaves what was finished readable. Also the statistics of rows, as they are kept beside them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from nb_sae.atomic import FileMark, write_atomically
from nb_sae.errors import CorruptShardError, FormatError
from nb_sae.types import RowStatistics

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SAFETENSORS_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}

_STATISTICS_ROWS = 4096
_MAX_HEADER_BYTES = 100_000_000  # the limit that safetensors itself sets


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> FileMark:
    """Write a file that is whole or not there, here or behind fsspec."""
    return write_atomically(path, parts) if isinstance(path, Path) else path.write(parts)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON; floats keep their exact value, keys keep their order."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_file(path, [text.encode("utf-8"), b"\n"])


def write_table(path: Path, frame: pl.DataFrame) -> FileMark:
    """Write a frame as Parquet."""
    buffer = BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    return write_file(path, [buffer.getbuffer()])


def write_rows(path: Path, chunks: Sequence[Tensor], *, d_in: int, dtype: torch.dtype) -> FileMark:
    """Write CPU tensors `(rows, d_in)` of one dtype one after the other as the safetensors tensor "x"."""
    rows = sum(len(chunk) for chunk in chunks)
    size = rows * d_in * dtype.itemsize
    entry = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": [rows, d_in], "data_offsets": [0, size]}
    header = json.dumps({"x": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    parts = [struct.pack("<Q", len(header)), header]
    return write_file(path, [*parts, *(_bytes_of(chunk) for chunk in chunks)])


def _bytes_of(chunk: Tensor) -> memoryview:
    flat = chunk.contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


# ── statistics ──────────────────────────────────────────────────────────────────────────────────────────────────


def statistics_of(chunks: Iterable[Tensor], d_in: int) -> RowStatistics:
    """Mean and mean square distance of rows, in float64 and in one fixed order of additions.

    Distances are taken from the first row, so that rows far from 0 lose no digits. numpy adds in one thread,
    so the result does not depend on the number of threads.
    """
    shift: np.ndarray | None = None
    count, total, squares = 0, np.zeros(d_in), 0.0
    for chunk in chunks:
        for piece in chunk.split(_STATISTICS_ROWS):
            if not len(piece):
                continue
            values = (piece if piece.dtype == torch.float64 else piece.float()).numpy()
            if shift is None:
                shift = values[0].astype(np.float64)
            centred = values - shift
            total += centred.sum(0)
            squares += float(np.einsum("ij,ij->", centred, centred))
            count += len(values)
    if shift is None:
        return RowStatistics(0, np.zeros(d_in), 0.0)
    offset = total / count
    return RowStatistics(count, shift + offset, max(squares / count - float(np.einsum("i,i->", offset, offset)), 0.0))


def merge_statistics(parts: Sequence[RowStatistics], d_in: int) -> RowStatistics:
    """Statistics of all rows from those of parts, merged in the order given (Chan et al. 1979)."""
    count, mean, squares = 0, np.zeros(d_in), 0.0
    for part in parts:
        if not part.rows:
            continue
        delta = part.mean - mean
        both = count + part.rows
        mean = mean + delta * (part.rows / both)
        cross = float(np.einsum("i,i->", delta, delta)) * (count * part.rows / both)
        squares += part.mean_square_distance * part.rows + cross
        count = both
    return RowStatistics(count, mean, squares / count if count else 0.0)


# ── reading and checking ────────────────────────────────────────────────────────────────────────────────────────


def read_table(path: Path) -> pl.DataFrame:
    """Read what `write_table` wrote."""
    return pl.read_parquet(path) if isinstance(path, Path) else pl.read_parquet(BytesIO(path.read_bytes()))


def is_unaltered(path: Path, expected: FileMark) -> bool:
    """Whether a file is as it was written; behind fsspec, whether it has the size."""
    if not isinstance(path, Path):
        return path.is_file() and path.stat().st_size == expected.bytes
    return mark_of(path) == expected


def mark_of(path: Path) -> FileMark:
    """Size and checksum of a file as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileMark(file.tell(), digest.hexdigest())


def check_size(path: Path, expected: int) -> None:
    """Refuse a file that is missing or shorter or longer than when it was written."""
    if not path.is_file():
        raise CorruptShardError(f"{path} is missing. Restore it, or collect again with overwrite=True.")
    size = path.stat().st_size
    if size != expected:
        word = "truncated" if size < expected else "longer than it was written"
        raise CorruptShardError(
            f"{path} is {word}: it has {size:,} bytes, the manifest says {expected:,}. "
            "Restore it, or collect again with overwrite=True."
        )


def check_sizes(folder: Path, expected: dict[str, int]) -> None:
    """`check_size` of many files of a folder."""
    if isinstance(folder, Path):
        for name, size in expected.items():
            check_size(folder / name, size)
        return
    there = folder.sizes()
    for name, size in expected.items():
        if there.get(name) != size:
            check_size(folder / name, size)


def check_content(path: Path, expected: FileMark) -> None:
    """Refuse a file whose bytes are not those that were written."""
    check_size(path, expected.bytes)
    if not is_unaltered(path, expected):
        raise CorruptShardError(
            f"{path} was altered after it was written: its SHA-256 is not the one in the manifest. "
            "Restore it, or collect again with overwrite=True."
        )


def map_tensor(path: Path, name: str | None = None) -> Tensor:
    """A 2-D tensor of a safetensors file, memory-mapped and private: nothing is read until it is touched.

    Args:
        path: The file.
        name: Which tensor; None where the file holds one 2-D tensor only.

    Raises:
        FormatError: Not a safetensors file, or no such tensor in it.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("the header is too long")
            header = json.loads(file.read(length))
        entries = {key: value for key, value in header.items() if key != "__metadata__"}
        flat = {key: value for key, value in entries.items() if len(value["shape"]) == 2}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path} is not a safetensors file ({error}). Give one, or a .npy or .parquet file."
        ) from error
    if name is None and len(flat) != 1:
        raise FormatError(
            f"{path} holds {len(flat)} tensors of two dimensions, expected one. Name it with tensor=…; "
            f"there are: {', '.join(sorted(entries)) or 'none'}."
        )
    chosen = next(iter(flat)) if name is None else name
    if chosen not in flat:
        raise FormatError(f"{path} has no 2-D tensor {chosen!r}; there are: {', '.join(sorted(flat)) or 'none'}.")
    return _map_entry(path, chosen, flat[chosen], 8 + length)


def _map_entry(path: Path, name: str, entry: dict[str, Any], start: int) -> Tensor:
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise FormatError(
            f"Tensor {name!r} of {path} is {entry['dtype']}; rows are {', '.join(SAFETENSORS_DTYPES)}. Convert it."
        )
    rows, width = entry["shape"]
    begin, end = entry["data_offsets"]
    if end - begin != rows * width * dtype.itemsize or path.stat().st_size < start + end:
        raise CorruptShardError(f"{path} is shorter than its header says. Restore it, or write it again.")
    if not end - begin:
        return torch.empty(rows, width, dtype=dtype)
    # Mode "c" maps privately and writable, as torch.from_numpy wants; nobody writes to it.
    raw = np.memmap(path, dtype=np.uint8, mode="c", offset=start + begin, shape=(end - begin,))
    if raw.ctypes.data % dtype.itemsize:
        raise FormatError(f"Tensor {name!r} of {path} is not aligned. Write the file again with safetensors.")
    return torch.from_numpy(raw).view(dtype).view(rows, width)
