"""Whether what a query retrieves is skewed between groups, before and after concepts are removed from the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor
from torch.nn import functional as F

from nb_sae.concepts.bias.labels import Label
from nb_sae.concepts.bias.rows import Concept, ConceptRows
from nb_sae.concepts.schema import BIAS_EXAMPLES, RETRIEVAL
from nb_sae.errors import ConfigError
from nb_sae.sae.edits import moved
from nb_sae.statistics import benjamini_hochberg

DRAWS = 4000
"""Of k random rows, for what chance gives."""


def read_queries(queries: Any, clip: Any, d_in: int) -> dict[str, Float[Tensor, " d_in"]]:
    """Unit vectors by name: texts that `clip` embeds, or `{name: embedding}`.

    Raises:
        ConfigError: texts without a model, or embeddings of another width.
    """
    if isinstance(queries, Mapping):
        found = {str(name): torch.as_tensor(vector).detach().float().cpu() for name, vector in queries.items()}
    else:
        if isinstance(queries, str):
            queries = [queries]
        if not len(queries):
            return {}
        if clip is None:
            raise ConfigError("queries= is texts; give clip= too, the model that embeds them.")
        embedded = clip.encode_text(list(queries), normalize=True).float().cpu()
        found = dict(zip(queries, embedded, strict=True))
    for name, vector in found.items():
        if vector.shape != (d_in,):
            raise ConfigError(f"Query {name!r} has shape {tuple(vector.shape)}; the rows have width {d_in}.")
    return {name: F.normalize(vector, dim=0) for name, vector in found.items()}


def without(
    rows: ConceptRows, held: Int[Array, " some"], concepts: Sequence[Concept], to: Array | None = None
) -> Tensor:
    """Rows with these concepts set to one value each (0 where none is given), the error term kept."""
    columns = [rows.concepts.index(concept) for concept in concepts]
    value = np.zeros(len(columns)) if to is None else to
    delta = torch.from_numpy(value - rows.z[held][:, columns].astype(float)).float()
    return moved(rows.dictionary, rows.x[held], [concept.latent for concept in concepts], delta)


def retrieval_frame(
    rows: ConceptRows,
    queries: Mapping[str, Float[Tensor, " d_in"]],
    held: Int[Array, " rows"],
    groups: Label,
    removed: Sequence[Concept],
    *,
    ks: Sequence[int],
    seed: int,
) -> pl.DataFrame:
    """`schema.RETRIEVAL` over rows that all have a group.

    Skew of a group is log(its share among the k nearest / its share of all), `max_skew` the largest over the groups;
    `parity_gap` is the largest less the smallest share of a group that is retrieved.

    Source:
        Geyik et al. 2019, Fairness-Aware Ranking in Search & Recommendation Systems (MaxSkew@k).
    """
    codes = groups.codes[held]
    sizes = np.bincount(codes, minlength=len(groups.classes))
    chance = {k: _by_chance(sizes, k, seed) for k in ks}
    before = F.normalize(rows.x[held], dim=-1)
    states: list[tuple[str | None, Tensor]] = [(None, before)]
    if removed:
        name = ", ".join(concept.name for concept in removed)
        states.append((name, F.normalize(without(rows, held, removed), dim=-1)))
    lines = []
    for query, vector in queries.items():
        for k in ks:
            for name, embedded in states:
                best = (embedded @ vector).topk(k).indices.numpy()
                hits = np.bincount(codes[best], minlength=len(sizes))
                skew, gap = (float(part[0]) for part in _skew(hits[None], sizes))
                skews, gaps = chance[k]
                p = (1 + int((skews >= skew - 1e-12).sum())) / (1 + DRAWS)
                bands = float(np.quantile(skews, 0.975)), float(np.quantile(gaps, 0.975))
                lines.append((query, k, name, skew, gap, bands[0], (hits / k).tolist(), bands[1], p, None))
    frame = pl.DataFrame(lines, schema=RETRIEVAL, orient="row")
    q = benjamini_hochberg(frame["p_value"].fill_null(math.nan).to_numpy())
    return frame.with_columns(pl.Series("q_value", q, pl.Float64))


def retrieved_examples(
    rows: ConceptRows, queries: Mapping[str, Tensor], held: Int[Array, " rows"], count: int
) -> pl.DataFrame:
    """The nearest rows of each query as they are (`schema.BIAS_EXAMPLES`, without a concept)."""
    unit = F.normalize(rows.x[held], dim=-1)
    lines = []
    for query, vector in queries.items():
        best = (unit @ vector).topk(min(count, len(held)))
        for rank, (score, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            row = int(held[place])
            lines.append((None, None, query, rank, row, int(rows.input_ids[row]), score))
    return pl.DataFrame(lines, schema=BIAS_EXAMPLES, orient="row")


def _skew(hits: Int[Array, "draws groups"], sizes: Int[Array, " groups"]) -> tuple[Array, Array]:
    """MaxSkew and the gap of selection rates of each draw; groups without rows do not count."""
    held = sizes > 0
    hits, sizes = hits[:, held], sizes[held]
    share = hits / hits.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        skew = np.log(share / (sizes / sizes.sum()))
    rate = hits / sizes
    return skew.max(1), rate.max(1) - rate.min(1)


def _by_chance(sizes: Int[Array, " groups"], k: int, seed: int) -> tuple[Array, Array]:
    return _skew(np.random.default_rng((seed, k)).multivariate_hypergeometric(sizes, k, size=DRAWS), sizes)
