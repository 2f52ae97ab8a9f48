"""A cell runs in JupyterLab: the dashboard is answered on another thread, or says that the kernel is busy."""

from __future__ import annotations

import re

import pytest
from executed import executed
from feature_page import FeaturePage
from lab import Lab, LabNotebook
from page_log import PageLog
from playwright.sync_api import Page, expect
from test_feature_lab import SETUP

LOOP = """
import time
end = time.monotonic() + 5
while time.monotonic() < end:
    time.sleep(0.02)
print("done")
"""
OVER_MAIN = "() => { jupyterapp.shell.currentWidget.sessionContext.session.kernel.commsOverSubshells = 'disabled' }"


def started(notebook: LabNotebook, number: int) -> None:
    """Start a cell and leave it running."""
    notebook.cell(number).locator(".jp-Editor").click()
    notebook.page.keyboard.press("Shift+Enter")
    expect(notebook.cell(number).locator(".jp-InputPrompt")).to_contain_text("[*]")


@pytest.fixture
def notebook(page: Page, lab: Lab, log: PageLog, request: pytest.FixtureRequest) -> LabNotebook:
    name = f"{request.node.name}.ipynb"
    lab.write(name, [SETUP, LOOP])
    return lab.open(page, name)


def test_a_dashboard_is_answered_while_a_cell_runs(notebook: LabNotebook):
    """ipykernel 7 answers on a subshell's thread."""
    notebook.run(0)
    feature = FeaturePage(notebook.cell(0).locator(".nbs-feature"))
    feature.expect_latent(3)
    started(notebook, 1)
    feature.row(4).click()  # not saved: only the kernel has its card
    feature.expect_latent(4)
    feature.expect_pictures()
    expect(notebook.cell(1).locator(".jp-InputPrompt")).to_contain_text("[*]")


def test_a_kernel_that_answers_after_the_cell_is_said_to_be_busy(notebook: LabNotebook):
    """As ipykernel 6 does: messages wait until the cell ends."""
    notebook.page.evaluate(OVER_MAIN)
    notebook.run(0)
    feature = FeaturePage(notebook.cell(0).locator(".nbs-feature"))
    feature.expect_latent(3)
    started(notebook, 1)
    feature.row(4).click()
    status = feature.root.locator(".nbs-status").first
    expect(status).to_have_text(re.compile("kernel is busy"))
    expect(notebook.cell(1).locator(".jp-OutputArea-output")).to_have_text("done", timeout=20_000)
    feature.expect_latent(4)
    feature.expect_pictures()
    expect(status).to_have_text("")


def test_linked_views_saved_with_their_state_follow_each_other_without_a_kernel(page: Page, lab: Lab, log: PageLog):
    saved = executed(state=True)
    states = saved.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    own = [one["state"] for one in states.values() if "linked" in one["state"]]
    for state in own:
        state["linked"] = {"group": "saved", "sites": {"here": 64}}
    lab.put("linked-saved.ipynb", saved, trusted=True)
    notebook = lab.open(page, "linked-saved.ipynb", kernel=False)
    one, two = (FeaturePage(notebook.cell(number).locator(".nbs-feature")) for number in (1, 2))
    expect(two.root).to_be_visible(timeout=40_000)  # Lab reads the saved state after it has looked for a kernel
    one.expect_latent(3)
    two.expect_latent(2)
    one.row(5).click()
    two.expect_latent(5)
    two.row(1).click()
    one.expect_latent(1)
