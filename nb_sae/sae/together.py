"""The loop over batches: one session, or several that share what is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TypeVar

from nb_sae.errors import ConfigError
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.control import Border
from nb_sae.sae.interrupt import deferred_interrupt
from nb_sae.sae.running import Running

OneSession = TypeVar("OneSession", bound=Running)


def train_together(
    sessions: Sequence[OneSession], *, steps: int | None = None, rows: int | None = None, progress: bool = True
) -> list[OneSession]:
    """Train several sessions on one stream of batches: every batch is read once and each session steps on it.

    Each ends as if it had been trained alone, bit for bit. A session whose plan ends earlier drops out. When one fails,
    the others finish the batch before the error is raised; they can go on without it. An interrupt stops all of them
    after the same batch; `session.control.stop()` stops one, and a fork made by `session.control` joins the others.

    Args:
        sessions: Made from one source object, with the same `batch_rows` and `seed`, at the same step.
        steps: So many more; None: to the planned end of each.
        rows: The same in rows.
        progress: Show one bar for all.

    Raises:
        ConfigError: the sessions cannot share batches; says what differs.
    """
    if not isinstance(sessions, Sequence) or not all(isinstance(one, Running) for one in sessions):
        given = type(sessions).__name__
        hint = "Give its values: list(sessions.values())." if isinstance(sessions, Mapping) else "Give a list of them."
        raise ConfigError(f"train_together was given a {given}; expected sessions, such as [one, other]. {hint}")
    if not sessions or len({id(one) for one in sessions}) < len(sessions):
        raise ConfigError("Give at least one session, each once.")
    first = sessions[0]
    for number, other in enumerate(sessions):
        other.check_ready()
        for what, mine, its in (
            ("source", id(first.source), id(other.source)),
            ("batch_rows", first.train.batch_rows, other.train.batch_rows),
            ("seed", first.train.seed, other.train.seed),
            ("step", first.step, other.step),
            ("device", first.device, other.device),
        ):
            if mine != its:
                told = f" ({mine} and {its})" if what != "source" else ""
                hint = "Run those behind first." if what == "step" else "Make all of them with the same one."
                raise ConfigError(f"Sessions 0 and {number} cannot share batches: their {what} differs{told}. {hint}")
    advance(sessions, [one.last_step(steps, rows) for one in sessions], progress=progress)
    return list(sessions)


def advance(sessions: Sequence[Running], lasts: Sequence[int], *, progress: bool) -> None:
    """Step through batches until each session is at its last step; all stand at one place of one source."""
    first = sessions[0]
    active = [(one, last) for one, last in zip(sessions, lasts, strict=True) if one.step < last]
    if not active:
        return
    batch_rows = first.train.batch_rows or 0
    sizes = " and ".join(f"{one.config.d_sae or 0:,}" for one in sessions[:4]) + (" and more" if sessions[4:] else "")
    total = max(last for _, last in active) * batch_rows
    with ExitStack() as stack:
        shown = progress and first.group.is_main
        bar = stack.enter_context(
            progress_bar(total, "rows", f"train {sizes} latents", initial=first.rows_seen, enabled=shown)
        )
        interrupted = stack.enter_context(deferred_interrupt())
        border = Border(takes_forks=first.group.world == 1)
        under_way = stack.enter_context(_UnderWay(border))
        for one, _ in active:
            under_way.begin(one)
        for place, batch in active[0][0].batches():
            failures: list[Exception] = []
            sound: list[Running] = []
            for one, last in active:
                try:
                    one.take_step(batch, place, last=last)
                except Exception as error:
                    if len(active) > 1:
                        error.add_note(f"Raised by session {list(sessions).index(one)} of {len(sessions)}.")
                    failures.append(error)
                else:
                    sound.append(one)
            bar.update(batch_rows)
            if failures:
                for one in sound if first.group.world == 1 else ():  # several processes may not all have come here
                    one.stopped_early = not one.finished
                    with suppress(Exception):  # the first error is the one to show
                        under_way.end(one)
                raise failures[0]
            for one in [one for one, last in active if one.step >= last]:
                under_way.end(one)
            active = [(one, last) for one, last in active if one.step < last]
            if not active:
                break
            active = _after_orders(active, border, interrupted, under_way)
            if not active or first.group.agree_to_stop(interrupted() or _stopping(active), active[0][0].step):
                for one, _ in active:
                    one.stopped_early = True
                break


class _UnderWay(ExitStack):
    """What is around the steps of every session of a loop; one that drops out is saved, and hears for itself again."""

    def __init__(self, border: Border) -> None:
        super().__init__()
        self._border = border
        self._ends: dict[int, ExitStack] = {}

    def begin(self, one: Running) -> None:
        """Its run begins."""
        self._ends[id(one)] = end = self.enter_context(ExitStack())
        end.enter_context(one.under_way(self._border))

    def end(self, one: Running) -> None:
        """Its run ends; those of the others go on."""
        self._ends.pop(id(one)).close()


def _after_orders(
    active: list[tuple[Running, int]], border: Border, interrupted: Callable[[], bool], under_way: _UnderWay
) -> list[tuple[Running, int]]:
    """Who goes on after what was asked between two steps: forks join, those that were stopped drop out."""
    border([one for one, _ in active], interrupted)
    lasts = {id(one): last for one, last in active}
    for origin, fork in border.forks:
        under_way.begin(fork)
        active.append((fork, min(fork.train.steps, lasts[id(origin)])))
    border.forks.clear()
    if active[0][0].group.world > 1:
        return active  # all processes have to stop at one step
    for one, _ in active:
        one.stopped_early = one.control.stopping
        if one.stopped_early:
            under_way.end(one)
    return [(one, last) for one, last in active if not one.stopped_early]


def _stopping(active: Sequence[tuple[Running, int]]) -> bool:
    return any(one.control.stopping for one, _ in active)
