"""Images with labels: what every labelled collection of faces, or of anything else, is in the end.

Owns `LabeledImages` and turning the columns of a table into labels; where they come from is in `celeba`, `fairface`
and `utkface`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import polars as pl

from nb_sae.data.images import Images, Reader
from nb_sae.errors import InputError, closest

Split = Literal["train", "valid", "test"]
PARTITIONS = pl.Enum(["train", "valid", "test"])
SKIPPED = pl.Schema({"key": pl.String, "reason": pl.String})
SPLIT_WORDS: Mapping[Any, str] = {
    0: "train", 1: "valid", 2: "test", "0": "train", "1": "valid", "2": "test", "train": "train", "valid": "valid",
    "val": "valid", "validation": "valid", "test": "test",
}  # fmt: skip
"""What sources write for a partition."""
KEY_NAMES = ("key", "image_id", "file_name", "filename", "name")
SPLIT_NAMES = ("partition", "split")
IDENTITY_NAMES = ("celeb_id", "identity")


class LabeledImages(Images):
    """Images with one column per attribute; `celeba()`, `fairface()`, `utkface()` and `demo_faces()` make it.

    A column is Boolean (`Eyeglasses`), of categories (`race`: Enum or String) or of numbers (`age`). Unknown is null:
    nothing is guessed, and what uses a column leaves out the images whose value it does not know, and counts them.
    """

    def __init__(
        self,
        reader: Reader,
        keys: Sequence[str],
        *,
        name: str,
        labels: pl.DataFrame,
        partition: pl.Series | None = None,
        captions: Sequence[str] | None = None,
        identity: pl.Series | None = None,
        skipped: Iterable[tuple[str, str]] = (),
        ignored: int = 0,
    ) -> None:
        super().__init__(reader, keys, name=name, ignored=ignored)
        self._labels = labels
        self._partition = partition
        self._captions = list(captions) if captions is not None else None
        self._identity = identity
        self.skipped = pl.DataFrame(list(skipped), schema=SKIPPED, orient="row")
        """`key, reason` of what the source holds and this collection leaves out, such as a malformed file name."""

    @property
    def attributes(self) -> pl.DataFrame:
        """`input_id, key` and one column per attribute, one line per image, in their order; unknown is null."""
        return self._labels.select(
            pl.Series("input_id", np.arange(len(self), dtype=np.uint32)),
            pl.Series("key", self._keys, dtype=pl.String),
            pl.all(),
        )

    @property
    def missing(self) -> dict[str, int]:
        """How many images have no value, for every attribute where that is so."""
        counts = self._labels.null_count()
        return {name: count for name in counts.columns if (count := int(counts[name].sum()))}

    @property
    def partition(self) -> pl.Series | None:
        """`"train"`, `"valid"` or `"test"` for every image; None where the source does not say."""
        return self._partition

    @property
    def captions(self) -> list[str] | None:
        """A caption for every image; None where the source has none."""
        return None if self._captions is None else list(self._captions)

    @property
    def identity(self) -> pl.Series | None:
        """The number of the person on every image; None where the source does not say."""
        return self._identity

    def _take(self, positions: np.ndarray) -> Self:
        part = super()._take(positions)
        part._labels = self._labels[positions]
        part._partition = None if self._partition is None else self._partition.gather(positions.tolist())
        part._identity = None if self._identity is None else self._identity.gather(positions.tolist())
        part._captions = None if self._captions is None else [self._captions[i] for i in positions]
        return part

    def __repr__(self) -> str:
        facts = [f"{self._labels.width} attributes"]
        if missing := sum(self.missing.values()):
            facts.append(f"{missing:,} values unknown")
        if self.skipped.height:
            facts.append(f"{self.skipped.height:,} skipped")
        return f"{super().__repr__().removesuffix(')')}, {', '.join(facts)})"


def only_split(faces: LabeledImages, split: str | None, *, file: str) -> LabeledImages:
    """The images of one partition; all of them for None.

    Args:
        faces: The whole collection.
        split: `"train"`, `"valid"` (or `"val"`, `"validation"`) or `"test"`.
        file: What would state the partition, for the message where nothing does.

    Raises:
        InputError: another word, no partition, or no image in it.
    """
    if split is None:
        return faces
    wanted = SPLIT_WORDS.get(split)
    if wanted is None or split.isdigit():
        raise InputError(
            f"split={split!r} is not known. {closest(split, PARTITIONS.categories)}Use 'train', 'valid' or 'test'."
        )
    if faces.partition is None:
        raise InputError(
            f"split={split!r} needs a partition and {faces.name!r} has none. Put {file} into the folder, or leave "
            "split out."
        )
    chosen = np.flatnonzero((faces.partition == wanted).to_numpy())
    if not len(chosen):
        counts = faces.partition.value_counts().rows()
        raise InputError(f"no image of {faces.name!r} is in split {wanted!r}; there are {dict(counts)}.")
    return faces[chosen]


def table_of(dataset: Any, without: str) -> pl.DataFrame:
    """All columns of a Hugging Face data set but one, as they are stored: no picture is touched."""
    rest = [column for column in dataset.column_names if column != without]
    if not rest:
        return pl.DataFrame()
    table: Any = pl.from_arrow(dataset.select_columns(rest).with_format("arrow")[:])
    return table


def truths(column: pl.Series) -> pl.Series | None:
    """A column of −1/1, 0/1 or Booleans as Booleans, NaN and null as null; None where it holds anything else.

    One column uses one of the two: where −1, 0 and 1 occur together nothing says what 0 means.
    """
    if column.dtype == pl.Boolean:
        return column
    if column.dtype == pl.Null:
        return column.cast(pl.Boolean)
    if not column.dtype.is_numeric():
        return None
    if column.dtype.is_float():
        column = column.fill_nan(None)
    values = set(column.drop_nulls().unique().to_list())
    if values <= {0, 1} or values <= {-1, 1}:
        return column == 1
    return None


def partition_of(column: pl.Series) -> pl.Series:
    """A partition column from 0, 1, 2 or words.

    Raises:
        InputError: another value.
    """
    values = column.to_list()
    odd = next((value for value in values if value not in SPLIT_WORDS), None)
    if odd is not None or None in values:
        raise InputError(f"column {column.name!r} holds {odd!r}; a partition is 0, 1, 2 or 'train', 'valid', 'test'.")
    return pl.Series("partition", [SPLIT_WORDS[value] for value in values], dtype=PARTITIONS)
