"""What an analysis on data needs of a flow: which sites lie before a site, and that dictionaries and rows fit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import polars as pl
from jaxtyping import Int
from numpy import ndarray as Array

from nb_sae.errors import ConfigError, StoreError, closest
from nb_sae.sae.dictionary import Dictionary
from nb_sae.store.paired import check_aligned
from nb_sae.store.view import StoredRows
from nb_sae.types import ActivationSource

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
    """Refuse what is no flow, and a site that the flow does not have. Raises `ConfigError`."""
    if not all(hasattr(flow, name) for name in ("sites", "latents", "edges")):
        raise ConfigError(f"Got a {type(flow).__name__} as the flow; expected what ns.feature_flow gives.")
    for site in sites:
        if site not in flow.sites:
            raise ConfigError(f"The flow has no site {site!r}. {closest(site, flow.sites)}See flow.sites.")


def matches_of(flow: Flow, site: str, lane: SourceLane) -> Int[Array, " d_sae"]:
    """For every latent of a site the number of its best match in the source of this lane; −1 where there is none."""
    lines = flow.latents.filter(pl.col("site") == site).sort("latent")
    return lines[f"match_{lane}"].cast(pl.Int64).fill_null(-1).to_numpy().copy()


def sources_of_latent(flow: Flow, site: str, latent: int, source: str) -> list[int]:
    """Latents of a source site that the flow keeps as matches of one latent, the best first."""
    of = (pl.col("target_site") == site) & (pl.col("target_latent") == latent) & (pl.col("source_site") == source)
    return flow.edges.filter(of).sort("rank")["source_latent"].to_list()


def named_dictionaries(dictionaries: Mapping[str, Dictionary]) -> dict[str, Dictionary]:
    """All of them, at least one. Raises `ConfigError` for none, and as `dictionary_at`."""
    if isinstance(dictionaries, Mapping) and not dictionaries:
        raise ConfigError("No dictionaries were given. Give {site: dictionary}.")
    sites = dictionaries if isinstance(dictionaries, Mapping) else ("",)
    return {site: dictionary_at(dictionaries, site) for site in sites}


def dictionary_at(dictionaries: Mapping[str, Dictionary], site: str, flow: Flow | None = None) -> Dictionary:
    """The dictionary of a site; with `flow` of as many latents as the flow was made of.

    Raises:
        ConfigError: there is none, or what is no dictionary, writes another site, or is of another site or flow.
    """
    if not isinstance(dictionaries, Mapping):
        raise ConfigError(f"Got a {type(dictionaries).__name__}; expected the dictionaries as {{site: dictionary}}.")
    if site not in dictionaries:
        raise ConfigError(
            f"There is no dictionary for {site!r}. {closest(site, dictionaries)}Give those from which the flow was "
            "made: {site: dictionary}."
        )
    one = dictionaries[site]
    if not isinstance(one, Dictionary):
        raise ConfigError(
            f"{site!r} holds a {type(one).__name__}; expected a Dictionary. Of what train_all gives, pass "
            ".dictionaries; of a session, .dictionary."
        )
    if one.is_transcoder:
        raise ConfigError(
            f"The dictionary of {site!r} is a transcoder: it writes other rows than it reads. Give an SAE."
        )
    if one.site is not None and one.site != site:
        raise ConfigError(
            f"The key {site!r} holds the dictionary of {one.site!r}. Use the site that it was trained on as key."
        )
    if flow is not None:
        latents = flow.latents.filter(pl.col("site") == site).height
        d_in = flow.about.get("places", {}).get(site, {}).get("d_in", one.d_in)
        if (latents, d_in) != (one.d_sae, one.d_in):
            raise ConfigError(
                f"The dictionary of {site!r} has {one.d_sae:,} latents of width {one.d_in}, that of the flow "
                f"{latents:,} of width {d_in}. Give the dictionaries that the flow was made of."
            )
    return one


def store_at(stores: Mapping[str, Any], site: str, dictionary: Dictionary) -> Any:
    """The store of a site, fit for its dictionary.

    Raises:
        StoreError: no stores, none for this site, what is no store, or rows of another model, site, width or scale.
    """
    if not isinstance(stores, Mapping):
        raise StoreError(f"Got a {type(stores).__name__} as stores; expected {{site: store}}.")
    if site not in stores:
        raise StoreError(
            f"There is no store for {site!r}. {closest(site, stores)}Collect all sites in one call: "
            "ActivationStore.collect(…, site=[…])."
        )
    store = stores[site]
    if not isinstance(store, ActivationSource):
        raise StoreError(
            f"{site!r} holds a {type(store).__name__} as its store; expected an ActivationStore. Of rows in memory "
            "make one: ActivationStore.from_tensor(x, site=…)."
        )
    try:
        dictionary.check(store)
    except StoreError as error:
        raise StoreError(f"{site!r}: {error}") from error
    return store


def checked_stores(
    stores: Mapping[str, StoredRows],
    dictionaries: Mapping[str, Dictionary],
    sites: Iterable[str],
    flow: Flow | None = None,
) -> dict[str, StoredRows]:
    """The stores of these sites: each of its dictionary's rows, all with the same inputs and tokens.

    Raises:
        ConfigError: as `dictionary_at`.
        StoreError: no stores, a site without a store, rows of another model, site, width or scale, or rows that do not
            lie side by side.
    """
    chosen: dict[str, StoredRows] = {}
    for site in sites:
        chosen[site] = store_at(stores, site, dictionary_at(dictionaries, site, flow))
    first = next(iter(chosen.values()), None)
    for store in chosen.values():
        if first is not None and store is not first:
            check_aligned(first, store)
    return chosen
