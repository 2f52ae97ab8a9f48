"""Scores of pairs of sites by the correlation of activations on the same rows, and the same with shuffled rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.flow.links.cosines import drawn_p
from nb_sae.flow.links.matching import Forward, Nearest, largest_of
from nb_sae.flow.links.routes import Route
from nb_sae.flow.links.scores import Chance, Scored, Thresholds, threshold_of
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.metrics.rows import rows_at_a_time

MEMORY_BYTES = 512 * 2**20
"""Of the sums of products that one pass over the rows holds. What does not fit waits for another pass."""
BLOCK_BYTES = 32 * 2**20
"""Of the sums from which correlations are made at a time."""
PAIRS_AT_A_TIME = 2**16
"""Products of two active latents that are added at a time; more of them do not stay in the cache."""

Codes = tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]


@torch.no_grad()
def by_correlation(
    ways: Sequence[Route],
    dictionaries: Mapping[str, Dictionary],
    stores: Mapping[str, Any],
    *,
    top: int,
    thresholds: Thresholds,
    seed: int,
    block: int | None,
    progress: bool,
) -> list[Scored]:
    """Pearson's correlation of every target latent with every source latent, exactly; the `top` largest are kept.

    Sums of z_i z_j come from the active latents alone. They are held for `block` targets of a pair of sites at a time,
    and as many such blocks as fit `MEMORY_BYTES` share a pass over the rows: memory does not grow with the rows, and
    two sites of 4,096 latents take one pass.

    The null is the largest correlation of each target latent with the sources when the rows of a chunk (4,096 rows,
    fewer for more than 2,048 latents) are shuffled. That undoes the likeness of neighbouring tokens too, so it is
    exceeded more easily than by unrelated latents; what differs from chunk to chunk it keeps.

    Args:
        ways: Pairs of sites.
        dictionaries: Of every site.
        stores: Of every site, the same rows everywhere.
        top: Sources that are kept.
        thresholds: "null" and "paper" are the 99.9th percentile of the null (the paper fixes no correlation), or
            numbers.
        seed: Of the shuffling.
        block: Target latents at a time; None: as many as fit.
        progress: Show how far it is.
    """
    parts = [part for way in ways for part in _parts(way, dictionaries, block)]
    passes = list(_packed(parts, dictionaries))
    rows = len(next(iter(stores.values())))
    found = {way: _Found(len(dictionaries[way.target].W_dec), len(dictionaries[way.source].W_dec), top) for way in ways}
    with progress_bar(rows * len(passes), "rows", "correlating", enabled=progress) as bar:
        for chosen in passes:
            moments = _Moments(chosen, dictionaries, seed)
            for first, codes in _codes(chosen, dictionaries, stores):
                moments.add(first, codes)
                bar.update(len(next(iter(codes.values()))[0]))
            for way, first, real, shuffled in moments.correlations():
                found[way].take(first, real, shuffled)
    return [found[way].scored(way, dictionaries[way.target].d_in, thresholds) for way in ways]


@dataclass(frozen=True)
class _Part:
    """Some targets of a pair of sites."""

    way: Route
    first: int
    stop: int


class _Moments:
    """Sums over the rows: of each latent of each site, and of products for the targets of each part."""

    def __init__(self, parts: Sequence[_Part], dictionaries: Mapping[str, Dictionary], seed: int) -> None:
        self.parts, self.seed, self.rows = parts, seed, 0
        sites = dict.fromkeys(site for part in parts for site in (part.way.source, part.way.target))
        self.sums = {site: torch.zeros(2, dictionaries[site].d_sae, dtype=torch.double) for site in sites}
        self.products = [
            torch.zeros(2, part.stop - part.first, dictionaries[part.way.source].d_sae, dtype=torch.double)
            for part in parts
        ]

    def add(self, first: int, codes: Mapping[str, Codes]) -> None:
        rows = len(next(iter(codes.values()))[0])
        self.rows += rows
        for site, (values, numbers) in codes.items():
            self.sums[site][0].index_add_(0, numbers.flatten(), values.flatten().double())
            self.sums[site][1].index_add_(0, numbers.flatten(), values.flatten().double().square())
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + first))
        for part, (real, shuffled) in zip(self.parts, self.products, strict=True):
            target, (values, numbers) = codes[part.way.target], codes[part.way.source]
            _add_products(real, target, (values, numbers), part)
            _add_products(shuffled, target, (values[order], numbers[order]), part)

    def correlations(self) -> Iterator[tuple[Route, int, Tensor, Tensor]]:
        """Route, first target and correlations of some targets, as they are and shuffled; 0 where a latent never
        changes. A few targets at a time: what is made of the sums would be several times as large.
        """
        for part, products in zip(self.parts, self.products, strict=True):
            (mean_t, spread_t), (mean_s, spread_s) = (self._spread(site) for site in (part.way.target, part.way.source))
            size = max(1, BLOCK_BYTES // (16 * len(mean_s)))
            for start in range(0, part.stop - part.first, size):
                some = products[:, start : start + size]
                here = slice(part.first + start, part.first + start + some.shape[1])
                covariance = some / self.rows - mean_t[here, None] * mean_s
                scale = spread_t[here, None] * spread_s
                real, shuffled = torch.where(scale > 0, covariance / scale, 0.0).float().clamp(-1, 1)
                yield part.way, here.start, real, shuffled

    def _spread(self, site: str) -> tuple[Tensor, Tensor]:
        mean, square = self.sums[site] / self.rows
        variance = square - mean.square()
        # Rounding leaves a trace of a variance where every value is the same.
        return mean, torch.where(variance > 1e-12 * square, variance, 0.0).sqrt()


class _Found:
    """The largest correlations of one pair of sites, as its parts come in."""

    def __init__(self, targets: int, sources: int, top: int) -> None:
        self.top = min(top, sources)
        self.scores, self.sources = torch.zeros(targets, self.top), torch.zeros(targets, self.top, dtype=torch.long)
        self.forward, self.null = Forward(sources, torch.device("cpu")), torch.zeros(targets)

    def take(self, first: int, real: Tensor, shuffled: Tensor) -> None:
        rows = slice(first, first + len(real))
        self.sources[rows] = largest_of(real, self.top)
        self.scores[rows] = real.gather(1, self.sources[rows])
        self.null[rows] = shuffled.amax(-1)
        self.forward.look(real, first)

    def scored(self, way: Route, d_in: int, thresholds: Thresholds) -> Scored:
        # A latent that is never active has a correlation of 0 with everything and says nothing about chance.
        alive = self.null[self.null > 0]
        draws = (alive if len(alive) else self.null).sort().values
        threshold, chosen_by = threshold_of(way, draws, thresholds, paper=None)
        nearest = Nearest(self.scores, self.sources, self.forward.best, self.forward.targets)
        return Scored(
            route=way,
            d_in=d_in,
            nearest=nearest,
            chance=Chance(draws, None, partial(drawn_p, draws, len(self.forward.best))),
            paper=None,
            threshold=threshold,
            chosen_by=chosen_by,
        )


def _parts(way: Route, dictionaries: Mapping[str, Dictionary], block: int | None) -> Iterator[_Part]:
    targets, sources = dictionaries[way.target].d_sae, dictionaries[way.source].d_sae
    size = block or max(1, MEMORY_BYTES // (16 * sources))
    for first in range(0, targets, size):
        yield _Part(way, first, min(first + size, targets))


def _packed(parts: Sequence[_Part], dictionaries: Mapping[str, Dictionary]) -> Iterator[list[_Part]]:
    chosen, held = [], 0
    for part in parts:
        needs = 16 * (part.stop - part.first) * dictionaries[part.way.source].d_sae
        if chosen and held + needs > MEMORY_BYTES:
            yield chosen
            chosen, held = [], 0
        chosen.append(part)
        held += needs
    yield chosen


def _codes(
    parts: Sequence[_Part], dictionaries: Mapping[str, Dictionary], stores: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Codes]]]:
    """Active latents of every site that the parts need, a chunk of rows at a time."""
    sites = dict.fromkeys(site for part in parts for site in (part.way.source, part.way.target))
    size = rows_at_a_time(None, *(dictionaries[site] for site in sites))
    for first, stop in next(stores[site] for site in sites).chunk_spans(size):
        coded = {site: dictionaries[site].encode(stores[site][first:stop], sparse=True) for site in sites}
        yield first, {site: (values.cpu(), numbers.cpu()) for site, (values, numbers) in coded.items()}


def _add_products(total: Float[Tensor, "block sources"], target: Codes, source: Codes, part: _Part) -> None:
    """Add z_target z_source of every row, from the active latents."""
    count = total.shape[1]
    step = max(1, PAIRS_AT_A_TIME // (target[0].shape[1] * source[0].shape[1]))
    for values, numbers, other, others in zip(
        *(one.split(step) for one in (*target, *source)), strict=True
    ):  # fmt: skip
        inside = (numbers >= part.first) & (numbers < part.stop)
        values = torch.where(inside, values, 0.0)
        places = torch.where(inside, numbers - part.first, 0)[:, :, None] * count + others[:, None, :]
        products = values.double()[:, :, None] * other.double()[:, None, :]
        total.view(-1).index_add_(0, places.flatten(), products.flatten())
