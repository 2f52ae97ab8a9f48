"""Which latents are active only where others are: parents and children, with the chance of finding them by accident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.metrics.rows import CHUNK_ROWS, Coder, Rows, chunks_of, rows_at_a_time

PAIRS = pl.Schema(
    {
        "parent": pl.UInt32,
        "child": pl.UInt32,
        "parent_rows": pl.UInt64,  # rows on which the parent is active
        "child_rows": pl.UInt64,
        "both_rows": pl.UInt64,
        "conditional": pl.Float64,  # P(parent active | child active)
        "base_rate": pl.Float64,  # P(parent active): the conditional by chance
        "lift": pl.Float64,  # conditional / base_rate
        "p_value": pl.Float64,  # of so many rows in common or more, the child's rows being shuffled
        "q_value": pl.Float64,  # Benjamini–Hochberg over all tested pairs
    }
)
BLOCK_ENTRIES = 2**21


@dataclass(frozen=True)
class CoActivity:
    """How often latents are active, alone and together."""

    both: Int[Tensor, "latents latents"]
    """Rows on which both are active; the diagonal is how often each is."""
    latents: Int[Tensor, " latents"]
    """Their numbers in the dictionary, ascending."""
    rows: int

    @property
    def active(self) -> Int[Tensor, " latents"]:
        """Rows on which each latent is active."""
        return self.both.diagonal()


@dataclass(frozen=True)
class Hierarchy:
    """Parent–child pairs, and how many the same search finds where there is nothing to find."""

    pairs: pl.DataFrame
    """Columns of `PAIRS`, by q_value and then lift."""
    found_null: int
    """Pairs found when every pair is replaced by one whose child was shuffled over the rows."""
    tested: int
    """Pairs that were tested: what the q-values are corrected for."""
    rows: int
    fdr: float


@torch.no_grad()
def co_activity(
    dictionary: Coder | Bool[Tensor, "rows d_sae"],
    rows: Rows | None = None,
    *,
    k: int | None = None,
    latents: Sequence[int] | Int[Tensor, " chosen"] | None = None,
    chunk_rows: int | None = None,
) -> CoActivity:
    """Count on how many rows each pair of latents is active together.

    Args:
        dictionary: A dictionary, or what is active `(rows, d_sae)`.
        rows: `(rows, d_in)` or a store, for a dictionary; its length costs no memory.
        k: Active latents per row; None: the trained rule.
        latents: Only these, in any order. None: all; d_sae² counts are held (8 bytes each).
        chunk_rows: Rows encoded at a time; None: what fits.
    """
    if isinstance(dictionary, Tensor):
        if dictionary.ndim != 2 or not len(dictionary):
            raise ShapeError(f"Activity of shape {tuple(dictionary.shape)} was given; expected (rows, d_sae).")
        d_sae, device = dictionary.shape[1], dictionary.device
        block = chunk_rows or CHUNK_ROWS
        parts = (dictionary[first : first + block] != 0 for first in range(0, len(dictionary), block))
    else:
        if rows is None:
            raise ConfigError("A dictionary was given without rows. Pass co_activity(dictionary, store).")
        d_sae, device = dictionary.d_sae, dictionary.device
        block = rows_at_a_time(chunk_rows, dictionary)
        parts = (dictionary.encode(part.to(device), k) != 0 for part in chunks_of(rows, block))
    chosen = torch.arange(d_sae) if latents is None else torch.as_tensor(latents, dtype=torch.long).unique()
    if not len(chosen) or chosen[0] < 0 or chosen[-1] >= d_sae:
        raise ConfigError(f"latents={latents} must be numbers from 0 to {d_sae - 1}.")
    both, total = torch.zeros(len(chosen), len(chosen), dtype=torch.long, device=device), 0
    for part in parts:
        active = part[:, chosen.to(device)].float()
        both += (active.T @ active).long()  # exact: a chunk has far fewer than 2^24 rows
        total += len(part)
    return CoActivity(both.cpu(), chosen, total)


@torch.no_grad()
def parent_child(
    counts: CoActivity,
    *,
    parents: Sequence[int] | None = None,
    children: Sequence[int] | None = None,
    at_least: float = 0.5,
    min_child_rows: int = 10,
    fdr: float = 0.05,
    seed: int = 0,
) -> Hierarchy:
    """Pairs in which the child is active mostly where the parent is, and more than shuffled rows would have it.

    A pair is tested if the parent is active on more rows than the child. Its p-value is exact: shuffling a latent's
    activity over the rows makes the number of common rows hypergeometric, so its tail is the permutation test with
    every permutation. Rows must be exchangeable: tokens of one text are not, so give one row per input there.

    Args:
        counts: From `co_activity`.
        parents: Only these latents as parents, for example those of level 0; None: all.
        children: Only these as children.
        at_least: Least P(parent active | child active).
        min_child_rows: Children active on fewer rows are not tested.
        fdr: Expected share of wrong pairs among those found (Benjamini–Hochberg).
        seed: Of the search without truth, `found_null`.

    Raises:
        ConfigError: a latent that was not counted, or a fraction outside (0, 1].

    Source:
        The conditional against the base rate is the relation of a hierarchy in Bussmann et al. 2025, Matryoshka SAEs,
        arXiv:2503.17547, and Chanin et al. 2024, A is for Absorption, arXiv:2409.14507; Benjamini & Hochberg 1995.
    """
    if not 0 < fdr <= 1 or not 0 < at_least <= 1 or min_child_rows < 1:
        raise ConfigError(
            f"fdr={fdr} and at_least={at_least} must be in (0, 1], min_child_rows={min_child_rows} at least 1."
        )
    mothers, kids = _positions(counts, parents, "parents"), _positions(counts, children, "children")
    active = counts.active
    kids = kids[active[kids] >= min_child_rows]
    found = {"parent": [], "child": [], "both": [], "p": []}
    null_p = []
    tested = 0
    shuffle = np.random.default_rng(seed)
    block = max(1, BLOCK_ENTRIES // max(1, len(kids)))
    for first in range(0, len(mothers), block):
        mother = mothers[first : first + block]
        row, column = (active[mother][:, None] > active[kids][None, :]).nonzero(as_tuple=True)
        mother, child = mother[row], kids[column]
        tested += len(mother)
        both, a, b = counts.both[mother, child], active[mother], active[child]
        p = hypergeometric_tail(both, counts.rows, a, b)
        kept = p <= fdr  # Benjamini–Hochberg takes no larger one
        for name, one in (("parent", mother), ("child", child), ("both", both), ("p", p)):
            found[name].append(one[kept])
        drawn = shuffle.hypergeometric(a.numpy(), (counts.rows - a).numpy(), b.numpy()) if len(a) else np.zeros(0)
        drawn = torch.as_tensor(drawn, dtype=torch.long)
        p = hypergeometric_tail(drawn, counts.rows, a, b)
        # As in the search itself: all p-values take part in the correction, the conditional is asked afterwards.
        null_p.append(torch.stack([p, (drawn / b >= at_least).double()])[:, p <= fdr])
    joined = {name: torch.cat(parts) if parts else torch.zeros(0) for name, parts in found.items()}
    pairs = _pairs(counts, joined, tested=tested)
    pairs = pairs.filter((pl.col("q_value") <= fdr) & (pl.col("conditional") >= at_least))
    null = torch.cat(null_p, dim=1) if null_p else torch.zeros(2, 0)
    found_null = int(((benjamini_hochberg(null[0], tests=tested) <= fdr) & (null[1] > 0)).sum())
    order = pairs.sort(["q_value", "lift", "parent", "child"], descending=[False, True, False, False])
    return Hierarchy(order, found_null=found_null, tested=tested, rows=counts.rows, fdr=fdr)


def hypergeometric_tail(
    both: Int[Tensor, " pairs"], rows: int, a: Int[Tensor, " pairs"], b: Int[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """P(at least `both` of b rows drawn from `rows` without replacement are among a marked ones), float64.

    Where `both` is not above its expectation the answer is 1, an upper bound: such pairs are of no interest and the
    terms of the sum would not fall from the start.
    """
    n, both, a, b = float(rows), both.double(), a.double(), b.double()
    p = torch.ones_like(both)
    above = both > a * b / n
    t, a, b = both[above], a[above], b[above]
    log_first = _log_choose(a, t) + _log_choose(n - a, b - t) - _log_choose(torch.full_like(a, n), b)
    total, term = torch.ones_like(t), torch.ones_like(t)
    while len(t):
        term = term * (a - t) * (b - t) / ((t + 1) * (n - a - b + t + 1))
        total += term
        t = t + 1
        if bool((term <= 1e-15 * total).all()):
            break
    p[above] = (log_first + total.log()).exp().clamp_max(1.0)
    return p


def benjamini_hochberg(p: Float[Tensor, " tests"], *, tests: int | None = None) -> Float[Tensor, " tests"]:
    """q-values: the smallest false discovery rate at which each test would be called.

    Args:
        p: p-values, in any order. If only the smallest are given, say how many tests there were.
        tests: How many there were; None: as many as given.

    Source:
        Benjamini & Hochberg 1995, Controlling the false discovery rate.
    """
    if not len(p):
        return p
    order = p.argsort()
    scaled = p[order] * (tests or len(p)) / torch.arange(1, len(p) + 1, device=p.device)
    falling = scaled.flip(0).cummin(0).values.flip(0).clamp_max(1.0)
    return torch.empty_like(falling).scatter_(0, order, falling)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _positions(counts: CoActivity, latents: Sequence[int] | None, what: str) -> Tensor:
    """Where the latents are in the counts."""
    if latents is None:
        return torch.arange(len(counts.latents))
    wanted = torch.as_tensor(latents, dtype=torch.long)
    place = torch.searchsorted(counts.latents, wanted).clamp_max(len(counts.latents) - 1)
    unknown = wanted[counts.latents[place] != wanted]
    if len(unknown):
        raise ConfigError(f"{what}: latent {int(unknown[0])} was not counted. Pass it to co_activity(latents=…).")
    return place


def _pairs(counts: CoActivity, found: dict[str, Tensor], *, tested: int) -> pl.DataFrame:
    parent, child = found["parent"].long(), found["child"].long()
    a, b, both = counts.active[parent], counts.active[child], found["both"]
    conditional, base = both / b, a / counts.rows
    columns = {
        "parent": counts.latents[parent],
        "child": counts.latents[child],
        "parent_rows": a,
        "child_rows": b,
        "both_rows": both,
        "conditional": conditional,
        "base_rate": base,
        "lift": conditional / base,
        "p_value": found["p"],
        "q_value": benjamini_hochberg(found["p"], tests=max(1, tested)),
    }
    return pl.DataFrame([pl.Series(name, one.numpy()).cast(PAIRS[name]) for name, one in columns.items()])
