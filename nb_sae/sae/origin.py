"""What a session knows of its rows: where they come from, how many, their mean and spread. Recognises them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from nb_sae.errors import ConfigError, StoreError
from nb_sae.types import ActivationSource, HookedModel, RowStatistics

TOLERANCE = 1e-4
"""How far the mean may be off, in units of the rows' spread, for rows to be the same ones."""


@dataclass(frozen=True)
class Origin:
    """The rows of a session, without the rows."""

    site: str
    model: str
    revision: str
    rows: int
    statistics: RowStatistics
    target_site: str | None = None
    target_statistics: RowStatistics | None = None
    """Of a transcoder: the rows of the other site."""

    @classmethod
    def of(cls, source: ActivationSource) -> Self:
        """Look at a source.

        Raises:
            StoreError: fewer than two rows, or statistics that are not finite.
        """
        if len(source) < 2:
            raise StoreError(f"The source has {len(source)} rows. Training needs at least 2.")
        target: ActivationSource | None = getattr(source, "target", None)
        found = cls(
            source.site.name,
            source.model,
            source.revision,
            len(source),
            source.statistics(),
            None if target is None else target.site.name,
            None if target is None else target.statistics(),
        )
        for statistics in (found.statistics, found.target_statistics):
            if statistics is not None and not np.isfinite(statistics.mean).all():
                raise StoreError("The rows hold NaN or infinity: their mean is not finite. Collect them in float32.")
        return found

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return len(self.statistics.mean)

    @property
    def d_out(self) -> int | None:
        """Width of a target, of a transcoder."""
        return None if self.target_statistics is None else len(self.target_statistics.mean)

    def check(self, source: ActivationSource) -> None:
        """Refuse other rows than these.

        Raises:
            StoreError: says what differs.
        """
        given = Origin.of(source)
        for what in ("site", "model", "revision", "d_in", "d_out", "target_site", "rows"):
            mine, its = getattr(self, what), getattr(given, what)
            if mine != its:
                shown = f"{its:,} were given" if what == "rows" else f"{its!r} is given"
                raise StoreError(
                    f"These are not the rows that the session was trained on: {what} was {mine!r}, {shown}. "
                    "Give the same rows (the same store, split and seed)."
                )
        for mine, its in (
            (self.statistics, given.statistics),
            (self.target_statistics, given.target_statistics),
        ):
            if mine is None or its is None:
                continue
            spread = (mine.mean_square_distance / len(mine.mean)) ** 0.5
            off = float(np.abs(mine.mean - its.mean).max()) / spread
            if off > TOLERANCE or abs(its.mean_square_distance / mine.mean_square_distance - 1) > TOLERANCE:
                raise StoreError(
                    f"These are not the rows that the session was trained on: the mean is off by {off:.2g} of their "
                    f"spread, the mean square distance is {its.mean_square_distance:.4g}, it was "
                    f"{mine.mean_square_distance:.4g}. Give the same rows (the same store, split and seed)."
                )

    def to_header(self) -> dict[str, Any]:
        """Plain values, as `from_header` reads them."""
        target = self.target_statistics
        return {
            "site": self.site,
            "model": self.model,
            "revision": self.revision,
            "source_rows": self.rows,
            "mean": self.statistics.mean.tolist(),
            "mean_square_distance": self.statistics.mean_square_distance,
            "target_site": self.target_site,
            "target_mean": None if target is None else target.mean.tolist(),
            "target_mean_square_distance": None if target is None else target.mean_square_distance,
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Self:
        """The inverse of `to_header`."""
        target = None
        if header["target_mean"] is not None:
            target = RowStatistics(
                header["source_rows"], np.array(header["target_mean"]), header["target_mean_square_distance"]
            )
        return cls(
            header["site"],
            header["model"],
            header["revision"],
            header["source_rows"],
            RowStatistics(header["source_rows"], np.array(header["mean"]), header["mean_square_distance"]),
            header["target_site"],
            target,
        )


def check_model(model: Any, dictionary: Any, site: str | None = None) -> None:
    """Refuse what is no model or no dictionary, and another model than the one a dictionary was trained on.

    Args:
        model: From `load_lm` or `load_clip`.
        dictionary: Says which model it is of, if it knows.
        site: How the message calls the dictionary; None: its own site.

    Raises:
        ConfigError: says what was given and what was expected.
    """
    if not isinstance(model, HookedModel):
        raise ConfigError(f"Got a {type(model).__name__} as the model; expected one from load_lm() or load_clip().")
    if not hasattr(dictionary, "W_dec"):
        raise ConfigError(
            f"Got a {type(dictionary).__name__} as the dictionary; expected a Dictionary. Of what train_all gives, "
            "pass .dictionaries[site]; of a session, .dictionary."
        )
    for what, given in (("model", model.name), ("revision", model.revision)):
        trained = getattr(dictionary, what)
        if trained is not None and given is not None and given != trained:
            raise ConfigError(
                f"The dictionary of {(site or dictionary.site)!r} was trained on {what} {trained!r}; the given model "
                f"is {what} {given!r}. Load the model it was trained on."
            )
