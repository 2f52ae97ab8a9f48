"""Hosts that cannot be run here, as pages that behave as theirs do: VS Code, Colab, an old anywidget front end.

What is simulated is what the hosts' own sources and issues say; see docs/hosts.md.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from feature_page import FeaturePage
from kinds import KINDS
from mounted import HARNESS, MountPage, saved_view
from page_log import PageLog
from playwright.sync_api import Frame, Locator, Page, expect
from widget_fakes import fake_analysis

import nb_sae as ns
from nb_sae.widgets.base import Dashboard

# @jupyter-widgets/controls brings JupyterLab's light colours along, and both VS Code and Colab load its style sheet.
LAB_VARIABLES = ":root {--jp-layout-color0: white; --jp-content-font-color0: black; --jp-ui-font-family: Arial}"
# vscode-jupyter paints the place of every widget white, whatever the theme (microsoft/vscode-jupyter#7161).
VSCODE = """<!doctype html><html lang=en><meta charset=utf-8><title>VS Code</title><style>
{lab}
html {{--vscode-editor-background: {back}; --vscode-editor-foreground: {front}}}
body {{background: {back}; color: {front}}}
.cell-output-ipywidget-background {{background: white !important}}
</style><body class="vscode-{theme}"><div id=static>{static}</div>
<div class=cell-output-ipywidget-background id=root></div></body></html>"""
THEMES = {"dark": ("#1e1e1e", "#d4d4d4"), "light": ("#ffffff", "#3b3b3b")}
HUB = "http://hub.invalid/"
# Every output of Colab is a sandboxed page of its own: no storage, and nothing is shared between outputs.
COLAB = """<!doctype html><html lang=en><meta charset=utf-8><title>Colab</title>
<style>iframe {{width: 900px; height: 740px}}</style><body>{frames}</body></html>"""
OUTPUT = """<!doctype html><html lang=en theme=dark><meta charset=utf-8><title>output</title><style>{lab}</style>
<body><div id=static>{twin}</div><main id=root></main></body></html>"""

# The luminance of the dashboard's ground and of its text, 0 to 255.
COLOURS = """root => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const of = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const {backgroundColor, color, colorScheme} = getComputedStyle(root);
    return {ground: of(backgroundColor), text: of(color), scheme: colorScheme};
}"""


@cache
def made_once(kind: str) -> Dashboard:
    """A dashboard of this kind, for every test that only draws it."""
    return KINDS[kind].make()


def dashboard() -> ns.FeatureDashboard:
    return ns.FeatureDashboard(fake_analysis("patches", d_sae=96), latent=3, saved=[1, 3, 5, 7])


def twin_of(made: ns.FeatureDashboard) -> str:
    """The static output that stands before the live view."""
    return made._twin_bundle(base64.b64encode(made.picture()).decode())[0]["text/html"]


def expect_theme(root: Locator, theme: str) -> None:
    found = root.evaluate(COLOURS)
    dark, light = found["ground"] < 60 and found["text"] > 150, found["ground"] > 230 and found["text"] < 90
    assert (found["scheme"], dark, light) == (theme, theme == "dark", theme == "light"), found


def vscode(page: Page, theme: str, static: str = "") -> None:
    back, front = THEMES[theme]
    page.set_content(VSCODE.format(lab=LAB_VARIABLES, theme=theme, back=back, front=front, static=static))


@pytest.mark.parametrize("theme", THEMES)
def test_vscode_every_dashboard_paints_its_own_ground_and_text(page: Page, screens: Path, theme: str):
    """Also where the system's theme is the other one: VS Code has its own."""
    page.emulate_media(color_scheme="light" if theme == "dark" else "dark")
    mounted = MountPage(page)
    vscode(page, theme)
    page.add_script_tag(path=HARNESS)
    for name in KINDS:
        root = mounted.mount(made_once(name), "absent")
        expect_theme(root, theme)
        if name == "feature-image":
            page.screenshot(path=screens / f"vscode-{theme}.png")
        mounted.unmount()


def test_vscode_keeps_the_picture_and_hides_it_while_the_dashboard_lives(page: Page):
    made = dashboard()
    mounted = MountPage(page)
    vscode(page, "dark", twin_of(made))
    page.add_script_tag(path=HARNESS)
    picture = page.locator("#static img")
    expect(picture).to_be_visible()  # so a notebook that VS Code reopens looks: it never saves a widget
    mounted.mount(made, "live")
    FeaturePage.first(page).expect_latent(3)
    expect(picture).to_be_hidden()
    mounted.unmount()
    expect(picture).to_be_visible()


@dataclass
class ColabOutput:
    """One output of a Colab notebook: a sandboxed page of its own, with the picture and the live view in it."""

    frame: Frame
    made: ns.FeatureDashboard

    @property
    def feature(self) -> FeaturePage:
        return FeaturePage(self.frame.locator(".nbs-feature"))

    def mount(self, *, old: bool) -> None:
        self.frame.add_script_tag(path=HARNESS)
        saved = saved_view(self.made)
        self.frame.evaluate("css => nbsae.style(css)", saved["css"])
        self.frame.evaluate("([saved, old]) => nbsae.mount(saved, 'live', old)", [saved, old])


@pytest.fixture
def colab(page: Page) -> list[ColabOutput]:
    """A dashboard that two cells display, in the dark, with its kernel behind it."""
    made = dashboard()
    output = html.escape(OUTPUT.format(lab=LAB_VARIABLES, twin=twin_of(made)), quote=True)
    MountPage(page).use(made)
    page.set_content(COLAB.format(frames=f'<iframe sandbox="allow-scripts" srcdoc="{output}"></iframe>' * 2))
    return [ColabOutput(frame, made) for frame in page.main_frame.child_frames]


@pytest.mark.parametrize("old", [False, True], ids=["anywidget-0.11", "anywidget-0.9"])
def test_colab_each_output_is_whole_without_storage_and_without_the_others(
    page: Page, log: PageLog, screens: Path, colab: list[ColabOutput], old: bool
):
    page.emulate_media(color_scheme="light")
    for output in colab:
        output.mount(old=old)
        output.feature.expect_latent(3)
        output.feature.expect_pictures()
        expect(output.frame.locator("#static img")).to_be_hidden()
        expect_theme(output.feature.root, "dark")
    first, second = colab
    first.frame.locator(".nbs-col-latent").get_by_text(
        "4", exact=True
    ).click()  # not saved: its card comes from the kernel
    first.feature.expect_latent(4)
    first.feature.expect_pictures()
    second.feature.expect_latent(3)
    page.screenshot(path=screens / f"colab-{old}.png")
    assert log.requests == []
    assert [error for error in log.errors if "sandbox" not in error] == []


def test_old_front_end_gives_neither_signal_nor_host_and_the_view_still_lives_and_ends(page: Page):
    """anywidget 0.9.21 to 0.10, as `render({model, el})` calls it."""
    mounted = MountPage(page)
    for kind in KINDS:
        saved = mounted.use(made_once(kind))
        before = page.evaluate("() => nbsae.left()")
        page.evaluate("saved => nbsae.mount(saved, 'live', true)", saved)
        expect(mounted.root).to_be_visible()
        assert page.locator(".nbs-error").count() == 0
        mounted.unmount()
        assert page.evaluate("() => nbsae.left()") == before


def test_page_with_a_content_policy_needs_blob_scripts_and_nothing_else(page: Page, log: PageLog):
    """A hardened hub: no eval, no worker, no address outside the page. Any anywidget is a `blob:` script."""
    policy = "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data: blob:"
    mounted = MountPage(page)
    page.route(
        HUB,
        lambda route: route.fulfill(
            body="<!doctype html><html lang=en><title>hub</title><main id=root></main><script>"
            "try { eval('1') } catch { document.title = 'eval is refused' }</script></html>",
            headers={"content-type": "text/html", "content-security-policy": policy},
        ),
    )
    page.goto(HUB)
    page.add_script_tag(content=HARNESS.read_text())
    assert page.title() == "eval is refused"
    log.requests.clear()
    log.errors.clear()
    for kind in KINDS:
        saved = mounted.use(made_once(kind))
        # Later: what Playwright evaluates itself may use eval in spite of the policy.
        page.evaluate("saved => { setTimeout(() => nbsae.mount(saved, 'live')) }", saved)
        expect(page.locator(".nbs-dash")).to_be_visible()
        page.evaluate("() => nbsae.frames(3)")
        assert page.locator(".nbs-error").count() == 0
        mounted.unmount()
    assert (log.requests, log.errors) == ([], [])
