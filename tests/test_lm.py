"""Promises of nb_sae.models.lm, against Hugging Face's hidden states and transformer_lens' cache."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor, nn

from nb_sae import types
from nb_sae.errors import ConfigError, HookError, InputError, InputNotFoundError, ShapeError
from nb_sae.hooks import capture, intervene
from nb_sae.models.lm import LanguageModel, load_lm
from nb_sae.models.tokens import PADDING

VOCABULARY = 400
CORPUS = ["hello world, this is a small test", "naïve 日本語 — déjà vu", "the quick brown fox"] * 4
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
ROOM = {"intermediate_size": 64, "max_position_embeddings": 48, "bos_token_id": 0, "eos_token_id": 0}


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=48, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **ROOM, num_key_value_heads=2))


def neox() -> nn.Module:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SHAPE, **ROOM))


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(**SHAPE, intermediate_size=64, max_position_embeddings=48, pad_token_id=0)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gpt2": (gpt2, "transformer.h"),
    "llama": (llama, "model.layers"),
    "neox": (neox, "gpt_neox.layers"),
    "bert": (bert, "bert.encoder.layer"),
}


def byte_level(**settings) -> transformers.PreTrainedTokenizerFast:
    raw = Tokenizer(tokenizer_models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<s>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    if settings.pop("adds_start", False):
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", model_max_length=10, **{"bos_token": "<s>"} | settings
    )


def word_pieces() -> transformers.PreTrainedTokenizerFast:
    raw = Tokenizer(tokenizer_models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=marks, show_progress=False))
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="module")
def loaded() -> dict[str, LanguageModel]:
    torch.manual_seed(0)
    return {
        kind: load_lm(make(), tokenizer=word_pieces() if kind == "bert" else byte_level(), context_tokens=12, name=kind)
        for kind, (make, _) in MODELS.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("models") / "tiny-gpt"
    gpt2().save_pretrained(path)
    byte_level().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bridge(folder):
    lens = pytest.importorskip("transformer_lens.model_bridge")
    return lens.TransformerBridge.boot_transformers(str(folder), device="cpu")


def ids(contexts: int = 4, tokens: int = 9) -> Tensor:
    return torch.randint(0, 200, (contexts, tokens), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", MODELS)
def test_blocks_equal_the_hidden_states(loaded, kind):
    lm, (_, root) = loaded[kind], MODELS[kind]
    sites = [f"{root}.{i}" for i in range(3)]
    rows = lm.capture_rows(ids(), sites, "text")
    with torch.no_grad():
        hidden = lm.module(ids(), output_hidden_states=True).hidden_states
    # The last hidden state is after the final norm in decoders; the blocks before it are compared as they are.
    compared = 3 if kind == "bert" else 2
    for i in range(compared):
        torch.testing.assert_close(rows[sites[i]], hidden[i + 1])
    assert lm.site(sites[0]) == types.Site(sites[0], 32, positions=12)
    assert isinstance(lm, types.HookedModel)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_the_last_block_is_before_the_final_norm(loaded, kind):
    lm, (_, root) = loaded[kind], MODELS[kind]
    norm = {"gpt2": "transformer.ln_f", "llama": "model.norm", "neox": "gpt_neox.final_layer_norm"}[kind]
    rows = lm.capture_rows(ids(), [f"{root}.2", norm], "text")
    with torch.no_grad():
        hidden = lm.module(ids(), output_hidden_states=True).hidden_states
        normed = lm.module.get_submodule(norm)(rows[f"{root}.2"])
    torch.testing.assert_close(rows[norm], hidden[3])
    torch.testing.assert_close(normed, hidden[3])


@pytest.mark.parametrize("kind", MODELS)
def test_every_listed_site_gives_the_rows_it_promises(loaded, kind):
    lm = loaded[kind]
    names = lm.hook_names()
    rows = lm.capture_rows(ids(4, 12), names, "text")
    for name in names:
        site = lm.site(name)
        assert rows[name].shape == ((4, site.width) if site.pooled else (4, site.positions, site.width))
    assert f"{MODELS[kind][1]}.1" in names
    assert "" not in names


@pytest.mark.parametrize("kind", MODELS)
def test_padding_does_not_change_the_rows_of_real_tokens(loaded, kind):
    lm, site = loaded[kind], f"{MODELS[kind][1]}.2"
    short = ids(2, 5)
    padded = torch.cat([short, torch.full((2, 7), PADDING)], dim=1)
    alone = lm.capture_rows(short, [site], "text")[site]
    torch.testing.assert_close(lm.capture_rows(padded, [site], "text")[site][:, :5], alone)


def test_the_pass_stops_after_the_last_site(loaded):
    lm, called = loaded["gpt2"], []
    handle = lm.module.transformer.h[1].register_forward_hook(lambda *_: called.append(1))
    lm.capture_rows(ids(), ["transformer.h.0"], "text")
    assert called == []
    lm.capture_rows(ids(), ["transformer.h.1"], "text")
    handle.remove()
    assert called == [1]


def test_hidden_states_still_work_after_an_early_stop(loaded):
    lm = loaded["llama"]
    lm.capture_rows(ids(), ["model.layers.0"], "text")
    with torch.no_grad():
        assert len(lm.module(ids(), output_hidden_states=True).hidden_states) == 4


@pytest.mark.parametrize("kind", MODELS)
def test_identity_edits_change_no_bit_and_others_do(loaded, kind):
    lm, site = loaded[kind], f"{MODELS[kind][1]}.1"
    with torch.no_grad():
        expected = lm.module(ids()).logits
        with intervene(lm, {site: lambda x: x}):
            assert torch.equal(lm.module(ids()).logits, expected)
        with intervene(lm, {site: torch.zeros_like}):
            zeroed = lm.module(ids()).logits
        assert torch.equal(lm.module(ids()).logits, expected)
    assert not torch.allclose(zeroed, expected)


def test_zeroing_the_stream_forgets_the_tokens(loaded):
    lm = loaded["llama"]
    with intervene(lm, {"model.layers.2": torch.zeros_like}), torch.no_grad():
        assert (lm.module(ids()).logits == 0).all()


def test_unknown_sites_offer_the_closest_names(loaded):
    with pytest.raises(HookError, match=r"gpt2 has no module 'transformer\.h\.9'\. Closest: transformer\.h\."):
        loaded["gpt2"].capture_rows(ids(), ["transformer.h.9"], "text")
    with pytest.raises(HookError, match="Closest"), capture(loaded["gpt2"], "transformer.layers.1"):
        pass


def test_sites_that_give_no_rows_are_refused_with_what_they_give(loaded):
    with pytest.raises(HookError, match=r"transformer\.wpe.*gives \(1, 7, 32\) for a batch of 2"):
        loaded["gpt2"].site("transformer.wpe")


def test_texts_only(loaded):
    with pytest.raises(ConfigError, match="takes texts"):
        loaded["gpt2"].site("transformer.h.0", "image")
    with pytest.raises(ConfigError, match="takes texts"):
        loaded["gpt2"].preprocessor("image")
    with pytest.raises(ShapeError, match="token ids"):
        loaded["gpt2"].capture_rows(torch.zeros(2, 5), ["transformer.h.0"], "text")


def test_ids_of_another_vocabulary_are_refused(loaded):
    with pytest.raises(InputError, match=r"Token id 400 is outside the model's vocabulary of 400"):
        loaded["gpt2"].capture_rows(torch.tensor([[1, VOCABULARY]]), ["transformer.h.0"], "text")


def test_windows_hold_every_token_once_in_order(loaded):
    lm = loaded["gpt2"]
    text = " ".join(CORPUS)
    prepared = lm.preprocessor("text")(text)
    assert prepared.tensor.shape[1] == 12
    assert prepared.tensor[prepared.keep].tolist() == lm.tokenizer(text)["input_ids"]
    assert (prepared.tensor[~prepared.keep] == PADDING).all()
    assert prepared.special.equal(~prepared.keep)  # this tokenizer adds nothing by itself
    assert lm.preprocessor("text", context_tokens=5)(text).tensor.shape[1] == 5


def test_start_tokens_are_added_to_every_window_only_if_the_tokenizer_adds_them(loaded):
    lm = load_lm(loaded["gpt2"].module, tokenizer=byte_level(adds_start=True), context_tokens=6)
    prepared = lm.preprocessor("text")(CORPUS[0])
    assert len(prepared.tensor) > 1
    assert (prepared.tensor[:, 0] == 1).all()
    assert prepared.special[:, 0].all()
    assert not prepared.special[0, 1:].any()
    unnamed = load_lm(loaded["gpt2"].module, tokenizer=byte_level(adds_start=True, bos_token=None), context_tokens=6)
    assert unnamed.preprocessor("text")(CORPUS[0]).special[:, 0].all()
    with pytest.raises(ConfigError, match="leaves no room"):
        lm.preprocessor("text", context_tokens=1)


def test_encoder_windows_have_their_marks(loaded):
    prepared = loaded["bert"].preprocessor("text")("hello world")
    real = prepared.tensor[0][prepared.keep[0]]
    assert (real[0], real[-1]) == (2, 3)
    assert prepared.special[0][prepared.keep[0]].tolist() == [True, *[False] * (len(real) - 2), True]


def test_special_tokens_spelled_in_a_text_are_marked(loaded):
    prepared = loaded["gpt2"].preprocessor("text")("hello<|end|>world")
    assert prepared.special[prepared.keep].sum() == 1


def test_texts_without_tokens_and_other_things_are_refused(loaded):
    prepare = loaded["gpt2"].preprocessor("text")
    with pytest.raises(InputError, match="no tokens"):
        prepare("")
    with pytest.raises(InputError, match="expected a text"):
        prepare(b"bytes")
    assert prepare("lone \ud800 \u202e </script>").keep.any()


def test_preprocessor_is_picklable_and_holds_no_weights(loaded):
    prepare = loaded["gpt2"].preprocessor("text")
    again = pickle.loads(pickle.dumps(prepare))
    assert torch.equal(again(CORPUS[1]).tensor, prepare(CORPUS[1]).tensor)


def test_token_strings_join_to_the_text(loaded):
    lm = loaded["gpt2"]
    tokens = lm.tokenizer("hello world, the fox")["input_ids"]
    assert "".join(lm.token_strings(tokens)) == "hello world, the fox"


def test_token_strings_show_bytes_that_are_no_text_and_never_raise(loaded):
    lm = loaded["gpt2"]
    pieces = lm.token_strings(lm.tokenizer("語🦊", add_special_tokens=False)["input_ids"])
    assert any(piece.startswith("<0x") for piece in pieces)
    assert all(pieces)
    assert lm.token_strings([PADDING, 0, 10**7]) == ["", "<|end|>", "<id 10000000>"]
    assert all(isinstance(text, str) for text in lm.token_strings(range(VOCABULARY)))


def test_word_pieces_are_shown_with_spaces_between_words(loaded):
    lm = loaded["bert"]
    tokens = lm.tokenizer("hello world", add_special_tokens=False)["input_ids"]
    assert "".join(lm.token_strings(tokens)) == " hello world"
    assert lm.token_strings([2]) == ["[CLS]"]


def test_a_context_longer_than_the_model_is_refused(loaded):
    lm = loaded["gpt2"]
    with pytest.raises(ConfigError, match=r"context_tokens=49.*expected 1 to 48"):
        lm.preprocessor("text", context_tokens=49)
    with pytest.raises(ConfigError, match="context_tokens=60"):
        lm.capture_rows(ids(1, 60), ["transformer.h.0"], "text")
    assert load_lm(lm.module, tokenizer=lm.tokenizer).context_tokens == 48


def test_bridge_sites_equal_the_cache(bridge):
    lm = load_lm(bridge, context_tokens=12)
    names = ["blocks.1.hook_resid_pre", "blocks.1.hook_in", "blocks.1.hook_out", "blocks.2.hook_mlp_out"]
    rows = lm.capture_rows(ids(), names, "text")
    _, cache = bridge.run_with_cache(ids())
    for name in names:
        torch.testing.assert_close(rows[name], cache[name])
    assert {"blocks.1.hook_resid_pre", "blocks.1.hook_in", "hook_embed"} <= set(lm.hook_names())
    assert not any("_original_component" in name for name in lm.hook_names())
    assert lm.tokenizer is bridge.tokenizer


def test_bridge_sites_with_heads_are_refused(bridge):
    lm = load_lm(bridge, context_tokens=12)
    with pytest.raises(HookError, match=r"gives \(2, 4, 7, 7\)"):
        lm.site("blocks.0.attn.hook_pattern")


def test_bridge_edits_act_and_leave_nothing_behind(bridge):
    lm = load_lm(bridge, context_tokens=12)
    with torch.no_grad():
        expected = bridge(ids())
        with intervene(lm, {"blocks.1.hook_resid_post": lambda x: x}):
            assert torch.equal(bridge(ids()), expected)
        with intervene(lm, {"blocks.1.hook_resid_post": torch.zeros_like}):
            assert not torch.allclose(bridge(ids()), expected)
        assert torch.equal(bridge(ids()), expected)


def test_bridge_padding_does_not_change_the_rows_of_real_tokens(bridge):
    lm, site = load_lm(bridge, context_tokens=12), "blocks.2.hook_out"
    short = ids(2, 5)
    padded = torch.cat([short, torch.full((2, 7), PADDING)], dim=1)
    alone = lm.capture_rows(short, [site], "text")[site]
    torch.testing.assert_close(lm.capture_rows(padded, [site], "text")[site][:, :5], alone)


def test_a_local_folder_is_loaded_with_its_name(folder):
    lm = load_lm(str(folder), device="cpu", context_tokens=8)
    assert lm.name == "tiny-gpt"
    assert next(lm.module.parameters()).dtype == torch.float32
    prepared = lm.preprocessor("text")("hello world")
    assert lm.capture_rows(prepared.tensor, ["transformer.h.0"], "text")["transformer.h.0"].isfinite().all()
    half = load_lm(folder, dtype="bf16", device="cpu")
    assert next(half.module.parameters()).dtype == torch.bfloat16
    assert half.revision != lm.revision == load_lm(folder, device="cpu").revision


def test_models_that_cannot_be_loaded_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputNotFoundError, match=r"Without a network.*path/to/folder"):
        load_lm("nobody/nothing-at-all-here")
    with pytest.raises(InputNotFoundError, match=r"config\.json"):
        load_lm(tmp_path)
    transformers.T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="get_encoder"):
        load_lm(tmp_path)
    with pytest.raises(ConfigError, match="Closest: bfloat16"):
        load_lm(tmp_path, dtype="bfloat")


def test_own_module_without_a_tokenizer_can_be_hooked_and_says_what_is_missing():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Embedding(50, 8), nn.Linear(8, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.mix(self.embed(tokens))

    lm = load_lm(Own())
    assert lm.hook_names() == ["embed", "mix"]
    assert lm.capture_rows(ids(2, 4).clamp_max(49), ["mix"], "text")["mix"].shape == (2, 4, 8)
    with pytest.raises(ConfigError, match="tokenizer="):
        lm.preprocessor("text")
    with pytest.raises(InputError, match="tokenizer="):
        lm.token_strings([1])


def test_the_demo_language_model_is_there_and_speaks():
    lm = load_lm()
    assert lm.name == "demo-lm"
    text = "Return the number of items in the list."
    prepared = lm.preprocessor("text")(text)
    assert "".join(lm.token_strings(prepared.tensor[prepared.keep].tolist())) == text
    with torch.no_grad():
        loss = lm.module(prepared.tensor[prepared.keep][None], labels=prepared.tensor[prepared.keep][None]).loss
    assert loss < 6  # a uniform guess over its 4,096 tokens is 8.3
