"""The atlas at 100k latents: a redraw in software GL and without GL, what an interaction takes, and what is saved.

    python benchmarks/atlas.py                  # 100,000 latents: about two minutes
    python benchmarks/atlas.py --latents 2000   # seconds: checks that everything runs
    python benchmarks/atlas.py --umap           # times UMAP on as many directions, too: minutes

Bounds: a redraw of what the atlas takes on this machine (no hardware: the 2D canvas, "flat") at most 33 ms in the
median, for the whole map, for a choice with the others faded, zoomed in, and on a screen of two pixels per pixel; p95
of an interaction from the event to the painted frame below 100 ms; the saved state within 1 MB. Exits with 1 if one is
missed. "gl" is WebGL2 on the processor, which the atlas takes only with draw="gl"; each redraw is read back, so that
it is finished. "processor" is what the browser's processes worked per redraw, for a machine with other work. The frame
of an interaction waits for two frames of the screen, 33 ms, whatever it costs. Needs Node, for the point layer alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts"), str(ROOT / "benchmarks")]

REDRAW_MS, INTERACTION_MS, SAVED_BYTES = 33.0, 100.0, 1_000_000
WIDTH, HEIGHT = 860, 580
"""Of the map in a window of 1,200 pixels."""
ROUNDS = 40
GROUPS = 60

# Redraws of one kind, in milliseconds: the camera moves every time.
REDRAW = """async ({ count, kind, density, zoom, faded, rounds, width, height }) => {
    const random = (seed) => () => ((seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648);
    const next = random(7);
    const normal = () => (next() + next() + next() + next() - 2) / 2;
    const points = { x: new Uint16Array(count), y: new Uint16Array(count) };
    for (let i = 0; i < count; i += 1) {
        points.x[i] = Math.max(0, Math.min(65535, 32768 + 30000 * normal()));
        points.y[i] = Math.max(0, Math.min(65535, 32768 + 30000 * normal()));
    }
    const layer = core.pointLayer(points, kind === 'gl' ? 'gl' : 'canvas');
    document.body.append(layer.element);
    layer.wake();
    if (layer.kind() !== kind) throw new Error(`no ${kind} layer here`);
    const bytes = () => Uint8Array.from({ length: count }, () => 1 + next() * 254);
    const palette = new Uint8Array(2048).fill(255);
    layer.look({
        code: bytes(), size: bytes(), palette,
        faded: faded ? Uint8Array.from({ length: count }, () => Number(next() > 0.1)) : undefined,
    });
    const canvas = layer.element.querySelector('canvas');
    const gl = kind === 'gl' ? canvas.getContext('webgl2') : undefined;
    const [w, h] = [width * density, height * density];
    const size = Math.min(16, Math.max(2, Math.sqrt((width * height * 0.1) / count)) * zoom ** 0.5) * density;
    const times = [];
    for (let round = 0; round < rounds; round += 1) {
        await new Promise((done) => setTimeout(done));
        const side = Math.min(w, h) * zoom;
        const start = performance.now();
        layer.draw({
            scale: [side, -side], shift: [w / 2 - (0.45 + 0.1 * next()) * side, h / 2 + (0.45 + 0.1 * next()) * side],
            least: 0.6 * size, most: 1.6 * size,
        }, w, h);
        if (gl) gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
        times.push(performance.now() - start);
    }
    layer.dispose();
    layer.element.remove();
    return times.slice(3);
}"""
STAGE = "document.querySelector('.nbs-stage')"
KEY = "new KeyboardEvent('keydown', {{ key: '{key}', shiftKey: {shift}, bubbles: true, cancelable: true }})"
POINTER = """(name, x, y) => {
    const stage = document.querySelector('.nbs-stage');
    const box = stage.getBoundingClientRect();
    const at = { clientX: box.x + x * box.width, clientY: box.y + y * box.height, bubbles: true, button: 0,
        pointerId: 1, pointerType: 'mouse' };
    stage.dispatchEvent(new PointerEvent(name, at));
}"""
INTERACTIONS = {
    "hover": f"""async () => timed(() => ({POINTER})('pointermove', Math.random(), Math.random()), false)""",
    "pick with the pointer": f"""async () => timed(() => {{
        const [x, y] = [0.3 + 0.4 * Math.random(), 0.3 + 0.4 * Math.random()];
        ({POINTER})('pointerdown', x, y);
        ({POINTER})('pointerup', x, y);
    }}, false)""",
    "arrow key": f"""async () => timed(() =>
        {STAGE}.dispatchEvent({KEY.format(key="ArrowRight", shift="false")}), false)""",
    "move the map": f"""async () => timed(() =>
        {STAGE}.dispatchEvent({KEY.format(key="ArrowLeft", shift="true")}), false)""",
    "zoom": f"""async () => timed(() => {STAGE}.dispatchEvent({KEY.format(key="+", shift="false")}), false)""",
    "whole map": f"""async () => timed(() => {STAGE}.dispatchEvent({KEY.format(key="0", shift="false")}), false)""",
    "lasso": f"""async () => {{
        [...document.querySelectorAll('button')].find((one) => one.textContent === 'Lasso').click();
        const turn = (step) => [0.5 + 0.3 * Math.cos(step / 16), 0.5 + 0.3 * Math.sin(step / 16)];
        ({POINTER})('pointerdown', ...turn(0));
        for (let step = 1; step < 100; step += 1) ({POINTER})('pointermove', ...turn(step));
        return timed(() => ({POINTER})('pointerup', ...turn(100)), false);
    }}""",
    "colour": """async () => timed(() => {
        const select = document.querySelector('select');
        select.selectedIndex = (select.selectedIndex + 1) % 3;
        select.dispatchEvent(new Event('change'));
    }, false)""",
}


def planted(latents: int, width: int = 64):
    """Directions in groups, and an analysis of as many latents."""
    import torch
    from widget_fakes import fake_analysis

    from nb_sae.analysis import schema

    generator = torch.Generator().manual_seed(0)
    group = torch.arange(latents) % GROUPS
    centres = 4 * torch.randn(GROUPS, width, generator=generator)
    rows = centres[group] + torch.randn(latents, width, generator=generator)
    rng = np.random.default_rng(0)
    largest = rng.gamma(2, 1, latents)
    frame = {
        "latent": np.arange(latents), "density": rng.beta(0.5, 20, latents), "active_rows": 10, "mean": largest / 3,
        "max": largest, "level": np.arange(latents) % 4, "dead": False, "histogram": [[1]] * latents,
        "histogram_max": largest,
    }  # fmt: skip
    small = fake_analysis("patches")
    table = pl.DataFrame(frame, schema=schema.LATENTS)
    return rows, type(small)(**{**vars(small), "latents": table, "d_sae": latents}), group.numpy()


def processor() -> float:
    """Seconds that the browser's processes have worked so far."""
    import psutil

    times = [one.cpu_times() for one in psutil.Process().children(recursive=True) if one.is_running()]
    return sum(one.user + one.system for one in times)


def redraws(page, latents: int) -> bool:
    """Print the time of each kind of redraw; whether the bound holds."""
    good = True
    print(f"{'redraw':<44}{'median ms':>11}{'p95 ms':>9}{'least ms':>10}{'processor ms':>15}")
    for kind in ("gl", "flat"):
        for what, settings in {
            "whole map": {}, "a tenth chosen": {"faded": True}, "zoomed 8 times": {"zoom": 8},
            "whole map, 2 pixels per pixel": {"density": 2},
        }.items():  # fmt: skip
            given = {"zoom": 1, "density": 1, "faded": False, **settings}
            before = processor()
            times = page.evaluate(
                REDRAW, {"count": latents, "kind": kind, "rounds": ROUNDS, "width": WIDTH, "height": HEIGHT, **given}
            )
            worked = (processor() - before) / ROUNDS * 1e3
            median, p95 = np.median(times), np.quantile(times, 0.95)
            print(f"{kind + ': ' + what:<44}{median:>11.1f}{p95:>9.1f}{min(times):>10.1f}{worked:>15.1f}")
            good &= kind == "gl" or median <= REDRAW_MS
    return good


def interactions(page) -> bool:
    good = True
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def worked() -> float:
        """Milliseconds that the page's main thread has worked so far."""
        held = session.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in held if one["name"] == "TaskDuration") * 1e3

    print(f"{'interaction':<44}{'median ms':>11}{'p95 ms':>9}{'processor, p95':>16}")
    for name, script in INTERACTIONS.items():
        times, work = [], []
        for _ in range(ROUNDS):
            before = worked()
            times.append(page.evaluate(script)[0])
            work.append(worked() - before)
        p95 = float(np.quantile(times, 0.95))
        good &= p95 < INTERACTION_MS
        print(f"{name:<44}{np.median(times):>11.1f}{p95:>9.1f}{np.quantile(work, 0.95):>16.1f}")
    chosen = page.locator(".nbs-spoken").inner_text()
    print(f"the last lasso: {chosen}; the layer draws with {'GL' if page.evaluate(DRAWS_WITH_GL) else 'a 2D canvas'}")
    return good


DRAWS_WITH_GL = "() => document.querySelector('.nbs-stage canvas').getContext('2d') === null"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=100_000)
    parser.add_argument("--umap", action="store_true")
    parser.add_argument("--screen", help="PNG to write at the end")
    arguments = parser.parse_args()
    from flow_dashboard import HARNESS, kernel_of
    from playwright.sync_api import sync_playwright
    from setup_browser import find_chromium

    from nb_sae.analysis.layout import layout
    from nb_sae.widgets.atlas import AtlasDashboard

    rows, analysis, group = planted(arguments.latents)
    for method in ["pca", *(["umap"] if arguments.umap else [])]:
        started = time.perf_counter()
        placed = layout(rows, method=method)  # pyright: ignore[reportArgumentType]
        print(f"{placed} in {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    names = {one: f"concept {one}" for one in range(arguments.latents)}
    dashboard = AtlasDashboard(analysis, placed, names=names, values={"group": group})
    size, picture = dashboard.saved_bytes(), len(dashboard.picture())
    print(
        f"AtlasDashboard in {time.perf_counter() - started:.1f} s; saved state {size:,} bytes "
        f"(bound {SAVED_BYTES:,}), static picture {picture:,} bytes"
    )
    good = size <= SAVED_BYTES
    bundle = subprocess.run(
        ["npx", "esbuild", "src/core/gl.ts", "--bundle", "--format=iife", "--global-name=core"],
        cwd=ROOT / "widgets_js", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--use-angle=swiftshader"]
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_content("<!doctype html><div id=root></div>")
        page.add_script_tag(content=f"var core; {bundle}")
        good &= redraws(page, arguments.latents)
        page.expose_function("kernel", kernel_of(dashboard, []))
        page.add_script_tag(content=HARNESS)
        page.evaluate("(state) => mountFlow(state)", state_of(dashboard))
        page.wait_for_timeout(500)
        good &= interactions(page)
        if arguments.screen:
            page.screenshot(path=arguments.screen)
        browser.close()
    print(f"bounds {REDRAW_MS:.0f} ms, {INTERACTION_MS:.0f} ms, 1 MB: {'held' if good else 'MISSED'}")
    return int(not good)


def state_of(dashboard) -> dict:
    import base64

    from nb_sae.widgets.base import read_static

    state = {name: value for name, value in dashboard.get_state().items() if not name.startswith("_")}
    state = {name: value for name, value in state.items() if isinstance(value, bytes | dict | int | str)}
    binary = [name for name, value in state.items() if isinstance(value, bytes)]
    state |= {name: base64.b64encode(state[name]).decode() for name in binary}
    state.pop("layout", None)
    return {"state": state, "binary": binary, "script": read_static("atlas.js"), "css": read_static("atlas.css")}


if __name__ == "__main__":
    sys.exit(main())
