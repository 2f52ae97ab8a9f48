"""The CLIP inside the package: opens with open_clip, and knows what the drawn faces hold."""

from __future__ import annotations

import re

import numpy as np
import open_clip
import polars as pl
import pytest
import torch
from safetensors import safe_open

from nb_sae.data.captions import PROMPTS
from nb_sae.data.faces import DRAWN, demo_faces
from nb_sae.errors import InputNotFoundError
from nb_sae.models import demo
from nb_sae.models.demo import demo_clip, demo_clip_config, demo_clip_folder, demo_tokenizer, retrieval_at, roc_auc
from nb_sae.models.demo import zero_shot_table as zero_shot

FACES = 500


@pytest.fixture(scope="module")
def opened():
    return demo_clip()


@pytest.fixture(scope="module")
def measured(opened):
    """Image and own-caption embeddings of faces that no training has seen."""
    model, preprocess, tokenizer = opened
    faces = demo_faces(FACES, seed=7_001, table="balanced")
    with torch.no_grad():
        pixels = torch.stack([preprocess(faces[i]) for i in range(FACES)])
        images = torch.cat([model.encode_image(part) for part in pixels.split(100)])
        texts = model.encode_text(tokenizer(faces.captions))
    return images, texts, faces


def test_folder_is_open_clips_local_form_small_and_in_half_precision():
    folder = demo_clip_folder()
    names = {file.name for file in folder.iterdir()}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "bpe.txt.gz", "MODEL_CARD.md"} <= names
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6
    with safe_open(folder / "open_clip_model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118


def test_model_is_open_clips_in_float32_evaluating(opened):
    model, preprocess, _ = opened
    assert type(model) is open_clip.model.CLIP
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    pixels = preprocess(demo_faces(1)[0])
    assert (pixels.shape, pixels.dtype) == ((3, 64, 64), torch.float32)
    assert preprocess(demo_faces(1, size=90)[0]).shape == (3, 64, 64)


def test_tokenizer_has_its_own_vocabulary_and_gives_what_the_model_takes(opened):
    model, _, tokenizer = opened
    ids = tokenizer(["a face with glasses", "never seen: ZÜRICH 🙂"])
    size = demo_clip_config()["model_cfg"]["text_cfg"]["vocab_size"]
    assert ids.shape == (2, model.context_length)
    assert ids.dtype == torch.int64
    assert int(ids.max()) == size - 1 == model.vocab_size - 1  # the end token is the highest: CLIP pools there
    assert len(tokenizer.encode("glasses eyeglasses spectacles")) == 3
    assert torch.equal(demo_tokenizer()(["a face"]), tokenizer(["a face"]))
    for prompts in PROMPTS.values():
        for prompt in prompts:
            assert len(tokenizer.encode(prompt)) <= model.context_length - 2


def test_zero_shot_auc_on_unseen_faces_is_at_least_090_on_average(opened, measured):
    model, _, tokenizer = opened
    images, _, faces = measured
    table = zero_shot(model, tokenizer, images, faces.attributes)
    assert table["attribute"].sort().to_list() == sorted(DRAWN)
    print(table.filter(pl.col("auc") < 0.9))
    assert table["auc"].mean() >= 0.90


def test_own_caption_is_retrieved_far_above_chance(measured):
    images, texts, _ = measured
    found = retrieval_at(images, texts, k=(1, 10))
    assert found[10] > 10 * 10 / FACES
    assert found[1] > 10 / FACES


def test_model_card_states_what_was_measured():
    card = (demo_clip_folder() / "MODEL_CARD.md").read_text(encoding="utf-8")
    stated = re.search(r"mean zero-shot AUC\s+(0\.\d+)", card)
    assert stated is not None
    assert float(stated[1]) >= 0.90
    for name in DRAWN:
        assert f"| {name} |" in card


def test_roc_auc_equals_counting_all_pairs():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
    assert roc_auc(scores, truth) == pytest.approx(np.mean(pairs))
    assert roc_auc(scores, np.ones(80, bool)) is None


def test_retrieval_counts_the_rank_of_the_own_text():
    images = torch.eye(4)
    texts = torch.eye(4)[[0, 1, 3, 2]] + 0.01
    assert retrieval_at(images, texts, k=(1, 2, 4)) == {1: 0.5, 2: 0.5, 4: 1.0}


def test_missing_folder_is_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "files", lambda package: tmp_path)
    with pytest.raises(InputNotFoundError, match=r"demo_clip.*Install nb-sae again"):
        demo.demo_clip_folder()
    with pytest.raises(InputNotFoundError, match="config"):
        demo.demo_lm_folder()
