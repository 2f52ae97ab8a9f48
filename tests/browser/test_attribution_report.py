"""The attribution strip in a report: no kernel, no network, every width, both themes, hostile prompts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_log import PageLog
from playwright.sync_api import Browser, Locator, Page, expect
from test_bias_report import STICKS_OUT
from test_report_offline import assert_quiet, code, opened, written_report

SETUP = """
import io
from PIL import Image
from strip_fakes import PROMPT, fake_attribution, fake_direct, fake_faithfulness
from widget_fakes import HOSTILE, thumb
from nb_sae.widgets.attribution import AttributionStrip
"""
TEXT = """AttributionStrip(
    fake_attribution(), tokens=PROMPT, names={14: "women", 19: "a long name " * 9}, direct=fake_direct(),
    faithfulness=fake_faithfulness(),
)"""
PATCHES = """AttributionStrip(
    fake_attribution(positions=65), picture=Image.open(io.BytesIO(thumb(3))), faithfulness=fake_faithfulness()
)"""
BAD = """AttributionStrip(
    fake_attribution(positions=10, hostile=True), tokens=HOSTILE, names=dict(enumerate(HOSTILE)),
    direct=fake_direct(latents=(0, 1), positions=10),
)"""
KINDS = ("text", "patches", "hostile")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_report(tmp_path_factory.mktemp("strip"), "strip", code(SETUP, TEXT, PATCHES, BAD))


def strip(page: Page, kind: str) -> Locator:
    return page.locator(".nbs-attribution").nth(KINDS.index(kind))


def test_report_draws_every_strip_and_asks_for_nothing(page: Page, log: PageLog, report: Path):
    opened(page, log, report)
    assert page.evaluate("() => window.nbsaeReport.mounted") == len(KINDS)
    text, patches = strip(page, "text"), strip(page, "patches")
    assert text.locator(".nbs-cell").count() == 19
    expect(text.locator("path.nbs-band")).to_be_visible()
    expect(text.locator(".nbs-status")).to_have_text("saved view")
    painted = """canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
        .data.some(value => value > 0)"""
    assert text.locator(".nbs-heads canvas").evaluate(painted)
    assert patches.locator(".nbs-grid-cells .nbs-cell").count() == 64
    assert patches.locator(".nbs-picture img").first.evaluate("image => image.complete && image.naturalWidth > 0")
    assert_quiet(page, log)


def test_tokens_latents_and_cells_are_chosen_with_keys_alone(page: Page, log: PageLog, report: Path):
    opened(page, log, report)
    root = strip(page, "text")
    readout = root.locator(".nbs-readout")
    root.get_by_role("listbox", name="Tokens").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(readout).to_contain_text("token 1 “ doctor”")
    expect(root.get_by_role("heading", name=re.compile("^Behind token 1 "))).to_be_visible()
    root.get_by_role("listbox", name="Latents").focus()
    page.keyboard.press("Home")
    expect(readout).to_contain_text("activation")
    root.locator(".nbs-heads").focus()
    page.keyboard.press("ArrowRight")
    expect(readout).to_contain_text("attention")
    for key in ("c", "t", "?"):
        page.keyboard.press(key)
    expect(root.get_by_role("dialog", name="Keys")).to_be_visible()
    expect(root.get_by_role("button", name="This latent")).to_have_attribute("aria-pressed", "true")
    expect(root.get_by_role("button", name="Whole input")).to_have_attribute("aria-pressed", "true")
    assert_quiet(page, log)


def test_hostile_prompts_run_nothing(page: Page, log: PageLog, report: Path):
    opened(page, log, report)
    root = strip(page, "hostile")
    for cell in root.locator(".nbs-cell").all():
        cell.click()
    root.get_by_role("button", name="Whole input").click()
    assert root.locator("script, iframe, [onerror], img").count() == 0
    assert page.title() != "owned"
    assert_quiet(page, log)


@pytest.mark.parametrize("width", [360, 420, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width(browser: Browser, report: Path, screens: Path, width: int, scheme: str):
    context = browser.new_context(
        viewport={"width": width + 40, "height": 1000},
        color_scheme=scheme,  # pyright: ignore[reportArgumentType]
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(report.as_uri())
    page.wait_for_function("() => window.nbsaeReport")
    page.evaluate("() => window.nbsaeReport.ready")
    for kind in KINDS:
        root = strip(page, kind)
        assert root.evaluate(STICKS_OUT) == []
        scroll = root.locator(".nbs-scroll").evaluate("one => [one.scrollWidth, one.clientWidth]")
        assert scroll[0] <= scroll[1]
        root.screenshot(path=screens / f"strip-{kind}-{scheme}-{width}.png")
    context.close()
