"""What an analysis on data needs of a flow: which sites lie before a site, and that dictionaries and rows fit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
from jaxtyping import Int
from numpy import ndarray as Array

from nb_sae.errors import ConfigError, StoreError, closest
from nb_sae.sae.dictionary import Dictionary
from nb_sae.store.paired import check_aligned
from nb_sae.store.view import StoredRows

SourceLane = Literal["residual", "mlp", "attention"]
LANES: tuple[SourceLane, ...] = ("residual", "mlp", "attention")
"""The routes by which a feature comes, in the order of `schema.GROUPS`."""


class Flow(Protocol):
    """Matches between the latents of the sites of one model; `FeatureFlow` is one."""

    @property
    def sites(self) -> Sequence[str]:
        """In the order of the forward pass."""
        ...

    @property
    def latents(self) -> pl.DataFrame:
        """`schema.FLOW_LATENTS`."""
        ...

    @property
    def edges(self) -> pl.DataFrame:
        """`schema.EDGES`."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """`rule` says how latents were matched."""
        ...


def sources_of(flow: Flow, site: str) -> dict[SourceLane, str]:
    """Lane → the site before this one that its latents were matched with; empty for the first site.

    Raises:
        ConfigError: the flow does not have the site.
    """
    check_sites(flow, [site])
    pairs = flow.edges.lazy().filter(pl.col("target_site") == site).select("kind", "source_site").unique().collect()
    known = {str(kind): source for kind, source in pairs.iter_rows()}
    return {lane: known[lane] for lane in LANES if lane in known}


def check_sites(flow: Flow, sites: Iterable[str]) -> None:
    """Refuse a site that the flow does not have. Raises `ConfigError`."""
    for site in sites:
        if site not in flow.sites:
            raise ConfigError(f"The flow has no site {site!r}. {closest(site, flow.sites)}See flow.sites.")


def matches_of(flow: Flow, site: str, lane: SourceLane, d_sae: int) -> Int[Array, " d_sae"]:
    """For every latent of a site the number of its best match in the source of this lane; −1 where there is none."""
    lines = flow.latents.filter(pl.col("site") == site).select("latent", match=f"match_{lane}")
    if lines.height != d_sae:
        raise ConfigError(
            f"The flow has {lines.height} latents at {site!r}, the dictionary {d_sae}. Give the dictionaries from "
            "which the flow was made."
        )
    matches = np.full(d_sae, -1, dtype=np.int64)
    matches[lines["latent"].to_numpy()] = lines["match"].cast(pl.Int64).fill_null(-1).to_numpy()
    return matches


def sources_of_latent(flow: Flow, site: str, latent: int, source: str) -> list[int]:
    """Latents of a source site that the flow keeps as matches of one latent, the best first."""
    of = (pl.col("target_site") == site) & (pl.col("target_latent") == latent) & (pl.col("source_site") == source)
    return flow.edges.filter(of).sort("rank")["source_latent"].to_list()


def dictionary_at(dictionaries: Mapping[str, Dictionary], site: str) -> Dictionary:
    """The dictionary of a site. Raises `ConfigError` where there is none, or one that writes another site."""
    if site not in dictionaries:
        raise ConfigError(
            f"There is no dictionary for {site!r}. {closest(site, dictionaries)}Give those from which the flow was "
            "made: {site: dictionary}."
        )
    dictionary = dictionaries[site]
    if dictionary.is_transcoder:
        raise ConfigError(
            f"The dictionary of {site!r} is a transcoder: it writes other rows than it reads. Give an SAE."
        )
    return dictionary


def check_model(dictionary: Dictionary, model: Any, site: str) -> None:
    """Refuse a model other than the one whose rows the dictionary was trained on. Raises `ConfigError`."""
    for what in ("model", "revision"):
        trained = getattr(dictionary, what)
        given = getattr(model, "name" if what == "model" else what, None)
        if trained and given is not None and given != trained:
            raise ConfigError(
                f"The dictionary of {site!r} was trained on {what} {trained!r}; model= is {what} {given!r}. Load the "
                "model it was trained on."
            )


def checked_stores(
    stores: Mapping[str, StoredRows], dictionaries: Mapping[str, Dictionary], sites: Iterable[str]
) -> dict[str, StoredRows]:
    """The stores of these sites: each of its dictionary's rows, all with the same inputs and tokens.

    Raises:
        StoreError: a site without a store, rows of another model, site, width or scale, or rows that do not lie side by
            side.
    """
    chosen: dict[str, StoredRows] = {}
    for site in sites:
        if site not in stores:
            raise StoreError(
                f"There is no store for {site!r}. {closest(site, stores)}Collect all sites in one call: "
                "ActivationStore.collect(…, site=[…])."
            )
        dictionary_at(dictionaries, site).check(stores[site])
        chosen[site] = stores[site]
    first = next(iter(chosen.values()), None)
    for store in chosen.values():
        if first is not None and store is not first:
            check_aligned(first, store)
    return chosen
