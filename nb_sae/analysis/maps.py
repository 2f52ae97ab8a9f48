"""The activation of a latent at every token around an example, for the rows that were chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from nb_sae.analysis.examples import Ints
from nb_sae.analysis.schema import EXAMPLES
from nb_sae.sae.sparsity import to_dense

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary
    from nb_sae.types import ActivationSource

DENSE_BYTES = 64 * 2**20
"""Size of the block of dense latents that is held at a time."""


def example_frame(
    dictionary: Dictionary, store: ActivationSource, chosen: pl.DataFrame, chunk_starts: Sequence[int]
) -> pl.DataFrame:
    """The `examples` table: `chosen` (latent, kind, interval, rank, row, act) with identity and map of each row.

    Only the contexts of chosen rows are read again. `chunk_starts` are rows at which a context begins.
    """
    rows = chosen["row"].to_numpy()
    latents = chosen["latent"].to_numpy()
    maps: list[np.ndarray] = [np.empty(0)] * len(rows)
    tokens: list[np.ndarray] = [np.empty(0)] * len(rows)
    input_ids = np.zeros(len(rows), np.uint32)
    peaks = np.zeros(len(rows), np.uint32)
    by_row = np.argsort(rows, kind="stable")
    for first, ids, span, members in _spans(store, rows, by_row, chunk_starts, dictionary.d_sae):
        start, stop = span
        values, indices = dictionary.encode(store[start:stop], sparse=True)
        dense = to_dense(values, indices, dictionary.d_sae).cpu().numpy()
        id_column, token_column = ids["input_id"].to_numpy(), ids["token"].to_numpy()
        for member, (low, high) in members:
            # Copies: a view would keep the whole block alive for as long as the example.
            maps[member] = dense[low - start : high - start, latents[member]].copy()
            tokens[member] = token_column[low - first : high - first].copy()
            input_ids[member] = id_column[rows[member] - first]
            peaks[member] = token_column[rows[member] - first]
    return chosen.select(
        "latent",
        "kind",
        "interval",
        "rank",
        pl.Series("input_id", input_ids),
        pl.Series("token", peaks),
        "act",
        pl.Series("map_start", [int(t[0]) for t in tokens], dtype=pl.UInt32),
        pl.Series("map", maps, dtype=pl.List(pl.Float32)),
        pl.Series("map_tokens", tokens, dtype=pl.List(pl.UInt32)),
    ).cast(EXAMPLES)


def _spans(
    store: ActivationSource, rows: Ints, by_row: Ints, chunk_starts: Sequence[int], d_sae: int
) -> Iterator[tuple[int, pl.DataFrame, tuple[int, int], list[tuple[int, tuple[int, int]]]]]:
    """Stretches of rows to encode, with the examples inside and the borders of each one's context."""
    most = max(1, DENSE_BYTES // (4 * d_sae))
    starts = np.asarray([*chunk_starts, len(store)])
    chunk_of = np.searchsorted(starts, rows[by_row], side="right") - 1
    for chunk in np.unique(chunk_of):
        first, stop = int(starts[chunk]), int(starts[chunk + 1])
        ids = store.rows.slice(first, stop - first)
        borders = _context_borders(ids, store.site.positions)
        pending: list[tuple[int, tuple[int, int]]] = []
        low = high = 0
        for member in by_row[chunk_of == chunk]:
            which = int(np.searchsorted(borders, rows[member] - first, side="right"))
            context = (first + int(borders[which - 1]), first + int(borders[which]))
            if pending and context[1] - low > most:
                yield first, ids, (low, high), pending
                pending = []
            if not pending:
                low = context[0]
            high = context[1]
            pending.append((int(member), context))
        if pending:
            yield first, ids, (low, high), pending


def _context_borders(ids: pl.DataFrame, positions: int) -> Ints:
    """Row numbers, relative to the first, at which contexts begin, and the end."""
    input_id, context = ids["input_id"].to_numpy(), ids["token"].to_numpy() // max(1, positions)
    changed = np.flatnonzero((input_id[1:] != input_id[:-1]) | (context[1:] != context[:-1])) + 1
    return np.r_[0, changed, len(input_id)]
