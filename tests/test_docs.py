"""The documentation: its parts refuse what is wrong, and what its examples call exists as they call it."""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import nb_sae as ns
import nb_sae.sae.training

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)


def script(name: str) -> ModuleType:
    """A module of scripts/docs."""
    folder = str(ROOT / "scripts" / "docs")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def blocks(page: Path) -> list[str]:
    return [textwrap.dedent(found["code"]) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two sound pages, a style and a picture."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="here">x</h1><a href="deep/page.html#part">a</a><a href="#here">b</a><img src="p.png">'
        '<a href="https://arxiv.org/abs/2502.20578">c</a><link rel="stylesheet" href="s.css"><a href="data:,x">d</a>'
    )
    (tmp_path / "deep" / "page.html").write_text('<p id="part"></p><a href="../index.html">up</a><a href="..">up</a>')
    (tmp_path / "s.css").write_text("a { background: url(p.png) }")
    (tmp_path / "p.png").write_bytes(b"")
    return tmp_path


def test_a_sound_site_has_no_problem(site):
    assert script("links").check_site(site) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('<a href="none.html">', "no such file"),
        ('<a href="deep/page.html#none">', "no such anchor"),
        ('<a href="#none">', "no such anchor"),
        ('<a href="../../x.html">', "outside the site"),
        ('<a href="http:/x">', "no address of a page"),
        ('<img src="https://example.org/x.png">', "loaded from another site"),
        ('<script src="//example.org/x.js"></script>', "loaded from another site"),
        ('<link rel="preconnect" href="https://fonts.example.org">', "loaded from another site"),
        ('<iframe src="none.html"></iframe>', "no such file"),
        ('<img srcset="p.png 1x, none.png 2x">', "no such file"),
        ('<style>@import "https://example.org/x.css";</style>', "loaded from another site"),
        ('<p style="background: url(https://example.org/x.png)">', "loaded from another site"),
    ],
)
def test_a_link_that_leads_nowhere_is_named(site, text, why):
    (site / "bad.html").write_text(text)
    (problem,) = script("links").check_site(site)
    assert problem.startswith("bad.html: ")
    assert problem.endswith(why)


def test_a_style_sheet_that_loads_from_elsewhere_is_named(site):
    (site / "s.css").write_text("@font-face { src: url('https://example.org/font.woff2') }")
    assert script("links").check_site(site) == ["s.css: https://example.org/font.woff2: loaded from another site"]


def test_a_site_that_was_not_built_is_no_sound_site(tmp_path):
    (problem,) = script("links").check_site(tmp_path)
    assert "make docs" in problem


def test_blocks_and_the_views_they_give_are_read_in_order():
    text = "```python\na = 1\n```\n\n    ```python\n    b = 2\n    ```\n\n<!-- view: second 500 -->\n"
    found = script("pages").examples(text)
    assert [(one.source, one.view) for one in found] == [("a = 1", None), ("b = 2", "second")]


@pytest.mark.parametrize("text", ["<!-- view: x 5 -->", "```python\na\n```\n<!-- view: x 5 -->\n<!-- view: x 5 -->"])
def test_a_view_without_a_block_of_its_own_is_refused(text):
    pages = script("pages")
    with pytest.raises(pages.DocsError, match="has no block of its own"):
        pages.examples(text)


@pytest.mark.parametrize(
    ("code", "why"), [("1 / 0", "block 1: ZeroDivisionError"), ("3", "ends with no dashboard. Its last line has to be")]
)
def test_a_gallery_whose_code_gives_no_view_is_refused(tmp_path, code, why):
    page = tmp_path / "gallery.md"
    page.write_text(f"```python\n{code}\n```\n<!-- view: one 300 -->\n")
    pages = script("pages")
    with pytest.raises(pages.DocsError, match=why):
        pages.make_gallery(page, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "one.html").exists()


def test_a_tutorial_that_is_run_for_the_site_shows_what_it_computes_and_leads_back(tmp_path, monkeypatch):
    pages = script("pages")
    cells = [new_markdown_cell("# One\n\nNext: [two](02_two.ipynb)"), new_code_cell("print(6 * 7)")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_one.ipynb")
    monkeypatch.setattr(pages, "NOTEBOOKS", tmp_path)
    (page,) = pages.make_tutorials(tmp_path / "out", run=True)
    text = page.read_text(encoding="utf-8")
    assert ">42\n<" in text
    assert 'href="02_two.html"' in text
    assert 'href="../tutorials.html"' in text
    assert str(tmp_path) not in text


def test_links_between_notebooks_and_to_pages_lead_to_their_html():
    pages = script("pages")
    text = "[a](02_b.ipynb) [c](../docs/naming.md) [d](https://x.org/e.ipynb) [f](#part)"
    marked = pages._NEAR.sub(pages._marked, text)
    assert marked == "[a](#nbsae-tutorial-02_b) [c](#nbsae-page-naming) [d](https://x.org/e.ipynb) [f](#part)"
    shown = '<a href="#nbsae-tutorial-02_b">a</a><a href="#nbsae-page-naming">c</a>'
    assert pages._MARK.sub(pages._unmarked, shown) == '<a href="02_b.html">a</a><a href="../naming.html">c</a>'


def test_every_public_name_is_on_one_page_of_the_reference():
    reference = script("reference")
    listed = [name for names in reference.sections().values() for name in names]
    assert sorted(listed) == sorted(name for name in ns.__all__ if name != "__version__")
    text = "\n".join(reference.pages().values())
    assert [name for name in listed if f"::: nb_sae.{name}\n" not in text + "\n"] == []


def test_a_module_of_the_reference_shows_what_it_exports():
    reference = script("reference")
    assert sorted(reference._members("nb_sae.plots")) == sorted(ns.plots.__all__)
    assert sorted(reference._members("nb_sae.sae.metrics")) == sorted(ns.metrics.__all__)
    assert "NbSaeError" in reference._members("nb_sae.errors")


def test_the_reference_shows_every_command():
    text = script("reference").command_line()
    for command in ("demo", "collect", "train", "report", "doctor"):
        assert f"## nb-sae {command} " in text
    assert "--blur-images" in text


def test_scripts_stand_beside_their_budgets_and_their_sum(tmp_path):
    (tmp_path / "feature.js").write_bytes(b"x" * 41_000)
    (tmp_path / "feature.css").write_bytes(b"x" * 7_000)
    (tmp_path / "monitor.js").write_bytes(b"x" * 80_000)
    table = script("sizes").scripts_table(tmp_path)
    assert "| feature | 41.0 kB | 60.0 kB | 7.0 kB | 8.0 kB |" in table
    assert "| monitor | 80.0 kB | 90.0 kB | – | – |" in table
    assert "| **all scripts** | **121.0 kB** | **300.0 kB** |" in table


def test_where_no_script_is_built_there_is_no_table(tmp_path):
    assert script("sizes").scripts_table(tmp_path) == ""


@pytest.fixture
def page() -> SimpleNamespace:
    return SimpleNamespace(url="concepts/x.html", file=SimpleNamespace(src_uri="concepts/x.md"))


def shown(content: str, page: SimpleNamespace) -> str:
    return script("hooks").on_page_content(content, page, None, None)


def test_a_public_name_in_a_text_becomes_a_link_but_not_in_code_or_headings(page):
    link = '<a href="../reference/training.html#nb_sae.Session"><code>ns.Session(…)</code></a>'
    assert shown("<p><code>ns.Session(…)</code></p>", page) == f"<p>{link}</p>"
    for text in ("<pre><code>ns.Session</code></pre>", "<h2><code>ns.Session</code></h2>"):
        assert shown(text, page) == text


def test_a_name_that_is_not_public_ends_the_build(page, caplog):
    with caplog.at_level(logging.WARNING, "mkdocs"):
        shown("<code>ns.Sesion</code>", page)
    assert "ns.Sesion, which is no public name" in caplog.text


def test_a_formula_becomes_mathml_and_an_unreadable_one_ends_the_build(page, caplog):
    assert "<mfrac>" in shown(r'<span class="arithmatex">\(\frac{a}{b}\)</span>', page)
    assert 'display="block"' in shown(r'<div class="arithmatex">\[a &lt; b\]</div>', page)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "mkdocs"):
        shown(r'<span class="arithmatex">\(\unheard{a}\)</span>', page)
    assert "does not understand" in caplog.text


def calls(page: Path) -> list[tuple[str, list[str]]]:
    """Every `ns.…` that a page's examples use, with the keywords of its calls."""
    found = []
    for block in blocks(page):
        called = {}
        for node in ast.walk(ast.parse(block.replace("%pip", "# %pip"))):
            if isinstance(node, ast.Call):
                called[id(node.func)] = [keyword.arg for keyword in node.keywords if keyword.arg]
            if isinstance(node, ast.Attribute) and re.fullmatch(r"ns(\.\w+)+", ast.unparse(node)):
                found.append((ast.unparse(node), called.get(id(node), [])))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_call_what_exists_with_keywords_that_exist(path):
    wrong = []
    for name, keywords in calls(path):
        value: object = ns
        try:
            for part in name.split(".")[1:]:
                value = getattr(value, part)
        except AttributeError as error:
            wrong.append(f"{name}: {error}")
            continue
        if keywords and callable(value):
            taken = inspect.signature(value).parameters
            open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
            wrong += [f"{name}({word}=…)" for word in keywords if word not in taken and not open_ended]
    assert wrong == []


def test_a_wrong_keyword_in_an_example_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nns.analyze(a, b, imagez=3).latents\nns.plots.quality\n```\n")
    assert ("ns.analyze", ["imagez"]) in calls(page)
    assert "imagez" not in inspect.signature(ns.analyze).parameters


def test_the_quick_start_runs_as_it_stands(tmp_path, monkeypatch):
    source = "\n".join(blocks(ROOT / "docs" / "quickstart.md"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nb_sae.sae.training, "MIN_ROWS", 10_000)
    names: dict[str, object] = {}
    exec(compile(source.replace("4000", "300"), "docs/quickstart.md", "exec"), names)
    assert isinstance(names["dashboard"], ns.FeatureDashboard)
    assert names["analysis"].quality.height > 1


def test_every_page_of_a_concept_names_its_source_and_its_formula():
    for path in sorted((ROOT / "docs" / "concepts").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if path.stem in ("index", "rows", "dashboards"):  # what a row is and where a view lies have neither
            continue
        assert re.search(r"^\*\*Sources?\.\*\*", text, flags=re.MULTILINE), path.stem
        assert "$" in text, path.stem
