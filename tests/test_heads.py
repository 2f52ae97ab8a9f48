"""Heads by the weights and by where they look, against models built by hand and against what chance gives."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from hand_built import POSITIONS, induction_circuit
from linear_readout import random_dictionary
from test_lm import byte_level

import nb_sae as ns
from nb_sae import plots
from nb_sae.attribution.heads import head_weights
from nb_sae.attribution.patterns import head_scores, induction_curve
from nb_sae.attribution.schema import HEAD_SCORES, HEAD_WEIGHTS, INDUCTION
from nb_sae.errors import ConfigError, ShapeError, WidgetError
from nb_sae.models.lm import LanguageModel, load_lm

WIDTH, HEADS = 32, 4


def gpt2(**settings) -> LanguageModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 48}
    config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    return load_lm(transformers.GPT2LMHeadModel(config), **{"context_tokens": 24, "name": "tiny-gpt2"} | settings)


@pytest.fixture(scope="module")
def scores():
    return head_scores(induction_circuit())


def of(frame: pl.DataFrame, layer: int, head: int) -> dict:
    return frame.filter((pl.col("layer") == layer) & (pl.col("head") == head)).row(0, named=True)


def test_heads_built_by_hand_score_one_exactly(scores):
    assert scores.schema == HEAD_SCORES
    assert scores.height == 4
    assert scores["site"].unique().sort().to_list() == ["transformer.h.0.attn", "transformer.h.1.attn"]
    assert of(scores, 0, 0)["previous"] == 1
    assert of(scores, 1, 0)["induction"] == 1
    assert of(scores, 1, 1)["first"] == 1
    assert of(scores, 0, 0)["induction"] == 0
    assert of(scores, 1, 0)["previous"] < 0.1


def test_a_head_that_attends_evenly_scores_its_null(scores):
    even = of(scores, 0, 1)
    tokens = POSITIONS // 2
    assert even["induction"] == pytest.approx(even["induction_null"], rel=1e-5)
    assert even["previous"] == pytest.approx(even["previous_null"], rel=1e-5)
    assert even["induction_null"] == pytest.approx(np.mean([1 / (t + 1) for t in range(tokens, 2 * tokens)]))
    assert even["previous_null"] == pytest.approx(np.mean([1 / (t + 1) for t in range(1, 2 * tokens)]))


def test_the_shipped_model_has_an_induction_head_and_random_weights_have_none():
    trained = head_scores(ns.load_lm("demo"))
    best = trained.sort("induction").row(-1, named=True)
    assert best["induction"] > 0.3 > 10 * best["induction_null"]
    assert best["layer"] > trained.sort("previous").row(-1, named=True)["layer"]  # it builds on a previous-token head
    assert trained["previous"].max() > 0.8
    by_chance = head_scores(gpt2())
    assert (by_chance["induction"] - by_chance["induction_null"]).abs().max() < 0.02


def test_random_tokens_are_seeded_and_stand_after_the_special_ones():
    lm = gpt2(tokenizer=byte_level(adds_start=True))
    first, again, other = (head_scores(lm, [1], tokens=10, contexts=3, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)
    # One special token before 20: the null of its positions.
    assert first["previous_null"][0] == pytest.approx(np.mean([1 / (t + 1) for t in range(1, 21)]))
    assert first["layer"].unique().to_list() == [1]


def test_random_tokens_are_those_of_the_tokenizer():
    """A padded vocabulary has ids that no text holds; a body without a head predicts nothing and looks all the same."""
    tokenizer = byte_level(adds_start=True)
    module = gpt2().module.transformer
    module.resize_token_embeddings(400)
    lm = load_lm(module, tokenizer=tokenizer, context_tokens=24, name="body")
    assert lm.vocabulary == len(tokenizer) < lm.module.wte.num_embeddings
    seen = []
    lm.module.wte.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert head_scores(lm, [1], tokens=10, contexts=40).height == HEADS
    assert int(torch.cat([one.flatten() for one in seen]).max()) < len(tokenizer)


def test_the_mean_over_contexts_is_that_of_each_by_itself(monkeypatch):
    together = induction_curve(gpt2(), [0], prefixes=[2], contexts=6)
    monkeypatch.setattr("nb_sae.attribution.patterns.CONTEXTS_AT_A_TIME", 1)
    np.testing.assert_allclose(
        induction_curve(gpt2(), [0], prefixes=[2], contexts=6)["induction"], together["induction"], atol=1e-6
    )


def test_an_encoder_is_compared_with_attending_to_everything():
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**shape, intermediate_size=32, max_position_embeddings=32, pad_token_id=0)
    frame = head_scores(load_lm(transformers.BertForMaskedLM(config), context_tokens=16), tokens=8, contexts=4)
    assert frame["induction_null"].to_list() == pytest.approx([1 / 16] * 2)
    assert frame["induction"].to_list() == pytest.approx([1 / 16] * 2, rel=0.2)


def test_the_induction_curve_of_a_head_built_by_hand_is_one_at_every_prefix():
    curve = induction_curve(induction_circuit(), [1], prefixes=(1, 2, 5), contexts=6)
    assert curve.schema == INDUCTION
    assert curve.filter(pl.col("head") == 0)["induction"].to_list() == [1, 1, 1]
    assert curve.filter(pl.col("head") == 1)["induction"].to_list() == [0, 0, 0]
    assert curve.filter(pl.col("head") == 0)["null"].to_list() == pytest.approx([1 / 13, 1 / 14, 1 / 17])


def orthogonal_heads() -> LanguageModel:
    """W_O is a rotation: what one head writes no other head writes."""
    lm = gpt2()
    for block in lm.module.transformer.h:
        torch.nn.init.orthogonal_(block.attn.c_proj.weight)
    return lm


def test_a_latent_planted_in_one_head_belongs_to_it():
    lm = orthogonal_heads()
    W_O = lm.module.transformer.h[1].attn.c_proj.weight.detach().view(HEADS, -1, WIDTH)
    dictionary = random_dictionary(WIDTH, 8, "transformer.h.1.attn")
    dictionary.W_enc[:, 5] = 3 * W_O[3].sum(0)
    dictionary.W_enc[:, 6] = W_O[0, 0] + W_O[1, 0]
    shares = head_weights(lm, dictionary)
    assert shares.schema == HEAD_WEIGHTS
    assert shares.height == 8 * HEADS
    planted = shares.filter(pl.col("latent") == 5)["share"].to_list()
    assert planted == pytest.approx([0, 0, 0, 1], abs=1e-5)
    assert shares.filter(pl.col("latent") == 6)["share"].to_list() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-5)
    assert shares.filter(pl.col("latent") == 2)["share"].sum() == pytest.approx(1)


def test_before_W_O_the_block_of_the_decoder_row_counts():  # noqa: N802
    """z_cat in which latent 2 is carried by head 3 alone, and a little noise."""
    dictionary = random_dictionary(WIDTH, 8, "blocks.1.attn.hook_z")
    carried = torch.cat([0.01 * torch.ones(24), torch.ones(8)])
    dictionary.W_dec[2] = carried / carried.norm()
    shares = head_weights(gpt2(), dictionary, [2, 4])
    assert shares["latent"].unique().sort().to_list() == [2, 4]
    assert shares.filter((pl.col("latent") == 2) & (pl.col("head") == 3))["share"][0] >= 0.95
    blocks = dictionary.W_dec[4].view(HEADS, -1).norm(dim=1)
    assert shares.filter(pl.col("latent") == 4)["share"].to_list() == pytest.approx((blocks / blocks.sum()).tolist())
    assert shares["null"].to_list() == pytest.approx([1 / HEADS] * 8)


def test_random_latents_have_the_shares_of_the_null():
    """Also where one head writes more strongly than the others."""
    lm = gpt2()
    lm.module.transformer.h[0].attn.c_proj.weight.data[:8] *= 4
    shares = head_weights(lm, random_dictionary(WIDTH, 4_000, "transformer.h.0.attn"))
    means = shares.group_by("head").agg(pl.col("share").mean(), pl.col("null").first()).sort("head")
    np.testing.assert_allclose(means["share"], means["null"], atol=0.02)
    assert means["null"][0] > 0.5
    assert means["null"].sum() == pytest.approx(1)


def test_a_latent_without_weights_has_shares_of_zero():
    dictionary = random_dictionary(WIDTH, 8, "transformer.h.0.attn")
    dictionary.W_enc[:, 3] = 0
    shares = head_weights(gpt2(), dictionary)
    assert shares.filter(pl.col("latent") == 3)["share"].to_list() == [0] * HEADS
    assert not shares["share"].is_nan().any()


def test_heads_of_pictures_have_weights():
    clip = ns.load_clip("demo")
    shares = head_weights(clip, random_dictionary(128, 64, "visual.transformer.resblocks.2.attn"))
    assert shares.height == 64 * 4
    text = clip.site("transformer.resblocks.0.attn", "text").width
    assert head_weights(clip, random_dictionary(text, 8, "transformer.resblocks.0.attn")).height % 8 == 0


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("transformer.h.1", "holds the residual lane; heads are told apart at an attention of tiny-gpt2 only"),
        ("transformer.h.1.mlp", "holds the mlp lane"),
        ("transformer.h.0.attn.c_attn", r"is none; .*transformer\.h\.0\.attn, transformer\.h\.1\.attn"),
        ("model.layers.0.self_attn", "heads are told apart"),
        ("blocks.7.attn.hook_z", "layer=7 does not exist"),
        (None, "does not say which site"),
    ],
)
def test_what_is_no_attention_of_the_model_is_refused(site, message):
    with pytest.raises(ConfigError, match=message):
        head_weights(gpt2(), random_dictionary(WIDTH, 8, site))


def test_a_dictionary_of_another_width_is_refused():
    with pytest.raises(ShapeError, match="has width 32; the dictionary takes 16"):
        head_weights(gpt2(), random_dictionary(16, 8, "transformer.h.1.attn"))
    with pytest.raises(ConfigError, match="expected one from load_lm"):
        head_weights(torch.nn.Linear(2, 2), random_dictionary(16, 8, "transformer.h.1.attn"))
    with pytest.raises(ConfigError, match="0 … 7"):
        head_weights(gpt2(), random_dictionary(WIDTH, 8, "transformer.h.1.attn"), latents=9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 30}, "expected 2 to 12"),
        ({"tokens": 1}, "expected 2 to 12"),
        ({"contexts": 0}, "at least one"),
        ({"layers": [5]}, "layer=5 does not exist"),
    ],
)
def test_scores_that_cannot_be_measured_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        head_scores(induction_circuit(), **change)
    with pytest.raises(ConfigError, match=message):
        induction_curve(induction_circuit(), **{"prefixes": [1]} | change)


def test_pictures_have_no_tokens_that_come_again():
    with pytest.raises(ConfigError, match="expected a language model"):
        head_scores(ns.load_clip("demo"))
    with pytest.raises(ConfigError, match="expected numbers from 1 to 11"):
        induction_curve(induction_circuit(), prefixes=[12])


def test_the_heat_map_of_scores_holds_every_head_and_the_null(scores):
    figure = plots.head_scores(scores, "previous")
    np.testing.assert_allclose(figure.data[0].z, scores["previous"].to_numpy().reshape(2, 2))
    assert list(figure.data[0].y) == ["block 0", "block 1"]
    assert f"even head: {scores['previous_null'][0]:.3f}" in figure.layout.title.text
    with pytest.raises(WidgetError, match="Use 'induction'"):
        plots.head_scores(scores, "last")
    with pytest.raises(WidgetError, match=r"expected ns\.head_scores"):
        plots.head_scores(pl.DataFrame())


def test_the_heat_map_of_weights_shows_the_latents_that_have_a_head():
    lm = orthogonal_heads()
    dictionary = random_dictionary(WIDTH, 300, "transformer.h.1.attn")
    dictionary.W_enc[:, 5] = lm.module.transformer.h[1].attn.c_proj.weight.detach().view(HEADS, -1, WIDTH)[3].sum(0)
    figure = plots.head_weights(head_weights(lm, dictionary))
    shown = list(figure.data[0].y)
    assert len(shown) == 40
    assert figure.data[0].z[shown.index("latent 5")].tolist() == pytest.approx([0, 0, 0, 1], abs=1e-5)
    own = [int(np.argmax(row - 0.25)) for row in figure.data[0].z]
    assert own == sorted(own)  # grouped by their head
    assert "40 of 300 latents; a random latent: 0.25" in figure.layout.title.text


def test_the_induction_figure_holds_the_strongest_heads_and_the_null():
    curve = induction_curve(induction_circuit(), prefixes=(1, 3), contexts=4)
    figure = plots.induction_curve(curve)
    assert figure.data[0].name == "1.0"
    assert list(figure.data[0].y) == [1, 1]
    assert figure.data[-1].name == "even head"
    assert list(figure.data[-1].y) == pytest.approx([1 / 13, 1 / 15])
