"""What taking concepts out of the rows does to a gap between groups, and what it costs in accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from numpy import ndarray as Array

from nb_sae.concepts.bias.error_gaps import MEASURES, Predictions
from nb_sae.concepts.bias.labels import Label
from nb_sae.concepts.bias.rows import Concept, ConceptRows
from nb_sae.concepts.schema import MITIGATION

How = Literal["ablate", "neutralise"]
RESAMPLES_AT_A_TIME = 100
_QUANTITIES = 5


def neutral_values(
    rows: ConceptRows, concepts: Sequence[Concept], groups: Label, train: Int[Array, " train"]
) -> Float[Array, " concepts"]:
    """The mean of each concept over the train rows, every group counting the same, whatever its size.

    It needs no label of the rows that are edited, and leaves nothing in the concept by which groups could differ.
    """
    columns = [rows.concepts.index(concept) for concept in concepts]
    codes = groups.codes[train]
    means = [rows.z[train[codes == code]][:, columns].mean(0) for code in np.unique(codes[codes >= 0])]
    return np.mean(means, axis=0, dtype=float)


def mitigation_frame(
    before: Predictions,
    after: Predictions,
    groups: Label,
    concepts: Sequence[Concept],
    how: str,
    *,
    resamples: int,
    seed: int,
) -> pl.DataFrame:
    """`schema.MITIGATION`: two lines per measure, before and after, over the same held-out rows.

    A gap is that of the tested group less the other one, among several groups the largest less the smallest. Intervals
    are percentiles over resampled rows; before and after share each resample, so that changes are paired. A change of a
    gap is one of its size, |after| − |before|.

    Args:
        before: On the rows as they are.
        after: On the edited rows.
        groups: What the gap is between, of the same rows; all of them have a group.
        concepts: What was taken out.
        how: "ablate" or "neutralise".
        resamples: Of the bootstrap.
        seed: Of it.
    """
    several = len(before.outputs) > 1
    measures = ("accuracy",) if several else MEASURES
    codes = np.unique(groups.codes, return_inverse=True)[1]
    tested = int(groups.tested[0] == np.unique(groups.codes)[-1])
    tables = np.stack([_quantities(before), _quantities(after)], 1)  # (rows, 2, quantities)
    whole = _measured(tables.sum(0)[None], _by_group(np.ones((1, len(codes))), tables, codes), tested, measures)
    draws = []
    random = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_A_TIME):
        count = min(RESAMPLES_AT_A_TIME, resamples - start)
        weights = random.multinomial(len(codes), np.full(len(codes), 1 / len(codes)), size=count).astype(float)
        by_group = _by_group(weights, tables, codes)
        draws.append(_measured(by_group.sum(1), by_group, tested, measures))
    accuracy, gaps = (np.concatenate([draw[part] for draw in draws]) for part in range(2))
    label = groups.classes[groups.tested[0]] if len(groups.classes) == 2 else "largest less smallest"
    lines = []
    for number, measure in enumerate(measures):
        for state, name in enumerate(("none", how)):
            change = {
                "accuracy": accuracy[:, 1] - accuracy[:, 0],
                "gap": _size(gaps[:, 1, number]) - _size(gaps[:, 0, number]),
            }
            found = {
                "how": name,
                "concepts": ", ".join(concept.name for concept in concepts) if state else "",
                "measure": measure, "n": len(codes), "group": label,
                **_interval("accuracy", whole[0][0, state], accuracy[:, state]),
                **_interval("gap", whole[1][0, state, number], gaps[:, state, number]),
            }  # fmt: skip
            if state:
                found |= _interval("accuracy_change", whole[0][0, 1] - whole[0][0, 0], change["accuracy"])
                size = _size(whole[1][0, 1, number]) - _size(whole[1][0, 0, number])
                found |= _interval("gap_change", size, change["gap"])
            lines.append(found)
    return pl.DataFrame(lines, schema=MITIGATION)


def _size(gap: Any) -> Any:
    return np.abs(gap)


def _quantities(predictions: Predictions) -> Float[Array, "rows quantities"]:
    """1, correct, positive, named and positive, named: of the first output."""
    code = predictions.outputs[0]
    positive, named = predictions.truth == code, predictions.said == code
    right = predictions.truth == predictions.said
    return np.stack([np.ones(len(named)), right, positive, positive & named, named], 1).astype(float)


def _by_group(weights: Array, tables: Array, codes: Array) -> Float[Array, "draws groups 2 quantities"]:
    flat = tables.reshape(len(tables), -1)
    parts = [weights[:, codes == code] @ flat[codes == code] for code in range(codes.max() + 1)]
    return np.stack(parts, 1).reshape(len(weights), -1, 2, _QUANTITIES)


def _measured(
    sums: Array, by_group: Array, tested: int, measures: Sequence[str]
) -> tuple[Float[Array, "draws 2"], Float[Array, "draws 2 measures"]]:
    accuracy = sums[..., 1] / sums[..., 0]
    n, right, positive, true, named = np.moveaxis(by_group, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        every = {
            "accuracy": right / n,
            "tpr": true / positive,
            "fpr": (named - true) / (n - positive),
            "positive rate": named / n,
        }
    gaps = []
    for measure in measures:
        value = every[measure]
        pair = value[:, tested] - value[:, 1 - tested] if value.shape[1] == 2 else value.max(1) - value.min(1)
        gaps.append(pair)
    return accuracy, np.stack(gaps, -1)


def _interval(name: str, value: float, draws: Array) -> dict[str, float | None]:
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    parts = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {key: float(part) if np.isfinite(part) else None for key, part in parts.items()}
