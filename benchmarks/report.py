"""A report of every kind of dashboard and a figure: its size, how fast it opens, and the notebook beside it.

    python benchmarks/report.py            # 16,384 latents in the list, 100,000 in the atlas: about a minute
    python benchmarks/report.py --small    # planted tables of tests: checks that everything runs
    python benchmarks/report.py --pdf      # prints it, too

Bounds: the page within 10 MB; from the beginning of the navigation until every dashboard is painted below 2 s in the
median, without one request; the notebook beside it within 3 MB. Exits with 1 if one is missed. "with figures" is until
plotly.js, read after the dashboards, has drawn its figure; "processor" is the main thread's own time until the
dashboards are painted, for a machine with other work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser"), str(ROOT / "scripts")]

PAGE_BYTES, OPENS_MS, NOTEBOOK_BYTES = 10_000_000, 2_000.0, 3_000_000
LIST_LATENTS, ATLAS_LATENTS = 16_384, 100_000
ROUNDS = 7

# Before the page's own scripts: when every view has its dashboard and two frames have passed.
WATCH = """
window.painted = new Promise((resolve) => {
  const look = () => {
    const views = [...document.querySelectorAll('.nbsae-view')];
    const done = document.readyState !== 'loading' && views.length && views.every((one) => one.dataset.mounted);
    if (!done) return requestAnimationFrame(look);
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now())));
  };
  requestAnimationFrame(look);
});
"""


def dashboards(small: bool) -> list:
    """One of every kind; the list and the atlas as large as a real dictionary."""
    from kinds import KINDS
    from widget_fakes import _latents, fake_analysis

    import nb_sae as ns

    made = {name: kind.make() for name, kind in KINDS.items()}
    if small:
        return list(made.values())
    rng = np.random.default_rng(0)
    held = fake_analysis("patches", d_sae=64)
    large = replace(held, latents=_latents(rng, LIST_LATENTS, held.rows), d_sae=LIST_LATENTS)
    names = {latent: f"concept {latent}" for latent in range(0, LIST_LATENTS, 3)}
    made["feature-image"] = ns.FeatureDashboard(large, names=names, latent=3, saved=list(range(64)))
    vast = replace(held, latents=_latents(rng, ATLAS_LATENTS, held.rows), d_sae=ATLAS_LATENTS)
    x, y = rng.standard_normal((2, ATLAS_LATENTS))
    made["atlas"] = ns.AtlasDashboard(vast, pl.DataFrame({"latent": range(ATLAS_LATENTS), "x": x, "y": y}), latent=3)
    return list(made.values())


def opened(report: Path, rounds: int) -> tuple[list[float], list[float], list[float], list[str]]:
    """Milliseconds until painted, until figures are drawn, of the main thread until painted; and what was asked."""
    from playwright.sync_api import sync_playwright
    from setup_browser import find_chromium

    painted, whole, worked, asked = [], [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"])
        for _ in range(rounds):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.add_init_script(WATCH)
            session = context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(report.as_uri(), wait_until="commit")
            painted.append(page.evaluate("() => window.painted"))
            metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            worked.append(metrics["TaskDuration"] * 1e3)
            whole.append(page.evaluate("() => window.nbsaeReport.ready.then(() => performance.now())"))
            errors = page.evaluate("() => window.nbsaeReport.errors")
            if errors:
                raise SystemExit(f"The report says: {errors}")
            context.close()
        browser.close()
    return painted, whole, worked, [url for url in asked if not url.startswith(("data:", "blob:", report.as_uri()))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--pdf", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()

    import plotly.graph_objects as go
    from report_pages import code, markdown, saved, shown
    from shown_notebook import notebook_of

    from nb_sae.reporting.report import make_report

    held = dashboards(options.small)
    figure = go.Figure(go.Bar(y=[3, 1, 2]), layout_title_text="Bars").to_plotly_json()
    cells = [markdown("# Every dashboard"), code("figure", shown(plotly=figure))]
    with tempfile.TemporaryDirectory() as folder:
        source = saved(Path(folder), notebook_of(held, *cells))
        started = time.perf_counter()
        made = make_report(source, pdf=options.pdf)
        took = time.perf_counter() - started
        page, notebook = made.html.stat().st_size, made.notebook.stat().st_size
        print(
            f"{len(held)} dashboards: written in {took:.1f} s from a notebook of {source.stat().st_size / 1e6:.2f} MB"
        )
        if made.pdf is not None:
            print(f"PDF                 {made.pdf.stat().st_size / 1e6:8.2f} MB")
        painted, whole, worked, asked = opened(made.html, options.rounds)
    median = statistics.median(painted)
    print(f"page                {page / 1e6:8.2f} MB   (bound {PAGE_BYTES / 1e6:.0f})")
    print(f"notebook beside it  {notebook / 1e6:8.2f} MB   (bound {NOTEBOOK_BYTES / 1e6:.0f})")
    print(f"opens               {median:8.0f} ms   (bound {OPENS_MS:.0f}; {min(painted):.0f} … {max(painted):.0f})")
    print(f"with figures        {statistics.median(whole):8.0f} ms")
    print(f"processor           {statistics.median(worked):8.0f} ms   (main thread, until painted)")
    print(f"requests            {len(asked):8d}      (bound 0)")
    missed = page > PAGE_BYTES or notebook > NOTEBOOK_BYTES or median > OPENS_MS or bool(asked)
    print("missed" if missed else "met")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
