"""The tables of a flow, made from the scores of its pairs of sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy import ndarray as Array

from nb_sae.flow.links.nulls import upper_quantile
from nb_sae.flow.links.scores import Scored
from nb_sae.flow.schema import EDGES, FLOW_LATENTS, FLOW_NULLS
from nb_sae.layers import Place

_MATCHED = ("residual", "attention", "mlp")


def edges_of(scored: Scored) -> pl.DataFrame:
    """`EDGES` of one pair of sites, by target latent and rank; scores of 0 and below are no edges."""
    cosines, sources = scored.nearest.cosines.numpy(), scored.nearest.sources.numpy()
    targets, ranks = np.nonzero((cosines > 0) & (sources >= 0))
    values = cosines[targets, ranks]
    return pl.DataFrame(
        {
            "source_site": pl.repeat(scored.route.source, len(values), eager=True),
            "source_latent": sources[targets, ranks],
            "target_site": pl.repeat(scored.route.target, len(values), eager=True),
            "target_latent": targets,
            "cosine": values,
            "rank": ranks,
            "p": scored.chance.p_of(values, scored.sources),
            "above": values >= scored.threshold,
            "kind": pl.repeat(scored.route.lane, len(values), dtype=pl.String, eager=True),
        },
        schema=EDGES,
        strict=False,
    )


def latents_of(site: str, place: Place, count: int, scores: Sequence[Scored]) -> pl.DataFrame:
    """`FLOW_LATENTS` of one site.

    Args:
        site: Which.
        place: Where it lies; of the embedding, `layer` is the number of blocks.
        count: Its latents.
        scores: Of every pair of sites that it is part of.
    """
    columns: dict[str, object] = {
        "site": pl.repeat(site, count, eager=True),
        "latent": np.arange(count),
        "layer": np.full(count, place.layer),
        "lane": pl.repeat(place.lane, count, dtype=pl.String, eager=True),
    }
    into = {one.route.lane: one for one in scores if one.route.target == site}
    columns["kind"] = _kinds(into) if place.lane == "residual" and "residual" in into else [None] * count
    best = {lane: one.best() for lane, one in into.items()}
    for column, part in (("s", 0), ("match", 1), ("p", 2)):
        for lane in _MATCHED:
            columns[f"{column}_{lane}"] = best[lane][part] if lane in best else [None] * count
    out = next(
        (one for one in scores if one.route.source == site and (one.route.along or place.lane != "residual")), None
    )
    carried = ([None] * count,) * 3 if out is None else out.forward()
    columns["carried_to"], columns["carried"], columns["p_carried"] = carried[1], carried[0], carried[2]
    numbers = [name for name in columns if name.startswith("match_") or name == "carried_to"]
    frame = pl.DataFrame({name: columns[name] for name in FLOW_LATENTS.names()})
    # −1 stands for "none" in arrays of numbers, and is null in the table.
    frame = frame.with_columns(pl.when(pl.col(numbers) >= 0).then(pl.col(numbers)).name.keep())
    return frame.cast(FLOW_LATENTS)  # pyright: ignore[reportArgumentType]


def nulls_of(scored: Scored) -> dict[str, object]:
    """One line of `FLOW_NULLS`."""
    return {
        "source_site": scored.route.source,
        "target_site": scored.route.target,
        "d_in": scored.d_in,
        "sources": scored.sources,
        "draws": len(scored.chance.draws),
        "mean": float(scored.chance.draws.double().mean()),
        "expected": scored.chance.expected,
        "q999": upper_quantile(scored.chance.draws),
        "paper": scored.paper,
        "threshold": scored.threshold,
        "rule": scored.chosen_by,
        "targets_above": int(_reaches(scored).sum()),
        "targets": scored.targets,
    }


def _reaches(scored: Scored) -> Array:
    """Of which target latents the best match reaches the threshold; a score of 0 never does, it is no match."""
    scores, sources, _ = scored.best()
    return (scores >= scored.threshold) & (sources >= 0)


def nulls_frame(scores: Sequence[Scored]) -> pl.DataFrame:
    """`FLOW_NULLS`, one line per pair of sites."""
    return pl.DataFrame([nulls_of(one) for one in scores], schema=FLOW_NULLS, orient="row")


def _kinds(into: Mapping[str, Scored]) -> Array:
    """The four cases of Laptev et al. 2025, section 3: is the residual score high, is that of a module?"""
    high = {lane: _reaches(one) for lane, one in into.items()}
    before = high["residual"]
    module = np.zeros_like(before)
    for lane in ("attention", "mlp"):
        if lane in high:
            module |= high[lane]
    return np.select(
        [before & ~module, before & module, ~before & module],
        ["translated", "processed", "newborn"],
        default="unexplained",
    )
