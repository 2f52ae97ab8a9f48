"""The concept and the bias dashboard in a live JupyterLab: what only a kernel can answer is answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import Lab
from page_log import PageLog
from playwright.sync_api import Page, expect

CONCEPT = """
import nb_sae as ns
from test_widgets_concept import FakeEditor, fake_analysis, fake_names
dashboard = ns.ConceptDashboard(fake_analysis("pooled"), fake_names(), editor=FakeEditor())
dashboard
"""
BIAS = """
import nb_sae as ns
from bias_fakes import fake_bias
dashboard = ns.BiasDashboard(fake_bias())
dashboard
"""
ASK = "print('latent is', dashboard.latent)"
RAISE = "slider => { slider.value = 20; slider.dispatchEvent(new Event('input', { bubbles: true })) }"


def test_concepts_are_mixed_and_other_inputs_taken_by_the_kernel(page: Page, lab: Lab, log: PageLog):
    lab.write("concept.ipynb", [CONCEPT, ASK])
    notebook = lab.open(page, "concept.ipynb")
    notebook.run(0)
    root = notebook.cell(0).locator(".nbs-concept")
    expect(root.get_by_role("button", name="Another input")).to_be_visible()  # a kernel has answered
    root.locator(".nbs-slider input").first.evaluate(RAISE)
    expect(root.get_by_text("Nearest after the edit")).to_be_visible()
    root.locator(".nbs-row").nth(1).click()
    expect(root.locator(".nbs-slider")).to_have_count(2)
    root.locator(".nbs-slider input").last.evaluate(RAISE.replace("20", "7"))  # a mixture: not in the saved grid
    expect(root.locator(".nbs-result .nbs-new").first).to_be_visible()
    assert root.locator(".nbs-error").count() == 0
    inputs = root.get_by_role("radio")
    before = inputs.count()
    root.get_by_role("button", name="Another input").click()
    expect(inputs).to_have_count(before + 1)
    notebook.run(1)
    notebook.expect_text(1, "latent is 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bias_dashboard_speaks_with_python_in_both_themes(
    page: Page, lab: Lab, log: PageLog, screens: Path, scheme: str
):
    lab.write(f"bias-{scheme}.ipynb", [BIAS, ASK])
    notebook = lab.open(page, f"bias-{scheme}.ipynb")
    notebook.theme("JupyterLab Dark" if scheme == "dark" else "JupyterLab Light")
    notebook.run(0)
    root = notebook.cell(0).locator(".nbs-bias")
    expect(root.locator("h3")).to_be_visible()
    chosen = root.locator(".nbs-row").nth(2)
    chosen.click()
    expect(root.locator(".nbs-row[aria-selected=true]")).to_have_count(1)
    notebook.run(1)
    expect(notebook.cell(1)).to_contain_text("latent is")
    root.screenshot(path=screens / f"lab-{scheme}-bias.png")
    assert root.locator(".nbs-error").count() == 0
