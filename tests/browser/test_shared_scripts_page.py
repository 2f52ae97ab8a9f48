"""Shared scripts in every way a dashboard finds its own: live, reopened, in a report, on an old front end, or never."""

from __future__ import annotations

import base64
import copy
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
from executed import ROOT, SETUP
from feature_page import FeaturePage
from lab import Lab
from mounted import MountPage, saved_view
from nbclient import NotebookClient
from nbformat import NotebookNode
from page_log import PageLog
from playwright.sync_api import Page, expect
from test_report_offline import code, written_report
from widget_fakes import fake_analysis

import nb_sae as ns
from nb_sae.widgets import runtime
from nb_sae.widgets.base import read_static

SHARED = f"{SETUP}\nns.share_scripts()"
PICTURES = 'one = ns.FeatureDashboard(fake_analysis("patches", d_sae=96), latent=3, saved=[1, 3, 5, 7])\none'
TEXTS = 'ns.FeatureDashboard(fake_analysis("text"), latent=2, saved=[1, 2, 3])'
ASK = "print('latent is', one.latent)"


@cache
def _executed() -> NotebookNode:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in (SHARED, PICTURES, TEXTS)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
        NotebookClient(notebook, timeout=90).execute()
    return notebook


@pytest.fixture
def mounted(page: Page) -> MountPage:
    return MountPage(page)


@pytest.fixture
def saved() -> Iterator[tuple[ns.FeatureDashboard, dict[str, Any]]]:
    """A dashboard with a shared script, and what `nbsae.mount` takes: the small script only."""
    ns.share_scripts()
    dashboard = ns.FeatureDashboard(fake_analysis("patches", d_sae=96), latent=3, saved=[1, 3, 5, 7])
    yield dashboard, saved_view(dashboard) | {"script": read_static("shared.js"), "css": ""}
    ns.share_scripts(False)
    runtime._scripts.clear()


def test_live_dashboards_share_one_script_and_speak_with_python(page: Page, lab: Lab, log: PageLog):
    lab.write("shared.ipynb", [SHARED, PICTURES, TEXTS, ASK])
    notebook = lab.open(page, "shared.ipynb")
    for number in range(3):
        notebook.run(number)
    feature = FeaturePage(notebook.cell(1).locator(".nbs-feature"))
    feature.expect_latent(3)
    feature.expect_pictures()
    expect(notebook.cell(1).locator("[data-nbsae] img")).to_be_hidden()
    FeaturePage(notebook.cell(2).locator(".nbs-feature")).expect_latent(2)
    feature.row(4).click()  # not saved: its card comes from the kernel
    feature.expect_latent(4)
    feature.expect_pictures()
    notebook.run(3)
    notebook.expect_text(3, "latent is 4")
    assert page.locator("style[data-nbsae-sheet]").count() == 1
    # The page loaded again while the kernel is there: the models come from the kernel, in any order.
    notebook.save()
    again = lab.open(page, "shared.ipynb")
    FeaturePage(again.cell(1).locator(".nbs-feature")).expect_latent(4)
    FeaturePage(again.cell(2).locator(".nbs-feature")).expect_latent(2)


@pytest.mark.parametrize("state", [True, False], ids=["with-state", "without-state"])
def test_reopened_without_kernel_the_saved_script_draws_and_without_state_the_picture_stays(
    page: Page, lab: Lab, log: PageLog, state: bool
):
    notebook = copy.deepcopy(_executed())
    if not state:
        del notebook.metadata["widgets"]
    name = f"shared-{state}.ipynb"
    lab.put(name, notebook, trusted=True)
    opened = lab.open(page, name, kernel=False)
    if not state:
        expect(opened.cell(1).locator("[data-nbsae] img")).to_be_visible()
        return
    feature = FeaturePage(opened.cell(1).locator(".nbs-feature"))
    feature.expect_latent(3)
    feature.row(5).click()
    feature.expect_latent(5)
    feature.expect_pictures()
    FeaturePage(opened.cell(2).locator(".nbs-feature")).expect_latent(2)


def test_a_saved_notebook_holds_the_script_once():
    states = _executed().metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    scripts = [one["state"].get("_esm", "") for one in states]
    assert sum(text == read_static("feature.js") for text in scripts) == 1
    assert sum(map(len, scripts)) < len(read_static("feature.js")) + 2 * 3_000


def test_a_report_draws_dashboards_from_the_shared_script(page: Page, log: PageLog, tmp_path: Path):
    report = written_report(tmp_path, "shared", code(SHARED, PICTURES, TEXTS))
    log.cut_off(report.as_uri())
    page.goto(report.as_uri())
    page.evaluate("() => window.nbsaeReport.ready")
    assert page.evaluate("() => [window.nbsaeReport.mounted, window.nbsaeReport.errors]") == [2, []]
    feature = FeaturePage.first(page)
    feature.expect_latent(3)
    feature.expect_pictures()
    box = feature.root.bounding_box()
    assert box is not None
    assert box["height"] > 300  # its style is there
    assert log.requests == []
    assert log.errors == []


def test_an_old_front_end_without_host_asks_the_kernel_for_the_script(mounted: MountPage, saved):
    dashboard, view = saved
    mounted.use(dashboard)
    took = mounted.mount_saved(view, "live")
    assert took < 100  # rendering waits for nothing
    feature = FeaturePage.first(mounted.page)
    feature.expect_latent(3)
    feature.row(4).click()
    feature.expect_latent(4)
    mounted.unmount()
    assert mounted.page.evaluate("() => nbsae.left().model") == 0


def test_an_old_front_end_that_loaded_the_hidden_widget_needs_no_kernel(mounted: MountPage, saved):
    """Without `host`, but with the models of the notebook: the hidden widget puts its script where others find it."""
    dashboard, view = saved
    mounted.use(dashboard)
    mounted.mount_saved(view, "absent")
    script = runtime._scripts["feature"]
    url = "data:text/javascript;base64," + base64.b64encode(read_static("feature.js").encode()).decode()
    mounted.page.evaluate(
        """async ([url, serves, sheet]) => {
            const state = {serves, sheet};
            (await import(url)).default.initialize({model: {get: (name) => state[name]}});
        }""",
        [url, script.serves, script.sheet],
    )
    FeaturePage.first(mounted.page).expect_latent(3)


def test_nobody_has_the_script_and_a_line_says_so(mounted: MountPage, saved):
    dashboard, view = saved
    mounted.use(dashboard)
    mounted.page.clock.install()
    mounted.page.evaluate("([saved]) => { nbsae.mount(saved, 'absent') }", [view])
    mounted.page.clock.run_for(11_000)
    expect(mounted.page.get_by_role("note")).to_contain_text("Run the notebook again")
