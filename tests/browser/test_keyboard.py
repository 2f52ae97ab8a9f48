"""Every dashboard from the keyboard alone: its keys, one Tab stop a list, a way in and a way out."""

from __future__ import annotations

import pytest
from kinds import KINDS
from mounted import MountPage
from playwright.sync_api import Locator, Page, expect

MOST_STOPS = 100

# What is chosen and what is shown of it, without what only the pointer or the focus changes.
CHOSEN = """root => [...root.querySelectorAll('[aria-selected=true], h3, h4')]
    .filter((one) => one.getClientRects().length).map((one) => one.id + one.textContent).join('|')"""
# The places of each list, grid or tree that Tab reaches, where it is more than one.
STOPS = """root => [...root.querySelectorAll(
    '[role=listbox], [role=tree], [role=grid], [role=radiogroup], .nbs-pictures[role=group], .nbs-strip[role=group]')]
    .map((list) => [list, ...list.querySelectorAll('*')].filter((one) => one.tabIndex >= 0
        && one.getClientRects().length && !one.matches('button:not([role])')))
    .filter((stops) => stops.length > 1).map((stops) => stops.map((one) => one.outerHTML.slice(0, 80)))"""
FOCUS_INSIDE = "root => root.contains(document.activeElement)"


@pytest.mark.parametrize("kind", KINDS)
def test_a_dashboard_is_used_from_the_keyboard_alone(page: Page, kind: str):
    """One page for three promises: opening another takes longer than trying them."""
    mounts, dashboard = MountPage(page), KINDS[kind].make()
    root = mounts.mount(dashboard)
    the_keys_of_all_dashboards_work(page, root, kind)
    every_list_is_one_tab_stop_and_tab_leads_through_and_out(page, root, kind)
    mounts.unmount()
    arrows_move_in_every_list_that_is_seen(page, mounts.mount(dashboard))


def the_keys_of_all_dashboards_work(page: Page, root: Locator, kind: str) -> None:
    root.locator(".nbs-keys").focus()
    page.keyboard.press("?")
    sheet = root.get_by_role("dialog", name="Keys")
    expect(sheet).to_be_visible()
    for key in KINDS[kind].keys:
        expect(sheet.locator("kbd").filter(has_text=key).first).to_be_visible()
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    if "[" in KINDS[kind].keys:
        first = root.evaluate(CHOSEN)
        page.keyboard.press("]")
        page.evaluate("() => nbsae.frames()")
        second = root.evaluate(CHOSEN)
        assert second != first
        page.keyboard.press("[")
        page.evaluate("() => nbsae.frames()")
        assert root.evaluate(CHOSEN) == first
    if "/" not in KINDS[kind].keys:
        return
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    assert root.evaluate("root => document.activeElement.matches('input, [role=listbox]') && " + FOCUS_INSIDE[8:])


def every_list_is_one_tab_stop_and_tab_leads_through_and_out(page: Page, root: Locator, kind: str) -> None:
    for view in ("", *KINDS[kind].views):
        if view:
            root.get_by_role("button", name=view, exact=True).first.click()
        assert root.evaluate(STOPS) == []
    page.evaluate("() => document.activeElement?.blur()")
    root.evaluate(
        "root => root.closest('main').before(Object.assign(document.createElement('button'), { id: 'before' }))"
    )
    page.locator("#before").focus()
    stops = 0
    page.keyboard.press("Tab")
    while root.evaluate(FOCUS_INSIDE):
        # JupyterLab looks for the mark on what has the focus.
        assert page.evaluate("() => document.activeElement.dataset.lmSuppressShortcuts") == "true"
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", page.evaluate("() => document.activeElement.outerHTML.slice(0, 120)")
        stops += 1
        assert stops < MOST_STOPS
        page.keyboard.press("Tab")
    assert stops > 3


def arrows_move_in_every_list_that_is_seen(page: Page, root: Locator) -> None:
    lists = root.locator("[role=listbox]:visible").all()[:4]
    assert lists
    for one in lists:
        one.evaluate("list => (list.tabIndex < 0 ? list.querySelector('[tabindex=\"0\"]') : list).focus()")
        before = root.evaluate(CHOSEN)
        for key in ("ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"):
            page.keyboard.press(key)
            page.evaluate("() => nbsae.frame()")
            if root.evaluate(CHOSEN) != before:
                break
        else:
            pytest.fail(f"no arrow moves in {one.get_attribute('aria-label')}")
