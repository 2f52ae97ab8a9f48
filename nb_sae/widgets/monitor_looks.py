"""What a training monitor shows of a look at a few rows: reconstructions at each budget, and features that form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

FEATURES = 6
"""Latents whose strongest rows are shown."""
TOP = 4
"""Rows of each."""
MOST_OF_ROWS = 0.25
"""A latent that more of the rows make active says little about any of them, and is not chosen by itself."""


@dataclass
class Forming:
    """The latents that are followed over the looks of one run, and the rows that were strongest the last time."""

    chosen: Sequence[int] | None = None
    """Named by the user; None: chosen by rule."""
    latents: list[int] = field(default_factory=list)
    before: dict[int, set[int]] = field(default_factory=dict)
    """Latent → its strongest rows at the last look."""

    def follow(self, look: Any) -> pl.DataFrame:
        """`latent, active, kept, chance, rows, acts` of each latent that is followed, after a look.

        `active`: of the probe's rows, how many make it active. `kept`: how many of its strongest rows were so at the
        last look (null at the first); `chance`: how many of two random draws of as many rows would be the same.

        Unless named, latents are chosen by this rule: active on at least two rows and at most a quarter of them, the
        largest sum of activations first. They stay; one that falls silent is replaced.
        """
        count, k = look.values.shape
        active = look.values > 0
        latents, rows = look.indices[active], np.repeat(np.arange(count), k)[active.ravel()]
        acts = look.values[active].astype(np.float64)
        size = int(latents.max()) + 1 if latents.size else 0
        fired = np.bincount(latents, minlength=size)
        self.latents = self._choose(fired, np.bincount(latents, weights=acts, minlength=size), count)
        lines = []
        for latent in self.latents:
            mine = latents == latent
            order = np.argsort(-acts[mine], kind="stable")[:TOP]
            top, strongest = rows[mine][order].tolist(), acts[mine][order].tolist()
            known = self.before.get(latent)
            lines.append({
                "latent": latent,
                "active": int(mine.sum()),
                "kept": None if known is None else float(len(known & set(top))),
                "chance": None if known is None else len(known) * len(top) / max(1, count),
                "rows": top,
                "acts": strongest,
            })  # fmt: skip
        self.before = {line["latent"]: set(line["rows"]) for line in lines}
        schema = {
            "latent": pl.UInt32, "active": pl.UInt32, "kept": pl.Float32, "chance": pl.Float32,
            "rows": pl.List(pl.UInt32), "acts": pl.List(pl.Float32),
        }  # fmt: skip
        return pl.DataFrame(lines, schema=schema)

    def _choose(self, fired: np.ndarray, strength: np.ndarray, count: int) -> list[int]:
        if self.chosen is not None:
            return list(self.chosen)
        fits = (fired >= 2) & (fired <= MOST_OF_ROWS * count)
        best = np.flatnonzero(fits)[np.argsort(-strength[fits], kind="stable")]
        kept = [one for one in self.latents if one < len(fired) and fired[one] > 0]
        more = [int(one) for one in best if int(one) not in kept]
        return (kept + more)[:FEATURES]


def sample_frame(look: Any, shown: Sequence[int]) -> pl.DataFrame:
    """`row, x, x_hat, explained`: each shown row (its place in the probe), its reconstructions one after the other."""
    return pl.DataFrame(
        {
            "row": np.asarray(shown, np.uint32),
            "x": [one.tolist() for one in look.x],
            "x_hat": [one.ravel().tolist() for one in look.x_hat],
            "explained": [one.tolist() for one in look.explained],
        },
        schema={
            "row": pl.UInt32, "x": pl.List(pl.Float32), "x_hat": pl.List(pl.Float32), "explained": pl.List(pl.Float32)
        },
    )  # fmt: skip


def levels_frame(look: Any) -> pl.DataFrame:
    """`k, fvu` of each budget over the probe's rows; k = 0 stands for a rule that sets none."""
    return pl.DataFrame(
        {"k": [k or 0 for k in look.ks], "fvu": look.fvu.tolist()}, schema={"k": pl.UInt32, "fvu": pl.Float32}
    )
