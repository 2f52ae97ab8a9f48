"""CelebA's files: where they lie in a folder, what is in them, and writing them.

Owns the text and the CSV form of the attribute and partition files, and the caption file that drawn faces add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from nb_sae.errors import InputError, InputNotFoundError

IMAGES, ATTRIBUTES = "img_align_celeba", "list_attr_celeba"
PARTITION, CAPTIONS = "list_eval_partition", "list_captions.txt"


@dataclass(frozen=True)
class Layout:
    """Where the parts of one CelebA lie."""

    images: Path
    attributes: Path
    partition: Path | None
    captions: Path | None


def find_layout(root: Path) -> Layout:
    """Find the images and the lists below `root`, in the ways they are distributed.

    Raises:
        InputNotFoundError: the folder, the images or the attribute file are missing; says what is there.
    """
    if not root.is_dir():
        raise InputNotFoundError(
            f"there is no folder {str(root)!r}. Give the one that holds {IMAGES}/ and {ATTRIBUTES}.txt."
        )
    folders = [root / IMAGES / IMAGES, root / IMAGES, root / "Img" / IMAGES]
    images = next((folder for folder in folders if folder.is_dir()), None)
    attributes = _list_file(root, ATTRIBUTES, "Anno")
    if images is None or attributes is None:
        missing = " and ".join(
            what for what, part in ((f"{IMAGES}/", images), (f"{ATTRIBUTES}.txt or .csv", attributes)) if part is None
        )
        there = sorted(entry.name for entry in root.iterdir())
        listed = ", ".join(map(repr, there[:6])) + (f" and {len(there) - 6} more" if len(there) > 6 else "")
        raise InputNotFoundError(
            f"{str(root)!r} has no {missing}; it holds {listed or 'nothing'}. Put CelebA's aligned images and its "
            "attribute list there; for images without labels use images(folder)."
        )
    captions = root / CAPTIONS
    return Layout(images, attributes, _list_file(root, PARTITION, "Eval"), captions if captions.is_file() else None)


def _list_file(root: Path, stem: str, folder: str) -> Path | None:
    places = [where / f"{stem}{ending}" for where in (root, root / folder) for ending in (".txt", ".csv")]
    return next((place for place in places if place.is_file()), None)


def read_attributes(file: Path) -> tuple[list[str], pl.DataFrame]:
    """File names, and one Boolean column per attribute in the same order.

    Raises:
        InputError: a row has another number of values than the header, or a value is none of −1, 0, 1.
    """
    names, columns, values = (_attributes_csv if file.suffix == ".csv" else _attributes_text)(file)
    if len(set(columns)) < len(columns):
        raise InputError(f"{file.name} has two columns of the same name among {', '.join(columns)}.")
    odd = np.argwhere((values < -1) | (values > 1))
    if len(odd):
        row, column = odd[0]
        raise InputError(
            f"{file.name}: {names[row]!r} has {columns[column]} = {values[row, column]}; "
            "attributes are −1 or 1, or 0 or 1."
        )
    if (values == -1).any() and (values == 0).any():
        row, column = np.argwhere(values == 0)[0]
        raise InputError(
            f"{file.name} mixes −1/1 and 0/1: {names[row]!r} has {columns[column]} = 0. Use one of the two throughout."
        )
    return names, pl.DataFrame({name: values[:, i] == 1 for i, name in enumerate(columns)})


def _attributes_text(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    lines = _lines(file)
    if len(lines) < 2 or not lines[0].strip().isdigit():
        raise InputError(f"{file.name} does not start with the number of images and a line of attribute names.")
    count, columns = int(lines[0]), lines[1].split()
    rows = [line.split() for line in lines[2:] if line.strip()]
    if count != len(rows):
        raise InputError(f"{file.name} announces {count:,} rows and has {len(rows):,}. Complete the download.")
    for row in rows:
        if len(row) != len(columns) + 1:
            raise InputError(
                f"{file.name}: the row of {row[0]!r} has {len(row) - 1} values for {len(columns)} attributes."
            )
    table = np.stack([_as_numbers(row, columns, file) for row in rows]) if rows else np.empty((0, len(columns)), int)
    return [row[0] for row in rows], columns, table


def _as_numbers(row: list[str], columns: list[str], file: Path) -> np.ndarray:
    known = {"-1": -1, "1": 1, "0": 0}
    try:
        return np.fromiter(map(known.__getitem__, row[1:]), np.int8, len(columns))
    except KeyError:
        odd = next(number for number, value in enumerate(row[1:]) if value not in known)
        raise InputError(
            f"{file.name}: {row[0]!r} has {columns[odd]} = {row[odd + 1]!r}; attributes are −1 or 1, or 0 or 1."
        ) from None


def _attributes_csv(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    frame = _csv(file)
    if frame.width < 2:
        raise InputError(f"{file.name} has {frame.width} column; expected the image name and one column per attribute.")
    columns = frame.columns[1:]
    truth = {"true": 1, "false": 0, "True": 1, "False": 0, "TRUE": 1, "FALSE": 0}
    values = []
    for column in columns:
        numbers = frame[column].replace(truth).cast(pl.Int64, strict=False)
        if numbers.null_count():
            at = int(numbers.is_null().arg_max() or 0)
            raise InputError(
                f"{file.name}: {frame[at, 0]!r} has {column} = {frame[at, column]!r}; "
                "attributes are −1 or 1, or 0 or 1."
            )
        values.append(numbers.to_numpy())
    return frame.to_series(0).to_list(), columns, np.stack(values, axis=1)


def read_partition(file: Path) -> dict[str, int]:
    """File name → 0 (train), 1 (valid), 2 (test)."""
    if file.suffix == ".csv":
        frame = _csv(file)
        if frame.width < 2:
            raise InputError(f"{file.name} has {frame.width} column; expected the image name and its partition.")
        pairs = list(zip(frame.to_series(0).to_list(), frame.to_series(1).to_list(), strict=True))
    else:
        pairs = [tuple(line.rsplit(None, 1)) for line in _lines(file) if line.strip()]
    known = {"0": 0, "1": 1, "2": 2}
    for pair in pairs:
        if len(pair) != 2 or pair[1] not in known:
            raise InputError(f"{file.name}: {' '.join(map(str, pair))!r} is not a file name and 0, 1 or 2.")
    return {name: known[number] for name, number in pairs}


def read_captions(file: Path) -> dict[str, str]:
    """File name → caption."""
    split = (line.split("\t", 1) for line in _lines(file) if line.strip())
    return {parts[0]: parts[1] if len(parts) > 1 else "" for parts in split}


def write_lists(
    root: Path,
    names: Sequence[str],
    labels: Mapping[str, Sequence[bool]],
    partition: Sequence[int],
    captions: Sequence[str],
) -> None:
    """Write the attribute, partition and caption files as CelebA has them."""
    rows = np.where(np.stack([np.asarray(labels[column], bool) for column in labels], axis=1), " 1", "-1")
    lines = [str(len(names)), " ".join(labels)]
    lines += [f"{name} {' '.join(row)}" for name, row in zip(names, rows, strict=True)]
    _write(root / f"{ATTRIBUTES}.txt", lines)
    _write(root / f"{PARTITION}.txt", [f"{name} {part}" for name, part in zip(names, partition, strict=True)])
    _write(root / CAPTIONS, [f"{name}\t{text}" for name, text in zip(names, captions, strict=True)])


def _write(file: Path, lines: Sequence[str]) -> None:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _lines(file: Path) -> list[str]:
    # Only line feeds end a line: a caption or a name may hold any other character that splitlines() breaks at.
    text = file.read_text(encoding="utf-8", errors="surrogateescape").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").split("\n")


def _csv(file: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(file, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file.name} cannot be read as CSV: {str(error).splitlines()[0]}") from error
