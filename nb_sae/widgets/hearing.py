"""Messages of a dashboard are handled while a cell runs, where the kernel has subshells."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


def hear_while_busy(widget: Any) -> None:
    """Let a widget's messages go to the subshell that the front end asks for.

    JupyterLab 4.4 and later send a widget's messages to a subshell, a thread of its own. ipykernel 7.4 overrules this:
    it hands a message to whichever shell spoke last on the comm, for code that waits in a cell for an answer. A
    cell that trains, or sets what a dashboard shows, speaks too: nothing would be heard before it ends. Nothing here
    waits in a cell. Other kernels never look at what is set, and a kernel without subshells goes on as it did.
    """
    with suppress(AttributeError):
        widget.comm._reply_subshell_for = _as_asked  # seen in ipykernel/comm/comm.py, 7.4.0


def _as_asked(_data: Any, asked: str | None) -> str | None:
    return asked
