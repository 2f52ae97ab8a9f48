"""CelebA, or faces in its layout: as a folder (text or CSV form) or as rows with attributes. No picture is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nb_sae.data.celeba_files import find_layout, read_attributes, read_captions, read_identity, read_partition
from nb_sae.data.images import (
    ColumnReader,
    FolderReader,
    Reader,
    ValueReader,
    clean_name,
    image_column,
    is_hugging_face,
    list_images,
    unique_keys,
)
from nb_sae.data.labeled import (
    IDENTITY_NAMES,
    KEY_NAMES,
    PARTITIONS,
    SPLIT_NAMES,
    LabeledImages,
    only_split,
    partition_of,
    table_of,
    truths,
)
from nb_sae.errors import InputError

_IMAGE_NAMES = ("image", "img", "picture")


def celeba(path_or_rows: Any, *, split: str | None = None) -> LabeledImages:
    """CelebA, or faces in its layout.

    Args:
        path_or_rows: The folder with `img_align_celeba/` (also nested once more, as Kaggle packs it, or in `Img/`) and
            `list_attr_celeba.txt` or `.csv` (or in `Anno/`); or rows with a picture and attributes: a Hugging Face
            data set, or a list of dictionaries. Attributes are −1/1, 0/1 or Boolean; empty, NA or NaN is unknown and
            stays null.
        split: Keep only `"train"`, `"valid"` or `"test"`, as `list_eval_partition.txt` (or `.csv`) says.

    Raises:
        InputNotFoundError: the folder, the images or the attribute file are missing.
        InputError: the attribute rows and the images are not the same, or a value is none of −1, 0, 1.
    """
    if isinstance(path_or_rows, str | os.PathLike):
        faces = _from_layout(Path(path_or_rows).expanduser())
    elif is_hugging_face(path_or_rows):
        faces = _from_hugging_face(path_or_rows)
    elif isinstance(path_or_rows, Sequence) and all(isinstance(row, Mapping) for row in path_or_rows):
        faces = _from_rows(list(path_or_rows))
    else:
        raise InputError(
            f"celeba() got a {type(path_or_rows).__name__}. Give CelebA's folder, a Hugging Face data set, or a list "
            "of dictionaries with an 'image' and one entry per attribute."
        )
    return only_split(faces, split, file="list_eval_partition.txt (or .csv)")


def _from_layout(root: Path) -> LabeledImages:
    layout = find_layout(root)
    found, others = list_images(layout.images)
    names, labels = read_attributes(layout.attributes)
    labels = labels[_matched(names, found, layout.attributes.name, layout.images.name)]
    partition = captions = identity = None
    if layout.partition is not None:
        codes = _ordered(read_partition(layout.partition), found, layout.partition.name)
        partition = pl.Series("partition", PARTITIONS.categories, dtype=PARTITIONS).gather(codes)
    if layout.captions is not None:
        captions = _ordered(read_captions(layout.captions), found, layout.captions.name)
    if layout.identity is not None:
        identity = pl.Series("identity", _ordered(read_identity(layout.identity), found, layout.identity.name))
    return LabeledImages(
        FolderReader(layout.images, found),
        found,
        name=clean_name(root),
        labels=labels,
        partition=partition,
        captions=captions,
        identity=identity,
        ignored=sum(others.values()),
    )


def _matched(names: list[str], found: list[str], file: str, folder: str) -> np.ndarray:
    """For every image the row of the attribute file."""
    row = {name: number for number, name in enumerate(names)}
    if len(row) < len(names):
        twice = next(name for number, name in enumerate(names) if row[name] != number)
        raise InputError(f"{file} names {twice!r} more than once. Every image has one row; remove the others.")
    if row.keys() != set(found):
        without_image, without_row = sorted(row.keys() - set(found)), sorted(set(found) - row.keys())
        raise InputError(
            f"{file} and {folder}/ do not match: {len(names):,} rows, {len(found):,} images; "
            f"{_few(without_image, 'rows without an image')}; {_few(without_row, 'images without a row')}. "
            "Complete the download, or remove the rows (images) that have no counterpart."
        )
    return np.fromiter((row[name] for name in found), np.int64, len(found))


def _few(names: list[str], what: str) -> str:
    examples = f" (such as {', '.join(repr(name) for name in names[:3])})" if names else ""
    return f"{len(names):,} {what}{examples}"


def _ordered(of: dict[str, Any], found: list[str], file: str) -> list[Any]:
    missing = [name for name in found if name not in of]
    if missing:
        raise InputError(
            f"{file} does not name {_few(missing, 'of the images')}. Complete the file, or remove it: it is optional."
        )
    return [of[name] for name in found]


def _from_hugging_face(dataset: Any) -> LabeledImages:
    column = image_column(dataset)
    reader = ColumnReader(dataset, column)
    name = getattr(getattr(dataset, "info", None), "dataset_name", None) or "celeba"
    return _labeled(reader, table_of(dataset, column), name)


def _from_rows(rows: list[Mapping[str, Any]]) -> LabeledImages:
    if not rows:
        raise InputError("celeba() got an empty list. Give dictionaries with an 'image' and one entry per attribute.")
    flat = [{**row, **row["attributes"]} if isinstance(row.get("attributes"), Mapping) else dict(row) for row in rows]
    for row in flat:
        row.pop("attributes", None)
    column = next((name for name in _IMAGE_NAMES if name in flat[0]), None)
    if column is None:
        raise InputError(f"the rows have no 'image'; they have {', '.join(map(str, flat[0]))}.")
    for number, row in enumerate(flat):
        if row.keys() != flat[0].keys():
            odd = sorted(map(str, row.keys() ^ flat[0].keys()))
            raise InputError(
                f"row {number} differs from row 0 in {', '.join(odd[:5])}. All rows need the same entries."
            )
    columns = [_column(str(name), [row[name] for row in flat]) for name in flat[0] if name != column]
    return _labeled(ValueReader([row[column] for row in flat]), pl.DataFrame(columns), "rows")


def _column(name: str, values: list[Any]) -> pl.Series:
    """Values of one entry of all rows: strings, or numbers with NaN and None as null."""
    if all(isinstance(value, str) for value in values):
        return pl.Series(name, values, dtype=pl.String)
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
            raise _no_attribute(name, row, value)
    return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64)


def _no_attribute(column: str, row: int, value: Any) -> InputError:
    return InputError(
        f"column {column!r} is no attribute: row {row} holds {value!r}. Attributes are Boolean, 0/1 or −1/1 (one of "
        "the two in a column), unknown is None; remove the column first."
    )


def _labeled(reader: Reader, table: pl.DataFrame, name: str) -> LabeledImages:
    """Labels from columns: those of two values; others may be the key, the partition or the person."""
    labels: list[pl.Series] = []
    keys: Sequence[str] | None = None
    partition = identity = None
    for column in table.iter_columns():
        if column.name in SPLIT_NAMES:
            partition = partition_of(column)
        elif column.name in IDENTITY_NAMES and column.dtype.is_numeric():
            identity = column.cast(pl.Int64).alias("identity")
        elif column.dtype in (pl.String, pl.Categorical, pl.Enum):
            keys = column.to_list() if column.name in KEY_NAMES else keys
        elif (found := truths(column)) is not None:
            labels.append(found)
        else:
            values = column.to_list()
            row = next((number for number, value in enumerate(values) if value not in (-1, 0, 1, None)), 0)
            raise _no_attribute(column.name, row, _plain(values[row]))
    if not labels:
        raise InputError(
            f"the rows have no attribute: none of {', '.join(table.columns) or 'no columns'} is Boolean, 0/1 or −1/1."
        )
    names = list(keys) if keys is not None else [str(number) for number in range(len(reader))]
    return LabeledImages(
        reader, unique_keys(names), name=name, labels=pl.DataFrame(labels), partition=partition, identity=identity
    )


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
