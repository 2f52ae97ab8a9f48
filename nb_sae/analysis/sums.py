"""Float sums over chunks of rows that come out bit for bit the same however the chunks were divided among processes.

Adding floats in another order gives another last digit. The chunks of a store are numbered, and the sums are added in
one binary tree over these numbers: a node is always left child + right child. A process that saw some of the chunks
hands over the nodes that it could complete; whoever merges completes the rest. Memory is the logarithm of the number
of chunks times one record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ChunkSums:
    """Sums over some rows in float64."""

    rows: int
    mean: Floats
    """`(d_in,)`."""
    squares: float
    """Σ‖x − mean‖²."""
    error: Floats
    """`(lines of the quality table,)`: Σ‖x − x̂‖²."""
    cosine: Floats
    """Likewise: Σ cos(x, x̂)."""
    active: Floats
    """Likewise: active latents, summed over rows."""
    by_level: Floats
    """`(d_sae, levels)`: activations, by the first budget that selects the latent."""

    @classmethod
    def of(
        cls, x: Tensor, x_hats: Sequence[Tensor], active: Sequence[float], by_level: Floats | None = None
    ) -> ChunkSums:
        """Sums of one chunk `(rows, d_in)` with its reconstruction at every level."""
        x = x.double()
        mean = x.mean(0)
        errors, cosines = [], []
        for x_hat in x_hats:
            x_hat = x_hat.double()
            errors.append(float((x - x_hat).square().sum()))
            cosines.append(float(torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).sum()))
        return cls(
            len(x),
            mean.numpy(),
            float((x - mean).square().sum()),
            np.array(errors),
            np.array(cosines),
            np.array(active, dtype=np.float64),
            np.zeros((0, len(errors))) if by_level is None else by_level,
        )

    def __add__(self, right: ChunkSums) -> ChunkSums:
        """Sums of both.

        Source:
            The squares: Chan, Golub & LeVeque 1979, Updating formulae and a pairwise algorithm for sample variances.
        """
        rows = self.rows + right.rows
        delta = right.mean - self.mean
        return ChunkSums(
            rows,
            self.mean + delta * (right.rows / rows),
            self.squares + right.squares + float(np.einsum("i,i->", delta, delta)) * (self.rows * right.rows / rows),
            self.error + right.error,
            self.cosine + right.cosine,
            self.active + right.active,
            self.by_level + right.by_level,
        )

    def quality(self) -> list[dict[str, float]]:
        """`fvu` about the mean of all rows, `cosine` and `l0` of each level."""
        return [
            {
                "fvu": float(error) / self.squares if self.squares > 0 else float("nan"),
                "cosine": float(cosine) / self.rows,
                "l0": float(active) / self.rows,
            }
            for error, cosine, active in zip(self.error, self.cosine, self.active, strict=True)
        ]

    def arrays(self) -> dict[str, NDArray]:
        """Every field as an array, for a file."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray]) -> ChunkSums:
        """The inverse of `arrays`."""
        scalars = {"rows": int(arrays["rows"]), "squares": float(arrays["squares"])}
        return cls(**{**arrays, **scalars})  # pyright: ignore[reportArgumentType]


class ChunkTree:
    """Sums of numbered chunks, added as the nodes (height, number) of one binary tree become complete."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], ChunkSums] = {}

    def add(self, number: int, sums: ChunkSums) -> None:
        """The sums of one chunk."""
        self._insert(0, number, sums)

    def merge(self, nodes: Iterable[tuple[tuple[int, int], ChunkSums]]) -> None:
        """The nodes of another tree over other chunks."""
        for (height, number), sums in nodes:
            self._insert(height, number, sums)

    def _insert(self, height: int, number: int, sums: ChunkSums) -> None:
        while (height, number ^ 1) in self.nodes:
            other = self.nodes.pop((height, number ^ 1))
            sums = other + sums if number % 2 else sums + other
            height, number = height + 1, number // 2
        self.nodes[height, number] = sums

    def total(self) -> ChunkSums:
        """The sums of all chunks; what is left of the tree is added from the first chunk on."""
        ordered = [self.nodes[key] for key in sorted(self.nodes, key=lambda key: key[1] << key[0])]
        total = ordered[0]
        for one in ordered[1:]:
            total = total + one
        return total
