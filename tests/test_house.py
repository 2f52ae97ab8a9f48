"""Rules of the house that no other tool holds: what may stand in a tracked file."""

from __future__ import annotations

import json
import re
import subprocess
import warnings
from pathlib import Path

import nbformat
import pytest

import nb_sae

ROOT = Path(__file__).resolve().parent.parent
TEXT = {".py", ".md", ".toml", ".json", ".ts", ".mjs", ".css", ".html", ".sh", ".ipynb", ".txt", ".npmrc", ".cfg", ""}
LONG_FILE_LINES = 400

# A home or a scratch folder of one machine. `/path/to/…` and other invented examples are fine.
MACHINE_PATH = re.compile(
    r"(?<![\w./~-])/(?:root|home/[a-z]\w+|Users/[A-Za-z]\w+|work|tmp/[a-z]\w+|farm|mnt/[a-z]\w+)/(?=[\w.-])"
)
REGISTRY = re.compile(
    r"https?://(?!registry\.npmjs\.org/)[\w.:-]*(?:pypi|npm|registry|artifactory|nexus|mirror)[\w.:/-]*"
)
ALLOWED_REGISTRY = re.compile(r"https?://(?:pypi\.org/project|www\.npmjs\.com/package)/")


def tracked_files() -> list[Path]:
    """Files that git tracks, or, in an unpacked source archive, that would be."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    """(name, content) of every tracked text file."""
    return [
        (path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8", errors="replace"))
        for path in tracked_files()
        if path.suffix in TEXT
    ]


def offences(pattern: re.Pattern[str], *, allowed: re.Pattern[str] | None = None) -> list[str]:
    return [
        f"{name}: {found.group(0)}"
        for name, content in texts()
        if name != "tests/test_house.py"
        for found in pattern.finditer(content)
        if allowed is None or not allowed.match(found.group(0))
    ]


def test_tracked_files_name_no_path_of_one_machine():
    assert offences(MACHINE_PATH) == []


def test_tracked_files_name_no_package_registry_but_the_public_npm_one():
    assert offences(REGISTRY, allowed=ALLOWED_REGISTRY) == []


@pytest.mark.parametrize("text", ["see /home/ann/data/x", "'/root/.cache/x'", "/tmp/abc/d", "/Users/bob/x"])
def test_machine_path_rule_sees_a_planted_path(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["/path/to/celeba", "https://x.org/home/ann/", "../work/x", "runs/tmp/abc/"])
def test_machine_path_rule_leaves_examples_and_addresses_alone(text):
    assert not MACHINE_PATH.search(text)


def test_lock_file_resolves_nothing_from_a_private_registry():
    lock = json.loads((ROOT / "widgets_js" / "package-lock.json").read_text())
    hosts = {
        package["resolved"].split("/")[2]
        for package in lock["packages"].values()
        if package.get("resolved", "").startswith("http")
    }
    assert hosts <= {"registry.npmjs.org"}


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_tutorials_are_there():
    assert {path.name for path in notebooks()} >= {
        "01_interpret_clip.ipynb",
        "02_interpret_language_model.ipynb",
        "03_concepts_and_steering.ipynb",
        "04_concept_bias_celeba.ipynb",
        "07_train_and_compare.ipynb",
    }


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_committed_notebook_is_valid_and_shows_on_github(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # GitHub refuses a notebook whose widget metadata has no state, and renders worse with state than without.
    assert "widgets" not in notebook.metadata
    errors = [
        f"cell {number}: {output.ename}"
        for number, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert errors == []


def test_changelog_names_the_version_of_the_package():
    versions = re.findall(r"^## \[?v?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions
    assert versions[0] == nb_sae.__version__


def test_no_code_file_is_left_unread_for_its_length():
    """Long files are named, not refused: where to cut is a judgement."""
    long = {
        name: content.count("\n")
        for name, content in texts()
        if name.endswith((".py", ".ts")) and content.count("\n") > LONG_FILE_LINES
    }
    for name, lines in long.items():
        warnings.warn(f"{name} has {lines} lines, the house asks for about {LONG_FILE_LINES}", stacklevel=1)
    assert all(lines < 3 * LONG_FILE_LINES for lines in long.values()), long
