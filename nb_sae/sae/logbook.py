"""The log of a session: numbers made on the device, fetched without waiting, and the mark of a failed step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nb_sae.machine import Readback
from nb_sae.sae.step import StepResult, TrainingState

OnLog = Callable[[dict[str, Any]], None]
Position = tuple[int, int]
"""Pass over the source, and batches of it that are done."""


class StepFailedError(Exception):
    """A step gave no finite loss. Turned into an error for the user by the session, which knows what to do next."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Logbook:
    """Lines of the log. On a GPU a line is read when the next one is due, so that nothing waits for the device."""

    def __init__(self, records: list[dict[str, Any]] | None = None) -> None:
        self.records = records or []
        self._pending: tuple[dict[str, Any], list[str], Readback] | None = None
        self._trail: dict[int, Position] = {}

    def begin(self, step: int, position: Position) -> None:
        """Note where a run starts."""
        self._trail = {step: position}

    def passed(self, step: int, position: Position) -> None:
        """Note where the session stands after a step, to find the way back from a failed one."""
        self._trail[step] = position

    def position(self, step: int) -> Position:
        """Where the session stood after `step` steps; known from the last line of the log on."""
        return self._trail[step]

    def send(
        self,
        state: TrainingState,
        result: StepResult,
        line: dict[str, Any],
        levels: Sequence[str],
        on_log: OnLog | None,
    ) -> None:
        """Put the numbers of a step on their way, and take over those of the line before."""
        self.take_over(on_log)
        few = (result.loss, result.variance, result.l0, state.dead.float().mean())
        numbers = torch.cat([torch.stack([one.to(result.errors.dtype) for one in few]), result.errors])
        self._pending = line, list(levels), Readback(state.group.mean(numbers), state.failed_step)
        if self.waits(numbers):
            self.take_over(on_log)

    @staticmethod
    def waits(numbers: Tensor) -> bool:
        """Whether numbers are there as soon as they are asked for, or asking has waited for them anyway."""
        return numbers.device.type != "cuda"

    def take_over(self, on_log: OnLog | None = None) -> None:
        """Write the line that is under way, if one is, and call `on_log` with it.

        Raises:
            StepFailedError: a step up to it gave no finite loss; the line is dropped.
        """
        if self._pending is None:
            return
        (line, levels, readback), self._pending = self._pending, None
        numbers, failed = readback.wait()
        if int(failed) >= 0:
            raise StepFailedError(int(failed))
        record = _record(line, levels, numbers)
        self.records.append(record)
        self._trail = {step: place for step, place in self._trail.items() if step >= line["step"]}
        if on_log is not None:
            on_log(record)

    def settle(self, state: TrainingState, on_log: OnLog | None = None) -> None:
        """Read what is still on the device: the last line, and whether a step failed.

        Raises:
            StepFailedError: one did.
        """
        self.take_over(on_log)
        failed = int(state.failed_step)
        if failed >= 0:
            raise StepFailedError(failed)


def _record(line: dict[str, Any], levels: list[str], numbers: Tensor) -> dict[str, Any]:
    loss, variance, l0, dead, *_ = numbers.tolist()
    fvu = (numbers[4:] / variance).tolist()
    first = {"step": line["step"], "rows": line["rows"], "seconds": line["seconds"], "loss": loss}
    rest = {"learning_rate": line["learning_rate"], "dead": dead, "l0": l0}
    return first | rest | dict(zip(levels, fvu, strict=True))
