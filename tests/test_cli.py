"""The command `nb-sae`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from report_pages import code, markdown, notebook, read_page, saved

from nb_sae import cli
from nb_sae.errors import ConfigError


def test_report_command_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = saved(tmp_path, notebook(markdown("# Hello"), code("x = 1")))
    assert cli.main(["report", str(path), "-o", str(tmp_path / "out" / "page.html"), "--code", "fold"]) == 0
    printed = capsys.readouterr().out
    assert "page.html  (0.0 MB)" in printed
    assert "page.ipynb" in printed
    assert "Hello" in read_page(tmp_path / "out" / "page.html").text


def test_failed_notebook_gives_exit_code_one_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = saved(tmp_path, notebook(code("# Divide\n1 / 0")))
    assert cli.main(["report", str(path), "--execute"]) == 1
    captured = capsys.readouterr()
    assert "[1/1] Divide" in captured.out
    assert "FAILED" in captured.out
    assert "cell 1 failed: ZeroDivisionError" in captured.err
    assert "ZeroDivisionError" in read_page(tmp_path / "made.html").text


def test_known_errors_are_one_message_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["report", str(tmp_path / "nowhere.ipynb")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nb-sae: ")
    assert error.count("\n") == 1
    assert cli.main(["demo", "--images", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_unexpected_errors_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_report", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["report", str(tmp_path / "x.ipynb")])


def test_demo_executes_the_shipped_notebook_with_what_was_asked(tmp_path: Path, monkeypatch, capsys):
    names = "MODEL = 'demo'\nPRETRAINED = None\nIMAGES = None\nN_INPUTS = 4000\nTRAIN_ROWS = None\nRUNS = 'runs'"
    shipped = notebook(
        markdown("# Demo"), code(names, tags=("parameters",)), code("print(MODEL, N_INPUTS, IMAGES is None, RUNS)")
    )
    (tmp_path / "shipped").mkdir()
    path = saved(tmp_path / "shipped", shipped, "01_interpret_clip.ipynb")
    monkeypatch.setattr(cli, "_shipped_notebook", lambda name: path if name == path.name else None)
    out = tmp_path / "reports"
    assert cli.main(["demo", "--model", "ViT-B-32", "--quick", "--rows", "9", "--out", str(out)]) == 0
    assert (
        "Executing 01_interpret_clip.ipynb with N_INPUTS=600, TRAIN_ROWS=9, MODEL='ViT-B-32'" in capsys.readouterr().out
    )
    assert sorted(entry.name for entry in out.iterdir()) == ["01_interpret_clip.html", "01_interpret_clip.ipynb"]
    assert "ViT-B-32 600 True runs/01-ViT_B_32-600" in read_page(out / "01_interpret_clip.html").text


def test_demo_runs_of_other_models_have_folders_of_their_own(tmp_path: Path):
    def runs(*words: str) -> str:
        arguments = cli._parser().parse_args(["demo", *words])
        return cli._demo_parameters(arguments, runs=tmp_path)["RUNS"]

    assert len({runs(), runs("--quick"), runs("--model", "ViT-B-32"), runs("--notebook", "02")}) == 4
    assert runs("--inputs", "5") == runs("--inputs", "5")
    assert runs("--rows", "5") == runs()  # the same store, trained on for longer
    for folder in ("one/faces", "two/faces"):
        (tmp_path / folder).mkdir(parents=True)
    assert runs("--images", str(tmp_path / "one/faces")) != runs("--images", str(tmp_path / "two/faces"))


def test_shipped_notebooks_are_found():
    for name in cli._NOTEBOOKS.values():
        assert cli._shipped_notebook(name).is_file()


@pytest.mark.parametrize("words", [["demo", "--inputs", "0"], ["demo", "--notebook", "99"], ["report"], []])
def test_bad_arguments_are_refused(words: list[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2


def test_doctor_command_tells_problems_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from nb_sae.diagnosis import Check, Diagnosis

    diagnosis = Diagnosis((Check("x", "bad", "problem", "pip install y"),))
    monkeypatch.setattr(import_module("nb_sae.diagnosis"), "doctor", lambda: diagnosis)
    assert cli.main(["doctor"]) == 1
    assert "→ pip install y" in capsys.readouterr().out


def test_command_starts_without_torch():
    program = (
        "import sys; from nb_sae.cli import main\ntry: main(['--version'])\nfinally: print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert result.stdout.split()[-1] == "False"


def test_errors_of_the_library_reach_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(_: object) -> int:
        raise ConfigError("k=9 is too large. Lower k.")

    monkeypatch.setattr(cli, "_doctor", refuse)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "nb-sae: k=9 is too large. Lower k.\n"
