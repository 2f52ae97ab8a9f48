"""The tables of one analysis, kept together, and as a folder of Parquet files."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from nb_sae.analysis.schema import CONTEXTS, EXAMPLES, INPUTS, LATENTS, PICTURES, QUALITY
from nb_sae.atomic import fresh_folder, read_header, write_json
from nb_sae.errors import FormatError
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
}
_OPTIONAL = ("pictures", "contexts")
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

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.latents.height

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a folder of Parquet files. It appears under its name in one step, when it is complete.

        Raises:
            PathExistsError: something is there and `overwrite` is False.
        """
        folder = Path(path)
        with fresh_folder(folder, overwrite=overwrite) as fresh:
            for name in _TABLES:
                frame = getattr(self, name)
                if frame is not None:
                    frame.write_parquet(fresh / f"{name}.parquet", compression="zstd")
            about = {name: getattr(self, name) for name in _PLAIN}
            header = {"format": FORMAT, "version": VERSION, "site": asdict(self.site), **about}
            write_json(fresh / "analysis.json", header)
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
            try:
                frame = pl.read_parquet(file)
            except (OSError, pl.exceptions.PolarsError) as error:
                raise FormatError(f"{file} cannot be read ({error}). Run analyze again.") from error
            if frame.schema != schema:
                raise FormatError(f"{file} has columns {frame.schema}; expected {schema}. Run analyze again.")
            tables[name] = frame
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
        )

    def __repr__(self) -> str:
        alive = self.latents.height - int(self.latents["dead"].sum())
        return f"Analysis({self.title}: {alive:,} of {self.d_sae:,} latents active on {self.rows:,} rows)"
