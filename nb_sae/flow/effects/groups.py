"""Activation groups: which of the matched predecessors are active together with a latent, on data, beside chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Int
from numpy import ndarray as Array
from torch import Tensor

from nb_sae.errors import ConfigError, StoreError
from nb_sae.flow.schema import ACTIVATION_GROUPS, GROUP_TESTS, GROUPS
from nb_sae.flow.settings import check_whole
from nb_sae.flow.sources import Flow, SourceLane, check_sites, checked_stores, matches_of, sources_of
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.metrics.rows import rows_at_a_time
from nb_sae.statistics import benjamini_hochberg, dense_ranks, rank_biserial
from nb_sae.store.view import StoredRows

_BITS: dict[SourceLane, int] = {"residual": 1, "mlp": 2, "attention": 4}
_CODES = {"nowhere": 0, "residual": 1, "mlp": 2, "attention": 4, "residual+mlp": 3, "residual+attention": 5}
_CODES |= {"mlp+attention": 6, "all": 7}
"""Group → sum of the bits of the lanes that are active."""


@dataclass(frozen=True, repr=False)
class ActivationGroups:
    """How often each latent is active together with its matched predecessors, and how often it would be by chance."""

    frame: pl.DataFrame
    """`schema.ACTIVATION_GROUPS`: eight lines per latent. `share` is null for a latent that is never active, and both
    shares for a group with a lane that has no dictionary."""
    tests: pl.DataFrame
    """`schema.GROUP_TESTS`: whether latents that mostly come with a predecessor are also nearer to it."""
    about: Mapping[str, Any]
    """`rows`, `sources` (site → lane → source site), and sites that were `left_out`, with the reason."""

    def by_site(self) -> pl.DataFrame:
        """`site, group, rows, share, expected`: over all activations of a site; what the stacked area shows."""
        used = self.frame.filter(pl.col("share").is_not_null())
        total = pl.col("rows").sum()
        weight = pl.col("rows").sum().over("site", "latent")
        return (
            used.with_columns(expected_rows=pl.col("expected") * weight)
            .group_by("site", "group", maintain_order=True)
            .agg(total, pl.col("expected_rows").sum())
            .with_columns(
                share=pl.col("rows") / pl.col("rows").sum().over("site"),
                expected=pl.col("expected_rows") / pl.col("rows").sum().over("site"),
            )
            .drop("expected_rows")
        )

    def __repr__(self) -> str:
        return f"ActivationGroups({len(self.about['sources'])} sites, {self.about['rows']:,} rows)"


@torch.no_grad()
def activation_groups(
    flow: Flow,
    dictionaries: Mapping[str, Dictionary],
    stores: Mapping[str, StoredRows],
    *,
    sites: Sequence[str] | None = None,
    k: int | None = None,
    chunk_rows: int | None = None,
    progress: bool = True,
) -> ActivationGroups:
    """Which of its matched predecessors are active on the rows on which a latent is: one of eight groups per row.

    The predecessors are the best matches at the residual site before and at the MLP and attention output of the same
    block. `expected` is the share that the group would have if the predecessors were active independently of the
    latent, while they keep going together with each other: what shuffling the latent over the rows gives on average.
    Memory does not grow with the number of rows.

    Args:
        flow: From `feature_flow`.
        dictionaries: Those from which it was made.
        stores: Rows of every site, collected in one call: row i is the same token everywhere.
        sites: Whose latents; None: of every site that has something before it and the same rows.
        k: Active latents per row; None: the trained rule.
        chunk_rows: Rows encoded at a time; None: what fits.
        progress: Show the progress.

    Raises:
        ConfigError: a site that the flow or the dictionaries lack, or one with nothing before it.
        StoreError: a site without a store, or stores that do not hold the same rows of the same model.

    Source:
        Laptev et al. 2025, Analyze Feature Flow, section 4; their groups are tested by Mann–Whitney U.
    """
    if k is not None:
        check_whole(1, k=k)
    chosen, left_out = _targets(flow, stores, sites)
    needed = [
        site for site in flow.sites if site in set(chosen) | {one for of in chosen.values() for one in of.values()}
    ]
    rows = checked_stores(stores, dictionaries, needed, flow)
    counts = {site: _Counts(of, {lane: matches_of(flow, site, lane) for lane in of}) for site, of in chosen.items()}
    uses = Counter(one for site, of in chosen.items() for one in (site, *of.values()))
    total = len(next(iter(rows.values())))
    block = rows_at_a_time(chunk_rows, *(dictionaries[site] for site in needed))
    with progress_bar(total, "rows", "activation groups", enabled=progress) as bar:
        for first, stop in next(iter(rows.values())).chunk_spans(block):
            active = _Active(rows, dictionaries, first, stop, k, Counter(uses))
            for site, one in counts.items():
                one.add(active.at(site), {lane: active.at(source) for lane, source in one.sources.items()})
            bar.update(stop - first)
    frame = pl.concat([one.frame(site, total) for site, one in counts.items()])
    about = {"rows": total, "sources": chosen, "left_out": left_out, "k": k}
    return ActivationGroups(frame, _tests(flow, frame, chosen), about)


class _Counts:
    """Rows per latent and group: of the rows on which the latent is active, and of all rows."""

    def __init__(self, sources: Mapping[SourceLane, str], matches: Mapping[SourceLane, Int[Array, " d_sae"]]) -> None:
        self.sources = sources
        self.matches = {lane: torch.from_numpy(one) for lane, one in matches.items()}
        d_sae = len(next(iter(matches.values())))
        self.together = torch.zeros(8, d_sae, dtype=torch.long)
        self.all_rows = torch.zeros(8, d_sae, dtype=torch.long)

    def add(
        self, active: Bool[Tensor, "rows d_sae"], before: Mapping[SourceLane, Bool[Tensor, "rows sources"]]
    ) -> None:
        code = torch.zeros(active.shape, dtype=torch.uint8, device=active.device)
        for lane, sources in before.items():
            match = self.matches[lane].to(active.device)
            # A latent without a match reads the last source and is masked.
            code += _BITS[lane] * (sources[:, match] & (match >= 0)).to(torch.uint8)
        for number in range(8):
            inside = code == number
            self.all_rows[number] += inside.sum(0).cpu()
            self.together[number] += (inside & active).sum(0).cpu()

    def frame(self, site: str, rows: int) -> pl.DataFrame:
        codes = [_CODES[group] for group in GROUPS]
        seen = sum(_BITS[lane] for lane in self.sources)
        known = np.array([code & ~seen == 0 for code in codes])
        together, expected = (one[codes].numpy().T.astype(np.float64) for one in (self.together, self.all_rows))
        active = together.sum(1, keepdims=True)
        d_sae = len(together)
        share = np.where(known & (active > 0), together / np.maximum(active, 1), np.nan)
        return pl.DataFrame(
            {
                "site": np.repeat([site], 8 * d_sae),
                "latent": np.repeat(np.arange(d_sae), 8),
                "group": GROUPS * d_sae,
                "rows": together.astype(np.int64).ravel(),
                "share": share.ravel(),
                "expected": np.where(known, expected / rows, np.nan).ravel(),
            },
            schema_overrides=ACTIVATION_GROUPS,
        ).with_columns(pl.col("share", "expected").fill_nan(None))


class _Active:
    """What is active at each site in one chunk of rows; a site is encoded once and let go after its last use."""

    def __init__(
        self,
        stores: Mapping[str, StoredRows],
        dictionaries: Mapping[str, Dictionary],
        first: int,
        stop: int,
        k: int | None,
        uses: Counter[str],
    ) -> None:
        self._stores, self._dictionaries, self._span, self._k, self._uses = stores, dictionaries, (first, stop), k, uses
        self._held: dict[str, Bool[Tensor, "rows d_sae"]] = {}

    def at(self, site: str) -> Bool[Tensor, "rows d_sae"]:
        if site not in self._held:
            dictionary = self._dictionaries[site]
            rows = self._stores[site][slice(*self._span)].to(dictionary.device)
            self._held[site] = (dictionary.encode(rows, self._k) != 0).cpu()
        self._uses[site] -= 1
        return self._held[site] if self._uses[site] else self._held.pop(site)


def _targets(
    flow: Flow, stores: Mapping[str, StoredRows], sites: Sequence[str] | None
) -> tuple[dict[str, dict[SourceLane, str]], dict[str, str]]:
    """Site → its sources, of the sites that are asked for; and what was left out, with the reason."""
    check_sites(flow, sites or ())
    if not isinstance(stores, Mapping):
        raise StoreError(f"Got a {type(stores).__name__} as stores; expected {{site: store}}.")
    chosen, left_out = {}, {}
    for site in flow.sites if sites is None else sites:
        of = sources_of(flow, site)
        pooled = site in stores and any(one in stores and len(stores[one]) != len(stores[site]) for one in of.values())
        if not of and sites is not None:
            raise ConfigError(f"Nothing lies before {site!r} in this flow, so its latents have no predecessors.")
        if sites is None and pooled:
            left_out[site] = "its store has other rows than those of the sites before it"
        elif of:
            chosen[site] = of
    if not chosen:
        raise ConfigError(f"No site of the flow ({', '.join(flow.sites)}) has another before it with the same rows.")
    return chosen, left_out


def _tests(flow: Flow, frame: pl.DataFrame, chosen: Mapping[str, Mapping[SourceLane, str]]) -> pl.DataFrame:
    """Of each site and lane: are latents that mostly come with the predecessor nearer to it than the others?"""
    lines = []
    for site, of in chosen.items():
        own, scores = (one.filter(pl.col("site") == site) for one in (frame, flow.latents))
        for lane in of:
            with_lane = [group for group, code in _CODES.items() if code & _BITS[lane]]
            groups = own.filter(pl.col("group").cast(pl.String).is_in(with_lane)).drop_nulls("share")
            scored = groups.group_by("latent").agg(pl.col("share").sum()).join(scores, on="latent")
            scored = scored.drop_nulls(f"s_{lane}")
            mostly = (scored["share"] > 0.5).to_numpy()
            found = rank_biserial(dense_ranks(scored[f"s_{lane}"].to_numpy()), mostly)
            lines.append((site, f"s_{lane}", int(mostly.sum()), int((~mostly).sum()), found.effect, found.p))
    q = benjamini_hochberg(np.array([line[-1] for line in lines]))
    frame = pl.DataFrame(
        [(*line, value) for line, value in zip(lines, q, strict=True)], schema=GROUP_TESTS, orient="row"
    )
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))
