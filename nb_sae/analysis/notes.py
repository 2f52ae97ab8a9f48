"""What a user says about latents: a label, a rating and a comment for each, kept apart from what was computed."""

from __future__ import annotations

import io
import operator
import os
import re
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from nb_sae.analysis.schema import NOTES
from nb_sae.atomic import write_atomically
from nb_sae.errors import ConfigError, FormatError, InputError, StoreError

FILE = "notes.parquet"
LABEL_CHARS, COMMENT_CHARS = 120, 2_000
BEST = 5
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Notes:
    """The notes of one analysis, in memory and, once it has a folder, in a file of it.

    Every change is written before it counts, in one step: a crash leaves the notes as they were or as they should be.
    What another process has written there meanwhile is read first, so that two notebooks add to each other.
    """

    def __init__(self, frame: pl.DataFrame | None = None, folder: Path | None = None) -> None:
        self.frame = pl.DataFrame(schema=NOTES) if frame is None else frame
        """One line per noted latent, by number, with the columns of `schema.NOTES`."""
        self.folder = folder
        """Where they are kept; None: in memory until the analysis is saved."""
        self.lock = threading.RLock()
        self._watching: list[weakref.WeakMethod[Callable[[], None]]] = []

    @classmethod
    def read(cls, folder: Path) -> Notes:
        """The notes in a saved analysis; none where it was saved without.

        Raises:
            FormatError: the file is damaged.
        """
        return cls(read_notes(folder / FILE), folder)

    def set(self, changes: pl.DataFrame) -> None:
        """Put these lines in place of the notes of their latents; a line that says nothing takes a note away.

        Raises:
            StoreError: the file cannot be written; the notes are then as before.
        """
        with self.lock:
            before = self._current()
            kept = before.join(changes.select("latent"), on="latent", how="anti")
            said = changes.filter(pl.any_horizontal(pl.col("label", "rating", "comment").is_not_null()))
            after = pl.concat([kept, said]).sort("latent")
            if self.folder is not None:
                self._write(after, self.folder)
            self.frame = after
        self._tell()

    def of(self, latent: int) -> dict[str, Any]:
        """`label, rating, comment` of one latent; None where nothing is said."""
        with self.lock:
            found = self._current().filter(pl.col("latent") == latent)
        line = found.row(0, named=True) if found.height else dict.fromkeys(NOTES)
        return {name: line[name] for name in ("label", "rating", "comment")}

    def save_into(self, folder: Path) -> None:
        """Write them into a folder that is being made, if there are any."""
        self.frame = self._current()
        if self.frame.height:
            self._write(self.frame, folder)

    def watch(self, use: Callable[[], None]) -> None:
        """Call a method after every change, for as long as its object lives."""
        self._watching.append(weakref.WeakMethod(use))

    def _current(self) -> pl.DataFrame:
        """The notes as they are on disk; those in memory where there is no file yet."""
        if self.folder is None or not (self.folder / FILE).exists():
            return self.frame
        return read_notes(self.folder / FILE)

    def _write(self, frame: pl.DataFrame, folder: Path) -> None:
        data = io.BytesIO()
        frame.write_parquet(data)
        try:
            write_atomically(folder / FILE, [data.getvalue()])
        except OSError as error:
            raise StoreError(
                f"the note was not taken: {folder / FILE} cannot be written ({error.strerror}). Save the analysis to "
                "another folder with analysis.save(path); its notes are then kept there."
            ) from error

    def _tell(self) -> None:
        alive = [(reference, use) for reference in self._watching if (use := reference()) is not None]
        self._watching = [reference for reference, _ in alive]
        for _, use in alive:
            use()

    def __getstate__(self) -> dict[str, Any]:
        return {"frame": self.frame, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["frame"], state["folder"])


def read_notes(file: Path) -> pl.DataFrame:
    """A file of notes, Parquet or (`.csv`) as `analysis.notes.write_csv` writes it; no lines where there is no file.

    Raises:
        FormatError: damaged, or with other columns.
    """
    if not file.exists():
        return pl.DataFrame(schema=NOTES)
    try:
        frame = pl.read_csv(file, schema_overrides=dict(NOTES)) if file.suffix == ".csv" else pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"{file} cannot be read ({error}). Move it away; the analysis itself is whole.") from error
    if frame.schema != NOTES:
        raise FormatError(f"{file} has columns {dict(frame.schema)}; expected {dict(NOTES)}. Move it away.")
    return frame


def checked_notes(source: Any, d_sae: int) -> pl.DataFrame:
    """The notes of an analysis, of a frame, or of a file, every line checked as `note` checks one.

    Raises:
        InputError: something else, or a frame with other columns.
        ConfigError: a line that `note` would refuse.
        FormatError: a damaged file.
    """
    nothing: dict[str, Any] = dict.fromkeys(NOTES)
    lines = [checked_line(*line, d_sae=d_sae, before=nothing) for line in _frame_of(source).iter_rows()]
    return pl.concat([pl.DataFrame(schema=NOTES), *lines]).unique("latent", keep="last")


def _frame_of(source: Any) -> pl.DataFrame:
    if isinstance(source, str | os.PathLike):
        if not Path(source).is_file():
            raise InputError(
                f"{str(source)!r} is no file of notes. Give {FILE} of a saved analysis, or a CSV of notes."
            )
        return read_notes(Path(source))
    frame = source if isinstance(source, pl.DataFrame) else getattr(source, "notes", None)
    if not isinstance(frame, pl.DataFrame):
        raise InputError(f"notes cannot be taken from a {type(source).__name__}. Give an analysis, a frame or a file.")
    if missing := set(NOTES) - set(frame.columns):
        raise InputError(
            f"the frame of notes has the columns {', '.join(frame.columns)}; {', '.join(sorted(missing))} is missing."
        )
    return frame.select(NOTES.names())


def checked_line(
    latent: Any, label: Any, rating: Any, comment: Any, *, d_sae: int, before: dict[str, Any]
) -> pl.DataFrame:
    """One line of notes from what a user gave: None leaves a part as it was, `""` and 0 take it away.

    Raises:
        ConfigError: no such latent, a rating that is not 1 … 5, or a text that is none or too long.
    """
    line = {
        "latent": checked_latent(latent, d_sae),
        "label": before["label"] if label is None else _text("label", label, LABEL_CHARS),
        "rating": before["rating"] if rating is None else _rating(rating),
        "comment": before["comment"] if comment is None else _text("comment", comment, COMMENT_CHARS),
    }
    return pl.DataFrame([line], schema=NOTES)


def checked_latent(latent: Any, d_sae: int) -> int:
    """The number of a latent. Raises `ConfigError` for anything else."""
    try:
        number = operator.index(latent)
    except TypeError:
        number = -1
    if isinstance(latent, bool) or not 0 <= number < d_sae:
        raise ConfigError(
            f"latent={latent!r} is none of this dictionary's 0 … {d_sae - 1}. Give the number of a latent."
        )
    return number


def _rating(rating: Any) -> int | None:
    try:
        number = operator.index(rating)
    except TypeError:
        number = -1
    if isinstance(rating, bool) or not 0 <= number <= BEST:
        raise ConfigError(f"rating={rating!r} is no whole number from 1 to {BEST}. 0 takes the rating away.")
    return number or None


def _text(name: str, text: Any, most: int) -> str | None:
    if not isinstance(text, str):
        raise ConfigError(f"{name}={text!r} is a {type(text).__name__}. Give text; '' takes the {name} away.")
    text = _LONE_SURROGATE.sub("\ufffd", text).strip()
    text = " ".join(text.split()) if name == "label" else text
    if len(text) > most:
        longer = " Put the rest into comment=." if name == "label" else ""
        raise ConfigError(f"the {name} has {len(text):,} characters; at most {most:,} are kept.{longer}")
    return text or None
