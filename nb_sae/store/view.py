"""Rows keyed by `(input_id, token)`, and the ways of reading them: by number, shuffled, in order, in parts."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor

from nb_sae.atomic import FileMark
from nb_sae.errors import ConfigError, StoreError, closest
from nb_sae.machine import readable_bytes
from nb_sae.store.files import check_content, read_table, statistics_of
from nb_sae.store.manifest import INPUTS_TABLE, ROWS_TABLE
from nb_sae.store.order import (
    BUFFER_BYTES,
    ShuffledOrder,
    iterate_batches,
    open_resident,
    open_streamed,
    order_of_epoch,
)
from nb_sae.store.reading import RowReader, Selection, check_batch_rows, check_fits, check_share, resident_budget
from nb_sae.types import HookedModel, Modality, RowStatistics, Site

STATISTICS_ROWS = 65_536
"""Rows that are read at a time for the statistics of a view."""
READ_ROWS = 16_384
"""Rows that are copied at a time into a buffer of an epoch."""


class StoredRows:
    """What every activation store can do once its rows are there. Implements `types.ActivationSource`."""

    resident_bytes: int | None = None
    """Rows up to this many bytes are kept on the device by `batches`; None: a quarter of its memory."""

    def __init__(
        self,
        reader: RowReader,
        *,
        site: Site,
        model: str,
        revision: str,
        modality: Modality | None,
        tables: TableFiles | TableFrames,
        path: Path | None = None,
        statistics: RowStatistics | None = None,
        selection: Selection | None = None,
        view: str = "",
    ) -> None:
        self.site = site
        self.model = model
        self.revision = revision
        self.modality: Modality | None = modality
        self.path = path
        """Folder or file of the rows; None for rows in memory."""
        self._reader = reader
        self._tables = tables
        self._statistics = statistics
        self._selection = selection or Selection(np.array([0]), np.array([reader.rows]))
        self._view = view
        self._rows: pl.DataFrame | None = None
        self._resident: Tensor | None = None
        self._context_ends: np.ndarray | None = None

    # ── what it is ────────────────────────────────────────────────────────────────────────────────────────────

    def __len__(self) -> int:
        return len(self._selection)

    def __repr__(self) -> str:
        kind = str(self._reader.dtype).removeprefix("torch.")
        where = f", {str(self.path)!r}" if self.path is not None else ""
        view = f", {self._view}" if self._view else ""
        return (
            f"ActivationStore({self.site.name!r} of {self.model!r}: {len(self):,} rows × {self.d_in}, {kind}, "
            f"{readable_bytes(self.nbytes)}{view}{where})"
        )

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self._reader.d_in

    @property
    def dtype(self) -> torch.dtype:
        """What the rows are stored in. They are always given as float32."""
        return self._reader.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the rows as stored."""
        return len(self) * self.row_bytes

    @property
    def rows(self) -> pl.DataFrame:
        """`input_id, token`, one line per row, in the order of the rows."""
        if self._rows is None:
            everything = self._tables.rows()
            whole = len(self) == everything.height
            self._rows = everything if whole else everything[self._selection.base(np.arange(len(self)))]
        return self._rows

    @property
    def inputs(self) -> pl.DataFrame:
        """`input_id, key, status, reason`: every input that was offered; of a view, the inputs that it holds."""
        everything = self._tables.inputs()
        if not self._view:
            return everything
        mine = self.rows["input_id"].unique()
        return everything.filter(pl.col("input_id").is_in(mine.implode()))

    @property
    def skipped(self) -> pl.DataFrame:
        """The lines of `inputs` that gave no rows, with the reason."""
        return self.inputs.filter(pl.col("status") == "skipped")

    def statistics(self) -> RowStatistics:
        """Mean and mean square distance of these rows, from the manifest or in one pass in float64."""
        if self._statistics is None:
            starts = range(0, len(self), STATISTICS_ROWS)
            chunks = (self._read_range(start, min(start + STATISTICS_ROWS, len(self))) for start in starts)
            self._statistics = statistics_of(chunks, self.d_in)
        return self._statistics

    def check(self, model: HookedModel, *, site: str | None = None) -> None:
        """Refuse to be used with a model, or at a site, that the rows do not come from.

        Raises:
            StoreError: Names both.
        """
        if (self.model, self.revision) != (model.name, model.revision):
            raise StoreError(
                f"The rows come from {self.model!r} (revision {self.revision!r}), this is {model.name!r} "
                f"(revision {model.revision!r}). Load the model that was collected, or collect with this one."
            )
        if site is not None and site != self.site.name:
            raise StoreError(
                f"The rows come from site {self.site.name!r}, asked for is {site!r}. Open the store of that site."
            )
        if self.modality is not None:
            width = model.site(self.site.name, self.modality).width
            if width != self.d_in:
                raise StoreError(
                    f"The rows have {self.d_in} values, {self.site.name!r} of {model.name!r} gives {width}. "
                    "Collect with this model."
                )

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    def __getitem__(self, rows: Any) -> Tensor:
        """Rows by number `(d_in,)`, slice, list or integer or boolean array `(n, d_in)`; float32, on the CPU."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            check_fits(len(range(start, stop, step)), self.d_in)
            if step == 1:
                return _float32_copy(self._read_range(start, max(start, stop)))
            rows = np.arange(start, stop, step)
        elif isinstance(rows, int | np.integer) or (isinstance(rows, Tensor) and rows.dim() == 0):
            return self[[operator.index(rows)]][0]
        numbers = self._row_numbers(rows)
        check_fits(len(numbers), self.d_in)
        return self._reader.read(self._selection.base(numbers)).float()

    def stored(self, start: int, stop: int) -> Tensor:
        """Rows `start … stop-1` as they are stored, on the CPU. They may share memory with the store: never write."""
        return self._read_range(start, stop)

    def batches(
        self,
        batch_rows: int,
        *,
        seed: int,
        epoch: int = 0,
        skip: int = 0,
        device: Any = "cpu",
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[Tensor]:
        """Shuffled full batches `(batch_rows, d_in)` of one epoch, float32 on the device.

        The order depends on `(seed, epoch)` and the store alone, not on whether its rows fit into memory. The last
        rows that fill no batch are left out; a store shorter than one batch gives one batch of all its rows.

        Args:
            batch_rows: Rows of a batch.
            seed: Of the order.
            epoch: Each has its own order.
            skip: Batches to leave out at the start, without reading them.
            device: Where the batches are wanted.
            share: `(i, n)` gives every n-th row of each batch, from the i-th on, `(batch_rows / n, d_in)`: what process
                i of n trains on. Of a large store about an n-th is read, and by no other process.

        Raises:
            ConfigError: `batch_rows` is below 1, or cannot be shared out evenly.
        """
        check_batch_rows("batch_rows", batch_rows)
        check_share(min(batch_rows, len(self)), share)
        place = torch.device(device)
        order = order_of_epoch(len(self), row_bytes=self.row_bytes, seed=seed, epoch=epoch, share=share)
        return self.in_order(order, batch_rows, skip=skip, device=place)

    def in_order(self, order: ShuffledOrder, batch_rows: int, *, skip: int, device: torch.device) -> Iterator[Tensor]:
        """Full batches in an order that is given, float32 on the device."""
        budget = self.resident_bytes if self.resident_bytes is not None else resident_budget(device)
        held = self._is_resident(device) or (self._reader.in_memory and not self._view and device.type == "cpu")
        if held or self.nbytes <= budget:
            open_buffer = open_resident(order, self._resident_on(device))
            return iterate_batches(order, batch_rows, skip=skip, open_buffer=open_buffer, ahead=False)
        open_buffer = open_streamed(order, self._read_runs, device=device)
        return iterate_batches(order, batch_rows, skip=skip, open_buffer=open_buffer, ahead=True)

    def chunks(self, chunk_rows: int) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)` in order, float32 on the CPU.

        A chunk ends where a context ends, so it is shorter than `chunk_rows`, or longer if one context is.
        """
        for start, stop in self.chunk_spans(chunk_rows):
            yield start, _float32_copy(self._read_range(start, stop))

    def chunk_spans(self, chunk_rows: int) -> Iterator[tuple[int, int]]:
        """`(first row, last row + 1)` of every chunk that `chunks` gives."""
        check_batch_rows("chunk_rows", chunk_rows)
        ends = self._ends_of_contexts()
        start = 0
        while start < len(self):
            if ends is None:
                stop = min(start + chunk_rows, len(self))
            else:
                stop = int(ends[max(np.searchsorted(ends, start + chunk_rows, side="right") - 1, 0)])
                if stop <= start:
                    stop = int(ends[np.searchsorted(ends, start, side="right")])
            yield start, stop
            start = stop

    # ── parts of it ───────────────────────────────────────────────────────────────────────────────────────────

    def split(self, test: float = 0.1, seed: int = 0) -> tuple[Self, Self]:
        """Two views `(train, test)` that share no input.

        Args:
            test: Fraction of the inputs for the second view, between 0 and 1; at least one goes to each.
            seed: Of the choice.

        Raises:
            ConfigError: `test` is outside (0, 1).
            StoreError: Fewer than two inputs have rows.
        """
        if not 0 < test < 1:
            raise ConfigError(f"test={test} is outside (0, 1). Give the fraction of the inputs to hold out, say 0.1.")
        ids = np.sort(self.rows["input_id"].unique().to_numpy())
        if len(ids) < 2:
            raise StoreError(f"{self!r} holds rows of {len(ids)} input, a split needs two. Collect more inputs.")
        count = min(max(round(len(ids) * test), 1), len(ids) - 1)
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed % 2**64)))
        held_out = np.sort(random.permutation(ids)[:count])
        kept = np.setdiff1d(ids, held_out, assume_unique=True)
        return (
            self._view_of(kept, f"{len(kept):,} of {len(ids):,} inputs (train)"),
            self._view_of(held_out, f"{len(held_out):,} of {len(ids):,} inputs (test)"),
        )

    def subset(self, inputs: Sequence[int] | Sequence[str]) -> Self:
        """A view of some inputs, by `input_id` or by key. The rows keep their order.

        Raises:
            StoreError: An input that is not in the store, with the closest keys.
        """
        table = self.inputs.filter(pl.col("status") == "ok")
        by_key = len(inputs) > 0 and isinstance(inputs[0], str)
        column = table["key" if by_key else "input_id"]
        wanted = pl.Series(list(inputs), dtype=column.dtype)
        unknown = wanted.filter(~wanted.is_in(column.implode()))
        if len(unknown) or not len(wanted):
            first = str(unknown[0]) if len(unknown) else "nothing"
            near = closest(first, column.to_list()) if by_key else ""
            raise StoreError(
                f"The store has no rows of input {first!r}. {near}See the frame store.inputs for what it holds."
            )
        ids = table.filter(column.is_in(wanted.implode()))["input_id"].to_numpy()
        return self._view_of(np.sort(ids), f"{len(ids):,} of {table.height:,} inputs")

    def _view_of(self, input_ids: np.ndarray, view: str) -> Self:
        mine = np.isin(self.rows["input_id"].to_numpy(), input_ids)
        base = np.zeros(self._reader.rows, dtype=bool)
        base[self._selection.base(np.flatnonzero(mine))] = True
        part = type(self)(
            self._reader, site=self.site, model=self.model, revision=self.revision, modality=self.modality,
            tables=self._tables, path=self.path, selection=Selection.of_mask(base), view=view,
        )  # fmt: skip
        part.resident_bytes = self.resident_bytes
        return part

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as stored."""
        return self.d_in * self.dtype.itemsize

    def _read_range(self, start: int, stop: int) -> Tensor:
        return self._selection.read_range(self._reader, start, stop)

    def _read_runs(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """Rows of ascending runs, one after the other, in memory of their own."""
        together = getattr(self._reader, "read_runs", None)
        if together is not None:  # a remote store: every request waits, so all of them are made at once
            return together([part for start, stop in runs for part in self._selection.parts(start, stop)])
        rows = torch.empty(sum(stop - start for start, stop in runs), self.d_in, dtype=self.dtype)
        filled = 0
        for first, end in runs:
            for start in range(first, end, READ_ROWS):
                piece = self._read_range(start, min(start + READ_ROWS, end))
                rows[filled : filled + len(piece)] = piece
                filled += len(piece)
        return rows

    def _row_numbers(self, rows: Any) -> np.ndarray:
        numbers = rows.cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
        if numbers.dtype == bool and numbers.shape == (len(self),):
            return np.flatnonzero(numbers)
        if numbers.size == 0:
            return np.empty(0, dtype=np.int64)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise IndexError(
                f"Rows are chosen by number, slice, or a 1-D integer or boolean array; got {numbers.dtype} of shape "
                f"{numbers.shape}."
            )
        numbers = numbers.astype(np.int64)
        if numbers.min() < -len(self) or numbers.max() >= len(self):
            wrong = int(numbers[(numbers < -len(self)) | (numbers >= len(self))][0])
            raise IndexError(f"Row {wrong} is outside the store, which has rows 0 … {len(self) - 1}.")
        return np.where(numbers < 0, numbers + len(self), numbers)

    def held_bytes(self, device: torch.device) -> int:
        """Bytes that `batches` takes there: of all rows where they are kept, else of the buffers being shuffled."""
        if self._reader.in_memory and not self._view and device.type == "cpu":
            return 0
        budget = self.resident_bytes if self.resident_bytes is not None else resident_budget(device)
        return self.nbytes if self.nbytes <= budget else min(2 * BUFFER_BYTES, self.nbytes)

    def release(self) -> None:
        """Let go of the copy of the rows that `batches` keeps on a device; it is made again when it is needed."""
        self._resident = None

    def _is_resident(self, device: torch.device) -> bool:
        return self._resident is not None and self._resident.device == device

    def _resident_on(self, device: torch.device) -> Tensor:
        if self._resident is None or not self._is_resident(device):
            whole = self._read_range(0, len(self)) if self._reader.in_memory and device.type == "cpu" else None
            if whole is None:
                whole = torch.empty(len(self), self.d_in, dtype=self.dtype, device=device)
                for start in range(0, len(self), STATISTICS_ROWS):
                    piece = self._read_range(start, min(start + STATISTICS_ROWS, len(self)))
                    whole[start : start + len(piece)] = piece.to(device)
            self._resident = whole
        return self._resident

    def _ends_of_contexts(self) -> np.ndarray | None:
        """Row numbers at which a context ends, ascending; None where each row is a context."""
        if self.site.pooled or self.site.positions <= 1:
            return None
        if self._context_ends is None:
            input_id = self.rows["input_id"].to_numpy()
            context = self.rows["token"].to_numpy() // self.site.positions
            changes = np.flatnonzero((np.diff(input_id) != 0) | (np.diff(context) != 0)) + 1
            self._context_ends = np.append(changes, len(self))
        return self._context_ends


class TableFiles:
    """`rows` and `inputs` of a store on disk, read when they are first asked for."""

    def __init__(self, folder: Path, marks: dict[str, FileMark]) -> None:
        self._folder, self._marks = folder, marks
        self._read: dict[str, pl.DataFrame] = {}

    def rows(self) -> pl.DataFrame:
        """`input_id, token`, one line per row."""
        return self._table(ROWS_TABLE)

    def inputs(self) -> pl.DataFrame:
        """`input_id, key, status, reason`, one line per input."""
        return self._table(INPUTS_TABLE)

    def _table(self, name: str) -> pl.DataFrame:
        if name not in self._read:
            check_content(self._folder / name, self._marks[name])
            self._read[name] = read_table(self._folder / name)
        return self._read[name]


class TableFrames:
    """`rows` and `inputs` that are in memory."""

    def __init__(self, rows: pl.DataFrame, inputs: pl.DataFrame) -> None:
        self._rows, self._inputs = rows, inputs

    def rows(self) -> pl.DataFrame:
        """`input_id, token`, one line per row."""
        return self._rows

    def inputs(self) -> pl.DataFrame:
        """`input_id, key, status, reason`, one line per input."""
        return self._inputs


def _float32_copy(rows: Tensor) -> Tensor:
    # A float32 row would otherwise share memory with the store.
    return rows.clone() if rows.dtype == torch.float32 else rows.float()
