"""A training under way: what it has allocated, where it stands, its steps, its log and its saves."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nb_sae.errors import ConfigError, NonFiniteError, StoreError
from nb_sae.sae import checkpoint, optim
from nb_sae.sae.config import SAEConfig, titled
from nb_sae.sae.control import Border, Control
from nb_sae.sae.distributed import Group
from nb_sae.sae.kept import Kept, counters, is_sound, keep
from nb_sae.sae.logbook import Logbook, OnLog, Position, StepFailedError
from nb_sae.sae.memory import MemoryBudget, memory_errors
from nb_sae.sae.origin import Origin
from nb_sae.sae.scale import Scale, principal_axes, start_bias
from nb_sae.sae.step import StepResult, TrainingState
from nb_sae.sae.training import TrainConfig
from nb_sae.sae.watching import Watch, Watcher
from nb_sae.types import ActivationSource

SAVES = 10
"""How often a planned run puts its state aside to go back to, and saves itself where `save_every_rows` is not given."""
AXES_ROWS = 16_384
"""Rows from which the principal axes are estimated, at least; four for each dimension where that is more."""
BIAS_ROWS = 8192
"""Rows from which a geometric median is taken."""


class Running:
    """What `Session` is made of below its verbs; `together.advance` drives it."""

    config: SAEConfig
    train: TrainConfig
    source: ActivationSource | None
    group: Group
    device: torch.device
    on_log: OnLog | None
    control: Control
    _origin: Origin
    _run: str
    _changes: list[dict[str, Any]]

    def _build(self, show: bool, *, fresh: bool = True) -> None:
        """Allocate everything, after saying and checking how much it is; `fresh`: with the weights of a start."""
        self.step, self.seconds, self.stopped_early = 0, 0.0, False
        self._position: Position = (0, 0)
        self._clock = 0.0
        self._book = Logbook()
        self._kept: Kept | None = None
        self._keep_next, self._failed = True, False
        self._watch: Watch | None = None
        origin = self._origin
        self._scale = Scale.of(origin.statistics, self.device)
        self._target_scale = origin.target_statistics and Scale.of(origin.target_statistics, self.device)
        optim.check_device(self.train, self.device)
        if show and self.group.is_main:
            print(*filter(None, (self.memory, optim.precision_note(self.train, self.device))), sep="\n")
        self.memory.check()
        self._keeps = not bool(self.group.any(torch.tensor(not self.memory.kept, device=self.device)))
        with memory_errors(self.memory):
            self._state = TrainingState(
                self.config,
                self.train,
                origin.d_in,
                d_out=origin.d_out,
                device=self.device,
                start_bias=self._start_bias() if fresh else None,
                **self._axes(fresh),
                epoch_steps=max(1, origin.rows // self._batch_rows),
                group=self.group,
            )
        self.sae = self._state.sae

    def _axes(self, fresh: bool) -> dict[str, Tensor]:
        """Principal axes of a sample of the rows, and of the targets of a transcoder."""
        if not (fresh and self.train.principal_axes and self.source is not None):
            return {}
        few = min(self._origin.rows, max(AXES_ROWS, 4 * self._origin.d_in))
        few = min(few, max(1, getattr(self.source, "buffer_rows", 2 * few) // 2))  # a stream mixes two batches or more
        sample = next(iter(self.source.batches(few, seed=self.train.seed, device=self.device)))
        rows, targets = sample if isinstance(sample, tuple) else (sample, None)
        axes = {"axes": principal_axes(self._scale.apply(rows))}
        if targets is not None and self._target_scale is not None:
            axes["target_axes"] = principal_axes(self._target_scale.apply(targets))
        return axes

    def _start_bias(self) -> Tensor | None:
        scale = self._target_scale or self._scale
        if self.config.bias_init != "geometric_median" or self.source is None:
            return start_bias(self.config, scale.mean, scale)
        few = min(self._origin.rows, BIAS_ROWS)
        rows = next(iter(self.source.batches(few, seed=self.train.seed, device=self.device)))
        return start_bias(self.config, scale.apply(rows[1] if isinstance(rows, tuple) else rows), scale)

    def _save_into(self, save_to: str | os.PathLike[str] | None, every: int | None) -> None:
        if every is not None and (save_to is None or every < 1):
            raise ConfigError(f"save_every_rows={every} needs save_to= and must be at least 1.")
        self.save_to = None if save_to is None else Path(save_to)
        self.save_every_rows = every
        if self.save_to is not None:
            checkpoint.check_free(self.save_to, self._run, overwrite=False)

    # ── where it stands ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def _batch_rows(self) -> int:
        return self.train.batch_rows or 0

    @property
    def _level_names(self) -> list[str]:
        names = []
        for budget, width in self.config.levels:
            parts = [f"_k{budget}"] * (budget is not None) + [f"_w{width}"] * (width is not None)
            names.append("fvu" + "".join(parts))
        return names

    @property
    def memory(self) -> MemoryBudget:
        """Bytes that training takes on the device."""
        return MemoryBudget.of(
            self.config,
            self.train,
            self._origin.d_in,
            self._origin.d_out,
            self.device,
            row_shares=self.group.row_shares,
            latent_shares=self.group.latent_shares,
        )

    @property
    def target_mean(self) -> Any:
        """`(d_out,)` float64, model units: the mean of what is reconstructed, about which FVU is counted."""
        return (self._origin.target_statistics or self._origin.statistics).mean

    @property
    def held_bytes(self) -> int | None:
        """Bytes that torch holds on a GPU now; None elsewhere. Does not wait for the device."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else None

    @property
    def title(self) -> str:
        """Rule and size in a few words: "MSAE 16…256, 3,072 latents"."""
        return titled(self.config.sparsity, self.config.budgets, self.config.d_sae or 0, self._origin.d_out is not None)

    @property
    def latest(self) -> dict[str, Any]:
        """The last line of the log; empty before the first."""
        return dict(self._book.records[-1]) if self._book.records else {}

    @property
    def rows_seen(self) -> int:
        """Rows trained on so far, repeats counted."""
        return self.step * self._batch_rows

    @property
    def finished(self) -> bool:
        """Whether the planned number of steps is done."""
        return self.step >= self.train.steps

    def check_ready(self) -> None:
        """Refuse to run without rows or beyond the plan.

        Raises:
            ConfigError: says what to do.
        """
        if self.source is None:
            raise ConfigError("This session was loaded without its rows. Give them: Session.load(path, source=store).")
        if self.finished:
            raise ConfigError(f"All {self.train.steps:,} steps are done. Call session.extend(rows=…) to train longer.")

    def last_step(self, steps: int | None = None, rows: int | None = None) -> int:
        """Where a run of so many steps, or rows, ends; at most at the end of the plan."""
        if rows is not None:
            steps = -(-rows // self._batch_rows)
        return self.train.steps if steps is None else min(self.train.steps, self.step + steps)

    # ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def under_way(self, border: Border | None = None) -> Iterator[None]:
        """What is around the steps of a run: clock, lock, orders, and at the end the rest of the log and a save.

        `border`: where the loop carries out what `control` is asked for; None: at the end alone.
        """
        self._watch = None
        if isinstance(self.on_log, Watcher) and self.group.is_main:
            try:
                self._watch = self.on_log.watch(self)  # pyright: ignore[reportArgumentType]
            except Exception as error:  # training is worth more than its picture
                warnings.warn(f"This run is not watched: {type(error).__name__}: {error}", stacklevel=2)
        with ExitStack() as stack:
            stack.enter_context(self._watched())
            stack.enter_context(self.control.listening(border or Border()))
            stack.enter_context(self._open())
            yield

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Tell the watch of the end, whatever it is."""
        try:
            yield
        except BaseException as error:
            if self._watch is not None:
                self._watch.ended(error)
            raise
        if self._watch is not None:
            self._watch.ended(None)

    @contextmanager
    def _open(self) -> Iterator[None]:
        self.stopped_early = self._failed = False
        self._clock = time.perf_counter() - self.seconds
        self._book.begin(self.step, self._position)
        with nullcontext() if self.save_to is None or not self.group.is_main else checkpoint.Lock(self.save_to):
            if self.save_to is not None and self.group.is_main:
                checkpoint.check_free(self.save_to, self._run, overwrite=False)
            try:
                with memory_errors(self.memory):
                    yield
            except BaseException:
                with suppress(RuntimeError, NonFiniteError):  # the first error is the one to show
                    self._settle(call=False)
                raise
            self._settle()
            if self.save_to is not None:
                self._write(self.save_to)

    def go_on(self) -> None:
        """Begin a turn: the clock goes on from where it stood, other sessions trained in between."""
        self._clock = time.perf_counter() - self.seconds

    def tell(self) -> None:
        """Let who watches look at where the session stands."""
        if self._watch is not None:
            self._watch.changed()

    def batches(self, source: Any = None) -> Iterator[tuple[Position, Any]]:
        """Where a session stands after a batch, and the batch, from here on, pass after pass.

        `source`: what gives the rows of several sessions at once, in place of this session's own.
        """
        source = source or self.source
        if source is None:
            raise ConfigError("This session has no rows.")
        epoch, done = self._position
        share = {} if self.group.world == 1 else {"share": self.group.share}
        while True:
            for batch in source.batches(
                self._batch_rows, seed=self.train.seed, epoch=epoch, skip=done, device=self.device, **share
            ):
                done += 1
                yield (epoch, done), batch
            if not done:
                raise StoreError(f"The source gave no batch of {self._batch_rows:,} rows in pass {epoch}.")
            epoch, done = epoch + 1, 0

    def take_step(self, batch: Any, place: Position, *, last: int) -> None:
        """One step, with the log and the save that are due after it; `place` is what `batches` gave with the batch."""
        self.control.check_sound()
        result = self._train_step(batch)
        self.step += 1
        self._position = place
        self._book.passed(self.step, place)
        self.seconds = time.perf_counter() - self._clock
        if self.step % self.train.log_steps == 0 or self.step == last:
            self._log(result)
        every = self.save_every_rows or max(1, (self.train.rows or 0) // SAVES)
        if self.save_to is not None and self._passed(every):
            self._settle()
            self._write(self.save_to)
        if self._watch is not None:
            self._watch.passed()

    def _passed(self, every: int, *, ahead: int = 0) -> bool:
        """Whether the last step (`ahead=1`: the one under way) came to a multiple of so many rows."""
        rows = self.rows_seen + ahead * self._batch_rows
        return rows // every > (rows - self._batch_rows) // every

    def _train_step(self, batch: Tensor | tuple[Tensor, Tensor]) -> StepResult:
        rows, targets = batch if isinstance(batch, tuple) else (batch, batch)
        x = self._scale.apply(self.group.batch(rows))
        target = x if self._target_scale is None else self._target_scale.apply(self.group.batch(targets))
        tenth = max(1, (self.train.rows or 0) // SAVES)
        due = self._keeps and (
            self._keep_next or self.rows_seen // tenth > (self.rows_seen - self._batch_rows) // tenth
        )
        moved = counters(self._state) if due else {}
        result = self._state.backward(x, target, self.step)
        if due:
            self._keep(result, moved)
        self._state.apply(self.step)
        every = self.train.resample_every
        if every is not None and self._passed(every, ahead=1):
            self._state.resample_dead(x, target, self.step)
        return result

    def _keep(self, result: StepResult, moved: dict[str, Tensor]) -> None:
        """Put the state before this step aside, if its loss is sound."""
        first = next(
            (line[self._level_names[-1]] for line in self._book.records if self._level_names[-1] in line), None
        )
        self._keep_next = False
        if is_sound(result, self._state, first):
            self._kept = None  # two copies are never held
            place = {"step": self.step, "position": self._position, "seconds": self.seconds}
            self._kept = keep(self._state, moved, **place)

    def _go_back(self, kept: Kept) -> None:
        kept.restore(self._state)
        self.step, self._position, self.seconds = kept.step, kept.position, kept.seconds
        self._book = Logbook([line for line in self._book.records if line["step"] <= kept.step])

    def _log(self, result: StepResult) -> None:
        rate = self.train.rate_at(self.step - 1, epoch_steps=self._state.epoch_steps)
        line = {"step": self.step, "rows": self.rows_seen, "seconds": self.seconds, "learning_rate": rate}
        with self._failures_named():
            self._book.send(self._state, result, line, self._level_names, self._on_log)

    def _settle(self, *, call: bool = True) -> None:
        """Read what is still on the device: the last line of the log, and whether a step failed."""
        with self._failures_named():
            self._book.settle(self._state, self._on_log if call else None)

    @property
    def _on_log(self) -> OnLog | None:
        if self._watch is not None:
            return self._watch.line
        return self.on_log if self.group.is_main and not isinstance(self.on_log, Watcher) else None

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Go back to before a failed step, where the weights are already, and say what happened."""
        try:
            yield
        except StepFailedError as error:
            failed = error.step
            self.step, self._position, self._failed = failed, self._book.position(failed), True
            self._state.failed_step.fill_(-1)
            first = failed * self._batch_rows
            saved = "" if self.save_to is None else f" (the last save is in {self.save_to})"
            way = f"go back to a fork or a save from before{saved} and lower it by change(learning_rate=…)"
            if self._kept is not None:
                way = (
                    "session.change(learning_rate=…) with a lower one goes back to the last sound state that was put "
                    f"aside, at step {self._kept.step}{saved}, and run() goes on from there"
                )
            raise NonFiniteError(
                f"The loss stopped being a number at step {failed} (rows {first:,} to {first + self._batch_rows:,} of "
                "the run). The session stands before that step, nothing after it was kept. If the rows are at fault, "
                "mend them or leave them out by session.skip(); if the learning rate (now "
                f"{self.train.rate_at(failed):.3g}) was too high, {way}."
            ) from None

    def _write(self, folder: Path) -> None:
        tensors = self._state.tensors_to_save()
        if self.group.is_main:
            checkpoint.write(folder, self._header(), tensors, self._book.records)

    def _header(self) -> dict[str, Any]:
        resume_state = getattr(self.source, "resume_state", None)
        return {
            "run": self._run,
            "step": self.step,
            "position": list(self._position),
            "seconds": self.seconds,
            "sae": self.config.to_json(),
            "train": self.train.to_json(),
            "changes": self._changes,
            "source_state": None if resume_state is None else resume_state(),
            "saves": self.save_to is not None,
            "save_every_rows": self.save_every_rows,
            **self._origin.to_header(),
        }
