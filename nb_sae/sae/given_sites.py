"""What `train_all` is given: rows and settings of every site, looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nb_sae.errors import ConfigError, StoreError, closest
from nb_sae.sae.config import SAEConfig
from nb_sae.types import ActivationSource

UNNAMED = "rows"
"""What `ActivationStore.from_tensor` calls a site that was not named."""


def named_sites(stores: Mapping[str, ActivationSource] | Sequence[ActivationSource]) -> dict[str, ActivationSource]:
    """Site → rows.

    Raises:
        ConfigError: no stores, one given twice, or what is no store.
        StoreError: rows of another site than they are given for.
    """
    if isinstance(stores, Mapping):
        named = dict(stores)
    elif isinstance(stores, Sequence) and not isinstance(stores, str):
        named = {}
        for one in stores:
            name = _site_of(one, "the list")
            if name in named:
                raise ConfigError(
                    f"Two of the stores are of site {name!r}. Give each site once, or name them: "
                    "train_all({name: store, …})."
                )
            named[name] = one
    else:
        raise ConfigError(f"Got a {type(stores).__name__}; expected {{site: store}} or a list of stores.")
    if not named:
        raise ConfigError("No stores were given. Give at least one: train_all({site: store}, config).")
    given: dict[int, str] = {}
    for site, source in named.items():
        own = _site_of(source, repr(site))
        if id(source) in given:
            raise ConfigError(f"One store is given for {given[id(source)]!r} and for {site!r}. Give each store once.")
        given[id(source)] = site
        if own not in (site, UNNAMED):
            hint = f"Another store is given for {own!r}. " if own in named else ""
            raise StoreError(f"The rows given for {site!r} come from site {own!r}. {hint}Give each store for its site.")
    return named


def _site_of(source: Any, where: str) -> str:
    site = getattr(getattr(source, "site", None), "name", None)
    if site is None or not callable(getattr(source, "batches", None)):
        raise ConfigError(f"{where} holds a {type(source).__name__}; expected an ActivationStore, or a stream of rows.")
    return str(site)


def configs_of(
    named: Mapping[str, ActivationSource], config: SAEConfig | Mapping[str, SAEConfig] | None
) -> dict[str, SAEConfig]:
    """One configuration for every site. Raises `ConfigError` for a site that is not there, or one left out."""
    if config is None or isinstance(config, SAEConfig):
        return dict.fromkeys(named, config or SAEConfig.msae())
    if not isinstance(config, Mapping):
        raise ConfigError(f"config is a {type(config).__name__}; expected an SAEConfig, or one for each site.")
    for site in config:
        if site not in named:
            raise ConfigError(
                f"A configuration is given for {site!r}, which is none of the sites. {closest(site, named)}"
                f"The sites are {', '.join(named)}."
            )
    missing = [site for site in named if site not in config]
    if missing:
        raise ConfigError(
            f"No configuration is given for {', '.join(map(repr, missing))}. Give one for every site, or one for all."
        )
    for site, one in config.items():
        if not isinstance(one, SAEConfig):
            raise ConfigError(f"config[{site!r}] is a {type(one).__name__}; expected an SAEConfig.")
    return dict(config)
