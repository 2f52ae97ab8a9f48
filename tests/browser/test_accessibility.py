"""Every dashboard in both themes under axe, in forced colours, and from the keyboard alone."""

from __future__ import annotations

from pathlib import Path

import axe
import nbformat
import pytest
from executed import executed
from kinds import KINDS
from lab import Lab
from mounted import MountPage
from page_log import PageLog
from playwright.sync_api import Locator, Page
from test_report_offline import opened

import nb_sae as ns

# What a theme changes; everything else is the same in both.
THEMED = ("color-contrast",)


def open_up(root: Locator) -> None:
    """Show what is folded, and the sheet of keys."""
    root.evaluate("root => root.querySelectorAll('details').forEach((one) => { one.open = true; })")
    root.get_by_role("button", name="Keys").click()


def in_both_themes(page: Page) -> list[str]:
    found = axe.findings(page, "#root")
    page.emulate_media(color_scheme="dark")
    found += [f"dark: {one}" for one in axe.findings(page, "#root", rules=THEMED)]
    page.emulate_media(color_scheme="light")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_serious_in_any_view_of_a_dashboard(page: Page, kind: str):
    root = MountPage(page).mount(KINDS[kind].make(), "live")
    open_up(root)
    found = {"first": in_both_themes(page)}
    page.keyboard.press("Escape")
    for view in KINDS[kind].views:
        root.get_by_role("button", name=view, exact=True).first.click()
        root.evaluate("root => root.querySelectorAll('details').forEach((one) => { one.open = true; })")
        page.evaluate("() => nbsae.frames()")
        found[view] = in_both_themes(page)
    assert {view: some for view, some in found.items() if some} == {}


def test_axe_finds_nothing_serious_in_a_report(page: Page, log: PageLog, tmp_path: Path):
    notebook = executed(state=True)
    cells = nbformat.v4.new_markdown_cell(
        "# A report\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n## A part\n\n[a link](#part)"
    )
    stream = nbformat.v4.new_output("stream", name="stderr", text="a warning")
    notebook.cells = [cells, nbformat.v4.new_code_cell("print('x')", outputs=[stream]), *notebook.cells]
    source = tmp_path / "source.ipynb"
    nbformat.write(notebook, source)
    opened(page, log, ns.report(source, tmp_path / "page.html", progress=False))
    found = axe.findings(page, "html")
    page.emulate_media(color_scheme="dark")
    assert found + axe.findings(page, "html", rules=THEMED) == []


LIVE = """
import nb_sae as ns
from widget_fakes import fake_analysis, fake_read
ns.FeatureDashboard(fake_analysis("text"), latent=2, read=fake_read)
"""


def test_axe_finds_nothing_serious_in_a_live_notebook_in_both_themes(page: Page, lab: Lab):
    lab.write("axe.ipynb", [LIVE])
    notebook = lab.open(page, "axe.ipynb")
    notebook.run(0)
    open_up(notebook.cell(0).locator(".nbs-feature"))
    for theme in ("JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast"):
        notebook.theme(theme)
        assert axe.findings(page, ".nbs-feature") == [], theme


def test_axe_finds_what_is_planted(page: Page):
    page.set_content("<!doctype html><html lang=en><main id=root><button></button><p>fine</p></main>")
    assert [one.split(":")[0] for one in axe.findings(page, "#root")] == ["button-name"]
    page.set_content("<!doctype html><html lang=en><main id=root><p style='color:#aaa'>pale</p></main>")
    assert [one.split(":")[0] for one in axe.findings(page, "#root", rules=THEMED)] == ["color-contrast"]
