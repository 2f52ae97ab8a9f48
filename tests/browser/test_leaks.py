"""A dashboard that is drawn and taken away again leaves nothing: no listener, observer, context, address or memory.

`python benchmarks/dashboards.py --leaks` does the same 200 times.
"""

from __future__ import annotations

import pytest
from kinds import KINDS
from mounted import MountPage, Remains
from playwright.sync_api import Page

CYCLES = 15
WARM_UP = 6
# What is compiled late takes heap in any case.
MOST_BYTES = 2_500_000
NODES = """() => {
    const all = document.createNodeIterator(document.getElementById('root'));
    let number = 0;
    while (all.nextNode()) number += 1;
    return number;
}"""


@pytest.mark.parametrize("kind", KINDS)
def test_views_leave_nothing_behind(page: Page, kind: str):
    mounts = MountPage(page)
    saved = mounts.use(KINDS[kind].make())
    session = page.context.new_cdp_session(page)
    bare = Remains.of(page, session)
    # What the first views make once and every later one uses, such as compiled code, is no leak.
    page.evaluate("([saved, cycles]) => nbsae.cycles(saved, cycles)", [saved, WARM_UP])
    before = Remains.of(page, session)
    page.evaluate("([saved, cycles]) => nbsae.cycles(saved, cycles)", [saved, CYCLES])
    after = Remains.of(page, session)
    print(f"\n{kind}: {after.nodes - before.nodes:+d} nodes, {(after.heap - before.heap) / 1e6:+.2f} MB")
    assert after.counts == before.counts == bare.counts
    # The last view may still be on its way out; the 14 before it may not.
    mounts.mount_saved(saved)
    assert after.nodes - before.nodes < 3 * page.evaluate(NODES)
    assert after.heap - before.heap < MOST_BYTES


def test_what_is_left_behind_is_seen(page: Page):
    MountPage(page)
    session = page.context.new_cdp_session(page)
    before = Remains.of(page, session)
    page.evaluate(
        """() => {
            window.addEventListener('resize', () => {});
            document.addEventListener('keydown', () => {});
            window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {});
            new ResizeObserver(() => {}).observe(document.body);
            URL.createObjectURL(new Blob(['x']));
            window.kept = Array.from({ length: 1_000_000 }, (_, at) => at + 0.5);
            window.drawing = document.createElement('canvas').getContext('webgl2');
        }"""
    )
    after = Remains.of(page, session)
    grown = {name for name, left in after.counts.items() if left > before.counts[name]}
    assert grown >= {"window", "document", "media", "observers", "urls"}
    assert after.heap - before.heap > 5_000_000
