"""Names of the latents of a flow, from whatever gives them, and the search among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from nb_sae.errors import WidgetError, closest
from nb_sae.widgets import wire
from nb_sae.widgets.flow_tables import FlowIndex

HITS = 60
"""Latents that one search names."""


class FlowNames:
    """Names by node; what the user wrote (`analysis.note`) wins over what was found."""

    def __init__(self, index: FlowIndex, names: Any, analyses: Mapping[str, Any]) -> None:
        self._index = index
        self.of: dict[int, str] = {}
        for site, latent, name in _triples(names):
            self._add(site, latent, name)
        for site, analysis in analyses.items():
            notes = getattr(analysis, "notes", None)
            if notes is not None:
                for latent, label in notes.select("latent", "label").iter_rows():
                    if label:
                        self._add(site, latent, label)
        self._nodes = sorted(self.of)
        self._lower = [self.of[node].lower() for node in self._nodes]

    def _add(self, site: Any, latent: Any, name: Any) -> None:
        index = self._index
        if site not in index.sites:
            raise WidgetError(
                f"names speaks of the site {site!r}, which is not in this flow. "
                f"{closest(str(site), index.sites)}Choose from flow.sites."
            )
        count = int(index.counts[index.sites.index(site)])
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < count:
            raise WidgetError(f"names speaks of latent {latent!r} at {site}, which has 0 … {count - 1}.")
        if name:
            self.of[index.node(site, latent)] = wire.clean_text(name)

    def find(self, text: str) -> list[int]:
        """Nodes whose number is `text`, then whose name begins with it, then whose name holds it."""
        wanted = text.strip().lower().removeprefix("#")
        if not wanted:
            return []
        index, found = self._index, []
        if wanted.isdecimal():
            latent = int(wanted)
            found = [int(index.first[place]) + latent for place, count in enumerate(index.counts) if latent < count]
        held = [(name, node) for name, node in zip(self._lower, self._nodes, strict=True) if wanted in name]
        # Nearest to the whole name first; of one name, the latent whose chain is the strongest.
        held.sort(key=lambda one: (not one[0].startswith(wanted), len(one[0]), -index.strength[one[1]], one[1]))
        return list(dict.fromkeys([*found, *(node for _, node in held)]))[:HITS]


def _triples(names: Any) -> list[tuple[Any, Any, Any]]:
    """(site, latent, name) of a frame with these columns, or of `{site: names}`."""
    if names is None:
        return []
    if isinstance(names, pl.DataFrame):
        _columns(names, ("site", "latent", "name"), "names")
        return list(names.select("site", "latent", "name").iter_rows())
    if not isinstance(names, Mapping):
        raise WidgetError(
            f"names is a {type(names).__name__}. Give {{site: {{latent: name}}}}, {{site: ns.name_concepts(…)}}, or a "
            "frame with site, latent and name."
        )
    return [(site, latent, name) for site, held in names.items() for latent, name in _pairs(site, held)]


def _pairs(site: Any, held: Any) -> list[tuple[Any, Any]]:
    if isinstance(held, Mapping):
        return list(held.items())
    frame = getattr(held, "frame", held)
    if not isinstance(frame, pl.DataFrame):
        raise WidgetError(
            f"names[{site!r}] is a {type(held).__name__}. Give {{latent: name}}, a frame with latent and name, or what "
            "ns.name_concepts returns."
        )
    _columns(frame, ("latent", "name"), f"names[{site!r}]")
    if "accepted" in frame.columns:
        frame = frame.filter(pl.col("accepted"))
    return list(frame.select("latent", "name").iter_rows())


def _columns(frame: pl.DataFrame, needed: tuple[str, ...], what: str) -> None:
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise WidgetError(f"{what} has the columns {', '.join(frame.columns)}; {', '.join(missing)} is missing.")
