"""Asking for a PDF where there is no browser, or one that fails. That a real one prints is tested with a browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from report_pages import code, markdown, notebook, read_page, saved, stream

import nb_sae as ns
from nb_sae.cli import main
from nb_sae.errors import MissingDependencyError, PathExistsError, ReportError
from nb_sae.reporting import browser


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(browser.NAMED_BY, raising=False)
    monkeypatch.setattr(browser, "_PLACES", ())
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)


def test_without_a_browser_it_says_what_to_install_before_anything_is_executed(tmp_path: Path, no_browser):
    path = saved(tmp_path, notebook(code("open('ran', 'w').write('x')")))
    with pytest.raises(MissingDependencyError, match=r"Chromium, Chrome or Edge.*NB_SAE_CHROMIUM.*print it") as told:
        ns.report(path, execute=True, pdf=True, progress=False)
    assert isinstance(told.value, ImportError)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["made.ipynb"]


def test_a_name_that_cannot_be_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv(browser.NAMED_BY, str(tmp_path / "nowhere"))
    path = saved(tmp_path, notebook(code("1")))
    assert main(["report", str(path), "--pdf"]) == 2
    assert "cannot be run" in capsys.readouterr().err
    assert not (tmp_path / "made.html").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for the browser")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no screen here >&2; exit 3", "did not start. It said: no screen here"),
        ("echo DevTools listening on ws://127.0.0.1:9/devtools >&2; exec sleep 1", "did not answer"),
    ],
)
def test_a_browser_that_fails_takes_nothing_of_the_report_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
):
    fake = tmp_path / "browser"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv(browser.NAMED_BY, str(fake))
    path = saved(tmp_path, notebook(markdown("# Kept"), code("1", stream("one"))))
    with pytest.raises(ReportError, match=f"{said}.*written: .*made.html"):
        ns.report(path, pdf=True)
    assert "Kept" in read_page(tmp_path / "made.html").text
    assert (tmp_path / "made.shared.ipynb").is_file()
    assert not (tmp_path / "made.pdf").exists()


def test_a_pdf_that_exists_is_not_written_over_unless_told(tmp_path: Path):
    path = saved(tmp_path, notebook(code("1")))
    (tmp_path / "made.pdf").write_text("mine")
    with pytest.raises(PathExistsError, match=r"made\.pdf exists already"):
        ns.report(path, pdf=True, overwrite=False)
    assert (tmp_path / "made.pdf").read_text() == "mine"
    assert not (tmp_path / "made.html").exists()


def test_browser_is_found_by_name_and_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(browser.NAMED_BY, raising=False)
    monkeypatch.setattr(browser.shutil, "which", lambda name: f"/bin/{name}" if name == "google-chrome" else None)
    assert browser.find_browser() == "/bin/google-chrome"
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    chrome = tmp_path / "Google" / "Chrome" / "Application" / "chrome.exe"
    chrome.parent.mkdir(parents=True)
    chrome.touch()
    monkeypatch.setenv("PROGRAMFILES", str(tmp_path))
    monkeypatch.setattr(
        browser, "_PLACES", ("{NOT_SET_HERE}/chrome.exe", "{PROGRAMFILES}/Google/Chrome/Application/chrome.exe")
    )
    assert browser.find_browser() == str(chrome)
    assert "NOT_SET_HERE" not in os.environ
