"""Images with labels, as CelebA has them.

Owns `LabeledImages` and reading CelebA's folder (text or CSV form) or rows with attributes. No picture is opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import polars as pl

from nb_sae.data.celeba_files import find_layout, read_attributes, read_captions, read_partition
from nb_sae.data.images import (
    ColumnReader,
    Images,
    Reader,
    ValueReader,
    clean_name,
    image_column,
    is_hugging_face,
    list_images,
    unique_keys,
)
from nb_sae.errors import InputError, closest

Split = Literal["train", "valid", "test"]
PARTITIONS = pl.Enum(["train", "valid", "test"])
_IMAGE_NAMES = ("image", "img", "picture")
_KEY_NAMES = ("key", "image_id", "file_name", "filename", "name")
_SPLIT_NAMES = ("partition", "split")


class LabeledImages(Images):
    """Images with one Boolean column per attribute; `celeba()` and `demo_faces()` make it."""

    def __init__(
        self,
        reader: Reader,
        keys: Sequence[str],
        *,
        name: str,
        labels: pl.DataFrame,
        partition: pl.Series | None = None,
        captions: Sequence[str] | None = None,
        ignored: int = 0,
    ) -> None:
        super().__init__(reader, keys, name=name, ignored=ignored)
        self._labels = labels
        self._partition = partition
        self._captions = list(captions) if captions is not None else None

    @property
    def attributes(self) -> pl.DataFrame:
        """`input_id, key` and one Boolean column per attribute, one line per image, in their order."""
        return self._labels.select(
            pl.Series("input_id", np.arange(len(self), dtype=np.uint32)),
            pl.Series("key", self._keys, dtype=pl.String),
            pl.all(),
        )

    @property
    def partition(self) -> pl.Series | None:
        """`"train"`, `"valid"` or `"test"` for every image; None where the source does not say."""
        return self._partition

    @property
    def captions(self) -> list[str] | None:
        """A caption for every image; None where the source has none."""
        return None if self._captions is None else list(self._captions)

    def _take(self, positions: np.ndarray) -> Self:
        part = super()._take(positions)
        part._labels = self._labels[positions]
        part._partition = None if self._partition is None else self._partition.gather(positions.tolist())
        part._captions = None if self._captions is None else [self._captions[i] for i in positions]
        return part


def celeba(path_or_rows: Any, *, split: str | None = None) -> LabeledImages:
    """CelebA, or faces in its layout.

    Args:
        path_or_rows: The folder with `img_align_celeba/` (also nested once more, as Kaggle packs it) and
            `list_attr_celeba.txt` or `.csv`; or rows with a picture and attributes: a Hugging Face data set, or a
            list of dictionaries. Attributes are −1/1, 0/1 or Boolean.
        split: Keep only `"train"`, `"valid"` or `"test"`.

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
    return faces if split is None else _only(faces, split)


def _only(faces: LabeledImages, split: str) -> LabeledImages:
    wanted = {"val": "valid", "validation": "valid"}.get(split, split)
    if wanted not in ("train", "valid", "test"):
        raise InputError(
            f"split={split!r} is not known. {closest(split, PARTITIONS.categories)}Use 'train', 'valid' or 'test'."
        )
    if faces.partition is None:
        raise InputError(
            f"split={split!r} needs a partition and {faces.name!r} has none. Put list_eval_partition.txt (or .csv) "
            "into the folder, or leave split out."
        )
    chosen = np.flatnonzero((faces.partition == wanted).to_numpy())
    if not len(chosen):
        counts = faces.partition.value_counts().rows()
        raise InputError(f"no image of {faces.name!r} is in split {wanted!r}; there are {dict(counts)}.")
    return faces[chosen]


def _from_layout(root: Path) -> LabeledImages:
    layout = find_layout(root)
    found, others = list_images(layout.images)
    names, labels = read_attributes(layout.attributes)
    order = _matched(names, found, layout.attributes.name, layout.images.name)
    labels = labels[order]
    partition = None
    if layout.partition is not None:
        partition = _ordered(read_partition(layout.partition), found, layout.partition.name)
        partition = pl.Series("partition", ["train", "valid", "test"], dtype=PARTITIONS).gather(partition)
    captions = None
    if layout.captions is not None:
        captions = _ordered(read_captions(layout.captions), found, layout.captions.name)
    return LabeledImages(
        ValueReader([layout.images / name for name in found]),
        found,
        name=clean_name(root),
        labels=labels,
        partition=partition,
        captions=captions,
        ignored=sum(others.values()),
    )


def _matched(names: list[str], found: list[str], file: str, folder: str) -> list[int]:
    """For every image the row of the attribute file."""
    row = {name: number for number, name in enumerate(names)}
    if len(row) < len(names):
        twice = next(name for number, name in enumerate(names) if row[name] != number)
        raise InputError(f"{file} names {twice!r} more than once. Every image has one row; remove the others.")
    without_image, without_row = sorted(set(row) - set(found)), sorted(set(found) - set(row))
    if without_image or without_row:
        raise InputError(
            f"{file} and {folder}/ do not match: {len(names):,} rows, {len(found):,} images; "
            f"{_few(without_image, 'rows without an image')}; {_few(without_row, 'images without a row')}. "
            "Complete the download, or remove the rows (images) that have no counterpart."
        )
    return [row[name] for name in found]


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
    columns = dataset.with_format(None).remove_columns([column])[:]
    name = getattr(getattr(dataset, "info", None), "dataset_name", None) or "celeba"
    return _labeled(reader, columns, name)


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
    columns = {name: [row[name] for row in flat] for name in flat[0] if name != column}
    return _labeled(ValueReader([row[column] for row in flat]), columns, "rows")


def _labeled(reader: Reader, columns: Mapping[str, list[Any]], name: str) -> LabeledImages:
    """Labels from columns: those of two values; a text column may be the key or the partition."""
    labels: dict[str, pl.Series] = {}
    keys: Sequence[str] | None = None
    partition = None
    for column, values in columns.items():
        if column in _SPLIT_NAMES:
            partition = _partition_of(column, values)
        elif all(isinstance(value, str) for value in values):
            keys = values if column in _KEY_NAMES else keys
        elif set(values) <= {0, 1} or set(values) <= {-1, 1}:
            labels[column] = pl.Series(column, [value == 1 for value in values], dtype=pl.Boolean)
        elif column not in ("celeb_id", "identity"):
            odd = next((number for number, value in enumerate(values) if value not in (-1, 0, 1)), 0)
            raise InputError(
                f"column {column!r} is no attribute: row {odd} holds {values[odd]!r}. Attributes are Boolean, 0/1 or "
                "−1/1 (one of the two in a column); remove the column first."
            )
    if not labels:
        raise InputError(
            f"the rows have no attribute: none of {', '.join(columns) or 'no columns'} is Boolean, 0/1 or −1/1."
        )
    names = list(keys) if keys is not None else [str(number) for number in range(len(reader))]
    return LabeledImages(reader, unique_keys(names), name=name, labels=pl.DataFrame(labels), partition=partition)


def _partition_of(column: str, values: list[Any]) -> pl.Series:
    known = {0: "train", 1: "valid", 2: "test", "train": "train", "valid": "valid", "val": "valid",
             "validation": "valid", "test": "test"}  # fmt: skip
    odd = next((value for value in values if value not in known), None)
    if odd is not None:
        raise InputError(f"column {column!r} holds {odd!r}; a partition is 0, 1, 2 or 'train', 'valid', 'test'.")
    return pl.Series("partition", [known[value] for value in values], dtype=PARTITIONS)
