"""Several dictionaries on the same rows at the same number of active latents, with PCA beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from nb_sae.errors import ConfigError, StoreError
from nb_sae.progress import progress as progress_bar
from nb_sae.sae import classical
from nb_sae.sae.config import default_budgets
from nb_sae.sae.metrics.recovery import Meter
from nb_sae.sae.metrics.rows import chunks_of, rows_at_a_time

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
    and `l0` says how many latents it took. PCA always has its lines: above k ≈ d/3 a dictionary that is worse than PCA
    is no explanation.

    Args:
        dictionaries: A list, named after their rule and size, or a mapping from names.
        store: Rows that none of them was trained on; read once, its length costs no memory.
        ks: Ascending. None: every trained budget that all of them can take; without any, powers of two from d/24.
        train: Rows for PCA. None: PCA is fitted to the rows of `store` themselves, which favours it, and its name
            says so.
        chunk_rows: Rows encoded at a time; None: what fits.
        progress: Show a progress bar.

    Returns:
        `name, rule, k, fvu, cosine, l0, unused, d_sae, rows`; `ns.plots.pareto` draws it.

    Raises:
        StoreError: a dictionary of another width, site, model or scale.
        ConfigError: nothing to compare, a name twice, a transcoder, or a k that a dictionary does not have.
    """
    named = _named(dictionaries)
    for name, dictionary in named.items():
        try:
            dictionary.check(store)
        except StoreError as error:
            raise StoreError(f"{name!r}: {error}") from error
    smallest = min(named, key=lambda name: named[name].d_sae)
    ks = _default_ks(named, store.d_in) if ks is None else tuple(ks)
    if ks and max(ks) > named[smallest].d_sae:
        raise ConfigError(f"k={max(ks)} is more than the {named[smallest].d_sae} latents of {smallest!r}. Lower it.")
    baseline = "PCA" if train is not None else "PCA (these rows)"
    if baseline in named:
        raise ConfigError(f"{baseline!r} is the name of the line that compare adds. Leave PCA out, or name it apart.")
    pca = classical.pca(store if train is None else train)
    pca.check(store)
    meters = {name: Meter(one, ks, own_rule=_has_own_rule(one)) for name, one in named.items()}
    within = [k for k in ks if k <= pca.d_sae]
    if within:
        meters[baseline] = Meter(pca, within)
    with progress_bar(len(store), "rows", "compare", enabled=progress) as bar:
        for part in chunks_of(store, rows_at_a_time(chunk_rows, *named.values())):
            for meter in meters.values():
                meter.add(part)
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
    rules = {"relu": "ReLU", "jump_relu": "JumpReLU", "gated": "Gated", "top_k": "TopK", "batch_top_k": "BatchTopK"}
    rule = rules[dictionary.sparsity]
    budgets = dictionary.budgets or ()
    if len(budgets) > 1:
        rule = f"{'Batch ' if dictionary.sparsity == 'batch_top_k' else ''}MSAE {budgets[0]}…{budgets[-1]}"
    elif budgets:
        rule = f"{rule} {budgets[0]}"
    return f"{rule}, {dictionary.d_sae:,} latents"


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


def _has_own_rule(dictionary: Dictionary | classical.Baseline) -> bool:
    return getattr(dictionary, "sparsity", "top_k") != "top_k"


def _default_ks(named: Mapping[str, Dictionary | classical.Baseline], d_in: int) -> tuple[int, ...]:
    most = min(one.d_sae for one in named.values())
    trained = {k for one in named.values() for k in (getattr(one, "budgets", None) or ()) if k <= most}
    return tuple(sorted(trained)) if trained else default_budgets(d_in, most)
