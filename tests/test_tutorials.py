"""The tutorials as a set, as they are committed: framed alike, executed, and true to the names of the package."""

from __future__ import annotations

import ast
import copy
import re
import sys
import tomllib
import types
from functools import cache
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import nb_sae as ns

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LAST = "## Now with your own model and data"

tutorials = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem[:2])


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import frame_notebooks  # pyright: ignore[reportMissingImports]

    return frame_notebooks


@cache
def read(path: Path) -> nbformat.NotebookNode:
    """One that all tests share: change a copy."""
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]


def test_the_set_is_complete_and_in_order(frames):
    assert [tutorial.stem for tutorial in frames.TUTORIALS] == [path.stem for path in PATHS]
    assert [int(path.stem[:2]) for path in PATHS] == list(range(1, len(PATHS) + 1))
    assert all(tutorial.minutes <= 6 for tutorial in frames.TUTORIALS)


def test_every_frame_is_what_its_script_writes(frames, capsys):
    assert frames.main(["--check"]) == 0, f"{capsys.readouterr().out} Run: python scripts/frame_notebooks.py"


def test_a_frame_that_was_changed_is_written_again(frames):
    notebook = read(PATHS[1])
    changed = frames.framed(notebook, 1, "https://github.com/somebody/else")
    assert "github/somebody/else/blob/main/notebooks/02_" in changed.cells[0].source
    assert frames.framed(changed, 1, frames.repository()) == notebook


@tutorials
def test_badge_opens_this_notebook_of_the_repository_that_the_project_names(path):
    slug = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"colab\.research\.google\.com/github/([^)\"\\]+)", text) == [
        f"{slug}/blob/main/notebooks/{path.name}"
    ]


@tutorials
@pytest.mark.parametrize("on_colab", [True, False])
def test_first_cell_installs_on_colab_and_nothing_anywhere_else(path, on_colab, monkeypatch):
    asked: list[tuple[str, str]] = []
    kernel = types.SimpleNamespace(run_line_magic=lambda name, line: asked.append((name, line)))
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    source = TransformerManager().transform_cell(code(path)[0].source)
    exec(compile(source, path.name, "exec"), {"get_ipython": lambda: kernel})
    if not on_colab:
        assert asked == []
        return
    ((magic, line),) = asked
    found = re.fullmatch(r'install --quiet "?([a-z-]+)(?:\[(\w+)\])?"?', line)
    assert magic == "pip"
    assert found
    assert found[1] == PROJECT["name"]
    assert found[2] is None or found[2] in PROJECT["optional-dependencies"]


@tutorials
def test_tutorial_was_executed_from_top_to_bottom(path):
    assert [cell.execution_count for cell in code(path)] == list(range(1, len(code(path)) + 1))


@tutorials
def test_tutorial_begins_with_its_question_and_ends_with_the_readers_own_material(path):
    texts = prose(path)
    assert re.match(r"# [^\n]+\?\n", texts[1]), "the title asks what the notebook answers"
    assert texts[-1].startswith(LAST + "\n")
    assert texts[-2].startswith("## What this does not show\n")
    sections = re.findall(r"^## (\d+)\. ", "\n".join(texts), flags=re.MULTILINE)
    assert sections == [str(number + 1) for number in range(len(sections))]


@tutorials
def test_tutorial_names_only_what_the_package_has(path):
    named = {name for text in prose(path) for name in re.findall(r"\bns((?:\.[A-Za-z_]\w*)+)", text)}
    assert named
    missing = []
    for name in named:
        found = ns
        for part in name.strip(".").split("."):
            found = getattr(found, part, None)
        if found is None:
            missing.append(f"ns{name}")
    assert missing == []


@tutorials
def test_what_the_reader_is_told_to_change_is_there_to_be_changed(path):
    """Every name that the last section assigns is assigned by a cell."""
    cells = "\n".join(cell.source for cell in code(path)[1:])
    (block,) = re.findall(r"```python\n(.*?)```", prose(path)[-1], flags=re.DOTALL)
    names = {
        name.id
        for statement in ast.parse(block).body
        for name in ast.walk(statement)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    assigned = {
        name.id for name in ast.walk(ast.parse(cells)) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    assert names
    assert names <= assigned


@tutorials
def test_links_between_tutorials_lead_to_files(path):
    links = [link for text in prose(path) for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    assert links
    assert [link for link in links if not (path.parent / link).is_file()] == []


def test_badge_is_a_link_by_its_words_in_a_report_and_asks_for_nothing(tmp_path):
    notebook = copy.deepcopy(read(PATHS[0]))
    notebook.cells = notebook.cells[:2]
    nbformat.write(notebook, tmp_path / "made.ipynb")
    page = ns.report(tmp_path / "made.ipynb").read_text(encoding="utf-8")
    assert re.search(r'<a [^>]*href="https://colab[^"]*"[^>]*>Open in Colab</a>', page)
    assert "colab-badge.svg" not in page
