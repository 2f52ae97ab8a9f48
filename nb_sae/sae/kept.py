"""The last sound state of a session, kept in main memory: where training goes back to when it has diverged.

Before the weights stop giving a finite loss they have usually been ruined for some steps: the state just before the
failure is finite and of no use. So a tenth of the plan apart a state is put aside, if the loss that it gives on its
next batch is no worse than that of a start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nb_sae.sae.step import StepResult, TrainingState

if TYPE_CHECKING:
    from nb_sae.sae.logbook import Position

RUINED = 2.0
"""A state is not kept where its FVU is this many times that of the first line of the log, or of the mean (FVU 1)."""


@dataclass(frozen=True)
class Kept:
    """A state and where it stood. Of a dictionary that is split, the part of this process."""

    step: int
    position: Position
    seconds: float
    tensors: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]

    @torch.no_grad()
    def restore(self, state: TrainingState) -> None:
        """Put the tensors back; the state must have the settings that it had, but for the schedule."""
        for name, value in _tensors(state).items():
            value.copy_(self.tensors[name])
        fused = state.optimizer.defaults["fused"]
        for name, parameter in state.sae.named_parameters():
            state.optimizer.state.pop(parameter, None)
            if self.moments[name]:
                state.optimizer.state[parameter] = {
                    # Only the fused kernel counts its steps on the device.
                    key: value.to(state.device if fused or key != "step" else "cpu", copy=True)
                    for key, value in self.moments[name].items()
                }


def counters(state: TrainingState) -> dict[str, Tensor]:
    """Copies of the small tensors that a backward pass already moves."""
    return {name: value.clone() for name, value in _tensors(state).items() if name in ("silent_rows", "threshold")}


def keep(state: TrainingState, moved: dict[str, Tensor], **place: Any) -> Kept:
    """A copy of a state after `backward` and before `apply`; `moved` is what `counters` gave before either."""
    tensors = {name: value.to("cpu", copy=True) for name, value in (_tensors(state) | moved).items()}
    moments = {
        name: {key: value.to("cpu", copy=True) for key, value in state.optimizer.state.get(parameter, {}).items()}
        for name, parameter in state.sae.named_parameters()
    }
    return Kept(**place, tensors=tensors, moments=moments)


def is_sound(result: StepResult, state: TrainingState, first_fvu: float | None) -> bool:
    """Whether a batch was explained no worse than at a start, by the mean over all processes. Waits for the device."""
    fvu = state.group.mean(result.errors[-1] / result.variance).item()
    failed = int(state.failed_step) >= 0
    return not failed and fvu <= RUINED * max(1.0, fvu if first_fvu is None else first_fvu)


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    named = {name: value.detach() for name, value in state.sae.state_dict().items()}
    if state.average is not None:
        named |= {f"average.{name}": value for name, value in state.average.tensors.items()}
    return named | {"silent_rows": state.silent_rows}
