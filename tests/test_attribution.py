"""Attribution of an output to latents: by gradient, along a path, by ablation; against models whose truth is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from linear_readout import D_SAE, linear_lm, prompts, random_dictionary
from PIL import Image
from polars.testing import assert_frame_equal
from test_lm import bridge as bridge
from test_lm import folder as folder
from tiny_clips import custom, hugging_face_text, siglip, vit
from tiny_models import ENCODERS, PRE_NORM, lively
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.attribution.output import attribute
from nb_sae.attribution.output_metrics import cosine_to, log_prob, logit, logit_difference
from nb_sae.attribution.schema import ATTRIBUTED, ATTRIBUTED_TOKENS, FAITHFULNESS
from nb_sae.errors import ConfigError
from nb_sae.models.lm import load_lm
from nb_sae.models.parts import layer_sites

RULES = {
    "top_k": {"budgets": (8,)},
    "nested, in rounds": {"budgets": (2, 4, 8), "residual": True},
    "relu": {"budgets": None},
    "rows normalised": {"budgets": (8,), "row_norm": "layer_norm"},
}
TEXT = "Return the number of items in the list and raise"
BLOCK = "gpt_neox.layers.2"


@pytest.fixture(scope="module")
def lm():
    return ns.load_lm("demo")


@pytest.fixture(scope="module")
def clip():
    return ns.load_clip("demo")


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(3)]


def by_latent(attribution, column="attribution") -> np.ndarray:
    found = np.zeros(D_SAE)
    found[attribution.latents["latent"].to_numpy()] = attribution.latents[column].to_numpy()
    return found


@pytest.mark.parametrize("rule", RULES)
def test_on_a_linear_readout_the_gradient_is_the_exact_ablation(rule):
    lm, dictionary = linear_lm(), random_dictionary(**RULES[rule])
    metric = logit_difference(3, 7)
    found = attribute(lm, dictionary, prompts(), metric)
    exact = attribute(lm, dictionary, prompts(), metric, method="ablation")
    path = attribute(lm, dictionary, prompts(), metric, method="integrated", steps=2)
    np.testing.assert_allclose(by_latent(found), by_latent(exact), atol=1e-5)
    np.testing.assert_allclose(by_latent(path), by_latent(exact), atol=1e-5)
    assert found.about["error"] == pytest.approx(exact.about["error"], abs=1e-5)
    # By hand: only the last position is read, by the difference of two rows of the head.
    module = lm.module
    x = module.table(prompts()[:, -1]).detach()
    read = (module.head.weight[3] - module.head.weight[7]).detach()
    by_hand = (dictionary.encode(x) * (dictionary.row_scale(x) * (dictionary.W_dec @ read))).sum(0)
    np.testing.assert_allclose(by_latent(found), by_hand, atol=1e-5)
    if dictionary.row_norm is None:
        bias = float((module.head.bias[3] - module.head.bias[7]).detach()) * 3
        whole = found.latents["attribution"].sum() + found.about["error"] + found.about["bias"]
        assert whole + bias == pytest.approx(found.about["value"], abs=1e-4)


def test_activation_and_rows_are_those_of_the_dictionary():
    lm, dictionary = linear_lm(), random_dictionary()
    found = attribute(lm, dictionary, prompts(), logit(3))
    z = dictionary.encode(lm.module.table(prompts()).detach().flatten(0, 1))
    np.testing.assert_allclose(by_latent(found, "activation"), z.sum(0), rtol=1e-5)
    np.testing.assert_array_equal(by_latent(found, "rows"), (z > 0).sum(0))
    assert found.latents.schema == ATTRIBUTED
    assert found.tokens.schema == ATTRIBUTED_TOKENS
    assert (np.diff(found.latents["attribution"].abs().to_numpy()) <= 0).all()
    assert found.latents["rank"].to_list() == list(range(found.latents.height))


def test_the_lines_of_the_tokens_add_up_to_the_latents(lm):
    dictionary = random_dictionary(192, 256, BLOCK)
    found = attribute(lm, dictionary, [TEXT, "Return a copy"], log_prob(20), per_token=None)
    sums = found.tokens.group_by("latent").agg(pl.col("attribution").sum(), rows=pl.len()).sort("latent")
    error, rest = sums.filter(pl.col("latent").is_null()), sums.filter(pl.col("latent").is_not_null())
    assert error["attribution"][0] == pytest.approx(found.about["error"], rel=1e-6)
    assert error["rows"][0] == found.about["rows"]
    same = found.latents.sort("latent")
    np.testing.assert_allclose(rest["attribution"], same["attribution"], rtol=1e-6, atol=1e-9)
    assert rest["rows"].to_list() == same["rows"].to_list()
    few = attribute(lm, dictionary, [TEXT, "Return a copy"], log_prob(20), per_token=2).tokens
    assert few.height == 3 * found.about["rows"]
    strongest = found.tokens.drop_nulls("latent").group_by("input_id", "token").agg(pl.col("attribution").abs().max())
    shown = few.drop_nulls("latent").group_by("input_id", "token").agg(pl.col("attribution").abs().max())
    assert shown.sort("input_id", "token").equals(strongest.sort("input_id", "token"))


def test_integrated_gradients_sum_to_what_all_latents_do_and_the_gradient_does_not(lm):
    dictionary = random_dictionary(192, 256, BLOCK, budgets=(8, 16), residual=True)
    path = attribute(lm, dictionary, TEXT, log_prob(20), method="integrated")
    gain = path.about["value"] - path.about["none"]
    assert abs(gain) > 0.5
    assert path.latents["attribution"].sum() == pytest.approx(gain, rel=1e-4)
    assert abs(path.about["gap"]) < 1e-4 * abs(gain)
    first = attribute(lm, dictionary, TEXT, log_prob(20))
    assert abs(first.latents["attribution"].sum() - gain) > 0.1 * abs(gain)
    rough = attribute(lm, dictionary, TEXT, log_prob(20), method="integrated", steps=1)
    assert abs(rough.about["gap"]) > 10 * abs(path.about["gap"])


@pytest.mark.parametrize("kind", PRE_NORM | ENCODERS)
def test_the_path_is_complete_in_every_family(kind):
    """Gradients of any of them are those of the model: a wrong one would not sum up."""
    lm = load_lm(lively((PRE_NORM | ENCODERS)[kind]()), context_tokens=12, name=kind)
    dictionary = random_dictionary(32, 64, layer_sites(lm, "residual")[1])
    metric = lambda logits: logits[-1].log_softmax(-1)[5]  # noqa: E731
    path = attribute(lm, dictionary, prompts(2, 7, 50), metric, method="integrated", steps=12)
    gain = path.about["value"] - path.about["none"]
    assert abs(path.about["gap"]) < 2e-3 * max(abs(gain), 0.1)
    assert path.latents["attribution"].abs().sum() > 0.01


@pytest.mark.parametrize("build", [vit, custom, siglip, hugging_face_text])
def test_the_path_is_complete_in_every_build_of_clip(build):
    clip = build()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    target = torch.linspace(-1, 1, clip.embed_dim)
    for tower, given in (("image", pixels), ("text", ["ab", "cde"])):
        site = layer_sites(clip, "residual", tower=tower)[1]
        dictionary = random_dictionary(clip.site(site, tower).width, 96, site)
        path = attribute(clip, dictionary, given, cosine_to(target), method="integrated", steps=12)
        assert abs(path.about["gap"]) < 1e-3
        assert path.latents["attribution"].abs().sum() > 0.01


def test_a_bridge_of_transformer_lens_gives_what_the_model_itself_gives(bridge, folder):
    wrapped, itself = load_lm(bridge, context_tokens=12), load_lm(folder, context_tokens=12)
    ids = prompts(2, 7, 200)
    for method in ("gradient", "integrated"):
        own = attribute(itself, random_dictionary(32, 64, "transformer.h.1"), ids, log_prob(20), method=method)
        other = attribute(wrapped, random_dictionary(32, 64, "blocks.1.hook_out"), ids, log_prob(20), method=method)
        np.testing.assert_allclose(
            own.latents.sort("latent")["attribution"], other.latents.sort("latent")["attribution"], atol=1e-6
        )


def test_the_path_ends_where_the_model_is_without_latents(lm):
    dictionary = random_dictionary(192, 256, BLOCK)
    path = attribute(lm, dictionary, TEXT, logit(20), method="integrated", steps=1)
    ids = lm.preprocessor()(TEXT).tensor[:, :10]
    with torch.no_grad(), ns.intervene(lm, dictionary.ablate(range(256))):
        none = lm.module(ids).logits[0, -1, 20]
    assert path.about["none"] == pytest.approx(float(none), abs=1e-4)


def test_without_its_error_the_model_goes_on_with_the_reconstruction(lm):
    dictionary = random_dictionary(192, 256, BLOCK)
    ids = lm.preprocessor()(TEXT).tensor[:, :10]
    found = attribute(lm, dictionary, ids, log_prob(20), keep_error=False)
    splice = ns.Edit(BLOCK, lambda x: dictionary.reconstruct(x.flatten(0, 1)).view_as(x))
    with torch.no_grad(), ns.intervene(lm, splice):
        expected = lm.module(ids).logits[0, -1].log_softmax(-1)[20]
    with torch.no_grad():
        whole = lm.module(ids).logits[0, -1].log_softmax(-1)[20]
    assert found.about["value"] == pytest.approx(float(expected), abs=1e-4)
    assert found.about["error"] == 0
    kept = attribute(lm, dictionary, ids, log_prob(20))
    assert kept.about["value"] == float(whole)  # bit for bit
    assert abs(float(whole - expected)) > 0.1


def test_inputs_are_prepared_batch_by_batch_and_few_are_kept(clip, pictures, monkeypatch):
    asked = []

    class Counted(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    dictionary = random_dictionary(128, 64, "image_embed")
    found = attribute(clip, dictionary, Counted(pictures), cosine_to("a hat"), batch=1)
    found.faithfulness([1], orders=2)
    assert asked == [0, 1, 2]
    monkeypatch.setattr("nb_sae.attribution.batches.KEPT_BYTES", 2 * 3 * 64 * 64 * 4)
    asked.clear()
    again = attribute(clip, dictionary, Counted(pictures), cosine_to("a hat"), batch=1)
    assert again.faithfulness([1], orders=2).equals(found.faithfulness([1], orders=2))
    assert asked.count(0) == 1
    assert asked.count(2) > 2


def test_batches_and_padding_change_nothing(lm):
    dictionary = random_dictionary(192, 256, BLOCK)
    texts = [TEXT, "Return a copy", "The"]
    alone = [attribute(lm, dictionary, text, log_prob(20)) for text in texts]
    together = attribute(lm, dictionary, texts, log_prob(20), batch=3)
    assert together.about["tokens"][1] == ["Return", " a", " copy"]
    assert list(together.about["tokens"]) == [0, 1, 2]
    assert together.about["value"] == pytest.approx(sum(one.about["value"] for one in alone), abs=1e-4)
    lines = pl.concat([one.tokens.with_columns(input_id=pl.lit(i, pl.UInt32)) for i, one in enumerate(alone)])
    keys = ["input_id", "token", "latent"]
    both = lines.join(together.tokens, on=keys, nulls_equal=True, suffix="_together")
    assert both.height == lines.height == together.tokens.height
    np.testing.assert_allclose(both["attribution"], both["attribution_together"], atol=1e-4)


@pytest.mark.parametrize("site", ["visual.transformer.resblocks.1", "image_embed"])
def test_a_clip_is_explained_by_its_cosine_to_a_text(clip, pictures, site):
    dictionary = random_dictionary(128, 64, site)
    metric = cosine_to("a man with eyeglasses")
    path = attribute(clip, dictionary, pictures, metric, method="integrated", batch=2)
    pictured = clip.encode_image(pictures, normalize=True) @ clip.encode_text("a man with eyeglasses", True)[0]
    assert path.about["value"] == pytest.approx(float(pictured.sum()), abs=1e-5)
    assert abs(path.about["gap"]) < 1e-3
    assert path.about["rows"] == (3 if site == "image_embed" else 3 * 65)
    some = path.latents["latent"].to_list()[:3]
    exact = attribute(clip, dictionary, pictures, metric, method="ablation", latents=some)
    with torch.no_grad(), ns.intervene(clip, dictionary.ablate(some[0])):
        without = clip.encode_image(pictures, normalize=True) @ clip.encode_text("a man with eyeglasses", True)[0]
    effect = dict(exact.latents.select("latent", "attribution").iter_rows())
    assert effect[some[0]] == pytest.approx(float((pictured - without).sum()), abs=1e-5)
    assert exact.tokens.height == 0


def test_the_gradient_is_the_slope_of_the_metric(clip, pictures):
    dictionary = random_dictionary(128, 64, "image_embed")
    found = attribute(clip, dictionary, pictures[0], cosine_to("a hat"))
    latent, slope, z = found.latents.row(0)[:3]
    values = []
    for factor in (0.99, 1.01):
        edited = dictionary.edit_rows(clip.encode_image(pictures[0]), scale={latent: factor})
        values.append(float(F.normalize(edited, dim=-1) @ clip.encode_text("a hat", True)[0]))
    assert (values[1] - values[0]) / 0.02 == pytest.approx(slope, rel=0.02)
    assert z > 0


def test_texts_of_a_clip_are_explained_without_their_padding_and_marks(clip, pictures):
    dictionary = random_dictionary(clip.site("transformer.resblocks.0", "text").width, 64, "transformer.resblocks.0")
    texts = ["a hat", "a man with eyeglasses"]
    prepared = [clip.preprocessor("text")(text) for text in texts]
    found = attribute(clip, dictionary, texts, cosine_to(pictures[0]), special_tokens=True)
    kept = [int(one.keep.sum()) for one in prepared]
    assert found.about["rows"] == sum(kept)
    assert found.tokens.filter(pl.col("input_id") == 0)["token"].max() == kept[0] - 1
    inner = attribute(clip, dictionary, texts, cosine_to(pictures[0]))
    assert inner.about["rows"] == sum(kept) - 4  # without start and end marks, as in a store
    assert inner.tokens["token"].min() == 1
    ids = torch.cat([one.tensor for one in prepared])
    assert attribute(clip, dictionary, ids, cosine_to(pictures[0])).tokens.equals(inner.tokens)
    assert inner.about["value"] == pytest.approx(found.about["value"], abs=1e-6)


@pytest.mark.parametrize("special_tokens", [False, True])
def test_ids_of_a_clips_tokenizer_are_the_texts_they_spell(clip, special_tokens):
    """open_clip pads with 0, which is a word: it must not count as one."""
    texts, dictionary = ["a hat", "a man with eyeglasses"], random_dictionary(128, 64, "transformer.resblocks.1")
    settings = {"special_tokens": special_tokens}
    by_ids = attribute(clip, dictionary, clip.tokenizer(texts), cosine_to("a smile"), **settings)
    by_text = attribute(clip, dictionary, texts, cosine_to("a smile"), **settings)
    assert by_ids.latents.equals(by_text.latents)
    assert by_ids.tokens.equals(by_text.tokens)
    assert by_ids.about["rows"] == by_text.about["rows"]


def test_rows_are_those_of_a_store(lm, tmp_path):
    texts = ns.texts([TEXT, "Return a copy"])
    store = ns.ActivationStore.collect(lm, texts, site=BLOCK, path=tmp_path / "rows", progress=False)
    found = attribute(lm, random_dictionary(192, 256, BLOCK), texts, log_prob(20))
    rows = found.tokens.filter(pl.col("latent").is_null()).select("input_id", "token")
    assert rows.rows() == store.rows.select("input_id", "token").rows()


def test_tokens_choose_cls_or_patches(clip, pictures):
    dictionary = random_dictionary(128, 64, "visual.transformer.resblocks.2")
    rows = {
        which: attribute(clip, dictionary, pictures[:1], cosine_to("a hat"), tokens=which).about["rows"]
        for which in ("all", "cls", "patches")
    }
    assert rows == {"all": 65, "cls": 1, "patches": 64}


def test_only_planted_latents_matter_and_faithfulness_finds_them():
    """The head reads along two of 16 orthonormal latents; every other latent is nothing to the metric."""
    lm = linear_lm()
    W = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(4))).Q
    weights = {"W_enc": W.T.contiguous(), "b_enc": torch.zeros(16), "W_dec": W, "b_dec": torch.zeros(16)}
    dictionary = ns.Dictionary(weights, budgets=None, site="stream")
    lm.module.head.weight.data[3] = 2 * W[5] + W[9]
    found = attribute(lm, dictionary, prompts(8), logit(3))
    assert found.latents["latent"][:2].to_list() == [5, 9]
    assert found.latents["attribution"][2:].abs().max() < 1e-5
    curve = found.faithfulness([0, 2, 8, found.latents.height], orders=10)
    assert curve.schema == FAITHFULNESS
    own, random = (curve.filter(pl.col("order") == order)["recovered"].to_list() for order in ("attribution", "random"))
    assert own == pytest.approx([0, 1, 1, 1], abs=1e-5)
    assert random[1] < 0.5
    assert random[2] < 0.9
    assert random[0] == 0
    assert random[3] == pytest.approx(1, abs=1e-6)
    assert (curve["low"].drop_nulls() <= curve["high"].drop_nulls()).all()
    again = found.faithfulness([0, 2, 8, found.latents.height], orders=10)
    assert again.equals(curve)


def test_faithfulness_by_order_beats_random_orders_on_the_shipped_model(lm):
    dictionary = random_dictionary(192, 256, BLOCK)
    found = attribute(lm, dictionary, TEXT, log_prob(20), method="integrated")
    for fill in ("zero", "mean"):
        curve = found.faithfulness([8, 16], orders=6, fill=fill)
        own, random = (curve.filter(pl.col("order") == order) for order in ("attribution", "random"))
        assert own["recovered"][1] > random["recovered"][1] + 0.1


def test_mean_fill_puts_latents_at_their_mean():
    lm, dictionary = linear_lm(), random_dictionary()
    found = attribute(lm, dictionary, prompts(), logit(3))
    x = lm.module.table(prompts()).detach().flatten(0, 1)
    z = dictionary.encode(x)
    at_mean = x + (z.mean(0) - z) @ dictionary.W_dec
    last = torch.arange(3) * 6 + 5
    nothing = float(lm.module.head(at_mean[last])[:, 3].sum().detach())
    kept = found.latents["latent"][0]
    z_kept = z.mean(0).expand_as(z).clone()
    z_kept[:, kept] = z[:, kept]
    one = float(lm.module.head((x + (z_kept - z) @ dictionary.W_dec)[last])[:, 3].sum().detach())
    curve = found.faithfulness([1], fill="mean", orders=1)
    expected = (one - nothing) / (found.about["value"] - nothing)
    assert curve["recovered"][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("site", ["gpt_neox.layers.1", BLOCK])
def test_a_steered_model_is_explained_as_it_is(lm, site):
    dictionary = random_dictionary(192, 256, BLOCK)
    ids = lm.preprocessor()(TEXT).tensor[:, :10]
    with ns.intervene(lm, random_dictionary(192, 256, site).steer(7, add=20.0)):
        found = attribute(lm, dictionary, ids, log_prob(20))
        with torch.no_grad():
            steered = float(lm.module(ids).logits[0, -1].log_softmax(-1)[20])
    assert found.about["value"] == pytest.approx(steered, abs=1e-5)
    assert abs(steered - attribute(lm, dictionary, ids, log_prob(20)).about["value"]) > 0.05
    if site == BLOCK:
        assert found.latents.filter(pl.col("latent") == 7)["rows"][0] == 10


def test_the_model_is_left_as_it_was(lm):
    before = {name: weight.requires_grad for name, weight in lm.module.named_parameters()}
    dictionary = random_dictionary(192, 256, BLOCK)
    with pytest.raises(ZeroDivisionError):
        attribute(lm, dictionary, TEXT, lambda logits: 1 / 0)
    attribute(lm, dictionary, TEXT, log_prob(20))
    assert {name: weight.requires_grad for name, weight in lm.module.named_parameters()} == before
    assert any(before.values())
    assert all(weight.grad is None for weight in lm.module.parameters())
    assert not any(module._forward_hooks for module in lm.module.modules())
    with torch.no_grad():  # gradients are switched on where they are needed
        assert attribute(lm, dictionary, TEXT, log_prob(20)).latents["attribution"].to_numpy().any()


def test_half_precision_finds_what_full_precision_finds(lm):
    dictionary = random_dictionary(192, 256, BLOCK)
    half = load_lm(str(ns.models.demo.demo_lm_folder()), dtype="bf16")
    full, rough = (attribute(model, dictionary, TEXT, log_prob(20)) for model in (lm, half))
    both = full.latents.join(rough.latents, on="latent", suffix="_half")
    assert np.corrcoef(both["attribution"], both["attribution_half"])[0, 1] > 0.98
    assert rough.about["value"] == pytest.approx(full.about["value"], rel=0.02)


def test_a_latent_that_is_never_active_gets_nothing_and_is_named():
    dictionary = random_dictionary()
    dictionary.b_enc[4] = -1e6
    found = attribute(linear_lm(), dictionary, prompts(), logit(3), latents=[4, 1, 4])
    assert sorted(found.latents["latent"]) == [1, 4]
    assert found.latents.filter(pl.col("latent") == 4).row(0)[1:4] == (0.0, 0.0, 0)
    assert "never active in these inputs: latent 4" in found.about["note"]
    assert set(found.tokens["latent"].drop_nulls()) == {1}


@pytest.mark.parametrize("method", ["gradient", "integrated", "ablation"])
def test_a_constant_metric_owes_nothing_to_any_latent_and_says_so(method):
    found = attribute(linear_lm(), random_dictionary(), prompts(), lambda logits: logits.sum() * 0 + 2.5, method=method)
    assert not found.latents["attribution"].to_numpy().any()
    assert not found.latents["attribution"].is_nan().any()
    assert found.about["value"] == 7.5
    assert "does not change with the rows" in found.about["note"]
    assert "does not change with the rows" in repr(found)
    with pytest.raises(ConfigError, match="nothing to recover"):
        found.faithfulness()


def test_a_dictionary_of_dead_latents_says_so():
    dictionary = random_dictionary()
    dictionary.b_enc -= 1e6
    found = attribute(linear_lm(), dictionary, prompts(), logit(3))
    assert found.latents.height == 0
    assert found.about["note"] == "no latent is active in these inputs"
    with pytest.raises(ConfigError, match="No latent is active"):
        found.faithfulness()


def test_what_does_not_lie_on_the_way_to_the_output_gets_zero(clip, pictures):
    """Patches of the last block: the embedding is made of CLS alone."""
    dictionary = random_dictionary(128, 64, "visual.transformer.resblocks.3")
    found = attribute(clip, dictionary, pictures[:1], cosine_to("a hat"), tokens="patches")
    assert not found.latents["attribution"].to_numpy().any()
    assert "does not change" in found.about["note"]


def test_a_caller_inside_inference_mode_gets_the_same_numbers():
    model, dictionary = linear_lm(), random_dictionary()
    before = attribute(model, dictionary, prompts(), log_prob(3)).latents
    with torch.inference_mode():
        inside = attribute(model, dictionary, prompts(), log_prob(3)).latents
    assert_frame_equal(inside, before)
