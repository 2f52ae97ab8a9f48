"""Direct feature attribution: it adds up to the pre-activation, and a head's part is what is missing without it."""

from __future__ import annotations

import copy

import numpy as np
import polars as pl
import pytest
import torch
from hand_built import induction_circuit
from linear_readout import random_dictionary
from PIL import Image
from test_lm import bridge as bridge
from test_lm import byte_level
from test_lm import folder as folder
from tiny_models import ENCODERS, PRE_NORM, lively

import nb_sae as ns
from nb_sae.attribution.direct import direct_attribution
from nb_sae.attribution.schema import DIRECT, DIRECT_PRE
from nb_sae.errors import ConfigError, InputError, ShapeError
from nb_sae.models.lm import LanguageModel, load_lm
from nb_sae.models.parts import layer_sites

IDS = torch.tensor([[3, 17, 5, 42, 17, 5, 9, 58, 1]])
FAMILIES = PRE_NORM | ENCODERS


def tiny(kind: str = "gpt2") -> tuple[LanguageModel, str]:
    """A model of a family and the attention of its second block."""
    lm = load_lm(lively(FAMILIES[kind]()), context_tokens=12, name=kind)
    return lm, layer_sites(lm, "attention")[1]


def rows(lm, site: str) -> torch.Tensor:
    return lm.capture_rows(IDS, [site])[site][0]


def plain(dictionary, x: torch.Tensor) -> torch.Tensor:
    return (x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc


def totals(found) -> pl.DataFrame:
    sums = found.frame.group_by("latent", "target").agg(pl.col("contribution").cast(pl.Float64).sum())
    return found.pre.join(sums, on=["latent", "target"]).sort("latent", "target")


@pytest.mark.parametrize("kind", FAMILIES)
def test_heads_and_sources_and_the_bias_add_up_to_the_pre_activation(kind):
    lm, site = tiny(kind)
    dictionary = random_dictionary(32, 64, site)
    dictionary.b_enc += 0.2
    found = direct_attribution(lm, dictionary, IDS, [3, 9, 40], targets="all")
    expected = plain(dictionary, rows(lm, site))
    both = totals(found)
    assert both.height == 3 * len(expected)
    np.testing.assert_allclose(both["pre"], expected[:, [3, 9, 40]].T.flatten(), atol=1e-4)
    np.testing.assert_allclose(both["contribution"] + both["bias"], both["pre"], atol=1e-4)
    assert found.about["gap"] < 1e-4
    assert both["contribution"].abs().mean() > 0.1
    assert found.frame.schema == DIRECT
    assert found.pre.schema == DIRECT_PRE
    per_head = found.heads.group_by("latent", "target").agg(pl.col("contribution").sum()).sort("latent", "target")
    np.testing.assert_allclose(per_head["contribution"], both["contribution"], atol=1e-6)
    per_source = found.sources.group_by("latent", "target").agg(pl.col("contribution").sum()).sort("latent", "target")
    np.testing.assert_allclose(per_source["contribution"], both["contribution"], atol=1e-6)
    assert found.bias.columns == ["latent", "target", "bias"]


@pytest.mark.parametrize("site", ["blocks.1.attn.hook_out", "blocks.1.hook_attn_out", "blocks.1.attn.hook_z"])
def test_they_add_up_in_a_bridge_of_transformer_lens_as_in_the_model_itself(bridge, folder, site):
    lm, itself = load_lm(bridge, context_tokens=12), load_lm(folder, context_tokens=12)
    dictionary = random_dictionary(32, 16, site)
    found = direct_attribution(lm, dictionary, IDS, [3, 5], targets="all")
    assert found.about["gap"] < 1e-4
    own = site if site.endswith("hook_z") else "transformer.h.1.attn"
    expected = direct_attribution(itself, dictionary, IDS, [3, 5], targets="all", site=own)
    np.testing.assert_allclose(found.frame["contribution"], expected.frame["contribution"], atol=1e-5)
    np.testing.assert_allclose(found.pre["pre"], expected.pre["pre"], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "site", "given"),
    [
        ("lm", "gpt_neox.layers.2.attention", "Return the number of items in the list"),
        ("clip", "visual.transformer.resblocks.1.attn", Image.effect_noise((64, 64), 60).convert("RGB")),
        ("clip", "transformer.resblocks.1.attn", "a man with eyeglasses"),
    ],
)
def test_they_add_up_in_the_shipped_models(model, site, given):
    model = ns.load_lm("demo") if model == "lm" else ns.load_clip("demo")
    modality = "image" if site.startswith("visual") else "text"
    dictionary = random_dictionary(model.site(site, modality).width, 64, site)
    prepared = model.preprocessor(modality)(given)
    kept = slice(None) if prepared.keep is None else prepared.keep[0]
    expected = plain(dictionary, model.capture_rows(prepared.tensor, [site], modality)[site][0][kept])
    found = direct_attribution(model, dictionary, given, [7], targets="all")
    both = totals(found)
    np.testing.assert_allclose(both["pre"], expected[:, 7], atol=1e-4)
    np.testing.assert_allclose(both["contribution"] + both["bias"], expected[:, 7], atol=1e-4)
    if modality == "text":
        assert "".join(found.about["tokens"]).strip().endswith("list" if model.name == "demo-lm" else "<end_of_text>")
    else:
        assert found.about["positions"] == 65
        assert found.about["tokens"] is None


def test_a_head_contributes_what_is_missing_without_it():
    lm, site = tiny()
    dictionary = random_dictionary(32, 64, site)
    found = direct_attribution(lm, dictionary, IDS, 5, targets="all").heads
    whole = plain(dictionary, rows(lm, site))[:, 5]
    for head in range(4):
        without = copy.deepcopy(lm.module)
        without.transformer.h[1].attn.c_proj.weight.data[8 * head : 8 * head + 8] = 0
        other = load_lm(without, context_tokens=12)
        missing = whole - plain(dictionary, rows(other, site))[:, 5]
        own = found.filter(pl.col("head") == head).sort("target")["contribution"]
        np.testing.assert_allclose(own, missing, atol=1e-4)


def test_the_attention_is_that_of_the_model():
    lm, site = tiny("llama")
    lm.module.set_attn_implementation("eager")
    with torch.no_grad():
        expected = lm.module(IDS, output_attentions=True).attentions[1][0]
    found = direct_attribution(lm, random_dictionary(32, 8, site), IDS, 0, targets=[-1, 2]).frame
    assert found["target"].unique().sort().to_list() == [2, 8]
    for head, target, source, attention in found.select("head", "target", "source", "attention").iter_rows():
        assert attention == pytest.approx(float(expected[head, target, source]), abs=1e-5)
    assert found.filter(pl.col("target") == 2).height == 4 * 3  # nothing of what comes later


def test_before_the_output_matrix_each_head_is_read_by_its_own_block():
    lm, _ = tiny()
    dictionary = random_dictionary(32, 64, "blocks.1.attn.hook_z")
    seen = []
    output = lm.module.transformer.h[1].attn.c_proj
    handle = output.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].detach()))
    rows(lm, "transformer.h.1")
    handle.remove()
    found = direct_attribution(lm, dictionary, IDS, [2, 5], targets="all")
    expected = plain(dictionary, seen[-1])[:, [2, 5]]
    both = totals(found)
    np.testing.assert_allclose(both["pre"], expected.T.flatten(), atol=1e-4)
    np.testing.assert_allclose(both["contribution"] + both["bias"], both["pre"], atol=1e-4)
    by_head = (seen[-1].view(-1, 4, 8) * dictionary.W_enc[:, 2].view(4, 8)).sum(-1)
    own = found.heads.filter(pl.col("latent") == 2).sort("target", "head")["contribution"]
    np.testing.assert_allclose(own, by_head.flatten(), atol=1e-4)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_rows_that_a_dictionary_normalises_add_up_too(norm):
    lm, site = tiny()
    dictionary = random_dictionary(32, 64, site, row_norm=norm, budgets=None)
    found = direct_attribution(lm, dictionary, IDS, range(64), targets="all")
    both = totals(found)
    np.testing.assert_allclose(both["contribution"] + both["bias"], both["pre"], atol=1e-4)
    z = dictionary.encode(rows(lm, site))
    np.testing.assert_allclose(both["pre"].clip(0), z.T.flatten(), atol=1e-4)
    np.testing.assert_allclose(both["activation"], z.T.flatten(), atol=1e-4)


def test_by_default_the_strongest_position_of_each_latent_is_taken_apart():
    lm, site = tiny()
    dictionary = random_dictionary(32, 64, site, pre_bias=False)
    x = rows(lm, site)
    pre = x @ dictionary.W_enc + dictionary.b_enc
    found = direct_attribution(lm, dictionary, IDS, [4, 8, 4])
    assert found.pre["target"].to_list() == [int(pre[:, 4].argmax()), int(pre[:, 8].argmax())]
    np.testing.assert_allclose(found.pre["pre"], [float(pre[:, 4].max()), float(pre[:, 8].max())], atol=1e-4)
    assert found.about["gap"] < 1e-4
    assert "2 latents of 'transformer.h.1.attn'" in repr(found)


def test_the_strongest_position_is_no_special_token_where_there_is_another():
    lm = load_lm(lively(PRE_NORM["neox"](vocab_size=300)), tokenizer=byte_level(adds_start=True), context_tokens=12)
    site = layer_sites(lm, "attention")[1]
    dictionary = random_dictionary(32, 64, site)
    ids = lm.preprocessor()("abcde").tensor[:, :6]
    pre = plain(dictionary, lm.capture_rows(ids, [site])[site][0])
    starts = [latent for latent in range(64) if int(pre[:, latent].argmax()) == 0]
    assert starts  # rows of the start mark are where many latents are largest
    found = direct_attribution(lm, dictionary, "abcde", starts)
    assert found.pre["target"].to_list() == (1 + pre[1:, starts].argmax(0)).tolist()
    assert direct_attribution(lm, dictionary, torch.tensor([[1]]), 0).pre["target"].to_list() == [0]


def test_an_induction_head_is_found_as_the_reason():
    """The hand-built circuit: at a repeated token, head 0 brings what stood after the first copy, from there alone."""
    lm = induction_circuit()
    block = lm.module.transformer.h[1]
    with torch.no_grad():  # head 0 copies the token it looks at
        block.attn.c_attn.weight[:14, 2 * 52 : 2 * 52 + 14] = torch.eye(14)
        block.attn.c_proj.weight[:14, :14] = torch.eye(14)
    dictionary = random_dictionary(52, 8, "transformer.h.1.attn", budgets=None)
    dictionary.W_enc[:, 0] = torch.eye(52)[6]  # reads token 6
    ids = torch.tensor([[3, 4, 6, 9, 11, 4]])
    found = direct_attribution(lm, dictionary, ids, 0, targets=5)
    parts = found.frame.filter(pl.col("contribution").abs() > 1e-3)
    assert parts.select("head", "source").rows() == [(0, 2)]
    assert parts["attention"][0] == 1
    assert parts["contribution"][0] == pytest.approx(float(found.pre["pre"][0] - found.pre["bias"][0]), abs=1e-4)


def test_half_precision_adds_up_within_its_own_rounding():
    lm = load_lm(str(ns.models.demo.demo_lm_folder()), dtype="bf16")
    dictionary = random_dictionary(192, 64, "gpt_neox.layers.2.attention")
    found = direct_attribution(lm, dictionary, "Return the number of items", 7, targets="all")
    assert found.about["gap"] < 0.05 * found.pre["pre"].abs().max()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"site": "transformer.h.1"}, ConfigError, "holds the residual lane"),
        ({"latents": [99]}, ConfigError, "0 … 63"),
        ({"latents": []}, ConfigError, "No latents"),
        ({"targets": [40]}, ConfigError, "the input has positions 0 … "),
        ({"targets": []}, ConfigError, "the input has positions"),
        ({"targets": "some"}, ConfigError, "Use 'strongest', 'all', or positions"),
        ({"given": IDS.expand(2, -1)}, InputError, "Several inputs"),
        ({"given": IDS[:, :0]}, InputError, "hold nothing"),
        ({"given": IDS.repeat(1, 5)}, InputError, "The prompt has 45 tokens; gpt2 sees 40"),
        ({"given": "a text"}, ConfigError, "loaded without a tokenizer"),
        ({"dictionary": random_dictionary(16, 64, "transformer.h.1.attn")}, ShapeError, "has width 32"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(change, error, message):
    lm, site = tiny()
    asked = {"dictionary": random_dictionary(32, 64, site), "given": IDS, "latents": [3]} | change
    with pytest.raises(error, match=message):
        direct_attribution(lm, asked.pop("dictionary"), asked.pop("given"), asked.pop("latents"), **asked)


def test_a_table_that_would_be_too_long_is_refused(monkeypatch):
    monkeypatch.setattr("nb_sae.attribution.direct.MOST_LINES", 1000)
    lm, site = tiny()
    with pytest.raises(ConfigError, match="expected at most 1,000"):
        direct_attribution(lm, random_dictionary(32, 64, site), IDS, range(64), targets="all")
