"""Orders to a session that is being stepped: given from any thread, carried out between two steps.

A step moves weights, moments and counters one after the other; whoever looks at them or copies them from another thread
in the middle of it finds a state that never was. So nothing here touches a session: an order is put down, and the
thread that steps carries it out at the border of a step.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nb_sae.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    from nb_sae.sae.session import Session

T = TypeVar("T")
LOOK_S = 0.05
"""How often a loop that pauses looks for orders and for the notebook's stop button."""


class Border:
    """The border between two steps of one loop, over one session or several. Made by the loop for each run."""

    def __init__(self, *, takes_forks: bool = False) -> None:
        self.takes_forks = takes_forks
        """Whether a fork joins the loop and is stepped on the same batches."""
        self.pausing = False
        """Whether a pause was asked for."""
        self.holds = False
        """Whether the loop stands still now."""
        self.forks: list[tuple[Session, Session]] = []
        """Which session a fork comes from, and the fork; the loop takes them out."""

    def __call__(self, sessions: Iterable[Any], interrupted: Callable[[], bool] = bool) -> None:
        """Carry out what was asked of these sessions, and wait while a pause is on; an interrupt ends the pause."""
        sessions = list(sessions)
        for one in sessions:
            one.control.carry_out()
        if not self.pausing:
            return
        self.holds = True
        try:
            self._tell(sessions)
            while self.pausing and not interrupted() and not all(one.control.stopping for one in sessions):
                time.sleep(LOOK_S)
                for one in sessions:
                    one.control.carry_out()
        finally:
            self.holds = self.pausing = False
        for one in sessions:
            one.go_on()  # the clock of a session counts no pause
        self._tell(sessions)

    @staticmethod
    def _tell(sessions: Iterable[Any]) -> None:
        for one in sessions:
            one.tell()


class Control:
    """Orders to one session, safe from any thread. `session.control`.

    While nobody steps the session, `save`, `fork` and `change` are carried out at once, by the caller. Where several
    processes train together only `stop` reaches all of them; the other orders are refused.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.RLock()
        self._border: Border | None = None
        self._orders: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self.stopping = False
        """Whether a stop was asked for in this run."""
        self._failure: NonFiniteError | None = None

    @property
    def state(self) -> Literal["idle", "running", "paused"]:
        """Whether a loop steps the session, and whether that loop holds."""
        border = self._border
        return "idle" if border is None else "paused" if border.holds else "running"

    def pause(self) -> None:
        """Hold the loop after the step under way: all sessions in it. Its time is not counted.

        Raises:
            ConfigError: no loop steps the session, or several processes train together.
        """
        self._check_alone("pause")
        self._loop("pause").pausing = True

    def proceed(self) -> None:
        """Let a loop that pauses go on; nothing where it does not pause.

        Raises:
            ConfigError: no loop steps the session.
        """
        self._loop("continue").pausing = False

    def stop(self) -> None:
        """End the run of this session after the step under way, as an interrupt does; nothing is lost.

        Others that share its batches go on without it; while they pause, it ends with the pause.

        Raises:
            ConfigError: no loop steps the session.
        """
        self._loop("stop")
        self.stopping = True

    def save(self, path: str | os.PathLike[str] | None = None, *, overwrite: bool = False) -> Future[Path]:
        """Write the session into a folder, as `Session.save`; None: into its own `save_to`.

        The future holds the folder, or the error.

        Raises:
            ConfigError: no folder is known, or several processes train together.
        """
        self._check_alone("save")
        if path is None and self._session.save_to is None:
            raise ConfigError("This session has no folder of its own (save_to). Give one: save('runs/name').")
        return self._ask(lambda: self._session.put_down(path, overwrite=overwrite))

    def fork(self, **settings: Any) -> Future[Session]:
        """A second session from here on with other settings, as `Session.fork`; `on_log` is that of this one.

        In a loop that shares its batches (`Session.run`, `train_together`) it joins and is stepped with the others, to
        the same step or to the end of its own plan; elsewhere it stands ready to `run`. The future holds it.

        Raises:
            ConfigError: several processes train together.
        """
        self._check_alone("fork")
        return self._ask(lambda: self._fork(settings))

    def change(self, **settings: Any) -> Future[Session]:
        """Change settings from the next step on, as `Session.change`; the future holds the session, or the error.

        Raises:
            ConfigError: several processes train together.
        """
        self._check_alone("change")
        return self._ask(lambda: self._session.change(**settings))

    # ── the side of the loop ──────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def listening(self, border: Border) -> Iterator[None]:
        """While a loop steps the session; orders that nobody carried out are refused where the loop failed."""
        with self._lock:
            self._border, self.stopping, self._failure = border, False, None
        try:
            yield
        except BaseException as error:
            self._refuse(error)
            raise
        finally:
            with self._lock:
                self._border = None
                self.carry_out()

    def carry_out(self) -> None:
        """Do what was asked up to now, in its order, in this thread; what is asked meanwhile comes a step later."""
        for _ in range(len(self._orders)):
            future, act = self._orders.popleft()
            self._do(future, act)

    def check_sound(self) -> None:
        """Before a step: a copy that was asked for reads the device, and may find that an earlier step has failed.

        Raises:
            NonFiniteError: it did; the session stands before that step.
        """
        if self._failure is not None:
            raise self._failure

    def _refuse(self, error: BaseException) -> None:
        while self._orders:
            future, _ = self._orders.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(ConfigError(f"The run ended before this could be done: {error!r}."))

    def _fork(self, settings: dict[str, Any]) -> Session:
        border = self._border
        fork = self._session.fork(on_log=self._session.on_log, progress=False, **settings)
        if border is not None and border.takes_forks:
            border.forks.append((self._session, fork))
        return fork

    def _ask(self, act: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:  # a run that begins meanwhile waits in `listening`
            if self._border is not None:
                self._orders.append((future, act))
            else:
                self._do(future, act)
        return future

    def _do(self, future: Future[Any], act: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(act())
        except Exception as error:  # it belongs to whoever asked, not to the training
            if isinstance(error, NonFiniteError) and self._border is not None:
                self._failure = error  # but this one
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(error)
            raise

    def _loop(self, order: str) -> Border:
        border = self._border
        if border is None:
            raise ConfigError(f"There is nothing to {order}: this session is not running. Call session.run().")
        return border

    def _check_alone(self, order: str) -> None:
        if self._session.group.world > 1:
            raise ConfigError(
                f"{order} reaches this process alone, but {self._session.group.world} train together. Stop the run, "
                "and do it in all of them."
            )
