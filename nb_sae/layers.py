"""The one table of how models name their layers: `blocks.3.hook_resid_post` = `transformer.h.3`.

Strings only: what a name means is read off the name, without the model. What a model really has is asked of the model
by `nb_sae.models.parts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from nb_sae.errors import ConfigError, closest

Lane = Literal["residual", "attention", "mlp", "embedding"]
"""What a site holds: the residual stream after a block, what attention or MLP adds to it, the final embedding."""
Point = Literal["out", "in", "heads"]
"""`out`: what the lane gives. `in`: the residual stream before the block. `heads`: concatenated heads before W_O."""
Tower = Literal["text", "image"]

LANES: tuple[Lane, ...] = ("residual", "attention", "mlp", "embedding")
EMBEDDING_LAYER = 2**14
"""Layer of a final embedding, which comes after every block."""

FAMILIES: dict[str, dict[tuple[Lane, Point], str]] = {
    "transformer_lens": {
        ("residual", "out"): "blocks.{}.hook_resid_post",
        ("residual", "in"): "blocks.{}.hook_resid_pre",
        ("attention", "out"): "blocks.{}.hook_attn_out",
        ("attention", "heads"): "blocks.{}.attn.hook_z",
        ("mlp", "out"): "blocks.{}.hook_mlp_out",
    },
    "transformer_bridge": {
        ("residual", "out"): "blocks.{}.hook_out",
        ("residual", "in"): "blocks.{}.hook_in",
        ("attention", "out"): "blocks.{}.attn.hook_out",
        ("attention", "heads"): "blocks.{}.attn.o.hook_in",
        ("mlp", "out"): "blocks.{}.mlp.hook_out",
    },
    "gpt2": {
        ("residual", "out"): "transformer.h.{}",
        ("attention", "out"): "transformer.h.{}.attn",
        ("mlp", "out"): "transformer.h.{}.mlp",
    },
    "gpt_neox": {
        ("residual", "out"): "gpt_neox.layers.{}",
        ("attention", "out"): "gpt_neox.layers.{}.attention",
        ("mlp", "out"): "gpt_neox.layers.{}.mlp",
    },
    "llama": {
        ("residual", "out"): "model.layers.{}",
        ("attention", "out"): "model.layers.{}.self_attn",
        ("mlp", "out"): "model.layers.{}.mlp",
    },
    # Gemma normalises what attention and MLP give before it is added.
    "gemma": {
        ("residual", "out"): "model.layers.{}",
        ("attention", "out"): "model.layers.{}.post_attention_layernorm",
        ("mlp", "out"): "model.layers.{}.post_feedforward_layernorm",
    },
    "bert": {
        ("residual", "out"): "bert.encoder.layer.{}",
        ("attention", "out"): "bert.encoder.layer.{}.attention.output.dense",
        ("mlp", "out"): "bert.encoder.layer.{}.output.dense",
    },
    "open_clip_image": {
        ("residual", "out"): "visual.transformer.resblocks.{}",
        ("attention", "out"): "visual.transformer.resblocks.{}.attn",
        ("mlp", "out"): "visual.transformer.resblocks.{}.mlp",
        ("embedding", "out"): "image_embed",
    },
    "timm_image": {
        ("residual", "out"): "visual.trunk.blocks.{}",
        ("attention", "out"): "visual.trunk.blocks.{}.attn",
        ("mlp", "out"): "visual.trunk.blocks.{}.mlp",
        ("embedding", "out"): "image_embed",
    },
    "open_clip_text": {
        ("residual", "out"): "transformer.resblocks.{}",
        ("attention", "out"): "transformer.resblocks.{}.attn",
        ("mlp", "out"): "transformer.resblocks.{}.mlp",
        ("embedding", "out"): "text_embed",
    },
    "custom_text": {
        ("residual", "out"): "text.transformer.resblocks.{}",
        ("attention", "out"): "text.transformer.resblocks.{}.attn",
        ("mlp", "out"): "text.transformer.resblocks.{}.mlp",
        ("embedding", "out"): "text_embed",
    },
}
"""Family → what a place is called there; `{}` is the number of the block."""


@dataclass(frozen=True)
class Place:
    """Where a site lies in its model."""

    tower: Tower
    layer: int
    """Number of the block, 0-based; `EMBEDDING_LAYER` for the final embedding."""
    lane: Lane
    point: Point = "out"

    @property
    def order(self) -> tuple[int, int]:
        """Sorts sites as the forward pass visits them; attention before MLP before the residual stream after both."""
        rank = -1 if self.point == "in" else {"attention": 0, "mlp": 1, "residual": 2, "embedding": 3}[self.lane]
        return self.layer, rank


def place_of(site: str) -> Place | None:
    """Where a site lies, read off its name; None for a name that the table does not hold."""
    for family, pattern, (lane, point) in _patterns():
        found = pattern.fullmatch(site)
        if found:
            layer = EMBEDDING_LAYER if lane == "embedding" else int(found[1])
            return Place("image" if family.endswith("_image") else "text", layer, lane, point)
    return None


def same_place(site: str, family: str) -> str:
    """What another family of models calls the same place, such as `same_place("transformer.h.3", "transformer_lens")`.

    Raises:
        ConfigError: unknown family, unknown site, or a place that the family has no name for.
    """
    if family not in FAMILIES:
        raise ConfigError(
            f"family={family!r} is unknown. {closest(family, FAMILIES)}Choose from {', '.join(FAMILIES)}."
        )
    place = place_of(site)
    if place is None:
        raise ConfigError(
            f"{site!r} is none of the layer names in nb_sae.layers.FAMILIES. Name it for the family by hand."
        )
    name = FAMILIES[family].get((place.lane, place.point))
    if name is None and place.point == "in" and place.layer > 0:
        # What enters a block is what the block before gave.
        name, place = FAMILIES[family].get(("residual", "out")), Place(place.tower, place.layer - 1, "residual")
    if name is None:
        raise ConfigError(f"{family} has no name for {place.lane} ({place.point}), which is where {site!r} lies.")
    return name.format(place.layer)


def in_order(sites: Iterable[str]) -> list[str]:
    """Sites whose place is known, as the forward pass visits them."""
    known = {site: place for site in sites if (place := place_of(site)) is not None}
    return sorted(known, key=lambda site: (known[site].tower, known[site].order))


@cache
def _patterns() -> list[tuple[str, re.Pattern[str], tuple[Lane, Point]]]:
    return [
        (family, re.compile(re.escape(name).replace(r"\{\}", r"(\d+)")), key)
        for family, names in FAMILIES.items()
        for key, name in names.items()
    ]
