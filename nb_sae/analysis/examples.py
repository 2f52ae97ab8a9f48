"""Which rows stand for a latent: the strongest ones exactly, and a uniform sample of every strength.

Memory is bounded by latents × examples. Both keepers rest on one structure that keeps the best few of each group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

INTERVALS = 10
"""Equal-width intervals of activation between 0 and a latent's maximum."""
FINE_BINS = 64
"""Bins of the activation grid; between 32 and 64 of them lie below a latent's maximum."""


class BestOfGroups:
    """The `keep` entries with the lowest score in each of many groups, from entries that come in any order."""

    def __init__(self, groups: int, keep: int) -> None:
        self.keep = keep
        self.threshold = np.full(groups, np.inf)
        """Score above which an entry of the group cannot be kept; finite once the group is full."""
        self._group = np.empty(0, np.int64)
        self._score = np.empty(0)
        self._value = np.empty(0, np.float32)
        self._row = np.empty(0, np.int64)
        self._pending: list[tuple[Ints, Floats, NDArray[np.float32], Ints]] = []
        self._pending_size = 0

    def add(self, group: Ints, score: Floats, value: NDArray[np.float32], row: Ints) -> None:
        """Offer entries; those that cannot be kept are dropped at once."""
        able = score < self.threshold[group]
        if not able.any():
            return
        self._pending.append((group[able], score[able], value[able], row[able]))
        self._pending_size += int(able.sum())
        if self._pending_size > max(1 << 18, len(self._group)):
            self.settle()

    def regroup(self, group: Ints, threshold: Floats) -> None:
        """Give the kept entries (in the order of `entries`) new groups; groups that merge keep their best."""
        self._group, self.threshold = group, threshold
        self.settle(force=True)

    def settle(self, *, force: bool = False) -> None:
        """Merge what is pending."""
        if not self._pending and not force:
            return
        parts = [(self._group, self._score, self._value, self._row), *self._pending]
        group, score, value, row = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._pending, self._pending_size = [], 0
        order = np.lexsort((row, score, group))
        group = group[order]
        rank = rank_in_group(group)
        kept = rank < self.keep
        order, group = order[kept], group[kept]
        self._group, self._score, self._value, self._row = group, score[order], value[order], row[order]
        last = np.flatnonzero(rank[kept] == self.keep - 1)
        self.threshold[group[last]] = self._score[last]

    def merge(self, other: BestOfGroups) -> None:
        """Take over the entries of another keeper of the same groups, in whatever order the two were filled."""
        # Not by `add`: it drops a tie with the threshold, which here may be the earlier row.
        self._pending.append(other.entries())
        self.settle(force=True)

    def entries(self) -> tuple[Ints, Floats, NDArray[np.float32], Ints]:
        """`group, score, value, row`, by group and then by score."""
        self.settle()
        return self._group, self._score, self._value, self._row


class ActivationGrid:
    """Bins of equal width from 0 to a power of two above each latent's maximum; bins merge in pairs as it grows."""

    def __init__(self, d_sae: int) -> None:
        self.exponent = np.full(d_sae, -1024, np.int64)
        """The grid of a latent ends at 2^exponent."""
        self.counts = np.zeros((d_sae, FINE_BINS), np.int64)

    def grow(self, maxima: NDArray[np.float32]) -> Ints:
        """Make room for new maxima. Gives, per latent, by how many powers of two its grid grew."""
        return self.grow_to(np.where(maxima > 0, np.frexp(maxima.astype(np.float64))[1], -1024))

    def grow_to(self, exponent: Ints) -> Ints:
        """Make room up to 2^exponent of each latent. Gives, per latent, by how many powers of two its grid grew."""
        shift = np.maximum(exponent - self.exponent, 0)
        grown = np.flatnonzero(shift)
        for latent in grown:
            old, by = self.counts[latent], min(int(shift[latent]), 63)
            merged = np.bincount(np.arange(FINE_BINS) >> by, weights=old, minlength=FINE_BINS)
            self.counts[latent] = merged.astype(np.int64)
        self.exponent = self.exponent + shift
        return shift

    def bins(self, latent: Ints, value: NDArray[np.float32]) -> Ints:
        """The bin of each activation, 0 … FINE_BINS − 1."""
        position = np.ldexp(value.astype(np.float64), -self.exponent[latent]) * FINE_BINS
        return np.minimum(position.astype(np.int64), FINE_BINS - 1)

    def add(self, latent: Ints, bins: Ints) -> None:
        """Count activations."""
        flat = np.bincount(latent * FINE_BINS + bins, minlength=self.counts.size)
        self.counts += flat.reshape(self.counts.shape)

    def histogram(self, latent: int) -> tuple[list[int], float]:
        """Counts up to the last filled bin, and the right edge of that bin."""
        filled = np.flatnonzero(self.counts[latent])
        if len(filled) == 0:
            return [], 0.0
        stop = int(filled[-1]) + 1
        return self.counts[latent, :stop].tolist(), float(np.ldexp(stop / FINE_BINS, int(self.exponent[latent])))


class IntervalSampler:
    """A seeded uniform sample from each of ten equal-width intervals of activation, without knowing the maximum.

    Each activation has a pseudo-random priority that depends on (seed, identity of the row, latent) alone. The lowest
    of every fine bin are kept; an interval's sample is the lowest priorities of the bins it overlaps, as far down as
    all of these bins are known completely. It is therefore exactly uniform, and the same whatever the order of the rows
    and however they were divided; where a sparse interval shares a bin with a crowded one it can be smaller than asked,
    never biased.
    """

    def __init__(self, d_sae: int, per_interval: int, *, seed: int) -> None:
        self._per_interval = per_interval
        self._seed = seed
        self._best = BestOfGroups(d_sae * FINE_BINS, max(8, 4 * per_interval))

    def regrid(self, shift: Ints) -> None:
        """Follow a grid that grew."""
        if not shift.any():
            return
        group, _, _, _ = self._best.entries()
        latent, fine = np.divmod(group, FINE_BINS)
        by = np.minimum(shift, 63)
        old = self._best.threshold.reshape(-1, FINE_BINS)
        threshold = np.full_like(old, np.inf)
        new_bin = np.arange(FINE_BINS)[None, :] >> by[:, None]
        np.minimum.at(threshold, (np.arange(len(old))[:, None], new_bin), old)
        merged = np.asarray(latent * FINE_BINS + (fine >> by[latent]), dtype=np.int64)
        self._best.regroup(merged, threshold.ravel())

    def add(
        self, latent: Ints, bins: Ints, value: NDArray[np.float32], row: Ints, identity: Ints | None = None
    ) -> None:
        """Offer activations with their bins. `identity` is what the priority goes by; None: the row's number."""
        score = priority(self._seed, row if identity is None else identity, latent)
        self._best.add(latent * FINE_BINS + bins, score, value, row)

    def merge(self, other: IntervalSampler) -> None:
        """Take over the entries of another sampler on the same grid."""
        self._best.merge(other._best)

    def entries(self) -> tuple[Ints, Floats, NDArray[np.float32], Ints]:
        """`latent · FINE_BINS + bin, priority, value, row` of everything kept."""
        return self._best.entries()

    def restore(self, entries: tuple[Ints, Floats, NDArray[np.float32], Ints]) -> None:
        """Offer what `entries` of a saved sampler gave."""
        self._best.add(*entries)
        self._best.settle(force=True)

    def samples(self, grid: ActivationGrid, maxima: NDArray[np.float32]) -> dict[str, NDArray]:
        """`latent, interval, rank, value, row` of every sampled activation, from weak to strong intervals."""
        group, score, value, row = self._best.entries()
        latent = group // FINE_BINS
        top = maxima[latent].astype(np.float64)
        interval = np.minimum((value / top * INTERVALS).astype(np.int64), INTERVALS - 1)
        known = self._known(grid, maxima)
        sure = score <= known[latent, interval]
        latent, interval, score, value, row = (a[sure] for a in (latent, interval, score, value, row))
        key = latent * INTERVALS + interval
        order = np.lexsort((score, key))
        rank = rank_in_group(key[order])
        order, rank = order[rank < self._per_interval], rank[rank < self._per_interval]
        columns = {"latent": latent, "interval": interval, "value": value, "row": row}
        return {name: column[order] for name, column in columns.items()} | {"rank": rank}

    def _known(self, grid: ActivationGrid, maxima: NDArray[np.float32]) -> Floats:
        """`(d_sae, INTERVALS)`: the priority down to which each interval's activations are all kept."""
        threshold = self._best.threshold.reshape(-1, FINE_BINS)
        width = np.ldexp(1.0 / FINE_BINS, grid.exponent)[:, None]
        edges = maxima.astype(np.float64)[:, None] * np.arange(INTERVALS + 1)[None, :] / INTERVALS
        known = np.full((len(maxima), INTERVALS), np.inf)
        for fine in range(FINE_BINS):
            overlaps = (edges[:, :-1] <= (fine + 1) * width) & (edges[:, 1:] >= fine * width)
            known = np.where(overlaps, np.minimum(known, threshold[:, fine, None]), known)
        return known


def rank_in_group(group: Ints) -> Ints:
    """Position of each entry inside its run of equal values; `group` is sorted."""
    if len(group) == 0:
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))


def priority(seed: int, row: Ints, latent: Ints) -> Floats:
    """A pseudo-random number in [0, 1) for each (seed, row, latent).

    Source:
        The finaliser of splitmix64 (Steele, Lea & Flood 2014).
    """
    with np.errstate(over="ignore"):
        x = row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + latent.astype(np.uint64)
        x += np.uint64((seed * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64)
        for _ in range(2):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
