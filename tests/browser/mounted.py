"""Any dashboard in a bare page: its built script on a model made from its saved state, with a kernel or without."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from ipywidgets.widgets.widget import _remove_buffers
from playwright.sync_api import CDPSession, Locator, Page

from nb_sae.widgets.base import Dashboard, read_static

Kernel = Literal["none", "absent", "live", "held", "refusing"]
HARNESS = Path(__file__).with_name("mount.js")
PAGE = "<!doctype html><html lang=en><head><meta charset=utf-8><title>A dashboard</title></head>{body}</html>"
BODY = "<body style='margin:0;background:light-dark(#fff,#111);color-scheme:light dark'><main id=root></main></body>"


def saved_view(dashboard: Dashboard) -> dict[str, Any]:
    """What a notebook saves of a dashboard, and the script and sheet that draw it; made for `nbsae.mount`."""
    whole, paths, buffers = cast("tuple[dict, list, list]", _remove_buffers(dashboard.get_state()))
    state = {name: value for name, value in whole.items() if name not in ("_esm", "_css", "layout")}
    stem = dashboard._dashboard
    return {
        "state": state,
        "paths": paths,
        "buffers": [base64.b64encode(one).decode() for one in buffers],
        "script": read_static(f"{stem}.js"),
        "css": read_static(f"{stem}.css"),
    }


def saved_bytes(view: dict[str, Any]) -> int:
    """Size of a saved view in a notebook, script and sheet included, the static picture not."""
    held = len(json.dumps(view["state"])) + sum(map(len, view["buffers"]))
    return held + len(view["script"]) + len(view["css"])


@dataclass
class MountPage:
    """A page that holds one dashboard at a time."""

    page: Page
    answer_ms: list[float] = field(default_factory=list)
    """What each answer of the kernel took in Python, pings left out."""
    _dashboard: Dashboard | None = None
    _sheets: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.expose_function("kernel", self._answer)
        self.page.set_content(PAGE.format(body=BODY))
        self.page.add_script_tag(path=HARNESS)

    def mount(self, dashboard: Dashboard, kernel: Kernel = "none") -> Locator:
        """Draw the dashboard; the root of its view."""
        self.mount_saved(self.use(dashboard), kernel)
        return self.root

    def use(self, dashboard: Dashboard) -> dict[str, Any]:
        """Put its style sheet into the page and have its kernel side answer; gives what `nbsae.mount` takes."""
        self._dashboard = dashboard
        saved = saved_view(dashboard)
        if saved["css"] not in self._sheets:
            self._sheets.add(saved["css"])
            self.page.evaluate("css => nbsae.style(css)", saved["css"])
        return saved

    def mount_saved(self, saved: dict[str, Any], kernel: Kernel = "none") -> float:
        """Milliseconds that drawing took in the page, until the script gave back control."""
        took = self.page.evaluate("([saved, kernel]) => nbsae.mount(saved, kernel)", [saved, kernel])
        self.page.evaluate("() => nbsae.frames()")
        return took

    def unmount(self) -> None:
        self.page.evaluate("() => nbsae.unmount()")

    @property
    def root(self) -> Locator:
        return self.page.locator("#root > div").last.locator("> *").first

    def _answer(self, text: str) -> str:
        """Answer as the kernel does. Asks the dashboard itself: there is no comm here."""
        assert self._dashboard is not None
        content = json.loads(text)
        sent: list[tuple[Any, list[bytes]]] = []
        self._dashboard.send = lambda answer, buffers=None: sent.append((answer, buffers or []))  # type: ignore[method-assign]
        started = time.perf_counter()
        self._dashboard._on_request(None, content, [])
        if content["kind"] != "ping":
            self.answer_ms.append((time.perf_counter() - started) * 1e3)
        answer, buffers = sent[0]
        return json.dumps({"content": answer, "buffers": [base64.b64encode(one).decode() for one in buffers]})


@dataclass
class Remains:
    """What a page holds: listeners of window and document, and all that `nbsae.left` counts; heap in bytes."""

    counts: dict[str, int]
    heap: int
    nodes: int
    """Nodes that are held somewhere, in the page or not."""

    @classmethod
    def of(cls, page: Page, session: CDPSession) -> Remains:
        """Looks after two collections of garbage: what is reachable only through weak references goes at the second."""
        for _ in range(2):
            session.send("HeapProfiler.collectGarbage")
        counts = page.evaluate("() => nbsae.left()")
        for name in ("window", "document", "document.documentElement", "document.body"):
            found = session.send("Runtime.evaluate", {"expression": name})["result"]["objectId"]
            counts[name] = len(session.send("DOMDebugger.getEventListeners", {"objectId": found})["listeners"])
        nodes = session.send("Memory.getDOMCounters")["nodes"]
        return cls(counts, session.send("Runtime.getHeapUsage")["usedSize"], nodes)
