"""What a training monitor keeps of each run: the lines of its log, thinned out evenly, and where it stands."""

from __future__ import annotations

import re
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import polars as pl

from nb_sae.widgets.wire import clean_text

KEPT_POINTS = 2_000
"""Lines of the log that a monitor keeps, of all its runs together."""
FEWEST_POINTS = 200
"""Of one run, however many runs there are."""
RECENT = 10
"""Lines over which a run's quality is averaged, as `Session.show` does."""
_RATE_LOOKS = 24
_LEVEL = re.compile(r"fvu(?:_k(\d+))?(?:_w(\d+))?")


class Points:
    """Lines of a log: every `stride`-th one, and the last. The stride doubles when there are too many."""

    def __init__(self, limit: int = KEPT_POINTS) -> None:
        self.limit, self.stride, self.lines = limit, 1, 0
        self.last: dict[str, float] = {}
        """The last line, whether it is among the kept ones or not."""
        self.recent: deque[dict[str, float]] = deque(maxlen=RECENT)
        self._columns: dict[str, np.ndarray] = {}
        self._kept = 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Take one line more; what is no number is left out."""
        found = {str(name): float(value) for name, value in line.items() if isinstance(value, Real)}
        if self.lines % self.stride == 0:
            if self._kept >= self.limit - 1:
                self._thin()
            if self.lines % self.stride == 0:
                self._put(found)
        self.lines += 1
        self.last = found
        self.recent.append(found)

    def shrink(self, limit: int) -> None:
        """Keep at most so many from now on."""
        self.limit = limit
        while self._kept > limit - 1:
            self._thin()

    def __len__(self) -> int:
        return self._kept + self._adds_last

    @property
    def _adds_last(self) -> bool:
        """Whether the last line is not the last of those kept."""
        return self.lines > 0 and (self.lines - 1) % self.stride != 0

    def frame(self) -> pl.DataFrame:
        """The kept lines and the last one, `step` as a whole number; NaN where a line lacks a column."""
        names = [name for name in self._columns if name != "rows"]
        columns = {}
        for name in names:
            values = self._columns[name][: self._kept]
            if self._adds_last:
                values = np.append(values, self.last.get(name, np.nan))
            columns[name] = values.astype(np.uint32) if name == "step" else values.copy()
        return pl.DataFrame(columns)

    def quality(self) -> list[tuple[int | None, int | None, str, float]]:
        """`(k, width, column, FVU)` of each budget, averaged over the last lines."""
        found = []
        for name in self.last:
            level = _LEVEL.fullmatch(name)
            values = [line[name] for line in list(self.recent) if name in line and np.isfinite(line[name])]
            if level and values:
                k, width = (None if one is None else int(one) for one in level.groups())
                found.append((k, width, name, sum(values) / len(values)))
        return found

    def _put(self, line: Mapping[str, float]) -> None:
        for name in line:
            if name not in self._columns:
                self._columns[name] = np.full(KEPT_POINTS, np.nan)
        for name, values in self._columns.items():
            values[self._kept] = line.get(name, np.nan)
        self._kept += 1

    def _thin(self) -> None:
        for values in self._columns.values():
            half = values[: self._kept : 2].copy()
            values[: len(half)] = half
        self._kept = -(-self._kept // 2)
        self.stride *= 2


class Run:
    """One training as the monitor shows it; `update` is called by the thread that steps it.

    The session is not kept alive. Asked of it: `control`, `train`, `save_to`, `step`, `seconds`, `stopped_early`,
    `title`, `log`, `finished` and `held_bytes`.
    """

    def __init__(self, name: str, session: Any = None) -> None:
        self.name = clean_text(name)
        self.points = Points()
        self.state, self.why = "ready", ""
        self.facts: dict[str, Any] = {}
        self._session: Callable[[], Any] = bool
        self._marks: deque[tuple[int, float]] = deque(maxlen=_RATE_LOOKS)
        if session is not None:
            self.follow(session)

    @property
    def session(self) -> Any:
        """The session; None once nobody else holds it, or where there never was one."""
        return self._session() or None

    def follow(self, session: Any) -> None:
        """Begin anew from the session's own log: after it went back, lines of it are gone."""
        self._session = weakref.ref(session)
        points = Points(self.points.limit)
        for line in session.log.iter_rows(named=True):
            points.add({name: value for name, value in line.items() if value is not None})
        self.points, self.why = points, ""
        self._marks.clear()
        self.update()
        if session.control.state == "idle":
            self.state = _state_of(session)

    def update(self) -> None:
        """Look at where the session stands now."""
        session = self.session
        if session is None:
            return
        if session.control.state != "idle":
            self.state = _state_of(session)
        self._marks.append((session.step, session.seconds))
        batch_rows, steps = session.train.batch_rows or 0, session.train.steps
        rate = self._rate(batch_rows)
        self.facts = {
            "step": session.step,
            "steps": steps,
            "batch_rows": batch_rows,
            "dead_after": session.train.dead_after_rows,
            "seconds": session.seconds,
            "rate": rate,
            "left": max(0, steps - session.step) * batch_rows / rate if rate else None,
            "memory": session.held_bytes,
            "title": session.title,
        }

    def ended(self, error: BaseException | None) -> None:
        """Note how it ended; what was kept stays."""
        self.update()
        if error is not None:
            name = "an interrupt" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
            self.state, self.why = "failed", clean_text(name)
        elif self.session is not None:
            session = self.session
            self.state = "done" if session.finished else "stopped" if session.stopped_early else "ready"

    def status(self) -> dict[str, Any]:
        """All of it as plain values for the browser; numbers are those of the log."""
        quality = [
            {"k": k, "width": width, "name": name, "fvu": value} for k, width, name, value in self.points.quality()
        ]
        return {
            "name": self.name,
            "state": self.state,
            "why": self.why,
            **self.facts,
            "latest": {name: value if np.isfinite(value) else None for name, value in self.points.last.items()},
            "quality": quality,
            "lines": self.points.lines,
            "stride": self.points.stride,
            "reachable": self.session is not None,
        }

    def _rate(self, batch_rows: int) -> float | None:
        """Rows per second over the last looks; pauses do not count."""
        (first, began), (last, now) = self._marks[0], self._marks[-1]
        if now > began and last > first:
            return (last - first) * batch_rows / (now - began)
        session = self.session
        return session.step * batch_rows / session.seconds if session is not None and session.seconds > 0 else None


def _state_of(session: Any) -> str:
    control = session.control
    if control.state == "idle":
        return "done" if session.finished else "stopped" if session.stopped_early else "ready"
    if session.finished or session.stopped_early:  # others of its loop go on
        return "done" if session.finished else "stopped"
    return "stopping" if control.stopping else control.state


def fresh_name(name: str, taken: Iterable[str]) -> str:
    """The name, with a number where it is taken."""
    known, number, found = set(taken), 2, name
    while found in known:
        found, number = f"{name} ({number})", number + 1
    return found
