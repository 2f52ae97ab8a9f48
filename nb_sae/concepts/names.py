"""The names of a dictionary's latents, kept together: found by word, checked against labels, saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from nb_sae.atomic import fresh_folder, read_header, write_json
from nb_sae.concepts.schema import HUBS, NAMES, NULL
from nb_sae.errors import ConfigError, InputError, closest
from nb_sae.tables import read_tables, write_tables
from nb_sae.types import ActivationSource

FORMAT = "nb_sae.names"
VERSION = 1
_TABLES = {"frame": NAMES, "hubs": HUBS, "null": NULL}
_SHOWN = 6
"""Candidates that the message of an ambiguous name lists."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ConceptNames:
    """What `name_concepts` found. A user's own label stands before an automatic name everywhere."""

    frame: pl.DataFrame
    """`schema.NAMES`, one line per latent that was asked for."""
    hubs: pl.DataFrame
    """`schema.HUBS`: which words name the null and the latents, and which of them are near to everything."""
    null: pl.DataFrame
    """`schema.NULL`: how well directions that mean nothing are named."""
    about: dict[str, Any]
    """Every setting, what the null is, the threshold, and what a check by data dropped."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Latent → what the user calls it."""

    def name_of(self, latent: int) -> str:
        """The user's label, else the accepted name, else `"latent 417"`."""
        if latent in self.labels:
            return self.labels[latent]
        lines = self.frame.filter((pl.col("latent") == latent) & pl.col("accepted"))
        return str(lines["name"][0]) if lines.height else f"latent {latent}"

    def find(self, name: str, *, best: bool = False) -> int:
        """The latent of this name: a user's label, else an accepted name; upper and lower case are the same.

        Args:
            name: As the user or the vocabulary writes it.
            best: Where several accepted latents share the name, take the one with the largest cosine.

        Raises:
            InputError: several latents have it (they are listed), or none (the closest names are).
        """
        wanted = " ".join(name.split()).casefold()
        labelled = sorted(latent for latent, label in self.labels.items() if label.casefold() == wanted)
        if len(labelled) > 1:
            raise InputError(
                f"{name!r} is the label of latents {', '.join(map(str, labelled[:_SHOWN]))}. Give the number of one, "
                "or label them apart."
            )
        if labelled:
            return labelled[0]
        lines = (
            self._accepted().filter(pl.col("name").str.to_lowercase() == wanted.lower()).sort("cosine", descending=True)
        )
        if not lines.height:
            self._refuse(name, wanted)
        if lines.height > 1 and not best:
            raise InputError(
                f"{name!r} is the name of {lines.height} latents: {_candidates(lines)}. Give the number of one, or "
                f"take the nearest with names.find({name!r}, best=True)."
            )
        return int(lines["latent"][0])

    def with_labels(self, notes: pl.DataFrame) -> ConceptNames:
        """The same with the labels of `analysis.notes` (`latent, label`) as they are now."""
        return replace(self, labels=labels_of(notes))

    def check(
        self,
        dictionary: Any,
        store: ActivationSource,
        attributes: pl.DataFrame,
        *,
        permutations: int = 200,
        seed: int = 0,
        k: int | None = None,
        synonyms: Mapping[str, Sequence[str]] | None = None,
    ) -> ConceptNames:
        """A second opinion without text: which labelled attribute each latent separates best.

        Fills `data_name` (an attribute, or `"not "` and it where the latent is active without it), `data_auc`,
        `data_p` and `agrees`; what was dropped and why is in `.about["check"]`. See `data_names.data_names`.

        Args:
            dictionary: The one that was named.
            store: Rows of its site.
            attributes: `input_id, key` and one column per attribute, as `faces.attributes`.
            permutations: Of the labels, for `data_p`; the smallest p is 1 / (permutations + 1).
            seed: Of the permutations.
            k: Latents per row that `encode` keeps; None: the trained rule.
            synonyms: Attribute → words that mean it, beside those the vocabulary brought.
        """
        from nb_sae.concepts.data_names import data_names  # it needs torch and this file does not

        found, dropped = data_names(
            dictionary, store, attributes, self.frame["latent"].to_numpy(), permutations=permutations, seed=seed, k=k
        )
        meanings = {word.casefold(): meaning for word, meaning in self.about.get("meanings", {}).items()}
        meanings |= {word.casefold(): attribute for attribute, words in (synonyms or {}).items() for word in words}
        known = {plain(name): name for name in dropped["attributes"]}
        means = [meaning_of(name, meanings, known) for name in self.frame["name"].to_list()]
        joined = self.frame.drop("data_name", "data_auc", "data_p", "agrees").join(found, on="latent", how="left")
        frame = joined.with_columns(agrees=pl.Series(means, dtype=pl.String) == pl.col("data_name"))
        return replace(self, frame=frame.select(NAMES.names()), about={**self.about, "check": dropped})

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a folder of Parquet files and one JSON. It appears under its name in one step, when it is complete.

        Raises:
            PathExistsError: something is there and `overwrite` is False.
        """
        folder = Path(path)
        with fresh_folder(folder, overwrite=overwrite) as fresh:
            write_tables(fresh, {name: getattr(self, name) for name in _TABLES})
            labels = {str(latent): label for latent, label in self.labels.items()}
            header = {"format": FORMAT, "version": VERSION, "about": self.about, "labels": labels}
            write_json(fresh / "names.json", header)
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConceptNames:
        """Read what `save` wrote.

        Raises:
            InputNotFoundError: no names there.
            FormatError: another format, a newer version, or a table that does not fit its schema.
        """
        folder = Path(path)
        header = read_header(folder / "names.json", FORMAT, VERSION)
        tables = read_tables(folder, _TABLES, again="Name the concepts again.")
        labels = {int(latent): label for latent, label in header["labels"].items()}
        return cls(**tables, about=header["about"], labels=labels)

    def __repr__(self) -> str:
        accepted = self._accepted()
        return (
            f"ConceptNames({accepted.height:,} of {self.frame.height:,} latents named, by "
            f"{accepted['name'].n_unique():,} of {self.about['words']:,} words of {self.about['vocabulary']!r})"
        )

    def _accepted(self) -> pl.DataFrame:
        """Accepted lines but for those that the user calls something else."""
        return self.frame.filter(pl.col("accepted") & ~pl.col("latent").is_in(list(self.labels)))

    def _refuse(self, name: str, wanted: str) -> None:
        near = closest(wanted, {*self._accepted()["name"].to_list(), *self.labels.values()})
        unsure = self.frame.filter((pl.col("name").str.to_lowercase() == wanted.lower()) & ~pl.col("accepted"))
        hint = ""
        if unsure.height:
            hint = f"Nearest to it, but no better than chance: {_candidates(unsure.sort('cosine', descending=True))}. "
        raise InputError(
            f"No latent has the accepted name {name!r}. {near}{hint}See names.frame, or give the number of a latent."
        )


def labels_of(notes: pl.DataFrame) -> dict[int, str]:
    """Latent → label, of the lines that have one."""
    return {int(latent): label for latent, label in notes.select("latent", "label").iter_rows() if label}


def plain(name: str) -> str:
    """An attribute's or word's name without what only writes it: `Wearing_Hat`, `a hat` and `hat` are one."""
    words = name.replace("_", " ").casefold().split()
    return " ".join(word for word in words if word not in ("a", "an", "the", "wearing")) or name.casefold()


def meaning_of(word: str | None, meanings: Mapping[str, str], attributes: Mapping[str, str]) -> str | None:
    """The attribute a word is known to mean, or that is written like it; None where neither is so."""
    if word is None:
        return None
    known = meanings.get(word.casefold()) or attributes.get(plain(word))
    if known is None or known.removeprefix("not ") not in attributes.values():
        return None
    return known


def _candidates(lines: pl.DataFrame) -> str:
    parts = [f"{latent} (cosine {cosine:.2f})" for latent, cosine in lines.select("latent", "cosine").iter_rows()]
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more


def find_name(names: ConceptNames | None, name: str) -> int:
    """`names.find(name)`. Raises `ConfigError` where there are no names to find it in."""
    if names is None:
        raise ConfigError(
            f"{name!r} is a name and no names were given. Pass names=ns.name_concepts(…), or the number of a latent."
        )
    return names.find(name)
