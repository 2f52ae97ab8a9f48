"""The feature dashboard in a live JupyterLab: both directions, beyond the saved view, and after the kernel is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from feature_page import FeaturePage
from lab import Lab, LabNotebook
from page_log import PageLog
from playwright.sync_api import Page, expect

SETUP = """
import nb_sae as ns
from widget_fakes import fake_analysis
dashboard = ns.FeatureDashboard(fake_analysis("patches", d_sae=96), latent=3, saved=[1, 3, 5, 7])
dashboard
"""
ASK = "print('latent is', dashboard.latent)"
SET = "dashboard.latent = 7"


@pytest.fixture
def notebook(page: Page, lab: Lab, log: PageLog, request: pytest.FixtureRequest) -> LabNotebook:
    name = f"{request.node.name}.ipynb"
    lab.write(name, [SETUP, ASK, SET])
    opened = lab.open(page, name)
    opened.run(0)
    return opened


def dashboard(notebook: LabNotebook) -> FeaturePage:
    feature = FeaturePage(notebook.cell(0).locator(".nbs-feature"))
    feature.expect_latent(3)
    return feature


def test_live_dashboard_hides_its_static_picture_and_speaks_with_python(notebook: LabNotebook):
    feature = dashboard(notebook)
    feature.expect_pictures()
    expect(notebook.cell(0).locator("[data-nbsae] img")).to_be_hidden()
    feature.row(5).click()
    feature.expect_latent(5)
    notebook.run(1)
    notebook.expect_text(1, "latent is 5")
    notebook.run(2)
    feature.expect_latent(7)


def test_live_dashboard_fetches_an_unsaved_latent_from_the_kernel(notebook: LabNotebook):
    feature = dashboard(notebook)
    feature.row(4).click()
    feature.expect_latent(4)
    feature.expect_pictures()
    assert feature.root.locator(".nbs-message").count() == 0


def test_live_dashboard_keys_do_not_reach_the_notebook(notebook: LabNotebook, page: Page):
    """`a`, `b` and `d d` add and delete cells wherever a widget lets them through."""
    feature = dashboard(notebook)
    feature.row(5).click()
    cells = page.locator(".jp-NotebookPanel:visible .jp-Cell")
    before = cells.count()
    for key in ("a", "b", "d", "d", "x"):
        page.keyboard.press(key)
    page.keyboard.press("ArrowDown")
    feature.expect_latent(6)
    assert cells.count() == before


def test_live_dashboard_follows_the_theme_of_jupyterlab(notebook: LabNotebook, screens: Path):
    feature = dashboard(notebook)
    feature.expect_pictures()
    levels = {}
    for scheme, theme in (("dark", "JupyterLab Dark"), ("light", "JupyterLab Light")):
        notebook.theme(theme)
        notebook.page.wait_for_timeout(300)
        notebook.page.screenshot(path=screens / f"lab-{scheme}.png")
        feature.root.screenshot(path=screens / f"lab-{scheme}-dashboard.png")
        colour = feature.root.locator(".nbs-title h3").evaluate("title => getComputedStyle(title).color")
        levels[scheme] = sum(int(part) for part in colour[4:-1].split(",")[:3])
    assert levels["dark"] > 450 > levels["light"]


def test_reopened_notebook_shows_the_static_picture_without_its_kernel(
    notebook: LabNotebook, page: Page, lab: Lab, screens: Path
):
    dashboard(notebook).expect_pictures()
    notebook.save()
    notebook.shut_down_kernel()
    name = page.url.rpartition("/")[2].partition("?")[0]
    again = lab.open(page, name)
    picture = again.cell(0).locator("[data-nbsae] img")
    expect(picture).to_be_visible()
    picture.scroll_into_view_if_needed()
    page.screenshot(path=screens / "lab-reopened.png")
    box = picture.bounding_box()
    assert box is not None
    assert box["width"] > 200
    assert dashboardless(again)


def dashboardless(notebook: LabNotebook) -> bool:
    """The live view is not there: its kernel, and with it the model, is gone."""
    return notebook.cell(0).locator(".nbs-feature").count() == 0
