"""marimo with its own server: a dashboard in a shadow root, in both directions and in marimo's theme."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from executed import PICTURES, ROOT, TEXTS
from feature_page import FeaturePage
from lab import free_port
from page_log import PageLog
from playwright.sync_api import Page, expect

APP = f"""
import marimo

app = marimo.App()

@app.cell
def _():
    import marimo as mo
    import nb_sae as ns
    from widget_fakes import fake_analysis
    dashboard = mo.ui.anywidget({PICTURES})
    dashboard
    return dashboard, fake_analysis, mo, ns

@app.cell
def _(dashboard, mo):
    mo.md(f"latent is {{dashboard.latent}}")

@app.cell
def _(fake_analysis, ns):
    ns.show({TEXTS})
"""
CONFIG = '[display]\ntheme = "dark"\n'
START_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A marimo server that runs the notebook, in the dark."""
    home = tmp_path_factory.mktemp("marimo")
    (home / "marimo").mkdir()
    (home / "marimo" / "marimo.toml").write_text(CONFIG)
    (home / "app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "marimo", "run", "app.py", "--headless", "--no-token", "--port", str(port)]
    environment = os.environ | {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    log = home / "server.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=sink, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, server, log)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=15)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"marimo did not start (status {server.poll()}):\n{log.read_text()[-3000:]}")


def test_marimo_dashboard_speaks_with_python_and_follows_marimos_theme(
    page: Page, log: PageLog, screens: Path, address: str
):
    page.emulate_media(color_scheme="light")  # the system's; marimo's own is dark
    page.goto(address)
    page.locator(".nbs-feature").first.wait_for()  # a kernel starts first
    feature = FeaturePage.first(page)
    feature.expect_latent(3)
    feature.expect_pictures()
    assert feature.root.evaluate("root => root.getRootNode() instanceof ShadowRoot")
    assert feature.root.evaluate("root => getComputedStyle(root).colorScheme") == "dark"
    box = feature.root.bounding_box()
    assert box is not None
    assert box["height"] > 400  # its style sheet is in the shadow root as well
    page.locator(".nbs-col-latent").get_by_text("4", exact=True).first.click()  # not saved: its card comes from Python
    feature.expect_latent(4)
    feature.expect_pictures()
    expect(page.get_by_text("latent is 4")).to_be_visible()
    expect(page.locator(".nbs-feature")).to_have_count(2)
    FeaturePage(page.locator(".nbs-feature").nth(1)).expect_latent(2)
    page.screenshot(path=screens / "marimo-dark.png")
    assert [address for address in log.requests if "127.0.0.1" not in address] == []
    assert log.dialogs == []
