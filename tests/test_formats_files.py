"""Promises of nb_sae.sae.formats about files: pickles, damage, foreign files, finding them, and the Hub."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import hub_server
from peers.exchange import load, random_dictionary, same_function
from safetensors.torch import load_file, save_file
from torch import Tensor

import nb_sae as ns
from nb_sae.errors import ConfigError, FormatError, InputNotFoundError
from nb_sae.sae.formats import export_dictionary, load_dictionary, push_to_hub

PEERS = Path(__file__).parent / "fixtures" / "peers"


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


def test_a_k_or_threshold_that_the_file_contradicts_is_refused(tmp_path: Path):
    folder = export_dictionary(random_dictionary("top_k"), tmp_path / "a", format="saelens")
    with pytest.raises(ConfigError, match="states k=4"):
        load(folder, k=2)
    with pytest.raises(ConfigError, match="is 'top_k'"):
        load(folder, threshold=0.5)
    folder = export_dictionary(random_dictionary("relu"), tmp_path / "b", format="sparsify", k=3)
    same_function(load(folder, k=3), load(folder))
    one = random_dictionary("batch_top_k", one_threshold=True)
    folder = export_dictionary(one, tmp_path / "c", format="dictionary_learning")
    with pytest.raises(ConfigError, match="holds its own"):
        load(folder, threshold=0.5)


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
