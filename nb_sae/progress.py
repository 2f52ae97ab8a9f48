"""Show how far a long step is: one line that is updated in place in a notebook, a bar in a terminal."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

UPDATES_PER_SECOND = 4
"""More often than this a notebook front end spends its time drawing."""


@contextmanager
def progress(
    total: int | None,
    unit: str,
    label: str,
    *,
    enabled: bool = True,
    initial: int = 0,
    below: Callable[[], str] | None = None,
) -> Iterator[Progress]:
    """Count `unit`s of a step named `label`; the last line stays, with the time and the rate.

    Args:
        total: How many units there are, `initial` included; None where it is not known.
        unit: What is counted, in the plural: "images", "rows".
        label: What is done.
        enabled: False counts and shows nothing.
        initial: Units that an earlier run had done; they do not count for the rate.
        below: Gives HTML that a notebook shows below the line, drawn again with it; text in it is escaped already.

    Yields:
        A `Progress`; call its `update(n)` after every n units.
    """
    bar = Progress(total, unit, label, initial=initial, sink=_sink() if enabled else None, below=below)
    try:
        yield bar
    except BaseException:
        bar.close(stopped_early=True)
        raise
    bar.close(stopped_early=False)


class Progress:
    """A counter with a display. Made by `progress`."""

    def __init__(
        self,
        total: int | None,
        unit: str,
        label: str,
        *,
        initial: int = 0,
        sink: Any = None,
        below: Callable[[], str] | None = None,
    ) -> None:
        self.total = total
        self.unit = unit
        self.label = label
        self.initial = initial
        self.done = initial
        self.below = below or str
        self._start = time.perf_counter()
        self._shown_at = float("-inf")
        self._sink = sink
        self._show()

    def update(self, n: int = 1) -> None:
        """Count `n` more units; draw again if the last drawing is old enough."""
        self.done += n
        if time.perf_counter() - self._shown_at >= 1 / UPDATES_PER_SECOND:
            self._show()

    def close(self, *, stopped_early: bool) -> None:
        """Leave the last line."""
        if self._sink is not None:
            self._sink.finish(self._last_line(stopped_early), self.below())
            self._sink = None

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.perf_counter() - self._start

    @property
    def rate(self) -> float:
        """Units per second of this run; 0 before the first."""
        return (self.done - self.initial) / max(self.seconds, 1e-9)

    def _show(self) -> None:
        if self._sink is not None:
            self._shown_at = time.perf_counter()
            self._sink.show(self)

    def line(self) -> str:
        """The line as it stands: how many, rate, time left."""
        of = f" of {self.total:,}" if self.total is not None else ""
        text = f"{self.label}: {self.done:,}{of} {self.unit}"
        if self.done > self.initial:
            text += f", {_per_second(self.rate)}"
            if self.total is not None:
                text += f", {_duration((self.total - self.done) / max(self.rate, 1e-9))} left"
        return text

    def _last_line(self, stopped_early: bool) -> str:
        took = f"in {_duration(self.seconds)} ({_per_second(self.rate)})"
        if stopped_early:
            of = f" of {self.total:,}" if self.total is not None else ""
            return f"{self.label}: stopped after {self.done:,}{of} {self.unit} {took}"
        before = f" after {self.initial:,} of an earlier run" if self.initial else ""
        return f"{self.label}: {self.done - self.initial:,} {self.unit} {took}{before}"


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code, so that displays reach a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _sink() -> _Notebook | _Terminal:
    return _Notebook() if in_notebook() else _Terminal()


class _Notebook:
    """One display, updated in place; needs no widget, so it also stands in a saved notebook."""

    def __init__(self) -> None:
        from IPython.display import display

        self._display = display
        self._handle: Any = None

    def show(self, bar: Progress) -> None:
        meter = f'<progress value="{bar.done}" max="{bar.total}"></progress> ' if bar.total else ""
        self._put(bar.line(), meter, bar.below())

    def finish(self, line: str, below: str) -> None:
        self._put(line, "", below)

    def _put(self, line: str, meter: str, below: str) -> None:
        line = line.encode("utf-8", "replace").decode("utf-8")
        style = "font-variant-numeric: tabular-nums"
        bundle = {"text/plain": line, "text/html": f'<div style="{style}">{meter}{html.escape(line)}</div>{below}'}
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


class _Terminal:
    """A tqdm bar on stderr; where stderr is a file or a log, only the last line is written."""

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, bar: Progress) -> None:
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=bar.total, unit=f" {bar.unit}", desc=bar.label, initial=bar.initial, file=sys.stderr,
                leave=False, mininterval=0, dynamic_ncols=True,
            )  # fmt: skip
        self._bar.update(bar.done - self._bar.n)

    def finish(self, line: str, below: str) -> None:
        if self._bar is not None:
            self._bar.close()
        print(line.encode("utf-8", "replace").decode("utf-8"), file=sys.stderr, flush=True)


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
