"""Promises of nb_sae.layers: the one table of how models name their layers."""

from __future__ import annotations

import pytest

from nb_sae.errors import ConfigError
from nb_sae.layers import EMBEDDING_LAYER, FAMILIES, SAME, Place, in_order, place_of, same_place

BY_HAND = {
    "blocks.3.hook_resid_post": ("text", 3, "residual", "out"),
    "blocks.3.hook_out": ("text", 3, "residual", "out"),
    "blocks.3.hook_resid_pre": ("text", 3, "residual", "in"),
    "blocks.3.hook_in": ("text", 3, "residual", "in"),
    "blocks.0.hook_attn_out": ("text", 0, "attention", "out"),
    "blocks.11.ln1_post.hook_out": ("text", 11, "attention", "out"),
    "blocks.2.hook_mlp_out": ("text", 2, "mlp", "out"),
    "blocks.2.mlp.hook_out": ("text", 2, "mlp", "out"),
    "transformer.h.3": ("text", 3, "residual", "out"),
    "h.3.attn": ("text", 3, "attention", "out"),
    "transformer.h.3.mlp.c_proj": ("text", 3, "mlp", "out"),
    "gpt_neox.layers.1.attention": ("text", 1, "attention", "out"),
    "gpt_neox.layers.1.mlp.dense_4h_to_h": ("text", 1, "mlp", "out"),
    "model.layers.20.self_attn.o_proj": ("text", 20, "attention", "out"),
    "model.language_model.layers.7": ("text", 7, "residual", "out"),
    "layers.7.mlp.down_proj": ("text", 7, "mlp", "out"),
    "model.layers.5.post_feedforward_layernorm": ("text", 5, "mlp", "out"),
    "roberta.encoder.layer.2": ("text", 2, "residual", "out"),
    "text.transformer.encoder.layer.2.attention.output.dense": ("text", 2, "attention", "out"),
    "visual.transformer.resblocks.9": ("image", 9, "residual", "out"),
    "visual.transformer.resblocks.9.ls_2": ("image", 9, "mlp", "out"),
    "visual.trunk.blocks.4.attn": ("image", 4, "attention", "out"),
    "transformer.resblocks.4.attn.out_proj": ("text", 4, "attention", "out"),
    "text.transformer.resblocks.4": ("text", 4, "residual", "out"),
    "image_embed": ("image", EMBEDDING_LAYER, "embedding", "out"),
    "text_embed": ("text", EMBEDDING_LAYER, "embedding", "out"),
}
BEFORE_W_O = [
    "blocks.3.attn.hook_z",
    "blocks.3.attn.o.hook_in",
    "bert.encoder.layer.3.attention.self",
    "encoder.layer.3.attention.self",
    "visual.trunk.blocks.3.attn.norm",
    "visual.transformer.resblocks.3.attn.ln_inner",
]
NO_LAYER = [
    "blocks.3.hook_resid_mid",
    "transformer.h.3.ln_1",
    "transformer.wte",
    "model.layers.3.input_layernorm",
    "model.layers.x",
    "xtransformer.h.3",
    "gpt_neox.layers.3.mlp.dense_h_to_4h",
    "bert.encoder.layer.3.attention.output",
    "visual.layer3",
    "",
]
NAMES = [(family, key) for family, names in FAMILIES.items() for key in names]


@pytest.mark.parametrize("site", BY_HAND)
def test_a_name_says_where_it_lies(site):
    assert place_of(site) == Place(*BY_HAND[site])


@pytest.mark.parametrize("site", BEFORE_W_O)
def test_heads_before_w_o_are_told_from_what_attention_adds(site):
    assert place_of(site) == Place("image" if site.startswith("visual") else "text", 3, "attention", "heads")


@pytest.mark.parametrize("site", NO_LAYER)
def test_names_outside_the_table_are_no_place(site):
    assert place_of(site) is None


@pytest.mark.parametrize(("family", "key"), NAMES, ids=lambda value: str(value))
def test_every_name_of_the_table_is_found_at_its_place(family, key):
    site = FAMILIES[family][key].format(7)
    place = place_of(site)
    assert place is not None
    assert (place.lane, place.point) == key
    assert place.layer == (EMBEDDING_LAYER if key[0] == "embedding" else 7)
    assert place.tower == ("image" if family.endswith("_image") else "text")
    assert same_place(site, family) == site


def test_other_names_lead_to_the_name_of_the_table():
    for family, lanes in SAME.items():
        for lane, names in lanes.items():
            for name in names:
                assert same_place(name.format(2), family) == FAMILIES[family][lane, "out"].format(2)


def test_one_layer_has_a_name_in_every_family_of_its_tower():
    assert same_place("blocks.3.hook_resid_post", "gpt2") == "transformer.h.3"
    assert same_place("transformer.h.3", "transformer_lens") == "blocks.3.hook_resid_post"
    assert same_place("gpt_neox.layers.2.mlp", "llama") == "model.layers.2.mlp"
    assert same_place("model.layers.2.self_attn", "gemma") == "model.layers.2.post_attention_layernorm"
    assert same_place("visual.trunk.blocks.0", "open_clip_image") == "visual.transformer.resblocks.0"
    assert same_place("blocks.4.attn.hook_z", "transformer_bridge") == "blocks.4.attn.o.hook_in"


def test_what_enters_a_block_is_what_the_one_before_gave():
    assert same_place("blocks.3.hook_resid_pre", "gpt2") == "transformer.h.2"
    assert same_place("blocks.3.hook_resid_pre", "transformer_bridge") == "blocks.3.hook_in"
    with pytest.raises(ConfigError, match=r"gpt2 has no name for residual \(in\)"):
        same_place("blocks.0.hook_resid_pre", "gpt2")


def test_places_without_a_name_are_refused():
    with pytest.raises(ConfigError, match="Closest: gpt_neox"):
        same_place("transformer.h.3", "gpt-neox")
    with pytest.raises(ConfigError, match="none of the layer names"):
        same_place("transformer.wte", "llama")
    with pytest.raises(ConfigError, match=r"llama has no name for attention \(heads\).*It names: model\.layers"):
        same_place("blocks.4.attn.hook_z", "llama")
    with pytest.raises(ConfigError, match="lies in the image tower, which llama does not name"):
        same_place("visual.transformer.resblocks.2", "llama")
    with pytest.raises(ConfigError, match="lies in the text tower, which timm_image does not name"):
        same_place("transformer.resblocks.2", "timm_image")


def test_sites_are_ordered_as_the_pass_visits_them():
    sites = ["blocks.0.hook_attn_out", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
    sites += ["blocks.2.hook_resid_post", "blocks.10.hook_attn_out", "text_embed"]
    assert in_order(reversed(sites)) == sites
    assert in_order(["transformer.wte", *sites[:2]]) == sites[:2]
    assert in_order([]) == []
