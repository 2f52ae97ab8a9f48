"""What a model keeps of its output on reconstructions, and the quality of its dictionaries layer by layer."""

from __future__ import annotations

import planted
import polars as pl
import pytest
import torch
import transformers
from metric_fakes import dictionary_of, gaussian
from torch.nn import functional as F

import nb_sae as ns
from nb_sae import plots
from nb_sae.errors import ConfigError, HookError, InputError, ShapeError, StoreError, WidgetError
from nb_sae.flow.effects.quality import layer_quality
from nb_sae.flow.effects.recovered import ABLATED, _Splice, recovered
from nb_sae.flow.schema import LAYER_QUALITY, RECOVERED
from nb_sae.models.contexts import Batch
from nb_sae.sae import metrics

WIDTH, VOCABULARY, CONTEXT = 16, 40, 12
SITE = "transformer.h.1"


def identity(width: int = WIDTH, site: str | None = SITE, **about) -> ns.Dictionary:
    """Positive and negative parts: x̂ is x, bit for bit."""
    return dictionary_of(torch.cat([torch.eye(width), -torch.eye(width)]), budgets=None, site=site, **about)


def constant(value: torch.Tensor, site: str = SITE, **about) -> ns.Dictionary:
    """Every reconstruction is this row."""
    width = len(value)
    weights = {"W_enc": torch.zeros(width, 2), "b_enc": torch.zeros(2), "W_dec": torch.zeros(2, width), "b_dec": value}
    return ns.Dictionary(weights, site=site, **about)


def half(site: str = SITE, width: int = WIDTH) -> ns.Dictionary:
    """Keeps the strongest of the positive and negative parts."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return dictionary_of(both, budgets=(2, 4, width // 2), site=site)


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=3, n_head=2, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0
    )
    module = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4)  # predictions that are far from uniform
    return ns.load_lm(module, name="tiny", context_tokens=CONTEXT)


@pytest.fixture(scope="module")
def ids(lm) -> torch.Tensor:
    """Contexts that the model wrote, so that ablating it costs something; the last one is padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (6, 1), generator=generator)
    for _ in range(CONTEXT - 1):
        chances = lm.logits(ids)[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    ids[-1, 7:] = -1
    return ids


@pytest.fixture(scope="module")
def clip():
    return ns.load_clip("demo", device="cpu")


@pytest.fixture(scope="module")
def pixels(clip) -> torch.Tensor:
    return torch.cat(list(clip.pixel_batches(ns.demo_faces(10, seed=0), 10)))


# --- language models ---


def test_the_identity_dictionary_recovers_everything_and_zeros_nothing_exactly(lm, ids):
    sites = ["transformer.h.0", SITE, "transformer.h.2.mlp"]
    for make, expected in ((lambda site: identity(site=site), 1.0), (lambda site: constant(torch.zeros(16), site), 0)):
        frame = recovered(lm, {site: make(site) for site in sites}, ids, progress=False, batch=4)
        assert frame.schema == RECOVERED
        assert frame["recovered"].to_list() == [expected] * 6
        assert frame["measure"].to_list() == ["cross_entropy", "kl"] * 3
        assert frame["count"].unique().to_list() == [5 * 11 + 6]


def test_the_mean_ablation_is_the_dictionarys_own_mean(lm, ids):
    mean = gaussian(WIDTH, seed=3).float()
    about = {"mean": mean, "mean_square_distance": 1.0}
    frame = recovered(lm, constant(mean, **about), ids, ablate="mean", progress=False)
    assert frame["recovered"].to_list() == [0, 0]
    assert recovered(lm, identity(**about), ids, ablate="mean", progress=False)["recovered"].to_list() == [1, 1]
    with pytest.raises(ConfigError, match="does not know the mean"):
        recovered(lm, identity(), ids, ablate="mean", progress=False)


def test_losses_are_those_of_the_models_own_run(lm, ids):
    dictionary = half()
    frame = recovered(lm, dictionary, ids, k=[2, 8], progress=False, batch=4)
    assert frame["k"].to_list() == [2, 2, 8, 8]
    clean = lm.logits(ids)
    expected = {"clean": lm.next_token_loss(ids)}
    kl = {}
    for name, edit in (
        ("spliced", dictionary.splice(2)), ("ablated", ns.Edit(SITE, torch.zeros_like))
    ):  # fmt: skip
        # Padding is left as it is: it must not matter to what comes before it.
        with ns.intervene(lm, edit):
            expected[name] = lm.next_token_loss(ids)
            kl[name] = metrics.prediction_kl(clean[:5, :-1], lm.logits(ids)[:5, :-1])
    line = frame.row(0, named=True)
    assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert line["recovered"] == pytest.approx(
        (expected["ablated"] - expected["spliced"]) / (expected["ablated"] - expected["clean"]), rel=1e-4
    )
    five = recovered(lm, dictionary, ids[:5], k=2, progress=False)
    assert five.filter(pl.col("measure") == "kl").row(0, named=True)["spliced"] == pytest.approx(kl["spliced"])
    by_k = frame.filter(pl.col("measure") == "kl")["recovered"].to_list()
    assert 0 < by_k[0] < by_k[1] < 1


def test_rows_that_do_not_count_stay_as_they_are():
    counted = torch.tensor([[False, True, True], [False, True, False]])  # BOS first, padding last
    x = gaussian(2, 3, WIDTH).float()
    batch = Batch(torch.tensor([[0, 7, 7], [0, 7, -1]]), torch.tensor([[True, False, False]] * 2))
    for one in (ABLATED, None):
        edited = _Splice(SITE, one, constant(torch.zeros(WIDTH)), "zero").edit(batch).apply(x)
        assert torch.equal(edited[~counted], x[~counted])
        assert not edited[counted].any()


def test_special_tokens_are_replaced_only_when_that_is_asked_for(clip):
    """CLIP reads a text off its end mark alone, so that after the last block nothing else matters."""
    site, texts = "transformer.resblocks.1", ["a face with glasses", "a hat"]
    zeros = constant(torch.zeros(clip.site(site, "text").width), site)
    kept = recovered(clip, zeros, texts, progress=False)
    assert kept["reason"].to_list() == ["ablating the site does not change the loss, so there is nothing to recover"]
    assert recovered(clip, zeros, texts, special_tokens=True, progress=False)["recovered"].to_list() == [0]
    # Token ids are the same texts.
    ids = torch.cat([clip.preprocessor("text")(text).tensor for text in texts])
    assert recovered(clip, zeros, ids, progress=False).equals(kept)


def test_a_site_that_does_nothing_has_no_share_to_recover(lm, ids):
    """The rows are zero already: the ablation changes nothing."""
    with ns.intervene(lm, [ns.Edit("transformer.h.0.mlp", torch.zeros_like)]):
        frame = recovered(lm, identity(site="transformer.h.0.mlp"), ids, progress=False)
    assert frame["recovered"].to_list() == [None, None]
    assert "nothing to recover" in frame["reason"][0]


def test_an_encoder_and_a_model_without_a_head_are_refused():
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**shape, intermediate_size=32, max_position_embeddings=24, pad_token_id=0)
    ids = torch.randint(1, 40, (2, 8))
    encoder = ns.load_lm(transformers.BertForMaskedLM(config), name="encoder")
    with pytest.raises(ConfigError, match="encoder is an encoder"):
        recovered(encoder, identity(site="bert.encoder.layer.1"), ids, progress=False)
    headless = ns.load_lm(transformers.GPT2Model(transformers.GPT2Config(vocab_size=40, n_embd=16, n_head=2)))
    with pytest.raises(ConfigError, match="no language-model head"):
        recovered(headless, identity(site="h.1"), ids, progress=False)


def test_what_does_not_fit_is_refused_by_name(lm, clip, ids):
    with pytest.raises(ConfigError, match="No dictionaries"):
        recovered(lm, {}, ids)
    with pytest.raises(ConfigError, match="Give site="):
        recovered(lm, identity(site=None), ids)
    with pytest.raises(HookError, match=r"Closest: transformer\.h"):
        recovered(lm, identity(site="transformer.h.9"), ids, progress=False)
    with pytest.raises(ShapeError, match="has width 16; its dictionary takes 8"):
        recovered(lm, identity(8), ids, progress=False)
    with pytest.raises(ConfigError, match="is a language model"):
        recovered(lm, identity(), ids, labels=[1], prompts=["a", "b"], progress=False)
    with pytest.raises(ConfigError, match="Got a Linear as the model"):
        recovered(torch.nn.Linear(2, 2), identity(), ids, progress=False)
    with pytest.raises(InputError, match="no next token to predict"):
        recovered(lm, identity(), ids[:, :1], progress=False)
    mean = {"mean": torch.zeros(WIDTH), "mean_square_distance": 1.0}
    for given, message in (
        ({"ablate": "zeros"}, "ablate='zeros': use 'zero' or 'mean'"),
        ({"k": 2.5}, "k=2.5: expected a whole number"),
        ({"k": []}, "asks for nothing"),
        ({"dictionaries": None}, "Got a NoneType; expected the dictionaries"),
        ({"dictionaries": {SITE: None}}, "holds a NoneType; expected a Dictionary"),
        ({"dictionaries": {"transformer.h.0": identity()}}, "holds the dictionary of"),
        ({"dictionaries": identity(model="other")}, "trained on model 'other'"),
    ):
        asked = {"dictionaries": identity(**mean), "progress": False, **given}
        with pytest.raises(ConfigError, match=message):
            recovered(lm, asked.pop("dictionaries"), ids, **asked)


def test_a_k_that_is_asked_for_twice_is_counted_once(lm, ids):
    once, twice = (recovered(lm, half(), ids, k=k, progress=False) for k in ([2], [2, 2]))
    assert twice.equals(once)


# --- CLIP ---


def test_cosine_and_zero_shot_of_the_identity_are_kept_and_zeros_give_chance(clip, pixels):
    prompts = ["a face with glasses", "a face with a hat", "a face", "a smiling face"]
    labels = clip.zero_shot(clip.encode_image(pixels), prompts).argmax(-1).tolist()
    sites = {"image_embed": clip.embed_dim, "visual.transformer.resblocks.2": 128}
    whole = {site: identity(width, site) for site, width in sites.items()}
    frame = recovered(clip, whole, pixels, labels=labels, prompts=prompts, batch=4, progress=False)
    assert frame["measure"].to_list() == ["cosine", "zero_shot"] * 2
    assert frame["recovered"].to_list() == [1.0] * 4
    assert frame["clean"].to_list() == pytest.approx([1.0] * 4)
    nothing = {site: constant(torch.zeros(width), site) for site, width in sites.items()}
    none = recovered(clip, nothing, pixels, labels=labels, prompts=prompts, progress=False)
    assert none["recovered"].to_list() == [0.0] * 4
    # An embedding of zeros says nothing of the classes: all of them tie.
    assert none.row(1, named=True)["ablated"] == 1 / len(prompts)
    assert none.row(0, named=True)["ablated"] == 0
    assert none["count"].to_list() == [len(pixels)] * 4


def test_the_cosine_recovered_is_that_of_the_reconstructed_embedding(clip, pixels):
    dictionary = half("image_embed", clip.embed_dim)
    embeddings = clip.encode_image(pixels)
    cosine = float(F.cosine_similarity(embeddings, dictionary.reconstruct(embeddings, 4)).mean())
    line = recovered(clip, dictionary, pixels, k=4, progress=False).row(0, named=True)
    assert line["spliced"] == pytest.approx(cosine, abs=1e-6)
    assert line["recovered"] == pytest.approx(cosine, abs=1e-6)
    assert 0.1 < cosine < 0.95


def test_labels_and_prompts_belong_together(clip, pixels):
    dictionary = identity(clip.embed_dim, "image_embed")
    with pytest.raises(ConfigError, match="needs both"):
        recovered(clip, dictionary, pixels, labels=[0] * 10, progress=False)
    for labels in ([0] * 9, [0] * 9 + [2], [0] * 9 + [-1], [0.5] * 10):
        with pytest.raises(InputError, match="one number from 0 to 1 for each"):
            recovered(clip, dictionary, pixels, labels=labels, prompts=["a", "b"], progress=False)
    with pytest.raises(HookError, match="belongs to the text tower"):
        recovered(clip, identity(128, "transformer.resblocks.0"), pixels, progress=False)


# --- by layer ---


def planted_store(site, seed):
    rows = planted.sparse_rows(torch.linalg.qr(gaussian(WIDTH, WIDTH)).Q.float(), 300, active=4, seed=seed)[0]
    return ns.ActivationStore.from_tensor(rows, site=site, model="tiny")


def planted_dictionary(site, **about):
    about = {"budgets": (1, 2, 4), **about}
    return dictionary_of(torch.linalg.qr(gaussian(WIDTH, WIDTH)).Q, site=site, **about)


def test_layer_quality_has_the_numbers_of_the_metrics_in_the_order_of_the_forward_pass():
    sites = ["transformer.h.1", "transformer.h.0.mlp", "elsewhere", "transformer.h.0"]
    stores = {site: planted_store(site, number) for number, site in enumerate(sites)}
    dictionaries = {site: planted_dictionary(site) for site in sites}
    frame = layer_quality(dictionaries, stores, progress=False)
    assert frame.schema == LAYER_QUALITY
    assert frame["site"].unique(maintain_order=True).to_list() == [sites[1], sites[3], sites[0], "elsewhere"]
    assert frame["layer"].unique(maintain_order=True).to_list() == [0, 1, None]
    assert frame["lane"].unique(maintain_order=True).to_list() == ["mlp", "residual", None]
    assert frame["loss_recovered"].null_count() == 12
    for site in sites:
        x, own = stores[site][:], frame.filter(pl.col("site") == site)
        assert own["k"].to_list() == [1, 2, 4]
        expected = [metrics.fvu(x, dictionaries[site].reconstruct(x, k)) for k in (1, 2, 4)]
        assert own["fvu"].to_list() == pytest.approx(expected, abs=1e-6)
        assert own["fvu"][2] < 1e-6  # the planted atoms explain everything
        assert own["l0"].to_list() == [1, 2, 4]
        assert own["rows"].to_list() == [300] * 3


def test_a_rule_of_its_own_has_a_line_without_k_and_dead_latents_are_counted():
    site = "transformer.h.0"
    relu = planted_dictionary(site, budgets=None)
    with torch.no_grad():
        relu.b_enc[:4] = -100.0
    frame = layer_quality({site: relu}, {site: planted_store(site, 0)}, progress=False)
    assert frame["k"].to_list() == [None]
    assert frame["dead"].to_list() == [4 / 16]
    weights = {name: getattr(relu, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    one = ns.Dictionary({**weights, "threshold": torch.zeros(16)}, budgets=(2, 4), sparsity="batch_top_k", site=site)
    both = layer_quality({site: one}, {site: planted_store(site, 0)}, progress=False)
    assert both["k"].to_list() == [2, 4, None]
    assert both.row(-1)[4:] == pytest.approx(frame.row(0)[4:], nan_ok=True)


def test_layer_quality_measures_the_model_at_every_budget(lm, ids):
    stores = {SITE: planted_store(SITE, 0)}
    frame = layer_quality({SITE: half()}, stores, model=lm, inputs=ids, progress=False)
    kept = recovered(lm, half(), ids, k=(2, 4, 8), progress=False).filter(pl.col("measure") == "cross_entropy")
    assert frame["loss_recovered"].to_list() == kept["recovered"].to_list()
    assert frame["k"].to_list() == [2, 4, 8]
    whole = layer_quality({SITE: identity()}, stores, model=lm, inputs=ids, progress=False)
    assert whole.select("k", "loss_recovered").row(0) == (None, 1.0)


def test_layer_quality_of_an_embedding_lies_above_the_last_layer(clip, pixels):
    sites = ["visual.transformer.resblocks.3", "image_embed"]
    stores = {site: planted_store(site, 0) for site in sites}
    frame = layer_quality({site: planted_dictionary(site) for site in sites}, stores, progress=False)
    assert frame.select("layer", "lane").unique(maintain_order=True).rows() == [(3, "residual"), (4, "embedding")]


def test_layer_quality_refuses_what_does_not_belong_together(lm, ids):
    site = "transformer.h.0"
    one, store = planted_dictionary(site), planted_store(site, 0)
    with pytest.raises(ConfigError, match="No dictionaries"):
        layer_quality({}, {})
    with pytest.raises(StoreError, match=r"no store for 'transformer\.h\.0'. Closest: transformer\.h\.1"):
        layer_quality({site: one}, {"transformer.h.1": store})
    with pytest.raises(StoreError, match=r"'transformer\.h\.0': The rows come from site 'transformer\.h\.1'"):
        layer_quality({site: one}, {site: planted_store("transformer.h.1", 0)})
    with pytest.raises(ConfigError, match="both model= and inputs="):
        layer_quality({site: one}, {site: store}, model=lm)
    with pytest.raises(ConfigError, match="Got a Dictionary; expected the dictionaries as"):
        layer_quality(one, {site: store})
    with pytest.raises(StoreError, match="Got a NoneType as stores"):
        layer_quality({site: one}, None)


# --- the figure ---


def line_of(site, layer, lane, k, **numbers):
    known = {"fvu": 0.2, "l0": 4.0, "dead": 0.0, "loss_recovered": 0.9, "rows": 100}
    return {"site": site, "layer": layer, "lane": lane, "k": k, **known, **numbers}


def test_the_figure_has_a_line_per_budget_and_lane_at_each_layer():
    lines = [
        line_of(f"blocks.{layer}{lane}", layer, lane, k, fvu=1 / k)
        for layer in (0, 1, 10)
        for lane in ("residual", "mlp")
        for k in (2, 8)
    ]
    lines += [line_of("<b>", None, None, None, loss_recovered=None), line_of("image_embed", 11, "embedding", 8)]
    figure = plots.layer_quality(pl.DataFrame(lines, schema=LAYER_QUALITY))
    named = {trace.name: trace for trace in figure.data if trace.showlegend}
    assert list(named) == [
        "k = 2, residual", "k = 8, residual", "k = 2, mlp", "k = 8, mlp", "k = 8, embedding", "own rule, other",
    ]  # fmt: skip
    assert len(figure.data) == 6 * 4
    assert list(named["k = 2, mlp"].x) == ["0", "1", "10"]
    assert list(named["k = 2, mlp"].y) == [0.5] * 3
    assert named["k = 2, mlp"].line.color == named["k = 2, residual"].line.color
    assert named["k = 2, mlp"].line.dash != named["k = 2, residual"].line.dash
    assert list(named["own rule, other"].x) == ["&lt;b&gt;"]
    assert list(figure.layout.xaxis.categoryarray) == ["0", "1", "10", "embedding", "&lt;b&gt;"]


def test_a_logarithmic_axis_of_the_figure_has_whole_numbers():
    """Plotly's own ticks at 2 and 5 say "2" for 20 and for 0.2."""
    frame = pl.DataFrame(
        {"site": ["a", "b"], "layer": [0, 1], "lane": ["residual"] * 2, "k": [16, 64], "fvu": [0.04, float("inf")],
         "l0": [16.0, 64.0], "loss_recovered": [0.9, 0.9], "dead": [0.0, 0.0], "rows": [10, 10]},
        schema=LAYER_QUALITY, strict=False,
    )  # fmt: skip
    drawn = plots.layer_quality(frame).layout
    assert drawn.yaxis2.type == "log"
    assert [text for text in drawn.yaxis2.ticktext if 16 <= float(text) <= 64] == ["20", "50"]
    assert "0.05" in drawn.yaxis.ticktext


def test_the_figure_refuses_another_frame_and_draws_an_empty_one():
    with pytest.raises(WidgetError, match=r"without layer, lane.*nb_sae\.layer_quality"):
        plots.layer_quality(pl.DataFrame({"site": ["a"]}))
    assert len(plots.layer_quality(pl.DataFrame(schema=LAYER_QUALITY)).data) == 0
    zero = pl.DataFrame([line_of("blocks.0", 0, "residual", 2, fvu=0.0)], schema=LAYER_QUALITY)
    assert plots.layer_quality(zero).layout.yaxis.type == "linear"
