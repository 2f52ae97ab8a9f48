"""What a dashboard says when it waits, when nobody answers, when the answer is an error, and when there is nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from bias_fakes import fake_bias
from flow_fakes import fake_flow
from kinds import KINDS
from mounted import Kernel, MountPage
from playwright.sync_api import Locator, Page, expect
from strip_fakes import fake_attribution
from test_looks import MOST_SHIFT, WATCH_SHIFTS
from widget_fakes import fake_analysis

from nb_sae.widgets.attribution import AttributionStrip
from nb_sae.widgets.base import Dashboard
from nb_sae.widgets.bias import BiasDashboard
from nb_sae.widgets.feature import FeatureDashboard
from nb_sae.widgets.flow import FlowDashboard

BUSY = re.compile("kernel is busy|cell is running")
MOVE = "slider => { slider.value = 17; slider.dispatchEvent(new Event('input', { bubbles: true })) }"


def _read(root: Locator) -> None:
    root.get_by_text("Try your own text").click()
    root.get_by_label("Your own text").fill("a text")
    root.get_by_role("button", name="Read").click()


def _last_concept(root: Locator) -> None:
    root.locator(".nbs-search").fill("199")
    root.locator(".nbs-search").press("Enter")


# What only a kernel can answer, in each kind: how to ask for it.
ASKS: dict[str, tuple[Callable[[], Dashboard], Callable[[Locator], object]]] = {
    "feature-image": (KINDS["feature-image"].make, lambda root: root.locator(".nbs-row.nbs-unsaved").nth(1).click()),
    "feature-text": (KINDS["feature-text"].make, _read),
    "concept": (KINDS["concept"].make, lambda root: root.locator(".nbs-slider input").first.evaluate(MOVE)),
    "bias": (lambda: BiasDashboard(fake_bias(200)), _last_concept),
    "attribution": (
        lambda: AttributionStrip(fake_attribution(positions=256, inputs=4)),
        lambda root: root.get_by_label("Input").select_option("3"),
    ),
    "flow": (KINDS["flow"].make, lambda root: root.locator(".nbs-nodes").press("ArrowDown")),
}


def asked(page: Page, kind: str, kernel: Kernel) -> tuple[MountPage, Locator]:
    """The dashboard after it was asked for what is not saved."""
    make, ask = ASKS[kind]
    mounts = MountPage(page)
    root = mounts.mount(make(), kernel)
    page.wait_for_timeout(60)  # the ping's answer
    ask(root)
    return mounts, root


@pytest.mark.parametrize("kind", ASKS)
def test_waiting_is_said_then_why_and_the_answer_ends_it(page: Page, kind: str):
    _, root = asked(page, kind, "held")
    expect(root).to_contain_text(re.compile("sking the kernel …"))
    expect(root).to_contain_text(BUSY, timeout=5_000)
    before = root.bounding_box()
    page.evaluate(WATCH_SHIFTS)
    page.evaluate("() => nbsae.release()")
    expect(root).not_to_contain_text(BUSY)
    expect(root).not_to_contain_text(re.compile("sking the kernel …"))
    expect(root.locator(".nbs-error")).to_have_count(0)
    expect(root.locator("[aria-busy=true]")).to_have_count(0)
    # What was grey becomes what it stood for; nothing else moves. Only a text of one's own makes room for itself.
    assert root.bounding_box() == before
    assert kind == "feature-text" or sum(page.evaluate("() => window.shifts")) < MOST_SHIFT


@pytest.mark.parametrize("kind", ASKS)
def test_an_error_is_a_card_with_cause_fix_and_details_and_the_rest_goes_on(page: Page, kind: str):
    _, root = asked(page, kind, "refusing")
    card = root.locator(".nbs-error").first
    expect(card).to_contain_text("Out of memory, as planted.")
    expect(card).to_contain_text("Use fewer rows.")
    card.get_by_text("Details", exact=True).click()
    expect(card.locator("pre")).to_have_text("Traceback: planted")
    expect(root).not_to_contain_text(re.compile("sking the kernel …"))
    assert root.evaluate("root => root.innerText.length") > 200
    expect(root.locator(".nbs-keys")).to_be_enabled()


# One code finds out that nobody answers; every dashboard says so.
@pytest.mark.parametrize(("kind", "kernel"), [*((kind, "none") for kind in KINDS), ("flow", "absent")])
def test_without_a_kernel_it_says_that_it_is_a_saved_view(page: Page, kind: str, kernel: Kernel):
    root = MountPage(page).mount(KINDS[kind].make(), kernel)
    status = root.locator(".nbs-status").first
    expect(status).to_have_text("saved view", timeout=3_000)
    assert (status.get_attribute("title") or "").startswith("No kernel answers: ")
    expect(root.locator(".nbs-error")).to_have_count(0)
    expect(root.locator("[aria-busy=true]")).to_have_count(0)


def test_nothing_to_show_is_said_and_what_to_do(page: Page):
    mounts = MountPage(page)
    root = mounts.mount(FeatureDashboard(fake_analysis("patches"), latent=63))
    expect(root.locator(".nbs-message")).to_contain_text("was never active on these 2,600 rows")
    expect(root.locator(".nbs-message")).to_contain_text("Choose another latent")
    root.locator(".nbs-search").first.fill("no such latent")
    expect(root.locator(".nbs-none").filter(has_text="No latent matches")).to_be_visible()
    mounts.unmount()
    root = mounts.mount(KINDS["concept"].make())
    root.locator(".nbs-search").first.fill("no such concept")
    expect(root.locator(".nbs-none").filter(has_text="No concept matches")).to_be_visible()
    mounts.unmount()
    root = mounts.mount(KINDS["bias"].make())
    root.locator(".nbs-search").first.fill("no such concept")
    expect(root.locator(".nbs-none:visible")).to_contain_text(re.compile("[Nn]o concept"))
    mounts.unmount()
    root = mounts.mount(FlowDashboard(fake_flow(3, 16)))
    root.locator(".nbs-search").first.fill("no such latent")
    expect(root.locator(".nbs-hits")).to_contain_text("No latent matches in this saved view")


def test_what_was_cut_is_said_with_how_much_there_was(page: Page):
    mounts = MountPage(page)
    root = mounts.mount(KINDS["feature-image"].make())
    expect(root.locator(".nbs-note").filter(has_text="Top")).to_contain_text(re.compile(r"Top 16 of \d+ active rows"))
    expect(root.get_by_label(re.compile("^Only the 64 saved"))).to_be_visible()
    mounts.unmount()
    root = mounts.mount(AttributionStrip(fake_attribution(positions=256, inputs=4)))
    expect(root.locator(".nbs-status").first).to_have_attribute("title", re.compile(r"\d of 4 inputs are inside"))
    mounts.unmount()
    root = mounts.mount(FlowDashboard(fake_flow(6, 400)))
    root.get_by_role("button", name="Table", exact=True).click()
    expect(root).to_contain_text(re.compile(r"[\d,]+ of [\d,]+ latents are shown"))


def test_a_damaged_state_is_an_error_card_never_an_empty_cell(page: Page):
    mounts = MountPage(page)
    for kind in KINDS:
        saved = mounts.use(KINDS[kind].make())
        saved["buffers"] = [one[:40] for one in saved["buffers"]]
        mounts.mount_saved(saved)
        expect(mounts.root).to_contain_text("could not be drawn")
        mounts.unmount()


def test_the_grey_card_has_the_size_of_what_comes(page: Page):
    """Headings and the first pictures stand where they will stand."""
    _, root = asked(page, "feature-image", "held")
    tops = "root => [...root.querySelectorAll('.nbs-scroll h4')].map((one) => one.getBoundingClientRect().top)"
    first = "all => [all[0].getBoundingClientRect().top, all[0].getBoundingClientRect().width]"
    waiting = [*root.evaluate(tops), *root.locator(".nbs-pictures .nbs-ghost").evaluate_all(first)]
    page.evaluate("() => nbsae.release()")
    expect(root.locator(".nbs-tile").first).to_be_visible()
    filled = [*root.evaluate(tops), *root.locator(".nbs-tile").evaluate_all(first)]
    assert filled == pytest.approx(waiting, abs=3)
