"""One script per notebook instead of one per dashboard: opt-in, for notebooks that show many.

ns.share_scripts()       # dashboards made from here on share their scripts

By default every dashboard carries its own script, which works in every host but costs 30 to 60 kB of a saved notebook
each time. Shared, a hidden widget carries the script and the style of a kind of dashboard once, and a dashboard is 2 kB
that finds it:

1. by `host.getWidget` (anywidget 0.11: JupyterLab, Notebook 7, our report; the state of the hidden widget is saved
   with the others) or, where the page has loaded it, by a table in the page, which older front ends fill too;
2. else by asking the kernel for the script, which is then run from a blob;
3. else the static picture stays and a line below it says why. Nothing is ever blank.

A notebook saved without widget state shows its static pictures, as without sharing. Where every output is a page of its
own (Colab), each output loads the script for itself, so sharing saves no time there.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

_lock = threading.Lock()
_scripts: dict[str, SharedScript] = {}
_sharing = False


def share_scripts(shared: bool = True) -> None:
    """Let dashboards made from now on share one script per kind; `share_scripts(False)`: each carries its own again.

    Dashboards that exist already stay as they are.
    """
    global _sharing
    _sharing = bool(shared)


class SharedScript(anywidget.AnyWidget):
    """The hidden widget that carries the script and the style of one kind of dashboard."""

    serves = traitlets.Unicode(help="Its own model id: dashboards name it.").tag(sync=True)
    sheet = traitlets.Unicode(help="The style, put into the page by the first dashboard.").tag(sync=True)

    def __init__(self, script: str, sheet: str) -> None:
        self._script = script
        model_id = uuid.uuid4().hex
        super().__init__(model_id=model_id, serves=model_id, sheet=sheet)

    @property
    def _esm(self) -> str:
        return self._script


def shared_script(kind: str, read: Callable[[str], str]) -> SharedScript | None:
    """The hidden widget of a kind of dashboard; None where scripts are not shared.

    Args:
        kind: Stem of the files in `static/`.
        read: Gives a file of `static/`.
    """
    if not _sharing:
        return None
    with _lock:
        known = _scripts.get(kind)
        script = read(f"{kind}.js")
        # Closed by the user (`Widget.close_all()`), or built anew since.
        if known is None or known.comm is None or known._script != script:
            known = _scripts[kind] = SharedScript(script, read(f"{kind}.css"))
        return known


def reference(script: SharedScript | None) -> str:
    """How a synced trait names the widget, as `host.getWidget` reads it; empty where there is none."""
    return f"anywidget:{script.serves}" if script is not None else ""


def as_answer(script: Any) -> dict[str, str]:
    """What a dashboard that found no script is told."""
    return {"script": script._script, "sheet": script.sheet}
