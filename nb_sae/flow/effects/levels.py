"""The levels of a Matryoshka dictionary as a tree: which finer latents are active only where a coarser one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from numpy import ndarray as Array

from nb_sae.analysis.bundle import Analysis
from nb_sae.analysis.scan import analyze_part
from nb_sae.errors import ConfigError
from nb_sae.flow.schema import TREE
from nb_sae.flow.settings import check_whole
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import latent_number, listed
from nb_sae.sae.metrics.hierarchy import CoActivity, co_activity, parent_child
from nb_sae.sae.metrics.rows import rows_at_a_time
from nb_sae.store.view import StoredRows
from nb_sae.types import ActivationSource

MOST_LATENTS = 4096
"""Latents whose pairs are counted; each pair of them takes 8 bytes, 134 MB together."""
LEVELS = pl.Schema({"latent": pl.UInt32, "level": pl.UInt8, "rows": pl.UInt64})


@dataclass(frozen=True, repr=False)
class LevelTree:
    """Parents and children across levels, and how many pairs the same search finds where there are none."""

    frame: pl.DataFrame
    """`schema.TREE`: every pair found, by child and then by level of the parent, the nearest first. A child may have
    several parents."""
    levels: pl.DataFrame
    """`latent, level, rows`: the latents that were compared, and on how many of the compared rows each is active."""
    found_null: int
    """Pairs found where there are none, see `about["null"]`: when the activity of every child is shuffled over the
    rows; of "all" rows of texts or pictures, when it is shifted by half of the rows, so that what follows from
    neighbouring rows being alike is found by chance too."""
    tested: int
    """Pairs that were tested."""
    about: Mapping[str, Any]
    """`rows` that were compared and by which rule (`which`), `budgets`, `widths`, `latents` left out, `seed`."""

    @property
    def tree(self) -> pl.DataFrame:
        """One parent per child: of the nearest coarser level, the one with the largest conditional, then lift."""
        order = ["child", "parent_level", "conditional", "lift", "parent"]
        ranked = self.frame.sort(order, descending=[False, True, True, True, False])
        return ranked.unique("child", keep="first", maintain_order=True)

    def __repr__(self) -> str:
        return (
            f"LevelTree({self.frame.height:,} pairs of {self.levels.height:,} latents in "
            f"{self.levels['level'].n_unique()} levels, {self.found_null} by chance; {self.about['rows']:,} rows)"
        )


@torch.no_grad()
def level_tree(
    dictionary: Dictionary,
    store: StoredRows,
    *,
    analysis: Any = None,
    latents: Sequence[int] | None = None,
    which: Literal["one per input", "all"] | None = None,
    at_least: float = 0.5,
    min_child_rows: int = 10,
    fdr: float = 0.05,
    k: int | None = None,
    seed: int = 0,
) -> LevelTree:
    """Latents of finer levels that are active mostly where one of a coarser level is, and more than by chance.

    The level of a latent is that of `Analysis.latents`: the first of nested widths that holds it, else the
    activation-weighted median of the first budget that selects it. A pair is tested where the parent is on a coarser
    level and active on more rows than the child; its p-value is exact for rows that are independent. q-values are over
    all pairs of a child level.

    Args:
        dictionary: With several budgets or nested widths.
        store: Rows of its site.
        analysis: Where the levels are read; None: one more pass over the rows finds them.
        latents: Only these; None: of those active on `min_child_rows` rows or more, the `MOST_LATENTS` most active.
        which: Rows that are compared. "one per input": a row of each input by chance, so that rows are independent; it
            takes thousands of inputs. "all": every row, which makes p-values too small where the rows of an input go
            together: compare with `found_null`. None: "all" of a site with one row per input, else "one per input".
        at_least: Least P(parent active | child active).
        min_child_rows: Children active on fewer of the compared rows are not tested.
        fdr: Expected share of wrong pairs among those found.
        k: Active latents per row; None: the trained rule.
        seed: Of the rows and of the null.

    Raises:
        ConfigError: a dictionary with one level, an analysis of another dictionary, or a fraction outside (0, 1].
        StoreError: rows of another model, site, width or scale.

    Source:
        Bussmann et al. 2025, Matryoshka SAEs, arXiv:2503.17547 (parents and children by co-activation).
    """
    check_whole(seed=seed)
    if not isinstance(dictionary, Dictionary) or not isinstance(store, ActivationSource):
        raise ConfigError(
            f"Got a {type(dictionary).__name__} and a {type(store).__name__}; expected a Dictionary and a store of "
            "rows of its site: level_tree(dictionary, store)."
        )
    if which not in (None, "all", "one per input"):
        raise ConfigError(f"which={which!r}: use 'all' or 'one per input'.")
    if len(dictionary.widths or ()) < 2 and len(dictionary.budgets or ()) < 2:
        raise ConfigError(
            "This dictionary has one level, so there is no tree. Train one with several budgets or widths: "
            "SAEConfig.msae(…)."
        )
    dictionary.check(store)
    known = _levels(dictionary, store, analysis)
    chosen = _chosen(known, latents, min_child_rows)
    which = which or ("all" if _one_row_each(store) else "one per input")
    numbers = np.arange(len(store)) if which == "all" else _one_per_input(store, seed)
    counts = _counted(dictionary, store, numbers, chosen, k)
    shifted = None
    if which == "all" and not _one_row_each(store):
        shifted = _shifted(dictionary, store, counts, k)
    level = known["level"].to_numpy()[counts.latents.numpy()]
    found, found_null, tested = [], 0, 0
    for child_level in sorted({*level.tolist()})[1:]:
        coarser, these = (
            counts.latents[torch.from_numpy(mask)] for mask in (level < child_level, level == child_level)
        )
        asked: dict[str, Any] = {"parents": coarser.tolist(), "children": these.tolist(), "at_least": at_least}
        asked |= {"min_child_rows": min_child_rows, "fdr": fdr, "seed": seed}
        one = parent_child(counts, **asked)
        found.append(one.pairs)
        found_null += one.found_null if shifted is None else parent_child(shifted, **asked).pairs.height
        tested += one.tested
    levels = pl.DataFrame(
        {"latent": counts.latents.numpy(), "level": level, "rows": counts.active.numpy()}, schema_overrides=LEVELS
    )
    about = {
        "rows": counts.rows,
        "which": which,
        "null": "shuffled" if shifted is None else "shifted by half of the rows",
        "budgets": list(dictionary.budgets or ()),
        "widths": list(dictionary.widths or ()),
        "latents_left_out": dictionary.d_sae - levels.height,
        "fdr": fdr,
        "seed": seed,
    }
    return LevelTree(_tree(found, levels), levels, found_null, tested, about)


def _levels(dictionary: Dictionary, store: StoredRows, analysis: Any) -> pl.DataFrame:
    """`latent, level, active_rows` of every latent."""
    if analysis is None:
        part = analyze_part(dictionary, store, part=(0, 1), top=1, per_interval=0, progress=False)
        return part.kept.latents()
    if not isinstance(analysis, Analysis):
        raise ConfigError(f"analysis is a {type(analysis).__name__}; expected what ns.analyze gives.")
    if analysis.d_sae != dictionary.d_sae or tuple(analysis.budgets) != tuple(dictionary.budgets or ()):
        raise ConfigError(
            f"The analysis is of {analysis.d_sae} latents with budgets {tuple(analysis.budgets)}, the dictionary has "
            f"{dictionary.d_sae} with {tuple(dictionary.budgets or ())}. Give the analysis of this dictionary."
        )
    return analysis.latents.sort("latent")


def _chosen(known: pl.DataFrame, latents: Sequence[int] | None, min_child_rows: int) -> list[int]:
    if latents is not None:
        return sorted({latent_number(one, None, known.height) for one in listed(latents)})
    used = known.filter(pl.col("active_rows") >= min_child_rows)
    return sorted(used.sort("active_rows", descending=True)["latent"].head(MOST_LATENTS).to_list())


def _one_row_each(store: StoredRows) -> bool:
    return store.rows["input_id"].n_unique() == len(store)


def _one_per_input(store: StoredRows, seed: int) -> Int[Array, " inputs"]:
    """A row of each input, every one as likely."""
    order = np.random.default_rng(seed).permutation(len(store))
    _, first = np.unique(store.rows["input_id"].to_numpy()[order], return_index=True)
    return np.sort(order[first])


def _counted(
    dictionary: Dictionary, store: StoredRows, numbers: Int[Array, " rows"], latents: list[int], k: int | None
) -> CoActivity:
    block = rows_at_a_time(None, dictionary)
    total = co_activity(dictionary, store[numbers[:block]], k=k, latents=latents)
    for first in range(block, len(numbers), block):
        total.both.add_(co_activity(dictionary, store[numbers[first : first + block]], k=k, latents=latents).both)
    return CoActivity(total.both, total.latents, len(numbers))


def _shifted(dictionary: Dictionary, store: StoredRows, counts: CoActivity, k: int | None) -> CoActivity:
    """Rows on which a latent is active and another one is half of all rows later: together by chance alone.

    How often each is active, and how alike neighbouring rows are, stays as it is.
    """
    half, rows, latents = len(store) // 2, len(store), counts.latents
    both = torch.zeros_like(counts.both)
    block = rows_at_a_time(None, dictionary)
    for first in range(0, rows, block):
        here = np.arange(first, min(first + block, rows))
        active, later = (
            dictionary.encode(store[numbers].to(dictionary.device), k).cpu()[:, latents] != 0
            for numbers in (here, (here + half) % rows)
        )
        both += (active.float().T @ later.float()).long()
    both.diagonal().copy_(counts.active)
    return CoActivity(both, latents, rows)


def _tree(found: list[pl.DataFrame], levels: pl.DataFrame) -> pl.DataFrame:
    if not found:
        return TREE.to_frame()
    level = levels.select("latent", "level")
    return (
        pl.concat(found)
        .join(level.rename({"latent": "parent", "level": "parent_level"}), on="parent")
        .join(level.rename({"latent": "child", "level": "child_level"}), on="child")
        .select(pl.col(name).cast(kind) for name, kind in TREE.items())
        .sort(["child", "parent_level", "conditional", "parent"], descending=[False, True, True, False])
    )
