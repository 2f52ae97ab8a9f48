"""The tables of one bias report, kept together: shown, saved, exported, and asked what taking concepts out would do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from nb_sae.atomic import fresh_folder, read_header, write_json
from nb_sae.concepts import schema
from nb_sae.errors import ConfigError
from nb_sae.tables import read_tables, write_tables

FORMAT = "nb_sae.bias"
VERSION = 1
TABLES: dict[str, pl.Schema] = {
    "association": schema.ASSOCIATION,
    "conditional": schema.ASSOCIATION,
    "reliance": schema.RELIANCE,
    "curves": schema.CURVES,
    "image_curves": schema.IMAGE_CURVES,
    "controls": schema.CONTROLS,
    "errors": schema.ERRORS,
    "class_errors": schema.CLASS_ERRORS,
    "gaps": schema.GAPS,
    "retrieval": schema.RETRIEVAL,
    "groups": schema.GROUPS,
    "examples": schema.BIAS_EXAMPLES,
    "histograms": schema.HISTOGRAMS,
}
CAUTION = (
    "Labels are annotators' labels; association is not cause; what a classifier leans on is measured inside this "
    "dictionary; groups below n = {min_n} are masked."
)


@dataclass(frozen=True, kw_only=True, repr=False)
class BiasReport:
    """What `bias_report` found: polars frames with the columns of `nb_sae.concepts.schema`."""

    association: pl.DataFrame
    """How much each concept differs between the groups of the target."""
    conditional: pl.DataFrame
    """The same inside strata of each attribute in `given`, and of all of them together."""
    reliance: pl.DataFrame
    """How the classifier's probability follows each concept."""
    curves: pl.DataFrame
    image_curves: pl.DataFrame
    controls: pl.DataFrame
    """The matched latents beside each concept."""
    errors: pl.DataFrame
    """Where the classifier errs, by group and by level of a concept."""
    class_errors: pl.DataFrame
    """The same of each class against the others; empty where there are two."""
    gaps: pl.DataFrame
    """Differences of those rates, with intervals and p-values."""
    retrieval: pl.DataFrame
    groups: pl.DataFrame
    examples: pl.DataFrame
    histograms: pl.DataFrame
    about: dict[str, Any]
    """Target, classes, split, probe accuracy, counts of missing labels, every setting, and the caution."""
    _mitigate: Callable[..., pl.DataFrame] | None = field(default=None, compare=False)

    def mitigate(
        self,
        concepts: Sequence[str | int] | str | int,
        how: Literal["ablate", "neutralise"] = "ablate",
        *,
        group: str | None = None,
        retrain: bool = False,
        resamples: int = 1000,
    ) -> pl.DataFrame:
        """A gap before and after concepts are taken out of the held-out rows (`schema.MITIGATION`), and the accuracy.

        Args:
            concepts: Names or latents of this report.
            how: "ablate" sets them to 0; "neutralise" to their mean over the train rows, in which every group counts
                the same. Both keep the reconstruction error, and need no label of the rows they edit.
            group: Attribute whose groups the gap is between; None: the first of `groups` beside the target, and
                without any the rows with and without the first concept.
            retrain: Train the probe again on rows edited in the same way, in place of asking the one that is there.
            resamples: Of the paired bootstrap.

        Raises:
            ConfigError: a report without a classifier or read from a file, or a name that is not in it.
        """
        if self._mitigate is None:
            raise ConfigError(
                "This report holds no rows to edit: it was read from a file, or made with classifier=None. Run "
                "bias_report with a classifier, then mitigate."
            )
        listed = [concepts] if isinstance(concepts, str | int) else list(concepts)
        return self._mitigate(listed, how, group=group, retrain=retrain, resamples=resamples)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a folder of Parquet files. It appears under its name in one step, when it is complete.

        Raises:
            PathExistsError: something is there and `overwrite` is False.
        """
        folder = Path(path)
        with fresh_folder(folder, overwrite=overwrite) as fresh:
            write_tables(fresh, {name: getattr(self, name) for name in TABLES})
            write_json(fresh / "bias.json", {"format": FORMAT, "version": VERSION, "about": self.about})
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BiasReport:
        """Read what `save` wrote. It cannot mitigate: that needs the rows.

        Raises:
            InputNotFoundError: no report there.
            FormatError: another format, a newer version, or a table that does not fit its schema.
        """
        folder = Path(path)
        header = read_header(folder / "bias.json", FORMAT, VERSION)
        tables: dict[str, Any] = read_tables(folder, TABLES, again="Run bias_report again.")
        return cls(**tables, about=header["about"])

    def export(
        self,
        folder: str | os.PathLike[str],
        *,
        format: Literal["csv", "parquet"] = "csv",  # noqa: A002 (the users' word)
        overwrite: bool = False,
    ) -> Path:
        """Write every table as a file of its own; lists become text joined by ";" in CSV.

        Raises:
            ConfigError: another format.
            PathExistsError: something is there and `overwrite` is False.
        """
        if format not in ("csv", "parquet"):
            raise ConfigError(f"format={format!r} is not known. Use 'csv' or 'parquet'.")
        with fresh_folder(Path(folder), overwrite=overwrite) as fresh:
            for name in TABLES:
                frame: pl.DataFrame = getattr(self, name)
                if format == "parquet":
                    frame.write_parquet(fresh / f"{name}.parquet", compression="zstd")
                else:
                    _flat(frame).write_csv(fresh / f"{name}.csv")
            write_json(fresh / "about.json", self.about)
        return Path(folder)

    def __repr__(self) -> str:
        concepts = self.association["latent"].n_unique()
        found = self.association.filter(pl.col("q_value") <= 0.05)["latent"].n_unique()
        return f"BiasReport({self.about['target']}: {concepts} concepts, {found} associated at q ≤ 0.05)"


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    lists = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]
    return frame.with_columns(
        pl.col(name).list.eval(pl.element().cast(pl.String)).list.join(";").alias(name) for name in lists
    )
