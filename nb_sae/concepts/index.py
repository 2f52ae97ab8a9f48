"""Cosine search over the rows of a store: exact, in blocks, or through a graph whose recall is measured.

A `SearchIndex` reads the store once for the norms. Later queries go over the rows as they are stored, a block at a
time: beside the rows themselves, memory is 4 bytes per row and query. The graph of an approximate one is in `graph`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nb_sae.concepts.graph import RowGraph
from nb_sae.errors import ConfigError, NonFiniteError, ShapeError
from nb_sae.store.reading import resident_budget
from nb_sae.types import ActivationSource

SPAN_ROWS = 65_536
"""Rows that are read at a time."""
BLOCK_BYTES = 4 * 2**20
"""Of float32 that rows are turned to at a time on a CPU: they stay in its cache until they have been multiplied."""
CANDIDATES = 10
"""Rows that the graph proposes per hit; they are then scored exactly."""
RECALL_ROWS = 64
"""Rows of the store by which recall is measured."""


class SearchIndex:
    """The rows of a store made ready for many queries: `ns.search(dictionary, index, …)`.

    Scores are float32 cosines to the rows as they are stored. Rows without direction (all zero) are never found.

    Args:
        store: Rows of any site.
        approximate: Search through a graph (usearch, `pip install 'nb-sae[ann]'`) in place of every row. What it
            proposes is scored exactly; what it misses is measured, see `recall`.
        path: With `approximate`: a folder in which the graph is kept, built if it is not there. It is mapped from
            there, not read into memory.
        device: Where the rows are held, if they fit, and multiplied.
        seed: Of the rows by which recall is measured.

    Attributes:
        zero_rows: Rows without direction.
        resident: Whether the rows are held between queries; if not, each query reads them again.

    Raises:
        MissingDependencyError: `approximate` without usearch.
        StoreError: the graph at `path` is of other rows.
    """

    def __init__(
        self,
        store: ActivationSource,
        *,
        approximate: bool = False,
        path: str | Path | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if path is not None and not approximate:
            raise ConfigError("path= keeps the graph of an approximate index. Give approximate=True too, or leave it.")
        self.store = store
        self.device = torch.device(device)
        self._held: list[Tensor] | None = None
        size = len(store) * store.d_in * getattr(store, "dtype", torch.float32).itemsize
        held = [] if size <= resident_budget(self.device) else None
        norms = torch.empty(len(store), device=self.device)
        for start, rows in self._spans():
            norms[start : start + len(rows)] = _norms(rows)
            if held is not None:
                held.append(rows)
        self._held = held
        self.zero_rows = int((norms == 0).sum())
        self._inverse = norms.reciprocal_()  # infinite for zero rows, which `scores` takes out
        self._zero = (norms == torch.inf).nonzero()[:, 0]
        self._recall: dict[int, float] = {}
        self._seed = seed
        self._graph: RowGraph | None = None
        if approximate:
            where = None if path is None else Path(path).expanduser()
            self._graph = RowGraph.of(store, self._unit_spans, zero=self._zero.cpu().numpy(), path=where)

    @property
    def approximate(self) -> bool:
        """Whether queries go through the graph."""
        return self._graph is not None

    @property
    def resident(self) -> bool:
        """Whether the rows are held between queries."""
        return self._held is not None

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        how = "approximate" if self.approximate else "exact"
        return (
            f"SearchIndex({how}, {len(self):,} rows of {self.store.site.name!r}, {self.zero_rows:,} without direction)"
        )

    @torch.no_grad()
    def scores(self, queries: Float[Tensor, "q d_in"]) -> Float[Tensor, "q rows"]:
        """Cosine of every query to every row; −inf for rows without direction. Holds 4 bytes per query and row.

        Raises:
            ShapeError: queries of another width.
            NonFiniteError: a query without direction, or with NaN or infinity.
        """
        unit = self._unit(queries)
        out = torch.empty(len(unit), len(self), device=self.device)
        block_rows = _block_rows(self.device, self.store.d_in)
        buffer = torch.empty(block_rows, self.store.d_in, device=self.device)
        for start, rows in self._spans():
            for first in range(0, len(rows), block_rows):
                block = buffer[: min(block_rows, len(rows) - first)].copy_(rows[first : first + block_rows])
                place = slice(start + first, start + first + len(block))
                for query, scores in zip(unit, out, strict=True):
                    # A product with few columns is packed first, which costs more than a pass for each.
                    torch.mv(block, query, out=scores[place])
        out *= self._inverse
        out[:, self._zero] = -torch.inf
        return out

    @torch.no_grad()
    def nearest(self, queries: Float[Tensor, "q d_in"], k: int) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
        """Scores and numbers of the k nearest rows of many queries, exactly; memory does not grow with the rows."""
        unit = self._unit(queries)
        self._check_k(k)
        best = unit.new_full((len(unit), 0), -torch.inf)
        numbers = torch.empty(len(unit), 0, dtype=torch.long, device=self.device)
        for start, rows in self._unit_spans():
            scores = unit @ rows.T
            gone = self._zero[(self._zero >= start) & (self._zero < start + len(rows))] - start
            scores[:, gone] = -torch.inf
            top = scores.topk(min(k, len(rows)), dim=-1)
            best = torch.cat([best, top.values], dim=-1)
            numbers = torch.cat([numbers, top.indices + start], dim=-1)
            kept = best.topk(min(k, best.shape[1]), dim=-1)
            best, numbers = kept.values, numbers.gather(1, kept.indices)
        return best, numbers

    @torch.no_grad()
    def candidates(self, query: Float[Tensor, " d_in"], k: int) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Rows that the graph proposes for one query and their exact scores, best first; more than k of them."""
        if self._graph is None:
            raise ConfigError("This index has no graph. Make it with approximate=True, or ask for scores().")
        self._check_k(k)
        unit = self._unit(query[None])
        numbers = self._graph.propose(unit[0].cpu().numpy(), min(CANDIDATES * k, len(self)))
        rows = F.normalize(self.store[np.sort(numbers)].to(self.device), dim=-1)
        order = torch.from_numpy(np.sort(numbers)).to(self.device)
        scores = torch.mv(rows, unit[0])
        best = scores.argsort(descending=True, stable=True)
        return scores[best], order[best]

    def recall(self, k: int, queries: Float[Tensor, "q d_in"] | None = None) -> float:
        """Share of the true k nearest rows that the graph finds, mean over queries; 1 for an exact index.

        Args:
            k: Hits.
            queries: Rows to measure by; None: `RECALL_ROWS` rows of the store, each without itself. Texts among images
                lie farther from everything: measure by your own where that matters.
        """
        if self._graph is None:
            return 1.0
        if queries is None and k in self._recall:
            return self._recall[k]
        own = queries is None
        if own and k >= len(self):
            raise ConfigError(f"k={k} of {len(self)} rows: each is measured without itself. Give a smaller k.")
        rows = np.array([], dtype=np.int64)
        if own:
            live = np.setdiff1d(np.arange(len(self)), self._zero.cpu().numpy())
            chosen = np.random.default_rng(self._seed).choice(live, min(RECALL_ROWS, len(live)), replace=False)
            rows = np.sort(chosen)
            queries = self.store[rows]
        assert queries is not None
        wanted = k + 1 if own else k
        _, exact = self.nearest(queries, wanted)
        shares = []
        for i, query in enumerate(queries):
            _, proposed = self.candidates(query, wanted)
            himself = {int(rows[i])} if own else set[int]()
            true = [row for row in exact[i].tolist() if row not in himself][:k]
            found = [row for row in proposed.tolist() if row not in himself][:k]
            shares.append(len(set(true) & set(found)) / k)
        share = float(np.mean(shares))
        if own:
            self._recall[k] = share
        return share

    def _spans(self) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)`, in the dtype of the store, on the device."""
        if self._held is not None:
            yield from zip(range(0, len(self), SPAN_ROWS), self._held, strict=True)
            return
        stored: Any = getattr(self.store, "stored", None)
        for start in range(0, len(self), SPAN_ROWS):
            stop = min(start + SPAN_ROWS, len(self))
            rows = self.store[start:stop] if stored is None else stored(start, stop)
            yield start, rows.to(self.device)

    def _unit_spans(self) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)`, float32 and of norm 1, an eighth of a span at a time."""
        step = SPAN_ROWS // 8
        for start, rows in self._spans():
            for first in range(0, len(rows), step):
                yield start + first, F.normalize(rows[first : first + step].float(), dim=-1)

    def _unit(self, queries: Tensor) -> Tensor:
        if queries.ndim != 2 or queries.shape[1] != self.store.d_in:
            raise ShapeError(
                f"Queries of shape {tuple(queries.shape)} were given; the rows have width {self.store.d_in}."
            )
        norm = queries.double().norm(dim=-1, keepdim=True)
        if not (torch.isfinite(norm) & (norm > 0)).all():
            raise NonFiniteError("A query is zero or holds NaN or infinity, so nothing is near to it. Give another.")
        return (queries.double() / norm).float().to(self.device)

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= len(self):
            raise ConfigError(f"k={k} is outside 1 … {len(self)}, the rows of the store.")


def _norms(rows: Tensor) -> Tensor:
    return torch.cat([part.float().norm(dim=-1) for part in rows.split(_block_rows(rows.device, rows.shape[1]))])


def _block_rows(device: torch.device, d_in: int) -> int:
    return max(1, BLOCK_BYTES // (4 * d_in)) if device.type == "cpu" else SPAN_ROWS
