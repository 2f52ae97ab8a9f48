"""Tables of a saved result: read from Parquet, and held to their schema."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from nb_sae.errors import FormatError


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
