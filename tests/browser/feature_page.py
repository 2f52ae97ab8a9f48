"""The feature dashboard as a person sees it, in the report and in JupyterLab alike."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from playwright.sync_api import Locator, Page, expect

# Runs before the page's own scripts: notes when the first dashboard has painted.
WATCH_SCRIPT = """
window.nbsaeDrawnAt = new Promise((resolve) => {
  const painted = (canvas) => canvas.width > 0 && canvas.getContext('2d')
      .getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0);
  const look = () => {
    if (performance.now() > 20_000) return resolve(Infinity);
    if (![...document.querySelectorAll('canvas.nbs-heat')].some(painted)) return requestAnimationFrame(look);
    // Two frames later the picture is on the screen.
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now())));
  };
  requestAnimationFrame(look);
});
"""

_SWITCH = """
async ([root, latents]) => {
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
  const times = [];
  for (const latent of latents) {
    const row = [...root.querySelectorAll('[role=option]')]
        .find((one) => one.querySelector('.nbs-col-latent')?.textContent === String(latent));
    if (!row) continue;
    await frame();
    const start = performance.now();
    row.click();
    while (root.querySelector('.nbs-title h3')?.textContent.trim().split(' ')[1] !== String(latent)
        || !root.querySelector('.nbs-examples')) {
      if (performance.now() - start > 10_000) throw new Error(`latent ${latent} was not drawn within 10 s`);
      await frame();
    }
    await frame();
    await frame();
    times.push(performance.now() - start);
  }
  return times;
}
"""


@dataclass(frozen=True)
class FeaturePage:
    """One dashboard in a page."""

    root: Locator

    @classmethod
    def first(cls, page: Page) -> FeaturePage:
        return cls(page.locator(".nbs-feature").first)

    @property
    def list(self) -> Locator:
        return self.root.get_by_role("listbox", name="Latents")

    def row(self, latent: int) -> Locator:
        """The line of a latent, which exists while it is near the visible part of the list."""
        return self.list.get_by_role("option").filter(has=self.root.page.get_by_text(str(latent), exact=True)).first

    def visible_latents(self) -> list[int]:
        """Numbers of the lines that exist, from above."""
        rows = self.list.get_by_role("option")
        numbered = rows.evaluate_all(
            "rows => rows.map(row => [row.offsetTop, Number(row.querySelector('.nbs-col-latent').textContent)])"
        )
        return [latent for _, latent in sorted(numbered)]

    def only_saved(self) -> None:
        """Leave only the latents whose cards are inside the report."""
        self.root.get_by_label(re.compile(r"^Only the \d+ saved")).check()

    def expect_latent(self, latent: int) -> None:
        """Wait until the card is this latent's."""
        expect(self.root.locator(".nbs-title h3")).to_have_text(re.compile(rf"^Latent {latent}\b"))

    def expect_pictures(self) -> None:
        """Wait until every picture of the card has loaded and a heat map is painted."""
        expect(self.root.locator(".nbs-tile img").first).to_be_visible()
        handle = self.root.element_handle()
        frame = handle.owner_frame()
        assert frame is not None
        frame.wait_for_function(
            """root => {
                const images = [...root.querySelectorAll('.nbs-tile img')];
                const painted = [...root.querySelectorAll('canvas.nbs-heat')].some((canvas) =>
                    canvas.width > 0 && canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
                        .data.some((value) => value > 0));
                return painted && images.length > 0 && images.every((one) => one.complete && one.naturalWidth > 0);
            }""",
            arg=handle,
        )

    def switch_ms(self, latents: list[int]) -> float:
        """Median milliseconds from a click on a latent to its painted card."""
        times = self.root.page.evaluate(_SWITCH, [self.root.element_handle(), latents])
        assert len(times) >= 3, f"only {len(times)} of the latents {latents} are in the list"
        return statistics.median(times)
