"""How good the dictionaries of a model are, layer by layer and budget by budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from nb_sae.errors import ConfigError
from nb_sae.flow.effects.recovered import Ablate, measure
from nb_sae.flow.schema import LAYER_QUALITY
from nb_sae.flow.sources import named_dictionaries, store_at
from nb_sae.layers import in_order, place_of
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.metrics.recovery import Meter
from nb_sae.sae.metrics.rows import chunks_with_targets, rows_at_a_time, targets_of
from nb_sae.types import ActivationSource

OUTPUT_MEASURES = ("cross_entropy", "cosine")
"""What `loss_recovered` is of: cross-entropy for a language model, cosine of the embedding for a CLIP."""


def layer_quality(
    dictionaries: Mapping[str, Dictionary],
    stores: Mapping[str, ActivationSource],
    *,
    model: Any = None,
    inputs: Any = None,
    ablate: Ablate = "zero",
    batch: int = 8,
    progress: bool = True,
) -> pl.DataFrame:
    """FVU, L0 and dead latents of every dictionary at each of its budgets, and what the model keeps of its output.

    With `model` and `inputs` the model runs once per batch and once more for each site, for its ablation and for each
    of its budgets: give few inputs. Without them `loss_recovered` is null.

    Args:
        dictionaries: By site.
        stores: Rows of every site that none of the dictionaries was trained on; each is read once.
        model: From `load_lm` or `load_clip`.
        inputs: What it runs on, as for `ns.recovered`.
        ablate: As for `ns.recovered`.
        batch: Contexts per forward pass.
        progress: Show progress bars.

    Returns:
        `LAYER_QUALITY`, in the order of the forward pass; `ns.plots.layer_quality` draws it. A layer and lane that the
        site's name does not say are null. The layer of the embedding is one above the last layer given.

    Raises:
        ConfigError: no dictionaries, one of `model` and `inputs` without the other, or as `ns.recovered`.
        StoreError: a site without rows, or rows of another site, model or scale.
    """
    dictionaries = named_dictionaries(dictionaries)
    if (model is None) != (inputs is None):
        raise ConfigError("loss_recovered needs both model= and inputs=. Give both, or leave out both.")
    for site, one in dictionaries.items():
        store_at(stores, site, one)
    sites = _ordered(dictionaries)
    lines: list[dict[str, Any]] = []
    with progress_bar(sum(len(stores[site]) for site in sites), "rows", "layer quality", enabled=progress) as bar:
        for site in sites:
            lines += [{"site": site, **_place(site, sites), **line} for line in _lines(dictionaries, stores, site, bar)]
    frame = pl.DataFrame([{**line, "loss_recovered": None} for line in lines], schema=LAYER_QUALITY)
    if model is None:
        return frame
    ks = {site: frame.filter(pl.col("site") == site)["k"].to_list() for site in sites}
    named = {site: dictionaries[site] for site in sites}
    kept = measure(model, named, inputs, ks, ablate=ablate, batch=batch, progress=progress)
    kept = kept.filter(pl.col("measure").is_in(OUTPUT_MEASURES)).select("site", "k", loss="recovered")
    joined = frame.join(kept, on=["site", "k"], how="left", nulls_equal=True, maintain_order="left")
    return joined.with_columns(loss_recovered="loss").select(LAYER_QUALITY.names())


def _lines(
    dictionaries: Mapping[str, Dictionary], stores: Mapping[str, ActivationSource], site: str, bar: Any
) -> list[dict[str, Any]]:
    """`k, fvu, l0, dead, rows` of one dictionary: one line per budget, and one for a rule of its own."""
    dictionary, store = dictionaries[site], stores[site]
    meter = Meter(dictionary, dictionary.budgets or (1,), own_rule=not dictionary.sets_k)
    for part, target in chunks_with_targets(store, targets_of(dictionary, store), rows_at_a_time(None, dictionary)):
        meter.add(part, target)
        bar.update(len(part))
    lines = [{name: value for name, value in line.items() if name != "cosine"} for line in meter.lines()]
    return lines if dictionary.budgets else lines[-1:]


def _ordered(dictionaries: Mapping[str, Dictionary]) -> list[str]:
    known = in_order(dictionaries)
    return known + [site for site in dictionaries if site not in known]


def _place(site: str, sites: list[str]) -> dict[str, Any]:
    place = place_of(site)
    if place is None:
        return {"layer": None, "lane": None}
    layer = place.layer
    if place.lane == "embedding":
        others = [other.layer for one in sites if (other := place_of(one)) is not None and other.lane != "embedding"]
        layer = max(others, default=-1) + 1
    return {"layer": layer, "lane": place.lane}
