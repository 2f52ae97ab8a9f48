"""Stock nbconvert, and viewers made of it: what is seen when their scripts cannot be fetched, or when none may run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bleach
import nbformat
import pytest
from executed import PICTURES, ROOT, SETUP, SUMMARY, executed
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from page_log import PageLog
from playwright.sync_api import Browser, Locator, Page, expect

import nb_sae as ns

# What GitHub and others leave of the HTML that a cell wrote, from what people report (docs/hosts.md): no script, no
# style, no mark of ours, and no address but the web's.
TAGS = {"div", "span", "p", "a", "b", "strong", "em", "code", "pre", "img", "table", "tbody", "thead", "tr", "td", "th"}
ATTRIBUTES = {"img": ["alt", "src", "width", "height"], "a": ["href"]}


def sanitised(notebook: NotebookNode, path: Path) -> Path:
    """Write a page as such a viewer makes it: nbconvert's choice of outputs, the HTML among them sanitised."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = bleach.clean(data["text/html"], TAGS, ATTRIBUTES, {"http", "https"}, strip=True)
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    path.write_text(f"<!doctype html><meta charset=utf-8><title>viewer</title>{page}", encoding="utf-8")
    return path


@pytest.fixture
def scriptless(browser: Browser) -> Iterator[Page]:
    """A page in which no script runs."""
    context = browser.new_context(java_script_enabled=False)
    yield context.new_page()
    context.close()


def opened(page: Page, log: PageLog, path: Path) -> None:
    """Open with every request but the page itself refused."""
    log.cut_off(path.as_uri())
    page.goto(path.as_uri(), wait_until="load")


def expect_picture(picture: Locator) -> None:
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.complete && image.naturalWidth >= 900 && image.width > 300")


def outputs(page: Page) -> list[str]:
    """What the outputs of the two dashboards say in words, a picture by its description."""
    return page.locator(".jp-OutputArea-output, .output_subarea").all_inner_texts()


def test_nbconvert_command_leaves_a_page_with_pictures_and_words(page: Page, log: PageLog, tmp_path: Path):
    """`jupyter nbconvert --execute --to html`, as documented, without what comes from the network."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in (SETUP, PICTURES)])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "html", "one.ipynb"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    opened(page, log, tmp_path / "one.html")
    expect_picture(page.locator("[data-nbsae] img"))
    assert any("html-manager" in address for address in log.requests)  # what it needs and did not get


@pytest.mark.parametrize("state", [True, False], ids=["with-state", "without-state"])
def test_nbconvert_page_without_its_libraries_shows_every_picture(
    page: Page, log: PageLog, tmp_path: Path, screens: Path, state: bool
):
    written, _ = HTMLExporter().from_notebook_node(executed(state=state))
    path = tmp_path / "page.html"
    path.write_text(written, encoding="utf-8")
    opened(page, log, path)
    for number in range(2):
        expect_picture(page.locator("[data-nbsae] img").nth(number))
    words = " ".join(outputs(page))
    assert (SUMMARY in words) is not state  # with a state nbconvert chooses the widget, and that stays empty
    page.screenshot(path=screens / f"nbconvert-{state}.png", full_page=True)
    assert [error for error in log.errors if "ERR_FAILED" not in error] == []


def test_shared_notebook_of_a_report_keeps_every_picture_in_a_viewer_that_sanitises(scriptless: Page, tmp_path: Path):
    nbformat.write(executed(state=True), tmp_path / "source.ipynb")
    ns.report(tmp_path / "source.ipynb", tmp_path / "shared.html", progress=False)
    shared = nbformat.read(tmp_path / "shared.ipynb", as_version=4)
    nbformat.validate(shared)
    assert "widgets" not in shared.metadata  # without a state GitHub refuses it, with one it leaves the cell blank
    assert (tmp_path / "shared.ipynb").stat().st_size <= 3e6
    scriptless.goto(sanitised(shared, tmp_path / "viewer.html").as_uri())
    pictures = scriptless.locator("img")
    expect(pictures).to_have_count(2)
    for number in range(2):
        expect_picture(pictures.nth(number))


@pytest.mark.parametrize("state", [True, False], ids=["with-state", "without-state"])
def test_notebook_as_jupyterlab_saved_it_keeps_its_words_in_a_viewer_that_sanitises(
    scriptless: Page, tmp_path: Path, state: bool
):
    """The picture needs `data:`; where a viewer strips that, its description is what is left."""
    scriptless.goto(sanitised(executed(state=state), tmp_path / "viewer.html").as_uri())
    expect(scriptless.get_by_role("img", name=re.compile(SUMMARY))).to_be_visible()
