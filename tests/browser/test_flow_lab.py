"""The flow dashboard in a live JupyterLab: paged from the kernel, set from Python, steered beside a control."""

from __future__ import annotations

from pathlib import Path

from lab import Lab
from page_log import PageLog
from playwright.sync_api import Page, expect

FLOW = """
import nb_sae as ns
from flow_fakes import fake_flow, fake_tree
from widget_fakes import fake_analysis
from nb_sae.widgets.flow import FlowDashboard

def steer(site, latent, strength, mode):
    if strength > 100:
        raise ValueError("too strong")
    return {"before": "a cat", "after": f"{latent} by {strength}, {mode}", "control": "a dog"}

flow = fake_flow(6, 400)
residual = [site for site in flow.sites if "resid" in site]
analyses = {site: fake_analysis("patches", d_sae=400, top=6, interval=1) for site in residual}
names = {residual[2]: {398: "the last one"}}
dashboard = FlowDashboard(flow, analyses, names=names, steer=steer)
dashboard
"""
ASK = "print('chosen', dashboard.site, dashboard.latent)"
SET = "dashboard.choose(residual[1], 7)"


def test_what_is_not_saved_is_paged_and_steered_by_the_kernel(page: Page, lab: Lab, log: PageLog, screens: Path):
    lab.write("flow.ipynb", [FLOW, ASK, SET])
    notebook = lab.open(page, "flow.ipynb")
    notebook.run(0)
    root = notebook.cell(0).locator(".nbs-flow")
    expect(root.locator(".nbs-nodes [aria-selected=true]")).to_have_count(1)
    expect(root.locator(".nbs-status").first).to_have_text("")  # a kernel has answered
    root.get_by_label("Search latents by name or number").fill("the last")
    expect(root.locator(".nbs-hits")).to_contain_text("the last one")
    page.keyboard.press("Enter")
    expect(root.locator("h3")).to_contain_text("the last one")
    expect(root.locator(".nbs-link .nbs-tile img").first).to_be_visible()
    root.screenshot(path=screens / "lab-flow.png")
    notebook.run(1)
    notebook.expect_text(1, "chosen blocks.2.hook_resid_post 398")
    root.get_by_role("button", name="Steer", exact=True).first.click()
    root.get_by_label("Strength").fill("3")
    root.locator(".nbs-lower:not([hidden]) .nbs-button").click()
    expect(root.locator(".nbs-side")).to_have_count(3)
    expect(root.locator(".nbs-side").nth(1)).to_contain_text("398 by 3")
    root.get_by_label("Strength").fill("300")
    root.locator(".nbs-lower:not([hidden]) .nbs-button").click()
    expect(root.locator(".nbs-error")).to_contain_text("too strong")
    notebook.run(2)
    expect(root.locator(".nbs-scroll .nbs-note").first).to_contain_text("blocks.1.hook_resid_post")
    expect(root.locator("h3")).to_contain_text("Latent 7")
