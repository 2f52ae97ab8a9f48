"""Paths through the tables of a flow: chains, neighbourhoods, and where a feature is born. Tables in, tables out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from nb_sae.errors import ConfigError, closest
from nb_sae.flow.schema import CHAIN, EDGES
from nb_sae.flow.settings import check_whole

_MODULES = ("attention", "mlp")


@dataclass(frozen=True)
class Birth:
    """Where a feature is first found along the residual stream."""

    site: str
    latent: int
    layer: int
    kind: str | None
    """What it is there: "newborn" (a module wrote it), "unexplained", or None where no residual site lies before."""
    modules: pl.DataFrame
    """Its matches in attention and MLP of that block that reach their threshold: rows of `schema.EDGES`, rank 0."""


@dataclass(frozen=True)
class _Step:
    """One latent and how it hangs on its neighbour."""

    site: str
    latent: int
    cosine: float | None = None
    p: float | None = None
    above: bool | None = None


class FlowGraph:
    """Looks up latents by number and edges by pair of sites, so that a path costs milliseconds in a large flow."""

    def __init__(self, sites: list[str], edges: pl.DataFrame, latents: pl.DataFrame, nulls: pl.DataFrame) -> None:
        self.sites = sites
        self.edges = edges
        self.latents = latents
        counts = dict(latents.group_by("site", maintain_order=True).len().iter_rows())
        self.counts: dict[str, int] = {site: counts[site] for site in sites}
        self.starts = dict(zip(sites, np.cumsum([0, *self.counts.values()]).tolist(), strict=False))
        self.lanes = {site: str(latents["lane"][self.starts[site]]) for site in sites}
        pairs = list(nulls.select("source_site", "target_site", "threshold").iter_rows())
        self.thresholds: dict[tuple[str, str], float] = {(a, b): threshold for a, b, threshold in pairs}
        self.into: dict[str, dict[str, str]] = {site: {} for site in sites}
        self.onwards: dict[str, str] = {}
        for source, target, _ in pairs:
            self.into[target][self.lanes[source]] = source
            if self.lanes[source] != "residual" or self.lanes[target] not in _MODULES:
                self.onwards[source] = target
        self._slices = _slices(edges)

    def chain(self, site: str, latent: int, *, cut: bool) -> pl.DataFrame:
        """`FeatureFlow.chain`."""
        self._check(site, latent)
        before = self._walk(_Step(site, latent), self._back, cut=cut)
        after = self._walk(_Step(site, latent), self._forward, cut=cut)
        steps = [*reversed(before), _Step(site, latent), *after]
        rows = [self._row(step.site, step.latent) for step in steps]
        return pl.DataFrame(
            {
                "step": np.arange(len(steps)) - len(before),
                "site": [step.site for step in steps],
                "latent": [step.latent for step in steps],
                "layer": [row["layer"] for row in rows],
                "lane": [row["lane"] for row in rows],
                "cosine": [step.cosine for step in steps],
                "p": [step.p for step in steps],
                "above": [step.above for step in steps],
            },
            schema=CHAIN,
            strict=False,
        )

    def neighbourhood(self, site: str, latent: int, steps: int, *, above: bool) -> pl.DataFrame:
        """`FeatureFlow.neighbourhood`."""
        self._check(site, latent)
        check_whole(1, steps=steps)
        found: list[np.ndarray[Any, Any]] = []
        seen: dict[str, set[int]] = {site: {latent}}
        frontier: dict[str, set[int]] = {site: {latent}}
        for _ in range(steps):
            reached: dict[str, set[int]] = {}
            for here, numbers in frontier.items():
                for (source, target), (start, stop) in self._slices.items():
                    for mine, there, other in (("source", target, "target"), ("target", source, "source")):
                        if here != (source if mine == "source" else target):
                            continue
                        part = self.edges.slice(start, stop - start).with_row_index("row", offset=start)
                        wanted = pl.col(f"{mine}_latent").is_in(sorted(numbers))
                        part = part.filter(wanted & pl.col("above") if above else wanted)
                        found.append(part["row"].to_numpy())
                        reached.setdefault(there, set()).update(part[f"{other}_latent"].to_list())
            frontier = {there: numbers - seen.get(there, set()) for there, numbers in reached.items()}
            for there, numbers in frontier.items():
                seen.setdefault(there, set()).update(numbers)
        rows = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint32)
        return self.edges[rows]

    def born(self, site: str, latent: int) -> Birth:
        """`FeatureFlow.born`."""
        self._check(site, latent)
        step: _Step | None = _Step(site, latent)
        while step is not None:
            site, latent = step.site, step.latent
            step = self._match(site, latent, "residual")
            if step is not None and not step.above:
                step = None
        row = self._row(site, latent)
        matches = [(lane, self._match(site, latent, lane)) for lane in _MODULES]
        modules = [
            {
                "source_site": match.site,
                "source_latent": match.latent,
                "target_site": site,
                "target_latent": latent,
                "cosine": match.cosine,
                "rank": 0,
                "p": match.p,
                "above": True,
                "kind": lane,
            }
            for lane, match in matches
            if match is not None and match.above
        ]
        frame = pl.DataFrame(modules, schema=EDGES, orient="row").sort("cosine", descending=True)
        return Birth(site, latent, row["layer"], row["kind"], frame)

    def _walk(self, step: _Step, turn: Any, *, cut: bool) -> list[_Step]:
        steps = []
        while (found := turn(step)) is not None and (found.above or not cut):
            steps.append(found)
            step = found
        return steps

    def _back(self, step: _Step) -> _Step | None:
        """The residual match if it reaches its threshold, else the nearest module that does, else the residual match.

        A site where nothing is matched with a residual site goes on with its nearest module.
        """
        matches = [self._match(step.site, step.latent, lane) for lane in ("residual", *_MODULES)]
        there = [match for match in matches if match is not None]
        residual = matches[0]
        if residual is not None and residual.above:
            return residual
        high = [match for match in there if match.above]
        if high:
            return max(high, key=lambda match: match.cosine or 0.0)
        return residual or max(there, key=lambda match: match.cosine or 0.0, default=None)

    def _match(self, site: str, latent: int, lane: str) -> _Step | None:
        source = self.into[site].get(lane)
        row = self._row(site, latent)
        if source is None or row[f"match_{lane}"] is None:
            return None
        cosine = row[f"s_{lane}"]
        above = self._above(cosine, source, site)
        return _Step(source, row[f"match_{lane}"], cosine, row[f"p_{lane}"], above)

    def _forward(self, step: _Step) -> _Step | None:
        target = self.onwards.get(step.site)
        row = self._row(step.site, step.latent)
        if target is None or row["carried_to"] is None:
            return None
        above = self._above(row["carried"], step.site, target)
        return _Step(target, row["carried_to"], row["carried"], row["p_carried"], above)

    def _above(self, cosine: float, source: str, target: str) -> bool:
        # Cosines are kept as float32; the comparison is the one that made `edges.above`.
        return bool(np.float32(cosine) >= np.float32(self.thresholds[source, target]))

    def _row(self, site: str, latent: int) -> dict[str, Any]:
        return self.latents.row(self.starts[site] + latent, named=True)

    def _check(self, site: str, latent: int) -> None:
        if site not in self.counts:
            raise ConfigError(f"{site!r} is no site of this flow. {closest(site, self.sites)}See flow.sites.")
        check_whole(latent=latent)
        if latent >= self.counts[site]:
            raise ConfigError(f"latent={latent} is outside 0 … {self.counts[site] - 1} of {site!r}.")


def _slices(edges: pl.DataFrame) -> dict[tuple[str, str], tuple[int, int]]:
    """Where the edges of each pair of sites lie; they stand together."""
    runs = (
        edges.with_row_index("row")
        .group_by("source_site", "target_site", maintain_order=True)
        .agg(pl.col("row").min().alias("first"), pl.col("row").max().alias("last"))
    )
    return {(a, b): (first, last + 1) for a, b, first, last in runs.iter_rows()}
