"""One dictionary for each of many sites, trained in one go: in turns, within a byte budget, stopped and continued.

Where the rows of several sites come out of one forward pass (`ActivationStream.of_sites`), the pass runs once for all.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import torch

from nb_sae.atomic import file_names
from nb_sae.errors import ConfigError, NbSaeError, NotEnoughMemoryError, PathExistsError, StoreError, closest
from nb_sae.machine import choose_device, free_bytes, readable_bytes
from nb_sae.progress import Progress
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.config import SAEConfig
from nb_sae.sae.control import Border
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.given_sites import configs_of, named_sites
from nb_sae.sae.grid import grid, grid_html, grid_text
from nb_sae.sae.interrupt import deferred_interrupt
from nb_sae.sae.site_training import OnSiteLog, SiteTraining
from nb_sae.sae.training import TrainConfig
from nb_sae.sae.watching import check_on_log
from nb_sae.types import ActivationSource

MEMORY_SHARE = 0.8
"""Of what is free on the device, where no `memory_bytes` is given."""
TURN_SECONDS = 0.2
"""How long one site trains before the next has its turn. On a GPU a turn is one step, so that all work at once."""


def train_all(
    stores: Mapping[str, ActivationSource] | Sequence[ActivationSource],
    config: SAEConfig | Mapping[str, SAEConfig] | None = None,
    train: TrainConfig | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    memory_bytes: int | None = None,
    device: torch.device | str | None = None,
    save_every_rows: int | None = None,
    on_log: OnSiteLog | None = None,
    progress: bool = True,
) -> Trainings:
    """Train one dictionary per site; each ends as if it had been trained alone, bit for bit (CPU, same threads).

    The sites take turns, so that all can be looked at while they train. An interrupt is the stop button: it ends the
    step under way and keeps everything; `run()` on the result goes on. With `path` every training is saved, ten times
    and at its end, and calling `train_all` again with the same arguments goes on with what was begun, also after a
    kill, and skips what is done.

    As many train at once as `memory_bytes` holds by the estimate of `MemoryBudget`, rows that are kept on the device
    included; the others wait. While some wait, a training that is done is put away: its dictionary and log stay, its
    moments go. On a GPU those that train at once have a CUDA stream each. Sites of `ActivationStream.of_sites` share
    one forward pass per batch. Stores on disk share nothing: the rows of each site are files of their own.

    A site that fails (its loss is not a number any more, its rows are damaged) drops out with a warning, the others go
    on; `frame` says what happened, and its session stands where `Session.run` would have left it.

    Args:
        stores: Site → rows, as `ActivationStore.collect(…, site=[…])` gives them; or a list of stores.
        config: The autoencoder, or one for each site. None: `SAEConfig.msae()`.
        train: How long and how fast, for all.
        path: Folder with one saved session per site.
        memory_bytes: What may be taken on the device at once. None: 80 % of what is free.
        device: None: a CUDA GPU, else Apple's MPS, else the CPU.
        save_every_rows: How often each is saved, with `path`; None: ten times per plan.
        on_log: Called with each line of each log, with `site` in it. What it raises comes out of here.
        progress: Show one bar and the grid of all sites.

    Raises:
        ConfigError: no stores, a store given twice, a configuration for a site that is not there, or settings that do
            not fit the rows or what is saved; says which site.
        PathExistsError: `path` is a file.
        StoreError: rows that cannot be trained on, that come from another site than they are given for, or that are
            not those the saved training saw.
        NotEnoughMemoryError: one site alone needs more than `memory_bytes`.
    """
    named = named_sites(stores)
    configs = configs_of(named, config)
    if not isinstance(train, TrainConfig | None):
        raise ConfigError(f"train is a {type(train).__name__}; expected a TrainConfig, such as TrainConfig(epochs=4).")
    check_on_log(on_log)
    if save_every_rows is not None and save_every_rows < 1:
        raise ConfigError(f"save_every_rows={save_every_rows} must be at least 1.")
    folders: dict[str, Path] = {}
    if path is not None:
        if Path(path).exists() and not Path(path).is_dir():
            raise PathExistsError(f"{path} is no folder. Give a folder of its own for the saved sessions.")
        folders = {site: Path(path) / name for site, name in zip(named, file_names(list(named)), strict=True)}
    elif save_every_rows is not None:
        raise ConfigError(f"save_every_rows={save_every_rows} needs path=.")
    place = choose_device(device)
    sites = []
    for site, source in named.items():
        try:
            sites.append(
                SiteTraining(
                    site, source, configs[site], train or TrainConfig(), device=place, folder=folders.get(site),
                    save_every_rows=save_every_rows, on_log=on_log,
                )
            )  # fmt: skip
        except (ConfigError, StoreError) as error:
            raise type(error)(f"{site!r}: {error}") from error
    trainings = Trainings(sites, memory_bytes)
    return trainings.run(progress=progress)


class Trainings(Mapping[str, SiteTraining]):
    """The trainings of many sites, by site. Made by `train_all`."""

    def __init__(self, sites: Sequence[SiteTraining], memory_bytes: int | None) -> None:
        self._sites = {one.site: one for one in sites}
        self.memory_bytes = memory_bytes
        self.stopped_early = False
        """Whether an interrupt ended the last run."""

    def __getitem__(self, site: str) -> SiteTraining:
        if site not in self._sites:
            raise KeyError(f"{site!r} is none of the sites. {closest(site, self._sites)}")
        return self._sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def dictionaries(self) -> dict[str, Dictionary]:
        """Site → dictionary as it is now, of every site whose training has begun and not failed."""
        return {site: one.dictionary for site, one in self._sites.items() if one.state not in ("waiting", "failed")}

    @property
    def frame(self) -> pl.DataFrame:
        """One line per site: state, step, rows, FVU and L0 of the last logged batch, dead latents, rows per second."""
        return grid(self._sites.values())

    @property
    def log(self) -> pl.DataFrame:
        """The logs of all sites, one below the other, with `site` first."""
        logs = [one.log.select(pl.lit(site).alias("site"), pl.all()) for site, one in self.items() if one.latest]
        return pl.concat(logs, how="diagonal_relaxed") if logs else pl.DataFrame(schema={"site": pl.String})

    @property
    def finished(self) -> bool:
        """Whether every site is done."""
        return all(one.state == "done" for one in self._sites.values())

    @property
    def failed(self) -> dict[str, NbSaeError]:
        """What ended the sites that failed."""
        return {site: one.error for site, one in self._sites.items() if one.error is not None}

    def run(self, *, progress: bool = True) -> Trainings:
        """Train to the planned end what is not done yet; can be called again after an interrupt.

        Raises:
            NotEnoughMemoryError: one site alone needs more than `memory_bytes`.
        """
        todo = [one for one in self._sites.values() if one.can_go_on]
        # What was stopped holds memory already, so it is first.
        todo.sort(key=lambda one: one.session is None)
        self.stopped_early = False
        if todo:
            _Run(self, todo).to_the_end(progress)
        for site, error in self.failed.items():
            warnings.warn(f"The training of {site!r} ended early: {error}", stacklevel=2)
        return self

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write every training that has begun into a folder of its own, which `train_all(…, path=)` goes on from.

        Raises:
            PathExistsError: there are other sessions and `overwrite` is False.
            ConfigError: a training was put away without having been saved.
        """
        for one, name in zip(self._sites.values(), file_names(list(self._sites)), strict=True):
            one.save(Path(path) / name, overwrite=overwrite)
        return Path(path)

    def __repr__(self) -> str:
        return grid_text(self._sites.values())

    def _repr_html_(self) -> str:
        return grid_html(self._sites.values())


class _Run:
    """One run over many sites: who trains, who waits."""

    def __init__(self, trainings: Trainings, todo: list[SiteTraining]) -> None:
        self.trainings, self.waiting = trainings, todo
        self.device = todo[0].device
        held = sum(one.held_bytes() for one in trainings.values())
        self.limit = _limit(trainings.memory_bytes, self.device, held)
        self.lanes: list[_Lane] = []
        self.border = Border()
        for one in todo:
            if self.limit is not None and one.needed_bytes() > self.limit:
                raise NotEnoughMemoryError(
                    f"{one.site!r}: {one.memory}, {readable_bytes(one.needed_bytes())} with its rows; memory_bytes="
                    f"{self.limit:,} holds {readable_bytes(self.limit)}. {one.memory.advice(self.limit)}"
                )

    def to_the_end(self, show: bool) -> None:
        """Train until all are done, or an interrupt comes."""
        todo = list(self.waiting)
        rows = [(one.train.steps * (one.train.batch_rows or 0), one.rows_seen) for one in todo]
        label = f"train {len(todo)} dictionar{'y' if len(todo) == 1 else 'ies'}"
        before = sum(seen for _, seen in rows)
        with (
            progress_bar(
                sum(total for total, _ in rows), "rows", label, enabled=show, initial=before,
                below=lambda: grid_html(self.trainings.values()),
            ) as bar,
            deferred_interrupt() as interrupted,
        ):  # fmt: skip
            try:
                self._rounds(bar, interrupted)
            except BaseException as error:
                # A second interrupt may have come in the middle of a step; an error belongs to one site alone.
                for lane in self.lanes:
                    lane.end(None if isinstance(error, Exception) else error)
                raise
            self.trainings.stopped_early = interrupted() and not all(one.finished for one in todo)
            for lane in self.lanes:
                lane.end()

    def _rounds(self, bar: Progress, interrupted: Any) -> None:
        while (self.waiting or self.lanes) and not interrupted():
            self._admit(interrupted)
            for lane in list(self.lanes):
                lane.turn(bar, interrupted)
                self._carry_out(interrupted)
                if not lane.members:
                    self.lanes.remove(lane)
                    lane.end()
                    self._make_room(lane)
                if interrupted():
                    return

    def _carry_out(self, interrupted: Any) -> None:
        """What was asked of those that train, between two turns; those that were stopped drop out."""
        self.border(
            [one.session for lane in self.lanes for one in lane.members if one.session is not None], interrupted
        )
        for lane in self.lanes:
            lane.drop_stopped()

    def _admit(self, interrupted: Any) -> None:
        """Open as many of those that wait as there is room for; those that share a stream of rows together."""
        opened: list[SiteTraining] = []
        try:
            while self.waiting and not interrupted():
                one = self.waiting[0]
                if (self.lanes or opened) and not self._fits(one, opened):
                    break
                self.waiting.pop(0)
                try:
                    one.open(self.border)
                except NbSaeError as error:
                    one.close(error)
                else:
                    opened.append(one)
        finally:  # what is open is closed by the lane it is in
            self.lanes += [_Lane(members, self.device) for members in _side_by_side(opened)]

    def _fits(self, one: SiteTraining, opened: Sequence[SiteTraining] = ()) -> bool:
        """Whether another site has room beside those that are there, on the device and for its copy beside it."""
        others = [other for other in self.trainings.values() if other is not one]
        lanes = [*(lane.all for lane in self.lanes), *_side_by_side([*opened, one])]
        needs = sum(other.held_bytes() for other in others) + one.needed_bytes()
        if self.limit is not None and needs + sum(map(_rest_of_buffer, lanes)) > self.limit:
            return False
        if self.device.type == "cpu":
            return True  # the copy is part of what is needed
        room = free_bytes(torch.device("cpu"))
        copies = sum(other.memory.kept for other in others if other.session is not None)
        return room is None or copies + one.memory.kept <= MEMORY_SHARE * room

    def _make_room(self, lane: _Lane) -> None:
        """Put away what is done where others wait for its place."""
        if not self.waiting:
            return
        for one in lane.all:
            if not one.needs_its_session:
                one.put_away()


class _Lane:
    """One training, or several on one stream of rows, with what they need on the device to run beside others."""

    def __init__(self, members: list[SiteTraining], device: torch.device) -> None:
        self.all, self.members = tuple(members), members
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._device = device
        session = members[0].session
        joint = getattr(members[0].source, "joint", None)
        self._joint = len(members) > 1 or joint is not None
        self._batches = session.batches(joint) if session is not None else iter(())

    def turn(self, bar: Progress, interrupted: Any) -> None:
        """Some steps of every member; those that come to their end drop out."""
        start = time.perf_counter()
        while self.members:
            with self._on_stream():
                self._step(bar)
            if self._stream is not None or interrupted() or time.perf_counter() - start > TURN_SECONDS:
                return

    def drop_stopped(self) -> None:
        """Close those that were asked to stop; the others of the lane go on."""
        for one in list(self.members):
            if one.session is not None and one.session.control.stopping:
                self._close(one)

    def end(self, error: BaseException | None = None) -> None:
        """Close what still trains here, and wait on the device for it."""
        for one in list(self.members):
            self._close(one, error)
        getattr(self._batches, "close", bool)()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _step(self, bar: Progress) -> None:
        try:
            place, batch = next(self._batches)
        except Exception as error:
            for one in list(self.members):
                self._close(one, error)
            return
        for one in list(self.members):
            try:
                one.take_step(one.source.part_of(batch) if self._joint else batch, place)  # pyright: ignore
            except Exception as error:
                self._close(one, error)
            else:
                bar.update(one.train.batch_rows or 0)
                if one.finished:
                    self._close(one)

    def _close(self, one: SiteTraining, error: BaseException | None = None) -> None:
        self.members.remove(one)
        try:
            one.close(error)
        except BaseException as raised:
            if raised is not error or isinstance(error, Exception):
                raise

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _side_by_side(sites: Sequence[SiteTraining]) -> list[list[SiteTraining]]:
    """Sites that take their rows from one pass of a stream, together; every other by itself."""
    shared: dict[Any, list[SiteTraining]] = {}
    for one in sites:
        joint = getattr(one.source, "joint", None)
        alike = (id(joint), one.train.batch_rows, one.train.seed, one.step) if joint is not None else one.site
        shared.setdefault(alike, []).append(one)
    return list(shared.values())


def _rest_of_buffer(members: Sequence[SiteTraining]) -> int:
    """Bytes of a shared buffer that are of sites which do not train here: every pass has a whole buffer."""
    joint: Any = getattr(members[0].source, "joint", None)
    if joint is None:
        return 0
    device = members[0].device
    return joint.held_bytes(device) - sum(one.source.held_bytes(device) for one in members)  # pyright: ignore


def _limit(memory_bytes: int | None, device: torch.device, held: int) -> int | None:
    """Bytes for all that trains and waits to go on; `held` of them are taken already."""
    if memory_bytes is not None:
        if not isinstance(memory_bytes, int | float) or not memory_bytes >= 1:
            raise ConfigError(
                f"memory_bytes={memory_bytes!r}: expected a number of bytes, such as 2**30. Leave it out for "
                f"{MEMORY_SHARE:.0%} of what is free."
            )
        return memory_bytes
    free = free_bytes(device)
    return None if free is None else int(MEMORY_SHARE * (free + held))
