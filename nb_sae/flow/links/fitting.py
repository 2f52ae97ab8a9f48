"""Can these dictionaries be matched? Where their sites lie, and what is refused or left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nb_sae.errors import ConfigError, HookError, ShapeError, StoreError, closest
from nb_sae.flow.links.routes import Route, places
from nb_sae.flow.sources import named_dictionaries
from nb_sae.layers import Place
from nb_sae.models.parts import parts
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.origin import check_model
from nb_sae.store.paired import check_aligned


def checked(dictionaries: Mapping[str, Dictionary], model: Any, kinds: Mapping[str, Any] | None) -> dict[str, Place]:
    """Where the sites lie, in the order of the forward pass, if the dictionaries can be matched at all.

    Raises:
        ConfigError: fewer than two sites, a transcoder, another site than the key says, two models, an unknown place.
        ShapeError: different widths.
        HookError: a site that the model lacks.
    """
    if not isinstance(dictionaries, Mapping) or len(dictionaries) < 2:
        given = f"{len(dictionaries)} site" if isinstance(dictionaries, Mapping) else type(dictionaries).__name__
        raise ConfigError(
            f"{given} was given; a flow needs the dictionaries of at least two sites, as {{site: dictionary}}."
        )
    named_dictionaries(dictionaries)
    for what in ("model", "revision"):
        known = {getattr(one, what): site for site, one in dictionaries.items() if getattr(one, what)}
        if len(known) > 1:
            (first, site), (second, other) = list(known.items())[:2]
            raise ConfigError(
                f"{site!r} is of {what} {first!r}, {other!r} of {what} {second!r}. Directions of different models have "
                "nothing in common; train all dictionaries on one model."
            )
    found = places(dictionaries, kinds)
    _check_widths(dictionaries, found)
    if model is not None:
        _check_model(dictionaries, model)
    return found


def _check_widths(dictionaries: Mapping[str, Dictionary], found: Mapping[str, Place]) -> None:
    stream = [site for site in found if found[site].lane != "embedding"]
    residual = next((site for site in stream if found[site].lane == "residual"), stream[0] if stream else None)
    for site, one in dictionaries.items():
        if one.W_dec.shape[1] < 2:
            raise ShapeError(f"The rows of {site!r} are one number wide; a direction needs two. Leave the site out.")
    for site in stream:
        if residual is None or dictionaries[site].W_dec.shape[1] == dictionaries[residual].W_dec.shape[1]:
            continue
        hint = (
            "An attention dictionary that was trained on the heads before W_O cannot be matched: train it on the "
            "output of the attention module. "
            if found[site].lane == "attention"
            else ""
        )
        raise ShapeError(
            f"{residual!r} has width {dictionaries[residual].W_dec.shape[1]}, {site!r} has width "
            f"{dictionaries[site].W_dec.shape[1]}. {hint}Sites of one residual stream have one width; collect what is "
            "added to the stream."
        )


def _check_model(dictionaries: Mapping[str, Dictionary], model: Any) -> None:
    for site, one in dictionaries.items():
        check_model(model, one, site)
        names = model.hook_names()
        if site not in names:
            raise HookError(
                f"{model.name} has no site {site!r}. {closest(site, names)}List all with model.hook_names()."
            )


def possible(
    ways: list[Route], found: Mapping[str, Place], *, model: Any, stores: Mapping[str, Any] | None
) -> tuple[list[Route], list[str]]:
    """The pairs that can be matched, and what is left out and why: the step to a final embedding.

    Args:
        ways: Every pair.
        found: Where the sites lie.
        model: Leads to the embedding where directions are compared.
        stores: Rows, where activations are compared: of the embedding they are often other rows.

    Raises:
        ConfigError: nothing is left.
    """
    left = {}
    for way in ways:
        if way.target_lane != "embedding":
            continue
        if stores is not None:
            try:
                check_aligned(stores[way.source], stores[way.target])
            except StoreError as error:
                left[way] = f"{error}"
        elif model is None:
            left[way] = "The final norm and projection lie between the two. Pass model= to go through them."
    kept = [way for way in ways if way not in left]
    reasons = [f"{way.source} → {way.target}: {reason}" for way, reason in left.items()]
    if not kept:
        told = ", ".join(
            f"{site} ({place.lane}{f', block {place.layer}' if place.lane != 'embedding' else ''})"
            for site, place in found.items()
        )
        raise ConfigError(
            f"No two of the sites feed each other: {told}. {' '.join([*reasons, ''])}Give residual sites of two "
            "blocks, or a residual site and the modules of its block."
        )
    return kept, reasons


def blocks_of(found: Mapping[str, Place], model: Any) -> int:
    """Number of blocks of the tower, which is the layer of its embedding; without a model, the last block given + 1."""
    ends = [place for place in found.values() if place.lane == "embedding"]
    if model is not None and ends:
        return len(parts(model, ends[0].tower).blocks)
    return 1 + max((place.layer for place in found.values() if place.lane != "embedding"), default=-1)
