"""A note in a live JupyterLab: typed on the card it is in Python and on disk, given in Python it is on the card."""

from __future__ import annotations

from feature_page import FeaturePage
from lab import Lab
from page_log import PageLog
from playwright.sync_api import Page, expect

SETUP = """
import tempfile
import nb_sae as ns
from widget_fakes import fake_analysis
facts = {name: value for name, value in vars(fake_analysis("pooled")).items() if name not in ("d_sae", "extra")}
analysis = ns.Analysis(**facts, model="fake")
folder = analysis.save(tempfile.mkdtemp() + "/analysis")
dashboard = ns.FeatureDashboard(analysis, latent=3)
dashboard
"""
ASK = "print(ns.Analysis.load(folder).notes.rows())"
TELL = "analysis.note(3, label='from Python', rating=2)"


def test_note_typed_on_the_card_is_kept_and_one_from_python_is_shown(page: Page, lab: Lab, log: PageLog):
    lab.write("note.ipynb", [SETUP, ASK, TELL])
    notebook = lab.open(page, "note.ipynb")
    notebook.run(0)
    card = FeaturePage(notebook.cell(0).locator(".nbs-feature"))
    card.expect_latent(3)
    card.root.get_by_text("Label, rate or comment", exact=True).click()
    card.root.get_by_label("Your label").fill("glasses")
    card.root.get_by_label("4 of 5").click()
    card.root.get_by_label("Your comment").fill("thick")
    card.root.get_by_role("button", name="Save").click()
    expect(card.root.get_by_text("Saved", exact=True)).to_be_visible()
    notebook.run(1)
    notebook.expect_text(1, "[(3, 'glasses', 4, 'thick')]")
    notebook.run(2)
    expect(card.root.locator("h3 .nbs-name")).to_have_text("from Python")
    expect(card.root.get_by_label("Your label")).to_have_value("from Python")
