"""JupyterLab and Notebook 7: live, and on a notebook that was saved with widget state or without, trusted or not."""

from __future__ import annotations

import pytest
from executed import PICTURES, SETUP, SUMMARY, executed
from feature_page import FeaturePage
from lab import App, Lab, LabNotebook
from page_log import PageLog
from playwright.sync_api import Locator, Page, expect

ASK = "print('latent is', dashboard.latent)"
SET = "dashboard.latent = 7"
DOCTOR = "from nb_sae.diagnosis import _widget_bridge\nfor check in _widget_bridge(): print(check.level, check.found)"
both_apps = pytest.mark.parametrize("app", ["lab/tree", "notebooks"], ids=["JupyterLab", "Notebook7"])


def reopened(page: Page, lab: Lab, app: App, name: str, *, state: bool, trusted: bool) -> LabNotebook:
    """A notebook whose dashboards' kernel is gone. Lab opens it with no kernel at all, which Notebook 7 cannot do."""
    lab.put(name, executed(state=state), trusted=trusted)
    return lab.open(page, name, app=app, kernel=app == "notebooks")


def picture(notebook: LabNotebook) -> Locator:
    """The static picture: an untrusted notebook shows it without the mark around it."""
    return notebook.cell(1).locator(".jp-RenderedHTML img")


def test_notebook7_live_dashboard_speaks_with_python(page: Page, lab: Lab, log: PageLog):
    """JupyterLab's turn is in test_feature_lab.py."""
    name = "notebook7-live.ipynb"
    lab.write(name, [f"{SETUP}\ndashboard = {PICTURES}\ndashboard", ASK, SET, DOCTOR])
    notebook = lab.open(page, name, app="notebooks")
    notebook.run(0)
    feature = FeaturePage(notebook.cell(0).locator(".nbs-feature"))
    feature.expect_latent(3)
    expect(notebook.cell(0).locator("[data-nbsae] img")).to_be_hidden()
    feature.row(4).click()  # not saved: its card comes from the kernel
    feature.expect_latent(4)
    feature.expect_pictures()
    notebook.run(1)
    notebook.expect_text(1, "latent is 4")
    notebook.run(2)
    feature.expect_latent(7)
    notebook.run(3)
    for found in ("(the running server)", "note JupyterLab does not save it"):  # the doctor asks the server itself
        notebook.expect_text(3, found)
    assert "problem" not in notebook.text(3)


@both_apps
def test_saved_state_is_a_dashboard_without_its_kernel(page: Page, lab: Lab, app: App, log: PageLog):
    notebook = reopened(page, lab, app, f"{app[:3]}-state.ipynb", state=True, trusted=True)
    feature = FeaturePage(notebook.cell(1).locator(".nbs-feature"))
    feature.expect_latent(3)
    feature.expect_pictures()
    expect(feature.root.get_by_text("saved view", exact=True)).to_be_visible()
    expect(picture(notebook)).to_be_hidden()
    feature.row(5).click()
    feature.expect_latent(5)
    feature.expect_pictures()
    feature.row(4).click()
    expect(feature.root.locator(".nbs-message")).to_contain_text("not inside this saved view")


@both_apps
def test_no_state_and_no_kernel_leave_the_picture(page: Page, lab: Lab, app: App, log: PageLog):
    notebook = reopened(page, lab, app, f"{app[:3]}-bare.ipynb", state=False, trusted=True)
    expect_picture(picture(notebook))
    # Jupyter's own words stand below the picture; nothing we send can keep them away.
    expect(notebook.cell(1).locator(".jp-OutputArea-output").nth(1)).to_contain_text("model not found")


@both_apps
def test_untrusted_notebook_runs_no_script_and_shows_picture_and_words(page: Page, lab: Lab, app: App, log: PageLog):
    notebook = reopened(page, lab, app, f"{app[:3]}-untrusted.ipynb", state=True, trusted=False)
    expect_picture(picture(notebook))
    expect(notebook.cell(1).locator(".jp-OutputArea-output").nth(1)).to_contain_text(SUMMARY)
    assert notebook.page.locator(".nbs-dash").count() == 0


def expect_picture(shown: Locator) -> None:
    expect(shown).to_be_visible()
    width, height = shown.evaluate("image => [image.naturalWidth, image.getBoundingClientRect().height]")
    assert width >= 900
    assert height > 200
