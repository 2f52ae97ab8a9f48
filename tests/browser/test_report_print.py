"""A report on paper: the PDF that `pdf=True` writes, and what a reader's own print command makes of the page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from kinds import KINDS
from page_log import PageLog
from PIL import Image, ImageStat
from playwright.sync_api import Page, expect
from report_pages import code, markdown, saved, shown, stream
from shown_notebook import notebook_of
from test_report_offline import opened

import nb_sae as ns
from nb_sae.reporting.browser import ADDRESS, with_page
from nb_sae.reporting.report import make_report

FIGURE = {"data": [{"type": "bar", "x": [1, 2, 3], "y": [3, 1, 2]}], "layout": {"title": {"text": "Bars"}}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory):
    """A page of text, a figure and two dashboards, and its PDF."""
    folder = tmp_path_factory.mktemp("print")
    made = notebook_of(
        [KINDS["feature-image"].make(), KINDS["flow"].make()],
        markdown("# On <paper> & screen\n\nWords.\n\n## A figure"),
        code("figure", stream("drawn\n"), shown(plotly=FIGURE)),
    )
    return make_report(saved(folder, made), pdf=True)


def pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b(?!s)", pdf))


def test_the_pdf_is_whole_tagged_and_outlined(report):
    pdf = report.pdf.read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert 2 <= pages(pdf) <= 6
    for part in (b"/Outlines", b"/StructTreeRoot", b"/Lang"):
        assert part in pdf
    assert sorted(path.suffix for path in report.html.parent.iterdir()) == [".html", ".ipynb", ".ipynb", ".pdf"]


def test_the_pdf_holds_what_the_page_shows(report, screens: Path, tmp_path: Path):
    """Looked at as pictures where poppler is installed; without it this says so."""
    try:
        subprocess.run(
            ["pdftoppm", "-r", "40", "-png", str(report.pdf), str(tmp_path / "page")], check=True, timeout=60
        )
        text = subprocess.run(["pdftotext", str(report.pdf), "-"], check=True, capture_output=True, timeout=60).stdout
    except FileNotFoundError:
        pytest.skip("poppler (pdftoppm, pdftotext) is not installed")
    said = text.decode()
    for words in ("On <paper> & screen", "Latent 3", "Planted", "Bars", "Latent 21"):
        assert words in said
    boxes = subprocess.run(["pdftotext", "-bbox", str(report.pdf), "-"], check=True, capture_output=True, timeout=60)
    found = re.search(r'yMin="([\d.]+)" xMax="[\d.]+" yMax="([\d.]+)">Words', boxes.stdout.decode())
    assert found is not None
    # 17 px at a scale of 0.65 are a box of 9.6 points; what sticks out of a dashboard makes all of the page smaller.
    assert float(found.group(2)) - float(found.group(1)) > 9
    for number, path in enumerate(sorted(tmp_path.glob("page-*.png"))):
        picture = Image.open(path).convert("RGB")
        picture.save(screens / f"report-pdf-{number + 1}.png")
        assert min(picture.getpixel((2, 2))) >= 250  # white to the edge
        assert ImageStat.Stat(picture.convert("L")).stddev[0] > 3  # and not empty


def test_paper_is_light_whatever_the_screen_is(page: Page, log: PageLog, report, screens: Path):
    page.emulate_media(color_scheme="dark")
    opened(page, log, report.html)
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_timeout(200)
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    ink = page.evaluate("() => getComputedStyle(document.querySelector('.nbs-title h3')).color")
    assert max(map(int, re.findall(r"\d+", ink)[:3])) < 80
    for hidden in ("aside", ".modebar", ".source[open] > summary"):
        expect(page.locator(hidden).first).to_be_hidden()
    page.screenshot(path=screens / "report-print-from-dark.png", full_page=True)
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen", color_scheme="dark")
    assert page.evaluate("() => document.documentElement.dataset.nbsaeTheme") == "auto"
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_the_browser_gives_a_page_nothing_but_itself():
    """Not even a page without any policy gets something from the network or from a file."""
    page = (
        "<title>x</title><img src='https://example.org/a.png'><link rel=stylesheet href='//example.org/a.css'>"
        "<iframe src='file:///etc/hostname'></iframe><script>globalThis.ran = true</script>"
    )

    async def look(tab):
        return await tab.run("[ran, location.href, frames[0] && frames[0].length]"), list(tab.refused)

    seen, refused = with_page(page, look, needed_for="This test")
    assert seen[:2] == [True, ADDRESS]
    assert {"https://example.org/a.png", "https://example.org/a.css"} <= set(refused)


def test_a_page_that_fails_is_an_error():
    async def fail(tab):
        return await tab.run("Promise.reject(new Error('no such thing'))")

    with pytest.raises(ns.errors.ReportError, match="no such thing"):
        with_page("<title>x</title>", fail, needed_for="This test")
