"""A training session as files: written so that a crash leaves the one before, by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nb_sae.atomic import read_header, write_json
from nb_sae.errors import FormatError, InputNotFoundError, PathExistsError, StoreError

FORMAT = "nb_sae.session"
VERSION = 2
HEADER = "session.json"
LOCK = "session.lock"
STATE, LOG = "state.safetensors", "log.parquet"
_FOLDERS = "step-*"


@dataclass
class Saved:
    """What was read back."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]
    log: list[dict[str, Any]]


def write(folder: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], log: Sequence[dict]) -> None:
    """Write a new sub-folder, then replace `session.json` in one step; the caller holds the `Lock`.

    What was saved before stays readable until then, and is removed afterwards.
    """
    fresh = Path(tempfile.mkdtemp(prefix=f"step-{header['step']:08d}-", dir=folder))
    save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, fresh / STATE)
    if log:
        pl.DataFrame(log, infer_schema_length=None).write_parquet(fresh / LOG)
    sizes = {}
    for file in sorted(fresh.iterdir()):
        with file.open("rb+") as opened:  # safe on the disk before anything points to it
            os.fsync(opened.fileno())
        sizes[file.name] = file.stat().st_size
    write_json(folder / HEADER, {"format": FORMAT, "version": VERSION, "folder": fresh.name, "files": sizes, **header})
    for old in folder.glob(_FOLDERS):
        if old != fresh:
            shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> Saved:
    """Read what `write` wrote, also while another process writes a newer one.

    Raises:
        InputNotFoundError: no session there.
        FormatError: another format, a newer version, or a damaged file, which is named.
    """
    header = read_header(folder / HEADER, FORMAT, VERSION)
    while True:
        try:
            return Saved(header, *_contents(folder, header))
        except FormatError:
            newer = read_header(folder / HEADER, FORMAT, VERSION)
            if newer.get("folder") == header.get("folder"):
                raise
            header = newer  # a writer took the older one away meanwhile


def read_log(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and log of what `write` wrote, without the tensors. Raises as `read`."""
    header = read_header(folder / HEADER, FORMAT, VERSION)
    file = folder / str(header.get("folder")) / LOG
    try:
        return header, pl.read_parquet(file).to_dicts() if file.exists() else []
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"The log in {folder} cannot be read ({error}). Copy the whole folder again.") from error


def _contents(folder: Path, header: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    place = folder / str(header.get("folder"))
    for name, size in header.get("files", {}).items():
        there = (place / name).stat().st_size if (place / name).is_file() else None
        if there != size:
            what = "is missing" if there is None else f"has {there:,} bytes"
            raise FormatError(f"{place / name} {what}, {size:,} were written. Copy the whole folder again.")
    try:
        tensors = load_file(place / STATE)
        log = pl.read_parquet(place / LOG).to_dicts() if (place / LOG).exists() else []
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"The session in {folder} cannot be read ({error}). Copy the whole folder again.") from error
    return tensors, log


def check_free(folder: Path, run: str, *, overwrite: bool) -> None:
    """Refuse to write over another session, or into something that is not a folder.

    Raises:
        PathExistsError: says what is there.
    """
    if folder.exists() and not folder.is_dir():
        raise PathExistsError(f"{folder} exists and is not a folder. Give another path.")
    try:
        header = read_header(folder / HEADER, FORMAT, VERSION)
    except InputNotFoundError:
        return
    except FormatError as error:
        if overwrite:
            return
        raise PathExistsError(f"{folder} holds a session that cannot be read: {error} Give another path.") from error
    if header.get("run") != run and not overwrite:
        raise PathExistsError(
            f"{folder} holds another session (at step {header.get('step')}). Go on with it by "
            f"Session.load({str(folder)!r}, source), give another path, or overwrite it by save(…, overwrite=True)."
        )


class Lock:
    """One writer at a time. The file names the process; the lock of a process that has died is free.

    Raises:
        StoreError: another process, or another session of this one, writes there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] | None = (folder / LOCK).open("a+")
        if os.name == "posix":
            self._take(self._file)
        self._file.seek(0)
        self._file.truncate()
        json.dump({"process": os.getpid(), "host": socket.gethostname()}, self._file)
        self._file.flush()

    def _take(self, file: IO[str]) -> None:
        import fcntl

        try:
            # The system lets go of it when the process ends, however it ends. The file stays: taking it away would
            # let two processes hold locks on two files of one name.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = {}
            with suppress(ValueError):
                who = json.loads(file.read())
            file.close()
            name = f"Process {who.get('process', 'unknown')} on {who.get('host', 'this machine')}"
            if who.get("process") == os.getpid():
                name = "Another session of this process"
            raise StoreError(
                f"{name} is writing the session in {self.folder}. Wait for it, stop it, or give another path."
            ) from None
        except OSError:
            pass  # a file system without locks

    def release(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
            if os.name == "posix":
                import fcntl

                with suppress(OSError):  # also what worker processes inherited
                    fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
