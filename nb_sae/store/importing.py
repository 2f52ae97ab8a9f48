"""Rows that users bring themselves: tensors, `.npy`, `.safetensors` and Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import polars.selectors as cs
import torch
from torch import Tensor

from nb_sae.errors import FormatError, InputNotFoundError, NonFiniteError, ShapeError
from nb_sae.store.files import map_tensor
from nb_sae.store.manifest import ROWS_SCHEMA
from nb_sae.store.pipeline import inputs_table

CHECK_ROWS = 65_536
_IDENTITY = ("input_id", "token", "key")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Imported:
    """Rows, checked, with their identity."""

    x: Tensor
    in_memory: bool
    rows: pl.DataFrame
    inputs: pl.DataFrame
    positions: int
    """Largest token number plus one: every input is one context."""


def import_tensor(
    x: Tensor | np.ndarray,
    *,
    rows: pl.DataFrame | None = None,
    keys: Sequence[str] | None = None,
    in_memory: bool = True,
    name: str = "x",
) -> Imported:
    """Check rows and give them an identity. See `ActivationStore.from_tensor`."""
    tensor = x.detach().cpu() if isinstance(x, Tensor) else _from_numpy(x, name)
    if tensor.dim() != 2:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)}, expected (rows, d_in). Reshape it to two dimensions."
        )
    if not tensor.numel():
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}: it holds no rows. Give at least one row.")
    if tensor.dtype not in _FLOATS:
        if tensor.dtype.is_complex:
            raise ShapeError(f"{name} is {tensor.dtype}, expected real numbers. Convert it first.")
        tensor = tensor.float()
    _check_finite(tensor, name)
    rows = _identity(rows, len(tensor))
    count = int(rows["input_id"].max()) + 1  # pyright: ignore[reportArgumentType]
    if keys is not None and len(keys) != count:
        raise ShapeError(f"keys has {len(keys):,} entries for {count:,} inputs. Give one key for every input_id.")
    present = set(rows["input_id"].unique().to_list())
    missing = {input_id: "it has no row" for input_id in range(count) if input_id not in present}
    inputs = inputs_table(list(keys) if keys is not None else [str(one) for one in range(count)], missing)
    return Imported(tensor, in_memory, rows, inputs, int(rows["token"].max()) + 1)  # pyright: ignore[reportArgumentType]


def import_file(path: Path, *, tensor: str | None) -> Imported:
    """Read or map a file of rows. See `ActivationStore.from_file`."""
    if not path.is_file():
        raise InputNotFoundError(f"{path} does not exist or is no file. Give a .npy, .safetensors or .parquet file.")
    kind = path.suffix.lower()
    if kind == ".npy":
        try:
            # Mode "c" maps privately and writable, as torch.from_numpy wants; nobody writes to it.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise FormatError(
                f"{path} is not a readable array of numbers ({error}). Write it with numpy.save."
            ) from error
        return import_tensor(array, in_memory=False, name=str(path))
    if kind == ".safetensors":
        return import_tensor(map_tensor(path, tensor), in_memory=False, name=str(path))
    if kind in (".parquet", ".pq"):
        return _import_parquet(path)
    raise FormatError(f"{path} ends in {kind or 'nothing'}; rows are read from .npy, .safetensors and .parquet files.")


def _import_parquet(path: Path) -> Imported:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(f"{path} is not a readable Parquet file ({error}).") from error
    values = frame.select(pl.exclude(*_IDENTITY))
    numeric = values.select(cs.numeric())
    nested = [name for name, dtype in values.schema.items() if isinstance(dtype, pl.List | pl.Array)]
    if len(nested) == 1 and not numeric.width:
        column = values[nested[0]]
        widths = column.list.len() if isinstance(column.dtype, pl.List) else column.arr.len()
        if column.null_count() or widths.n_unique() != 1:
            raise ShapeError(
                f"Column {nested[0]!r} of {path} holds lists of different lengths, or none. Pad or drop them."
            )
        x = column.list.to_array(int(widths[0])).to_numpy() if isinstance(column.dtype, pl.List) else column.to_numpy()
    elif numeric.width and not nested:
        if any(series.null_count() for series in numeric):
            raise NonFiniteError(f"{path} has missing values in its numeric columns. Drop or fill those rows.")
        x = numeric.to_numpy()
    else:
        raise ShapeError(
            f"{path} has {numeric.width} numeric and {len(nested)} list columns; rows are all numeric columns or one "
            "list column. Leave the others out of the file."
        )
    rows = None
    if "input_id" in frame.columns:
        token = pl.col("token") if "token" in frame.columns else pl.int_range(pl.len()).over("input_id")
        rows = frame.select(pl.col("input_id"), token.alias("token"))
    keys = None
    if "key" in frame.columns:
        keys = _keys(frame, rows, path)
    return import_tensor(np.array(x), rows=rows, keys=keys, name=str(path))


def _keys(frame: pl.DataFrame, rows: pl.DataFrame | None, path: Path) -> list[str]:
    input_id = rows["input_id"] if rows is not None else pl.int_range(pl.len())
    named = frame.select(pl.col("key").cast(pl.String), input_id.alias("input_id"))
    pairs = named.unique().sort("input_id")
    if pairs["input_id"].n_unique() != pairs.height or pairs["input_id"].to_list() != list(range(pairs.height)):
        raise ShapeError(f"{path} needs one key for every input_id 0, 1, 2, …. Number the inputs without gaps.")
    return pairs["key"].to_list()


def _from_numpy(x: np.ndarray, name: str) -> Tensor:
    if not isinstance(x, np.ndarray):
        raise ShapeError(f"{name} is a {type(x).__name__}, expected a torch tensor or a numpy array of rows.")
    if x.dtype.kind not in "fiub":
        raise ShapeError(f"{name} holds {x.dtype}, expected real numbers. Convert it first.")
    native = x.astype(x.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _check_finite(x: Tensor, name: str) -> None:
    for start in range(0, len(x), CHECK_ROWS):
        piece = x[start : start + CHECK_ROWS].float()
        bad = ~piece.isfinite().all(1)
        if bad.any():
            row = start + int(bad.nonzero()[0, 0])
            value = x[row][~x[row].float().isfinite()][0].item()
            raise NonFiniteError(
                f"Row {row} of {name} holds {value}. Rows must be finite in float32: drop or repair it."
            )


def _identity(rows: pl.DataFrame | None, count: int) -> pl.DataFrame:
    if rows is None:
        numbers = np.arange(count, dtype=np.uint32)
        return pl.DataFrame({"input_id": numbers, "token": np.zeros(count, dtype=np.uint32)}, schema=ROWS_SCHEMA)
    if not {"input_id", "token"} <= set(rows.columns):
        raise ShapeError(f"rows has columns {', '.join(rows.columns)}, expected input_id and token.")
    if rows.height != count:
        raise ShapeError(f"rows has {rows.height:,} lines for {count:,} rows of x. Give one line per row.")
    try:
        identity = rows.select("input_id", "token").cast(dict(ROWS_SCHEMA))  # pyright: ignore[reportArgumentType]
    except pl.exceptions.PolarsError as error:
        raise ShapeError(f"rows must hold whole numbers from 0: {error}") from error
    pairs = identity.select(number=pl.col("input_id").cast(pl.UInt64) * 2**32 + pl.col("token"))["number"].to_numpy()
    if identity.null_count().sum_horizontal()[0] or not (np.diff(pairs.astype(np.int64)) > 0).all():
        raise ShapeError("rows must ascend by (input_id, token), each pair once. Sort rows and x together.")
    return identity
