"""How much of the activations a dictionary explains at each budget, and what PCA explains with as many components."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import torch

from nb_sae.analysis.schema import QUALITY
from nb_sae.analysis.sums import ChunkSums, ChunkTree
from nb_sae.errors import ConfigError, StoreError
from nb_sae.types import ActivationSource

PCA = pl.Schema({"k": pl.UInt32, "fvu": pl.Float64, "cosine": pl.Float64})


def quality_frame(ks: Sequence[int | None], sums: ChunkSums, unused: Sequence[float]) -> pl.DataFrame:
    """The `quality` table, one line per k; None: a rule that sets no number of latents per row."""
    lines = [
        {"k": k, **numbers, "rows": sums.rows, "unused": never}
        for k, numbers, never in zip(ks, sums.quality(), unused, strict=True)
    ]
    return pl.DataFrame(lines, schema=QUALITY)


@torch.no_grad()
def pca_quality(train: ActivationSource, test: ActivationSource, components: Sequence[int]) -> pl.DataFrame:
    """FVU and cosine on `test` of the first k principal components of `train`: the baseline for every budget k.

    Raises:
        StoreError: rows of different widths.
        ConfigError: more components than dimensions.
    """
    if any(k is None for k in components):
        raise ConfigError(
            f"components={tuple(components)} holds null: a dictionary whose rule sets no k was measured at its own L0. "
            "Give whole numbers near that l0."
        )
    d_in = train.d_in
    if test.d_in != d_in:
        raise StoreError(f"train has width {d_in}, test has width {test.d_in}. Give two parts of one store.")
    if not components or min(components) < 1 or max(components) > d_in:
        raise ConfigError(f"components={tuple(components)} must be between 1 and the width {d_in}.")
    mean = torch.as_tensor(train.statistics().mean, dtype=torch.float64)
    covariance = torch.zeros(d_in, d_in, dtype=torch.float64)
    for _, rows in train.chunks(8192):
        centred = rows.double() - mean
        covariance += centred.T @ centred
    basis = torch.linalg.eigh(covariance).eigenvectors.flip(-1)
    tree = ChunkTree()
    for number, (_, rows) in enumerate(test.chunks(8192)):
        coordinates = (rows.double() - mean) @ basis
        parts = [mean + coordinates[:, :k] @ basis[:, :k].T for k in components]
        tree.add(number, ChunkSums.of(rows, parts, [0.0] * len(components)))
    lines = [
        {"k": k, "fvu": n["fvu"], "cosine": n["cosine"]}
        for k, n in zip(components, tree.total().quality(), strict=True)
    ]
    return pl.DataFrame(lines, schema=PCA)
