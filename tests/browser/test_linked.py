"""Linked dashboards in a report without a kernel, and in a live JupyterLab where Python follows too."""

from __future__ import annotations

from pathlib import Path

import pytest
from feature_page import FeaturePage
from lab import Lab
from page_log import PageLog
from playwright.sync_api import Page, expect
from test_report_offline import code, written_report

SETUP = """
from dataclasses import replace
import polars as pl
import nb_sae as ns
from flow_fakes import fake_flow
from nb_sae.types import Site
from widget_fakes import fake_analysis
flow = fake_flow(layers=2, modules=False)
analysis = replace(fake_analysis("pooled", d_sae=60), site=Site(flow.sites[0], 64, True))
names = pl.DataFrame({"latent": [3, 5, 9], "name": ["hat", "beard", "smile"]})
features = ns.FeatureDashboard(analysis, latent=3, saved=[3, 5, 7])
concepts = ns.ConceptDashboard(analysis, names)
graph = ns.FlowDashboard(flow, start=(flow.sites[0], 3), saved=[(flow.sites[0], 5)])
link = ns.link(features, concepts, graph)
"""
SHOW = "ns.show(features, concepts, graph)"
ASK = "print('chosen', link.selection[1], features.latent, concepts.latent, graph.latent)"
SET = "concepts.latent = 9"
# The names that the concept dashboard shows one after the other.
WATCH = """() => {
    window.seen = [];
    const root = document.querySelector('.nbs-concept');
    const note = () => {
        const name = root.querySelector('h3 bdi')?.textContent;
        if (name && name !== 'smile' && name !== window.seen.at(-1)) window.seen.push(name);
    };
    new MutationObserver(note).observe(root, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_report(tmp_path_factory.mktemp("linked"), "linked", code(SETUP, SHOW))


def expect_concept(page: Page, name: str) -> None:
    expect(page.locator(".nbs-concept h3")).to_contain_text(name)


def expect_flow(page: Page, latent: int) -> None:
    expect(page.locator(".nbs-flow h3").first).to_contain_text(str(latent))


def test_a_choice_in_a_report_reaches_every_linked_dashboard_without_a_kernel(page: Page, log: PageLog, report: Path):
    log.cut_off(report.as_uri())
    page.goto(report.as_uri())
    page.evaluate("() => window.nbsaeReport.ready")
    feature = FeaturePage.first(page)
    feature.expect_latent(3)
    feature.row(5).click()
    feature.expect_latent(5)
    expect_concept(page, "beard")
    expect_flow(page, 5)
    page.locator(".nbs-concept").get_by_role("option").filter(has_text="smile").click()
    feature.expect_latent(9)
    feature.row(7).click()
    feature.expect_latent(7)
    expect_concept(page, "smile")  # latent 7 has no name: the concepts stay
    assert log.requests == []
    assert log.errors == []


def test_a_choice_in_a_live_notebook_reaches_the_other_dashboards_and_python(page: Page, lab: Lab, log: PageLog):
    lab.write("linked.ipynb", [SETUP, SHOW, ASK, SET])
    notebook = lab.open(page, "linked.ipynb")
    notebook.run(0)
    notebook.run(1)
    feature = FeaturePage.first(page)
    feature.expect_latent(3)
    feature.row(5).click()
    expect_concept(page, "beard")
    notebook.run(2)
    notebook.expect_text(2, "chosen 5 5 5 5")
    notebook.run(3)
    feature.expect_latent(9)
    # Fast steps never jump back, although the kernel's words lag behind them.
    page.evaluate(WATCH)
    feature.list.focus()
    for _ in range(6):
        page.keyboard.press("ArrowUp")
    feature.expect_latent(3)
    expect_concept(page, "hat")
    page.wait_for_timeout(800)
    assert page.evaluate("() => window.seen") == ["beard", "hat"]
    notebook.run(2)
    notebook.expect_text(2, "chosen 3 3 3 3")
