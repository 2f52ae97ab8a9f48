"""The oldest front end we allow, the real one: anywidget 0.9.21 on both sides. `make test-compat` runs it.

It needs `.venv-compat`, where that version is installed; so its name is not that of a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from executed import PICTURES, ROOT, SETUP
from feature_page import FeaturePage
from lab import Lab
from page_log import PageLog
from playwright.sync_api import Page, expect

OLDEST = ROOT / ".venv-compat"
WHICH = "import anywidget; print(anywidget.__version__)"
ASK = "print('latent is', dashboard.latent)"
SET = "dashboard.latent = 7"
DOCTOR = "from nb_sae.diagnosis import _widget_bridge\nfor check in _widget_bridge(): print(check.level, check.found)"
SHARED = f"ns.share_scripts()\nshared = {PICTURES}\nshared"


@pytest.fixture(scope="module")
def old_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab as it is here, with the old anywidget before the new one in its kernels and in its front end."""
    packages = sorted(OLDEST.glob("lib/python*/site-packages/anywidget*"))
    extension = OLDEST / "share/jupyter/labextensions/anywidget"
    if not packages or not extension.is_dir():
        pytest.fail(f"{OLDEST.name} holds no anywidget. Run: make test-compat")
    home = tmp_path_factory.mktemp("oldest")
    kernel_side, front_end = home / "python", home / "jupyter"
    kernel_side.mkdir()
    (front_end / "labextensions").mkdir(parents=True)
    for package in packages:
        (kernel_side / package.name).symlink_to(package)
    (front_end / "labextensions" / "anywidget").symlink_to(extension)
    with Lab.start(home, python_path=[kernel_side, ROOT, ROOT / "tests"], jupyter_path=[front_end]) as lab:
        yield lab


def test_oldest_front_end_runs_a_dashboard_in_both_directions(page: Page, old_lab: Lab, log: PageLog, screens: Path):
    old_lab.write("oldest.ipynb", [f"{SETUP}\ndashboard = {PICTURES}\ndashboard", ASK, SET, WHICH, DOCTOR, SHARED])
    notebook = old_lab.open(page, "oldest.ipynb")
    notebook.run(0)
    feature = FeaturePage(notebook.cell(0).locator(".nbs-feature"))
    feature.expect_latent(3)
    feature.expect_pictures()
    expect(notebook.cell(0).locator("[data-nbsae] img")).to_be_hidden()
    feature.row(4).click()  # not saved: its card comes from the kernel
    feature.expect_latent(4)
    notebook.run(1)
    notebook.expect_text(1, "latent is 4")
    notebook.run(2)
    feature.expect_latent(7)
    notebook.run(3)
    notebook.expect_text(3, "0.9.21")
    notebook.run(4)
    notebook.expect_text(4, "ok 0.9.21 ↔ 0.9.21 (the running server)")
    notebook.run(5)  # no `host` here: the small script asks the kernel for the one that is kept once
    FeaturePage(notebook.cell(5).locator(".nbs-feature")).expect_latent(3)
    page.screenshot(path=screens / "oldest.png")
