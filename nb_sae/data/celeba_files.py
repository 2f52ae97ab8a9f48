"""CelebA's files: where they lie in a folder, what is in them, and writing them.

Owns the text and the CSV form of the attribute, partition and identity files, and the caption file that drawn faces
add. A file of 200,000 rows is read line by line or column by column, never as one Python object per value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nb_sae.errors import InputError, InputNotFoundError

IMAGES, ATTRIBUTES = "img_align_celeba", "list_attr_celeba"
PARTITION, CAPTIONS, IDENTITY = "list_eval_partition", "list_captions.txt", "identity_CelebA"
_VALUES = {"-1": -1, "1": 1, "0": 0, "-1.0": -1, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
_UNKNOWN = ("", "?", "na", "n/a", "nan", "null", "none")
_ODD, _MISSING = 2, 3  # codes beside −1, 0, 1


@dataclass(frozen=True)
class Layout:
    """Where the parts of one CelebA lie."""

    images: Path
    attributes: Path
    partition: Path | None
    captions: Path | None
    identity: Path | None


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
    return Layout(
        images,
        attributes,
        _list_file(root, PARTITION, "Eval", "Anno"),
        captions if captions.is_file() else None,
        _list_file(root, IDENTITY, "Anno"),
    )


def _list_file(root: Path, stem: str, *folders: str) -> Path | None:
    wheres = [root, *(root / folder for folder in folders)]
    places = [where / f"{stem}{ending}" for where in wheres for ending in (".txt", ".csv")]
    return next((place for place in places if place.is_file()), None)


def read_attributes(file: Path) -> tuple[list[str], pl.DataFrame]:
    """File names, and one Boolean column per attribute in the same order; unknown is null.

    Raises:
        InputError: a row has another number of values than the header, or a value is none of −1, 0, 1.
    """
    names, columns, codes = (_attributes_csv if file.suffix == ".csv" else _attributes_text)(file)
    if len(set(columns)) < len(columns):
        raise InputError(f"{file.name} has two columns of the same name among {', '.join(columns)}.")
    if (codes == -1).any() and (codes == 0).any():
        row, column = np.argwhere(codes == 0)[0]
        raise InputError(
            f"{file.name} mixes −1/1 and 0/1: {names[row]!r} has {columns[column]} = 0. Use one of the two throughout; "
            "where 0 stands for unknown, leave the field empty or write NA."
        )
    labels = {}
    for number, name in enumerate(columns):
        column = pl.Series(name, codes[:, number])
        labels[name] = (
            (column == 1).set(column == _MISSING, None) if (codes[:, number] == _MISSING).any() else column == 1
        )
    return names, pl.DataFrame(labels)


def _attributes_text(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    lines = _lines(file)
    if len(lines) < 2 or not lines[0].strip().isdigit():
        raise InputError(f"{file.name} does not start with the number of images and a line of attribute names.")
    count, columns = int(lines[0]), lines[1].split()
    filled = [line for line in lines[2:] if line.strip()]
    if count != len(filled):
        raise InputError(f"{file.name} announces {count:,} rows and has {len(filled):,}. Complete the download.")
    names, codes = [], np.empty((count, len(columns)), np.int8)
    for number, line in enumerate(filled):
        name, *values = line.split()
        if len(values) != len(columns):
            raise InputError(
                f"{file.name}: the row of {name!r} has {len(values)} values for {len(columns)} attributes."
            )
        try:
            codes[number] = [_VALUES[value] for value in values]
        except KeyError:
            codes[number] = [_code(value) for value in values]
            _refuse_odd(file, name, columns, values, codes[number])
        names.append(name)
    return names, columns, codes


def _code(value: str | None) -> int:
    text = "" if value is None else value.strip().lower()
    return _MISSING if text in _UNKNOWN else _VALUES.get(text, _ODD)


def _refuse_odd(file: Path, name: str, columns: Sequence[str], values: Sequence[str | None], codes: np.ndarray) -> None:
    if (codes == _ODD).any():
        at = int((codes == _ODD).argmax())
        raise InputError(
            f"{file.name}: {name!r} has {columns[at]} = {values[at]!r}; attributes are −1 or 1, or 0 or 1; unknown is "
            "empty, NA or NaN."
        )


def _attributes_csv(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    lazy = pl.scan_csv(file, infer_schema=False)
    names, *columns = _collected(lazy.head(0), file).columns
    if not columns:
        raise InputError(f"{file.name} has 1 column; expected the image name and one column per attribute.")
    # As small numbers at once: 200,000 rows of 40 strings would take 130 MB.
    texts = pl.col(columns).str.strip_chars().str.to_lowercase().fill_null("")
    codes = texts.replace_strict({**_VALUES, **dict.fromkeys(_UNKNOWN, _MISSING)}, default=_ODD, return_dtype=pl.Int8)
    frame = _collected(lazy.select(names, codes), file)
    table = frame.select(columns).to_numpy() if frame.height else np.empty((0, len(columns)), np.int8)
    if (table == _ODD).any():
        row = int((table == _ODD).any(1).argmax())
        _refuse_odd(file, frame[row, 0], columns, _collected(lazy.slice(row, 1), file).row(0)[1:], table[row])
    return frame.to_series(0).to_list(), columns, table


def read_partition(file: Path) -> dict[str, int]:
    """File name → 0 (train), 1 (valid), 2 (test)."""
    known = {"0": 0, "1": 1, "2": 2}
    return {name: known[number] for name, number in _pairs(file, known, "its partition: 0, 1 or 2")}


def read_identity(file: Path) -> dict[str, int]:
    """File name → number of the person (1 … 10,177)."""
    return {name: int(number) for name, number in _pairs(file, None, "the number of a person")}


def _pairs(file: Path, known: Mapping[str, int] | None, expected: str) -> list[tuple[str, str]]:
    """The lines of a file of two columns; `known` are the values that may stand in the second, None: whole numbers."""
    if file.suffix == ".csv":
        frame = _collected(pl.scan_csv(file, infer_schema=False), file)
        if frame.width < 2:
            raise InputError(f"{file.name} has {frame.width} column; expected the image name and {expected}.")
        pairs: Any = list(zip(frame.to_series(0).to_list(), frame.to_series(1).to_list(), strict=True))
    else:
        pairs = [line.rsplit(None, 1) for line in _lines(file) if line.strip()]
    for pair in pairs:
        fits = len(pair) == 2 and (str(pair[1]).isdecimal() if known is None else pair[1] in known)
        if not fits:
            raise InputError(f"{file.name}: {' '.join(map(str, pair))!r} is not a file name and {expected}.")
    return pairs


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


def _collected(lazy: pl.LazyFrame, file: Path) -> pl.DataFrame:
    try:
        return lazy.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file.name} cannot be read as CSV: {str(error).splitlines()[0]}") from error
