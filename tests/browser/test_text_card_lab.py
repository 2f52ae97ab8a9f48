"""The card of a text in a live JupyterLab: promoted tokens, and a text of the user that the kernel reads."""

from __future__ import annotations

import pytest
from feature_page import FeaturePage
from lab import Lab, LabNotebook
from page_log import PageLog
from playwright.sync_api import Page, expect

SETUP = """
import nb_sae as ns
from widget_fakes import fake_analysis, fake_read
dashboard = ns.FeatureDashboard(fake_analysis("text"), latent=3, read=fake_read)
dashboard
"""
ASK = "print('latent is', dashboard.latent)"


@pytest.fixture
def notebook(page: Page, lab: Lab, log: PageLog) -> LabNotebook:
    lab.write("text-card.ipynb", [SETUP, ASK])
    opened = lab.open(page, "text-card.ipynb")
    opened.run(0)
    return opened


def test_a_text_of_the_user_is_read_by_the_kernel_and_leads_to_its_latents(notebook: LabNotebook, page: Page):
    feature = FeaturePage(notebook.cell(0).locator(".nbs-feature"))
    feature.expect_latent(3)
    expect(feature.root.get_by_role("list", name="Writes for")).to_be_visible()
    feature.list.focus()
    cells = page.locator(".jp-NotebookPanel:visible .jp-Cell").count()
    page.keyboard.press("o")
    page.keyboard.type("a b d d x")
    assert page.locator(".jp-NotebookPanel:visible .jp-Cell").count() == cells
    page.keyboard.press("Control+Enter")
    own = feature.root.locator("details", has=page.locator(".nbs-own"))
    expect(own.locator(".nbs-token")).to_have_count(5)
    own.locator(".nbs-tokens").focus()
    expect(feature.root.locator(".nbs-readout")).to_contain_text("activation 1.30")
    own.locator("[data-latent='4']").click()
    feature.expect_latent(4)
    notebook.run(1)
    notebook.expect_text(1, "latent is 4")
