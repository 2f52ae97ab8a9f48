"""Which dictionaries can be matched: places of sites, refusals, and the way into the embedding."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from flow_chains import dictionary, mlp, residual, unit

import nb_sae as ns
from nb_sae.errors import ConfigError, HookError, ShapeError, StoreError
from nb_sae.flow.flow import FeatureFlow
from nb_sae.flow.links.making import feature_flow
from nb_sae.layers import Place


def lines(flow: FeatureFlow, site: str) -> pl.DataFrame:
    return flow.latents.filter(pl.col("site") == site)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def of(*sites: str, width: int = 6) -> dict[str, ns.Dictionary]:
    return {site: dictionary(torch.eye(width), site) for site in sites}


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([residual(0)], "1 site was given; a flow needs"),
        ([residual(0), "blocks.1.hook_resid_mid"], "none of the layer names.*Closest: .*kinds="),
        ([residual(1), "transformer.h.1"], "are one place of the model"),
        (["visual.transformer.resblocks.0", "transformer.resblocks.1"], "image and the text tower are mixed"),
        ([residual(0), "blocks.1.attn.hook_z"], "before W_O.*output of the attention module"),
        ([mlp(0), mlp(1)], "No two of the sites feed each other"),
        ([residual(0), "text_embed"], "Pass model="),
    ],
)
def test_sites_that_cannot_be_matched_are_refused(sites, message):
    with pytest.raises(ConfigError, match=message):
        feature_flow(of(*sites), progress=False)


def test_other_widths_are_refused_and_w_o_is_named():
    with pytest.raises(ShapeError, match=r"width 6, .*width 8"):
        feature_flow({**of(residual(0)), **of(residual(1), width=8)}, progress=False)
    with pytest.raises(ShapeError, match="heads before W_O"):
        feature_flow({**of(residual(0)), **of("transformer.h.1.attn", width=8)}, progress=False)


def test_what_is_no_dictionary_or_has_no_directions_is_refused():
    with pytest.raises(ConfigError, match="holds a str; expected a Dictionary"):
        feature_flow({**of(residual(0)), residual(1): "runs/one"}, progress=False)
    with pytest.raises(ShapeError, match="one number wide"):
        feature_flow(of(residual(0), residual(1), width=1), progress=False)


def test_a_transcoder_is_refused():
    sites = {**of(residual(0)), mlp(1): dictionary(torch.eye(6), mlp(1), target=residual(1))}
    with pytest.raises(ConfigError, match="is a transcoder"):
        feature_flow(sites, progress=False)


@pytest.mark.parametrize("what", ["model", "revision"])
def test_dictionaries_of_different_models_are_refused(what):
    sites = {site: dictionary(torch.eye(6), site, **{what: site[:8]}) for site in (residual(0), residual(1))}
    with pytest.raises(ConfigError, match=f"of {what} 'blocks.0'"):
        feature_flow(sites, progress=False)


def test_a_key_that_is_not_the_dictionarys_site_is_refused():
    with pytest.raises(ConfigError, match="Use the site that it was trained on"):
        feature_flow({**of(residual(0)), residual(1): dictionary(torch.eye(6), residual(2))}, progress=False)


def test_kinds_say_where_an_unknown_site_lies():
    rows = torch.eye(6)
    sites = {name: dictionary(rows, name) for name in ("late", "wide.3", "early", "mixer")}
    kinds = {"early": ("residual", 1), "late": Place("text", 7, "residual"), "wide.3": "residual", "mixer": ("mlp", 3)}
    flow = feature_flow(sites, kinds=kinds, progress=False)
    assert flow.sites == ["early", "mixer", "wide.3", "late"]
    assert flow.about["places"]["mixer"]["lane"] == "mlp"


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"a.1": "residual", "b": "residual"}, "holds 0 numbers"),
        ({"a.1": "stream", "b": ("residual", 2)}, "give a lane of"),
        ({"a.1": "residual", "c": ("residual", 2)}, "none of the sites"),
    ],
)
def test_kinds_that_say_too_little_are_refused(kinds, message):
    with pytest.raises(ConfigError, match=message):
        feature_flow(of("a.1", "b"), kinds=kinds, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "pearson"}, "rule='pearson'"),
        ({"null": "gauss"}, "null='gauss'"),
        ({"top": 0}, "top=0"),
        ({"thresholds": "strict"}, "thresholds='strict'"),
        ({"thresholds": {"residul": 0.4}}, "Closest: residual"),
        ({"thresholds": {"residual": 1.5}}, "from 0 to 1"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        feature_flow(of(residual(0), residual(1)), progress=False, **settings)


# ── to the embedding ──────────────────────────────────────────────────────────────────────────────────────────────────

LAST = "visual.transformer.resblocks.3"


@pytest.fixture(scope="module")
def clip():
    return ns.load_clip("demo", device="cpu")


def test_last_residual_latents_reach_the_embedding_through_norm_and_projection(clip):
    """Rows of the embedding planted as (d − mean d) ⊙ w · P of the residual rows, and with random factors."""
    generator = torch.Generator().manual_seed(0)
    visual = clip.module.visual
    residual_rows = unit(60, 128, generator)
    centred = residual_rows - residual_rows.mean(-1, keepdim=True)
    order = torch.randperm(60, generator=generator)
    through = ((centred * visual.ln_post.weight) @ visual.proj).detach()[order] * 7
    sites = {LAST: dictionary(residual_rows, LAST), "image_embed": dictionary(through, "image_embed")}
    flow = feature_flow(sites, model=clip, progress=False)
    table = lines(flow, "image_embed")
    assert table["match_residual"].to_list() == order.tolist()
    np.testing.assert_allclose(table["s_residual"].to_numpy(), 1.0, atol=1e-5)
    assert lines(flow, LAST)["carried_to"].to_numpy()[order].tolist() == list(range(60))
    assert flow.chain(LAST, int(order[5]))["site"].to_list() == [LAST, "image_embed"]
    assert (table["layer"][0], table["lane"][0]) == (4, "embedding")
    # the same numbers straight across mean nothing: the two spaces differ although their widths agree
    raw = torch.nn.functional.normalize(through, dim=-1) @ residual_rows.T
    assert float(raw.diagonal().abs().mean()) < 0.5


def test_the_text_tower_has_a_norm_and_projection_of_its_own(clip):
    generator = torch.Generator().manual_seed(0)
    last, module = "transformer.resblocks.1", clip.module
    rows = unit(50, module.ln_final.weight.shape[0], generator)
    centred = rows - rows.mean(-1, keepdim=True)
    through = ((centred * module.ln_final.weight) @ module.text_projection).detach()
    sites = {last: dictionary(rows, last), "text_embed": dictionary(through, "text_embed")}
    table = lines(feature_flow(sites, model=clip, progress=False), "text_embed")
    assert table["match_residual"].to_list() == list(range(50))
    np.testing.assert_allclose(table["s_residual"].to_numpy(), 1.0, atol=1e-5)


def test_a_tower_whose_end_is_not_linear_is_refused(clip, monkeypatch):
    """As one that pools by attention with an MLP behind it."""
    from nb_sae.models.parts import parts

    straight = parts(clip, "image").final_lens
    monkeypatch.setattr(parts(clip, "image"), "final_lens", lambda x: straight(x).relu())
    sites = of(LAST, "image_embed", width=128)
    with pytest.raises(ConfigError, match="does not end in a norm and a linear map"):
        feature_flow(sites, model=clip, progress=False)


def test_without_the_model_the_embedding_is_left_out_and_said_so():
    sites = of("visual.transformer.resblocks.0", "visual.transformer.resblocks.1", "image_embed")
    flow = feature_flow(sites, progress=False)
    assert "image_embed" in flow.about["left_out"][0]
    assert "image_embed" in repr(flow)
    assert lines(flow, "image_embed")["s_residual"].null_count() == 6
    assert lines(flow, "image_embed")["layer"][0] == 2


def test_a_module_without_a_residual_site_to_match_is_left_out_and_said_so():
    flow = feature_flow(
        of("blocks.0.hook_mlp_out", "blocks.2.hook_resid_post", "blocks.3.hook_resid_post"), progress=False
    )
    assert flow.about["left_out"] == ["blocks.0.hook_mlp_out: no residual site of its block or before it was given"]
    assert lines(flow, "blocks.0.hook_mlp_out")["s_residual"].null_count() == 6


def test_a_site_that_the_model_lacks_is_named_with_its_neighbours(clip):
    sites = of("visual.transformer.resblocks.3", "visual.transformer.resblocks.9", width=128)
    with pytest.raises(HookError, match=r"Closest: visual.transformer.resblocks"):
        feature_flow(sites, model=clip, progress=False)
    alien = {site: dictionary(torch.eye(128), site, model="other") for site in of(LAST, "image_embed")}
    with pytest.raises(ConfigError, match="was trained on model 'other'"):
        feature_flow(alien, model=clip, progress=False)


def test_settings_of_the_wrong_kind_are_refused_by_name():
    generator = torch.Generator().manual_seed(0)
    sites = {residual(layer): dictionary(unit(20, 8, generator), residual(layer)) for layer in (0, 1)}
    for given, message in (
        ({"top": "8"}, "top='8': expected a whole number"),
        ({"top": 2.5}, "top=2.5"),
        ({"block": 0}, "block=0"),
        ({"draws": 2000.0}, "draws=2000.0"),
        ({"seed": "x"}, "seed='x'"),
        ({"kinds": "residual"}, "expected .site: lane."),
        ({"model": "demo"}, "Got a str as the model"),
        ({"rule": "correlation", "stores": [1]}, "Got a list as stores"),
        ({"rule": "correlation", "stores": dict.fromkeys(sites, torch.zeros(3, 8))}, "holds a Tensor as its store"),
    ):
        with pytest.raises((ConfigError, StoreError), match=message):
            feature_flow(sites, progress=False, **given)
    flow = feature_flow(sites, progress=False, draws=1000)
    for latent in (1.5, "3", None, True, -1):
        with pytest.raises(ConfigError, match="latent="):
            flow.chain(residual(1), latent)
    with pytest.raises(ConfigError, match="None is no site"):
        flow.born(None, 0)
    with pytest.raises(ConfigError, match=r"steps=1\.5"):
        flow.neighbourhood(residual(1), 0, 1.5)
