"""Promises of nb_sae.sae.formats: the latents of other libraries' files, round trips, and files that are refused.

`fixtures/peers` was written by the libraries themselves; `make test-peers` makes it anew and reads ours back there.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import hub_server
from peers.exchange import D_IN, D_SAE, dictionaries, exports, random_dictionary, rows
from safetensors.torch import load_file, save_file
from torch import Tensor

import nb_sae as ns
from nb_sae.errors import ConfigError, FormatError, InputNotFoundError, PathExistsError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats import FORMATS, export_dictionary, load_dictionary, push_to_hub

PEERS = Path(__file__).parent / "fixtures" / "peers"
CASES = sorted(one.relative_to(PEERS).as_posix() for one in PEERS.glob("*/*") if one.is_dir())
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def load(path: Path | str, **options: Any) -> Dictionary:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_dictionary(path, verbose=False, **options)


def load_case(case: str, **options: Any) -> tuple[Dictionary, dict[str, Tensor]]:
    beside = PEERS / case / "options.json"
    stated = json.loads(beside.read_text()) if beside.is_file() else {}
    return load(PEERS / case, **{**stated, **options}), load_file(PEERS / case / "expected.safetensors")


def same_function(a: Dictionary, b: Dictionary) -> None:
    x = rows()
    torch.testing.assert_close(a.encode(x), b.encode(x), **CLOSE)
    torch.testing.assert_close(a.reconstruct(x), b.reconstruct(x), **CLOSE)


# ------------------------------------------------------------------ files of the libraries


def test_there_are_files_of_every_library_that_could_be_installed():
    assert {case.split("/")[0] for case in CASES} == {"saelens", "dictionary_learning", "sparsify", "overcomplete"}
    assert len(CASES) >= 35


@pytest.mark.parametrize("case", CASES)
def test_files_of_the_libraries_give_their_latents(case: str):
    dictionary, expected = load_case(case)
    torch.testing.assert_close(dictionary.encode(expected["x"]), expected["latents"], **CLOSE)
    torch.testing.assert_close(dictionary.reconstruct(expected["x"]), expected["x_hat"], **CLOSE)
    assert dictionary.provenance["imported_from"]["format"] == case.split("/")[0]


@pytest.mark.parametrize(
    ("case", "changed"),
    [
        ("saelens/batchtopk-checkpoint", {"threshold": torch.zeros(D_SAE)}),
        ("dictionary_learning/BatchTopKSAE", {"threshold": torch.zeros(D_SAE)}),
        ("saelens/jumprelu", {"threshold": torch.zeros(D_SAE)}),
        ("saelens/standard-no-pre-bias", {"pre_bias": True}),
        ("saelens/standard-layer-norm", {"row_norm": None}),
        ("saelens/topk-constant-norm", {"row_norm": None}),
        ("saelens/gated", {"r_mag": torch.zeros(D_SAE)}),
    ],
)
def test_the_comparison_sees_a_lost_part(case: str, changed: dict[str, Any]):
    """Null: each part that importers are known to lose (SAELens #608: the threshold) changes the latents."""
    dictionary, expected = load_case(case)
    for name, value in changed.items():
        setattr(dictionary, name, value)
    assert (dictionary.encode(expected["x"]) - expected["latents"]).abs().max() > 0.01


def test_matryoshka_widths_and_budgets_survive_the_import():
    for case in ("saelens/matryoshka-checkpoint", "dictionary_learning/MatryoshkaBatchTopKSAE"):
        dictionary, _ = load_case(case)
        assert (dictionary.sparsity, dictionary.budgets, dictionary.widths) == ("batch_top_k", (4,), (6, 12, 24))
    inference, _ = load_case("saelens/matryoshka-inference")
    assert inference.widths == (6, 12, 24)  # they stand only in runner_cfg.json


def test_a_scaled_checkpoint_is_brought_to_model_units():
    dictionary, _ = load_case("saelens/batchtopk-checkpoint-scaled")
    torch.testing.assert_close(dictionary.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_an_unset_threshold_means_every_positive_latent_and_is_told():
    path = PEERS / "dictionary_learning" / "BatchTopKSAE-unset"
    with pytest.warns(UserWarning, match="never estimated"):
        dictionary = load_dictionary(path, verbose=False)
    assert dictionary.threshold is not None
    assert bool((dictionary.threshold == 0).all())
    given = load_dictionary(path, verbose=False, threshold=0.7)
    assert given.threshold is not None
    assert bool((given.threshold == 0.7).all())


def test_unit_rows_change_lengths_and_no_reconstruction():
    path, expected = PEERS / "saelens" / "jumprelu", load_file(PEERS / "saelens" / "jumprelu" / "expected.safetensors")
    dictionary = load(path, unit_rows=True)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=-1), torch.ones(D_SAE))
    torch.testing.assert_close(dictionary.reconstruct(expected["x"]), expected["x_hat"], **CLOSE)
    assert (dictionary.encode(expected["x"]) - expected["latents"]).abs().max() > 0.01


def test_unit_rows_of_a_top_k_with_unequal_norms_are_refused():
    with pytest.raises(ConfigError, match="Keep the rows as they are"):
        load(PEERS / "saelens" / "topk", unit_rows=True)
    load(PEERS / "saelens" / "topk-rescaled", unit_rows=True)  # selected by pre · ‖row‖: unit rows already


def test_it_says_which_format_it_took(capsys: pytest.CaptureFixture[str]):
    load_dictionary(PEERS / "sparsify" / "topk")
    assert "read as sparsify" in capsys.readouterr().out


def test_site_and_model_can_be_renamed():
    dictionary = load(PEERS / "saelens" / "topk")
    assert (dictionary.site, dictionary.model) == ("blocks.0.hook_resid_post", None)
    assert dictionary.provenance["imported_from"]["model"] == "demo"
    renamed = load(PEERS / "saelens" / "topk", site="transformer.h.0", model="gpt2")
    assert (renamed.site, renamed.model) == ("transformer.h.0", "gpt2")


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_keeps_latents_and_settings(tmp_path: Path, format: Any):  # noqa: A002
    written = list(exports(tmp_path, (format,)))
    assert len(written) >= 4
    for one in written:
        back = load(one.path)
        same_function(one.dictionary, back)
        for name in ("sparsity", "budgets", "widths", "site", "target", "row_norm"):
            expected = getattr(one.dictionary, name)
            assert getattr(back, name) == expected, (format, one.name, name)


def test_saelens_holds_every_kind_but_two_transcoder_rules(tmp_path: Path):
    assert {one.name for one in exports(tmp_path, ("saelens",))} == dictionaries().keys()


def test_thresholds_budgets_and_widths_stand_in_a_saelens_directory(tmp_path: Path):
    dictionary = random_dictionary("batch_top_k", widths=(6, 12, 24), mean_square_distance=2.5, mean=torch.arange(8.0))
    export_dictionary(dictionary, tmp_path / "sae", format="saelens")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert cfg["architecture"] == "jumprelu"
    assert cfg["metadata"]["matryoshka_widths"] == [6, 12, 24]
    assert cfg["metadata"]["nb_sae"]["budgets"] == [2, 4]
    assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert dictionary.threshold is not None
    held = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    torch.testing.assert_close(held["threshold"], dictionary.threshold)
    back = load(tmp_path / "sae")
    assert back.mean_square_distance == 2.5
    assert back.mean is not None
    torch.testing.assert_close(back.mean, torch.arange(8.0))


def test_the_k_of_a_file_wins_over_the_budgets_beside_it(tmp_path: Path):
    dictionary = random_dictionary("top_k", budgets=(2, 4, 8))
    export_dictionary(dictionary, tmp_path / "sae", format="saelens", k=4)
    back = load(tmp_path / "sae")
    assert back.budgets == (2, 4)
    torch.testing.assert_close(back.encode(rows()), dictionary.encode(rows(), k=4), **CLOSE)


@pytest.mark.parametrize("sparsity", ["relu", "batch_top_k", "jump_relu"])
@pytest.mark.parametrize("format", ["sparsify", "msae", "prisma", "saelens", "dictionary_learning", "overcomplete"])
def test_a_given_k_writes_any_ungated_rule_as_top_k(tmp_path: Path, sparsity: str, format: Any):  # noqa: A002
    dictionary = random_dictionary(sparsity)
    path = export_dictionary(dictionary, tmp_path / ("a.pth" if format == "overcomplete" else "a"), format=format, k=3)
    torch.testing.assert_close(load(path).encode(rows()), dictionary.encode(rows(), k=3), **CLOSE)


def on_the_line() -> tuple[Dictionary, Tensor]:
    """Identity weights and thresholds of exactly 0.5: a row on the threshold, one a step above, one below."""
    eye = torch.eye(4)
    weights = {"W_enc": eye, "b_enc": torch.zeros(4), "W_dec": eye.clone(), "b_dec": torch.zeros(4)}
    weights["threshold"] = torch.full((4,), 0.5)
    above = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()
    return Dictionary(weights, sparsity="jump_relu"), torch.tensor([[0.5, above, 0.4999, -0.5]])


@pytest.mark.parametrize("format", ["nb_sae", "saelens", "dictionary_learning", "overcomplete"])
def test_a_latent_on_its_threshold_is_silent_in_every_format(tmp_path: Path, format: Any):  # noqa: A002
    dictionary, x = on_the_line()
    assert (dictionary.encode(x) > 0).tolist() == [[False, True, False, False]]
    path = export_dictionary(dictionary, tmp_path / ("a.pth" if format == "overcomplete" else "a"), format=format)
    assert (load(path).encode(x)[:, :1] > 0).tolist() == [[False]]
    if format == "overcomplete":  # its rule is ≥: what is written must lie above the threshold
        assert bool((torch.load(path, weights_only=True)["thresholds"].exp() > 0.5).all())
    else:
        assert (load(path).encode(x) > 0).tolist() == [[False, True, False, False]]


def test_a_latent_on_the_threshold_of_overcomplete_is_active(tmp_path: Path):
    rows_of_dictionary = torch.eye(4)
    state = {"encoder.weight": torch.eye(4), "dictionary._weights": rows_of_dictionary}
    torch.save(state, tmp_path / "sae.pth")
    dictionary = load(tmp_path / "sae.pth", threshold=0.5)
    assert (dictionary.encode(torch.tensor([[0.5, 0.49, 0.51, -1.0]])) > 0).tolist() == [[True, False, True, False]]


def test_negative_thresholds_let_no_negative_latent_through(tmp_path: Path):
    dictionary, x = on_the_line()
    export_dictionary(dictionary, tmp_path / "sae", format="saelens")
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    save_file({**weights, "threshold": torch.full((4,), -1.0)}, tmp_path / "sae" / "sae_weights.safetensors")
    assert bool((load(tmp_path / "sae").encode(x) >= 0).all())


def test_what_is_there_is_not_written_over(tmp_path: Path):
    dictionary = random_dictionary("top_k")
    for format in FORMATS:  # noqa: A001
        path = tmp_path / format / ("sae.pth" if format == "overcomplete" else "sae")
        written = export_dictionary(dictionary, path, format=format)
        with pytest.raises(PathExistsError, match="overwrite=True"):
            export_dictionary(dictionary, path, format=format)
        export_dictionary(random_dictionary("top_k", seed=9), path, format=format, overwrite=True)
        same_function(load(written), random_dictionary("top_k", seed=9))


@pytest.mark.parametrize(
    ("format", "made", "options", "message"),
    [
        ("sparsify", {"sparsity": "relu"}, {}, "Give k="),
        ("msae", {"sparsity": "jump_relu"}, {}, "Give k="),
        ("prisma", {"sparsity": "batch_top_k"}, {}, "Give k="),
        ("overcomplete", {"sparsity": "gated"}, {}, "no 'gated'"),
        ("saelens", {"sparsity": "gated"}, {"k": 3}, "Leave k out"),
        ("saelens", {"sparsity": "top_k"}, {"k": 25}, "outside"),
        ("saelens", {"sparsity": "top_k", "d_out": 6, "pre_bias": False, "target": "t"}, {}, "transcoders"),
        ("sparsify", {"sparsity": "top_k", "d_out": 6, "pre_bias": False, "target": "t"}, {}, "same width"),
        ("dictionary_learning", {"sparsity": "relu", "d_out": 6, "pre_bias": False}, {}, "no transcoders"),
        ("dictionary_learning", {"sparsity": "relu", "row_norm": "layer_norm"}, {}, "does not normalise"),
        ("msae", {"sparsity": "relu", "row_norm": "constant_norm"}, {}, "does not normalise"),
        ("saelense", {"sparsity": "relu"}, {}, "Closest: saelens"),
        ("nb_sae", {"sparsity": "top_k"}, {"k": 2}, "keeps every budget"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, format: Any, made: Any, options: Any, message: str):  # noqa: A002
    with pytest.raises(ConfigError, match=message):
        export_dictionary(random_dictionary(**made), tmp_path / "sae", format=format, **options)
    assert not (tmp_path / "sae").exists()


# ------------------------------------------------------------------ dictionary_learning


def test_a_backup_of_an_unfinished_training_is_brought_to_model_units(tmp_path: Path):
    state = torch.load(PEERS / "dictionary_learning" / "BatchTopKSAE" / "ae.pt", weights_only=True)
    config = json.loads((PEERS / "dictionary_learning" / "BatchTopKSAE" / "config.json").read_text())
    backup = {"step": 100, "ae": state, "optimizer": {}, "config": config["trainer"], "norm_factor": 2.0}
    torch.save(backup, tmp_path / "ae.pt")
    dictionary, finished = load(tmp_path / "ae.pt"), load(PEERS / "dictionary_learning" / "BatchTopKSAE")
    # Trained on x / factor: the latents of x are the factor times those.
    torch.testing.assert_close(dictionary.encode(rows() * 2), finished.encode(rows()) * 2, **CLOSE)


def test_a_checkpoint_finds_its_settings_one_folder_up(tmp_path: Path):
    source = PEERS / "dictionary_learning" / "AutoEncoderTopK"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ae_100.pt").write_bytes((source / "ae.pt").read_bytes())
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    same_function(load(tmp_path / "checkpoints" / "ae_100.pt"), load(source))


def test_weights_without_settings_are_told_apart_or_refused(tmp_path: Path):
    source = PEERS / "dictionary_learning"
    for kind in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "MatryoshkaBatchTopKSAE"):
        (tmp_path / "ae.pt").write_bytes((source / kind / "ae.pt").read_bytes())
        same_function(load(tmp_path / "ae.pt"), load(source / kind))
    (tmp_path / "ae.pt").write_bytes((source / "BatchTopKSAE" / "ae.pt").read_bytes())
    with pytest.raises(FormatError, match="AutoEncoderTopK or a BatchTopKSAE"):
        load(tmp_path / "ae.pt")


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


# ------------------------------------------------------------------ pickles


class Hostile:
    """Unpickled, it makes a file: what a hostile checkpoint could do."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", ["ae.pt", "24_8_TopKReLU_4_False_False_0.0_x.pth", "sae.pth", "weights.pt"])
def test_code_in_a_file_does_not_run_unless_the_file_is_trusted(tmp_path: Path, name: str):
    marker = tmp_path / "ran"
    torch.save({"model": {}, "mean_center": 0.0, "scaling_factor": Hostile(marker)}, tmp_path / name)
    if name == "weights.pt":
        (tmp_path / "config.json").write_text("{}")
    for given in (tmp_path, tmp_path / name):
        with pytest.raises(FormatError, match="trust_pickle=True"):
            load(given)
    assert not marker.exists()
    with pytest.raises(FormatError):
        load(tmp_path / name, trust_pickle=True)
    assert marker.exists()  # the planted code was there to run


def test_a_module_saved_whole_is_read_only_when_trusted_and_without_its_library():
    path = PEERS / "overcomplete" / "TopKSAE-module"
    with pytest.raises(FormatError, match="trust_pickle=True"):
        load(path)
    assert load(path, trust_pickle=True).budgets == (4,)


def test_a_prisma_pickle_is_read_only_when_trusted_and_without_its_library(tmp_path: Path):
    export_dictionary(random_dictionary("relu"), tmp_path / "new", format="prisma")
    cfg = json.loads((tmp_path / "new" / "config.json").read_text())
    state = torch.load(tmp_path / "new" / "weights.pt", weights_only=True)
    module = type(sys)("gone_prisma")
    kind = type("VisionModelSAERunnerConfig", (), {"__module__": "gone_prisma"})
    module.VisionModelSAERunnerConfig = kind  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["gone_prisma"] = module
    settings = kind()
    settings.__dict__.update({name: value for name, value in cfg.items() if name != "nb_sae"})
    torch.save({"cfg": settings, "state_dict": state}, tmp_path / "n_images_1.pt")
    del sys.modules["gone_prisma"]
    with pytest.raises(FormatError, match="trust_pickle=True"):
        load(tmp_path / "n_images_1.pt")
    same_function(load(tmp_path / "n_images_1.pt", trust_pickle=True), random_dictionary("relu"))


# ------------------------------------------------------------------ files that are not what they should be


@pytest.fixture
def saelens(tmp_path: Path) -> Path:
    return export_dictionary(random_dictionary("jump_relu"), tmp_path / "sae", format="saelens")


def edit(folder: Path, **settings: Any) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, **settings}))


def edit_weights(folder: Path, **tensors: Tensor | None) -> None:
    path = folder / "sae_weights.safetensors"
    found = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path)


def test_truncated_weights_are_named(saelens: Path):
    weights = saelens / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"sae_weights\.safetensors cannot be read"):
        load(saelens)


def test_missing_unknown_and_misshapen_tensors_are_named(saelens: Path):
    threshold = load_file(saelens / "sae_weights.safetensors")["threshold"]
    edit_weights(saelens, threshold=None)
    with pytest.raises(FormatError, match="lacks threshold"):
        load(saelens)
    edit_weights(saelens, threshold=threshold, W_skip=torch.zeros(8, 8))
    with pytest.raises(FormatError, match="W_skip"):
        load(saelens)
    edit_weights(saelens, threshold=threshold[:-1], W_skip=None)
    with pytest.raises(FormatError, match=r"threshold is \(23,\); expected \(24\)"):
        load(saelens)
    edit_weights(saelens, threshold=torch.full((24,), torch.nan))
    with pytest.raises(FormatError, match="NaN"):
        load(saelens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "matching_pursuit"}, "architecture 'matching_pursuit'"),
        ({"normalize_activations": "of_the_future"}, "normalize_activations='of_the_future'"),
        ({"d_sae": 32}, "expected"),
        ({"metadata": {"sae_lens_version": "5.9"}, "activation_fn": "tanh-relu"}, "tanh-relu"),
    ],
)
def test_settings_that_are_unknown_or_do_not_fit_are_named(saelens: Path, settings: Any, message: str):
    edit(saelens, **settings)
    with pytest.raises(FormatError, match=message):
        load(saelens)


def test_settings_that_are_no_json_are_named(saelens: Path):
    (saelens / "cfg.json").write_text('{"d_in": 8,')
    with pytest.raises(FormatError, match=r"cfg\.json cannot be read as JSON"):
        load(saelens)
    (saelens / "cfg.json").write_text("[1, 2]")
    with pytest.raises(FormatError, match="holds a list"):
        load(saelens)


def test_a_newer_version_of_ours_is_refused(tmp_path: Path):
    random_dictionary("top_k").save(tmp_path / "d")
    header = json.loads((tmp_path / "d" / "dictionary.json").read_text())
    (tmp_path / "d" / "dictionary.json").write_text(json.dumps({**header, "version": 999}))
    with pytest.raises(FormatError, match="Update nb_sae"):
        load(tmp_path / "d")


def test_directories_from_before_version_6_are_read(tmp_path: Path):
    dictionary = random_dictionary("top_k", budgets=(4,))
    folder = export_dictionary(dictionary, tmp_path / "old", format="saelens")
    flat = {"d_in": 8, "d_sae": 24, "hook_point": "blocks.3.hook_mlp_out", "model_name": "gpt2", "dtype": "float32"}
    flat |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(flat))
    old = load(folder)
    same_function(old, dictionary)
    assert old.site == "blocks.3.hook_mlp_out"


def test_thresholds_kept_as_logarithms_are_read(saelens: Path):
    before = load(saelens)
    assert before.threshold is not None
    edit_weights(saelens, threshold=None, log_threshold=before.threshold.log())
    same_function(load(saelens), before)


def test_a_scale_that_is_missing_is_told(saelens: Path):
    edit(saelens, normalize_activations="expected_average_only_in")
    with pytest.warns(UserWarning, match="does not hold the statistics"):
        load_dictionary(saelens, verbose=False)


def test_sparsify_kinds_that_would_lose_a_part_are_refused(tmp_path: Path):
    folder = export_dictionary(random_dictionary("top_k"), tmp_path / "sae", format="sparsify")
    for changed in ({"activation": "groupmax"}, {"skip_connection": True}, {"d_in": 9}):
        cfg = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps({**cfg, **changed}))
        with pytest.raises(FormatError):
            load(folder)
        (folder / "cfg.json").write_text(json.dumps(cfg))
    load(folder)


def test_a_rule_that_nobody_stated_is_told(tmp_path: Path):
    source = PEERS / "overcomplete" / "TopKSAE" / "sae.pth"
    with pytest.warns(UserWarning, match="saves no k"):
        dictionary = load_dictionary(source, verbose=False)
    assert dictionary.sparsity == "relu"
    state = torch.load(source, weights_only=True)
    hidden = {**state, "encoder.mlp_blocks.0.0.weight": torch.eye(8)}
    torch.save(hidden, tmp_path / "sae.pth")
    with pytest.raises(FormatError, match="does not know"):
        load(tmp_path / "sae.pth")


# ------------------------------------------------------------------ finding the files


def test_folders_files_and_subfolders_are_found(tmp_path: Path):
    dictionary = random_dictionary("top_k")
    for layer in (1, 2):
        export_dictionary(dictionary, tmp_path / "run" / f"layers.{layer}", format="sparsify")
    with pytest.raises(FormatError, match=r"several dictionaries: 'layers\.1', 'layers\.2'.*subfolder="):
        load(tmp_path / "run")
    same_function(load(tmp_path / "run", subfolder="layers.1"), dictionary)
    same_function(load(tmp_path / "run" / "layers.2" / "sae.safetensors"), dictionary)
    same_function(load(tmp_path / "run" / "layers.2" / "cfg.json", format="sparsify"), dictionary)
    export_dictionary(dictionary, tmp_path / "one" / "deep" / "er", format="saelens")
    same_function(load(tmp_path / "one"), dictionary)
    export_dictionary(dictionary, tmp_path / "files" / "any.pth", format="overcomplete")
    same_function(load(tmp_path / "files"), dictionary)
    same_function(load(tmp_path / "files", format="overcomplete"), dictionary)


def test_what_is_no_dictionary_is_named(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FormatError, match=r"it holds notes\.txt"):
        load(tmp_path)
    torch.save({"optimizer": {}}, tmp_path / "state.pt")
    with pytest.raises(FormatError, match=r"no known format.*it holds optimizer"):
        load(tmp_path / "state.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "alone.safetensors")
    with pytest.raises(FormatError, match="missing beside it"):
        load(tmp_path / "alone.safetensors")
    (tmp_path / "junk.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(FormatError, match="damaged or holds Python objects"):
        load(tmp_path / "junk.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(FormatError, match="damaged"):
        load(tmp_path / "empty.pth")
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump({"a": 1}, file)
    with pytest.raises(FormatError):
        load(tmp_path / "plain.pkl")
    with pytest.raises(InputNotFoundError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Closest: sparsify"):
        load(tmp_path, format="sparsfy")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="on this machine"):
        load(tmp_path, revision="main")


def test_the_public_names_are_there():
    assert ns.load_dictionary is load_dictionary
    assert ns.export_dictionary is export_dictionary
    assert ns.push_to_hub is push_to_hub


# ------------------------------------------------------------------ the Hub


def test_a_local_folder_gets_what_a_repository_would(tmp_path: Path):
    dictionary = random_dictionary("batch_top_k")
    where = push_to_hub(dictionary, str(tmp_path / "hub"), subfolder="layer.3")
    assert where == str(tmp_path / "hub")
    same_function(load(tmp_path / "hub", subfolder="layer.3"), dictionary)


def test_offline_is_said_clearly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputNotFoundError, match="no connection to the Hugging Face Hub"):
        load("nobody/nothing-of-the-kind")
    with pytest.raises(InputNotFoundError, match="no connection to the Hugging Face Hub"):
        push_to_hub(random_dictionary("relu"), "nobody/nothing-of-the-kind")
    with pytest.raises(ConfigError, match="owner/name"):
        push_to_hub(random_dictionary("relu"), "nothing")


EXCHANGE = """
import sys
import torch
from peers.exchange import random_dictionary, rows
from nb_sae.errors import NbSaeError
from nb_sae.sae.formats import load_dictionary, push_to_hub

first, second = random_dictionary("top_k"), random_dictionary("relu", seed=5)
print(push_to_hub(first, "me/sae"))
print(push_to_hub(first, "me/sae", format="saelens", subfolder="layer.1"))
assert torch.equal(load_dictionary("me/sae").encode(rows()), first.encode(rows()))
push_to_hub(second, "me/sae", message="again")
assert torch.equal(load_dictionary("me/sae").encode(rows()), second.encode(rows()))
assert load_dictionary("me/sae", subfolder="layer.1").provenance["imported_from"]["format"] == "saelens"
push_to_hub(first, "me/sae", revision="v2")
assert torch.equal(load_dictionary("me/sae", revision="v2").encode(rows()), first.encode(rows()))
assert torch.equal(load_dictionary("me/sae").encode(rows()), second.encode(rows()))
push_to_hub(first, "me/many", subfolder="a")
push_to_hub(first, "me/many", subfolder="b")
for repo, options in (("me/none", {}), ("me/sae", {"revision": "v9"}), ("me/sae", {"subfolder": "c"}), ("me/many", {})):
    try:
        load_dictionary(repo, **options)
    except NbSaeError as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_push_and_load_through_a_hub_on_this_machine(tmp_path: Path):
    """In a process of its own: huggingface_hub reads its address when it is imported."""
    with hub_server() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        environment |= {"HF_TOKEN": "hf_planted", "HF_HUB_DISABLE_XET": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(ns.__file__).parent.parent), str(Path(__file__).parent)])
        done = subprocess.run(
            [sys.executable, "-c", EXCHANGE], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for expected in (
        "read as nb_sae",
        "InputNotFoundError: me/none does not exist on the Hugging Face Hub",
        "me/sae has no revision 'v9'",
        "me/sae holds no 'c'. It holds 'layer.1'",
        "FormatError: me/many holds several dictionaries: 'a', 'b'",
    ):
        assert expected in done.stdout
    names = hub.repositories["me/sae"]["main"]
    assert sum(name.startswith("dictionary-") for name in names) == 1  # the weights of the first push are gone
    assert b"ns.load_dictionary('me/sae')" in names["README.md"]
    fetched = [one for one in hub.requests if one.startswith("GET /me/sae/resolve/")]
    assert not any("README" in one for one in fetched)
