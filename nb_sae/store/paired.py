"""Rows of two sites of the same inputs, side by side: what a transcoder is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import torch
from torch import Tensor

from nb_sae.errors import StoreError
from nb_sae.store.order import order_of_epoch
from nb_sae.store.reading import check_batch_rows, check_share
from nb_sae.store.view import StoredRows
from nb_sae.types import RowStatistics


def pair(x: StoredRows, y: StoredRows) -> PairedRows:
    """Rows of `x` with the rows of `y` that belong to the same tokens of the same inputs.

    Collect both sites in one call, `collect(…, site=[a, b])`, and split or subset both alike.

    Args:
        x: What the transcoder reads.
        y: What it writes.

    Raises:
        StoreError: the rows are of other inputs, tokens, models or in another order; names the first difference.
    """
    return PairedRows(x, y)


class PairedRows:
    """Implements `types.ActivationSource` for the rows of `x`; `batches` gives pairs `(x, y)`. Made by `pair`."""

    def __init__(self, x: StoredRows, y: StoredRows) -> None:
        check_aligned(x, y)
        self.x = x
        self.target = y
        self.site, self.model, self.revision = x.site, x.model, x.revision

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"PairedRows({self.x!r} → {self.target!r})"

    @property
    def d_in(self) -> int:
        """Width of a row of `x`."""
        return self.x.d_in

    @property
    def rows(self) -> pl.DataFrame:
        """`input_id, token` of every pair."""
        return self.x.rows

    @property
    def inputs(self) -> pl.DataFrame:
        """Every input that was offered, of `x`."""
        return self.x.inputs

    def statistics(self) -> RowStatistics:
        """Of `x`; those of the other side are `target.statistics()`."""
        return self.x.statistics()

    def __getitem__(self, rows: Any) -> Tensor:
        """Rows of `x`."""
        return self.x[rows]

    def chunks(self, chunk_rows: int) -> Iterator[tuple[int, Tensor]]:
        """Rows of `x` in order."""
        return self.x.chunks(chunk_rows)

    def chunk_spans(self, chunk_rows: int) -> Iterator[tuple[int, int]]:
        """Where the chunks begin and end."""
        return self.x.chunk_spans(chunk_rows)

    def batches(
        self,
        batch_rows: int,
        *,
        seed: int,
        epoch: int = 0,
        skip: int = 0,
        device: Any = "cpu",
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled full batches `(batch_rows, d_in), (batch_rows, d_out)` of one epoch, in one order for both sides.

        Arguments as for `ActivationStore.batches`.
        """
        check_batch_rows("batch_rows", batch_rows)
        check_share(min(batch_rows, len(self)), share)
        place = torch.device(device)
        row_bytes = self.x.row_bytes + self.target.row_bytes
        order = order_of_epoch(len(self), row_bytes=row_bytes, seed=seed, epoch=epoch, share=share)
        return zip(
            self.x.in_order(order, batch_rows, skip=skip, device=place),
            self.target.in_order(order, batch_rows, skip=skip, device=place),
            strict=True,
        )

    def held_bytes(self, device: torch.device) -> int:
        """Bytes that `batches` takes there, of both sides."""
        return self.x.held_bytes(device) + self.target.held_bytes(device)

    def release(self) -> None:
        """Let go of the copies of the rows that `batches` keeps on a device."""
        self.x.release()
        self.target.release()

    def split(self, test: float = 0.1, seed: int = 0) -> tuple[PairedRows, PairedRows]:
        """Two parts `(train, test)` that share no input; both sides are split alike."""
        one, other = self.x.split(test, seed), self.target.split(test, seed)
        return PairedRows(one[0], other[0]), PairedRows(one[1], other[1])


def check_aligned(x: StoredRows, y: StoredRows) -> None:
    """Refuse stores whose rows do not lie side by side: row i of both is the same token of the same input.

    Raises:
        StoreError: other inputs, tokens, models or another order; names the first difference.
    """
    if (x.model, x.revision) != (y.model, y.revision):
        raise StoreError(
            f"The rows come from {x.model!r} (revision {x.revision!r}) and {y.model!r} (revision {y.revision!r}); "
            "expected two sites of one model. Collect both in one call: collect(…, site=[a, b])."
        )
    if len(x) != len(y):
        raise StoreError(
            f"{x.site.name!r} has {len(x):,} rows, {y.site.name!r} has {len(y):,}. Collect both sites in one call with "
            "the same tokens=, and take the same split or subset of both."
        )
    mine, its = x.rows, y.rows
    for column in ("input_id", "token"):
        differs = (mine[column] != its[column]).arg_true()
        if len(differs):
            row = int(differs[0])
            raise StoreError(
                f"Row {row:,} is {_name(mine, row)} at {x.site.name!r} and {_name(its, row)} at {y.site.name!r}. "
                "Collect both sites in one call with the same tokens=, and take the same split or subset of both."
            )
    keys = (x.inputs["key"], y.inputs["key"])
    if len(keys[0]) != len(keys[1]) or not bool((keys[0] == keys[1]).all()):
        raise StoreError("The two stores hold other inputs: their keys differ. Collect both sites in one call.")


def _name(rows: pl.DataFrame, row: int) -> str:
    return f"token {rows['token'][row]} of input {rows['input_id'][row]}"
