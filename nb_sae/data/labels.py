"""Labels of your own, brought to the inputs they belong to."""

from __future__ import annotations

from typing import Any

import polars as pl

from nb_sae.errors import InputError, closest


def attributes(inputs: Any, table: Any, *, key: str | None = None) -> pl.DataFrame:
    """Join a table of labels to images, texts or a store: what `bias_report` and `check` take as attributes.

    Rows that belong to no input are left out, so a table of the whole data set fits a part of it. An input without a
    row has null in every column.

    Args:
        inputs: Images, texts, or a store that was collected from them.
        table: A polars or pandas frame, or `{column: values}`.
        key: The column that holds the inputs' keys (file name, data set index or your id: `inputs.keys`). None: the
            column `key`; where there is none, row by row, if there are as many rows as inputs and nothing was skipped.

    Returns:
        `input_id, key` and the other columns of the table, one row per input, in their order. NaN has become null.

    Raises:
        InputError: no such column, a key that occurs twice, no key in common, or another number of rows.
    """
    known = _identity(inputs)
    frame = _frame(table)
    if key is None and "key" not in frame.columns:
        if frame.height != known.height or not _is_unbroken(inputs, known):
            raise InputError(
                f"the table has {frame.height:,} rows for {known.height:,} inputs, and no column 'key'. Name the "
                "column that holds the inputs' keys: attributes(inputs, table, key='file'); inputs.keys shows them."
            )
        labels = frame.select(pl.exclude("input_id"))
        return _without_nan(known.hstack(labels.get_columns()))
    column = key or "key"
    if column not in frame.columns:
        raise InputError(
            f"the table has no column {column!r}. {closest(column, frame.columns)}It has {', '.join(frame.columns)}."
        )
    labels = frame.with_columns(pl.col(column).cast(pl.String).alias(" key"))
    labels = labels.select(pl.exclude(column, "key", "input_id")).rename({" key": "key"})
    _check_keys(labels, known, column)
    return _without_nan(known.join(labels, on="key", how="left", maintain_order="left"))


def _identity(inputs: Any) -> pl.DataFrame:
    """`input_id, key` of images, texts or a store."""
    if isinstance(getattr(inputs, "inputs", None), pl.DataFrame):
        return inputs.inputs.select("input_id", "key")
    keys = getattr(inputs, "keys", None)
    if keys is None or callable(keys):
        raise InputError(
            f"attributes() got a {type(inputs).__name__} as inputs. Give images(…), texts(…) or the store collected "
            "from them."
        )
    schema = {"input_id": pl.UInt32, "key": pl.String}
    return pl.DataFrame({"input_id": range(len(keys)), "key": list(keys)}, schema=schema)


def _frame(table: Any) -> pl.DataFrame:
    if isinstance(table, pl.DataFrame):
        return table
    try:
        if hasattr(table, "iloc"):
            return pl.from_pandas(table)
        return pl.DataFrame(table)
    except Exception as error:  # polars raises many kinds for what is no table
        raise InputError(
            f"a {type(table).__name__} cannot be read as a table ({error}). Give a polars or pandas frame, or "
            "{column: values}."
        ) from error


def _is_unbroken(inputs: Any, known: pl.DataFrame) -> bool:
    """Whether these are all inputs, none skipped: only then is the row number the input's number."""
    skipped = getattr(inputs, "skipped", None)
    nothing_skipped = not isinstance(skipped, pl.DataFrame) or skipped.is_empty()
    return nothing_skipped and known["input_id"].to_list() == list(range(known.height))


def _check_keys(labels: pl.DataFrame, known: pl.DataFrame, column: str) -> None:
    twice = labels.filter(pl.col("key").is_duplicated() & pl.col("key").is_not_null())["key"]
    if len(twice):
        raise InputError(
            f"column {column!r} of the table holds {twice[0]!r} more than once. Every input has one row; remove the "
            "others, or aggregate them."
        )
    if known.height and not known["key"].is_in(labels["key"].implode()).any():
        theirs = repr(labels["key"][0]) if labels.height else "nothing"
        raise InputError(
            f"no key of the inputs is in column {column!r}: inputs are called such as {known['key'][0]!r}, the column "
            f"holds such as {theirs}. Make the column equal to inputs.keys."
        )


def _without_nan(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.selectors.float().fill_nan(None))
