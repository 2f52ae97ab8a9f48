"""Tables of a saved result: written as Parquet, read back, and held to their schema."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from nb_sae.errors import FormatError


def write_tables(folder: Path, tables: Mapping[str, pl.DataFrame | None]) -> None:
    """One `<name>.parquet` for each table; None: there is none."""
    for name, frame in tables.items():
        if frame is not None:
            frame.write_parquet(folder / f"{name}.parquet", compression="zstd")


def read_tables(folder: Path, schemas: Mapping[str, pl.Schema], *, again: str) -> dict[str, pl.DataFrame]:
    """What `write_tables` wrote, every table of `schemas`. Raises as `read_table` does."""
    return {name: read_table(folder / f"{name}.parquet", schema, again=again) for name, schema in schemas.items()}


def read_table(file: Path, schema: pl.Schema, *, again: str) -> pl.DataFrame:
    """A Parquet file with exactly these columns.

    Args:
        file: What to read.
        schema: Names and types of its columns, in order.
        again: What makes the table anew, for the message: "Run analyze again."

    Raises:
        FormatError: it cannot be read, or has other columns.
    """
    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"{file} cannot be read ({error}). {again}") from error
    if frame.schema != schema:
        raise FormatError(f"{file} has columns {frame.schema}; expected {schema}. {again}")
    return frame
