"""A headless Chromium and a live JupyterLab for the browser tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from page_log import PageLog
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

_FAILED = pytest.StashKey[bool]()
ROOT = Path(__file__).resolve().parent.parent.parent
SCREENS = ROOT / ".screens"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--force-color-profile=srgb",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder drives a browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from setup_browser import find_chromium
    finally:
        sys.path.pop(0)
    path = find_chromium()
    if path is None:
        pytest.fail("No Chromium found. Run: python scripts/setup_browser.py")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remember a failure, so that `page` can leave a picture of it."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture
def page(context: BrowserContext, request: pytest.FixtureRequest, screens: Path) -> Iterator[Page]:
    page = context.new_page()
    yield page
    if request.node.stash.get(_FAILED, False):
        name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
        page.screenshot(path=screens / f"failed-{name[:80]}.png")


@pytest.fixture
def log(page: Page) -> PageLog:
    """Everything that `page` asks for or complains about, from now on."""
    return PageLog(page)


@pytest.fixture(scope="session")
def screens() -> Path:
    """Folder for the pictures to be looked at; not in git."""
    SCREENS.mkdir(exist_ok=True)
    for old in SCREENS.glob("failed-*.png"):
        old.unlink(missing_ok=True)  # tests run side by side
    return SCREENS


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One JupyterLab for the session, in a folder of its own."""
    home = tmp_path_factory.mktemp("lab")
    with Lab.start(home, python_path=[ROOT, ROOT / "tests"]) as lab:
        yield lab
