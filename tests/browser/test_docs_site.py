"""The built documentation in a browser: nothing is asked of another host, views are live, both themes, any width."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import axe
import pytest
from page_log import PageLog
from playwright.sync_api import Browser, Page, expect

SITE = Path(__file__).resolve().parent.parent.parent / "build" / "site"
PATIENCE_MS = 20_000
"""A view is some hundred kilobytes, and the machine may have other work."""
VIEWS = ("features", "text", "atlas", "concepts", "bias", "flow", "training", "attribution")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *said: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the site is served."""
    if not (SITE / "gallery.html").is_file():
        pytest.skip("The documentation is not built. Run: make docs")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(SITE))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def outside(page: Page, address: str) -> list[str]:
    """Requests to any other host, which are cut off."""
    asked: list[str] = []

    def look(route) -> None:
        if route.request.url.startswith((address, "file:", "data:", "blob:")):
            return route.continue_()
        asked.append(route.request.url)
        return route.abort()

    page.route("**/*", look)
    return asked


def test_every_view_of_the_gallery_is_a_live_dashboard(
    page: Page, address: str, outside: list[str], log: PageLog, screens: Path
):
    page.goto(f"{address}/gallery.html")
    frames = page.locator(".saved-view iframe")
    assert [frame.get_attribute("src") for frame in frames.all()] == [f"gallery/{name}.html" for name in VIEWS]
    for name in VIEWS:
        frame = page.locator(f"iframe[src='gallery/{name}.html']")
        frame.scroll_into_view_if_needed()
        root = frame.content_frame.locator("[data-lm-suppress-shortcuts]").first
        expect(root).to_be_visible(timeout=PATIENCE_MS)
        assert frame.bounding_box()["width"] > 600
    assert outside == []
    assert log.errors == []
    page.screenshot(path=screens / "docs-gallery.png")


def test_a_latent_picked_in_the_atlas_is_shown_in_the_linked_features(page: Page, address: str):
    page.goto(f"{address}/gallery/atlas.html")
    expect(page.locator(".nbs-feature")).to_be_visible(timeout=PATIENCE_MS)
    atlas = page.locator("[data-lm-suppress-shortcuts]").first
    shown = atlas.locator("h3").first
    before = shown.inner_text()
    atlas.locator("[role=option]").nth(3).click()
    expect(shown).not_to_have_text(before)
    number = shown.inner_text().split()[1]
    expect(page.locator(".nbs-feature .nbs-title h3")).to_contain_text(f"Latent {number}")


def test_the_theme_of_the_page_is_the_theme_of_its_views(page: Page, address: str):
    page.emulate_media(color_scheme="light")
    page.goto(f"{address}/gallery.html#features")
    frame = page.locator("iframe[src='gallery/features.html']")
    frame.scroll_into_view_if_needed()
    expect(frame.content_frame.locator("html")).to_have_attribute("data-nbsae-theme", "light", timeout=PATIENCE_MS)
    for _ in range(2):  # as the system, light, dark
        page.locator("label.md-header__button[for^=__palette]:visible").click()
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
    expect(frame.content_frame.locator("html")).to_have_attribute("data-nbsae-theme", "dark")


def test_the_search_works_from_a_folder(page: Page, address: str, outside: list[str], log: PageLog):
    page.goto((SITE / "index.html").as_uri())
    page.locator("[data-md-component=search-query]").press_sequentially("faithfulness")
    found = page.locator(".md-search-result__link").first
    expect(found).to_be_visible(timeout=PATIENCE_MS)
    assert "attribution" in found.get_attribute("href")
    assert outside == []
    assert log.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_a_desk_and_axe_finds_nothing_serious(
    browser: Browser, address: str, scheme, screens: Path
):
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    for name in ("index", "concepts/flow", "metrics", "reference/errors"):
        page.goto(f"{address}/{name}.html")
        expect(page.locator("h1").first).to_be_visible()
        assert axe.findings(page, "body", without=".saved-view") == [], name
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (name, width)
            page.screenshot(path=screens / f"docs-{name.replace('/', '-')}-{scheme}-{width}.png")
    context.close()
