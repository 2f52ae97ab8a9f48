"""The training monitor: a dashboard that follows sessions while they train, and steers them.

dictionary = ns.train_sae(store, config, on_log=ns.TrainMonitor())
monitor = ns.TrainMonitor(inputs=photos)             # shows which pictures the latents are strongest on
session = ns.Session(store, config, on_log=monitor)  # display `monitor` in a cell above, or let it display itself
ns.train_together([session, other], …)               # both in one monitor, if both were given it
ns.TrainMonitor({"before": one, "after": two})       # sessions that are done, side by side
"""

from __future__ import annotations

import ast
import base64
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import traitlets

from nb_sae.errors import NbSaeError, WidgetError
from nb_sae.progress import UPDATES_PER_SECOND, in_notebook
from nb_sae.widgets import monitor_looks, wire
from nb_sae.widgets.base import Dashboard
from nb_sae.widgets.monitor_inputs import MonitorInputs
from nb_sae.widgets.monitor_runs import FEWEST_POINTS, KEPT_POINTS, Run, fresh_name

SHARE, LOOK_SHARE, PICTURE_SHARE = 0.002, 0.0015, 0.0005
"""What updates, looks at rows and the static picture may take of the time."""
PICTURE_EVERY_S = 30.0
WORTH = 20
"""A run that ends before its plan does is looked at where that takes a twentieth of the time since the last look."""
KEPT_NOTES = 20
MOST_RUNS = 16


class TrainMonitor(Dashboard):
    """Follow sessions while they train: FVU at each budget, L0, dead latents, loss, learning rate, speed, time left.

    It is an `on_log`: give it to `train_sae`, `Session`, `train_together` (to each session) or `train_all`, and it
    displays itself when the first run begins, unless it stands in a cell already. Its buttons pause, continue, stop,
    save and fork a running session between two steps, where the kernel hears them while a cell runs (ipykernel 7 or
    later in JupyterLab 4.4 or later; it says so where it does not). The notebook's stop button works everywhere.

    A look at 256 rows, always the same, shows what they are decoded to at each budget and which of them a few latents
    are strongest on. Updates come at most four times a second and all of it together is held to about 1 % of the
    training time: what costs more is done less often. The beginning and the end of a run have a look and a picture
    each, which takes about a tenth of a second besides. At most 2,000 lines of all logs are kept (every second, every
    fourth, … and always the last); `session.log` has them all. A run that fails leaves what was drawn, and why it
    ended.

    Args:
        sessions: Sessions to show beside what will be trained; a mapping names them.
        inputs: The images or texts of the rows, to show them; None: their keys.
        latents: Which latents to follow; None: see `monitor_looks.Forming.follow`.
        look: False leaves out the look at rows.
        save_to: Folder that the button suggests for what it saves; None: `runs`.
        title: What it says above.

    Raises:
        WidgetError: an argument is not what is expected, or the scripts are not built.
    """

    _dashboard = "monitor"

    about = traitlets.Dict(help="Title and what is fixed.").tag(sync=True)
    runs = traitlets.List(traitlets.Dict(), help="Where each run stands, as of the last update.").tag(sync=True)
    notes = traitlets.List(traitlets.Dict(), help="What was asked for and what came of it, oldest first.").tag(
        sync=True
    )
    points_header = traitlets.Dict().tag(sync=True)
    points = traitlets.Bytes(help="The kept lines of each run's log.").tag(sync=True)
    looks_header = traitlets.Dict().tag(sync=True)
    looks = traitlets.Bytes(help="The last look at rows of each run.").tag(sync=True)
    thumbs_header = traitlets.Dict(help="Where each picture of `thumbs` ends.").tag(sync=True)
    thumbs = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        sessions: Mapping[str, Any] | Sequence[Any] | None = None,
        *,
        inputs: Any = None,
        latents: Sequence[int] | None = None,
        look: bool = True,
        save_to: str | Path | None = None,
        title: str = "Training",
    ) -> None:
        self._inputs = MonitorInputs(inputs)
        if not isinstance(save_to, str | Path | None):
            raise WidgetError(f"save_to={save_to!r}: expected a folder, such as 'runs'.")
        self.save_to = Path("runs" if save_to is None else save_to)
        self.saved: list[Path] = []
        """Folders that the button saved into."""
        self._chosen = _latents(latents)
        self._look = bool(look)
        self.forks: dict[str, Any] = {}
        """Sessions that were forked by the button, by name."""
        self._runs: list[Run] = []
        self._names: dict[int, str] = {}
        self._watches: dict[str, _Watch] = {}
        self._sending = threading.RLock()  # several threads may train, and answers come on others
        self._due = 0.0
        self._later: threading.Timer | None = None
        self._picture_due, self._picture_worth = time.perf_counter() + PICTURE_EVERY_S, 0.0
        self._shown: Any = None
        header, nothing = wire.pack({})
        about = {
            "version": wire.WIRE_VERSION, "title": wire.clean_text(title), "most": KEPT_POINTS,
            "folder": wire.clean_text("runs" if save_to is None else save_to),
        }  # fmt: skip
        super().__init__(about=about, points_header=header, points=nothing, looks_header=header, looks=nothing)
        for name, session in _named(sessions):
            self._add(name or _title(session), session)
        self._bring()

    # ── following ─────────────────────────────────────────────────────────────────────────────────────────────

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take one line of a log whose session is not known, of `line["site"]` if that is there: your own loop."""
        if not isinstance(line, Mapping) or "step" not in line:
            raise WidgetError(f"A line of a log has a step, got {line!r}. Give what Session calls on_log with.")
        name = str(line.get("site", "run"))
        run = next((one for one in self._runs if one.name == name), None) or self._add(name, None)
        run.state = "running"
        with self._sending:
            run.points.add({key: value for key, value in line.items() if key != "site"})
        self._show_self()
        wait = self._due - time.perf_counter()
        if wait <= 0:
            self._bring()
            self._redraw()
        elif self._later is None:
            # Nobody says when the loop ends: its last lines come by themselves.
            self._later = threading.Timer(wait, self._bring_late)
            self._later.daemon = True
            self._later.start()

    def watch(self, session: Any, name: str | None = None) -> _Watch:
        """Follow a session whose run begins. Called by it."""
        with self._sending:
            run = next((one for one in self._runs if one.session is session), None)
            if run is None:
                run = self._add(self._names.pop(id(session), None) or name or _title(session), session)
            else:
                run.follow(session)
        known = self._watches.get(run.name)
        self._watches[run.name] = watch = _Watch(self, run, known)
        watch.begin()
        return watch

    def _add(self, name: str, session: Any) -> Run:
        if len(self._runs) >= MOST_RUNS:
            raise WidgetError(f"A monitor shows at most {MOST_RUNS} runs. Make another one: ns.TrainMonitor().")
        run = Run(fresh_name(wire.clean_text(name), [one.name for one in self._runs]), session)
        with self._sending:
            self._runs.append(run)
            for one in self._runs:
                one.points.shrink(max(FEWEST_POINTS, KEPT_POINTS // len(self._runs)))
        return run

    @property
    def quality(self) -> dict[str, pl.DataFrame]:
        """Run → `k, fvu` over its last ten logged batches, for `ns.plots.pareto`; a rule that sets no k has `l0` too.

        These are batches that the run trained on. `ns.compare` measures dictionaries on rows of your choice.
        """
        found = {}
        for run in self._runs:
            levels = [(k, fvu) for k, width, _, fvu in run.points.quality() if width is None]
            l0 = [line["l0"] for line in run.points.recent if "l0" in line]
            schema = {"k": pl.Int64, "fvu": pl.Float64}
            frame = pl.DataFrame(levels, schema=schema, orient="row")
            if frame.height:
                found[run.name] = frame.with_columns(l0=pl.lit(sum(l0) / max(1, len(l0))))
        return found

    # ── sending ───────────────────────────────────────────────────────────────────────────────────────────────

    def _bring(self) -> None:
        """Bring the browser up to date; the next time is when this one's cost is a small share of the time."""
        began = time.perf_counter()
        try:
            with self._sending:
                for run in self._runs:
                    run.update()
                frames = {f"run{at}": run.points.frame() for at, run in enumerate(self._runs) if len(run.points)}
                with self.hold_sync():
                    self.runs = [run.status() for run in self._runs]
                    self.points_header, self.points = wire.pack(frames)
        finally:  # what fails is not tried again at every step
            now = time.perf_counter()
            self._due = now + max(1 / UPDATES_PER_SECOND, (now - began) / SHARE)

    def _bring_late(self) -> None:
        self._later = None  # a line that comes from here on asks for an update of its own
        with suppress(Exception):
            self._bring()

    def _send_looks(self) -> None:
        """Send the last look of every run, with the inputs that it names."""
        tables: dict[str, pl.DataFrame] = {}
        rows: dict[tuple[int, int], int] = {}
        for at, run in enumerate(self._runs):
            watch = self._watches.get(run.name)
            if watch is not None:
                tables |= {f"{name}{at}": frame for name, frame in watch.tables(rows).items()}
        inputs, thumbs = self._inputs.cut(list(rows))
        header, packed = wire.pack({"inputs": inputs, **tables})
        thumbs_header, pictures = wire.pack_thumbs(thumbs)
        with self._sending, self.hold_sync():
            self.looks_header, self.looks = header, packed
            if pictures != self.thumbs:
                self.thumbs_header, self.thumbs = thumbs_header, pictures

    def _note(self, run: str, text: str, *, error: bool = False, number: Any = None) -> None:
        note = {"run": run, "text": wire.clean_text(text), "error": error, "asked": number, "at": time.time()}
        with self._sending:
            self.notes = [*self.notes, note][-KEPT_NOTES:]

    # ── orders ────────────────────────────────────────────────────────────────────────────────────────────────

    def _respond(self, kind: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        if kind not in ("pause", "proceed", "stop", "save", "fork", "settings", "place"):
            return super()._respond(kind, request)
        run, session = self._reach(request.get("run"))
        if kind == "place":
            own = session.save_to
            return {"folder": str(self.save_to / _slug(run.name, session.step) if own is None else own)}, []
        if kind == "settings":
            return {"settings": session.settings()}, []
        # The answer says that the order was heard; a note says what came of it at the border of a step.
        if kind == "save":
            folder = request.get("folder")
            if not isinstance(folder, str) or not folder.strip():
                raise WidgetError("Give a folder to save into, such as runs/one.")
            future = session.control.save(folder.strip())
            self._tell_later(future, run, request, lambda where: self._said_of_save(where, session.step))
        elif kind == "fork":
            self._fork(run, session, request)
        else:
            getattr(session.control, kind)()
        return {"heard": kind}, []

    def _reach(self, at: Any) -> tuple[Run, Any]:
        if not isinstance(at, int) or not 0 <= at < len(self._runs):
            raise WidgetError(f"There is no run {at!r}; this monitor shows {len(self._runs)}. Reload the page.")
        run = self._runs[at]
        session = run.session
        if session is None:
            raise WidgetError(
                f"The session of {run.name!r} is not there any more: nobody kept it. Make it with ns.Session and keep "
                "it in a name; train_sae keeps the dictionary alone."
            )
        return run, session

    def _fork(self, run: Run, session: Any, request: dict[str, Any]) -> None:
        settings = {str(name): _value(text) for name, text in dict(request.get("settings") or {}).items()}
        if not settings:
            raise WidgetError("Name a setting that the fork has other than the original, such as learning_rate.")
        name = f"{run.name} · " + ", ".join(f"{key}={value}" for key, value in settings.items())
        future = session.control.fork(**settings)

        def keep(done: Future[Any]) -> None:
            if done.exception() is None:
                fork = done.result()
                with self._sending:
                    joined = next((one for one in self._runs if one.session is fork), None)  # it may run already
                    names = [*self.forks, *(one.name for one in self._runs)]
                    known = fresh_name(wire.clean_text(name), names) if joined is None else joined.name
                    self.forks[known] = fork
                    if joined is None:
                        self._names[id(fork)] = known

        future.add_done_callback(keep)
        self._tell_later(future, run, request, lambda fork: self._said_of(fork))

    def _said_of_save(self, folder: Path, step: int) -> str:
        """Where it is, without the path of this machine: the note is saved with the notebook."""
        self.saved.append(folder)
        shown = "/".join(folder.parts[-2:]) if folder.is_absolute() else folder.as_posix()
        return f"saved at step {step:,} into {shown} (monitor.saved[{len(self.saved) - 1}])"

    def _said_of(self, fork: Any) -> str:
        name = next(key for key, one in self.forks.items() if one is fork)
        return f"forked at step {fork.step:,}: monitor.forks[{name!r}]"

    def _tell_later(self, future: Future[Any], run: Run, request: dict[str, Any], said: Callable[[Any], str]) -> None:
        def tell(done: Future[Any]) -> None:
            error = done.exception()
            text = said(done.result()) if error is None else str(error)
            if error is not None and not isinstance(error, NbSaeError):
                text = f"{type(error).__name__}: {error}"
            self._note(run.name, text, error=error is not None, number=request.get("id"))

        future.add_done_callback(tell)

    # ── display ───────────────────────────────────────────────────────────────────────────────────────────────

    def _show_self(self) -> None:
        """Display in the cell that trains, unless it was displayed before."""
        if self._shown is None and in_notebook():
            from IPython.display import display

            display(self)

    def _show_twin(self, bundle: dict[str, str], metadata: dict[str, Any]) -> None:
        """Display the picture so that it can be drawn anew: a notebook that is opened later has the end of the run."""
        from IPython.display import display

        self._shown = display(bundle, metadata=metadata, raw=True, display_id=True)

    def _redraw(self, *, ended: bool | None = None) -> None:
        """Draw the static picture again where one is displayed: seldom, oftener at ends (False), at the last (True)."""
        began = time.perf_counter()
        due = {None: self._picture_due, False: self._picture_worth, True: 0.0}[ended]
        if self._shown is None or began < due:
            return
        try:
            bundle, metadata = self._twin_bundle(base64.b64encode(self.picture()).decode("ascii"))
            self._shown.update(bundle, metadata=metadata, raw=True)
        finally:
            now = time.perf_counter()
            self._picture_due = now + max(PICTURE_EVERY_S, (now - began) / PICTURE_SHARE)
            self._picture_worth = now + WORTH * (now - began)

    def _picture_key(self) -> object:
        return tuple((run.name, run.state, run.points.lines) for run in self._runs)

    def _draw_picture(self) -> bytes:
        from nb_sae.widgets.monitor_picture import draw_monitor

        with self._sending:
            return draw_monitor(self.about["title"], self._runs)

    def _summary(self) -> str:
        said = []
        for run in list(self._runs):
            levels = ", ".join(
                f"{'k = ' + str(k) if k is not None else 'own rule'}: {wire.sig3(fvu)}"
                for k, width, _, fvu in run.points.quality()
                if width is None
            )
            step, steps = run.facts.get("step", run.points.last.get("step", 0)), run.facts.get("steps")
            of = f" of {steps:,}" if steps else ""
            said.append(
                f"{wire.visible_text(run.name)}: {run.state} at step {int(step):,}{of}"
                + (f", FVU {levels}" if levels else "")
                + (f"; {wire.visible_text(run.why)}" if run.why else "")
            )
        return f"TrainMonitor of {len(said)} run{'' if len(said) == 1 else 's'}. {'. '.join(said)}".strip()


class _Watch:
    """Follows one session for a monitor. What fails in it is shown, and never ends a training."""

    def __init__(self, monitor: TrainMonitor, run: Run, known: _Watch | None) -> None:
        self._monitor, self._run = monitor, run
        self._probe: Any = None if known is None else known._probe
        self._forming = monitor_looks.Forming(monitor._chosen) if known is None else known._forming
        self._last: tuple[Any, pl.DataFrame] | None = None if known is None else known._last
        self._looks = monitor._look
        self._said = ""
        self._look_due, self._look_worth = (0.0, 0.0) if known is None else (known._look_due, known._look_worth)

    def begin(self) -> None:
        """Show it, and take the first look, which says how much of the time the next ones take."""
        self._guarded(self._monitor._show_self)
        self._guarded(lambda: self._look(self._look_due))
        self._guarded(self._monitor._bring)

    def line(self, record: dict[str, Any]) -> None:
        """See `nb_sae.sae.watching.Watch`."""
        with self._monitor._sending:
            self._run.points.add(record)

    def passed(self) -> None:
        """See `nb_sae.sae.watching.Watch`."""
        if time.perf_counter() >= self._monitor._due:
            self._update()

    def changed(self) -> None:
        """See `nb_sae.sae.watching.Watch`."""
        self._update()

    def ended(self, error: BaseException | None) -> None:
        """See `nb_sae.sae.watching.Watch`."""
        self._guarded(lambda: self._end(error))
        last = self._run.state != "ready"
        if error is None:
            self._guarded(lambda: self._look(0.0 if last else self._look_worth))
        self._guarded(self._monitor._bring)
        self._guarded(lambda: self._monitor._redraw(ended=last))

    def tables(self, rows: dict[tuple[int, int], int]) -> dict[str, pl.DataFrame]:
        """The last look as tables; the inputs that it names get their numbers in `rows`."""
        if self._last is None:
            return {}
        look, forming = self._last
        probe = self._probe

        def number(row: int) -> int:
            return rows.setdefault((probe.input_ids[row], probe.tokens[row]), len(rows))

        sample = monitor_looks.sample_frame(look, probe.shown).with_columns(
            row=pl.Series([number(int(one)) for one in probe.shown], dtype=pl.UInt32)
        )
        named = [[number(int(row)) for row in one] for one in forming["rows"].to_list()]
        return {
            "sample": sample,
            "levels": monitor_looks.levels_frame(look).with_columns(
                step=pl.lit(look.step, pl.UInt32), probe=pl.lit(len(probe.rows), pl.UInt32)
            ),
            "forming": forming.with_columns(rows=pl.Series(named, dtype=pl.List(pl.UInt32))),
        }

    def _end(self, error: BaseException | None) -> None:
        with self._monitor._sending:
            self._run.ended(error)

    def _update(self) -> None:
        self._guarded(lambda: self._look(self._look_due))
        self._guarded(self._monitor._bring)
        self._guarded(self._monitor._redraw)

    def _look(self, due: float) -> None:
        if not self._looks or time.perf_counter() < due:
            return
        began, session = time.perf_counter(), self._run.session
        try:
            if self._probe is None:
                self._probe = session.probe()
            look = self._probe.look(session)
            self._last = look, self._forming.follow(look)
            self._monitor._send_looks()
        except Exception as error:  # no room on the device, rows that are gone: it would fail again
            self._looks = False
            if not isinstance(error, NbSaeError):
                raise
            self._monitor._note(self._run.name, f"No look at rows: {error}")
        finally:
            ended = time.perf_counter()
            runs = sum(one.state in ("running", "paused", "stopping") for one in self._monitor._runs)
            self._look_due = ended + max(1, runs) * (ended - began) / LOOK_SHARE  # they share what looks may take
            self._look_worth = ended + WORTH * (ended - began)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # hours of training are worth more than their picture
            said = f"Not shown: {type(error).__name__}: {error}"
            if said != self._said:  # once is enough
                self._said = said
                with suppress(Exception):
                    self._monitor._note(self._run.name, said, error=True)


def _named(sessions: Any) -> list[tuple[str, Any]]:
    if sessions is None:
        return []
    if not isinstance(sessions, Mapping | Sequence):
        raise WidgetError(
            f"TrainMonitor was given a {type(sessions).__name__}; expected sessions in a list, or with names: "
            "TrainMonitor({'one': session}). To follow a training, give it the monitor: Session(…, on_log=monitor)."
        )
    pairs = sessions.items() if isinstance(sessions, Mapping) else ((None, one) for one in sessions)
    found = []
    for name, session in pairs:
        if not hasattr(session, "log") or not hasattr(session, "control"):
            raise WidgetError(
                f"TrainMonitor was given a {type(session).__name__}; expected sessions, such as ns.Session.load(path)."
            )
        found.append((None if name is None else str(name), session))
    return found


def _latents(latents: Any) -> list[int] | None:
    if latents is None:
        return None
    if (
        isinstance(latents, str)
        or not isinstance(latents, Sequence)
        or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in latents)
    ):
        raise WidgetError(f"latents={latents!r}: expected numbers of latents, such as [3, 17].")
    return list(latents)[: monitor_looks.FEATURES * 4]


def _title(session: Any) -> str:
    return str(session.title)


def _slug(name: str, step: int) -> str:
    """A folder's name from a run's."""
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-') or 'run'}-step-{step}"


def _value(text: Any) -> Any:
    """A setting as it was typed: a number, numbers with commas, None, or a word."""
    if not isinstance(text, str):
        return text
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
    return value if isinstance(value, int | float | str | bool | tuple | list | None) else text.strip()
