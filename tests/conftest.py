"""What every test starts from."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let an interrupt interrupt.

    A job that a shell put into the background ignores SIGINT, and so does all that it starts; tests of the stop button
    would then wait for what they meant to stop.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
