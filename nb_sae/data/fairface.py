"""FairFace: faces with an age band, a gender and one of seven races, as a folder or as rows. No picture is opened.

Karkkainen and Joo 2021, FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age, WACV. The lists
`fairface_label_train.csv` and `fairface_label_val.csv` hold `file, age, gender, race, service_test`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from nb_sae.data.images import (
    ColumnReader,
    FolderReader,
    clean_name,
    image_column,
    is_hugging_face,
    list_images,
)
from nb_sae.data.labeled import PARTITIONS, SPLIT_WORDS, LabeledImages, only_split, table_of
from nb_sae.errors import InputError, InputNotFoundError

AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
"""The bands, youngest first: the order of the `age` column."""
GENDERS = ("Female", "Male")
RACES = ("Black", "East Asian", "Indian", "Latino_Hispanic", "Middle Eastern", "Southeast Asian", "White")
_CATEGORIES = {"age": AGES, "gender": GENDERS, "race": RACES}
_LISTS = {"train": "fairface_label_train.csv", "val": "fairface_label_val.csv"}
_PARTITIONS = {"train": "train", "val": "valid"}


def fairface(path_or_rows: Any, *, split: str | None = None, images: str | None = None) -> LabeledImages:
    """FairFace, or faces in its layout: `age` (ordered bands), `gender`, `race` and `service_test` of every image.

    Args:
        path_or_rows: The folder with `fairface_label_train.csv` and/or `fairface_label_val.csv` and the images in
            `train/` and `val/`, beside the lists or in `fairface-img-margin025-trainval/` (or `…125-…`); or a Hugging
            Face data set with these columns.
        split: Keep only `"train"` or `"valid"` (FairFace's `val`).
        images: The folder of the images, relative to the path, where both margins are there.

    Returns:
        The labelled images; rows without an image and images without a row are in `.skipped`.

    Raises:
        InputNotFoundError: the folder, the lists or the images are missing.
        InputError: a list without these columns, an age band that FairFace does not have, or a file named twice.
    """
    if is_hugging_face(path_or_rows):
        faces = _from_hugging_face(path_or_rows)
    elif isinstance(path_or_rows, str | os.PathLike):
        faces = _from_layout(Path(path_or_rows).expanduser(), images)
    else:
        raise InputError(
            f"fairface() got a {type(path_or_rows).__name__}. Give FairFace's folder or a Hugging Face data set."
        )
    return only_split(faces, split, file=_LISTS["val"])


def _from_layout(root: Path, images: str | None) -> LabeledImages:
    lists = {part: root / file for part, file in _LISTS.items() if (root / file).is_file()}
    if not lists:
        there = sorted(entry.name for entry in root.iterdir())[:6] if root.is_dir() else []
        holds = f"it holds {', '.join(map(repr, there))}" if there else "nothing is there"
        raise InputNotFoundError(
            f"{str(root)!r} has no {' or '.join(_LISTS.values())}; {holds}. Give the folder that holds FairFace's "
            "lists."
        )
    base = _image_folder(root, images)
    found = {f"{part}/{name}" for part in _LISTS if (base / part).is_dir() for name in list_images(base / part)[0]}
    rows = pl.concat([_read_list(file, part) for part, file in lists.items()])
    twice = rows.filter(pl.col("file").is_duplicated())["file"]
    if len(twice):
        raise InputError(f"FairFace's lists name {twice[0]!r} more than once. Every image has one row.")
    known = rows.filter(pl.col("file").is_in(list(found)))
    listed = set(rows["file"])
    skipped = [(name, "its list names it; there is no such image") for name in rows["file"] if name not in found]
    skipped += [(name, "no list names it") for name in sorted(found - listed)]
    if not known.height:
        raise InputNotFoundError(
            f"none of the {rows.height:,} images that FairFace's lists name is in {str(base)!r}; the first would be "
            f"{rows['file'][0]!r}. Unpack the images there, or name their folder with images=."
        )
    names = known["file"].to_list()
    return LabeledImages(
        FolderReader(base, names),
        names,
        name=clean_name(root),
        labels=known.select(_labels(known)),
        partition=known["partition"].cast(PARTITIONS),
        skipped=skipped,
    )


def _image_folder(root: Path, images: str | None) -> Path:
    """The folder that `train/` and `val/` are in."""
    named = [root / images] if images is not None else [root, *sorted(root.glob("fairface-img-*"))]
    candidates = [base for base in named if any((base / part).is_dir() for part in _LISTS)]
    if len(candidates) > 1:
        both = ", ".join(base.name for base in candidates)
        raise InputError(
            f"{str(root)!r} has images in {both}. Choose one: fairface(path, images={candidates[-1].name!r})."
        )
    if not candidates:
        where = repr(str(named[0]))
        raise InputNotFoundError(
            f"{where} has neither train/ nor val/ with images. Unpack fairface-img-margin025-trainval.zip there."
        )
    return candidates[0]


def _read_list(file: Path, part: str) -> pl.DataFrame:
    try:
        frame = pl.read_csv(file, infer_schema=False, null_values=["", "NA", "NaN", "nan"])
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file.name} cannot be read as CSV: {str(error).splitlines()[0]}") from error
    _check_columns(frame.columns, ("file", *_CATEGORIES), file.name)
    if "service_test" not in frame.columns:
        frame = frame.with_columns(service_test=pl.lit(None, pl.String))
    return frame.select(
        "file",
        *_CATEGORIES,
        (pl.col("service_test").str.to_lowercase() == "true").alias("service_test"),
        pl.lit(_PARTITIONS[part]).alias("partition"),
    )


def _check_columns(columns: Sequence[str], needed: Sequence[str], what: str) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise InputError(
            f"{what} has the columns {', '.join(columns) or 'none'}; {', '.join(missing)} is missing. FairFace has "
            "file, age, gender, race, service_test."
        )


def _labels(table: pl.DataFrame) -> list[pl.Series]:
    """The label columns, each category an Enum in a fixed order."""
    found = []
    for name, known in _CATEGORIES.items():
        column = table[name].cast(pl.String)
        others = sorted(set(column.drop_nulls().unique()) - set(known))
        if others and name == "age":
            raise InputError(
                f"age {others[0]!r} is none of FairFace's bands {', '.join(AGES)}. Correct the row, or leave its age "
                "empty."
            )
        found.append(column.cast(pl.Enum([*known, *others])))
    return [*found, table["service_test"]] if "service_test" in table.columns else found


def _from_hugging_face(dataset: Any) -> LabeledImages:
    column = image_column(dataset)
    table = table_of(dataset, column)
    _check_columns(table.columns, tuple(_CATEGORIES), "this data set")
    words = {}
    for name in _CATEGORIES:
        named = getattr(dataset.features[name], "names", None)
        if named is not None:
            words[name] = table[name].replace_strict(range(len(named)), named, default=None, return_dtype=pl.String)
    table = table.with_columns(**words)
    split = SPLIT_WORDS.get(str(getattr(dataset, "split", None)).split("[")[0])
    return LabeledImages(
        ColumnReader(dataset, column),
        [str(number) for number in range(len(dataset))],
        name="fairface",
        labels=table.select(_labels(table)),
        partition=None if split is None else pl.Series("partition", [split] * len(dataset), dtype=PARTITIONS),
    )
