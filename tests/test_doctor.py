"""The doctor: what it looks at, and that each problem comes with one line that repairs it."""

from __future__ import annotations

import json
from collections import namedtuple
from importlib import import_module
from pathlib import Path

import pytest

import nb_sae as ns
from nb_sae import __version__
from nb_sae.diagnosis import (
    Check,
    Diagnosis,
    _built_files,
    _disk,
    _same_generation,
    _same_minor,
    _widget_bridge,
    extension_version,
)

DOCTOR = import_module("nb_sae.diagnosis")


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Jupyter data path of its own; call it to install an extension there."""

    def install(name: str, version: str) -> None:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))

    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *_: [str(tmp_path / "empty"), str(tmp_path)])
    return install


def versions(monkeypatch: pytest.MonkeyPatch, **known: str) -> None:
    monkeypatch.setattr(DOCTOR, "version_of", known.get)


def test_doctor_names_every_part():
    diagnosis = ns.doctor()
    topics = " ".join(check.topic for check in diagnosis.checks)
    for part in (
        "Python",
        "nb_sae",
        "torch",
        "open_clip",
        "transformer_lens",
        "CPU",
        "GPU",
        "anywidget",
        "ipywidgets",
        "disk",
    ):
        assert part in topics or (part == "GPU" and "CUDA" in topics)
    assert __version__ in str(diagnosis)
    assert all(check.fix for check in diagnosis.problems)
    assert all("\n" not in check.fix for check in diagnosis.checks)


def test_diagnosis_is_text_in_a_terminal_and_a_table_in_a_notebook():
    diagnosis = Diagnosis((Check("disk <b>", "full", "problem", "free some"), Check("torch", "2.0")))
    assert "✗ disk <b>  full" in str(diagnosis)
    assert "→ free some" in str(diagnosis)
    assert "1 problem found." in repr(diagnosis)
    assert "<b>" not in diagnosis._repr_html_()
    assert [check.topic for check in diagnosis.problems] == ["disk <b>"]
    assert Diagnosis(()).verdict == "Nothing is wrong."


def test_both_sides_of_the_widget_bridge_are_compared(extensions, monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, anywidget="0.11.0", ipywidgets="8.1.9", jupyterlab="4.6.0")
    extensions("anywidget", "0.11.2")
    extensions("@jupyter-widgets/jupyterlab-manager", "5.0.16")
    assert [check.level for check in _widget_bridge()] == ["ok", "ok"]
    extensions("anywidget", "0.9.3")
    old, _ = _widget_bridge()
    assert old.level == "problem"
    assert "0.11.0 ↔ 0.9.3" in old.found
    assert "pip install anywidget==0.11.0" in old.fix
    assert "reload the browser tab" in old.fix


def test_missing_extension_matters_where_jupyterlab_is(extensions, monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, anywidget="0.11.0", ipywidgets="8.1.9", jupyterlab="4.6.0")
    assert [check.level for check in _widget_bridge()] == ["problem", "problem"]
    versions(monkeypatch, anywidget="0.11.0", ipywidgets="8.1.9")
    assert [check.level for check in _widget_bridge()] == ["note", "note"]
    versions(monkeypatch)
    assert [check.fix for check in _widget_bridge()] == ["pip install anywidget", "pip install ipywidgets"]


def test_broken_extension_file_counts_as_missing(extensions, tmp_path: Path):
    extensions("anywidget", "0.11.0")
    assert extension_version("anywidget") == "0.11.0"
    (tmp_path / "anywidget" / "package.json").write_text("{broken")
    assert extension_version("anywidget") is None


def test_versions_fit_by_minor_and_by_generation():
    assert _same_minor("0.11.0", "0.11.9")
    assert not _same_minor("0.11.0", "0.9.1")
    assert _same_generation("8.1.9", "5.0.16")
    assert _same_generation("7.7.1", "3.1.0")
    assert not _same_generation("8.1.9", "3.1.0")


def test_scripts_that_are_not_built_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DOCTOR, "files", lambda _: tmp_path)
    found = {check.topic: check for check in _built_files()}
    assert found["dashboards"].level == "problem"
    assert "make widgets" in found["dashboards"].fix
    assert found["demo CLIP"].level == "problem"


@pytest.mark.parametrize(("free", "level"), [(5e8, "problem"), (3e9, "note"), (9e10, "ok")])
def test_little_disk_is_said(free: float, level: str, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1e12, 0, free))
    (check,) = _disk()
    assert check.level == level
