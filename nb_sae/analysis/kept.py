"""What the pass over the rows keeps of them: counters, sums, and the rows that stand for a latent.

What was kept of some chunks and of others merges into exactly what one pass over all of them keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from nb_sae.analysis.examples import ActivationGrid, BestOfGroups, IntervalSampler, Ints, rank_in_group
from nb_sae.analysis.latents import latents_frame, median_level, sums_by_level, unused, width_level
from nb_sae.analysis.quality import quality_frame
from nb_sae.analysis.sums import ChunkSums, ChunkTree

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary

_ENTRIES = ("group", "score", "value", "row")


@dataclass(frozen=True)
class Rule:
    """What of a dictionary decides which tables there are."""

    d_sae: int
    sets_k: bool
    """Whether a budget says how many latents of a row are active."""
    budgets: tuple[int, ...]
    """Nested k's; none where nothing is nested by them."""
    widths: tuple[int, ...]
    """Nested prefixes of the dictionary, the last is `d_sae`; none where it is not nested by them."""

    @property
    def ks(self) -> tuple[int | None, ...]:
        """What every line of the `quality` table is at; None: a rule that sets no number of latents per row."""
        return self.budgets if self.sets_k else (None,)


class Kept:
    """Everything the tables are made of. Memory is latents × (examples + levels + bins)."""

    def __init__(self, rule: Rule, positions: int, *, top: int, per_interval: int, seed: int) -> None:
        self.rule = rule
        d_sae = rule.d_sae
        self.active = np.zeros(d_sae, np.int64)
        self.maxima = np.zeros(d_sae, np.float32)
        self.grid = ActivationGrid(d_sae)
        self.tree = ChunkTree()
        self._positions = positions
        self._strongest = BestOfGroups(d_sae, top)
        self._sampler = IntervalSampler(d_sae, per_interval, seed=seed) if per_interval else None
        # A rule that sets no k may keep more latents of a row than the largest budget: they count to the last level.
        self._levels = max(1, len(rule.budgets))
        in_budgets = np.searchsorted(rule.budgets, np.arange(d_sae), side="right")
        self._level_of_rank = np.minimum(in_budgets, self._levels - 1)

    def add(
        self,
        number: int,
        first: int,
        rows: torch.Tensor,
        targets: torch.Tensor,
        ids: pl.DataFrame,
        dictionary: Dictionary,
    ) -> None:
        """Chunk `number`, whose first row is row `first` of the store. It ends where a context ends.

        `targets` are what reconstructions are compared with: the rows themselves, but for a transcoder.
        """
        values, indices, x_hats = dictionary.reconstruct_levels(rows)
        counts = [float((values[:, :k] > 0).sum()) for k in self.rule.ks]
        positive = values.cpu().numpy() > 0
        row, rank = np.nonzero(positive)
        value, latent = values.cpu().numpy()[positive], indices.cpu().numpy()[positive]
        by_level = sums_by_level(
            latent, value, self._level_of_rank[rank], d_sae=self.rule.d_sae, levels=self._levels
        )  # fmt: skip
        self.tree.add(number, ChunkSums.of(targets, [x_hat.cpu() for x_hat in x_hats], counts, by_level))
        self.active += np.bincount(latent, minlength=self.rule.d_sae)
        np.maximum.at(self.maxima, latent, value)
        input_ids, tokens = ids["input_id"].to_numpy(), ids["token"].to_numpy()
        self._keep_strongest(first, row, latent, value, _contexts(input_ids, tokens, self._positions))
        shift = self.grid.grow(self.maxima)
        bins = self.grid.bins(latent, value)
        self.grid.add(latent, bins)
        if self._sampler is not None:
            self._sampler.regrid(shift)
            # By identity, not by number: the same rows give the same sample in a view and in the whole store.
            identity = (input_ids.astype(np.int64) << 32) + tokens
            self._sampler.add(latent, bins, value, row + first, identity[row])

    def merge(self, other: Kept) -> None:
        """Take over what was kept of other chunks. `other` is used up."""
        self.active += other.active
        self.maxima = np.maximum(self.maxima, other.maxima)
        mine, theirs = self.grid.grow_to(other.grid.exponent), other.grid.grow_to(self.grid.exponent)
        self.grid.counts += other.grid.counts
        if self._sampler is not None and other._sampler is not None:
            self._sampler.regrid(mine)
            other._sampler.regrid(theirs)
            self._sampler.merge(other._sampler)
        self._strongest.merge(other._strongest)
        self.tree.merge(other.tree.nodes.items())

    def _keep_strongest(self, first: int, row: Ints, latent: Ints, value: Any, context: Ints) -> None:
        """Offer the strongest row of each (latent, context); the first one where rows are equally strong."""
        able = -value.astype(np.float64) < self._strongest.threshold[latent]
        row, latent, value = row[able], latent[able], value[able]
        order = np.lexsort((row, -value, context[row], latent))
        pair = latent[order] * (int(context[-1]) + 1) + context[row[order]]
        order = order[np.r_[True, pair[1:] != pair[:-1]]] if len(order) else order
        self._strongest.add(latent[order], -value[order].astype(np.float64), value[order], row[order] + first)

    # ── the tables ────────────────────────────────────────────────────────────────────────────────────────────

    def chosen(self) -> pl.DataFrame:
        """`latent, kind, interval, rank, row, act` of every example, strongest first and then by interval."""
        latent, _, value, row = self._strongest.entries()
        strongest = _example_rows(latent, "top", np.full(len(latent), -1), rank_in_group(latent), row, value)
        if self._sampler is None:
            return strongest
        s = self._sampler.samples(self.grid, self.maxima)
        sampled = _example_rows(s["latent"], "interval", s["interval"], s["rank"], s["row"], s["value"])
        return pl.concat([strongest, sampled]).sort("latent", "kind", "interval", "rank", maintain_order=True)

    def latents(self) -> pl.DataFrame:
        """The `latents` table."""
        sums = self.tree.total()
        level = width_level(self.rule.widths) if self.rule.widths else median_level(sums.by_level)
        return latents_frame(sums.rows, self.active, self.maxima, sums.by_level.sum(1), level, self.grid)

    def quality(self) -> pl.DataFrame:
        """The `quality` table."""
        sums = self.tree.total()
        never = unused(sums.by_level) if self.rule.sets_k else [float((self.active == 0).mean())]
        return quality_frame(self.rule.ks, sums, never)

    # ── as arrays ─────────────────────────────────────────────────────────────────────────────────────────────

    def arrays(self) -> dict[str, NDArray]:
        """All of it, for a file."""
        found: dict[str, NDArray] = {
            "active": self.active, "maxima": self.maxima, "exponent": self.grid.exponent, "counts": self.grid.counts,
        }  # fmt: skip
        entries = {"strongest": self._strongest.entries()}
        if self._sampler is not None:
            entries["sample"] = self._sampler.entries()
        for name, columns in entries.items():
            found |= {f"{name}.{column}": array for column, array in zip(_ENTRIES, columns, strict=True)}
        for (height, number), sums in self.tree.nodes.items():
            found |= {f"node.{height}.{number}.{name}": array for name, array in sums.arrays().items()}
        return found

    def restore(self, arrays: dict[str, NDArray]) -> None:
        """The inverse of `arrays`, into an empty one."""
        self.active, self.maxima = arrays["active"], arrays["maxima"]
        self.grid.exponent, self.grid.counts = arrays["exponent"], arrays["counts"]
        group, score, value, row = (arrays[f"strongest.{column}"] for column in _ENTRIES)
        self._strongest.add(group, score, value, row)
        self._strongest.settle(force=True)
        if self._sampler is not None:
            group, score, value, row = (arrays[f"sample.{column}"] for column in _ENTRIES)
            self._sampler.restore((group, score, value, row))
        nodes: dict[tuple[int, int], dict[str, NDArray]] = {}
        for name in arrays:
            if name.startswith("node."):
                _, height, number, field = name.split(".")
                nodes.setdefault((int(height), int(number)), {})[field] = arrays[name]
        self.tree.merge((key, ChunkSums.from_arrays(fields)) for key, fields in nodes.items())


def _example_rows(latent: Any, kind: str, interval: Any, rank: Any, row: Any, value: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "latent": latent.astype(np.uint32),
            "kind": pl.Series([kind] * len(latent), dtype=pl.Enum(["top", "interval"])),
            "interval": interval.astype(np.int8),
            "rank": rank.astype(np.uint16),
            "row": row.astype(np.int64),
            "act": value.astype(np.float32),
        }
    )


def _contexts(input_ids: Ints, tokens: Ints, positions: int) -> Ints:
    """A running number of the context of each row of a chunk."""
    context = tokens // max(1, positions)
    changed = (input_ids[1:] != input_ids[:-1]) | (context[1:] != context[:-1])
    return np.r_[0, np.cumsum(changed)].astype(np.int64)
