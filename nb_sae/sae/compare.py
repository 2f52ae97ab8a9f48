"""Several dictionaries on the same rows at the same number of active latents, with a linear baseline beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from nb_sae.errors import ConfigError, StoreError
from nb_sae.progress import progress as progress_bar
from nb_sae.sae import classical
from nb_sae.sae.config import default_budgets, titled
from nb_sae.sae.metrics.recovery import Meter
from nb_sae.sae.metrics.rows import chunks_of, chunks_with_targets, rows_at_a_time, targets_of

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary
    from nb_sae.types import ActivationSource

COMPARISON = pl.Schema(
    {
        "name": pl.String,
        "rule": pl.Enum(["top k", "own"]),  # "own": the trained rule of BatchTopK, JumpReLU, ReLU, gated
        "k": pl.UInt32,  # active latents allowed per row; null for a dictionary's own rule, see l0
        "fvu": pl.Float64,  # Σ‖x−x̂‖² / Σ‖x−x̄‖²; the mean of the rows alone has 1
        "cosine": pl.Float64,
        "l0": pl.Float64,  # measured: mean number of active latents per row
        "unused": pl.Float64,  # fraction of latents active on none of these rows
        "d_sae": pl.UInt32,
        "rows": pl.UInt64,
    }
)
_OWN = "own"
THESE_ROWS = " (these rows)"
"""What the baseline's name ends in where it was fitted to the rows that are measured."""
NEAR = 0.05
"""An L0 this near to a k, as a share of it, is matched by that k."""


def compare(
    dictionaries: Sequence[Dictionary | classical.Baseline] | Mapping[str, Dictionary | classical.Baseline],
    store: ActivationSource,
    ks: Sequence[int] | None = None,
    *,
    train: ActivationSource | None = None,
    chunk_rows: int | None = None,
    progress: bool = True,
) -> pl.DataFrame:
    """One line per dictionary and k: every dictionary with its k strongest latents, on the same rows.

    A dictionary with a rule of its own (BatchTopK, JumpReLU, ReLU, gated) has one line more, at that rule: k is null
    and `l0` says how many latents it took. Without `ks`, the L0 of each such rule is measured first and every
    dictionary has a line at the whole k next to it: that is where the rule stands beside the others at matched k.

    PCA always has its lines: above k ≈ d/3 a dictionary that is worse than PCA is no explanation. Transcoders are
    compared among themselves on `ns.pair(x, y)`: every number is then about y, and the best linear maps of rank k from
    x to y take the place of PCA.

    Args:
        dictionaries: A list, named after their rule and size, or a mapping from names.
        store: Rows that none of them was trained on, and for transcoders pairs; its length costs no memory. Read once,
            and once more where rules of their own decide the ks.
        ks: Ascending. None: every trained budget that all of them can take and the L0 of every rule of its own; without
            any budget, powers of two from d/24.
        train: Rows (pairs) for the baseline. None: it is fitted to the rows of `store` themselves, which favours it,
            and its name says so.
        chunk_rows: Rows encoded at a time; None: what fits.
        progress: Show a progress bar.

    Returns:
        `name, rule, k, fvu, cosine, l0, unused, d_sae, rows`; `ns.plots.pareto` draws it.

    Raises:
        StoreError: a dictionary of another width, site, model or scale, or transcoders without pairs.
        ConfigError: nothing to compare, a name twice, transcoders beside others, or a k that a dictionary does not
            have.
    """
    named = _named(dictionaries)
    targets = _checked(named, store)
    size = rows_at_a_time(chunk_rows, *named.values())
    ks = _default_ks(named, store, size, progress=progress) if ks is None else tuple(ks)
    smallest = min(named, key=lambda name: named[name].d_sae)
    if ks and max(ks) > named[smallest].d_sae:
        raise ConfigError(f"k={max(ks)} is more than the {named[smallest].d_sae} latents of {smallest!r}. Lower it.")
    meters = {name: Meter(one, ks, own_rule=_has_own_rule(one)) for name, one in named.items()}
    baseline = _baseline(named, store, train)
    within = [k for k in ks if k <= baseline.d_sae]
    if within:
        meters[baseline.name] = Meter(baseline, within)
    with progress_bar(len(store), "rows", "compare", enabled=progress) as bar:
        for part, target in chunks_with_targets(store, targets, size):
            for meter in meters.values():
                meter.add(part, target)
            bar.update(len(part))
    lines = [
        {
            **{key: value for key, value in line.items() if key != "dead"},
            "name": name,
            "rule": "top k" if line["k"] is not None else _OWN,
            "unused": line["dead"],
            "d_sae": meter.coder.d_sae,
        }
        for name, meter in meters.items()
        for line in meter.lines()
    ]
    return pl.DataFrame(lines, schema=COMPARISON)


def describe(dictionary: Dictionary | classical.Baseline) -> str:
    """A name from rule and size: "MSAE 16…256, 3,072 latents"."""
    if isinstance(dictionary, classical.Baseline):
        return dictionary.name
    return titled(dictionary.sparsity, dictionary.budgets, dictionary.d_sae, dictionary.is_transcoder)


def _named(
    dictionaries: Sequence[Dictionary | classical.Baseline] | Mapping[str, Dictionary | classical.Baseline],
) -> dict[str, Dictionary | classical.Baseline]:
    if not len(dictionaries):
        raise ConfigError("Nothing to compare. Give at least one dictionary: compare([dictionary], store).")
    for key, one in dictionaries.items() if isinstance(dictionaries, Mapping) else enumerate(dictionaries):
        if not hasattr(one, "encode") or not hasattr(one, "check"):
            raise ConfigError(f"{key!r} is a {type(one).__name__}; expected a Dictionary or a classical baseline.")
    if isinstance(dictionaries, Mapping):
        named = dict(dictionaries)
    else:
        named = {}
        for dictionary in dictionaries:
            name = base = describe(dictionary)
            number = 2
            while name in named:
                name = f"{base} ({number})"
                number += 1
            named[name] = dictionary
    return named


def _checked(named: Mapping[str, Dictionary | classical.Baseline], store: ActivationSource) -> ActivationSource:
    """The rows that reconstructions are compared with, after a check that all are of these rows."""
    kinds = {one.is_transcoder: name for name, one in named.items()}
    if len(kinds) > 1:
        raise ConfigError(
            f"{kinds[True]!r} is a transcoder and {kinds[False]!r} is not: they reconstruct other rows, so their "
            "numbers cannot be compared. Compare each kind by itself."
        )
    targets = store
    for name, one in named.items():
        try:
            one.check(store)
            targets = targets_of(one, store)
        except StoreError as error:
            raise StoreError(f"{name!r}: {error}") from error
    return targets


def _baseline(
    named: Mapping[str, Dictionary | classical.Baseline], store: ActivationSource, train: ActivationSource | None
) -> classical.Baseline:
    """PCA, or linear maps where transcoders are compared, under the name that its lines get."""
    fit = classical.linear_map if next(iter(named.values())).is_transcoder else classical.pca
    baseline = fit(store if train is None else train)
    baseline.check(store)
    if train is None:
        baseline.name += THESE_ROWS
    if baseline.name in named:
        raise ConfigError(f"{baseline.name!r} is the name of the line that compare adds. Leave it out, or rename it.")
    return baseline


def _has_own_rule(dictionary: Dictionary | classical.Baseline) -> bool:
    return not getattr(dictionary, "sets_k", True)


def _default_ks(
    named: Mapping[str, Dictionary | classical.Baseline], store: ActivationSource, chunk_rows: int, *, progress: bool
) -> tuple[int, ...]:
    most = min(one.d_sae for one in named.values())
    trained = {k for one in named.values() for k in (getattr(one, "budgets", None) or ()) if k <= most}
    ks = sorted(trained) if trained else list(default_budgets(store.d_in, most))
    for l0 in _own_l0s([one for one in named.values() if _has_own_rule(one)], store, chunk_rows, progress=progress):
        if 1 <= round(l0) <= most and all(abs(k - l0) > NEAR * k for k in ks):
            ks = sorted({*ks, round(l0)})
    return tuple(ks)


def _own_l0s(
    ruled: Sequence[Dictionary | classical.Baseline], store: ActivationSource, chunk_rows: int, *, progress: bool
) -> list[float]:
    """Mean number of active latents per row of each, by its own rule."""
    if not ruled:
        return []
    active = [0] * len(ruled)
    with progress_bar(len(store), "rows", "L0 of own rules", enabled=progress) as bar:
        for part in chunks_of(store, chunk_rows):
            for place, one in enumerate(ruled):
                active[place] += int((one.encode(part.to(one.device)) != 0).sum())
            bar.update(len(part))
    return [count / len(store) for count in active]
