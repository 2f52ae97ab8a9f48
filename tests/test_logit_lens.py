"""Promises of the weight logit lens: nb_sae.analysis.lens and nb_sae.attribution.neurons."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest
import torch
import transformers
from metric_fakes import gaussian
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor, nn
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.analysis import lens as lens_module
from nb_sae.analysis.lens import TokenLens, logit_lens
from nb_sae.analysis.schema import PROMOTED
from nb_sae.attribution.neurons import neuron_agreement, neuron_lens
from nb_sae.attribution.schema import NEURON_AGREEMENT, NEURONS
from nb_sae.errors import ConfigError, InputError, ShapeError

WIDTH, VOCABULARY = 64, 300
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
ROOM = {"intermediate_size": 320, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0}
TEXTS = ["def mean(values):\n    return sum(values) / len(values)", "Returns the sum of all values."] * 6
SITE = "model.layers.1"


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **ROOM, tie_word_embeddings=False))


def gemma() -> nn.Module:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**SHAPE, **ROOM, head_dim=16, num_key_value_heads=2))


def neox() -> nn.Module:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SHAPE, **ROOM))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


MAKERS: dict[str, Callable[[], nn.Module]] = {"llama": llama, "gemma": gemma, "neox": neox, "gpt2": gpt2}
NORMS = {"llama": "model.norm", "gemma": "model.norm", "neox": "gpt_neox.final_layer_norm", "gpt2": "transformer.ln_f"}


@pytest.fixture(scope="module")
def models():
    """Tiny models whose final norm has weights (and a bias) that matter."""
    torch.manual_seed(0)
    made = {kind: ns.load_lm(make(), name=kind) for kind, make in MAKERS.items()}
    for kind, model in made.items():
        norm = model.module.get_submodule(NORMS[kind])
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        if getattr(norm, "bias", None) is not None:
            nn.init.normal_(norm.bias)
    return made


def tokens_of(width: int = WIDTH) -> Tensor:
    """`(vocabulary, width)`: incoherent unit directions of mean 0, one per token."""
    rows = gaussian(VOCABULARY, width, seed=11, dtype=torch.float)  # not the draws of the null
    return F.normalize(rows - rows.mean(-1, keepdim=True), dim=-1)


@pytest.fixture(scope="module")
def planted():
    """An untied Llama whose token t is raised by direction t, through a final norm whose weight is undone."""
    torch.manual_seed(1)
    model = llama()
    with torch.no_grad():
        nn.init.uniform_(model.model.norm.weight, 0.5, 2.0)
        model.lm_head.weight.copy_(tokens_of() / model.model.norm.weight)
    return ns.load_lm(model, name="planted")


def dictionary_of(rows: Tensor, read: Tensor | None = None, **about) -> ns.Dictionary:
    read = rows if read is None else read
    return ns.Dictionary.from_weights(
        read.T.contiguous(), torch.zeros(len(rows)), rows, torch.zeros(rows.shape[1]), **{"site": SITE} | about
    )


def best(frame: pl.DataFrame, side: str, sign: str = "promoted") -> pl.DataFrame:
    return frame.filter((pl.col("side") == side) & (pl.col("sign") == sign) & (pl.col("rank") == 0))


def test_planted_rows_find_their_token_on_both_sides(planted):
    directions = tokens_of()
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))
    frame = logit_lens(planted, dictionary_of(directions, directions[order]))
    assert frame.schema == PROMOTED
    assert best(frame, "write")["token_id"].to_list() == list(range(VOCABULARY))
    assert best(frame, "read")["token_id"].to_list() == order.tolist()
    against = logit_lens(planted, dictionary_of(-directions))
    assert best(against, "write", "suppressed")["token_id"].to_list() == list(range(VOCABULARY))
    assert (best(against, "write", "suppressed")["logit"] < 0).all()


def test_a_planted_token_lies_beyond_chance_and_random_rows_do_not(planted):
    frame = logit_lens(planted, dictionary_of(tokens_of()), top=1)
    assert best(frame, "write")["p"].max() < 0.01
    random = logit_lens(planted, dictionary_of(gaussian(1500, WIDTH, seed=7, dtype=torch.float)), top=1)
    for side in ("write", "read"):
        for sign in ("promoted", "suppressed"):
            assert (best(random, side, sign)["p"] <= 0.05).mean() == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("kind", MAKERS)
def test_logits_are_the_derivative_of_the_models_own_logits(models, kind):
    """At a row that the direction does not lengthen, times the row's spread; centred over the vocabulary."""
    model = models[kind]
    norm, head = model.module.get_submodule(NORMS[kind]), model.module.get_output_embeddings()
    row = gaussian(WIDTH, dtype=torch.float)
    row = row - row.mean()
    direction = gaussian(WIDTH, seed=5, dtype=torch.float) + 0.3
    direction = direction - row * (direction @ row) / (row @ row)
    _, slope = torch.func.jvp(lambda x: head(norm(x)), (row,), (direction,))
    slope = slope.detach() * row.square().mean().sqrt()
    expected = slope - slope.mean()
    torch.testing.assert_close(TokenLens(model).logits(direction[None])[0], expected, atol=2e-4, rtol=2e-4)


def test_a_bridge_of_transformer_lens_gives_the_same_table(models, tmp_path):
    lens = pytest.importorskip("transformer_lens.model_bridge")
    models["gpt2"].module.save_pretrained(tmp_path / "tiny-gpt")
    _byte_tokenizer().save_pretrained(tmp_path / "tiny-gpt")
    bridge = ns.load_lm(lens.TransformerBridge.boot_transformers(str(tmp_path / "tiny-gpt"), device="cpu"))
    rows = gaussian(30, WIDTH, seed=8, dtype=torch.float)
    expected = logit_lens(
        ns.load_lm(models["gpt2"].module, tokenizer=bridge.tokenizer), dictionary_of(rows, site="transformer.h.1")
    )
    found = logit_lens(bridge, dictionary_of(rows, site="blocks.1.hook_out"))
    assert found.select("latent", "side", "sign", "rank", "token_id", "token").equals(
        expected.select("latent", "side", "sign", "rank", "token_id", "token")
    )
    torch.testing.assert_close(found["logit"].to_torch(), expected["logit"].to_torch(), atol=1e-4, rtol=1e-4)


def _byte_tokenizer():
    raw = Tokenizer(tokenizer_models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", bos_token="<|end|>")


def test_rows_without_a_direction_have_no_lines(models):
    rows = torch.stack([torch.zeros(WIDTH), torch.ones(WIDTH), gaussian(WIDTH, dtype=torch.float)])
    by_mean = logit_lens(models["neox"], dictionary_of(rows, site="gpt_neox.layers.1"))
    assert by_mean["latent"].unique().to_list() == [2]  # a LayerNorm takes the mean of a row off
    assert logit_lens(models["llama"], dictionary_of(rows))["latent"].unique().sort().to_list() == [1, 2]
    assert logit_lens(models["llama"], dictionary_of(rows[:1])).height == 0


def test_blocks_and_a_choice_of_latents_change_nothing(models, monkeypatch):
    dictionary = dictionary_of(gaussian(50, WIDTH, dtype=torch.float))
    whole = logit_lens(models["llama"], dictionary, top=4)
    monkeypatch.setattr(lens_module, "BLOCK_BYTES", 4 * VOCABULARY * 7)
    in_blocks = logit_lens(models["llama"], dictionary, top=4)
    exact = [name for name in PROMOTED if name not in ("logit", "z", "p")]  # those are rounded differently
    assert in_blocks.select(exact).equals(whole.select(exact))
    for name in ("logit", "z", "p"):
        torch.testing.assert_close(in_blocks[name].to_torch(), whole[name].to_torch(), atol=1e-3, rtol=1e-5)
    some = logit_lens(models["llama"], dictionary, top=4, latents=[30, 2])
    assert some.select(exact).equals(whole.filter(pl.col("latent").is_in([2, 30])).select(exact))
    assert logit_lens(models["llama"], dictionary, top=200).height == 50 * 4 * 200


def test_the_strongest_are_those_of_a_full_sort():
    logits = gaussian(6, 5 * 64 * 4 + 13, dtype=torch.float)
    logits[0, -1], logits[1, 64], logits[2, 63] = 9.0, -9.0, 9.0
    for largest in (True, False):
        expected = logits.topk(4, largest=largest).indices
        assert torch.equal(lens_module._extremes(logits, 4, largest=largest), expected)


def test_a_half_precision_model_finds_the_planted_tokens(planted):
    model = llama()
    model.load_state_dict(planted.module.state_dict())
    half = ns.load_lm(model.to(torch.bfloat16), name="half")
    frame = logit_lens(half, dictionary_of(tokens_of()))
    assert best(frame, "write")["token_id"].to_list() == list(range(VOCABULARY))


def test_tokens_are_spelled_and_a_padded_vocabulary_is_left_out(demo):
    frame = logit_lens(demo, dictionary_of(gaussian(20, 192, dtype=torch.float), site="gpt_neox.layers.3"))
    ids = frame["token_id"].to_list()
    assert frame["token"].to_list() == demo.token_strings(ids)
    module = llama()
    with torch.no_grad():
        module.lm_head.weight[10:] *= 100
    short = ns.load_lm(module, tokenizer=_TenTokens())
    assert logit_lens(short, dictionary_of(tokens_of()), top=3)["token_id"].max() == 9


class _TenTokens:
    all_special_ids = ()

    def __len__(self) -> int:
        return 10

    def decode(self, ids) -> str:
        return str(ids[0])


def test_without_a_tokenizer_tokens_are_numbers(models):
    frame = logit_lens(models["llama"], dictionary_of(tokens_of()), top=1)
    assert frame["token"].null_count() == frame.height > 0


@pytest.fixture(scope="module")
def demo():
    return ns.load_lm("demo")


@pytest.fixture(scope="module")
def collected(demo, tmp_path_factory):
    texts = ns.texts(TEXTS)
    site = "gpt_neox.layers.2"
    store = ns.ActivationStore.collect(
        demo, texts, site=site, path=tmp_path_factory.mktemp("store") / "acts", progress=False
    )
    directions = F.normalize(gaussian(40, 192, dtype=torch.float), dim=-1)
    about = {"site": site, "model": demo.name, "revision": demo.revision}
    weights = {"W_enc": directions.T, "b_enc": torch.zeros(40), "W_dec": directions, "b_dec": torch.zeros(192)}
    return texts, store, ns.Dictionary(weights, budgets=(4,), **about)


def test_an_analysis_of_a_language_model_keeps_the_promoted_tokens(demo, collected, tmp_path):
    texts, store, dictionary = collected
    analysis = ns.analyze(dictionary, store, texts, model=demo, promoted=3, progress=False)
    assert analysis.promoted is not None
    assert analysis.promoted.equals(logit_lens(demo, dictionary, top=3))
    again = ns.Analysis.load(analysis.save(tmp_path / "a"))
    assert again.promoted is not None
    assert again.promoted.equals(analysis.promoted)
    parts = [ns.analyze_part(dictionary, store, part=(i, 2), progress=False) for i in (0, 1)]
    merged = ns.merge_analyses(parts, dictionary, store, texts, model=demo, promoted=3)
    assert merged.promoted is not None
    assert merged.promoted.equals(analysis.promoted)


def test_an_analysis_refuses_a_number_of_tokens_before_it_reads_rows(demo, collected, monkeypatch):
    texts, store, dictionary = collected
    monkeypatch.setattr("nb_sae.analysis.scan.analyze_part", None)
    for promoted in (-1, 300):
        with pytest.raises(ConfigError, match=f"top={promoted} is outside 1 … 255 tokens"):
            ns.analyze(dictionary, store, texts, model=demo, promoted=promoted, progress=False)


def test_an_analysis_without_promoted_tokens_loads_as_before(demo, collected, tmp_path):
    texts, store, dictionary = collected
    without = ns.analyze(dictionary, store, texts, model=demo, promoted=0, progress=False)
    assert without.promoted is None
    folder = without.save(tmp_path / "old")
    assert not (folder / "promoted.parquet").exists()
    assert ns.Analysis.load(folder).promoted is None
    assert ns.analyze(dictionary, store, progress=False).promoted is None


@pytest.mark.parametrize(
    ("kind", "site", "about"),
    [
        ("llama", "model.layers.1.self_attn.q_proj", {}),  # as wide as the residual stream, and not of it
        ("llama", "blocks.1.attn.hook_z", {}),
        ("llama", SITE, {"revision": "another"}),
        ("encoder", "encoder.layer.1", {}),
        ("masked", "bert.encoder.layer.1", {}),
    ],
)
def test_where_latents_have_no_logits_an_analysis_has_none(models, encoders, kind, site, about):
    model = {**models, **encoders}[kind]
    dictionary = dictionary_of(gaussian(5, WIDTH, dtype=torch.float), site=site, **about)
    assert lens_module.promoted_where_known(model, dictionary, site, top=2) is None


@pytest.fixture(scope="module")
def encoders():
    config = transformers.BertConfig(**SHAPE, intermediate_size=64, max_position_embeddings=16, pad_token_id=0)
    return {
        "encoder": ns.load_lm(transformers.BertModel(config), name="encoder"),
        "masked": ns.load_lm(transformers.BertForMaskedLM(config), name="masked"),
    }


def test_models_without_a_linear_unembedding_are_refused(encoders):
    dictionary = dictionary_of(tokens_of())
    with pytest.raises(ConfigError, match=r"has no unembedding.*language-model head"):
        logit_lens(encoders["encoder"], dictionary)
    with pytest.raises(ConfigError, match="neither a LayerNorm nor an RMS norm"):
        logit_lens(encoders["masked"], dictionary)
    with pytest.raises(ConfigError, match="no unembedding: it ends in an embedding"):
        logit_lens(ns.load_clip("demo"), dictionary)


def test_dictionaries_that_have_no_place_in_the_model_are_refused(models):
    model = models["llama"]
    with pytest.raises(ShapeError, match=r"width 32 .*64 wide"):
        logit_lens(model, dictionary_of(tokens_of(32)))
    with pytest.raises(ConfigError, match="heads before W_O"):
        logit_lens(model, dictionary_of(tokens_of(), site="blocks.1.attn.hook_z"))
    with pytest.raises(ConfigError, match="revision 'other'"):
        logit_lens(model, dictionary_of(tokens_of(), model="llama", revision="other"))
    with pytest.raises(ConfigError, match="model 'gpt2'"):
        logit_lens(model, dictionary_of(tokens_of(), model="gpt2"))


@pytest.mark.parametrize("given", [{"top": 0}, {"top": 256}, {"latents": []}, {"latents": [300]}, {"latents": [-1]}])
def test_settings_without_a_meaning_are_refused(models, given):
    with pytest.raises(ConfigError, match=f"{next(iter(given))}.*"):
        logit_lens(models["llama"], dictionary_of(tokens_of()), **given)


def test_planted_neurons_find_their_token_read_and_write(planted):
    module = llama()
    module.load_state_dict(planted.module.state_dict())
    mlp = module.model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[:VOCABULARY] = tokens_of()  # B2: w_i = U[:, t]
        mlp.down_proj.weight[:, :VOCABULARY] = tokens_of().flip(0).T
    frame = neuron_lens(ns.load_lm(module), layers=1, top=2)
    assert frame.schema == NEURONS
    told = frame.filter(pl.col("neuron") < VOCABULARY)
    assert best(told, "read")["token_id"].to_list() == list(range(VOCABULARY))
    assert best(told, "write")["token_id"].to_list() == list(range(VOCABULARY))[::-1]
    assert best(told, "read")["p"].max() < 0.01
    rest = best(frame.filter(pl.col("neuron") >= VOCABULARY), "read")
    assert (rest["p"] <= 0.05).sum() <= 4  # of 20 neurons that were left random


def test_neurons_of_every_family_are_read(models):
    for model in models.values():
        frame = neuron_lens(model, top=1)
        assert frame["layer"].unique().sort().to_list() == [0, 1]
        assert frame["side"].unique().len() == 2


def test_a_model_agrees_with_itself_and_not_with_another(models):
    torch.manual_seed(9)
    here, there = neuron_lens(models["llama"]), neuron_lens(ns.load_lm(llama()))
    same = neuron_agreement(here, here)
    assert same.schema == NEURON_AGREEMENT
    assert same["same"].to_list() == [1.0] * 4
    other = neuron_agreement(here, there)
    assert other["same"].max() <= 5 / VOCABULARY
    assert other["null"].max() <= 5 / VOCABULARY
    with pytest.raises(InputError, match="share no neuron"):
        neuron_agreement(here.filter(pl.col("layer") == 0), here.filter(pl.col("layer") == 1))
    with pytest.raises(InputError, match="neuron_lens"):
        neuron_agreement(here, pl.DataFrame({"latent": [1]}))


def test_blocks_that_are_not_there_are_refused(models):
    with pytest.raises(ConfigError, match="layer=7"):
        neuron_lens(models["llama"], layers=7)
    with pytest.raises(ConfigError, match="layers is empty"):
        neuron_lens(models["llama"], layers=[])
