"""A report as PDF, printed by a browser: light, with the dashboards drawn, an outline and numbered pages."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from html import escape

from nb_sae.errors import ReportError
from nb_sae.reporting.browser import LIGHT, Tab, with_page

NEEDED_FOR = "A PDF"
# Everything is drawn: the runtime is done, pictures are decoded, and some frames have passed.
_DRAWN = """(async () => {
  const report = globalThis.nbsaeReport;
  if (report) await report.ready;
  await Promise.all([...document.images].map((one) => one.decode().catch(() => {})));
  await document.fonts.ready;
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const frame = () => Promise.race([new Promise((resolve) => requestAnimationFrame(resolve)), pause(500)]);
  // A canvas that follows the size of its box draws in the frame after the next.
  for (let frames = 0; frames < 4; frames += 1) await frame();
  await pause(200);
  return report ? report.errors : [];
})()"""
_FOOTER = (
    '<div style="font:7.5pt system-ui,sans-serif;color:#5d6166;width:100%;padding:0 14mm;display:flex;'
    'justify-content:space-between"><span>{title}</span>'
    '<span><span class="pageNumber"></span> / <span class="totalPages"></span></span></div>'
)
_PIECE_BYTES = 1 << 20
_WIDTH_IN, _HEIGHT_IN, _MARGIN_IN, _BOTTOM_IN = 8.27, 11.69, 0.5, 0.65
_SCALE = 0.65
"""Text of 17 px becomes 8.3 pt, a dashboard has 1,074 px of width, and two of them find room on a page."""
_PAPER_PX = round((_WIDTH_IN - 2 * _MARGIN_IN) * 96 / _SCALE)
"""What is drawn on a canvas is drawn for this width: printing lays the page out again, and no canvas."""
_SHEET_PX = round((_HEIGHT_IN - _MARGIN_IN - _BOTTOM_IN) * 96 / _SCALE)


def printed(page: str, title: str) -> list[bytes]:
    """The page of a report as the parts of a PDF file (A4).

    Raises:
        MissingDependencyError: There is no browser.
        ReportError: The browser failed.
    """

    async def print_it(tab: Tab) -> list[bytes]:
        # From here on the page is laid out as on paper, so that what is drawn on canvases fits.
        await tab.call("Emulation.setEmulatedMedia", media="print", features=LIGHT)
        await tab.run(f"document.documentElement.dataset.sheet = {_SHEET_PX}")
        await tab.run(_DRAWN)
        reply = await tab.call(
            "Page.printToPDF", paperWidth=_WIDTH_IN, paperHeight=_HEIGHT_IN, marginTop=_MARGIN_IN, scale=_SCALE,
            marginBottom=_BOTTOM_IN, marginLeft=_MARGIN_IN, marginRight=_MARGIN_IN, printBackground=True,
            displayHeaderFooter=True, headerTemplate="<span></span>",
            footerTemplate=_FOOTER.format(title=escape(title[:120])), generateTaggedPDF=True,
            generateDocumentOutline=True, transferMode="ReturnAsStream",
        )  # fmt: skip
        parts = [part async for part in _read(tab, reply["stream"])]
        if not parts or not parts[0].startswith(b"%PDF-"):
            raise ReportError("The browser printed no PDF. Open the HTML report in a browser and print it.")
        return parts

    return with_page(page, print_it, needed_for=NEEDED_FOR, width=_PAPER_PX)


async def _read(tab: Tab, stream: str) -> AsyncIterator[bytes]:
    """The parts of a file that the browser holds."""
    while True:
        part = await tab.call("IO.read", handle=stream, size=_PIECE_BYTES)
        data = part["data"]
        yield base64.b64decode(data) if part.get("base64Encoded") else data.encode("latin-1")
        if part["eof"]:
            await tab.call("IO.close", handle=stream)
            return
