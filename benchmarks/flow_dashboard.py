"""The flow dashboard on 12 layers of 16k latents: what one interaction takes in Chromium, and a page in the kernel.

    python benchmarks/flow_dashboard.py                 # 12 × 16,384 latents × 8 edges: about a minute
    python benchmarks/flow_dashboard.py --lanes         # with attention and MLP: 36 sites, 40 shown latents each
    python benchmarks/flow_dashboard.py --latents 2048  # seconds: checks that everything runs

Bounds: p95 of an interaction, from the event to the painted frame, below 100 ms; p95 of the kernel's answer to a page
below 100 ms; the saved view within 500 kB. Exits with 1 if one is missed. "with page" is the time until what the
kernel chose anew is painted; it holds the 60 ms that the dashboard waits for the next key, and the transport.
"processor" is the main thread's own time for both, for a machine with other work.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

BOUND_MS, SAVED_BYTES = 100.0, 500_000
LAYERS = 12
ROUNDS = 30

# A widget model whose other side is `window.kernel`; every answer is noted when it has been painted.
HARNESS = """
window.frames2 = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
window.mountFlow = async ({ state, binary, script, css }) => {
  const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const listeners = new Map();
  const emit = (name, ...args) => [...(listeners.get(name) ?? [])].forEach((one) => one(...args));
  for (const name of binary) state[name] = bytes(state[name]);
  window.paged = 0;
  const model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; emit(`change:${name}`); },
    save_changes: () => {},
    on: (name, one) => listeners.set(name, new Set(listeners.get(name)).add(one)),
    off: (name, one) => listeners.get(name)?.delete(one),
    send: async (content) => {
      const { content: answer, buffers } = JSON.parse(await window.kernel(JSON.stringify(content)));
      emit('msg:custom', answer, buffers.map(bytes));
      if (content.kind === 'page') window.frames2().then(() => { window.paged += 1; });
    },
  };
  const style = document.createElement('style');
  style.textContent = css;
  document.head.append(style);
  const module = await import(URL.createObjectURL(new Blob([script], { type: 'text/javascript' })));
  module.default.render({ model, el: document.getElementById('root') });
};
window.timed = async (act, pages) => {
  const before = window.paged;
  const start = performance.now();
  act();
  await window.frames2();
  const painted = performance.now() - start;
  while (pages && window.paged === before) {
    if (performance.now() - start > 5_000) throw new Error('no page came');
    await new Promise(requestAnimationFrame);
  }
  return [painted, performance.now() - start];
};
"""
INTERACTIONS = {
    "choose with the pointer": (
        """async () => {
            const marks = [...document.querySelectorAll('.nbs-nodes [role=option]')];
            const mark = marks[Math.floor(Math.random() * marks.length)];
            const box = mark.getBoundingClientRect();
            const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
            if (mark.getAttribute('aria-selected') === 'true') return undefined;
            return timed(() => document.querySelector('.nbs-nodes').dispatchEvent(new MouseEvent('click', at)), true);
        }"""
    ),
    "arrow key": (
        """async () => {
            const key = ['ArrowLeft', 'ArrowDown', 'ArrowRight', 'ArrowDown'][Math.floor(Math.random() * 4)];
            const chosen = () => document.querySelector('.nbs-nodes [aria-selected=true]')?.id;
            const before = chosen();
            const sent = window.paged;
            const event = new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true });
            const times = await timed(() => document.querySelector('.nbs-nodes').dispatchEvent(event), false);
            if (chosen() === before) return undefined;
            while (window.paged === sent) await new Promise(requestAnimationFrame);
            return [times[0], undefined];
        }"""
    ),
    "score filter": (
        """async () => {
            const range = document.querySelector('[type=range]');
            const next = (Number(range.value) + 0.15) % 0.9;
            return timed(() => { range.value = String(next); range.dispatchEvent(new Event('input')); }, true);
        }"""
    ),
    "kind filter": (
        """async () => {
            const select = document.querySelector('select');
            return timed(() => {
                select.selectedIndex = (select.selectedIndex + 1) % 5;
                select.dispatchEvent(new Event('change'));
            }, true);
        }"""
    ),
    "hover": (
        """async () => {
            const svg = document.querySelector('.nbs-nodes');
            const box = svg.getBoundingClientRect();
            const at = { clientX: box.x + Math.random() * box.width, clientY: box.y + Math.random() * 400 };
            return timed(() => svg.dispatchEvent(new PointerEvent('pointermove', { ...at, bubbles: true })), false);
        }"""
    ),
}


def state_of(dashboard) -> dict:
    from nb_sae.widgets.base import read_static

    traits = {name: getattr(dashboard, name) for name in dashboard.trait_names(sync=True) if not name.startswith("_")}
    traits = {name: value for name, value in traits.items() if isinstance(value, bytes | dict | int | str)}
    binary = [name for name, value in traits.items() if isinstance(value, bytes)]
    state = {name: base64.b64encode(value).decode() if name in binary else value for name, value in traits.items()}
    state.pop("layout", None)
    return {"state": state, "binary": binary, "script": read_static("flow.js"), "css": read_static("flow.css")}


def saved_bytes(dashboard, state: dict) -> int:
    held = sum(len(value if isinstance(value, str) else json.dumps(value)) for value in state["state"].values())
    return held + len(state["script"]) + len(state["css"]) + len(base64.b64encode(dashboard.picture()))


def kernel_of(dashboard, times: list[float]):
    def kernel(text: str) -> str:
        content = json.loads(text)
        sent = []
        dashboard.send = lambda answer, buffers=None: sent.append((answer, buffers or []))
        started = time.perf_counter()
        dashboard._on_request(None, content, [])
        if content["kind"] == "page":
            times.append((time.perf_counter() - started) * 1e3)
        answer, buffers = sent[0]
        return json.dumps({"content": answer, "buffers": [base64.b64encode(one).decode() for one in buffers]})

    return kernel


def p95(times: list[float]) -> float:
    return float(np.quantile(times, 0.95))


def interactions(dashboard, state: dict, width: int, screen: str | None) -> tuple[dict, list[float]]:
    """Milliseconds of each kind of interaction, (painted, with the kernel's page), and of the kernel's pages."""
    from playwright.sync_api import sync_playwright
    from setup_browser import find_chromium

    pages: list[float] = []
    found: dict[str, list] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 1000})
        page.expose_function("kernel", kernel_of(dashboard, pages))
        page.set_content("<!doctype html><div id=root></div>")
        page.add_script_tag(content=HARNESS)
        page.evaluate("(state) => mountFlow(state)", state)
        page.wait_for_function("() => window.paged > 0")
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def worked() -> float:
            """Processor milliseconds of the page's main thread so far."""
            held = session.send("Performance.getMetrics")["metrics"]
            return next(one["value"] for one in held if one["name"] == "TaskDuration") * 1e3

        for name, script in INTERACTIONS.items():
            found[name] = []
            for _ in range(ROUNDS):
                before = worked()
                times = page.evaluate(script)
                if times:
                    found[name].append((*times, worked() - before))
            page.evaluate(
                """() => { const r = document.querySelector('[type=range]'); r.value = '0';
                r.dispatchEvent(new Event('input')); }"""
            )
            page.wait_for_timeout(300)
        if screen:
            page.screenshot(path=screen)
        browser.close()
    return found, pages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--lanes", action="store_true", help="attention and MLP too")
    parser.add_argument("--width", type=int, default=1300)
    parser.add_argument("--screen", help="PNG to write at the end")
    arguments = parser.parse_args()
    from flow_fakes import fake_flow

    from nb_sae.widgets.flow import FlowDashboard

    flow = fake_flow(LAYERS, arguments.latents, modules=arguments.lanes, embedding=False, top=8)
    started = time.perf_counter()
    dashboard = FlowDashboard(flow)
    print(
        f"{len(flow.sites)} sites × {arguments.latents:,} latents, {flow.edges.height:,} edges: "
        f"made in {time.perf_counter() - started:.2f} s"
    )
    state = state_of(dashboard)
    size = saved_bytes(dashboard, state)
    good = size <= SAVED_BYTES
    print(f"saved view: {size:,} bytes with script, sheet and picture (bound {SAVED_BYTES:,})")
    found, pages = interactions(dashboard, state, arguments.width, arguments.screen)
    print(f"{'interaction':<26}{'n':>4}{'median ms':>11}{'p95 ms':>9}{'with page, p95':>16}{'processor, p95':>16}")
    for name, times in found.items():
        painted = [one[0] for one in times]
        whole = [one[1] for one in times if one[1] is not None]
        good &= p95(painted) < BOUND_MS
        print(
            f"{name:<26}{len(times):>4}{np.median(painted):>11.0f}{p95(painted):>9.0f}"
            f"{p95(whole) if whole else float('nan'):>16.0f}{p95([one[2] for one in times]):>16.0f}"
        )
    good &= p95(pages) < BOUND_MS
    print(f"{'page in the kernel':<26}{len(pages):>4}{np.median(pages):>11.1f}{p95(pages):>9.1f}")
    print(f"bound {BOUND_MS:.0f} ms: {'held' if good else 'MISSED'}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
