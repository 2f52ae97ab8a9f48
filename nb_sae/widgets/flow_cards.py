"""The cards of latents of several sites in one message: every site's own tables, pictures that they share once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from nb_sae.errors import WidgetError, closest
from nb_sae.widgets import wire
from nb_sae.widgets.cards import Cards, Limits, cut_cards
from nb_sae.widgets.flow_tables import FlowIndex

TOP = {"image": 6, "text": 4}
"""Strongest examples of a card; a chain shows several cards side by side."""
WINDOW = (12, 8)
Latent = tuple[str, int]


def check_analyses(index: FlowIndex, analyses: Any) -> dict[str, Any]:
    """The analyses by site.

    Raises:
        WidgetError: not a mapping of sites to analyses, or one of another dictionary.
    """
    if analyses is None:
        return {}
    if not isinstance(analyses, Mapping):
        raise WidgetError(
            f"analyses is a {type(analyses).__name__}. Give {{site: ns.analyze(dictionary, store)}}, one per site."
        )
    for site, analysis in analyses.items():
        if site not in index.sites:
            raise WidgetError(
                f"analyses speaks of the site {site!r}, which is not in this flow. "
                f"{closest(str(site), index.sites)}Choose from flow.sites."
            )
        missing = [name for name in ("latents", "examples", "inputs", "site", "d_sae") if not hasattr(analysis, name)]
        if missing:
            raise WidgetError(
                f"analyses[{site!r}] is a {type(analysis).__name__} without {', '.join(missing)}. "
                "Give what ns.analyze returns."
            )
        count = int(index.counts[index.sites.index(site)])
        if int(analysis.d_sae) < count:
            raise WidgetError(
                f"analyses[{site!r}] is of {analysis.d_sae} latents, the flow has {count} there. "
                "Analyse the dictionary that was matched."
            )
    return dict(analyses)


def about_analyses(analyses: Mapping[str, Any], index: FlowIndex) -> dict[str, dict[str, Any]]:
    """What the browser must know of every site to draw its cards, by the site's place."""
    return {
        str(index.sites.index(site)): {
            "modality": analysis.modality,
            "pooled": bool(analysis.site.pooled),
            "grid": list(analysis.site.grid) if analysis.site.grid else None,
            "prefix_tokens": int(analysis.site.prefix_tokens),
            "positions": int(analysis.site.positions),
            "rows": int(analysis.rows),
        }
        for site, analysis in analyses.items()
    }


def pack_cards(
    index: FlowIndex, analyses: Mapping[str, Any], latents: Sequence[Latent], max_bytes: int | None = None
) -> tuple[dict[str, Any], bytes, dict[str, Any], bytes, int]:
    """Tables `<place>/<table>` per site and all pictures; and how many of `latents` are inside.

    Latents are in their order of importance: with `max_bytes`, as many of the first ones as fit are kept.
    """
    offered = [one for one in dict.fromkeys(latents) if one[0] in analyses]
    kept = len(offered)
    packed = _pack(index, analyses, offered)
    while max_bytes is not None and kept > 0 and len(packed[1]) + len(packed[3]) > max_bytes:
        kept = min(kept - 1, int(kept * max_bytes / (len(packed[1]) + len(packed[3]))))
        packed = _pack(index, analyses, offered[:kept])
    return *packed, kept


def _pack(
    index: FlowIndex, analyses: Mapping[str, Any], latents: Sequence[Latent]
) -> tuple[dict[str, Any], bytes, dict[str, Any], bytes]:
    tables: dict[str, pl.DataFrame] = {}
    thumbs: dict[bytes, int] = {}
    for place, site in enumerate(index.sites):
        own = [latent for one, latent in latents if one == site]
        if not own:
            continue
        analysis = analyses[site]
        limits = Limits(top=TOP[analysis.modality], interval=0, window=WINDOW)
        for name, frame in _shared(cut_cards(analysis, own, limits), thumbs).items():
            tables[f"{place}/{name}"] = frame
    return *wire.pack(tables), *wire.pack_thumbs(list(thumbs))


def _shared(cards: Cards, thumbs: dict[bytes, int]) -> dict[str, pl.DataFrame]:
    """The tables of one site, its pictures numbered among those of all sites."""
    numbers = [-1, *(thumbs.setdefault(thumb, len(thumbs)) for thumb in cards.thumbs)]
    inputs = cards.tables["inputs"]
    placed = pl.Series("thumb", [numbers[one + 1] for one in inputs["thumb"]], dtype=pl.Int32)
    # The histograms belong to the feature dashboard; a card of a chain shows examples only.
    blank = pl.lit([], dtype=cards.tables["cards"].schema["histogram"]).alias("histogram")
    return {**cards.tables, "inputs": inputs.with_columns(placed), "cards": cards.tables["cards"].with_columns(blank)}
