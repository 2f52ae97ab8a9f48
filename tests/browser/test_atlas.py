"""The atlas with a real pointer, real keys and a real drawing context: in a bare page, in a report, in JupyterLab."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from lab import Lab
from mounted import MountPage
from page_log import PageLog
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from test_report_offline import assert_quiet, code, opened, written_report
from widget_fakes import fake_analysis

from nb_sae.widgets.atlas import AtlasDashboard

COUNT = 64
IS_GL = "() => document.querySelector('.nbs-stage canvas').getContext('2d') === null"
CONTEXTS = "() => nbsae.left().contexts"


def grid(**settings) -> AtlasDashboard:
    """Latents 0 … 63 on a board of 8 × 8, row by row from below."""
    numbers = np.arange(COUNT)
    layout = pl.DataFrame({"latent": numbers, "x": numbers % 8, "y": numbers // 8})
    names = {one: f"concept {one}" for one in range(COUNT)}
    return AtlasDashboard(fake_analysis(), layout, names=names, values={"row": numbers // 8}, latent=9, **settings)


def spot(root: Locator, column: float, row: float) -> tuple[float, float]:
    """Where a square of the board is on the screen: 16 pixels are left around the smaller side."""
    box = root.locator(".nbs-stage").bounding_box()
    assert box
    side = min(box["width"], box["height"]) - 32
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    return middle[0] + (column / 7 - 0.5) * side, middle[1] - (row / 7 - 0.5) * side


def drag(page: Page, spots: list[tuple[float, float]]) -> None:
    page.mouse.move(*spots[0])
    page.mouse.down()
    for one in spots[1:]:
        page.mouse.move(*one, steps=6)
    page.mouse.up()


def painted(root: Locator) -> np.ndarray:
    """The map as it is on the screen, its marks left out."""
    root.page.add_style_tag(content=".nbs-over { display: none; }")
    root.page.evaluate("() => nbsae.frames()")
    return np.asarray(Image.open(io.BytesIO(root.locator(".nbs-stage").screenshot())).convert("RGB"), int)


def listed(root: Locator) -> list[int]:
    return sorted(int(one) for one in root.locator(".nbs-row .nbs-col-latent").all_inner_texts())


def test_a_click_picks_and_a_lasso_or_a_box_chooses_what_lies_inside(page: Page, log: PageLog):
    root = MountPage(page).mount(grid(), "live")
    page.mouse.click(*spot(root, 5, 2))
    expect(root.locator("h3")).to_have_text("Latent 21 concept 21")
    expect(root.locator(".nbs-side .nbs-note").first).to_contain_text("of 2,600 rows")  # the kernel's exact count
    root.get_by_role("button", name="Box").click()
    drag(page, [spot(root, 1.5, 1.5), spot(root, 4.5, 3.5)])
    expect(root.locator(".nbs-spoken")).to_have_text("6 chosen of 64 latents")
    assert listed(root) == [18, 19, 20, 26, 27, 28]
    root.get_by_role("button", name="Lasso").click()
    page.keyboard.down("Shift")
    drag(page, [spot(root, -0.5, 6.5), spot(root, 1.2, 6.5), spot(root, 0.5, 7.6), spot(root, -0.5, 7.6)])
    page.keyboard.up("Shift")
    assert listed(root) == [18, 19, 20, 26, 27, 28, 56]
    page.keyboard.down("Alt")
    drag(page, [spot(root, 1.5, 1.5), spot(root, 2.5, 1.5), spot(root, 2.5, 3.5), spot(root, 1.5, 3.5)])
    page.keyboard.up("Alt")
    assert listed(root) == [19, 20, 27, 28, 56]
    root.get_by_role("button", name="Clear").click()
    expect(root.locator(".nbs-spoken")).to_have_text("64 latents")
    assert log.errors == []


def test_the_keyboard_reaches_everything_the_pointer_does(page: Page):
    root = MountPage(page).mount(grid())
    root.locator(".nbs-stage").focus()
    for key, latent in (("ArrowRight", 10), ("ArrowUp", 18), ("ArrowLeft", 17), ("ArrowDown", 9)):
        page.keyboard.press(key)
        expect(root.locator("h3")).to_contain_text(f"Latent {latent} ")
    page.keyboard.press(" ")
    expect(root.locator(".nbs-spoken")).to_have_text("1 chosen of 64 latents")
    for _ in range(4):
        page.keyboard.press("+")
    expect(root.get_by_role("group", name="Zoom")).to_contain_text("506 %")
    page.keyboard.press("v")
    chosen = root.locator(".nbs-spoken")
    expect(chosen).not_to_have_text("1 chosen of 64 latents")
    assert 9 in listed(root)
    assert len(listed(root)) < 20
    page.keyboard.press("0")
    page.keyboard.press("x")
    expect(chosen).to_have_text("64 latents")
    page.keyboard.press("/")
    page.keyboard.type("concept 6")
    expect(chosen).to_have_text("5 found of 64 latents")
    page.keyboard.press("Enter")
    expect(root.locator("h3")).to_contain_text("Latent 6 ")


def test_the_wheel_alone_scrolls_the_page_and_with_control_it_zooms(page: Page):
    root = MountPage(page).mount(grid())
    page.set_viewport_size({"width": 1200, "height": 500})
    root.locator(".nbs-stage").scroll_into_view_if_needed()
    page.mouse.move(600, 300)
    page.mouse.wheel(0, 120)
    page.wait_for_function("() => window.scrollY > 50")
    level = root.get_by_role("group", name="Zoom").locator("button").nth(1)
    expect(level).to_have_text("100 %")
    page.keyboard.down("Control")
    page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    expect(level).to_have_text("165 %")
    before = page.evaluate("() => window.scrollY")
    drag(page, [(600, 300), (500, 300)])
    assert page.evaluate("() => window.scrollY") == before
    level.click()
    expect(level).to_have_text("100 %")


def test_two_fingers_pinch(page: Page):
    root = MountPage(page).mount(grid())
    session = page.context.new_cdp_session(page)
    x, y = spot(root, 3.5, 3.5)
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 120), ("touchEnd", 0)):
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    level = root.get_by_role("group", name="Zoom").locator("button").nth(1)
    expect(level).to_have_text("300 %")


def test_both_layers_draw_the_same_map(page: Page):
    mounts = MountPage(page)
    pictures = {}
    for draw in ("canvas", "gl"):
        dashboard = grid(draw=draw)
        dashboard.selected = range(24)
        root = mounts.mount(dashboard)
        page.wait_for_function(f"() => ({IS_GL})() === {'true' if draw == 'gl' else 'false'}")
        pictures[draw] = painted(root)
        mounts.unmount()
    ground = pictures["gl"][2, 2]
    drawn = {draw: np.abs(picture - ground).sum(-1) > 60 for draw, picture in pictures.items()}
    assert 0.004 < drawn["gl"].mean() < 0.1
    # Edges are smooth on one and not on the other; the discs are the same.
    assert (drawn["gl"] & drawn["canvas"]).sum() > 0.75 * (drawn["gl"] | drawn["canvas"]).sum()
    for column, row in ((0, 0), (7, 7), (0, 7)):
        height, width = drawn["gl"].shape
        side = min(height, width) - 32
        x, y = width / 2 + (column / 7 - 0.5) * side, height / 2 - (row / 7 - 0.5) * side
        colours = [picture[round(y), round(x)] for picture in pictures.values()]
        assert np.abs(colours[0] - colours[1]).max() <= 3


def test_a_context_is_given_back_out_of_sight_and_a_lost_one_leaves_a_picture(page: Page):
    mounts = MountPage(page)
    root = mounts.mount(grid(draw="gl"))
    page.wait_for_function(IS_GL)
    assert page.evaluate(CONTEXTS) == 1
    page.evaluate("""() => {
        const gl = document.querySelector('.nbs-stage canvas').getContext('webgl2');
        gl.getExtension('WEBGL_lose_context').loseContext();
    }""")
    page.wait_for_function(f"() => !({IS_GL})()")
    picture = painted(root)
    assert (np.abs(picture - picture[2, 2]).sum(-1) > 60).mean() > 0.004
    page.evaluate("() => document.getElementById('root').style.setProperty('margin-top', '5000px')")
    page.evaluate("() => nbsae.frames(4)")
    page.evaluate("() => window.scrollTo(0, 4800)")
    page.wait_for_function(IS_GL)
    page.evaluate("() => window.scrollTo(0, 0)")
    page.wait_for_function(f"() => !({IS_GL})()")
    assert page.evaluate(CONTEXTS) == 0
    page.evaluate("() => window.scrollTo(0, 4800)")
    page.wait_for_function(IS_GL)
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    assert not page.evaluate(IS_GL)
    mounts.unmount()
    assert page.evaluate(CONTEXTS) == 0


@pytest.mark.parametrize("width", [360, 420, 900, 1400])
def test_nothing_sticks_out_and_every_axis_is_named(page: Page, screens: Path, width: int):
    page.set_viewport_size({"width": width, "height": 1100})
    root = MountPage(page).mount(AtlasDashboard(fake_analysis("text"), names={5: "x" * 400}, latent=5))
    expect(root.locator(".nbs-axis-x")).to_have_text("density →")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    box = root.locator(".nbs-stage").bounding_box()
    assert box
    assert min(box["width"], box["height"]) > 250
    root.screenshot(path=screens / f"atlas-{width}.png")


# In a report and in JupyterLab

SETUP = """
import numpy as np, polars as pl
from nb_sae.widgets.atlas import AtlasDashboard
from widget_fakes import HOSTILE, fake_analysis

numbers = np.arange(512)
spread = np.random.default_rng(0).normal(size=(2, 512))
x, y = np.stack([np.cos(numbers // 64), np.sin(numbers // 64)]) * 6 + spread
layout = pl.DataFrame({"latent": numbers, "x": x, "y": y})
"""
PLAIN = """
AtlasDashboard(fake_analysis(d_sae=512), layout, names={7: "hat"}, values={"group": numbers // 64}, latent=7)
"""
BAD = """
names = dict(enumerate(HOSTILE))
AtlasDashboard(fake_analysis("text", hostile=True), names=names, values={HOSTILE[0]: HOSTILE[:8] * 8}, latent=1)
"""
LIVE = """
dashboard = AtlasDashboard(fake_analysis(d_sae=512), layout, draw="gl")
dashboard
"""
ASK = "print('chosen', len(dashboard.selected), dashboard.latent, dashboard.colour)"
SET = "dashboard.selected = range(3, 10); dashboard.latent = 5; dashboard.colour = 'level'"


def test_a_report_shows_maps_of_friends_and_foes_and_asks_for_nothing(
    page: Page, log: PageLog, tmp_path: Path, screens: Path
):
    opened(page, log, written_report(tmp_path, "atlas", code(SETUP, PLAIN, BAD)))
    first, second = page.locator(".nbs-atlas").all()
    expect(first.locator("h3")).to_have_text("Latent 7 hat")
    expect(first.locator(".nbs-tile img").first).to_be_visible()
    first.get_by_label("Colour by").select_option("group")
    first.screenshot(path=screens / "atlas-report.png")
    expect(second.locator("h3")).to_contain_text("</script>")
    second.get_by_label("Colour by").select_option(index=2)
    expect(second.locator(".nbs-below")).to_contain_text("<img src=x")
    assert second.locator("script, iframe, [onerror]").count() == 0
    assert page.title() != "owned"
    assert_quiet(page, log)


def test_in_jupyterlab_the_choice_goes_both_ways(page: Page, lab: Lab, screens: Path):
    lab.write("atlas.ipynb", [SETUP, LIVE, ASK, SET, ASK])
    notebook = lab.open(page, "atlas.ipynb")
    notebook.run(0)
    notebook.run(1)
    root = notebook.cell(1).locator(".nbs-atlas")
    expect(root.locator(".nbs-spoken")).to_have_text("512 latents")
    stage = root.locator(".nbs-stage")
    stage.focus()
    page.keyboard.press("v")
    expect(root.locator(".nbs-spoken")).to_have_text("512 chosen of 512 latents")
    root.screenshot(path=screens / "lab-atlas.png")
    notebook.run(2)
    notebook.expect_text(2, "chosen 512")
    notebook.run(3)
    expect(root.locator(".nbs-spoken")).to_have_text("7 chosen of 512 latents")
    expect(root.locator("h3")).to_contain_text("Latent 5")
    expect(root.get_by_label("Colour by")).to_have_value("level")
    notebook.run(4)
    notebook.expect_text(4, "chosen 7 5 level")
