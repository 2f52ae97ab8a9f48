"""Where a classifier errs: accuracy, TPR, FPR and calibration by group, by crossed groups and by level of a concept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from nb_sae.concepts.bias.labels import Label
from nb_sae.concepts.bias.rows import Concept
from nb_sae.concepts.schema import CLASS_ERRORS, ERRORS, GAPS
from nb_sae.statistics import benjamini_hochberg, difference_of_shares, wilson

CALIBRATION_BINS = 10
EVERYONE = "all"
MEASURES = ("accuracy", "tpr", "fpr", "positive rate")


@dataclass(frozen=True)
class Predictions:
    """What the classifier said of rows with a label, one line each.

    Attributes:
        truth: Code of the class.
        said: Code of the class it chose.
        chances: Probability of each output.
        outputs: Codes of the classes whose probability that is.
    """

    truth: Int[Array, " rows"]
    said: Int[Array, " rows"]
    chances: Float[Array, "rows outputs"]
    outputs: tuple[int, ...]

    def tally(self, output: int) -> Float[Array, "rows quantities"]:
        """What is summed over the rows of a group, for one output: see `_Sums`."""
        code, chance = self.outputs[output], self.chances[:, output]
        positive, named = self.truth == code, self.said == code
        box = np.minimum((chance * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        boxes = np.eye(CALIBRATION_BINS)[box]
        parts = [np.ones(len(chance)), self.truth == self.said, positive, positive & named, ~positive & named, chance]
        return np.concatenate([np.stack(parts, 1), boxes * (chance - positive)[:, None]], 1)


@dataclass(frozen=True)
class Cell:
    """Some rows and what they are called."""

    group: str
    concept: str | None = None
    level: str | None = None


def group_cells(groups: Sequence[Label]) -> tuple[list[Cell], Bool[Array, "rows cells"]]:
    """Everyone, each group, and each pair of groups of two attributes."""
    rows = len(groups[0].codes)
    cells, inside = [Cell(EVERYONE)], [np.ones(rows, dtype=bool)]
    for label in groups:
        for code, name in enumerate(label.classes):
            cells.append(Cell(name))
            inside.append(label.codes == code)
    for one, other in itertools.combinations(groups, 2):
        for (a, first), (b, second) in itertools.product(enumerate(one.classes), enumerate(other.classes)):
            cells.append(Cell(f"{first} × {second}"))
            inside.append((one.codes == a) & (other.codes == b))
    return cells, np.stack(inside, 1)


class _Sums:
    """Sums of `Predictions.tally` over the rows of each cell."""

    def __init__(self, sums: Float[Array, "cells quantities"]) -> None:
        self.n, self.correct, self.positive, self.true, self.false, self.chance = sums[:, :6].T
        self.box_gaps = sums[:, 6:]

    def counts(self, measure: str) -> tuple[Array, Array]:
        """Successes and rows of a measure."""
        return {
            "accuracy": (self.correct, self.n),
            "tpr": (self.true, self.positive),
            "fpr": (self.false, self.n - self.positive),
            "positive rate": (self.true + self.false, self.n),
        }[measure]


def error_frames(
    predictions: Predictions,
    groups: Sequence[Label],
    concepts: Sequence[Concept],
    active: Bool[Array, "rows concepts"],
    names: Sequence[str],
    *,
    min_n: int,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """`schema.ERRORS`, `schema.CLASS_ERRORS` (empty for two classes) and `schema.GAPS`.

    Args:
        predictions: On held-out rows.
        groups: Attributes to split by, of the same rows; the first one's groups are also crossed with the concepts.
        concepts: What `active` has columns of.
        active: Whether the concept is above 0.
        names: Of the outputs.
        min_n: Rows below which a line is masked, and a rate left out.
    """
    cells, inside = group_cells(groups)
    split = [0, *range(1, 1 + len(groups[0].classes))]  # everyone, and the groups of the first attribute
    several = len(names) > 1
    first = None
    by_class = []
    for output, name in enumerate(names):
        tally = predictions.tally(output)
        plain = _Sums(inside.T.astype(float) @ tally)
        parts = [_levels(inside[:, cell], active, tally) for cell in split]
        lines = _lines(cells, plain, min_n)
        for cell, sides in zip(split, parts, strict=True):
            for level, sums in sides.items():
                of = [Cell(cells[cell].group, concept.name, level) for concept in concepts]
                lines += _lines(of, sums, min_n)
        by_class += [{"output": name, **line} for line in lines]
        first = first or (plain, parts)
    if first is None:
        return pl.DataFrame(schema=ERRORS), pl.DataFrame(schema=CLASS_ERRORS), pl.DataFrame(schema=GAPS)
    measures = ("accuracy",) if several else MEASURES
    gaps = _gaps(groups, first[0], min_n, measures)
    for cell, sides in zip(split, first[1], strict=True):
        of = [(cells[cell].group, "off", concept.name) for concept in concepts]
        gaps += _gap_lines(of, sides["on"], sides["off"], min_n, measures)
    frame = pl.DataFrame(gaps, schema=GAPS)
    q = benjamini_hochberg(frame["p_value"].fill_null(np.nan).to_numpy())
    frame = frame.with_columns(pl.Series("q_value", q, pl.Float64).fill_nan(None))
    classes = pl.DataFrame(by_class, schema=CLASS_ERRORS)
    errors = classes.filter(pl.col("output") == names[0]).drop("output")
    if several:  # rates are of one class: the table of the whole keeps what is of all of them
        whole = ("group", "concept", "level", "n", "accuracy", "accuracy_low", "accuracy_high", "masked")
        errors = errors.with_columns(pl.lit(None, dtype).alias(n) for n, dtype in ERRORS.items() if n not in whole)
    return errors, classes if several else classes.clear(), frame


def _levels(inside: Array, active: Array, tally: Array) -> dict[str, _Sums]:
    """Sums over the rows of a cell on which each concept is active, and on which it is not."""
    on = active[inside].T.astype(float) @ tally[inside]
    return {"on": _Sums(on), "off": _Sums(tally[inside].sum(0) - on)}


def _lines(cells: Sequence[Cell], sums: _Sums, min_n: int) -> list[dict[str, Any]]:
    found: dict[str, Array] = {}
    for measure in ("accuracy", "tpr", "fpr"):
        successes, n = sums.counts(measure)
        enough = n >= min_n
        with np.errstate(invalid="ignore", divide="ignore"):
            share = successes / n
        for suffix, part in zip(("", "_low", "_high"), (share, *wilson(successes, n)), strict=True):
            found[measure + suffix] = np.where(enough, part, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["base_rate"] = sums.positive / sums.n
        found["calibration"] = (sums.chance - sums.positive) / sums.n
        found["ece"] = np.abs(sums.box_gaps).sum(1) / sums.n
    lines = []
    for number, cell in enumerate(cells):
        n, masked = int(sums.n[number]), bool(sums.n[number] < min_n)
        known = {name: _number(part[number]) for name, part in found.items()} if not masked else {}
        positive = None if masked else int(sums.positive[number])
        lines.append(
            {"group": cell.group, "concept": cell.concept, "level": cell.level, "n": n, "n_positive": positive, **known,
             "masked": masked}
        )  # fmt: skip
    return lines


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _gaps(groups: Sequence[Label], sums: _Sums, min_n: int, measures: Sequence[str]) -> list[dict[str, Any]]:
    """Each group against the other groups of its attribute."""
    lines, start = [], 1
    for label in groups:
        of = np.arange(start, start + len(label.classes))
        start += len(label.classes)
        tested = np.array(label.tested)
        whole = _stacked(sums, of).sum(0)
        part = _stacked(sums, of[tested])
        names = [(label.classes[code], "the rest", None) for code in tested]
        lines += _gap_lines(names, _Sums(part), _Sums(whole - part), min_n, measures)
    return lines


def _stacked(sums: _Sums, cells: Array) -> Array:
    parts = (sums.n, sums.correct, sums.positive, sums.true, sums.false, sums.chance)
    return np.concatenate([np.stack(parts, 1)[cells], sums.box_gaps[cells]], 1)


def _gap_lines(
    names: Sequence[tuple[str, str, str | None]], first: _Sums, rest: _Sums, min_n: int, measures: Sequence[str]
) -> list[dict[str, Any]]:
    lines = []
    for measure in measures:
        (a, n), (b, m) = first.counts(measure), rest.counts(measure)
        gap, low, high, p = difference_of_shares(a, n, b, m)
        for number, (group, versus, concept) in enumerate(names):
            masked = bool(min(n[number], m[number]) < min_n)
            numbers = {"gap": gap, "ci_low": low, "ci_high": high, "p_value": p}
            known = {} if masked else {name: _number(part[number]) for name, part in numbers.items()}
            lines.append(
                {"group": group, "versus": versus, "concept": concept, "measure": measure, "n": int(n[number]),
                 "n_rest": int(m[number]), "masked": masked, **known}
            )  # fmt: skip
    return lines
