"""Promises of nb_sae.sae.formats: the latents of other libraries' files, and round trips.

`fixtures/peers` was written by the libraries themselves; `make test-peers` makes it anew and reads ours back there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers.exchange import CLOSE, D_SAE, dictionaries, exports, load, random_dictionary, rows, same_function
from safetensors.torch import load_file, save_file
from torch import Tensor

from nb_sae.errors import ConfigError, FormatError, PathExistsError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats import FORMATS, export_dictionary, load_dictionary

PEERS = Path(__file__).parent / "fixtures" / "peers"
CASES = sorted(one.relative_to(PEERS).as_posix() for one in PEERS.glob("*/*") if one.is_dir())


def load_case(case: str, **options: Any) -> tuple[Dictionary, dict[str, Tensor]]:
    beside = PEERS / case / "options.json"
    stated = json.loads(beside.read_text()) if beside.is_file() else {}
    return load(PEERS / case, **{**stated, **options}), load_file(PEERS / case / "expected.safetensors")


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
