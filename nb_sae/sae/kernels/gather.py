"""Sums and dot products over the rows of a table that a sparse code names: gathers where few are named, else dense.

What a gathered row costs beside a dense product depends on device and dtype; the numbers are measured, see below.
All three functions are exact and give the same result whichever way they take, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

SUM_COST = {torch.float32: 5, torch.bfloat16: 12, torch.float16: 12}
"""On a CPU: latents of a dense product that cost as much as one gathered and added. Measured on two machines with
AVX-512 and matrix units at 1,024 rows, d 768, d_sae 6,144: 2 and 5 in float32, 6 and 23 in bfloat16."""
DOT_COST = {torch.float32: 13, torch.bfloat16: 24}
"""The same for a gathered dot product."""
CUDA_COST = 160
"""On CUDA, for both, through `embedding_bag`."""
TILE_BYTES = 256
"""Bytes of a row that are gathered at once on a CPU: 6,144 such pieces stay in the second-level cache."""


def sum_rows(
    indices: Int[Tensor, "batch many"], values: Float[Tensor, "batch many"], table: Float[Tensor, "d_sae d"]
) -> Float[Tensor, "batch d"]:
    """Σ value · named row for each row of the batch, in the table's dtype."""
    values = values.to(table.dtype)
    if not _pays(indices, table, SUM_COST):
        return table.new_zeros(len(indices), len(table)).scatter_(1, indices, values) @ table
    if not _tiles(table):
        return F.embedding_bag(indices, table, per_sample_weights=values, mode="sum")
    offsets = torch.arange(len(indices) + 1, dtype=torch.int32) * indices.shape[1]
    return gathered(indices.flatten().int(), offsets, values.flatten(), table)


def dot_rows(
    indices: Int[Tensor, "batch many"], vectors: Float[Tensor, "batch d"], table: Float[Tensor, "d_sae d"]
) -> Float[Tensor, "batch many"]:
    """⟨vector of the row, named row of the table⟩, in the table's dtype."""
    vectors = vectors.to(table.dtype)
    batch, many = indices.shape
    if not _pays(indices, table, DOT_COST):
        return (vectors @ table.T).gather(1, indices)
    offsets = torch.arange(batch, device=indices.device, dtype=torch.int32) * many
    own = torch.arange(batch, device=indices.device, dtype=torch.int32).repeat_interleave(many)
    flat = indices.flatten().int()
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(vectors, table, flat, offsets, own, 0)
    return dots.view(batch, many)


@dataclass(frozen=True)
class Named:
    """Entries of several sparse codes, ordered by latent: made once, summed over as often as wanted.

    Codes with many entries are kept as they are and multiplied densely.
    """

    d_sae: int
    indices: Sequence[Int[Tensor, "batch many"]]
    gathers: Sequence[bool]
    order: Int[Tensor, " entries"]
    places: Int[Tensor, " entries"]
    offsets: Int[Tensor, " latents"]

    @classmethod
    def of(cls, indices: Sequence[Int[Tensor, "batch many"]], d_sae: int, dtype: torch.dtype) -> Named:
        """One matrix of latent numbers per code."""
        gathers = [_pays(one, one.new_empty(d_sae, 0, dtype=dtype), SUM_COST) for one in indices]
        few = [one for one, gathered_one in zip(indices, gathers, strict=True) if gathered_one]
        if not few:
            nothing = torch.empty(0, dtype=torch.int32, device=indices[0].device)
            return cls(d_sae, indices, gathers, nothing, nothing, nothing)
        batch, device = len(few[0]), few[0].device
        rows = torch.arange(batch, dtype=torch.int32, device=device)
        places = [rows.repeat_interleave(one.shape[1]) + number * batch for number, one in enumerate(few)]
        latents, order = torch.sort(torch.cat([one.flatten().int() for one in few]), stable=True)
        edges = torch.arange(d_sae + 1, dtype=torch.int32, device=device)
        return cls(
            d_sae, indices, gathers, order, torch.cat(places)[order], torch.searchsorted(latents, edges, out_int32=True)
        )

    def sum(
        self, values: Sequence[Float[Tensor, "batch many"]], tables: Sequence[Float[Tensor, "batch d"]], *, turned: bool
    ) -> Tensor:
        """Σ value · row of the code's table over the entries of each latent, `(d_sae, d)`, or `(d, d_sae)` if turned.

        In float32 or wider; products are made in the tables' dtype.
        """
        wide = torch.promote_types(tables[0].dtype, torch.float32)
        total: Tensor | None = None
        few = [place for place, gathers in enumerate(self.gathers) if gathers]
        if few:
            table = torch.cat([tables[place] for place in few])
            weights = torch.cat([values[place].flatten().to(table.dtype) for place in few])[self.order]
            if _tiles(table):
                total = gathered(self.places, self.offsets, weights, table, wide, turned=turned)
            else:
                total = F.embedding_bag(
                    self.places, table, self.offsets, per_sample_weights=weights, mode="sum", include_last_offset=True
                ).to(wide)
                total = total.T if turned else total
        for place, gathers in enumerate(self.gathers):
            if gathers:
                continue
            table = tables[place]
            codes = table.new_zeros(len(table), self.d_sae)
            codes.scatter_(1, self.indices[place], values[place].to(table.dtype))
            # oneDNN multiplies a transposed matrix at half speed, and the table is the small one: lay it out anew.
            product = table.T.contiguous() @ codes if turned else codes.T @ table
            total = product.to(wide) if total is None else total.add_(product)
        if total is None:
            raise ValueError("a sum over no codes")
        return total


def gathered(
    indices: Tensor,
    offsets: Tensor,
    values: Tensor,
    table: Tensor,
    out_dtype: torch.dtype | None = None,
    *,
    turned: bool = False,
) -> Tensor:
    """Σ values · table rows for each bag, `(bags, columns)`, by slices of columns that stay in the cache. CPU only.

    `turned` gives `(columns, bags)`.
    """
    step = max(16, TILE_BYTES // table.element_size())
    bags, columns = len(offsets) - 1, table.shape[1]
    out = torch.empty((columns, bags) if turned else (bags, columns), dtype=out_dtype or table.dtype)
    for start in range(0, columns, step):
        piece = F.embedding_bag(
            indices,
            table[:, start : start + step],
            offsets,
            per_sample_weights=values,
            mode="sum",
            include_last_offset=True,
        )
        if turned:
            out[start : start + step] = piece.T
        else:
            out[:, start : start + step] = piece
    return out


def _tiles(table: Tensor) -> bool:
    """Whether `gathered` is the faster way: its kernel is vectorised for these only."""
    return table.device.type == "cpu" and table.dtype in (torch.float32, torch.bfloat16)


def _pays(indices: Tensor, table: Tensor, costs: dict[torch.dtype, int]) -> bool:
    cost = costs.get(table.dtype, 1) if table.device.type == "cpu" else CUDA_COST
    return indices.shape[1] * cost <= len(table)
