"""The report as its reader opens it: a file, no kernel, no network."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from feature_page import WATCH_SCRIPT, FeaturePage
from page_log import PageLog
from playwright.sync_api import Page, expect

import nb_sae as ns

ROOT = Path(__file__).resolve().parent.parent.parent
DRAWN_BOUND_MS = 1_000
SWITCH_BOUND_MS = 100
SLACK = 5  # a shared test machine may be this much slower than what the bounds are measured on

SETUP = "import nb_sae as ns\nfrom widget_fakes import HOSTILE, LONE_SURROGATE, fake_analysis"
DASHBOARD = 'ns.FeatureDashboard(fake_analysis("patches", d_sae=512), latent=3)'
TEXT = 'ns.FeatureDashboard(fake_analysis("text"), latent=2)'
FIGURE = "import plotly.graph_objects as go\ngo.Figure(go.Bar(x=[1, 2, 3], y=[3, 1, 2]), layout_title_text='Bars')"
HOSTILE_DASHBOARD = """
names = dict(enumerate([*HOSTILE, LONE_SURROGATE]))
ns.FeatureDashboard(fake_analysis({kind!r}, hostile=True), names=names, latent=0)
"""
HOSTILE_OUTPUT = "print('\\n'.join(HOSTILE))\nraise RuntimeError(HOSTILE[1])"


# Luminance, 0 to 255, of what lies behind the card's title and of the title itself.
LUMINANCES = """() => {
    const of = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        const clear = /rgba\\(0, 0, 0, 0\\)|transparent/.test(colour);
        return clear && element.parentElement ? behind(element.parentElement) : of(colour);
    };
    const title = document.querySelector('.nbs-title h3');
    return [behind(title), of(getComputedStyle(title).color)];
}"""


def written_report(folder: Path, name: str, cells: list[nbformat.NotebookNode], *, fails: bool = False) -> Path:
    """Execute the cells in a kernel that can import the fakes, and write the report."""
    notebook = nbformat.v4.new_notebook(cells=cells)
    source = folder / f"{name}.ipynb"
    nbformat.write(notebook, source)
    inherited = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), inherited])))
        out = folder / f"{name}.html"
        if not fails:
            return ns.report(source, out, execute=True, progress=False)
        with pytest.raises(ns.errors.ReportError):
            ns.report(source, out, execute=True, progress=False)
        return out


def code(*sources: str) -> list[nbformat.NotebookNode]:
    return [nbformat.v4.new_code_cell(source) for source in sources]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    title = nbformat.v4.new_markdown_cell(
        "# Latents of a drawn model\n\nA dashboard of pictures, one of text, a figure."
    )
    folder = tmp_path_factory.mktemp("report")
    return written_report(folder, "report", [title, *code(SETUP, DASHBOARD, TEXT, FIGURE)])


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = code(SETUP, *(HOSTILE_DASHBOARD.format(kind=kind) for kind in ("patches", "text")), HOSTILE_OUTPUT)
    return written_report(tmp_path_factory.mktemp("hostile"), "hostile", cells, fails=True)


def opened(page: Page, log: PageLog, report: Path) -> FeaturePage:
    """Open the file with everything else cut off, and wait until the runtime is done."""
    log.cut_off(report.as_uri())
    page.add_init_script(WATCH_SCRIPT)
    page.goto(report.as_uri())
    page.wait_for_function("() => window.nbsaeReport", timeout=10_000)
    page.evaluate("() => window.nbsaeReport.ready")
    return FeaturePage.first(page)


def assert_quiet(page: Page, log: PageLog) -> None:
    assert log.requests == []
    assert log.errors == []
    assert log.dialogs == []
    assert page.evaluate("() => window.nbsaeReport.errors") == []


def test_report_draws_its_dashboards_and_asks_for_nothing(page: Page, log: PageLog, report: Path):
    feature = opened(page, log, report)
    assert page.evaluate("() => window.nbsaeReport.mounted") == 2
    feature.expect_latent(3)
    feature.expect_pictures()
    expect(page.locator(".nbsae-view > img, .nbsae-view picture > img").first).to_be_hidden()
    expect(page.locator(".nbsae-plotly .main-svg").first).to_be_visible()
    assert_quiet(page, log)


def test_report_page_lends_the_dashboard_none_of_its_own_styles(page: Page, log: PageLog, report: Path):
    """The page styles its footer and headings; the card's must stay where the dashboard puts them."""
    feature = opened(page, log, report)
    scroll, readout = (feature.root.locator(name).bounding_box() for name in (".nbs-scroll", ".nbs-readout"))
    assert scroll is not None
    assert readout is not None
    assert abs(scroll["y"] + scroll["height"] - readout["y"]) < 2


def test_report_draws_within_its_bounds(page: Page, log: PageLog, report: Path):
    feature = opened(page, log, report)
    drawn = page.evaluate("() => window.nbsaeDrawnAt")
    feature.only_saved()
    switch = feature.switch_ms(feature.visible_latents()[1:9])
    print(
        f"\nreport of {report.stat().st_size / 1e6:.2f} MB: drawn {drawn:.0f} ms after navigation "
        f"(bound {DRAWN_BOUND_MS}), another latent in {switch:.0f} ms (bound {SWITCH_BOUND_MS})"
    )
    assert drawn < SLACK * DRAWN_BOUND_MS
    assert switch < SLACK * SWITCH_BOUND_MS


def test_report_switches_latents_by_click_and_by_key(page: Page, log: PageLog, report: Path):
    feature = opened(page, log, report)
    feature.only_saved()
    shown = feature.visible_latents()
    first_picture = feature.root.locator(".nbs-tile img").first
    feature.expect_pictures()
    before = first_picture.get_attribute("src")
    feature.row(shown[5]).click()
    feature.expect_latent(shown[5])
    feature.expect_pictures()
    assert first_picture.get_attribute("src") != before
    page.keyboard.press("ArrowDown")
    feature.expect_latent(shown[6])
    page.keyboard.press("[")
    feature.expect_latent(shown[5])
    page.keyboard.press("Home")
    feature.expect_latent(shown[0])
    page.keyboard.press("/")
    page.keyboard.type(str(shown[7]))
    page.keyboard.press("Enter")
    feature.expect_latent(shown[7])
    assert_quiet(page, log)


def test_report_says_so_for_a_latent_that_was_not_saved_or_never_fired(page: Page, log: PageLog, report: Path):
    feature = opened(page, log, report)
    feature.root.locator(".nbs-unsaved").first.click()
    expect(feature.root.locator(".nbs-message")).to_contain_text("not inside this saved view")
    feature.root.get_by_label("Show 1 dead").check()
    feature.list.focus()
    page.keyboard.press("End")
    feature.expect_latent(511)
    expect(feature.root.locator(".nbs-message")).to_contain_text("never active")
    assert_quiet(page, log)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_follows_the_readers_theme(page: Page, log: PageLog, report: Path, screens: Path, scheme: str):
    page.emulate_media(color_scheme=scheme)
    feature = opened(page, log, report)
    feature.expect_pictures()
    page.screenshot(path=screens / f"report-{scheme}.png", full_page=True)
    feature.root.screenshot(path=screens / f"report-{scheme}-dashboard.png")
    behind, text = page.evaluate(LUMINANCES)
    assert (behind < 80 < text) if scheme == "dark" else (text < 80 < behind)
    assert_quiet(page, log)


def test_report_shows_hostile_strings_as_text_and_runs_none(page: Page, log: PageLog, hostile_report: Path):
    feature = opened(page, log, hostile_report)
    title = page.title()
    feature.expect_latent(0)
    for latent in feature.visible_latents()[:14]:
        feature.row(latent).click()
        feature.expect_latent(latent)
    page.keyboard.press("t")
    page.locator(".nbs-tile").first.hover()
    text = FeaturePage(page.locator(".nbs-feature").nth(1))
    text.root.scroll_into_view_if_needed()
    text.row(text.visible_latents()[1]).click()
    page.wait_for_timeout(300)
    assert page.title() == title != "owned"
    assert page.evaluate("() => document.querySelectorAll('img[src=x], [onerror]').length") == 0
    # Shown, not dropped: the markup stands there as text.
    expect(feature.list).to_contain_text("<img src=x onerror=")
    expect(page.locator("main")).to_contain_text("</script><script>document.title='owned'</script>")
    assert_quiet(page, log)


def test_report_without_scripts_keeps_the_static_pictures(browser, report: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    picture = page.locator(".nbsae-view img").first
    expect(picture).to_be_visible()
    box = picture.bounding_box()
    assert box is not None
    assert box["width"] > 200
    assert box["height"] > 100
    context.close()
