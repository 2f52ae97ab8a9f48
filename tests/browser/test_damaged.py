"""Damaged state and strange messages, in every dashboard: what fails says so, and what is whole goes on."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest
from kinds import KINDS
from mounted import MountPage
from page_log import PageLog
from playwright.sync_api import Page, expect

# One kind per script; the others differ in their tables only.
SCRIPTS = {"feature": "feature-image", "concept": "concept", "bias": "bias", "attribution": "attribution-text"}
SCRIPTS |= {kind: kind for kind in ("flow", "atlas", "monitor") if kind in KINDS}
MAIN = {"feature": "latents", "concept": "concepts", "bias": "overview", "attribution": "tables", "flow": "graph"}
MAIN |= {"atlas": "points", "monitor": "points"}
SECOND = {"feature": "saved", "concept": "cards", "bias": "details", "attribution": "direct", "flow": "cards"}
SECOND |= {"atlas": "cards"}


@pytest.fixture
def mounts(page: Page) -> MountPage:
    return MountPage(page)


def cut(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """The saved view with one buffer that ends early."""
    changed = copy.deepcopy(saved)
    at = changed["paths"].index([name])
    block = base64.b64decode(changed["buffers"][at])
    changed["buffers"][at] = base64.b64encode(block[: len(block) // 3]).decode()
    return changed


def with_state(saved: dict[str, Any], **state: Any) -> dict[str, Any]:
    return {**saved, "state": {**saved["state"], **state}}


@pytest.mark.parametrize("script", SCRIPTS)
def test_state_that_cannot_be_read_is_an_error_card(script: str, mounts: MountPage, log: PageLog):
    saved = mounts.use(KINDS[SCRIPTS[script]].make())
    main = MAIN[script]
    damaged = {
        "damaged": cut(saved, main),
        "header": with_state(saved, **{f"{main}_header": {"version": 1, "tables": 3}}),
        "restart the kernel": with_state(saved, kernel_side={"wire": 0, "nb_sae": "0.1.0"}),
        "reload this browser tab": with_state(saved, kernel_side={"wire": 99, "nb_sae": "9.0.0"}),
    }
    for said, view in damaged.items():
        mounts.mount_saved(view)
        card = mounts.page.locator(".nbs-error").last
        expect(card).to_be_visible()
        expect(card).to_contain_text(said)
        # The static picture above would still be seen.
        assert f'[data-nbsae="{view["state"]["twin"]}"]' not in mounts.page.locator("head").inner_html()
        mounts.unmount()
    assert log.errors == []


@pytest.mark.parametrize("script", SECOND)
def test_a_damaged_part_is_told_of_and_the_rest_of_the_dashboard_works(script: str, mounts: MountPage, log: PageLog):
    saved = mounts.use(KINDS[SCRIPTS[script]].make())
    mounts.mount_saved(cut(saved, SECOND[script]))
    page = mounts.page
    expect(page.locator(".nbs-error").first).to_contain_text("the rest goes on")
    expect(page.locator(".nbs-dash")).to_be_visible()
    if script in ("feature", "concept", "bias"):
        row = page.locator("[role=listbox] [role=option]").nth(2)
        row.click()
        expect(row).to_have_attribute("aria-selected", "true")
    assert log.errors == []


def test_a_picture_that_does_not_decode_says_so_and_the_others_are_shown(mounts: MountPage, log: PageLog):
    saved = copy.deepcopy(mounts.use(KINDS["feature-image"].make()))
    at = saved["paths"].index(["thumbs"])
    block = base64.b64decode(saved["buffers"][at])
    ends = saved["state"]["thumbs_header"]["ends"]
    saved["buffers"][at] = base64.b64encode(b"no picture".ljust(ends[0], b"!") + block[ends[0] :]).decode()
    mounts.mount_saved(saved)
    root = mounts.page.locator(".nbs-dash")
    for latent in range(24):  # some card shows the first picture
        if root.get_by_text("damaged picture").count():
            break
        mounts.page.evaluate("latent => nbsae.set('latent', latent)", latent)
        mounts.page.wait_for_function("[...document.querySelectorAll('.nbs-tile img')].every(({complete}) => complete)")
        mounts.page.wait_for_timeout(80)
    expect(root.get_by_text("damaged picture").first).to_be_visible()
    assert root.locator(".nbs-tile img").count() > 3
    assert log.errors == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_strange_messages_of_the_kernel_change_nothing(script: str, mounts: MountPage, log: PageLog):
    mounts.mount(KINDS[SCRIPTS[script]].make(), "live")
    page = mounts.page
    page.wait_for_timeout(50)
    before = page.locator(".nbs-dash").inner_text()
    page.evaluate(
        """() => {
            const strange = [null, 3, "text", [], {}, {id: 1e9}, {id: {}, ok: true}, {id: 1, ok: false, error: 7},
                {id: "<img>", ok: true, header: 3}, {kind: "unknown"}, {id: null}, new Array(1e6).fill(0)];
            for (const one of strange) nbsae.tell(one, [new DataView(new ArrayBuffer(3))]);
        }"""
    )
    page.wait_for_timeout(50)
    assert page.locator(".nbs-dash").inner_text() == before
    page.evaluate("() => nbsae.tell({refused: {cause: 'latent=99 is outside', fix: '', details: ''}})")
    expect(page.locator(".nbs-error")).to_contain_text("latent=99 is outside")
    expect(page.locator(".nbs-dash")).to_be_visible()
    assert log.errors == []


def test_rendering_and_initializing_wait_for_nothing(mounts: MountPage):
    """A model that is not initialised within 2 s takes no message for ever."""
    saved = mounts.use(KINDS["feature-image"].make())
    kinds = mounts.page.evaluate(
        """async ([saved]) => {
            const url = URL.createObjectURL(new Blob([saved.script], {type: "text/javascript"}));
            const hooks = (await import(url)).default;
            const model = {get: (name) => saved.state[name], set() {}, save_changes() {}, send() {}, on() {}, off() {}};
            const el = document.createElement("div");
            return [hooks.initialize({model}), hooks.render({model, el})].map((value) => typeof value?.then);
        }""",
        [saved],
    )
    assert kinds == ["undefined", "undefined"]
