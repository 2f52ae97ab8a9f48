"""Promises of nb_sae.analysis.reading: a text of the user as the model and the dictionary see it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_clips import custom, hugging_face_text, siglip, vit

import nb_sae as ns
from nb_sae.analysis.reading import reader
from nb_sae.errors import ConfigError, HookError, InputError
from nb_sae.models.parts import layer_sites
from nb_sae.widgets.feature import FeatureDashboard

SITE = "gpt_neox.layers.2"
TEXT = "def mean(values): return the mean of a list of values."


@pytest.fixture(scope="module")
def lm():
    return ns.load_lm("demo", device="cpu")


@pytest.fixture(scope="module")
def dictionary(lm) -> ns.Dictionary:
    """Random directions of the site's width; 8 of 64 are active in each row."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(64, lm.site(SITE).width, generator=generator)
    W = W / W.norm(dim=-1, keepdim=True)
    bias, origin = torch.zeros(64), torch.zeros(W.shape[1])
    return ns.Dictionary.from_weights(W.T.contiguous(), bias, W, origin, budgets=(8,), site=SITE)


@pytest.fixture(scope="module")
def read(lm, dictionary):
    return reader(lm, dictionary)


def dense(lm, dictionary, text: str) -> np.ndarray:
    """Activations the long way: the ids as the tokenizer gives them, every latent."""
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    return dictionary.encode(lm.capture_rows(ids, [SITE])[SITE][0]).numpy()


def test_a_reading_has_the_activations_of_the_whole_encoding(lm, dictionary, read):
    expected = dense(lm, dictionary, TEXT)
    found = read(TEXT, [3, 40, 7])
    assert "".join(found.tokens).strip() == TEXT
    np.testing.assert_allclose(found.activations, expected[:, [3, 40, 7]], rtol=1e-5, atol=1e-6)
    best = expected.max(0)
    order = np.argsort(-best)[:10]
    assert found.strongest["latent"].head(10).to_list() == order.tolist()
    np.testing.assert_allclose(found.strongest["act"].head(10), best[order], rtol=1e-5)
    assert found.strongest["token"].head(10).to_list() == expected.argmax(0)[order].tolist()


def test_another_latent_of_the_same_text_costs_no_second_pass(lm, dictionary, monkeypatch):
    read = reader(lm, dictionary, next_token=False)
    calls = []
    capture = lm.capture_rows
    monkeypatch.setattr(lm, "capture_rows", lambda *given: calls.append(1) or capture(*given))
    read(TEXT, [1])
    read(TEXT, [2])
    assert len(calls) == 1
    read("another text", [2])
    assert len(calls) == 2


def test_inside_an_edit_the_edited_model_reads(lm, dictionary):
    read, latents = reader(lm, dictionary, next_token=False), range(64)
    plain = read(TEXT, latents).activations
    with ns.intervene(lm, ns.Edit("gpt_neox.layers.0", lambda x: x * 0.5)):
        edited = read(TEXT, latents).activations
        np.testing.assert_array_equal(edited, reader(lm, dictionary, next_token=False)(TEXT, latents).activations)
    assert np.abs(edited - plain).max() > 0.01
    np.testing.assert_array_equal(read(TEXT, latents).activations, plain)


@pytest.mark.parametrize("build", [vit, custom, siglip, hugging_face_text])
def test_texts_of_a_clip_are_read_as_they_are_collected(build, monkeypatch, tmp_path):
    clip = build()
    monkeypatch.setattr(clip, "token_strings", lambda ids: [str(one) for one in ids])
    site = next(name for name in reversed(layer_sites(clip, "residual", tower="text")))
    width = clip.site(site, "text").width
    W = torch.randn(width, 48, generator=torch.Generator().manual_seed(0))
    dictionary = ns.Dictionary.from_weights(W, torch.zeros(48), W.T.contiguous(), torch.zeros(width), site=site)
    texts = ns.texts(["abc"])
    settings = {"special_tokens": True, "dtype": "float32", "progress": False}
    store = ns.ActivationStore.collect(clip, texts, site=site, path=tmp_path / "acts", **settings)
    found = reader(clip, dictionary)("abc", range(48))
    assert len(found.tokens) == 5  # three letters between two marks
    np.testing.assert_allclose(found.activations, dictionary.encode(store[: len(store)]), rtol=1e-4, atol=1e-4)


def test_the_next_token_effect_is_what_removing_the_latent_changes(lm, dictionary, read):
    acts = dense(lm, dictionary, TEXT)
    latent, silent = int(acts.max(0).argmax()), int((acts.max(0) == 0).argmax())
    assert acts[:, silent].max() == 0
    found = read(TEXT, [latent]).next_token
    ids = torch.tensor([lm.tokenizer(TEXT)["input_ids"]])

    def logp() -> torch.Tensor:
        with torch.no_grad():
            logits = lm.module(input_ids=ids).logits[0]
        return logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]

    before = logp()
    with ns.intervene(lm, dictionary.ablate([latent])):
        after = logp()
    assert float((before - after).abs().max()) > 1e-4
    np.testing.assert_allclose(found[:-1, 0], (before - after).numpy(), atol=1e-5)
    assert np.isnan(found[-1, 0])
    assert not read(TEXT, [silent]).next_token[:-1].any()


def test_an_encoder_is_read_without_an_effect_on_the_next_token():
    from test_lm import bert, byte_level

    model = ns.load_lm(bert(), tokenizer=byte_level(), context_tokens=32)
    site = "bert.encoder.layer.1"
    identity = ns.Dictionary.from_weights(torch.eye(32), torch.zeros(32), torch.eye(32), torch.zeros(32), site=site)
    found = reader(model, identity)("hello world", [0])
    assert found.activations.shape == (len(found.tokens), 1)
    assert found.next_token is None


def test_texts_that_cannot_be_read_are_refused_with_the_reason(lm, read):
    for text in ("", "  \n"):
        with pytest.raises(InputError, match="empty"):
            read(text, [0])
    with pytest.raises(InputError, match=rf"tokens, a context of {lm.name} holds 128\. Shorten it"):
        read("word " * 400, [0])
    with pytest.raises(InputError, match="characters; at most"):
        read("x" * 10_000_000, [0])
    with pytest.raises(ConfigError, match="no latent 64; this dictionary has 0 … 63"):
        read("a", [64])


def test_a_reader_is_refused_where_there_is_nothing_to_read(lm, dictionary):
    plain = ns.Dictionary.from_weights(dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_dec)
    with pytest.raises(ConfigError, match="does not say where it was trained"):
        reader(lm, plain)
    with pytest.raises(HookError, match="Closest"):
        reader(lm, dictionary, site="gpt_neox.layer.2")
    narrow = ns.Dictionary.from_weights(torch.eye(8), torch.zeros(8), torch.eye(8), torch.zeros(8), site=SITE)
    with pytest.raises(ConfigError, match="wide, the dictionary takes 8"):
        reader(lm, narrow)


def test_the_dashboard_answers_with_what_the_reader_found(lm, dictionary, read, tmp_path):
    texts = ns.texts([TEXT, "another sentence of words"])
    store = ns.ActivationStore.collect(lm, texts, site=SITE, path=tmp_path / "acts", progress=False)
    analysis = ns.analyze(dictionary, store, inputs=texts, model=lm, progress=False)
    dashboard = FeatureDashboard(analysis, read=read)
    answer, (block,) = dashboard._answer({"id": 1, "kind": "read", "text": TEXT, "latent": 7})
    from test_widgets_wire import read as column

    expected = dense(lm, dictionary, TEXT)[:, 7]
    np.testing.assert_allclose(column(answer["header"], block, "tokens", "act"), expected, rtol=1e-5, atol=1e-6)
    assert dashboard.about["reads"] is True
