"""Who follows a session more closely than by the lines of its log: what `on_log` may offer besides being called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nb_sae.errors import ConfigError

if TYPE_CHECKING:
    from nb_sae.sae.session import Session


class Watch(Protocol):
    """Follows one session. All of it is called by the thread that steps."""

    def line(self, record: dict[str, Any]) -> None:
        """A line of the log was written."""
        ...

    def passed(self) -> None:
        """A step is done. Called thousands of times a second: must be quick."""
        ...

    def changed(self) -> None:
        """A pause began or ended."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """The run ended, by this error if there is one; everything of it is logged and saved."""
        ...


@runtime_checkable
class Watcher(Protocol):
    """An `on_log` that follows sessions closely, such as `nb_sae.TrainMonitor`."""

    def watch(self, session: Session, name: str | None = None) -> Watch:
        """Follow a session whose run begins."""
        ...


def check_on_log(on_log: Any) -> None:
    """Refuse what cannot be called with a line of the log.

    Raises:
        ConfigError: says what was given.
    """
    if isinstance(on_log, type):
        raise ConfigError(f"on_log={on_log.__name__} is a class. Make one of it: on_log={on_log.__name__}().")
    if on_log is not None and not callable(on_log):
        raise ConfigError(f"on_log={on_log!r} cannot be called; expected a function of one line of the log.")


class NamedWatcher:
    """A watcher that is told a name for the session."""

    def __init__(self, watcher: Watcher, name: str) -> None:
        self._watcher, self._name = watcher, name

    def __call__(self, line: dict[str, Any]) -> None:
        """Never called: a session hands its lines to the watch."""

    def watch(self, session: Session, name: str | None = None) -> Watch:
        """See `Watcher`."""
        return self._watcher.watch(session, name or self._name)
