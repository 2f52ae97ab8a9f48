"""Names from labelled data, without any text: the attribute that a latent's activation separates best.

Owns the rank statistic, its permutation null and the reading of labels for it. An input's activation is its largest
over the input's rows; inputs without a label are left out of that label's test alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from nb_sae.errors import ConfigError, InputError
from nb_sae.sae.metrics.rows import rows_at_a_time
from nb_sae.types import ActivationSource

LEAST_INPUTS = 10
"""With and without an attribute, below which it is not tested."""
PERMUTATIONS_AT_A_TIME = 25
_COLUMNS = {"latent": pl.UInt32, "data_name": pl.String, "data_auc": pl.Float64, "data_p": pl.Float64}


def data_names(
    dictionary: Any,
    store: ActivationSource,
    attributes: pl.DataFrame,
    latents: NDArray[Any],
    *,
    permutations: int = 200,
    seed: int = 0,
    k: int | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """For each latent the attribute with the AUC farthest from 0.5, and whether chance does as well.

    AUC is the chance that the activation on an input with the attribute is above that on one without, ties counting
    half. Below 0.5 the latent says that the attribute is absent: the name is then `"not "` and the attribute, the AUC
    that of absence. p is single-step max-T: labels are permuted over inputs, all attributes together, and the largest
    |z| over the attributes of a permutation is what the observed one has to beat. So it is corrected for the number of
    attributes; it is not corrected for the number of latents. z is AUC − 0.5 over its standard deviation without ties.

    Args:
        dictionary: Anything with `encode`.
        store: Rows of its site.
        attributes: One column per attribute: Boolean, 0/1 or −1/1, null (or NaN) where unknown. Joined by `key`.
        latents: Which.
        permutations: At least 1.
        seed: Of the permutations.
        k: Latents per row that `encode` keeps; None: the trained rule; `d_sae`: all of ReLU(pre).

    Returns:
        `latent, data_name, data_auc, data_p`, null for a latent that is active nowhere; and what was tested, skipped
        and missing.

    Raises:
        InputError: no attribute can be tested, or the keys are not those of the store.
        StoreError: the rows are not those of the dictionary.

    Source:
        Westfall & Young 1993, Resampling-Based Multiple Testing (single-step max-T).
    """
    if permutations < 1:
        raise ConfigError(f"permutations={permutations} must be at least 1; p is at least 1 / (permutations + 1).")
    dictionary.check(store)
    labels, dropped = read_labels(store, attributes)
    activations = _activations(dictionary, store, latents, k)
    tests = list(_by_missing(labels))
    observed = torch.cat([test.auc(activations, test.labels) for test in tests], dim=1)
    scale = torch.cat([test.scale() for test in tests])
    tested = [name for test in tests for name in test.names]
    z = (observed - 0.5) / scale
    best = (observed - 0.5).abs().argmax(1)
    rows = torch.arange(len(latents))
    reached = torch.zeros(len(latents), dtype=torch.double)
    random = np.random.default_rng(seed)
    for first in range(0, permutations, PERMUTATIONS_AT_A_TIME):
        count = min(PERMUTATIONS_AT_A_TIME, permutations - first)
        largest = torch.zeros(len(latents), count, dtype=torch.double)
        for test in tests:
            largest = torch.maximum(largest, test.permuted_z(activations, count, random))
        reached += (largest >= z[rows, best].abs()[:, None] - 1e-12).sum(1)
    auc = observed[rows, best]
    frame = pl.DataFrame(
        {
            "latent": np.asarray(latents, dtype=np.uint32),
            "data_name": [
                f"{'not ' * bool(a < 0.5)}{tested[i]}" for a, i in zip(auc.tolist(), best.tolist(), strict=True)
            ],
            "data_auc": torch.maximum(auc, 1 - auc).numpy(),
            "data_p": ((1 + reached) / (1 + permutations)).numpy(),
        },
        schema=_COLUMNS,
    )
    silent = pl.Series(np.bincount(activations.latent, minlength=len(latents)) == 0)
    found = [pl.when(silent).then(None).otherwise(pl.col(name)).alias(name) for name in list(_COLUMNS)[1:]]
    about = {"attributes": tested, "inputs": activations.inputs, "permutations": permutations, "seed": seed, "k": k}
    return frame.with_columns(found), {**about, **dropped}


def read_labels(store: ActivationSource, attributes: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Boolean labels with nulls, one line per input of the store that gave rows, in the order of their numbers.

    Returns:
        The labels, and `missing` (inputs without each label) and `skipped` (attribute → why it cannot be tested).

    Raises:
        InputError: the lines cannot be joined to the inputs, or no column is an attribute.
    """
    ids = store.rows["input_id"].unique().sort()
    inputs = store.inputs.filter(pl.col("input_id").is_in(ids.implode())).sort("input_id")
    columns = [name for name in attributes.columns if name not in ("input_id", "key")]
    if "key" in attributes.columns:
        if attributes["key"].n_unique() < attributes.height:
            raise InputError("attributes names a key more than once. Keep one line per input.")
        joined = inputs.select("key").join(attributes.drop("input_id", strict=False), on="key", how="left")
        if not inputs["key"].is_in(attributes["key"].implode()).any():
            raise InputError(
                f"No key of the attributes is one of the store (such as {attributes['key'][0]!r} and "
                f"{inputs['key'][0]!r}). Give the attributes of the inputs that were collected."
            )
    elif attributes.height == store.inputs.height == inputs.height:
        joined = attributes
    else:
        raise InputError(
            f"attributes has {attributes.height:,} lines and no 'key'; the store has rows of {inputs.height:,} of "
            f"{store.inputs.height:,} inputs. Add a column 'key' with the keys of store.inputs."
        )
    skipped: dict[str, str] = {}
    labels: dict[str, pl.Series] = {}
    for name in columns:
        label = as_boolean(joined[name])
        if label is None:
            skipped[name] = "neither Boolean nor 0/1 nor -1/1"
        elif min(label.sum() or 0, (~label).sum() or 0) < LEAST_INPUTS:
            skipped[name] = f"fewer than {LEAST_INPUTS} inputs with it, or without it"
        else:
            labels[name] = label
    if not labels:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3])
        raise InputError(f"No attribute can be tested ({reasons or 'there are none'}). Give labels with two values.")
    frame = pl.DataFrame(labels)
    missing = {name: frame[name].null_count() for name in labels if frame[name].null_count()}
    return frame, {"missing": missing, "skipped": skipped}


def as_boolean(values: pl.Series) -> pl.Series | None:
    """Boolean, 0/1 and −1/1 as Boolean with nulls; None for anything else."""
    if values.dtype == pl.Boolean:
        return values
    if not values.dtype.is_numeric():
        return None
    values = values.fill_nan(None) if values.dtype.is_float() else values
    held = set(values.drop_nulls().unique().to_list())
    return (values == 1) if held <= {0, 1} or held <= {-1, 1} else None


@dataclass(frozen=True)
class Activations:
    """What is above 0, as (input, latent, value), sorted by latent and then by value."""

    inputs: int
    latents: int
    input: NDArray[np.int64]
    latent: NDArray[np.int64]
    value: NDArray[np.float32]


def _activations(dictionary: Any, store: ActivationSource, latents: NDArray[Any], k: int | None) -> Activations:
    place = np.full(dictionary.d_sae, -1)
    place[latents] = np.arange(len(latents))
    ids, of_row = np.unique(store.rows["input_id"].to_numpy(), return_inverse=True)
    parts: list[tuple[NDArray[Any], ...]] = []
    for first, rows in store.chunks(rows_at_a_time(None, dictionary)):
        values, numbers = (part.cpu().numpy() for part in dictionary.encode(rows, k, sparse=True))
        here = place[numbers]
        row, column = np.nonzero((values > 0) & (here >= 0))
        parts.append((of_row[first + row], here[row, column], values[row, column]))
    if not parts:
        parts.append((np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)))
    entries, latent, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    # The largest of each (input, latent) stands last after sorting by value.
    order = np.lexsort((value, entries, latent))
    entries, latent, value = entries[order], latent[order], value[order]
    last = np.ones(len(value), bool)
    last[:-1] = (np.diff(latent) != 0) | (np.diff(entries) != 0)
    entries, latent, value = entries[last], latent[last], value[last]
    order = np.lexsort((value, latent))
    return Activations(len(ids), len(latents), entries[order], latent[order], value[order])


@dataclass(frozen=True)
class _Test:
    """Attributes with the same inputs labelled."""

    names: list[str]
    known: NDArray[np.bool_]
    """`(inputs,)`: has these labels."""
    labels: torch.Tensor
    """`(known inputs, attributes)`, 0 or 1, float64."""

    def scale(self) -> torch.Tensor:
        """Standard deviation of each AUC under permutation, without ties."""
        n, with_it = len(self.labels), self.labels.sum(0)
        return ((n + 1) / (12 * with_it * (n - with_it))).sqrt()

    def auc(self, activations: Activations, labels: torch.Tensor) -> torch.Tensor:
        """`(latents, columns of labels)` from midranks; only active inputs are touched."""
        ranks, zero_rank = self._ranks(activations)
        n, with_it = len(labels), labels.sum(0)
        sums = torch.sparse.mm(ranks, labels) + zero_rank[:, None] * with_it
        return (sums - with_it * (with_it + 1) / 2) / (with_it * (n - with_it))

    def permuted_z(self, activations: Activations, count: int, random: np.random.Generator) -> torch.Tensor:
        """`(latents, count)`: the largest |z| over the attributes for each permutation of the inputs."""
        shuffled = [self.labels[random.permutation(len(self.labels))] for _ in range(count)]
        auc = self.auc(activations, torch.cat(shuffled, dim=1))
        z = (auc - 0.5).unflatten(1, (count, -1)) / self.scale()
        return z.abs().amax(-1)

    def _ranks(self, activations: Activations) -> tuple[torch.Tensor, torch.Tensor]:
        """Midrank less that of the inactive inputs, sparse `(latents, known inputs)`; and the latter, `(latents,)`."""
        keep = self.known[activations.input]
        place = np.cumsum(self.known) - 1
        column, latent, value = place[activations.input[keep]], activations.latent[keep], activations.value[keep]
        active = np.bincount(latent, minlength=activations.latents)
        inactive = int(self.known.sum()) - active
        # A tie is a run of the same value in the same latent; its members share the mean of their ranks.
        starts = np.ones(len(value), bool)
        starts[1:] = (np.diff(latent) != 0) | (np.diff(value) != 0)
        run = np.cumsum(starts) - 1
        position = np.arange(len(value)) - (np.cumsum(active) - active)[latent]
        length = np.bincount(run)
        middle = position[starts] + (length - 1) / 2 if len(value) else np.zeros(0)
        zero = (inactive + 1) / 2
        rank = inactive[latent] + middle[run] + 1 - zero[latent]
        shape = (activations.latents, int(self.known.sum()))
        indices = torch.from_numpy(np.stack([latent, column]))
        ranks = torch.sparse_coo_tensor(indices, torch.from_numpy(rank), shape, check_invariants=True)
        return ranks, torch.from_numpy(zero)


def _by_missing(labels: pl.DataFrame) -> Iterator[_Test]:
    groups: dict[bytes, list[str]] = {}
    for name in labels.columns:
        groups.setdefault(labels[name].is_not_null().to_numpy().tobytes(), []).append(name)
    for mask, names in groups.items():
        known = np.frombuffer(mask, dtype=bool)
        held = labels.select(names).filter(pl.Series(known)).to_numpy().astype(np.float64)
        yield _Test(names, known, torch.from_numpy(held))
