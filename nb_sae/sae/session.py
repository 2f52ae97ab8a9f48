"""Training in the running session: run, interrupt, look, continue, save, resume."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nb_sae.atomic import read_header, write_json
from nb_sae.errors import ConfigError, NonFiniteError, NotEnoughMemoryError, StoreError
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.config import SAEConfig
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.scale import Scale, fold, start_bias
from nb_sae.sae.step import StepResult, TrainingState
from nb_sae.sae.training import TrainConfig
from nb_sae.types import ActivationSource, RowStatistics

FORMAT = "nb_sae.session"
VERSION = 1

OnLog = Callable[[dict[str, Any]], None]


class Session:
    """An SAE in training. An interrupt is the stop button: it ends `run` after the step under way and loses nothing.

    Args:
        source: Rows to train on.
        config: The autoencoder; `SAEConfig.msae()` if left out.
        train: How long and how fast.
        device: None: the GPU if there is one.
        on_log: Called with each line of the log.

    Raises:
        StoreError: the rows cannot be trained on (none, or all equal).
        NotEnoughMemoryError: says what was needed.
    """

    def __init__(
        self,
        source: ActivationSource,
        config: SAEConfig | None = None,
        train: TrainConfig | None = None,
        *,
        device: torch.device | str | None = None,
        on_log: OnLog | None = None,
    ) -> None:
        if len(source) < 2:
            raise StoreError(f"The source has {len(source)} rows. Training needs at least 2.")
        self.source: ActivationSource | None = source
        target: ActivationSource | None = getattr(source, "target", None)
        d_out = None if target is None else target.d_in
        self.config = (config or SAEConfig.msae()).resolve(source.d_in, d_out)
        self.train = (train or TrainConfig()).resolve(len(source))
        self.on_log = on_log
        self.step = 0
        self.stopped_early = False
        self.seconds = 0.0
        self._place: dict[str, Any] = {"site": source.site.name, "model": source.model, "revision": source.revision}
        self._target_site = None if target is None else target.site.name
        self._source_rows = len(source)
        self._statistics = source.statistics()
        self._target_statistics = None if target is None else target.statistics()
        self._records: list[dict[str, Any]] = []
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._build()

    def _build(self) -> None:
        self._scale = Scale.of(self._statistics, self.device)
        self._target_scale = None
        if self._target_statistics is not None:
            self._target_scale = Scale.of(self._target_statistics, self.device)
        with _memory_errors(self):
            self._state = TrainingState(
                self.config,
                self.train,
                len(self._statistics.mean),
                d_out=None if self._target_statistics is None else len(self._target_statistics.mean),
                device=self.device,
                start_bias=self._start_bias(),
                epoch_steps=max(1, self._source_rows // self._batch_rows),
            )
        self.sae = self._state.sae

    def _start_bias(self) -> Tensor | None:
        scale = self._target_scale or self._scale
        if self.config.bias_init != "geometric_median" or self.source is None:
            return start_bias(self.config, scale.mean, scale)
        rows = next(iter(self.source.batches(min(self._source_rows, 8192), seed=self.train.seed, device=self.device)))
        return start_bias(self.config, scale.apply(rows[1] if isinstance(rows, tuple) else rows), scale)

    @property
    def _d_sae(self) -> int:
        return self.config.d_sae or 0

    @property
    def _levels(self) -> int:
        return len(self.config.levels)

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
    def rows_seen(self) -> int:
        """Rows trained on so far, repeats counted."""
        return self.step * self._batch_rows

    @property
    def finished(self) -> bool:
        """Whether the planned number of steps is done."""
        return self.step >= self.train.steps

    def run(self, *, steps: int | None = None, rows: int | None = None, progress: bool = True) -> Self:
        """Train on: `steps` more, or `rows` more, or to the planned end.

        Can be called again after it was stopped by an interrupt; `stopped_early` says whether it was.

        Raises:
            ConfigError: the plan is done; `extend` makes it longer.
            NonFiniteError: the loss is not a number any more.
            NotEnoughMemoryError: says what was needed.
        """
        if self.source is None:
            raise ConfigError("This session was loaded without its rows. Give them: Session.load(path, source=store).")
        if self.finished:
            raise ConfigError(f"All {self.train.steps:,} steps are done. Call session.extend(rows=…) to train longer.")
        if rows is not None:
            steps = -(-rows // self._batch_rows)
        last = self.train.steps if steps is None else min(self.train.steps, self.step + steps)
        self.stopped_early = False
        started, before = time.perf_counter(), self.seconds
        log_every = self.train.log_steps
        label = f"train {self._d_sae:,} latents"
        with (
            progress_bar(last * self._batch_rows, "rows", label, initial=self.rows_seen, enabled=progress) as bar,
            _deferred_interrupt() as interrupted,
            _memory_errors(self),
        ):
            for batch in self._batches():
                result = self._train_step(batch)
                self.step += 1
                bar.update(self._batch_rows)
                self.seconds = before + time.perf_counter() - started
                if self.step % log_every == 0 or self.step == last:
                    self._log(result)
                if interrupted():
                    self.stopped_early = True
                    break
                if self.step >= last:
                    break
        return self

    def extend(self, rows: int) -> Self:
        """Plan `rows` more: the learning rate goes back to its plateau and decays at the new end."""
        if rows < 1:
            raise ConfigError(f"rows={rows} must be at least 1.")
        total = (self.train.rows or 0) + rows
        self.train = TrainConfig(**{**self.train.to_json(), "rows": total})
        return self

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary as it is now, in model units, with unit decoder rows. A copy: training goes on beside it."""
        averaged = None if self._state.average is None else self._state.average.tensors
        weights = fold(self.sae, self.config, self._scale, self._target_scale, averaged)
        provenance = {
            "sae": self.config.to_json(),
            "train": self.train.to_json(),
            "steps": self.step,
            "rows_seen": self.rows_seen,
            "rows": self._source_rows,
            "torch": torch.__version__,
        }
        return Dictionary(
            weights,
            budgets=self.config.budgets,
            sparsity=self.config.sparsity,
            widths=self.config.widths,
            pre_bias=self.sae.pre_bias,
            target=self._target_site,
            mean=self._scale.mean.clone(),
            mean_square_distance=self._statistics.mean_square_distance,
            provenance=provenance,
            **self._place,
        )

    @property
    def log(self) -> pl.DataFrame:
        """One line per logged step: step, rows, seconds, loss, learning_rate, dead, and fvu_k<budget> of that batch."""
        return pl.DataFrame(self._records, infer_schema_length=None)

    def show(self) -> pl.DataFrame:
        """Where it stands: FVU on the last ten logged batches at each budget, as a frame `k, fvu`."""
        recent = self.log.tail(10)
        names = self._level_names
        values = [float(recent[name].to_numpy().mean()) if recent.height else float("nan") for name in names]
        return pl.DataFrame(
            {"k": [budget for budget, _ in self.config.levels], "fvu": values}, schema_overrides={"k": pl.Int64}
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write weights, optimiser and log into a folder, so that `load` continues bit for bit (CPU, same threads).

        A new sub-folder is written first and `session.json` is then replaced in one step, so what was saved before
        stays readable whatever happens.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"step-{self.step:08d}-", dir=folder))
        state = {name: value.detach().cpu().contiguous() for name, value in self.sae.state_dict().items()}
        for index, moments in self._state.optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{name}": value.cpu().contiguous() for name, value in moments.items()}
        state |= {"silent_rows": self._state.silent_rows.cpu(), "mean": torch.as_tensor(self._statistics.mean)}
        if self._state.average is not None:
            state |= {f"average.{name}": value.cpu() for name, value in self._state.average.tensors.items()}
        target = self._target_statistics
        if target is not None:
            state["target_mean"] = torch.as_tensor(target.mean)
        save_file(state, fresh / "state.safetensors")
        if self._records:
            self.log.write_parquet(fresh / "log.parquet")
        header = {
            "format": FORMAT,
            "version": VERSION,
            "folder": fresh.name,
            "step": self.step,
            "seconds": self.seconds,
            "sae": self.config.to_json(),
            "train": self.train.to_json(),
            "mean_square_distance": self._statistics.mean_square_distance,
            "source_rows": self._source_rows,
            "target_site": self._target_site,
            "target_mean_square_distance": None if target is None else target.mean_square_distance,
            **self._place,
        }
        write_json(folder / "session.json", header)
        for old in folder.glob("step-*"):
            if old != fresh:
                shutil.rmtree(old, ignore_errors=True)
        return folder

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        source: ActivationSource | None = None,
        *,
        device: torch.device | str | None = None,
        on_log: OnLog | None = None,
    ) -> Session:
        """Read what `save` wrote; with `source`, `run` continues where it stopped.

        Raises:
            InputNotFoundError: no session there.
            FormatError: another format or a newer version.
            StoreError: the rows are not those it was trained on.
        """
        folder = Path(path)
        header = read_header(folder / "session.json", FORMAT, VERSION)
        state = load_file(folder / header["folder"] / "state.safetensors")
        saved = RowStatistics(header["source_rows"], state.pop("mean").numpy(), header["mean_square_distance"])
        session = cls.__new__(cls)
        session.config = SAEConfig.from_json(header["sae"])
        session.train = TrainConfig.from_json(header["train"])
        session.on_log = on_log
        session.step, session.seconds, session.stopped_early = header["step"], header["seconds"], False
        session._place = {key: header[key] for key in ("site", "model", "revision")}
        session._source_rows, session._statistics = header["source_rows"], saved
        session._target_site, session._target_statistics = header.get("target_site"), None
        if "target_mean" in state:
            mean = state.pop("target_mean").numpy()
            distance = header["target_mean_square_distance"]
            session._target_statistics = RowStatistics(saved.rows, mean, distance)
        session.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        session.source = None
        session._build()
        session._restore(state)
        log = folder / header["folder"] / "log.parquet"
        session._records = pl.read_parquet(log).to_dicts() if log.exists() else []
        if source is not None:
            session.dictionary.check(source)
            if len(source) != session._source_rows:
                raise StoreError(
                    f"The session was trained on {session._source_rows:,} rows; {len(source):,} were given. "
                    "Give the same rows (the same split and seed)."
                )
            session.source = source
        return session

    def _restore(self, state: dict[str, Tensor]) -> None:
        inner = self._state
        inner.silent_rows.copy_(state.pop("silent_rows").reshape(-1, self._d_sae))
        if inner.average is not None:
            inner.average.load({name: state.pop(f"average.{name}") for name in inner.average.tensors})
        moments: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in state if name.startswith("adam.")]:
            _, index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = state.pop(name)
        self.sae.load_state_dict(state)
        if moments:
            inner.optimizer.load_state_dict({**inner.optimizer.state_dict(), "state": moments})

    def _batches(self) -> Iterator[Tensor]:
        """Batches from the current step on, epoch after epoch; the order depends on the seed and the step alone."""
        if self.source is None:
            raise ConfigError("This session has no rows.")
        per_epoch = max(1, self._source_rows // self._batch_rows)
        while True:
            epoch, skip = divmod(self.step, per_epoch)
            yield from self.source.batches(
                self._batch_rows, seed=self.train.seed, epoch=epoch, skip=skip, device=self.device
            )

    def _train_step(self, batch: Tensor | tuple[Tensor, Tensor]) -> StepResult:
        rows, targets = batch if isinstance(batch, tuple) else (batch, batch)
        x = self._scale.apply(rows)
        target = x if self._target_scale is None else self._target_scale.apply(targets)
        result = self._state.backward(x, target, self.step)
        self._state.apply(self.step)
        every = self.train.resample_every
        if every is not None and (self.rows_seen + len(x)) // every > self.rows_seen // every:
            self._state.resample_dead(x, target, self.step)
        return result

    def _log(self, result: StepResult) -> None:
        failed = int(self._state.failed_step)
        if failed >= 0:
            first = failed * self._batch_rows
            raise NonFiniteError(
                f"The loss stopped being a number at step {failed} (rows {first:,} to {first + self._batch_rows:,} of "
                f"the run). The weights are those before that step. Lower TrainConfig.learning_rate (now "
                f"{self.train.learning_rate}) or check the rows."
            )
        fvu = (result.errors / result.variance).tolist()
        record = {
            "step": self.step,
            "rows": self.rows_seen,
            "seconds": self.seconds,
            "loss": float(result.loss),
            "learning_rate": self.train.rate_at(self.step - 1, epoch_steps=self._state.epoch_steps),
            "dead": float(self._state.dead.double().mean()),
            "l0": float(result.l0),
            **dict(zip(self._level_names, fvu, strict=True)),
        }
        self._records.append(record)
        if self.on_log is not None:
            self.on_log(record)

    def __repr__(self) -> str:
        state = "done" if self.finished else "stopped" if self.stopped_early else "ready"
        at = f"step {self.step:,} of {self.train.steps:,}, {self.rows_seen:,} rows in {self.seconds:.0f} s"
        fvu = ", ".join(f"k={k}: {value:.3f}" for k, value in self.show().iter_rows()) if self._records else "not yet"
        return f"Session({state}, {at}, {self._d_sae:,} latents, FVU {fvu})"


def train_sae(
    source: ActivationSource,
    config: SAEConfig | None = None,
    train: TrainConfig | None = None,
    *,
    device: torch.device | str | None = None,
    on_log: OnLog | None = None,
    progress: bool = True,
) -> Dictionary:
    """Train to the planned end and give the dictionary; an interrupt gives it as it is then.

    Use `Session` to look in between, continue or save. Arguments and errors are those of `Session`.
    """
    session = Session(source, config, train, device=device, on_log=on_log)
    return session.run(progress=progress).dictionary


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C (the notebook's stop button) to the end of a step; a second one acts at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _memory_errors(session: Session) -> Iterator[None]:
    """Turn an allocator's message into what was needed and what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        d_in, d_sae = len(session._statistics.mean), session._d_sae
        weights = 4 * 4 * (2 * d_in * d_sae + d_in + d_sae)
        batch = 4 * 4 * session._batch_rows * (d_sae + d_in * (1 + session._levels))
        raise NotEnoughMemoryError(
            f"Training {d_sae:,} latents of width {d_in} needs about {(weights + batch) / 2**30:.1f} GiB on "
            f"{session.device} ({weights / 2**30:.1f} for weights and Adam, {batch / 2**30:.1f} for a batch of "
            f"{session._batch_rows:,} rows). Lower SAEConfig.d_sae or TrainConfig.batch_rows."
        ) from error
