"""An index over the frames of a feature flow: which latents to show, their chains, and where each stands.

A node is one latent of one site, numbered over all sites in the order of the forward pass. Edges are sorted once, by
target and by source, so that a page of a graph of millions of edges is a few slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from nb_sae.errors import WidgetError, closest
from nb_sae.flow import schema
from nb_sae.widgets.flow_order import column_order

FRAMES: dict[str, pl.Schema] = {"latents": schema.FLOW_LATENTS, "edges": schema.EDGES, "nulls": schema.FLOW_NULLS}
ROUTES = ("residual", "attention", "mlp")
"""Lanes that a latent can come from."""
CLOSE_EDGES = 6
"""Predecessors and successors of the chosen latent that are always shown."""


@dataclass(frozen=True)
class Filter:
    """What the reader lets through."""

    lanes: tuple[str, ...] = ()
    """Empty: every lane."""
    kind: str = ""
    """Empty: every kind."""
    score: str = "s_residual"
    """The score that `least` is about: s_residual, s_attention, s_mlp or carried."""
    least: float = 0.0


SCORES = ("s_residual", "s_attention", "s_mlp", "carried")


class FlowIndex:
    """The sites and latents of a flow as arrays.

    Args:
        flow: What `ns.feature_flow` gives: frames `latents`, `edges` and `nulls`, and `sites` in their order.

    Raises:
        WidgetError: a frame is missing or lacks columns, or speaks of a site that `flow.sites` does not name.
    """

    def __init__(self, flow: Any) -> None:
        frames = {name: _frame(flow, name) for name in FRAMES}
        self.sites: list[str] = [str(site) for site in getattr(flow, "sites", ())]
        if not self.sites:
            raise WidgetError("The flow has no sites. Give it the dictionaries of two sites or more.")
        latents, edges = frames["latents"], frames["edges"]
        named = [latents["site"], edges["source_site"], edges["target_site"], *_sites_of(frames["nulls"])]
        unknown = {site for column in named for site in column.unique()} - set(self.sites)
        if unknown:
            raise WidgetError(
                f"The frames of the flow name {', '.join(sorted(unknown))}, which flow.sites does not. "
                "Run ns.feature_flow again."
            )
        self.counts = self._count(latents, edges)
        self.first = np.concatenate([[0], np.cumsum(self.counts)])
        self.size = int(self.first[-1])
        self.site_of = np.repeat(np.arange(len(self.sites), dtype=np.int32), self.counts)
        self._read_latents(latents)
        self._read_edges(edges)
        self._read_nulls(frames["nulls"])
        self._link()
        into, out = np.flatnonzero(self._above), self._out[self._above[self._out]]
        self.y = column_order(self.first, (self._source, self._target, self._cosine), into, out)

    # Nodes

    def node(self, site: str, latent: int) -> int:
        """Number of a latent of a site."""
        return int(self.first[self.sites.index(site)]) + int(latent)

    def latent_of(self, node: int) -> tuple[str, int]:
        """Site and number of a latent."""
        place = int(self.site_of[node])
        return self.sites[place], int(node - self.first[place])

    def check(self, site: str, latent: int | None = None) -> tuple[str, int]:
        """Site and latent, the strongest of the site for None.

        Raises:
            WidgetError: there is no such site, or no such latent of it.
        """
        if site not in self.sites:
            raise WidgetError(
                f"site={site!r} is not in this flow. {closest(str(site), self.sites)}Choose from flow.sites."
            )
        place = self.sites.index(site)
        count = int(self.counts[place])
        if latent is None:
            return site, int(self._ranked[place][0] - self.first[place]) if count else 0
        if not 0 <= latent < count:
            raise WidgetError(
                f"latent={latent} is outside 0 … {count - 1}, the latents at {site}. "
                f"The numbers are in flow.latents.filter(pl.col('site') == {site!r})['latent']."
            )
        return site, int(latent)

    def strongest(self) -> tuple[str, int]:
        """The latent whose chain passes through most sites, the nearest chain first; the one furthest on."""
        best = max(
            (int(ranked[0]) for ranked in self._ranked if len(ranked)),
            key=lambda node: (float(self.strength[node]), node),
        )
        return self.latent_of(best)

    # Chains

    def chain(self, node: int) -> list[tuple[int, float]]:
        """Nodes from the earliest to the latest, each with its cosine to its neighbour nearer to `node` (NaN there).

        Backwards through the residual stream where the match reaches the threshold, else through the module that does
        and is nearest; forwards to the latent of the next residual site that matches best, while it reaches it.
        """
        back, forth = [], []
        at = node
        while self.before[at] >= 0:
            back.append((int(self.before[at]), float(self.before_cosine[at])))
            at = int(self.before[at])
        at = node
        while self.after[at] >= 0:
            forth.append((int(self.after[at]), float(self.after_cosine[at])))
            at = int(self.after[at])
        return [*reversed(back), (node, float("nan")), *forth]

    def threshold_of(self, node: int, lane: str) -> float:
        """Threshold of a latent's score with a lane; NaN where nothing of that lane feeds its site."""
        place = int(self.site_of[node])
        found = [
            threshold
            for (source, target), threshold in self.thresholds.items()
            if target == place and self.lane[source] == lane
        ]
        return found[0] if found else float("nan")

    # Pages

    def page(self, chosen: Sequence[int], shown: int, only: Filter | None = None) -> np.ndarray:
        """Nodes to show, ascending: at most `shown` of every site.

        First the chosen latents, their chains, and the nearest latents before and after the first of them; then, of
        what the filter lets through, the latents whose chain passes through most sites, by mean cosine.
        """
        only = only or Filter()
        near = list(dict.fromkeys(node for one in (chosen[:1], chosen[1:]) for node in self._near(one)))
        passes = self._passes(only)
        kept = []
        for place, ranked in enumerate(self._ranked):
            own = [node for node in near if self.site_of[node] == place][:shown]
            rest = ranked[passes[ranked]][: shown + len(own)]
            rest = rest[~np.isin(rest, own)][: shown - len(own)]
            kept.append(np.concatenate([np.asarray(own, np.int64), rest]))
        return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)

    def nodes_frame(self, nodes: np.ndarray, names: dict[int, str]) -> pl.DataFrame:
        """What the browser knows of each node."""
        place = self.site_of[nodes]
        columns: dict[str, Any] = {
            "site": pl.Series(place, dtype=pl.UInt8),
            "latent": pl.Series(nodes - self.first[place], dtype=pl.UInt32),
            "y": pl.Series(self.y[nodes], dtype=pl.Float32),
            "kind": pl.Series(self.kind[nodes], dtype=pl.Int8),
            "span": pl.Series(self.span[nodes], dtype=pl.UInt8),
            "name": pl.Series([names.get(int(node)) for node in nodes], dtype=pl.String),
        }
        for score in SCORES:
            columns[score] = pl.Series(self.scores[score][nodes], dtype=pl.Float32)
        for lane in ROUTES:
            columns[f"match_{lane}"] = pl.Series(self.match[lane][nodes], dtype=pl.Int32)
            columns[f"p_{lane}"] = pl.Series(self.p[lane][nodes], dtype=pl.Float32)
        columns["carried_to"] = pl.Series(self.carried_to[nodes], dtype=pl.Int32)
        for name, linked in (("before_site", self.before[nodes]), ("after_site", self.after[nodes])):
            columns[name] = pl.Series(np.where(linked < 0, -1, self.site_of[linked]), dtype=pl.Int16)
        return pl.DataFrame(columns)

    def edges_frame(self, nodes: np.ndarray, most: int | None = None) -> pl.DataFrame:
        """The edges among `nodes`, as positions in it; the `most` nearest ones where there are more."""
        rows = _rows(self._into_start, nodes)
        position = np.full(self.size, -1, np.int32)
        position[nodes] = np.arange(len(nodes), dtype=np.int32)
        rows = rows[position[self._source[rows]] >= 0]
        if most is not None and len(rows) > most:
            near = np.lexsort((rows, -self._cosine[rows]))[:most]
            rows = np.sort(rows[near])
        return pl.DataFrame(
            {
                "source": pl.Series(position[self._source[rows]], dtype=pl.UInt16),
                "target": pl.Series(position[self._target[rows]], dtype=pl.UInt16),
                "cosine": pl.Series(self._cosine[rows], dtype=pl.Float32),
                "p": pl.Series(self._p[rows], dtype=pl.Float32),
                "above": pl.Series(self._above[rows], dtype=pl.UInt8),
            }
        )

    def sites_frame(self) -> pl.DataFrame:
        """One line per site."""
        return pl.DataFrame(
            {
                "site": self.sites,
                "layer": pl.Series(self.layer, dtype=pl.Int32),
                "lane": pl.Series([schema.LANES.index(lane) for lane in self.lane], dtype=pl.UInt8),
                "latents": pl.Series(self.counts, dtype=pl.UInt32),
            }
        )

    def nulls_frame(self) -> pl.DataFrame:
        """The thresholds and what chance gives, per pair of sites."""
        place = {site: number for number, site in enumerate(self.sites)}
        return self._nulls.select(
            source=pl.col("source_site").replace_strict(place, return_dtype=pl.UInt8),
            target=pl.col("target_site").replace_strict(place, return_dtype=pl.UInt8),
            threshold="threshold",
            mean="mean",
            q999="q999",
            paper="paper",
            rule=pl.col("rule").fill_null(""),
            above=pl.col("targets_above").fill_null(0),
            targets=pl.col("targets").fill_null(0),
        )

    # Reading

    def _count(self, latents: pl.DataFrame, edges: pl.DataFrame) -> np.ndarray:
        largest: dict[str, int] = {}
        ends = (("site", "latent", latents), ("source_site", "source_latent", edges))
        for site, latent, frame in (*ends, ("target_site", "target_latent", edges)):
            for name, last in frame.group_by(site).agg(pl.col(latent).max()).iter_rows():
                largest[name] = max(largest.get(name, -1), -1 if last is None else int(last))
        return np.array([largest.get(site, -1) + 1 for site in self.sites], np.int64)

    def _numbers(self, frame: pl.DataFrame, site: str, latent: str) -> np.ndarray:
        place = frame[site].cast(pl.Enum(self.sites)).to_physical().to_numpy()
        return (self.first[place] + frame[latent].to_numpy().astype(np.int64)).astype(np.int32)

    def _read_latents(self, latents: pl.DataFrame) -> None:
        at = self._numbers(latents, "site", "latent")

        def spread(name: str, empty: float, dtype: Any) -> np.ndarray:
            column = np.full(self.size, empty, dtype)
            column[at] = latents[name].cast(pl.Float64).fill_null(empty).to_numpy().astype(dtype)
            return column

        kinds = latents["kind"].cast(pl.String).replace_strict(
            {kind: number for number, kind in enumerate(schema.KINDS)}, default=-1, return_dtype=pl.Int8
        )  # fmt: skip
        self.kind = np.full(self.size, -1, np.int8)
        self.kind[at] = kinds.fill_null(-1).to_numpy()
        self.scores = {name: spread(name, np.nan, np.float32) for name in SCORES}
        self.match = {lane: spread(f"match_{lane}", -1, np.int32) for lane in ROUTES}
        self.p = {lane: spread(f"p_{lane}", np.nan, np.float32) for lane in ROUTES}
        self.carried_to = spread("carried_to", -1, np.int32)
        about = latents.group_by("site").agg(pl.col("layer").first(), pl.col("lane").cast(pl.String).first())
        known = {site: (layer, lane) for site, layer, lane in about.iter_rows()}
        missing = [site for site in self.sites if site not in known]
        if missing:
            raise WidgetError(f"flow.latents has no line about {', '.join(missing)}. Run ns.feature_flow again.")
        self.layer = [int(known[site][0]) for site in self.sites]
        self.lane = [str(known[site][1]) for site in self.sites]

    def _read_edges(self, edges: pl.DataFrame) -> None:
        target, source = (self._numbers(edges, f"{end}_site", f"{end}_latent") for end in ("target", "source"))
        cosine = edges["cosine"].to_numpy().astype(np.float32)
        order = np.lexsort((-cosine, target))
        self._source, self._target, self._cosine = source[order], target[order], cosine[order]
        self._above = edges["above"].fill_null(False).to_numpy()[order]
        self._p = edges["p"].fill_null(float("nan")).to_numpy()[order].astype(np.float32)
        self._into_start = np.searchsorted(self._target, np.arange(self.size + 1))
        self._out = np.argsort(self._source, kind="stable")
        self._out_start = np.searchsorted(self._source[self._out], np.arange(self.size + 1))

    def _read_nulls(self, nulls: pl.DataFrame) -> None:
        self._nulls = nulls
        place = {site: number for number, site in enumerate(self.sites)}
        self.thresholds = {
            # Cosines are kept as float32: the comparison is the one that made `edges.above`.
            (place[source], place[target]): float(np.float32(threshold))
            for source, target, threshold in nulls.select("source_site", "target_site", "threshold").iter_rows()
        }

    # Chains, once

    def _link(self) -> None:
        """The node before and after every node in its chain; -1 where the chain ends."""
        self.before, self.after = np.full(self.size, -1, np.int64), np.full(self.size, -1, np.int64)
        self.before_cosine, self.after_cosine = (np.full(self.size, np.nan, np.float32) for _ in range(2))
        for place in range(len(self.sites)):
            own = slice(int(self.first[place]), int(self.first[place + 1]))
            into = [source for source, target in self.thresholds if target == place]
            # Modules first: the residual stream, which comes last, wins where it reaches its threshold.
            for source in sorted(into, key=lambda one: self.lane[one] in ("residual", "embedding")):
                lane = "residual" if self.lane[source] == "embedding" else self.lane[source]
                self._link_before(own, source, lane, self.thresholds[source, place])
            onward = [
                target
                for source, target in self.thresholds
                if source == place and self.lane[target] in ("residual", "embedding")
            ]
            if onward:
                self._link_after(own, min(onward), self.thresholds[place, min(onward)])
        self._measure()

    def _link_before(self, own: slice, source: int, lane: str, threshold: float) -> None:
        cosine, match = self.scores[f"s_{lane}"][own], self.match[lane][own]
        reaches = (match >= 0) & (cosine >= threshold)
        if lane != "residual":  # of two modules the nearer one
            reaches &= ~(self.before_cosine[own] >= cosine)
        self.before[own][reaches] = self.first[source] + match[reaches]
        self.before_cosine[own][reaches] = cosine[reaches]

    def _link_after(self, own: slice, target: int, threshold: float) -> None:
        cosine, carried = self.scores["carried"][own], self.carried_to[own]
        reaches = (carried >= 0) & (cosine >= threshold)
        self.after[own][reaches] = self.first[target] + carried[reaches]
        self.after_cosine[own][reaches] = cosine[reaches]

    def _measure(self) -> None:
        """Sites that each node's chain passes through, and its strength: that number plus the mean cosine."""
        links, total = np.zeros((2, self.size), np.int32), np.zeros((2, self.size), np.float64)
        forward = [np.arange(self.first[place], self.first[place + 1]) for place in range(len(self.sites))]
        for side, (next_, cosine, sites) in enumerate(
            ((self.before, self.before_cosine, forward), (self.after, self.after_cosine, forward[::-1]))
        ):
            for nodes in sites:
                linked = nodes[next_[nodes] >= 0]
                links[side, linked] = links[side, next_[linked]] + 1
                total[side, linked] = total[side, next_[linked]] + cosine[linked]
        both = links.sum(0)
        self.span = np.minimum(both + 1, 255).astype(np.uint8)
        own = both + np.divide(total.sum(0), both, out=np.zeros(self.size), where=both > 0)
        # A latent counts as much as the strongest chain that leads through it: whole chains are then shown.
        self.strength = own.copy()
        for next_, sites in ((self.after, forward), (self.before, forward[::-1])):
            for nodes in sites:
                linked = nodes[next_[nodes] >= 0]
                np.maximum.at(self.strength, next_[linked], self.strength[linked])
        self._ranked = [nodes[np.lexsort((nodes, -own[nodes], -self.strength[nodes]))] for nodes in forward]

    # Choosing

    def _near(self, chosen: Sequence[int]) -> list[int]:
        """The chosen latents, their chains, and their nearest latents before and after, in this order."""
        found = [*chosen, *(node for one in chosen for node, _ in self.chain(one))]
        for one in chosen:
            into = slice(self._into_start[one], self._into_start[one + 1])
            out = self._out[self._out_start[one] : self._out_start[one + 1]]
            for nodes, cosines in ((self._source[into], self._cosine[into]), (self._target[out], self._cosine[out])):
                found += [int(node) for node in nodes[np.argsort(-cosines, kind="stable")][:CLOSE_EDGES]]
        return list(dict.fromkeys(found))

    def _passes(self, only: Filter) -> np.ndarray:
        passes = np.ones(self.size, bool)
        if only.lanes:
            passes &= np.array([lane in only.lanes for lane in self.lane])[self.site_of]
        if only.kind:
            passes &= self.kind == schema.KINDS.index(only.kind)
        if only.least > 0:
            with np.errstate(invalid="ignore"):
                passes &= self.scores[only.score] >= only.least
        return passes


def _rows(start: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Numbers of the sorted edges of all `nodes`."""
    lengths = start[nodes + 1] - start[nodes]
    offsets = np.repeat(start[nodes] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return offsets + np.arange(int(lengths.sum()))


def _sites_of(nulls: pl.DataFrame) -> Iterator[pl.Series]:
    yield nulls["source_site"]
    yield nulls["target_site"]


def _frame(flow: Any, name: str) -> pl.DataFrame:
    frame, columns = getattr(flow, name, None), FRAMES[name]
    if not isinstance(frame, pl.DataFrame):
        raise WidgetError(
            f"FlowDashboard was given {type(flow).__name__}, which has no frame {name!r}. "
            "Give it what ns.feature_flow({site: dictionary}) returns."
        )
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise WidgetError(
            f"flow.{name} lacks the columns {', '.join(missing)}. Make it with ns.feature_flow of this version."
        )
    return frame
