"""The exchange with other libraries through files, run by `make test-peers`; not collected by `make test`.

Theirs: each library writes dictionaries and the latents that it gives; we read the files and give the same.
Ours: we export every kind of dictionary; each library's own loader reads it and gives the same.
"""

from __future__ import annotations

import json
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from peers.exchange import Exported, exports, rows
from safetensors.torch import load_file, save_file

from nb_sae.sae.formats import load_dictionary

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent.parent / ".venv-peers" / "bin" / "python"
LIBRARIES = ("saelens", "dictionary_learning", "sparsify", "overcomplete")
TOLERANCE = 1e-5


def peer(what: str, folder: Path) -> None:
    done = subprocess.run([PYTHON, HERE / "peer_side.py", what, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    peer("write", folder)
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    folder = tmp_path_factory.mktemp("ours")
    written = list(exports(folder, LIBRARIES))
    for one in written:
        save_file({"x": rows()}, folder / one.format / one.name / "x.safetensors")
    peer("read", folder)
    return written


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_they_write_gives_their_latents_here(theirs: Path, library: str):
    cases = sorted(one for one in (theirs / library).iterdir() if one.is_dir())
    assert cases
    for case in cases:
        expected = load_file(case / "expected.safetensors")
        options = json.loads((case / "options.json").read_text()) if (case / "options.json").is_file() else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dictionary = load_dictionary(case, verbose=False, **options)
        assert (expected["latents"] > 0).any()
        torch.testing.assert_close(
            dictionary.encode(expected["x"]), expected["latents"], rtol=TOLERANCE, atol=TOLERANCE, msg=case.name
        )
        torch.testing.assert_close(
            dictionary.reconstruct(expected["x"]), expected["x_hat"], rtol=TOLERANCE, atol=TOLERANCE, msg=case.name
        )


def test_saelens_keeps_our_settings_when_it_saves_again(ours: list[Exported]):
    for one in ours:
        if one.format == "saelens":
            again = load_dictionary(one.path / "again", verbose=False)
            for name in ("sparsity", "budgets", "widths", "site", "target", "row_norm"):
                assert getattr(again, name) == getattr(one.dictionary, name), (one.name, name)
            torch.testing.assert_close(
                again.encode(rows()), one.dictionary.encode(rows()), rtol=TOLERANCE, atol=TOLERANCE
            )


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_we_write_gives_our_latents_there(ours: list[Exported], library: str):
    mine = [one for one in ours if one.format == library]
    assert mine
    x = rows()
    for one in mine:
        place = one.path if one.path.is_dir() else one.path.parent
        error = place / "error.txt"
        assert not error.exists(), f"{one.format}/{one.name}: {error.read_text()}"
        there = load_file(place / "expected.safetensors")
        label = f"{one.format}/{one.name}"
        torch.testing.assert_close(
            there["latents"],
            one.dictionary.encode(x),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            msg=lambda m, n=label: f"{n}: {m}",
        )
        torch.testing.assert_close(
            there["x_hat"],
            one.dictionary.reconstruct(x),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            msg=lambda m, n=label: f"{n}: {m}",
        )
    print(f"{library}: {len(mine)} kinds of dictionary read back")
