"""Concept search: the nearest rows of a store to a query whose latents were changed, and why each is near."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from nb_sae.analysis.pictures import pictures_frame
from nb_sae.concepts.index import SearchIndex
from nb_sae.concepts.query import Gap, Kind, Query, QueryReader, check_norm, described
from nb_sae.concepts.schema import CONTRIBUTIONS, HITS
from nb_sae.errors import ConfigError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import Unit, listed, make_changes
from nb_sae.types import ActivationSource, Inputs

PICTURE_SIDE = 96
"""Pixels of a thumbnail's longest side."""


@dataclass(frozen=True, repr=False)
class SearchResult:
    """What a search found."""

    hits: pl.DataFrame
    """`schema.HITS`, nearest first."""
    lost: pl.DataFrame
    """`schema.HITS`: rows that the unedited query finds and the edited one does not, nearest to the unedited first."""
    contributions: pl.DataFrame
    """`schema.CONTRIBUTIONS`: what the latents of each hit, the bias and the error add to its score, in that order."""
    recall: float | None
    """Share of the true nearest rows that the index finds (recall@k over some rows); None: the search is exact."""
    about: Mapping[str, Any]
    """Query, edit, how its latents are known, k, rows, and the cosine of the edited to the unedited query."""
    query: Tensor = field(default_factory=lambda: torch.empty(0))
    """`(d_in,)`: the edited query, in model units."""
    pictures: pl.DataFrame | None = None
    """Thumbnails of the hits and of what was lost (`analysis.schema.PICTURES`); None without `inputs`."""

    def why(self, row: int, n: int = 8) -> pl.DataFrame:
        """The n largest parts of the score of one hit, by size.

        Raises:
            ConfigError: the row is not a hit.
        """
        lines = self.contributions.filter(pl.col("row") == row)
        if not lines.height:
            raise ConfigError(f"Row {row} is not a hit. Hits: {', '.join(map(str, self.hits['row'].to_list()))}.")
        return lines.sort(pl.col("contribution").abs(), descending=True).head(n)

    def __repr__(self) -> str:
        about = self.about
        edit = f", {about['edit']}" if about["edit"] else ""
        how = "exact" if self.recall is None else f"approximate, recall@{about['k']} {self.recall:.3f}"
        gained = int(self.hits["gained"].sum())
        moved = f", {gained} gained and {self.lost.height} lost" if about["edit"] else ""
        return f"SearchResult({about['query']}{edit}: {self.hits.height} of {about['rows']:,} rows{moved}; {how})"


def search(
    dictionary: Dictionary,
    store: ActivationSource | SearchIndex,
    query: Any,
    *,
    kind: Kind | None = None,
    clip: Any = None,
    names: Any = None,
    set: Mapping[int | str, float] | None = None,  # noqa: A002 (the users' word)
    scale: Mapping[int | str, float] | None = None,
    remove: int | str | Iterable[int | str] = (),
    unit: Unit = "activation",
    analysis: Any = None,
    k: int = 20,
    exact: bool | None = None,
    gap: Gap = "raw",
    texts: Sequence[str] | Tensor | None = None,
    inputs: Inputs | None = None,
) -> SearchResult:
    """The rows nearest to a query, by cosine, after some of its latents were changed.

    The query is encoded, edited in latent space, decoded with its reconstruction error kept, and compared with the rows
    as they are. A query that is a row of the store never finds itself.

    A text is compared with images as it is (`gap="raw"`): CLIP's texts lie apart from its images, which shifts all
    scores alike but makes the latents of a text meaningless to a dictionary of images. So none counts as active: `set`
    adds directions, `scale` and `remove` are refused. `gap="mean"` moves the text by the difference of the two means
    and the ratio of the two spreads; then it is encoded like an image. A latent as a query is its direction alone, at
    activation 1.

    Args:
        dictionary: Trained on the site of the store.
        store: Rows to search. For more than one search, a `SearchIndex` of them, so that they are read once.
        query: A row number, a text, a picture (PIL), an embedding `(d_in,)` as the model gives it, or, with
            `kind="latent"`, the number or name of a latent.
        kind: What the query is, where its type does not say it.
        clip: What embeds texts and pictures: the model of the store.
        names: From `name_concepts`, to give latents by name and to have them named.
        set: Latent → the activation it gets.
        scale: Latent → what its activation is multiplied with.
        remove: Latents that become 0.
        unit: Of `set`: "activation", or "p99" for the latent's 99th percentile, which `analysis` knows.
        analysis: From `ns.analyze`, for `unit="p99"`.
        k: Hits.
        exact: Compare with every row; False: go through a graph that finds most of them, and `recall` says how many.
            None: as the `SearchIndex` is, and a store exactly. A graph takes minutes for a million rows: make it once,
            `SearchIndex(store, approximate=True)`.
        gap: "raw" or "mean", for texts among images.
        texts: Texts (or their embeddings) whose mean `gap="mean"` takes off.
        inputs: The images of the store, for pictures of the hits.

    Raises:
        StoreError: the rows are not those the dictionary was trained for, the model is another, the row does not
            exist, or the embedding is L2-normalised where rows are not.
        ConfigError: an unknown latent, an edit that cannot be, or k above the number of rows.
        InputError: a name of several latents, or of none.
        MissingDependencyError: `exact=False` without usearch.

    Source:
        Zaigrajew et al. 2025, arXiv:2502.20578, concept-based similarity search.
    """
    if dictionary.is_transcoder:
        raise ConfigError("A transcoder writes other rows than it reads. Search with an SAE of the store's site.")
    asked = {"set": set, "scale": scale, "remove": listed(remove)}
    changes = make_changes(dictionary, asked, unit=unit, analysis=analysis, names=names)
    rows = store.store if isinstance(store, SearchIndex) else store
    dictionary.check(rows)
    one = QueryReader(dictionary, rows, clip, names, gap, texts).read(query, kind)
    available = len(rows) - (one.row is not None)
    if not 1 <= k <= available:
        raise ConfigError(f"k={k} is outside 1 … {available}, the rows that can be found. Lower k.")
    if changes.latents:
        check_norm(one, rows)
    edited = one.edited(dictionary, changes)
    index = store if isinstance(store, SearchIndex) else SearchIndex(store, approximate=exact is False)
    exact = not index.approximate if exact is None else exact
    ranks = _exact_ranks(index, one, edited, k) if exact else _proposed_ranks(index, one, edited, k)
    contributions = _contributions(dictionary, rows, ranks.hits["row"].to_numpy(), edited, names)
    hits, lost = _identified(rows, ranks.hits), _identified(rows, ranks.lost)
    pictures = None
    if inputs is not None:
        ids = dict.fromkeys([*hits["input_id"].to_list(), *lost["input_id"].to_list()])
        pictures = pictures_frame(inputs, list(ids), PICTURE_SIDE, rows.site)
    about = {
        "query": one.label, "kind": one.kind, "latents": one.latents, "edit": described(asked), "unit": unit, "k": k,
        "rows": len(rows), "gap": gap if one.kind == "text" else None, "row": one.row,
        "cosine": float(torch.nn.functional.cosine_similarity(edited.double(), one.x.double(), dim=0)),
        "device": str(index.device), "zero_rows": index.zero_rows,
    }  # fmt: skip
    recall = None if exact else index.recall(k)
    return SearchResult(hits, lost, contributions, recall, about, edited, pictures)


@dataclass(frozen=True)
class _Ranks:
    """Hits and lost rows as columns of HITS that need no table: row, score, score_before, rank, rank_before, gained."""

    hits: pl.DataFrame
    lost: pl.DataFrame


def _exact_ranks(index: SearchIndex, query: Query, edited: Tensor, k: int) -> _Ranks:
    """From the scores of every row; of rows with the same score the first comes first."""
    after, before = index.scores(torch.stack([edited, query.x]))
    if query.row is not None:
        after[query.row] = before[query.row] = -torch.inf
    found, first = _best(after, k), _best(before, k)
    lost = [row for row in first if row not in found]

    above, above_before = ({row: rank for rank, row in enumerate(rows)} for rows in (found, first))

    def lines(rows: list[int]) -> pl.DataFrame:
        return _lines(
            rows,
            after[rows].tolist(),
            before[rows].tolist(),
            [above[row] if row in above else _rank(after, row) for row in rows],
            [above_before[row] if row in above_before else _rank(before, row) for row in rows],
            [row not in above_before for row in rows],
        )

    return _Ranks(lines(found), lines(lost).with_columns(gained=pl.lit(False)))


def _proposed_ranks(index: SearchIndex, query: Query, edited: Tensor, k: int) -> _Ranks:
    """From what the graph proposes: ranks are among those, null where a row was proposed for one query only."""
    wanted = min(k + 1, len(index))
    proposals: list[dict[int, tuple[int, float]]] = []
    for x in (edited, query.x):
        scores, rows = index.candidates(x, wanted)
        pairs = [(row, score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True) if row != query.row]
        proposals.append({row: (rank, score) for rank, (row, score) in enumerate(pairs)})
    after, before = proposals
    found, first = list(after)[:k], list(before)[:k]
    lost = [row for row in first if row not in found]

    def lines(rows: list[int]) -> pl.DataFrame:
        missing = [row for row in rows if row not in after or row not in before]
        scored = dict(zip(missing, _cosines(index, missing, edited, query.x), strict=True))
        return _lines(
            rows,
            [after[row][1] if row in after else scored[row][0] for row in rows],
            [before[row][1] if row in before else scored[row][1] for row in rows],
            [after[row][0] if row in after else None for row in rows],
            [before[row][0] if row in before else None for row in rows],
            [row not in first for row in rows],
        )

    return _Ranks(lines(found), lines(lost).with_columns(gained=pl.lit(False)))


def _lines(
    rows: list[int],
    score: list[float],
    before: list[float],
    rank: Sequence[int | None],
    rank_before: Sequence[int | None],
    gained: list[bool],
) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "rank": rank,
            "row": rows,
            "score": score,
            "score_before": before,
            "rank_before": rank_before,
            "gained": gained,
        },
        schema={name: HITS[name] for name in ("rank", "row", "score", "score_before", "rank_before", "gained")},
    )
    return frame.with_columns(shift=pl.col("rank_before").cast(pl.Int64) - pl.col("rank").cast(pl.Int64))


def _best(scores: Tensor, k: int) -> list[int]:
    edge = scores.topk(k).values[-1]
    rows = (scores >= edge).nonzero()[:, 0]
    return rows[scores[rows].argsort(descending=True, stable=True)][:k].tolist()


def _rank(scores: Tensor, row: int) -> int:
    mine = scores[row]
    return int(torch.count_nonzero(scores > mine)) + int(torch.count_nonzero(scores[:row] == mine))


def _cosines(index: SearchIndex, rows: list[int], *queries: Tensor) -> list[tuple[float, ...]]:
    x = index.store[rows].double() if rows else torch.empty(0, index.store.d_in, dtype=torch.double)
    columns = [torch.nn.functional.cosine_similarity(x, query.double()[None], dim=-1).tolist() for query in queries]
    return list(zip(*columns, strict=True))


def _identified(store: ActivationSource, lines: pl.DataFrame) -> pl.DataFrame:
    """These lines with `input_id, token, key`, in the columns of HITS."""
    mine = store.rows[lines["row"].to_numpy()].select("input_id", "token")
    table = store.inputs.filter(pl.col("input_id").is_in(mine["input_id"].unique().implode()))
    keys = dict(table.select("input_id", "key").iter_rows())
    key = pl.Series("key", [keys.get(one) for one in mine["input_id"]], dtype=pl.String)
    found = lines.with_columns(*mine.get_columns(), key)
    return found.select(pl.col(name).cast(dtype) for name, dtype in HITS.items())


@torch.no_grad()
def _contributions(
    dictionary: Dictionary, store: ActivationSource, rows: NDArray[np.uint32], query: Tensor, names: Any
) -> pl.DataFrame:
    """cos(q, r) = Σ_j s z_j(r) ⟨W_j, q⟩ / (‖q‖‖r‖) + the bias's part + the error's.

    The hit is taken apart, not the query. s is the scale of the row where the dictionary normalises rows; the shift of
    such a row belongs to the bias.
    """
    x = store[rows.astype(np.int64)].to(dictionary.device)
    values, indices = dictionary.encode(x, sparse=True)
    x_hat = dictionary.reconstruct(x).double()
    unit = query.to(dictionary.device).double()
    unit = unit / unit.norm()
    weight = values.double() * dictionary.row_scale(x)
    parts = weight * (dictionary.W_dec.double() @ unit)[indices]
    error = (x.double() - x_hat) @ unit
    bias = x_hat @ unit - parts.sum(-1)
    norm = x.double().norm(dim=-1)
    parts, error, bias = parts / norm[:, None], error / norm, bias / norm
    active = values > 0
    which, latent = active.nonzero()[:, 0].cpu().numpy(), indices[active].cpu().numpy()
    called = {one: None if names is None else names.name_of(int(one)) for one in np.unique(latent)}
    frames = [
        _parts(rows[which], "latent", latent, [called[one] for one in latent], parts[active].cpu().numpy()),
        _parts(rows, "bias", None, None, bias.cpu().numpy()),
        _parts(rows, "error", None, None, error.cpu().numpy()),
    ]
    order = {int(row): place for place, row in enumerate(rows)}
    joined = pl.concat(frames).with_columns(place=pl.col("row").replace_strict(order, return_dtype=pl.Int64))
    return joined.sort("place", "part", "contribution", descending=[False, False, True]).drop("place")


def _parts(
    rows: NDArray[np.uint32], part: str, latent: Any, name: list[str | None] | None, value: NDArray[np.float64]
) -> pl.DataFrame:
    count = len(rows)
    return pl.DataFrame(
        {
            "row": rows.astype(np.uint32),
            "part": [part] * count,
            "latent": [None] * count if latent is None else latent.astype(np.uint32),
            "name": name or [None] * count,
            "contribution": value,
        },
        schema=CONTRIBUTIONS,
    )
