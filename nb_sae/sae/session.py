"""Training in the running session: run, interrupt, look, change, fork, continue, save, resume."""

from __future__ import annotations

import os
import uuid
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import polars as pl
import torch
from torch import Tensor

from nb_sae.errors import ConfigError, FormatError
from nb_sae.machine import choose_device
from nb_sae.sae import checkpoint
from nb_sae.sae.changes import changeable, changed, differences
from nb_sae.sae.config import SAEConfig
from nb_sae.sae.control import Control
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.distributed import Alone, Group
from nb_sae.sae.logbook import Logbook, OnLog
from nb_sae.sae.origin import Origin
from nb_sae.sae.probe import PROBE_ROWS, Probe
from nb_sae.sae.running import Running
from nb_sae.sae.scale import fold
from nb_sae.sae.sharded import whole
from nb_sae.sae.together import advance
from nb_sae.sae.training import TrainConfig
from nb_sae.sae.watching import check_on_log
from nb_sae.types import ActivationSource


class Session(Running):
    """An SAE in training. An interrupt is the stop button: it ends `run` after the step under way and loses nothing.

    Nothing in a step waits for a GPU, but for about ten steps of a planned run at which the state is put aside. The log
    is read from the device as it is written (on a GPU: when the next line is due), every `TrainConfig.log_every` steps.
    What training takes in memory is printed before it is allocated. Another thread speaks to a running session through
    `control` alone, which pauses, stops, saves, changes and forks it between two steps.

    Args:
        source: Rows to train on; one that gives pairs (`paired`) trains a transcoder.
        config: The autoencoder; `SAEConfig.msae()` if left out. Where `group` splits the dictionary, `residual=None`
            is False.
        train: How long and how fast.
        device: None: a CUDA GPU, else Apple's MPS, else the CPU.
        on_log: Called with each line of the log. What it raises comes out of `run`; the session can go on. A
            `TrainMonitor` shows the run while it goes, and steers it.
        save_to: Folder that `run` saves into, at its end and in between; `Session.load` goes on from it.
        save_every_rows: How often; None: ten times per planned run.
        group: The processes that train together; None: this one alone.
        progress: Print the memory budget.

    Raises:
        StoreError: the rows cannot be trained on (none, all equal, not finite).
        ConfigError: a setting does not fit the rows or the device.
        NotEnoughMemoryError: says what is needed, what is free and what to lower.
        PathExistsError: `save_to` holds another session.
    """

    def __init__(
        self,
        source: ActivationSource,
        config: SAEConfig | None = None,
        train: TrainConfig | None = None,
        *,
        device: torch.device | str | None = None,
        on_log: OnLog | None = None,
        save_to: str | os.PathLike[str] | None = None,
        save_every_rows: int | None = None,
        group: Group | None = None,
        progress: bool = True,
    ) -> None:
        check_on_log(on_log)
        self._origin, self.group = Origin.of(source), group or Alone()
        self.config = self._resolved(config or SAEConfig.msae(), progress)
        self.train = (train or TrainConfig()).resolve(len(source), self.config)
        self._run, self._changes = uuid.uuid4().hex, []
        self._save_into(save_to, save_every_rows)
        self.source, self.on_log, self.device = source, on_log, choose_device(device)
        self.control = Control(self)
        self._build(progress)

    # ── running ───────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, *, steps: int | None = None, rows: int | None = None, progress: bool = True) -> Self:
        """Train on: `steps` more, or `rows` more, or to the planned end.

        Can be called again after it was stopped by an interrupt; `stopped_early` says whether it was.

        Raises:
            ConfigError: the plan is done; `extend` makes it longer.
            NonFiniteError: the loss is not a number any more. Names step and rows; the session stands before them.
            NotEnoughMemoryError: says what was needed.
            StoreError: another process writes into `save_to`.
        """
        self.check_ready()
        advance([self], [self.last_step(steps, rows)], progress=progress)
        return self

    # ── changing ──────────────────────────────────────────────────────────────────────────────────────────────

    def change(self, **settings: Any) -> Self:
        """Change settings of `SAEConfig` or `TrainConfig` from the next step on; weights and moments stay.

        What says how training goes may change: learning rate, level weights, budgets, widths, penalties, schedule,
        `rows`, `dead_after_rows`, `aux_weight`, `log_every` and so on. What weights, moments or the order of the rows
        depend on may not. A new budget takes over silence and threshold of the next larger one. Kept as provenance.

        After a run that diverged (NonFiniteError), a lower learning rate goes back to the last sound state: one is put
        aside in main memory ten times per planned run and after every change, where a quarter of it has room.

        Raises:
            ConfigError: a setting does not exist, may not change (says why), or has a value outside the method;
                nothing has changed then.
        """
        origin = self._origin
        config, train = changed(
            self.config, self.train, settings, d_in=origin.d_in, d_out=origin.d_out, rows_seen=self.rows_seen
        )
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        if self._failed and self._kept is not None and (train.learning_rate or 0) < (self.train.learning_rate or 0):
            plain["went_back_from"] = self.step
            self._go_back(self._kept)
        self._failed, self._keep_next = False, True
        if (config.levels, train.ema_decay) != (self.config.levels, self.train.ema_decay):
            self._kept = None  # its tensors have other shapes
        self._state.change(config, train)
        self.config, self.train = config, train
        self._changes.append({"step": self.step, **plain})
        return self

    def extend(self, rows: int) -> Self:
        """Plan `rows` more: the learning rate goes back to its plateau and decays at the new end."""
        if rows < 1:
            raise ConfigError(f"rows={rows} must be at least 1.")
        return self.change(rows=(self.train.rows or 0) + rows)

    def skip(self, steps: int = 1) -> Self:
        """Leave out the next batches of this pass; they count as steps."""
        if steps < 1:
            raise ConfigError(f"steps={steps} must be at least 1.")
        self.step += steps
        self._position = (self._position[0], self._position[1] + steps)
        self._failed, self._keep_next = False, True  # what was kept stands before the rows that are left out
        return self

    def fork(
        self,
        *,
        on_log: OnLog | None = None,
        save_to: str | os.PathLike[str] | None = None,
        save_every_rows: int | None = None,
        progress: bool = True,
        **changes: Any,
    ) -> Session:
        """A second session that stands where this one stands, with other settings if given; both go on by themselves.

        Weights, moments, counters and log are copied, the source is shared. It saves nowhere unless told.

        Raises:
            ConfigError: as `change`.
            NotEnoughMemoryError: the device does not hold a second one.
        """
        self._settle()
        twin = Session._of(self._header(), self.source, self.group, self.device, on_log)
        twin._run = uuid.uuid4().hex
        twin._save_into(save_to, save_every_rows)
        twin._fill(self._header(), self._state.tensors(), self._book.records, progress)
        twin._kept, twin._failed = self._kept, self._failed
        return twin.change(**changes) if changes else twin

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary as it is now, in model units, with unit decoder rows. A copy: training goes on beside it."""
        averaged = None if self._state.average is None else self._state.average.tensors
        weights = whole(fold(self.sae, self.config, self._scale, self._target_scale, averaged), self.group)
        provenance = {
            "sae": self.config.to_json(),
            "train": self.train.to_json(),
            "changes": [dict(one) for one in self._changes],
            "steps": self.step,
            "rows_seen": self.rows_seen,
            "rows": self._origin.rows,
            "torch": torch.__version__,
        }
        return Dictionary(
            weights,
            budgets=self.config.budgets,
            sparsity=self.config.sparsity,
            widths=self.config.widths,
            pre_bias=self.sae.pre_bias,
            residual=bool(self.config.residual),
            looks=self.config.looks or 1,
            target=self._origin.target_site,
            mean=self._scale.mean.clone(),
            mean_square_distance=self._origin.statistics.mean_square_distance,
            provenance=provenance,
            site=self._origin.site,
            model=self._origin.model,
            revision=self._origin.revision,
        )

    @property
    def log(self) -> pl.DataFrame:
        """One line per logged step: step, rows, seconds, loss, learning_rate, dead, l0, fvu_k<budget> of that batch."""
        return pl.DataFrame(self._book.records, infer_schema_length=None)

    def probe(self, *, rows: int = PROBE_ROWS, seed: int = 0) -> Probe:
        """Some rows of the source, by which to look at the dictionary while it trains; the same at every look.

        Raises:
            StoreError: the source, such as a stream, gives no rows by number.
        """
        return Probe(self, rows=rows, seed=seed)

    def settings(self) -> dict[str, Any]:
        """What `change` and `fork` may change, by name, with its value now."""
        return changeable(self.config, self.train)

    def show(self) -> pl.DataFrame:
        """Where it stands: FVU on the last ten logged batches at each budget, as a frame `k, fvu`."""
        recent = self.log.tail(10)
        known = [recent[name].drop_nulls().to_list() if name in recent.columns else [] for name in self._level_names]
        values = [sum(one) / len(one) if one else float("nan") for one in known]
        return pl.DataFrame(
            {"k": [budget for budget, _ in self.config.levels], "fvu": values}, schema_overrides={"k": pl.Int64}
        )

    def __repr__(self) -> str:
        state = "done" if self.finished else "stopped" if self.stopped_early else "ready"
        at = f"step {self.step:,} of {self.train.steps:,}, {self.rows_seen:,} rows in {self.seconds:.0f} s"
        fvu = (
            ", ".join(f"k={k}: {value:.3f}" for k, value in self.show().iter_rows())
            if self._book.records
            else "not yet"
        )
        return f"Session({state}, {at}, {self.config.d_sae or 0:,} latents, FVU {fvu})"

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write all of it into a folder, so that `load` continues bit for bit (CPU, same threads).

        A new sub-folder is written first and `session.json` is then replaced in one step, so what was saved before
        stays readable whatever happens.

        Raises:
            PathExistsError: the folder holds another session and `overwrite` is False.
            StoreError: another process is writing there; names it.
        """
        self._settle()
        folder = Path(path)
        if self.group.is_main:
            checkpoint.check_free(folder, self._run, overwrite=overwrite)
        with checkpoint.Lock(folder) if self.group.is_main else nullcontext():
            self._write(folder)
        self.group.wait()
        return folder

    def put_down(self, path: str | os.PathLike[str] | None = None, *, overwrite: bool = False) -> Path:
        """Save between two steps: into a folder, or into its own one, which it has locked while it runs."""
        own = self.save_to
        if own is None or (path is not None and Path(path).resolve() != own.resolve()):
            return self.save(path or "", overwrite=overwrite)
        if self.control.state == "idle":
            return self.save(own)
        self._settle()
        self._write(own)
        return own

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        source: ActivationSource | None = None,
        *,
        config: SAEConfig | None = None,
        train: TrainConfig | None = None,
        device: torch.device | str | None = None,
        on_log: OnLog | None = None,
        group: Group | None = None,
        progress: bool = False,
    ) -> Session:
        """Read what `save` wrote; with `source`, `run` continues where it stopped, and goes on saving if it did.

        Weights, optimiser, schedule, counters, log and the place in the source are as they were. The order of the rows
        follows the seed and the place, so there is no other state of a random generator.

        Args:
            path: The folder.
            source: The same rows.
            config: If given, checked against what was saved.
            train: The same.
            device: As for a new session; another device than before continues, but not bit for bit.
            on_log: As for a new session.
            group: As for a new session.
            progress: Print the memory budget.

        Raises:
            InputNotFoundError: no session there.
            FormatError: another format, a newer version, or a damaged file.
            StoreError: the rows are not those it was trained on.
            ConfigError: `config` or `train` are not those it was trained with.
        """
        folder = Path(path)
        saved = checkpoint.read(folder)
        try:
            session = cls._of(saved.header, None, group, choose_device(device), on_log)
            session._fill(saved.header, saved.tensors, saved.log, progress)
        except (KeyError, TypeError, ConfigError) as error:
            if isinstance(error, ConfigError) and group is not None and group.latent_shares > 1:
                raise  # another group can read it
            raise FormatError(f"{folder} holds a session that this nb_sae cannot read ({error!r}).") from error
        session._check_settings(config, train)
        if source is not None:
            session._origin.check(source)
            session.source = source
            if saved.header["source_state"] is not None:
                getattr(source, "load_resume_state", bool)(saved.header["source_state"])
            if saved.header["saves"]:
                session.save_to, session.save_every_rows = folder, saved.header["save_every_rows"]
        return session

    @classmethod
    def _of(
        cls,
        header: dict[str, Any],
        source: ActivationSource | None,
        group: Group | None,
        device: torch.device,
        on_log: OnLog | None,
    ) -> Session:
        check_on_log(on_log)
        session = cls.__new__(cls)
        session._origin = Origin.from_header(header)
        session.config, session.train = SAEConfig.from_json(header["sae"]), TrainConfig.from_json(header["train"])
        session.source, session.group, session.device, session.on_log = source, group or Alone(), device, on_log
        session.control = Control(session)
        session._run, session._changes = header["run"], [dict(one) for one in header["changes"]]
        session._save_into(None, None)
        return session

    def _fill(self, header: dict[str, Any], tensors: dict[str, Tensor], log: list[dict[str, Any]], show: bool) -> None:
        self._build(show, fresh=False)
        self._state.load(tensors)
        self._book = Logbook([dict(one) for one in log])
        self.step, self.seconds = header["step"], header["seconds"]
        self._position = (header["position"][0], header["position"][1])

    def _resolved(self, config: SAEConfig, show: bool = False) -> SAEConfig:
        origin, shares = self._origin, self.group.latent_shares
        resolved = config.resolve(origin.d_in, origin.d_out, rows=origin.rows)
        if shares == 1 or not resolved.residual:
            return resolved
        if config.residual:
            raise ConfigError(
                f"residual=True: a dictionary in latent_shares={shares} parts does not encode in rounds. Use "
                "SAEConfig.msae(residual=False), or latent_shares=1 (the rows are shared out then)."
            )
        if show and self.group.is_main:
            print(f"A dictionary in {shares} parts looks at a row once, not in rounds: residual=False.")
        return replace(config, residual=False).resolve(origin.d_in, origin.d_out, rows=origin.rows)

    def _check_settings(self, config: SAEConfig | None, train: TrainConfig | None) -> None:
        told = []
        if config is not None:
            told.append(differences(self.config, self._resolved(config)))
        if train is not None:
            told.append(differences(self.train, train.resolve(self._origin.rows, self.config)))
        if any(told):
            raise ConfigError(
                f"The saved session has other settings: {', '.join(one for one in told if one)}. Leave them out to "
                "continue, call change(…) afterwards, or start a new session."
            )


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
    session = Session(source, config, train, device=device, on_log=on_log, progress=progress)
    return session.run(progress=progress).dictionary
