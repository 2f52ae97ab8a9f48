"""A graph of near rows (HNSW, by usearch): proposes the neighbours of a query without looking at every row.

Rows lie in it as one byte per value; what it proposes has to be scored by the rows themselves.

Source:
    Malkov and Yashunin 2018, Efficient and robust approximate nearest neighbor search using hierarchical navigable
    small world graphs, arXiv:1603.09320.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nb_sae.atomic import fresh_folder, read_header, write_json
from nb_sae.errors import FormatError, MissingDependencyError, StoreError
from nb_sae.types import ActivationSource

FORMAT = "nb_sae.search"
VERSION = 1
CONNECTIVITY = 16
"""Neighbours of a row in the graph, the library's own default."""
EXPANSION = 128
"""Rows that are looked at when one is added, the library's own default."""
_FILE = "graph.usearch"


class RowGraph:
    """The graph of one store's rows. Made by `of`."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def of(
        cls,
        store: ActivationSource,
        unit_spans: Callable[[], Iterator[tuple[int, Tensor]]],
        *,
        zero: NDArray[np.int64],
        path: Path | None,
    ) -> RowGraph:
        """Open the graph at `path`, or build it (and keep it there).

        Args:
            store: Whose rows they are.
            unit_spans: Its rows, of norm 1.
            zero: Rows that are left out.
            path: A folder; None: it is not kept.

        Raises:
            MissingDependencyError: usearch is not installed.
            StoreError: the graph at `path` is of other rows.
            FormatError: what is at `path` is no graph, or is damaged.
        """
        library = _usearch()
        header = {"format": FORMAT, "version": VERSION, **_identity(store)}
        if path is not None and path.exists():
            there = read_header(path / "search.json", FORMAT, VERSION)
            if there != header:
                raise StoreError(
                    f"{path} holds the graph of other rows than {store!r}. Give another path, or remove it."
                )
            try:
                kept = library.Index.restore(str(path / _FILE), view=True)
            except (OSError, RuntimeError, ValueError) as error:
                raise FormatError(f"{path / _FILE} cannot be read ({error}). Remove it to build it again.") from error
            if kept is None or len(kept) != len(store) - len(zero):
                raise FormatError(f"{path / _FILE} is not the graph it should be. Remove {path} to build it again.")
            return cls(kept)
        index = library.Index(
            ndim=store.d_in, metric="ip", dtype="i8", connectivity=CONNECTIVITY, expansion_add=EXPANSION
        )
        for start, rows in unit_spans():
            numbers = np.setdiff1d(np.arange(start, start + len(rows)), zero)
            index.add(numbers.astype(np.uint64), rows.cpu().numpy()[numbers - start])
        if path is not None:
            with fresh_folder(path, overwrite=False) as folder:
                index.save(str(folder / _FILE))
                write_json(folder / "search.json", header)
        return cls(index)

    def propose(self, unit: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Numbers of up to `count` rows near to a query of norm 1."""
        self._index.expansion_search = max(EXPANSION, count)
        return np.asarray(self._index.search(unit, count).keys).astype(np.int64)


def _identity(store: ActivationSource) -> dict[str, Any]:
    """What tells the rows of two stores apart without reading them all again."""
    statistics = store.statistics()
    return {
        "site": store.site.name,
        "model": store.model,
        "revision": store.revision,
        "rows": len(store),
        "mean_square_distance": statistics.mean_square_distance,
        "mean": [float(value) for value in statistics.mean[:8]],
    }


def _usearch() -> ModuleType:
    try:
        return import_module("usearch.index")
    except ImportError as error:
        raise MissingDependencyError(
            "An approximate search needs 'usearch', which is not installed. Run: pip install 'nb-sae[ann]'. "
            "Exact search needs nothing."
        ) from error
