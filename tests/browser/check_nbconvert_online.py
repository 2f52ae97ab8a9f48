"""Stock nbconvert's page with the libraries it fetches, the real ones. `make test-compat` runs it.

nbviewer shows such a page. The libraries come from the public npm registry, so this name is not that of a test; the
page's own requests are answered with them.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from executed import executed
from feature_page import FeaturePage
from nbconvert import HTMLExporter
from playwright.sync_api import Page, Route, expect

# What the page asks for, as it spells it, and the package and file that answer.
LIBRARIES = {
    "require.min.js": ("requirejs@2.3.7", "require.js"),
    "@jupyter-widgets/html-manager@": ("@jupyter-widgets/html-manager@1.0.15", "dist/embed-amd.js"),
    "/npm/anywidget@": ("anywidget@0.11.0", "dist/index.js"),
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The file for each part of an address."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail("There is no npm on PATH. Install Node 20 or newer.")
    files = {}
    for part, (package, file) in LIBRARIES.items():
        folder = tmp_path_factory.mktemp("library")
        subprocess.run([npm, "pack", "--silent", package], cwd=folder, check=True, timeout=120, capture_output=True)
        with tarfile.open(next(folder.glob("*.tgz"))) as packed:
            packed.extractall(folder, filter="data")
        files[part] = folder / "package" / file
    return files


def test_stock_nbconvert_with_its_libraries_draws_the_saved_dashboards(
    page: Page, libraries: dict[str, Path], tmp_path: Path, screens: Path
):
    written, _ = HTMLExporter().from_notebook_node(executed(state=True))
    (tmp_path / "page.html").write_text(written, encoding="utf-8")
    address = (tmp_path / "page.html").as_uri()

    def answer(route: Route) -> None:
        url = route.request.url
        file = next((file for part, file in libraries.items() if part in url), None)
        if file is not None:
            cors = {"content-type": "text/javascript", "access-control-allow-origin": "*"}
            route.fulfill(path=file, headers=cors)
        elif url == address or url.startswith(("data:", "blob:")):
            route.continue_()
        else:
            route.abort()

    page.route("**/*", answer)
    page.goto(address)
    first = FeaturePage(page.locator(".nbs-feature").first)
    first.expect_latent(3)
    first.expect_pictures()
    expect(page.locator(".nbs-feature")).to_have_count(2)
    expect(page.locator("[data-nbsae] img").first).to_be_hidden()
    expect(first.root.get_by_text("saved view", exact=True)).to_be_visible()
    first.row(5).click()
    first.expect_latent(5)
    page.screenshot(path=screens / "nbconvert-online.png")
