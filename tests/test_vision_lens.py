"""Promises of the vision lens: nb_sae.attribution.vision_lens."""

from __future__ import annotations

import numpy as np
import open_clip
import polars as pl
import pytest
import torch
from metric_fakes import gaussian
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

import nb_sae as ns
from nb_sae.attribution.schema import IDENTIFIABILITY, LENS_PATCHES, LENS_TOP
from nb_sae.attribution.vision_lens import VisionLens, vision_lens
from nb_sae.errors import ConfigError, InputError, NotEnoughMemoryError

TEXTS = ["a hat", "glasses", "a smile", "a beard", "an earring"]
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
SIGLIP = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224}
RESNET = {"layers": (1, 1, 1, 1), "width": 8, "head_width": 64, "image_size": 64}


def wrap(module: nn.Module, size: int = 32):
    transform = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    return ns.load_clip(module, preprocess=transform, tokenizer=open_clip.SimpleTokenizer(context_length=16))


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return wrap(CLIP(24, VIT, TEXT))


def pixels(count: int = 12, size: int = 32) -> torch.Tensor:
    return gaussian(count, 3, size, size, seed=2, dtype=torch.float)


@pytest.fixture(scope="module")
def lens(clip):
    return vision_lens(clip, pixels(), TEXTS, progress=False)


def lens_of(answers: torch.Tensor, patches: torch.Tensor | None, texts: torch.Tensor) -> VisionLens:
    """A lens of embeddings that a test makes."""
    layers = answers.shape[1]
    unit = nn.functional.normalize
    return VisionLens(
        model="made",
        texts=tuple(f"text {i}" for i in range(len(texts))),
        sites=tuple(f"visual.transformer.resblocks.{i}" for i in range(layers)),
        layers=tuple(range(layers)),
        grid=(2, 2),
        keys=tuple(map(str, range(len(answers)))),
        answers=unit(answers, dim=-1),
        patches_embedded=None if patches is None else unit(patches, dim=-1),
        text_vectors=unit(texts, dim=-1),
        logit_scale=100.0,
    )


@pytest.mark.parametrize("templates", [None, ["a photo of {}", "{} on a face"]])
def test_after_the_last_block_the_lens_is_the_models_own_answer(clip, templates):
    lens = vision_lens(clip, pixels(), TEXTS, templates=templates, progress=False)
    own = clip.zero_shot(pixels(), TEXTS, templates)
    assert torch.equal(lens.logits(-1).softmax(-1), own)
    told = lens.top(1).filter(pl.col("layer") == 2)
    assert told["text"].to_list() == [TEXTS[i] for i in own.argmax(-1).tolist()]
    torch.testing.assert_close(told["probability"].to_torch(), own.amax(-1))


def test_the_demo_model_answers_for_itself():
    clip, faces = ns.load_clip("demo"), ns.demo_faces(8, seed=1)
    lens = vision_lens(clip, faces, TEXTS, tokens="cls", progress=False)
    torch.testing.assert_close(lens.logits().softmax(-1), clip.zero_shot(faces, TEXTS), atol=1e-6, rtol=0)
    assert lens.keys == tuple(faces.keys)


def test_every_block_is_what_the_tower_would_say_if_it_ended_there(clip, lens):
    rows = clip.capture_rows(pixels(), ["visual.transformer.resblocks.0"], "image")
    visual = clip.module.visual
    with torch.no_grad():
        tokens = visual.ln_post(rows["visual.transformer.resblocks.0"]) @ visual.proj
        logits = clip.logit_scale * nn.functional.normalize(tokens, dim=-1) @ lens.text_vectors.T
    torch.testing.assert_close(lens.logits(0), logits[:, 0])
    torch.testing.assert_close(lens.logits(0, "patches"), logits[:, 1:])


def test_a_tower_without_a_class_token_answers_by_its_own_pooling():
    torch.manual_seed(0)
    pytest.importorskip("timm")
    siglip = wrap(CustomTextCLIP(192, SIGLIP, TEXT | {"no_causal_mask": True}, init_logit_bias=-10.0), 224)
    lens = vision_lens(siglip, pixels(2, 224), TEXTS, progress=False)
    assert lens.grid == (14, 14)
    torch.testing.assert_close(lens.logits().softmax(-1), siglip.zero_shot(pixels(2, 224), TEXTS), atol=1e-6, rtol=0)


def test_patches_are_maps_on_the_grid(lens):
    frame = lens.patches(1, texts=["a smile", "a hat"], inputs=[4, 0])
    assert frame.schema == LENS_PATCHES
    assert frame.select("input_id", "text").rows() == [(4, "a smile"), (4, "a hat"), (0, "a smile"), (0, "a hat")]
    assert frame["map"].list.len().unique().to_list() == [16]
    logits, answers = lens.logits(1, "patches"), lens.logits(1)
    torch.testing.assert_close(torch.tensor(frame["map"][1].to_list()), logits[4, :, TEXTS.index("a hat")])
    assert frame["cls"][3] == pytest.approx(float(answers[0, 0]), abs=1e-5)
    assert lens.patches(-1).height == 12 * 5


def test_the_top_texts_are_ordered_and_their_chances_sum_to_one(lens):
    frame = lens.top(99)
    assert frame.schema == LENS_TOP
    assert frame.height == 12 * 3 * 5
    sums = frame.group_by("input_id", "layer").agg(pl.col("probability").sum(), pl.col("logit").diff().max())
    torch.testing.assert_close(sums["probability"].to_torch(), torch.ones(36))
    assert sums["logit"].max() <= 0


def test_a_planted_patch_is_told_by_its_block_and_by_no_other(clip):
    """A patch after block 1 is set to what the final norm and the projection take to the text."""
    visual = clip.module.visual
    text = nn.functional.normalize(clip.encode_text([TEXTS[3]]), dim=-1)[0]
    ends = torch.cat([visual.proj.detach(), torch.ones(48, 1)], dim=1)  # of mean 0, so that the norm only scales it
    row = torch.cat([text, torch.zeros(1)]) @ torch.linalg.pinv(ends)

    def plant(x):
        x = x.clone()
        x[:, 1 + 6] = row
        return x

    with ns.intervene(clip, ns.Edit("visual.transformer.resblocks.1", plant)):
        lens = vision_lens(clip, pixels(), TEXTS, progress=False)
    assert (lens.logits(1, "patches")[:, 6].argmax(-1) == 3).all()
    torch.testing.assert_close(lens.logits(1, "patches")[:, 6, 3], torch.full((12,), lens.logit_scale))
    planted = lens_of(lens.answers, lens.patches_embedded[:, :, 6:7], lens.text_vectors)
    told = planted.identifiability([3] * 12).filter(pl.col("tokens") == "patches")
    assert told["identifiability"][1] == 1.0
    assert told["identifiability"][0] < 1.0


def test_identifiability_counts_ranks_ties_and_changes():
    texts = torch.eye(4)
    answers = torch.zeros(3, 2, 4)
    answers[0] = torch.tensor([[0.9, 0.3, 0.2, 0.1], [0.8, 0.7, 0.2, 0.1]])  # own class nearest, then weaker
    answers[1] = torch.tensor([[0.1, 0.5, 0.7, 0.9], [0.1, 0.9, 0.2, 0.3]])  # class 1 third, then nearest
    answers[2] = torch.ones(2, 4)  # all alike: a tie of everything
    frame = lens_of(answers, None, texts).identifiability(["text 0", 1, 2])
    assert frame.schema == IDENTIFIABILITY
    assert frame["tokens"].to_list() == ["cls", "cls"]
    assert frame["identifiability"].to_list() == pytest.approx([(1 + 1 / 3 + 0.5) / 3, (1 + 1 + 0.5) / 3])
    assert frame["change"].to_list() == [None, pytest.approx(1 / 3)]
    assert frame["rows"].to_list() == [3, 3]


def test_inputs_without_a_label_do_not_count():
    answers, texts = gaussian(30, 2, 16, dtype=torch.float), gaussian(4, 16, seed=1, dtype=torch.float)
    labels = [i % 4 for i in range(20)]
    whole = lens_of(answers[:20], None, texts).identifiability(labels)
    assert lens_of(answers, None, texts).identifiability([*labels, *[None] * 10]).equals(whole)


def test_random_texts_give_one_half_and_a_random_model_stays_inside_the_null(lens):
    frame = lens.identifiability([i % 5 for i in range(12)])
    assert frame["null"].to_numpy() == pytest.approx(0.5, abs=0.02)
    lone = lens.identifiability([0] * 12).filter(pl.col("tokens") == "cls")  # of one class, a draw says little
    assert (lone["null_high"] - lone["null_low"]).min() > 0.9
    many = lens_of(
        gaussian(400, 3, 32, dtype=torch.float),
        gaussian(400, 3, 4, 32, seed=1, dtype=torch.float),
        gaussian(20, 32, seed=2, dtype=torch.float),
    ).identifiability([i % 20 for i in range(400)])
    assert many["null"].to_numpy() == pytest.approx(0.5, abs=0.005)
    assert many["identifiability"].to_numpy() == pytest.approx(0.5, abs=0.05)
    assert many["change"].drop_nulls().to_numpy() == pytest.approx(0.5, abs=0.06)


def test_the_null_holds_one_set_of_random_texts_at_a_time(monkeypatch):
    """With many texts all sets together would take far more than the embeddings."""
    lens, made, randn = lens_of(gaussian(6, 2, 8, dtype=torch.float), None, torch.eye(9, 8)), [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **given: made.append(randn(*shape, **given)) or made[-1])
    frame = lens.identifiability([0, 1, 2, 3, 4, 5], draws=3)
    assert [one.shape for one in made] == [(9, 8)] * 3
    by_hand = []
    for texts in made:
        scores = lens.answers[:, 0] @ nn.functional.normalize(texts, dim=-1).T
        mine = scores.gather(1, torch.arange(6)[:, None])
        by_hand += [float((scores < mine).float().mean(1).sum() / 6 * 9 / 8)]
    both = [*by_hand, *(1 - one for one in by_hand)]
    assert frame["null_low"][0] == pytest.approx(np.quantile(both, 0.025), abs=1e-6)
    assert frame["null"][0] == pytest.approx(0.5, abs=1e-9)


def test_a_block_that_holds_the_class_lies_beyond_the_null():
    texts, labels = gaussian(8, 32, dtype=torch.float), [i % 8 for i in range(80)]
    noise = gaussian(80, 2, 32, seed=1, dtype=torch.float)
    answers = noise + torch.tensor([0.0, 1.0])[:, None] * texts[labels][:, None]
    frame = lens_of(answers, None, texts).identifiability(labels)
    assert frame["null_low"][0] <= 0.5 <= frame["null_high"][0]
    assert frame["identifiability"][0] < 0.6
    assert frame["identifiability"][1] > frame["null_high"][1] + 0.2
    assert frame["change"][1] > 0.9


def test_names_give_the_texts(clip):
    class Named:
        frame = pl.DataFrame({"name": ["hat", "sky", "hat", "tree"], "accepted": [True, False, True, True]})

    lens = vision_lens(clip, pixels(2), Named(), tokens="cls", progress=False)
    assert lens.texts == ("hat", "tree")


def test_a_lens_of_answers_holds_no_patches(clip, lens):
    small = vision_lens(clip, pixels(), TEXTS, tokens="cls", progress=False)
    assert torch.equal(small.answers, lens.answers)
    assert "without patches" in repr(small)
    with pytest.raises(ConfigError, match="tokens='all'"):
        small.patches(0)
    assert small.identifiability([0] * 12)["tokens"].unique().to_list() == ["cls"]


def test_a_half_precision_model_says_nearly_the_same(clip, lens):
    module = CLIP(24, VIT, TEXT)
    module.load_state_dict(clip.module.state_dict())
    half = vision_lens(wrap(module.bfloat16()), pixels(), TEXTS, progress=False)
    assert half.answers.dtype == torch.float32
    assert (half.answers * lens.answers).sum(-1).min() > 0.99


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": ["one"]}, "nothing to choose"),
        ({"texts": "a hat"}, "expected a list of texts"),
        ({"texts": ["a hat", "a hat"]}, "given twice"),
        ({"templates": ["a photo"]}, "has no {}"),
        ({"tokens": "patches"}, "tokens='patches'"),
    ],
)
def test_settings_without_a_meaning_are_refused(clip, given, message):
    settings = {"texts": TEXTS, "progress": False} | given
    with pytest.raises(ConfigError, match=message):
        vision_lens(clip, pixels(2), **settings)


def test_models_and_inputs_without_a_lens_are_refused(clip):
    with pytest.raises(ConfigError, match="expected a CLIP"):
        vision_lens(ns.load_lm("demo"), pixels(2), TEXTS)
    with pytest.raises(ConfigError, match="does not know the blocks"):
        vision_lens(wrap(CLIP(24, RESNET, TEXT), 64), [Image.new("RGB", (64, 64))], TEXTS)
    with pytest.raises(InputError, match="No pictures"):
        vision_lens(clip, [], TEXTS)
    with pytest.raises(NotEnoughMemoryError, match="Give 2 pictures or tokens='cls'"):
        vision_lens(clip, pixels(), TEXTS, memory_bytes=2 * 3 * 17 * 24 * 4)


def test_labels_and_places_that_are_not_there_are_refused(lens):
    with pytest.raises(InputError, match="3 labels were given for 12"):
        lens.identifiability([0, 1, 2])
    with pytest.raises(InputError, match=r"'a hut' of input 0 .*Closest: a hat"):
        lens.identifiability(["a hut"] * 12)
    with pytest.raises(InputError, match="No input has a label"):
        lens.identifiability([None] * 12)
    with pytest.raises(ConfigError, match="layer=3 does not exist"):
        lens.logits(3)
    with pytest.raises(ConfigError, match="no text 'a hut'"):
        lens.patches(0, texts="a hut")
    with pytest.raises(ConfigError, match="no input 12"):
        lens.patches(0, inputs=[12])
    with pytest.raises(ConfigError, match="tokens='all' is not known"):
        lens.logits(0, "all")
