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
    # BERT normalises after every addition: these are what is added, before the norm.
    "bert": {
        ("residual", "out"): "bert.encoder.layer.{}",
        ("attention", "out"): "bert.encoder.layer.{}.attention.output.dense",
        ("attention", "heads"): "bert.encoder.layer.{}.attention.self",
        ("mlp", "out"): "bert.encoder.layer.{}.output.dense",
    },
    "open_clip_image": {
        ("residual", "out"): "visual.transformer.resblocks.{}",
        ("attention", "out"): "visual.transformer.resblocks.{}.attn",
        ("attention", "heads"): "visual.transformer.resblocks.{}.attn.ln_inner",
        ("mlp", "out"): "visual.transformer.resblocks.{}.mlp",
        ("embedding", "out"): "image_embed",
    },
    "timm_image": {
        ("residual", "out"): "visual.trunk.blocks.{}",
        ("attention", "out"): "visual.trunk.blocks.{}.attn",
        ("attention", "heads"): "visual.trunk.blocks.{}.attn.norm",
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

SAME: dict[str, dict[Lane, tuple[str, ...]]] = {
    "transformer_lens": {"residual": ("blocks.{}.hook_normalized_resid_post",)},
    "transformer_bridge": {
        "attention": ("blocks.{}.attn.o.hook_out", "blocks.{}.ln1_post.hook_out"),
        "mlp": ("blocks.{}.mlp.out.hook_out", "blocks.{}.ln2_post.hook_out"),
    },
    "gpt2": {
        "attention": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.attn.resid_dropout"),
        "mlp": ("transformer.h.{}.mlp.c_proj", "transformer.h.{}.mlp.dropout"),
    },
    "gpt_neox": {
        "attention": ("gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.post_attention_dropout"),
        "mlp": ("gpt_neox.layers.{}.mlp.dense_4h_to_h", "gpt_neox.layers.{}.post_mlp_dropout"),
    },
    "llama": {
        "attention": tuple(f"model.layers.{{}}.self_attn.{name}" for name in ("o_proj", "dense", "out_proj")),
        "mlp": ("model.layers.{}.mlp.down_proj", "model.layers.{}.mlp.fc2"),
    },
    "bert": {
        "attention": ("bert.encoder.layer.{}.attention.out_lin",),
        "mlp": ("bert.encoder.layer.{}.ffn.lin2",),
    },
    "open_clip_image": {
        "attention": tuple(
            f"visual.transformer.resblocks.{{}}.{name}" for name in ("attn.out_proj", "ln_attn", "ls_1")
        ),
        "mlp": ("visual.transformer.resblocks.{}.mlp.c_proj", "visual.transformer.resblocks.{}.ls_2"),
    },
    "timm_image": {
        "attention": tuple(f"visual.trunk.blocks.{{}}.{name}" for name in ("attn.proj", "ls1", "drop_path1")),
        "mlp": tuple(f"visual.trunk.blocks.{{}}.{name}" for name in ("mlp.fc2", "ls2", "drop_path2")),
    },
    "open_clip_text": {
        "attention": tuple(f"transformer.resblocks.{{}}.{name}" for name in ("attn.out_proj", "ln_attn", "ls_1")),
        "mlp": ("transformer.resblocks.{}.mlp.c_proj", "transformer.resblocks.{}.ls_2"),
    },
    "custom_text": {
        "attention": tuple(f"text.transformer.resblocks.{{}}.{name}" for name in ("attn.out_proj", "ln_attn", "ls_1")),
        "mlp": ("text.transformer.resblocks.{}.mlp.c_proj", "text.transformer.resblocks.{}.ls_2"),
    },
}
"""Other names of what a lane gives: the last map in it, the dropout, norm or scale after it."""

_OUT: Point = "out"
_ROOTS = {
    "transformer.h.": r"(?:(?:transformer\.)?h|transformer\.blocks)\.",
    "gpt_neox.layers.": r"(?:gpt_neox\.)?layers\.",
    "model.layers.": r"(?:(?:model|language_model|text_model|decoder|encoder)\.)*layers\.",
    "bert.encoder.layer.": r"(?:\w+\.)*(?:encoder|transformer)\.layer\.",
}
"""Where a Hugging Face model without a head, or inside another model, keeps its blocks."""


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
    """Where a site lies, read off its name; None for a name that the table does not hold.

    Names alone cannot tell everything: `post_attention_layernorm` is what Gemma adds to the residual stream, and in
    Llama the norm before the MLP. `nb_sae.layer_sites(model)` asks the model.
    """
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
        raise ConfigError(
            f"{family} has no name for {place.lane} ({place.point}), which is where {site!r} lies. It names: "
            f"{', '.join(FAMILIES[family].values())}."
        )
    if ("image_embed" in FAMILIES[family].values()) != (place.tower == "image"):
        raise ConfigError(
            f"{site!r} lies in the {place.tower} tower, which {family} does not name. Choose a family of that tower."
        )
    return name.format(place.layer)


def in_order(sites: Iterable[str]) -> list[str]:
    """Sites whose place is known, as the forward pass visits them."""
    known = {site: place for site in sites if (place := place_of(site)) is not None}
    return sorted(known, key=lambda site: (known[site].tower, known[site].order))


@cache
def _patterns() -> list[tuple[str, re.Pattern[str], tuple[Lane, Point]]]:
    names: list[tuple[str, str, tuple[Lane, Point]]] = []
    for family, places in FAMILIES.items():
        names += [(family, name, place) for place, name in places.items()]
    for family, lanes in SAME.items():
        for lane, known in lanes.items():
            names.extend((family, name, (lane, _OUT)) for name in known)
    return [(family, re.compile(_pattern(name)), place) for family, name, place in names]


def _pattern(name: str) -> str:
    root = next((root for root in _ROOTS if name.startswith(root)), "")
    rest = re.escape(name.removeprefix(root)).replace(r"\{\}", r"(\d+)")
    return _ROOTS.get(root, "") + rest
