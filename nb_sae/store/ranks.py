"""Several processes that fill one store: who collects which shards, and who closes it.

They agree through the store's folder alone, so they may run on one machine or on many, at once or one after the other.
A shard belongs to the rank that its number gives; what is finished is known by the files in `partial/`, whoever
wrote them. The process that finds every shard finished writes the tables and the manifest; the others wait for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nb_sae.errors import ConfigError, InputError, StoreError
from nb_sae.store import manifest as manifests
from nb_sae.store.pipeline import SiteJob

PATIENCE_S = 600.0
"""How long a rank waits for the others without seeing a shard finished or the rank it waits for alive."""
POLL_S = 0.2
LOCK = ".lock"
_EVERYBODY, _CLOSING, _FIRST_RANK = 0, 1, 2
"""Bytes of the lock file: shared by all ranks, held by a process that is alone; held to close; one for each rank."""


@dataclass(frozen=True)
class Rank:
    """This process among those that fill a store."""

    number: int = 0
    world: int = 1

    @classmethod
    def given(cls, rank: int | None, world: int | None) -> Rank:
        """As given, or as torchrun says in `RANK` and `WORLD_SIZE`, or alone.

        Raises:
            ConfigError: only one is given, or there is no such rank.
        """
        if (rank is None) != (world is None):
            raise ConfigError(f"rank={rank} and world={world}: give both, or neither to use what torchrun set.")
        if rank is None or world is None:
            if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
                return cls()
            rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if not 0 <= rank < world:
            raise ConfigError(f"rank={rank} of world={world} does not exist. Ranks are numbered from 0 to world - 1.")
        return cls(rank, world)

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def owns(self, shard: int) -> bool:
        """Whether this rank collects a shard."""
        return shard % self.world == self.number

    def owner(self, shard: int) -> int:
        """The rank that collects a shard."""
        return shard % self.world


class Lock:
    """One folder's lock file. A killed process holds no lock; a file system without locks never refuses."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: IO[bytes] | None = None
        self.works = os.name == "posix" and isinstance(folder, Path)
        self.done = False
        """Nobody will need the file again."""
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(folder, Path):
            self._open()

    def _open(self) -> None:
        # Whoever is alone removes the file when it is done; a lock on a removed file would keep nobody out.
        while True:
            self._file = self._path.open("a+b")
            with suppress(OSError):
                if os.fstat(self._file.fileno()).st_ino == self._path.stat().st_ino:
                    return
            self._file.close()

    def take(self, byte: int, *, shared: bool = False) -> bool:
        """Take a byte without waiting; False if another process holds it."""
        if not self.works or self._file is None:
            return True
        import fcntl

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            self.works = False
        return True

    def give_back(self, byte: int) -> None:
        """Let go of a byte."""
        if self.works and self._file is not None:
            import fcntl

            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def close(self) -> None:
        """Let go of everything."""
        if self.done and self._file is not None:
            with suppress(OSError):
                self._path.unlink()
        if self._file is not None:
            self._file.close()


@contextmanager
def locked(folders: Sequence[Path], rank: Rank) -> Iterator[list[Lock]]:
    """Keep other processes from doing this one's work in the same folders.

    Raises:
        StoreError: another process that is alone, or another process of this rank, is collecting there.
    """
    locks: list[Lock] = []
    with ExitStack() as stack:
        for folder in folders:
            lock = Lock(folder)
            taken = lock.take(_EVERYBODY, shared=not rank.alone)
            stack.callback(lock.close)
            lock.done = taken and rank.alone
            if not taken:
                raise StoreError(f"Another process is collecting into {folder}. Wait for it, or give another path.")
            if not rank.alone and not lock.take(_FIRST_RANK + rank.number):
                raise StoreError(
                    f"Another process is collecting into {folder} as rank {rank.number}. Give every process a rank of "
                    "its own, or another path."
                )
            locks.append(lock)
        yield locks


def await_manifest(folder: Path, lock: Lock) -> None:
    """Wait until rank 0 has written the manifest that says what is collected.

    Raises:
        StoreError: It does not come.
    """
    if not _wait(lambda: manifests.is_store(folder), lock, lambda: (0, 1)):
        raise StoreError(
            f"Rank 0 has not begun a store in {folder} within {PATIENCE_S:.0f} s. Start it too; all ranks need the "
            "same path on a file system that they share."
        )


def finish_together(
    jobs: Sequence[SiteJob], rank: Rank, locks: Sequence[Lock], close: Callable[[SiteJob], None]
) -> None:
    """Wait until the shards of all ranks are there; one process closes each store, the others wait for that.

    Raises:
        StoreError: A rank died or was never started. What this one has finished stays.
        InputError: No rank could read any input.
    """
    for job, lock in zip(jobs, locks, strict=True):
        missing = _missing_of(job)

        def all_there(job: SiteJob = job, missing: Callable[[], list[int]] = missing) -> bool:
            return _is_complete(job) or not missing()

        def waited_for(missing: Callable[[], list[int]] = missing) -> tuple[int, int]:
            there = missing()
            return rank.owner(there[0]) if there else 0, len(there)

        if not _wait(all_there, lock, waited_for):
            shards = missing()
            owners = sorted({rank.owner(shard) for shard in shards})
            raise StoreError(
                f"Rank {rank.number} is done, but {len(shards)} of {job.manifest.shard_count} shards of {job.folder} "
                f"are missing, those of rank {', '.join(map(str, owners))}, and nothing came for {PATIENCE_S:.0f} s. "
                "Call collect again on those ranks, or on one process: it goes on where they stopped."
            )
        # Without locks two would close at once; then only rank 0 does.
        while not _is_complete(job):
            if not (lock.take(_CLOSING) if lock.works else rank.number == 0):
                time.sleep(POLL_S)
                continue
            try:
                if not _is_complete(job):
                    _close(job, close)
            finally:
                lock.give_back(_CLOSING)
        lock.done = True


def _close(job: SiteJob, close: Callable[[SiteJob], None]) -> None:
    job.parts = manifests.read_parts(job.folder)
    if job.missing():
        raise StoreError(
            f"Shards {', '.join(map(str, sorted(job.missing())[:8]))} of {job.folder} were altered after they were "
            "written. Call collect again: it collects them anew."
        )
    close(job)


def _missing_of(job: SiteJob) -> Callable[[], list[int]]:
    names = {number: job.folder / manifests.PARTIAL / manifests.part_file(number) for number in job.missing()}

    def missing() -> list[int]:
        for number in [number for number, path in names.items() if path.exists()]:
            del names[number]
        return list(names)

    return missing


def _is_complete(job: SiteJob) -> bool:
    try:
        return manifests.read_manifest(job.folder).complete
    except StoreError as error:
        raise InputError(
            f"{job.folder} was removed while this rank waited: no input could be read, or somebody removed it ({error})"
        ) from error


def _wait(ready: Callable[[], bool], lock: Lock, waited_for: Callable[[], tuple[int, int]]) -> bool:
    """Wait as long as `waited_for` (a rank, and how much is missing) changes or that rank is alive; then give up."""
    last, since = waited_for(), time.monotonic()
    while not ready():
        now = waited_for()
        if now != last or _is_alive(lock, now[0]):
            last, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE_S:
            return False
        time.sleep(POLL_S)
    return True


def _is_alive(lock: Lock, rank: int) -> bool:
    if not lock.works or not lock.take(_FIRST_RANK + rank):
        return lock.works
    lock.give_back(_FIRST_RANK + rank)
    return False
