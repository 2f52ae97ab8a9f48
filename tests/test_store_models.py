"""The store beside the real things: the two models that are shipped inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import nb_sae as ns


class Pictures:
    modality = "image"
    name = "pictures of noise"

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self.items = [Image.fromarray(random.integers(0, 255, (70, 60, 3), dtype=np.uint8)) for _ in range(count)]
        self.keys = [f"{number}.png" for number in range(count)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, input_id: int) -> Image.Image:
        return self.items[input_id]


@pytest.fixture(scope="module")
def clip():
    return ns.load_clip("demo", device="cpu")


@pytest.fixture(scope="module")
def lm():
    return ns.load_lm("demo", device="cpu")


def test_the_demo_clip_is_collected_as_its_encoder_gives_it(clip, tmp_path):
    photos, block = Pictures(21), "visual.transformer.resblocks.1"
    stores = ns.ActivationStore.collect(
        clip, photos, site=["image_embed", block], path=tmp_path, dtype="float32", batch_inputs=8, workers=2,
        progress=False,
    )  # fmt: skip
    prepare = clip.preprocessor("image")
    with torch.no_grad():
        expected = clip.module.encode_image(torch.cat([prepare(photo).tensor for photo in photos]))
    torch.testing.assert_close(stores["image_embed"][:], expected, atol=1e-4, rtol=1e-4)
    site = stores[block].site
    assert len(stores[block]) == 21 * site.positions
    assert site.grid is not None
    assert site.positions == site.prefix_tokens + site.grid[0] * site.grid[1]
    assert len(ns.ActivationStore.open(tmp_path / "image_embed", model=clip)) == 21


def test_a_caption_gives_one_row_at_the_text_embedding(clip, tmp_path):
    texts = ns.texts(["a face", "a face with a hat"])
    store = ns.ActivationStore.collect(clip, texts, site="text_embed", path=tmp_path / "s", progress=False)
    assert store.rows.rows() == [(0, 0), (1, 0)]


def test_the_demo_language_model_gives_one_row_per_real_token(lm, tmp_path):
    texts = ns.texts(["Return the sum.", "Open a file and read its lines. " * 8], context_tokens=16)
    site = lm.hook_names()[-1]
    store = ns.ActivationStore.collect(
        lm, texts, site=site, path=tmp_path / "s", dtype="float32", special_tokens=True, progress=False
    )
    prepare = lm.preprocessor("text", context_tokens=16)
    expected = []
    for text in texts:
        prepared = prepare(text)
        rows = lm.capture_rows(prepared.tensor, [site], "text")[site]
        keep = prepared.keep if prepared.keep is not None else torch.ones(rows.shape[:2], dtype=torch.bool)
        expected.append(rows[keep])
    torch.testing.assert_close(store[:], torch.cat(expected).float(), atol=1e-4, rtol=1e-4)
    assert store.site.positions == 16
    assert store.rows["input_id"].to_list() == [0] * len(expected[0]) + [1] * len(expected[1])
    assert all(len(rows) <= 16 for _, rows in store.chunks(1))
