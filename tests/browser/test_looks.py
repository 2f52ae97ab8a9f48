"""Every dashboard at every width, enlarged four times, in forced colours, without motion, and standing still."""

from __future__ import annotations

from pathlib import Path

import pytest
from kinds import KINDS
from mounted import MountPage
from playwright.sync_api import Locator, Page
from test_bias_report import STICKS_OUT

WIDTHS = (360, 420, 900, 1400)
ENLARGED = 320  # what a window of 1,280 px has at 400 %
MOST_SHIFT = 0.02

WATCH_SHIFTS = """() => {
    window.shifts = [];
    new PerformanceObserver((list) => window.shifts.push(...list.getEntries().map((one) => one.value)))
        .observe({ type: 'layout-shift', buffered: true });
}"""
# Chosen and pressed things that look like their neighbours when colours are the reader's.
LOST = """root => [...root.querySelectorAll('[aria-selected=true], [aria-pressed=true], [aria-checked=true]')]
    .filter((one) => one.getClientRects().length && one.tagName !== 'path').filter((one) => {
        const style = getComputedStyle(one);
        const inner = one.querySelector('.nbs-picture');
        return style.outlineStyle === 'none' && (!inner || getComputedStyle(inner).outlineStyle === 'none');
    }).map((one) => one.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_dashboard_stands_still_and_fits_every_width_and_forced_colours(page: Page, kind: str, screens: Path):
    """One view for three promises: drawing it anew for each takes longer than trying them."""
    mounts = MountPage(page)
    page.evaluate("() => { document.body.append(Object.assign(document.createElement('p'), { id: 'below' })) }")
    saved = mounts.use(KINDS[kind].make())
    page.evaluate(WATCH_SHIFTS)
    mounts.mount_saved(saved, "live")
    first = page.locator("#below").bounding_box()
    page.wait_for_timeout(400)
    assert page.locator("#below").bounding_box() == first
    assert sum(page.evaluate("() => window.shifts")) < MOST_SHIFT
    page.emulate_media(forced_colors="active")
    assert mounts.root.evaluate(LOST) == []
    mounts.root.screenshot(path=screens / f"forced-{kind}.png")
    page.emulate_media(forced_colors="none")
    nothing_sticks_out(page, mounts.root, KINDS[kind].views)


def nothing_sticks_out(page: Page, root: Locator, views: tuple[str, ...]) -> None:
    for view in ("", *views):
        if view:
            page.set_viewport_size({"width": 1280, "height": 900})
            root.get_by_role("button", name=view, exact=True).first.click()
        for width in (*WIDTHS, ENLARGED):
            page.set_viewport_size({"width": width, "height": 900})
            page.evaluate("() => nbsae.frames()")
            assert root.evaluate(STICKS_OUT) == [], (view, width)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width, (view, width)


def test_a_jump_of_the_page_is_seen(page: Page):
    mounts = MountPage(page)
    page.evaluate(WATCH_SHIFTS)
    page.evaluate(
        "() => { root.before(Object.assign(document.createElement('p'), { textContent: 'what stood here' })) }"
    )
    page.evaluate("() => nbsae.frames()")
    page.evaluate("() => { root.before(Object.assign(document.createElement('div'), { style: 'height:300px' })) }")
    page.evaluate("() => { root.innerHTML = '<p style=\"height:400px;background:red\">text</p>' }")
    page.evaluate("() => nbsae.frames()")
    page.evaluate("() => { root.style.marginTop = '200px' }")
    page.wait_for_timeout(200)
    assert mounts.page.evaluate("() => window.shifts.reduce((sum, one) => sum + one, 0)") > MOST_SHIFT


@pytest.mark.parametrize("wish", ["reduce", "no-preference"])
def test_motion_is_for_those_who_have_not_asked_to_be_spared_it(page: Page, wish):
    page.emulate_media(reduced_motion=wish)
    root = MountPage(page).mount(KINDS["feature-image"].make(), "held")
    root.locator(".nbs-row.nbs-unsaved").first.click()
    assert root.locator(".nbs-ghost").count() > 0
    moving = page.evaluate("() => document.getAnimations().length")
    assert (moving == 0) == (wish == "reduce")


@pytest.mark.parametrize(
    ("kind", "cell"), [("attribution-text", ".nbs-cell"), ("feature-text", ".nbs-token[data-value]")]
)
def test_strength_is_seen_without_colours(page: Page, kind: str, cell: str):
    page.emulate_media(forced_colors="active")
    root = MountPage(page).mount(KINDS[kind].make())
    lines = root.locator(cell).evaluate_all(
        """cells => cells.map((one) => {
            const style = getComputedStyle(one);
            const line = Math.max(parseFloat(style.borderTopWidth), parseFloat(style.borderBottomWidth));
            return [Number(style.getPropertyValue('--share')), line];
        }).sort((a, b) => a[0] - b[0])"""
    )
    assert lines[0][1] < lines[-1][1]
    assert [line for _, line in lines] == sorted(line for _, line in lines)
