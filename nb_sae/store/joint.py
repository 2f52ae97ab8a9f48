"""Streams of several sites that one forward pass feeds: a buffer of their rows side by side, a view of each site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import torch
from torch import Tensor

from nb_sae.errors import ConfigError, StoreError
from nb_sae.store.files import statistics_of
from nb_sae.store.stream import STATISTICS_ROWS, ActivationStream
from nb_sae.types import HookedModel, Modality, RowStatistics, Site


class JointStream(ActivationStream):
    """Rows of several sites, side by side in one row. Made by `ActivationStream.of_sites`; `parts` are its sites."""

    def __init__(self, model: HookedModel, inputs: Any, *, site: Any, **options: Any) -> None:
        super().__init__(model, inputs, site=site, **options)
        self.parts: dict[str, StreamedSite] = {}
        start = 0
        for one in self._sites:
            self.parts[one.name] = StreamedSite(self, one, slice(start, start + one.width))
            start += one.width
        self._first: tuple[Any, Tensor | None] = (None, None)
        self._by_part: dict[str, RowStatistics] = {}

    def _sites_of(self, model: HookedModel, site: Any, modality: Modality) -> list[Site]:
        if not site or len(set(site)) < len(site):
            raise ConfigError(f"site={site!r} should name at least one site, each once. See model.hook_names().")
        return [model.site(name, modality) for name in site]

    def statistics_by_part(self) -> dict[str, RowStatistics]:
        """Mean and spread of every site, estimated as those of a stream; made once."""
        if not self._by_part:
            limit, kept, count = min(self.buffer_rows, STATISTICS_ROWS), [], 0
            for _, rows in self._produce(self._blocks(0, 0), 0):
                kept.append(rows.cpu())
                count += len(rows)
                if count >= limit:
                    break
            for name, part in self.parts.items():
                self._by_part[name] = statistics_of((part.part_of(rows) for rows in kept), part.d_in)
        return self._by_part

    def first_batch(self, **order: Any) -> Tensor | None:
        """The first batch of a pass, kept until another one is asked for: every site looks at it before it trains."""
        if self._first[0] != order:
            batches = super().batches(**order)
            self._first = order, next(batches, None)
            getattr(batches, "close", bool)()
        return self._first[1]

    def batches(self, batch_rows: int, **order: Any) -> Iterator[Tensor]:
        """As of a stream, all sites side by side."""
        self._first = (None, None)
        return super().batches(batch_rows, **order)


class StreamedSite:
    """One site of a `JointStream`. Implements `types.ActivationSource` as far as training needs it."""

    def __init__(self, joint: JointStream, site: Site, columns: slice) -> None:
        self.joint, self.site, self._columns = joint, site, columns
        self.model, self.revision, self.modality = joint.model, joint.revision, joint.modality

    def __len__(self) -> int:
        return len(self.joint)

    def __repr__(self) -> str:
        return f"StreamedSite({self.site.name!r} of {self.joint!r})"

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.site.width

    @property
    def buffer_rows(self) -> int:
        """Rows that the buffer holds."""
        return self.joint.buffer_rows

    @property
    def inputs(self) -> pl.DataFrame:
        """`input_id, key, status, reason`; "skipped" as far as it is known by now."""
        return self.joint.inputs

    @property
    def rows(self) -> pl.DataFrame:
        """Not kept. Raises `StoreError`."""
        return self.joint.rows

    def __getitem__(self, rows: Any) -> Tensor:
        return self.joint[rows]

    def chunks(self, chunk_rows: int) -> Iterator[tuple[int, Tensor]]:
        """Not kept. Raises `StoreError`."""
        return self.joint.chunks(chunk_rows)

    def chunk_spans(self, chunk_rows: int) -> Iterator[tuple[int, int]]:
        """Not kept. Raises `StoreError`."""
        raise StoreError("A stream keeps no rows. Collect a store of some of the inputs to look at.")

    def statistics(self) -> RowStatistics:
        """Mean and spread, estimated from the first rows."""
        return self.joint.statistics_by_part()[self.site.name]

    def part_of(self, joint_rows: Tensor) -> Tensor:
        """The rows of this site out of rows of all."""
        return joint_rows[:, self._columns]

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
        """As of a stream of this site alone; the model runs for this site by itself."""
        order = {"seed": seed, "epoch": epoch, "device": torch.device(device), "share": share}
        if not skip:
            first = self.joint.first_batch(batch_rows=batch_rows, **order)
            if first is None:
                return
            yield self.part_of(first)
        for batch in self.joint.batches(batch_rows, skip=max(skip, 1), **order):
            yield self.part_of(batch)

    def held_bytes(self, device: torch.device) -> int:
        """Its share of the buffer."""
        return self.joint.held_bytes(device) * self.d_in // self.joint.d_in

    def resume_state(self) -> dict[str, Any]:
        """Where the last fillings of all sites began."""
        return self.joint.resume_state()

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take over what `resume_state` gave."""
        self.joint.load_resume_state(state)
