"""The bias dashboard in a report: no kernel, no network, every width, both themes, hostile names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_log import PageLog
from playwright.sync_api import Browser, Locator, Page, expect
from test_report_offline import assert_quiet, code, opened, written_report

SWITCH_BOUND_MS = 100
SLACK = 5  # a shared test machine may be this much slower than what the bound is measured on
SETUP = (
    "from bias_fakes import fake_bias\nfrom widget_fakes import HOSTILE\nfrom nb_sae.widgets.bias import BiasDashboard"
)
PLAIN = "BiasDashboard(fake_bias(60))"
BAD = "BiasDashboard(fake_bias(8, groups=(HOSTILE[1], 'rest'), given=(HOSTILE[0],), names=tuple(HOSTILE[:8])))"

# Whether anything in the dashboard sticks out of it, scrolling parts aside.
STICKS_OUT = """root => {
    const edge = root.getBoundingClientRect().right + 1;
    const scrolls = (one) => one !== root && (/auto|scroll|hidden/.test(getComputedStyle(one).overflowX)
        || (one.parentElement && scrolls(one.parentElement)));
    return [...root.querySelectorAll('*')].filter((one) => one.getBoundingClientRect().right > edge && !scrolls(one))
        .map((one) => one.className || one.tagName);
}"""
SWITCH = """async (root) => {
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
    const times = [];
    for (const row of [...root.querySelectorAll('[role=option]')].slice(1, 10)) {
        await frame();
        const start = performance.now();
        row.click();
        await frame();
        await frame();
        times.push(performance.now() - start);
    }
    return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_report(tmp_path_factory.mktemp("bias"), "bias", code(SETUP, PLAIN, BAD))


def first(page: Page) -> Locator:
    return page.locator(".nbs-bias").first


def test_report_draws_the_bias_dashboard_and_asks_for_nothing(page: Page, log: PageLog, report: Path):
    opened(page, log, report)
    root = first(page)
    assert page.evaluate("() => window.nbsaeReport.mounted") == 2
    expect(root.locator(".nbs-caution")).to_contain_text("association is not cause")
    expect(root.locator("path.nbs-mean").first).to_be_visible()
    expect(root.locator(".nbs-status").first).to_have_text("saved view")
    switch = root.evaluate(SWITCH)
    print(f"\nanother concept in {switch:.0f} ms (bound {SWITCH_BOUND_MS})")
    assert switch < SLACK * SWITCH_BOUND_MS
    assert_quiet(page, log)


def test_keys_move_among_concepts_pages_and_inputs(page: Page, log: PageLog, report: Path):
    opened(page, log, report)
    root = first(page)
    title = root.locator(".nbs-title h3")
    before = title.text_content()
    root.get_by_role("listbox", name="Concepts").focus()
    page.keyboard.press("ArrowDown")
    expect(title).not_to_have_text(before or "")
    page.keyboard.press("[")
    expect(title).to_have_text(before or "")
    page.keyboard.press("?")
    expect(root.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("beard")
    page.keyboard.press("Enter")
    expect(title).to_contain_text("beard")
    root.locator(".nbs-number").first.click()
    drawer = root.locator(".nbs-drawer")
    expect(drawer.locator(".nbs-tile").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()
    page.keyboard.press("2")
    expect(root.get_by_text("Gaps between the groups")).to_be_visible()
    assert_quiet(page, log)


def test_masked_groups_show_no_number_and_tables_are_saved_as_csv(page: Page, log: PageLog, report: Path):
    opened(page, log, report)
    root = first(page)
    root.get_by_role("button", name="Error gaps").click()
    for line in root.locator("tr").filter(has_text="× Bald").all():
        text = line.text_content() or ""
        assert "masked: n < 20" in text
        assert not re.search(r"\d", text.replace("masked: n < 20", ""))
    root.get_by_label("Table to save").select_option("association")
    with page.expect_download() as download:
        root.get_by_role("button", name="Save CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert download.value.suggested_filename == "bias-association.csv"
    assert len(lines) == 1 + 2 * 60
    assert log.requests == []


def test_hostile_names_run_nothing(page: Page, log: PageLog, report: Path):
    opened(page, log, report)
    root = page.locator(".nbs-bias").nth(1)
    expect(root.locator("h3").first).to_be_visible()
    for row in root.get_by_role("listbox", name="Concepts").get_by_role("option").all():
        row.click()
    for name in ("Error gaps", "Retrieval"):
        root.get_by_role("button", name=name).click()
    assert root.locator("script, iframe, [onerror]").count() == 0
    assert page.title() != "owned"
    assert_quiet(page, log)


@pytest.mark.parametrize("width", [360, 800, 1400])
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
    root = first(page)
    for number, name in enumerate(("Concepts", "Error gaps", "Retrieval")):
        root.get_by_role("button", name=name, exact=True).click()
        assert root.evaluate(STICKS_OUT) == []
        root.screenshot(path=screens / f"bias-{scheme}-{width}-{number}.png")
    root.get_by_role("button", name="Concepts", exact=True).click()
    root.locator(".nbs-number").first.click()
    assert root.evaluate(STICKS_OUT) == []
    context.close()
