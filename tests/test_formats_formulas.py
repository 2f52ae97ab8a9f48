"""Promises of nb_sae.sae.formats for what no package index has: the MSAE authors' files and ViT-Prisma's.

Their formulas stand here a second time, written from the authors' code and not from ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers.exchange import CLOSE, D_IN, D_SAE, dictionaries, load, random_dictionary, rows, same_function
from torch import Tensor

from nb_sae.errors import ConfigError, FormatError
from nb_sae.sae.formats import export_dictionary, load_dictionary

# ------------------------------------------------------------------ the MSAE authors' files


def authors_latents(content: dict[str, Any], x: Tensor, k: int | None, *, tied: bool = False) -> tuple[Tensor, Tensor]:
    """Independent of the importer: the formulas of the authors' `SAE.encode` and `decode`."""
    model = content["model"]
    mean, scale = torch.as_tensor(content["mean_center"], dtype=torch.float32), float(content["scaling_factor"])
    scaled = (x - mean) * scale
    pre = (scaled - model["pre_bias"]) @ model["encoder"] + model["latent_bias"]
    latents = pre.relu()
    if k is not None:
        kept = pre.topk(k, dim=-1)
        latents = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
    decoder = model["encoder"].T if tied else model["decoder"]
    return latents, (latents @ decoder + model["pre_bias"]) / scale + mean


def authors_file(*, tied: bool = False, numpy: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    model = {"pre_bias": noise(D_IN), "encoder": noise(D_IN, D_SAE), "latent_bias": noise(D_SAE)}
    if not tied:
        model["decoder"] = noise(D_SAE, D_IN)
    model["latents_activation_frequency"] = torch.arange(D_SAE)
    mean = noise(D_IN)
    return {
        "model": model,
        "mean_center": mean.numpy() if numpy else mean,
        "scaling_factor": np.float64(2.83) if numpy else 2.83,
        "target_norm": 2.83,
    }


@pytest.mark.parametrize(
    ("name", "k", "options"),
    [
        ("24_8_TopKReLU_4_RW_False_False_0.0_cc3m_ViT-L~14_train_image_2905936_8.pth", 4, {}),
        ("24_8_TopKReLU_4_UW_True_False_0.0_cc3m.pth", 4, {"tied": True}),
        ("24_8_TopKReLU_4_False_False_0.0_cc3m.pth", 4, {}),
        ("24_8_ReLU_003_False_False_0.0_cc3m.pth", None, {}),
        ("24_8_ReLU_003_False_False_0.0_cc3m.pth", None, {"numpy": True}),
    ],
)
def test_the_authors_files_give_the_authors_latents(tmp_path: Path, name: str, k: int | None, options: Any):
    content = authors_file(**options)
    torch.save(content, tmp_path / name)
    latents, x_hat = authors_latents(content, rows(), k, tied=options.get("tied", False))
    dictionary = load(tmp_path / name)
    torch.testing.assert_close(dictionary.encode(rows()), latents, **CLOSE)
    torch.testing.assert_close(dictionary.reconstruct(rows()), x_hat, **CLOSE)
    assert dictionary.provenance["imported_from"]["format"] == "msae"


@pytest.mark.parametrize("sparsity", ["top_k", "relu"])
def test_what_is_written_for_the_authors_gives_our_latents_by_their_formulas(tmp_path: Path, sparsity: str):
    dictionary = random_dictionary(sparsity, pre_bias=False)
    path = export_dictionary(dictionary, tmp_path, format="msae")
    k = dictionary.budgets[-1] if dictionary.budgets else None
    assert path.name.startswith("24_8_TopKReLU_4_UW_False_False_0.0_" if k else "24_8_ReLU_0_False_False_0.0_")
    latents, x_hat = authors_latents(torch.load(path, weights_only=True), rows(), k)
    torch.testing.assert_close(latents, dictionary.encode(rows()), **CLOSE)
    torch.testing.assert_close(x_hat, dictionary.reconstruct(rows()), **CLOSE)
    with pytest.raises(ConfigError, match="otherwise about"):
        export_dictionary(dictionary, tmp_path / "24_8_TopKReLU_9_False_False_0.0_x.pth", format="msae")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sae.pth", "in the file's name"),
        ("24_8_TopKReLU_4_False_False_30.0_cc3m.pth", "caps its latents"),
        ("24_8_TopKabsReLU_4_False_False_0.0_cc3m.pth", "negative latents"),
        ("24_8_TopKReLU_4_False_True_0.0_cc3m.pth", "normalises every row"),
        ("24_9_TopKReLU_4_False_False_0.0_cc3m.pth", "expected"),
        ("24_8_TopKReLU_4_True_False_0.0_cc3m.pth", "does not know"),
    ],
)
def test_authors_files_that_cannot_be_read_exactly_are_refused(tmp_path: Path, name: str, message: str):
    torch.save(authors_file(), tmp_path / name)
    with pytest.raises(FormatError, match=message):
        load(tmp_path / name)


def test_the_authors_batch_top_k_has_no_threshold_and_takes_one(tmp_path: Path):
    path = tmp_path / "24_8_BatchTopKReLU_4_False_False_0.0_cc3m.pth"
    torch.save(authors_file(), path)
    with pytest.warns(UserWarning, match="keeps no threshold"):
        dictionary = load_dictionary(path, verbose=False)
    torch.testing.assert_close(dictionary.encode(rows()), authors_latents(authors_file(), rows(), None)[0], **CLOSE)
    assert int((load(path, threshold=1.0).encode(rows()) > 0).sum()) < int((dictionary.encode(rows()) > 0).sum())


# ------------------------------------------------------------------ ViT-Prisma


def prisma_latents(cfg: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Independent of the importer: the formulas of Prisma's two autoencoders."""
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    normed = cfg["normalize_activations"] == "layer_norm"
    inside = ((x - mean) / (std + 1e-5) if normed else x) - state["b_dec"]
    if cfg["architecture"] == "gated":
        magnitude = inside @ (state["W_enc"] * state["r_mag"].exp()) + state["b_mag"]
        latents = (inside @ state["W_enc"] + state["b_gate"] > 0) * magnitude.relu()
    else:
        latents = (inside @ state["W_enc"] + state["b_enc"]).relu()
        if cfg["activation_fn_str"] == "topk":
            kept = latents.topk(cfg["activation_fn_kwargs"]["k"], dim=-1)
            latents = torch.zeros_like(latents).scatter(1, kept.indices, kept.values)
    x_hat = latents @ state["W_dec"] + state["b_dec"]
    return latents, x_hat * std + mean if normed else x_hat


@pytest.mark.parametrize("name", ["relu", "top_k-layer-norm", "gated-no-pre-bias", "relu-unequal-rows"])
def test_prisma_files_give_its_latents_both_ways(tmp_path: Path, name: str):
    dictionary = dictionaries()[name]
    export_dictionary(dictionary, tmp_path / "sae", format="prisma")
    cfg = json.loads((tmp_path / "sae" / "config.json").read_text())
    state = torch.load(tmp_path / "sae" / "weights.pt", weights_only=True)
    latents, x_hat = prisma_latents(cfg, state, rows())
    torch.testing.assert_close(latents, dictionary.encode(rows()), **CLOSE)
    torch.testing.assert_close(x_hat, dictionary.reconstruct(rows()), **CLOSE)
    del cfg["nb_sae"]  # as Prisma itself writes it
    (tmp_path / "sae" / "config.json").write_text(json.dumps(cfg))
    same_function(load(tmp_path / "sae"), dictionary)
    assert load(tmp_path / "sae").site == "blocks.0.hook_resid_post"


def test_prisma_rules_that_nb_sae_has_not_are_refused(tmp_path: Path):
    export_dictionary(random_dictionary("relu"), tmp_path / "sae", format="prisma")
    cfg = json.loads((tmp_path / "sae" / "config.json").read_text())
    for changed in ({"architecture": "jumprelu"}, {"activation_fn_str": "tanh-relu"}, {"is_transcoder": True}):
        (tmp_path / "sae" / "config.json").write_text(json.dumps({**cfg, **changed}))
        with pytest.raises(FormatError, match="nb_sae reads"):
            load(tmp_path / "sae")
