"""Attributes as groups: which inputs a line of labels belongs to, and what its values mean.

Owns joining and reading of labels. A label that is missing is null to the end: each test drops it and counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from nb_sae.concepts.data_names import as_boolean
from nb_sae.errors import InputError, StoreError, closest
from nb_sae.types import ActivationSource

MOST_CLASSES = 10
"""Whole numbers with more different values are a quantity, such as an age; with fewer they are classes."""
STRATA_OF_QUANTITY = 5
"""A quantity that is conditioned on is cut into so many parts of equal size."""


@dataclass(frozen=True)
class Label:
    """One attribute of every row.

    Attributes:
        name: Its column.
        kind: "binary" (yes or no), "classes" or "continuous".
        codes: Class of each row, −1 where it is missing; of a quantity 0, or −1 where it is missing.
        classes: What the codes are called; of a binary one `("not Male", "Male")`.
        values: Of a quantity; NaN where it is missing.
    """

    name: str
    kind: Literal["binary", "classes", "continuous"]
    codes: Int[Array, " rows"]
    classes: tuple[str, ...]
    values: Float[Array, " rows"] | None = None

    @property
    def known(self) -> Bool[Array, " rows"]:
        """Rows that have this label."""
        return self.codes >= 0

    @property
    def missing(self) -> int:
        """How many have not."""
        return int((~self.known).sum())

    @property
    def tested(self) -> tuple[int, ...]:
        """Codes that are compared with the rest: of two classes one, as the other is its mirror image."""
        if self.kind == "binary":
            return (1,)
        return (0,) if len(self.classes) == 2 else tuple(range(len(self.classes)))

    def cut(self, parts: int, rows: Bool[Array, " rows"]) -> Label:
        """A quantity as classes of about equal size, at quantiles over some of the rows."""
        values = self.values if self.values is not None else np.zeros(len(self.codes))
        edges = np.unique(np.quantile(values[self.known & rows], np.arange(1, parts) / parts))
        codes = np.where(self.known, np.searchsorted(edges, values, side="left"), -1)
        if parts == 2:
            at = f"{self.name} > {edges[0]:.4g}"
            return Label(self.name, "binary", codes, (f"not {at}", at))
        names = [f"{self.name} ≤ {edge:.4g}" for edge in edges] + [f"{self.name} > {edges[-1]:.4g}"]
        return Label(self.name, "classes", codes, tuple(names))

    def strata(self) -> Int[Array, " rows"]:
        """Codes to compare within; a quantity is cut into fifths."""
        return self.codes if self.kind != "continuous" else self.cut(STRATA_OF_QUANTITY, self.known).codes


def read_label(frame: pl.DataFrame, column: str) -> Label:
    """An attribute by its column: Boolean, 0/1 and −1/1; text and whole numbers as classes; other numbers as they are.

    Whole numbers of more than `MOST_CLASSES` values, and numbers with a fraction, are a quantity. Cast the column to
    text or to a float to have it otherwise.

    Raises:
        InputError: no such column, no value in it, one value only, or −1, 0 and 1 together.
    """
    if column not in frame.columns or column in ("input_id", "key"):
        names = [name for name in frame.columns if name not in ("input_id", "key")]
        raise InputError(f"The attributes have no column {column!r}. {closest(column, names)}All: {', '.join(names)}.")
    values = frame[column]
    values = values.fill_nan(None) if values.dtype.is_float() else values
    held = values.drop_nulls().unique().sort().to_list()
    if len(held) < 2:
        only = f"one value, {held[0]!r}" if held else "no value"
        raise InputError(f"{column!r} has {only}, so there is nothing to compare. Choose an attribute that varies.")
    binary = as_boolean(values)
    if binary is not None:
        codes = binary.cast(pl.Int64).fill_null(-1).to_numpy(writable=True)
        return Label(column, "binary", codes, (f"not {column}", column))
    if held == [-1, 0, 1]:
        raise InputError(
            f"{column!r} holds −1, 0 and 1, which may be three classes, or two with 0 for unknown. Make the unknown "
            "null, or cast the column to text for three classes."
        )
    if not values.dtype.is_numeric() or (values.dtype.is_integer() and len(held) <= MOST_CLASSES):
        if len(held) > len(values) // 2:
            raise InputError(
                f"{column!r} has {len(held):,} different values in {len(values):,} rows. Give a column of classes, "
                "or numbers."
            )
        code = {value: number for number, value in enumerate(held)}
        codes = np.array([code.get(value, -1) for value in values.to_list()], dtype=np.int64)
        return Label(column, "classes", codes, tuple(f"{column}={value}" for value in held))
    numbers = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
    known = np.isfinite(numbers)
    return Label(column, "continuous", np.where(known, 0, -1), (column,), np.where(known, numbers, np.nan))


def joined_to(store: ActivationSource, attributes: Any) -> pl.DataFrame:
    """The attributes in the order of the store's rows, null where an input has no line.

    By `key`; without it by `input_id`; without both row by row, where no input was skipped.

    Raises:
        StoreError: inputs with several rows.
        InputError: no frame, a key that occurs twice, none in common, or another number of lines.
    """
    ids = store.rows["input_id"]
    if ids.n_unique() < len(ids):
        raise StoreError(
            f"The store has {len(ids):,} rows of {ids.n_unique():,} inputs ({store.site.name!r}), but a label "
            "belongs to an input. Collect a pooled site such as image_embed, or tokens='cls'; or average the rows of "
            "each input and give them as ActivationStore.from_tensor(…)."
        )
    if not isinstance(attributes, pl.DataFrame):
        raise InputError(
            f"attributes is a {type(attributes).__name__}. Give a polars frame with a column key, such as "
            "faces.attributes; ns.attributes(inputs, table) makes one of a table."
        )
    rows = store.rows.select("input_id").join(
        store.inputs.select("input_id", "key"), on="input_id", how="left", maintain_order="left"
    )
    on = next((name for name in ("key", "input_id") if name in attributes.columns), None)
    if on is None:
        if attributes.height != len(ids) or store.inputs.height != len(ids):
            raise InputError(
                f"attributes has {attributes.height:,} lines and neither key nor input_id; the store has rows of "
                f"{len(ids):,} of {store.inputs.height:,} inputs. Add the column key; store.inputs shows the keys."
            )
        return attributes
    labels = attributes.drop("input_id" if on == "key" else "key", strict=False)
    labels = labels.with_columns(pl.col(on).cast(pl.String if on == "key" else pl.UInt32))
    if labels[on].n_unique() < labels.height:
        raise InputError(f"attributes names an input more than once in {on!r}. Keep one line per input.")
    if not rows[on].is_in(labels[on].implode()).any():
        theirs = repr(labels[on][0]) if labels.height else "nothing"
        raise InputError(
            f"No {on} of the attributes is one of the store: {theirs} there, {rows[on][0]!r} here. Give the attributes "
            "of the inputs that were collected."
        )
    return rows.select(on).join(labels, on=on, how="left", maintain_order="left")


def crossed(labels: Sequence[Label]) -> Int[Array, " rows"]:
    """One stratum for each combination of the labels' strata, −1 where one of them is missing."""
    codes = np.stack([label.strata() for label in labels])
    combination = np.zeros(codes.shape[1], dtype=np.int64)
    for one in codes:
        combination = combination * (one.max() + 1) + one
    known = np.asarray((codes >= 0).all(0))
    dense = np.full(len(known), -1)
    dense[known] = np.unique(combination[known], return_inverse=True)[1]
    return dense
