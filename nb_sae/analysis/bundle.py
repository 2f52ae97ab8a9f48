"""The tables of one analysis, kept together, and as a folder of Parquet files."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from nb_sae.analysis.notes import Notes, checked_latent, checked_line, checked_notes
from nb_sae.analysis.schema import CONTEXTS, EXAMPLES, INPUTS, LATENTS, PICTURES, PROMOTED, QUALITY
from nb_sae.atomic import fresh_folder, read_header, write_json
from nb_sae.errors import ConfigError
from nb_sae.tables import read_table, write_tables
from nb_sae.types import Modality, Site

FORMAT = "nb_sae.analysis"
VERSION = 1
_TABLES = {
    "latents": LATENTS,
    "examples": EXAMPLES,
    "quality": QUALITY,
    "inputs": INPUTS,
    "pictures": PICTURES,
    "contexts": CONTEXTS,
    "promoted": PROMOTED,
}
_OPTIONAL = ("pictures", "contexts", "promoted")
_PLAIN = ("rows", "budgets", "widths", "modality", "model", "title")


@dataclass(frozen=True, kw_only=True, repr=False)
class Analysis:
    """What `analyze` found: polars frames with the columns of `nb_sae.analysis.schema`."""

    latents: pl.DataFrame
    examples: pl.DataFrame
    quality: pl.DataFrame
    inputs: pl.DataFrame
    pictures: pl.DataFrame | None
    contexts: pl.DataFrame | None
    promoted: pl.DataFrame | None = None
    """Tokens that each latent promotes and suppresses by its weights; None where a site has no unembedding."""
    site: Site
    rows: int
    """Rows that were read."""
    budgets: tuple[int, ...]
    """Nested k's of the dictionary; empty for a rule without any."""
    widths: tuple[int, ...] = ()
    """Nested prefixes of the dictionary; empty where it is not nested by them."""
    modality: Modality
    model: str
    title: str
    book: Notes = field(default_factory=Notes)
    """What the user says about latents; `note` writes into it."""

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.latents.height

    @property
    def notes(self) -> pl.DataFrame:
        """`latent, label, rating, comment` of every latent that was noted; `.write_csv(path)` exports them."""
        return self.book.frame

    def note(
        self, latent: int, label: str | None = None, rating: int | None = None, comment: str | None = None
    ) -> None:
        """Label, rate (1 to 5) or comment a latent. Shown in every dashboard; automatic names never replace a label.

        None leaves a part as it is; `label=""`, `comment=""` and `rating=0` take it away, and a note of which nothing
        is left is gone. After `save` or `load` every note is written to the folder at once.

        Raises:
            ConfigError: no such latent, another rating, a text that is too long, or nothing to note.
            StoreError: the folder cannot be written; the notes are then as before.
        """
        if label is None and rating is None and comment is None:
            raise ConfigError(f"note({latent}) says nothing. Give label=, rating= (1 to 5) or comment=.")
        with self.book.lock:
            before = self.book.of(checked_latent(latent, self.d_sae))
            line = checked_line(latent, label, rating, comment, d_sae=self.d_sae, before=before)
            self.book.set(line)

    def take_notes(self, source: Any, *, overwrite: bool = False) -> int:
        """Add the notes of another analysis of the same dictionary, of a frame, or of a file that was exported.

        An analysis that is made anew or merged from parts begins without notes; this brings them over.

        Args:
            source: An analysis, a frame with the columns of `notes`, or the path of its Parquet or CSV file.
            overwrite: Whether they replace notes that latents have here; if not, those stay.

        Returns:
            How many notes were taken.

        Raises:
            ConfigError: a line is about no latent of this dictionary, or holds what `note` refuses.
            InputError: no notes, or other columns.
        """
        taken = checked_notes(source, self.d_sae)
        with self.book.lock:
            if not overwrite:
                taken = taken.join(self.book.frame.select("latent"), on="latent", how="anti")
            self.book.set(taken)
        return taken.height

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a folder of Parquet files. It appears under its name in one step, when it is complete.

        Later notes are written there too.

        Raises:
            PathExistsError: something is there and `overwrite` is False.
        """
        folder = Path(path)
        with self.book.lock, fresh_folder(folder, overwrite=overwrite) as fresh:
            write_tables(fresh, {name: getattr(self, name) for name in _TABLES})
            about = {name: getattr(self, name) for name in _PLAIN}
            header = {"format": FORMAT, "version": VERSION, "site": asdict(self.site), **about}
            write_json(fresh / "analysis.json", header)
            self.book.save_into(fresh)
        self.book.folder = folder.absolute()
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Analysis:
        """Read what `save` wrote.

        Raises:
            InputNotFoundError: no analysis there.
            FormatError: another format, a newer version, or a table that does not fit its schema.
        """
        folder = Path(path)
        header = read_header(folder / "analysis.json", FORMAT, VERSION)
        tables: dict[str, pl.DataFrame | None] = {}
        for name, schema in _TABLES.items():
            file = folder / f"{name}.parquet"
            if name in _OPTIONAL and not file.exists():
                tables[name] = None
                continue
            tables[name] = read_table(file, schema, again="Run analyze again.")
        site = header["site"]
        grid = None if site["grid"] is None else tuple(site["grid"])
        return cls(
            **tables,  # pyright: ignore[reportArgumentType]
            site=Site(**{**site, "grid": grid}),
            rows=header["rows"],
            budgets=tuple(header["budgets"]),
            widths=tuple(header.get("widths", ())),
            modality=header["modality"],
            model=header["model"],
            title=header["title"],
            book=Notes.read(folder.absolute()),
        )

    def __repr__(self) -> str:
        alive = self.latents.height - int(self.latents["dead"].sum())
        noted = f", {self.notes.height:,} noted" if self.notes.height else ""
        return f"Analysis({self.title}: {alive:,} of {self.d_sae:,} latents active on {self.rows:,} rows{noted})"
