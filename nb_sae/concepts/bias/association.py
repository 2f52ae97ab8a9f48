"""How much a concept differs between groups: alone, and inside strata of other attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from nb_sae.concepts.bias.labels import Label, crossed
from nb_sae.concepts.bias.rows import ConceptRows
from nb_sae.concepts.schema import ASSOCIATION, BIAS_EXAMPLES, HISTOGRAMS
from nb_sae.statistics import (
    Estimate,
    benjamini_hochberg,
    dense_ranks,
    rank_biserial,
    rank_correlation,
)

BINS = 16
"""Of a histogram, from 0 to the largest activation."""


def association_frame(
    rows: ConceptRows,
    target: Label,
    *,
    given: Sequence[Sequence[Label]] = ((),),
    min_n: int,
    within: Bool[Array, " rows"] | None = None,
) -> pl.DataFrame:
    """One line per concept, group and condition (`schema.ASSOCIATION`); q-values over all of them.

    Args:
        rows: Of the report.
        target: What the groups are of; of a quantity its rank correlation with the concept.
        given: Conditions: each is the attributes whose combinations are the strata; an empty one is all rows.
        min_n: Rows below which a side is masked.
        within: Rows that may count; None: all.
    """
    lines = [line for labels in given for line in _under(rows, target, labels, min_n, within)]
    frame = pl.DataFrame(lines, schema=ASSOCIATION)
    return frame.with_columns(pl.Series("q_value", _q_values(frame["p_value"]), pl.Float64))


def _under(
    rows: ConceptRows, target: Label, given: Sequence[Label], min_n: int, within: Array | None
) -> list[dict[str, Any]]:
    usable = target.known if within is None else target.known & within
    candidates = len(usable) if within is None else int(within.sum())
    part = None
    if given:
        strata = crossed(given)
        usable = usable & (strata >= 0)
        part = np.unique(strata[usable], return_inverse=True)[1]
    shared = {"given": " × ".join(label.name for label in given) or None, "missing": candidates - int(usable.sum())}
    lines = []
    for column, concept in enumerate(rows.concepts):
        z = rows.z[usable, column].astype(float)
        found = _of_concept(z, dense_ranks(z), target, usable, part, min_n)
        lines += [{"concept": concept.name, "latent": concept.latent, **shared, **line} for line in found]
    return lines


def _q_values(p: pl.Series) -> list[float | None]:
    q = benjamini_hochberg(p.fill_null(math.nan).to_numpy())
    return [None if math.isnan(value) else value for value in q.tolist()]


def _of_concept(
    z: Array, levels: Array, target: Label, usable: Array, part: Array | None, min_n: int
) -> list[dict[str, Any]]:
    if target.kind == "continuous":
        values = target.values[usable] if target.values is not None else z
        found = rank_correlation(levels, dense_ranks(values), part)
        side = {"n": len(z), "n_rest": 0, "base_rate": None, "density": float((z > 0).mean()) if len(z) else None}
        return [_line(target.name, found, _pearson(z, values, part), side, len(z) < min_n)]
    codes, found = target.codes[usable], []
    for code in target.tested:
        group = codes == code
        n, n_rest = int(group.sum()), int((~group).sum())
        masked = min(n, n_rest) < min_n
        side = {"n": n, "n_rest": n_rest, "base_rate": n / max(1, len(group))}
        if not masked:
            side |= {"density": float((z[group] > 0).mean()), "density_rest": float((z[~group] > 0).mean())}
        estimate = Estimate() if masked else rank_biserial(levels, group, part)
        if part is not None and not masked:  # strata with too few rows on a side did not count
            side |= {"n": estimate.n, "n_rest": estimate.n_rest}
            masked = min(estimate.n, estimate.n_rest) < min_n
        difference = math.nan if masked else _standardised(z, group, part)
        found.append(_line(target.classes[code], estimate, difference, side, masked))
    return found


def _line(group: str, found: Estimate, difference: float, side: dict[str, Any], masked: bool) -> dict[str, Any]:
    numbers = {
        "effect": found.effect,
        "ci_low": found.low,
        "ci_high": found.high,
        "difference": difference,
        "p_value": found.p,
    }
    known = {name: None if masked or not math.isfinite(value) else value for name, value in numbers.items()}
    return {"group": group, **side, **known, "masked": masked}


def _standardised(z: Float[Array, " rows"], group: Bool[Array, " rows"], part: Int[Array, " rows"] | None) -> float:
    """Difference of means in pooled standard deviations; inside strata averaged with weights n₁n₀/(n₁+n₀)."""
    shift = weight = square = degrees = 0.0
    for inside in _strata(part, len(z)):
        first, rest = z[inside & group], z[inside & ~group]
        if len(first) < 2 or len(rest) < 2:
            continue
        share = len(first) * len(rest) / (len(first) + len(rest))
        shift += share * (first.mean() - rest.mean())
        weight += share
        square += (len(first) - 1) * first.var(ddof=1) + (len(rest) - 1) * rest.var(ddof=1)
        degrees += len(first) + len(rest) - 2
    spread = math.sqrt(square / degrees) if degrees else 0.0
    return shift / weight / spread if spread > 0 else math.nan


def _pearson(z: Array, values: Array, part: Array | None) -> float:
    """Pearson's correlation, inside strata averaged with weights n − 1."""
    total = weight = 0.0
    for inside in _strata(part, len(z)):
        if inside.sum() >= 4 and np.ptp(z[inside]) > 0 and np.ptp(values[inside]) > 0:
            total += (inside.sum() - 1) * float(np.corrcoef(z[inside], values[inside])[0, 1])
            weight += inside.sum() - 1
    return total / weight if weight else math.nan


def _strata(part: Array | None, rows: int) -> list[Array]:
    if part is None:
        return [np.ones(rows, dtype=bool)]
    return [part == stratum for stratum in range(int(part.max(initial=-1)) + 1)]


def histograms_frame(rows: ConceptRows, groups: dict[str, Bool[Array, " rows"]], *, min_n: int) -> pl.DataFrame:
    """How strongly each concept is active in each group (`schema.HISTOGRAMS`); small groups are left out."""
    lines = []
    for column, concept in enumerate(rows.concepts):
        z = rows.z[:, column]
        top = float(z.max(initial=0))
        for name, inside in groups.items():
            if top > 0 and inside.sum() >= min_n:
                active = z[inside & (z > 0)]
                counts = np.histogram(active, bins=BINS, range=(0, top))[0]
                lines.append((concept.name, concept.latent, name, counts.tolist(), top))
    return pl.DataFrame(lines, schema=HISTOGRAMS, orient="row")


def examples_frame(
    rows: ConceptRows, groups: dict[str, Bool[Array, " rows"]], *, count: int, min_n: int
) -> pl.DataFrame:
    """The rows of each group on which each concept is strongest (`schema.BIAS_EXAMPLES`)."""
    lines = []
    for column, concept in enumerate(rows.concepts):
        z = rows.z[:, column]
        for name, inside in groups.items():
            members = np.flatnonzero(inside & (z > 0)) if inside.sum() >= min_n else np.array([], dtype=int)
            best = members[np.lexsort((members, -z[members]))][:count]
            lines += [
                (concept.name, concept.latent, name, rank, int(row), int(rows.input_ids[row]), float(z[row]))
                for rank, row in enumerate(best)
            ]
    return pl.DataFrame(lines, schema=BIAS_EXAMPLES, orient="row")
