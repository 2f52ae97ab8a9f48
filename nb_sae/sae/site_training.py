"""One of many sites: its rows, its settings, and where its training stands, in memory, put away or in files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch

from nb_sae.errors import ConfigError, NbSaeError
from nb_sae.sae import checkpoint
from nb_sae.sae.changes import differences
from nb_sae.sae.config import SAEConfig
from nb_sae.sae.control import Border
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.logbook import Position
from nb_sae.sae.memory import MemoryBudget
from nb_sae.sae.origin import Origin
from nb_sae.sae.session import Session
from nb_sae.sae.training import TrainConfig
from nb_sae.sae.watching import NamedWatcher, Watcher
from nb_sae.types import ActivationSource

State = Literal["waiting", "training", "stopped", "done", "failed"]
OnSiteLog = Callable[[dict[str, Any]], None]
"""Called with each line of the log, which names its `site`."""


class SiteTraining:
    """The training of one site among many. Made by `train_all`.

    Args:
        site: Its name among them.
        source: Its rows.
        config: The autoencoder, not resolved.
        train: How long and how fast, not resolved.
        device: Where it trains.
        folder: Where it is saved, and what it goes on from; None: nowhere.
        save_every_rows: How often; None: ten times.
        on_log: Called with each line of the log.

    Raises:
        ConfigError, StoreError: the settings do not fit the rows, or what is saved is of other settings or rows.
    """

    def __init__(
        self,
        site: str,
        source: ActivationSource,
        config: SAEConfig,
        train: TrainConfig,
        *,
        device: torch.device,
        folder: Path | None,
        save_every_rows: int | None,
        on_log: OnSiteLog | None,
    ) -> None:
        self.site, self.source, self.device, self.folder = site, source, device, folder
        self.session: Session | None = None
        """While it trains and afterwards; None before, and once it was put away to make room."""
        self.error: NbSaeError | None = None
        """What ended it."""
        self._save_every, self._on_log = save_every_rows, on_log
        self._dictionary: Dictionary | None = None
        self._lines: list[dict[str, Any]] = []
        self._step, self._saved = 0, False
        self._running: ExitStack | None = None
        origin = Origin.of(source)
        self.config = config.resolve(origin.d_in, origin.d_out, rows=origin.rows)
        self.train = train.resolve(origin.rows, self.config)
        self.memory = MemoryBudget.of(self.config, self.train, origin.d_in, origin.d_out, device)
        """What its training takes."""
        if folder is not None and (folder / checkpoint.HEADER).exists():
            self._look(folder, origin)

    def _look(self, folder: Path, origin: Origin) -> None:
        """Where the saved training stands, without its tensors."""
        header, self._lines = checkpoint.read_log(folder)
        Origin.from_header(header).check(self.source)
        saved = SAEConfig.from_json(header["sae"]), TrainConfig.from_json(header["train"])
        told = [one for one in (differences(saved[0], self.config), differences(saved[1], self.train)) if one]
        if told and not header["changes"]:
            raise ConfigError(
                f"{folder} holds a training with other settings: {', '.join(told)}. Give the same settings to go on, "
                "or another path."
            )
        self.config, self.train = saved
        self._step, self._saved = header["step"], True

    # ── where it stands ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._step if self.session is None else self.session.step

    @property
    def rows_seen(self) -> int:
        """Rows trained on so far, repeats counted."""
        return self.step * (self.train.batch_rows or 0)

    @property
    def finished(self) -> bool:
        """Whether the planned number of steps is done."""
        return self.session.finished if self.session is not None else self.step >= self.train.steps

    @property
    def can_go_on(self) -> bool:
        """Whether a run takes it further: not done, and not put away after a failure that nothing was saved of."""
        return not self.finished and (self.session is not None or self._saved or not self.step)

    @property
    def needs_its_session(self) -> bool:
        """Whether it was stopped and is in no file: without its session it could not go on."""
        return self.session is not None and self.session.stopped_early and not self._saved

    @property
    def state(self) -> State:
        """In one word."""
        if self._running is not None:
            return "training"
        if self.error is not None:
            return "failed"
        return "done" if self.finished else "stopped" if self.step else "waiting"

    @property
    def latest(self) -> dict[str, Any]:
        """The last line of the log; empty before the first."""
        if self.session is not None:
            return self.session.latest
        return dict(self._lines[-1]) if self._lines else {}

    @property
    def log(self) -> pl.DataFrame:
        """As `Session.log`."""
        return pl.DataFrame(self._lines, infer_schema_length=None) if self.session is None else self.session.log

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary as it is now.

        Raises:
            ConfigError: its training has not begun.
        """
        if self.session is not None:
            return self.session.dictionary
        if self._dictionary is None:
            if not self._saved or self.folder is None:
                raise ConfigError(f"The training of {self.site!r} has not begun. Call run() on what train_all gave.")
            self._dictionary = Session.load(self.folder, device=self.device).dictionary
        return self._dictionary

    def held_bytes(self) -> int:
        """What it takes on the device: of its training and of its rows while it is there, else of the dictionary."""
        if self.session is None:
            return 0 if self._dictionary is None else self.memory.weights
        return self.needed_bytes()

    def needed_bytes(self) -> int:
        """What training it takes on the device, rows included."""
        rows = getattr(self.source, "held_bytes", None)
        return self.memory.total + (0 if rows is None else int(rows(self.device)))

    # ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, border: Border | None = None) -> Session:
        """The session that trains it, where it was before, in files, or new; its run begins."""
        self.error = None
        if self.session is None:
            told = NamedWatcher(self._on_log, self.site) if isinstance(self._on_log, Watcher) else self._told
            settings: dict[str, Any] = {"device": self.device, "on_log": told, "progress": False}
            if self._saved and self.folder is not None:
                self.session = Session.load(self.folder, self.source, **settings)
                self.session.save_to, self.session.save_every_rows = self.folder, self._save_every
            else:
                self.session = Session(
                    self.source, self.config, self.train, save_to=self.folder, save_every_rows=self._save_every,
                    **settings,
                )  # fmt: skip
        self.session.check_ready()
        self._running = ExitStack()
        self._running.enter_context(self.session.under_way(border))
        return self.session

    def take_step(self, batch: Any, place: Position) -> None:
        """One step of its session; the clock of the session counts its own steps alone."""
        session = self.session
        if session is None:
            raise ConfigError(f"The training of {self.site!r} is not open.")
        session.go_on()
        session.take_step(batch, place, last=session.train.steps)

    def close(self, error: BaseException | None = None) -> None:
        """End its run: the log is read to its end and, but after an error, the session is saved.

        An error of nb_sae is kept in `error`.

        Raises:
            BaseException: any other error.
        """
        running, self._running = self._running, None
        if running is not None:
            try:
                if self.session is not None and error is None:
                    self.session.stopped_early = not self.session.finished
                running.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
            except Exception as raised:
                error = raised
            self._saved = self.folder is not None and (self.folder / checkpoint.HEADER).exists()
        if error is None:
            return
        if not isinstance(error, NbSaeError):
            raise error
        self.error = error

    def put_away(self) -> None:
        """Keep dictionary and log alone, so that another site has room."""
        session = self.session
        if session is None:
            return
        self._dictionary, self._lines, self._step = session.dictionary, session.log.to_dicts(), session.step
        self.config, self.train = session.config, session.train
        self.session = None
        getattr(self.source, "release", bool)()

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write its session into a folder; one that was put away is in its own already."""
        if self.session is not None:
            self.session.save(folder, overwrite=overwrite)
        elif self.state != "waiting" and folder != self.folder:
            raise ConfigError(
                f"The training of {self.site!r} was put away to make room, only its dictionary is there. Give path= to "
                "train_all to have every training saved, or save trainings[site].dictionary."
            )

    def _told(self, line: dict[str, Any]) -> None:
        if self._on_log is not None:
            self._on_log({"site": self.site, **line})

    def __repr__(self) -> str:
        return f"SiteTraining({self.site!r}, {self.state}, step {self.step:,} of {self.train.steps:,})"
