"""Which sites feed which: where each dictionary lies in its model, and what its latents are matched with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nb_sae.errors import ConfigError, closest
from nb_sae.layers import FAMILIES, LANES, Lane, Place, place_of

PAPER_RESIDUAL, PAPER_MODULE = 0.5, 0.15
"""Cosines from which Laptev et al. 2025 call a residual or a module predecessor a match."""


@dataclass(frozen=True)
class Route:
    """One pair of sites whose dictionaries are matched."""

    source: str
    target: str
    lane: Lane
    """Of the source."""
    target_lane: Lane

    @property
    def along(self) -> bool:
        """Whether it leads along the stream, to a residual site or the embedding, and not into a module."""
        return self.target_lane in ("residual", "embedding")

    @property
    def paper(self) -> float:
        """Threshold of the paper: 0.5 along the residual stream, 0.15 where one side is a module."""
        return PAPER_RESIDUAL if self.lane == "residual" and self.along else PAPER_MODULE


def places(sites: Iterable[str], kinds: Mapping[str, Any] | None = None) -> dict[str, Place]:
    """Where each site lies, in the order of the forward pass, whatever order they are given in.

    Args:
        sites: Names of sites.
        kinds: What the table of names cannot say: site → lane ("residual", "attention", "mlp", "embedding") where the
            name holds exactly one number, else `(lane, layer)` or a `Place`. Goes before the table.

    Raises:
        ConfigError: a site of unknown place, two names of one place, sites of two towers, an attention site before
            W_O, or `kinds` of sites that are not there.
    """
    sites = list(sites)
    if kinds is not None and not isinstance(kinds, Mapping):
        raise ConfigError(f"kinds={kinds!r}: expected {{site: lane}}, such as {{{sites[0]!r}: 'residual'}}.")
    kinds = dict(kinds or {})
    for site in kinds:
        if site not in sites:
            raise ConfigError(
                f"kinds= names {site!r}, which is none of the sites. {closest(site, sites)}Use the keys of the "
                "dictionaries."
            )
    found = {site: _told(site, kinds[site]) if site in kinds else _looked_up(site) for site in sites}
    towers = {place.tower for site, place in found.items() if site not in kinds}
    if len(towers) > 1:
        one = {tower: next(site for site, place in found.items() if place.tower == tower) for tower in sorted(towers)}
        raise ConfigError(
            f"The image and the text tower are mixed: {one['image']!r} and {one['text']!r}. Features flow inside a "
            "tower; call feature_flow once for each."
        )
    if towers:
        tower = next(iter(towers))
        found = {site: replace(place, tower=tower) for site, place in found.items()}
    _refuse_doubles(found)
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def routes(found: Mapping[str, Place]) -> list[Route]:
    """Pairs of sites that are matched, by target in the order of the forward pass.

    A residual site is matched with the residual site before it among those given, and with attention and MLP of its own
    block; attention and MLP with the last residual site before their block; the embedding with the last residual site.
    """
    made: list[Route] = []
    residual: str | None = None
    for target, place in found.items():
        if residual is not None:
            made.append(Route(residual, target, "residual", place.lane))
        if place.lane == "residual":
            made += [
                Route(site, target, other.lane, "residual")
                for site, other in found.items()
                if other.layer == place.layer and other.lane in ("attention", "mlp")
            ]
            residual = target
    return made


def _told(site: str, kind: Any) -> Place:
    if isinstance(kind, Place):
        return _out(site, kind)
    lane, layer = kind if isinstance(kind, tuple | list) and len(kind) == 2 else (kind, None)
    if lane not in LANES or not (layer is None or (isinstance(layer, int) and layer >= 0)):
        raise ConfigError(
            f"kinds[{site!r}]={kind!r}: give a lane of {', '.join(LANES)}, or (lane, number of the block)."
        )
    if lane == "embedding":
        embedding = place_of("image_embed")
        assert embedding is not None
        return embedding
    if layer is None:
        numbers = set(re.findall(r"\d+", site))
        if len(numbers) != 1:
            raise ConfigError(
                f"kinds[{site!r}]={kind!r} does not say which block it is, and the name holds {len(numbers)} numbers. "
                f"Give ({lane!r}, number of the block)."
            )
        layer = int(numbers.pop())
    return Place("text", layer, lane)


def _looked_up(site: str) -> Place:
    place = place_of(site)
    if place is None:
        number = re.search(r"\d+", site)
        names = [
            name.format(number[0] if number else 0)
            for family in FAMILIES.values()
            for (_, point), name in family.items()
            if point != "heads"
        ]
        raise ConfigError(
            f"{site!r} is none of the layer names in nb_sae.layers.FAMILIES, so its order and lane are unknown. "
            f"{closest(site, dict.fromkeys(names))}Use the name of the site as the key, or say what it is: "
            f"kinds={{{site!r}: ('residual', 3)}}."
        )
    return _out(site, place)


def _out(site: str, place: Place) -> Place:
    """What enters a block is what the block before gave; layer −1 is what enters the first."""
    if place.point == "heads":
        raise ConfigError(
            f"{site!r} holds the heads of block {place.layer} before W_O: directions there are not directions of the "
            "residual stream and cannot be matched with any. Train the attention dictionary on the output of the "
            "attention module (after W_O), or read this one with ns.direct_attribution."
        )
    return replace(place, layer=place.layer - 1, point="out") if place.point == "in" else place


def _refuse_doubles(found: Mapping[str, Place]) -> None:
    seen: dict[tuple[int, str], str] = {}
    for site, place in found.items():
        other = seen.setdefault((place.layer, place.lane), site)
        if other != site:
            raise ConfigError(
                f"{other!r} and {site!r} are one place of the model ({place.lane}, block {place.layer}). Keep one of "
                "them; ns.metrics.align compares two dictionaries of one site."
            )
