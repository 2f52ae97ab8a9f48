"""Files and folders that are either whole or not there: written beside their place, and renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nb_sae.errors import FormatError, InputNotFoundError, PathExistsError

TEMPORARY = ".writing-"
"""How the name of a file begins while it is being written; what a crash leaves behind begins so too."""


@dataclass(frozen=True)
class FileMark:
    """Size and checksum of a file, to recognise it by."""

    bytes: int
    sha256: str


def write_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> FileMark:
    """Write a file under a temporary name beside `path`, sync it and rename it into place."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    digest, size = hashlib.sha256(), 0
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
                size += len(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 (tests replace this one call)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return FileMark(size, digest.hexdigest())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON; floats keep their exact value, keys keep their order."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, [text.encode("utf-8"), b"\n"])


@contextmanager
def fresh_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, which gets the name `folder` in one step when the block ends; an error leaves no trace.

    Raises:
        PathExistsError: something is there and `overwrite` is False.
    """
    if folder.exists() and not overwrite:
        raise PathExistsError(f"{folder} exists. Choose another path or pass overwrite=True.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield fresh
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.replace(old / folder.name)
            fresh.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputNotFoundError: no such file.
        FormatError: not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputNotFoundError(f"{path.parent} holds no {path.name}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as JSON ({error}). Get the file again.") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds a {type(content).__name__}; expected an object with settings.")
    return content


def read_header(path: Path, expected: str, version: int) -> dict[str, Any]:
    """Read a JSON file that states its `format` and `version`.

    Raises:
        InputNotFoundError: no such file.
        FormatError: not JSON, another format, or a newer version.
    """
    header = read_json(path)
    if header.get("format") != expected:
        raise FormatError(f"{path} has format {header.get('format')!r}; expected {expected!r}.")
    if header.get("version", 0) > version:
        raise FormatError(f"{path} has version {header['version']}; this nb_sae reads up to {version}. Update nb_sae.")
    return header


def file_names(names: Sequence[str]) -> list[str]:
    """One name of a file or folder for each of some names, as like it as file names allow; no two alike."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".") or "site"
        own, again = base, 2
        while own.casefold() in taken:
            own, again = f"{base}-{again}", again + 1
        taken.add(own.casefold())
        found.append(own)
    return found


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
