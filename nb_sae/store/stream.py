"""Rows that never touch the disk: the model fills a buffer on the device as training uses it up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from nb_sae.errors import ConfigError, NonFiniteError, NotEnoughMemoryError, StoreError
from nb_sae.machine import Readback, free_bytes, readable_bytes
from nb_sae.store.capturing import choose_rows
from nb_sae.store.collect import IMAGE_SAMPLE, TEXT_SAMPLE, CollectOptions, rows_per_input
from nb_sae.store.decoding import DecodedBatch, Decoder, decoded, sample_inputs
from nb_sae.store.files import DTYPES, statistics_of
from nb_sae.store.filling import Filler
from nb_sae.store.pipeline import inputs_table
from nb_sae.store.reading import check_batch_rows
from nb_sae.types import HookedModel, Inputs, Modality, RowStatistics, Site, Tokens

if TYPE_CHECKING:
    from nb_sae.store.joint import StreamedSite

BUFFER_BYTES = 512 * 1024 * 1024
"""Size of the buffer where none is given."""
STATISTICS_ROWS = 65_536
"""Rows from which mean and spread are estimated, at most; fewer if the buffer is smaller."""


class ActivationStream:
    """Rows of one site, made as they are needed. Implements `types.ActivationSource` as far as training needs it.

    A buffer of `rows` rows is allocated once on the training device. One pass over the inputs goes like this: blocks of
    neighbouring inputs come in a random order; their rows fill the buffer; batches are drawn from it without
    replacement, and every place that falls free takes the next row of the model, for the next filling. So each row of
    a pass is given exactly once (but for the last rows that fill no batch), two rows of one input meet in a batch as
    rarely as in a full shuffle of the buffer, and no row comes more than two buffers later than it was made. With
    buffer rows ≥ 100 × the rows of an input the batches are as good as those of a store.

    The order is a function of seed, pass, `batch_rows`, the buffer and `batch_inputs`. `Session.save` keeps where the
    last fillings began, so that resuming runs the model over at most two buffers again; it then continues bit for bit
    where the model gives the same bits for the same batch (a CPU with the same threads does).

    Mean and spread, which set the scale of training, are estimated from the first rows in the order of seed 0. `len` is
    the rows of one pass, estimated from a few inputs: exact for images, about right for texts. Rows cannot be read by
    number and have no table: collect a store of part of the inputs to analyse.

    Args:
        model: From `load_clip` or `load_lm`.
        inputs: From `images`, `texts` and the like; only their number and access by number are needed.
        site: A name from `model.hook_names()`.
        rows: Rows that the buffer holds; or give `bytes`. Neither: 512 MiB.
        bytes: Size of the buffer.
        tokens: As for `ActivationStore.collect`.
        dtype: Of the buffer: "float16", "bfloat16" or "float32". Batches are float32.
        batch_inputs: Inputs that the model sees at a time.
        workers: Processes that decode; 0: this one.
        special_tokens: Keep the rows of BOS, EOS and the like.
        progress: Print the buffer's size before it is allocated.

    Raises:
        HookError: the site does not exist.
        ConfigError: a setting has no meaning.
    """

    def __init__(
        self,
        model: HookedModel,
        inputs: Inputs,
        *,
        site: str,
        rows: int | None = None,
        bytes: int | None = None,  # noqa: A002 (the word that says it)
        tokens: Tokens = "all",
        dtype: str = "float16",
        batch_inputs: int | None = None,
        workers: int = 0,
        special_tokens: bool = False,
        progress: bool = True,
    ) -> None:
        options = CollectOptions(
            tokens=tokens, dtype=dtype, batch_inputs=batch_inputs, workers=workers, special_tokens=special_tokens
        )
        options.check()
        if not isinstance(model, HookedModel) or not isinstance(inputs, Inputs):
            raise ConfigError(
                f"Got a {type(model).__name__} and a {type(inputs).__name__}; expected a model from load_clip() or "
                "load_lm(), and inputs from images(…) or texts(…)."
            )
        if not len(inputs):
            raise ConfigError(f"{inputs.name!r} holds no inputs. Give at least one image or text.")
        if rows is not None and bytes is not None:
            raise ConfigError(f"Both rows={rows} and bytes={bytes} are given. Give one of them.")
        self._sites = self._sites_of(model, site, inputs.modality)
        self.site = self._sites[0] if len(self._sites) == 1 else joined(self._sites)
        self.model, self.revision = model.name, model.revision
        self.modality: Modality = inputs.modality
        self.dtype = DTYPES[dtype]
        self.skipped_inputs: dict[int, str] = {}
        """Inputs that could not be read so far, and why."""
        self._model, self._inputs, self._options = model, inputs, options
        context = getattr(inputs, "context_tokens", None)
        self._prepare = model.preprocessor(inputs.modality, context_tokens=context)
        self._decoder = Decoder(inputs, self._prepare)
        sample = sample_inputs(inputs, self._prepare, IMAGE_SAMPLE if inputs.modality == "image" else TEXT_SAMPLE)
        counts = {one.name: rows_per_input(sample.prepared, one, options) for one in self._sites}
        if len({*counts.values()}) > 1 or len({one.pooled for one in self._sites}) > 1:
            raise ConfigError(
                f"The sites give other numbers of rows per input ({counts}), so no row of one belongs to a row of the "
                "other. Stream them apart."
            )
        self._length = round(counts[self._sites[0].name] * len(inputs))
        size = self.site.width * self.dtype.itemsize
        wanted = rows if rows is not None else (bytes or BUFFER_BYTES) // size
        if wanted < 1:
            raise ConfigError(f"rows={rows}, bytes={bytes} hold no row of {size} bytes. Give a larger buffer.")
        self.buffer_rows = min(wanted, max(self._length, 1))
        self._batch_inputs = batch_inputs or (64 if inputs.modality == "image" else 32)
        self._show = progress
        self._statistics: RowStatistics | None = None
        self._order: dict[str, int] = {}
        self._marks: dict[int, tuple[int, int]] = {}
        """Where each filling begins: number → (block in the order of the pass, row of it)."""

    @classmethod
    def of_sites(
        cls, model: HookedModel, inputs: Inputs, *, site: Sequence[str], **options: Any
    ) -> dict[str, StreamedSite]:
        """Streams of several sites that one forward pass feeds: `train_all` runs it once for all of them.

        The buffer (`rows` or `bytes`) is that of all sites together. Each gives the batches of an `ActivationStream` of
        its site alone with as many `rows`; used by itself it runs the model for itself.

        Args:
            model: As for a stream.
            inputs: As for a stream.
            site: Names from `model.hook_names()`, of one tower; each gives a row for the same tokens.
            options: The other arguments of a stream.

        Raises:
            HookError: a site does not exist.
            ConfigError: no site, one twice, sites with other numbers of rows, or a setting that has no meaning.
        """
        from nb_sae.store.joint import JointStream

        return JointStream(model, inputs, site=list(site or ()), **options).parts  # pyright: ignore[reportArgumentType]

    def _sites_of(self, model: HookedModel, site: Any, modality: Modality) -> list[Site]:
        return [model.site(site, modality)]

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return (
            f"ActivationStream({self.site.name!r} of {self.model!r}: about {len(self):,} rows × {self.d_in} a pass, "
            f"buffer {self.buffer_rows:,} rows, {str(self.dtype).removeprefix('torch.')})"
        )

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.site.width

    @property
    def inputs(self) -> pl.DataFrame:
        """`input_id, key, status, reason`; "skipped" as far as it is known by now."""
        return inputs_table(self._inputs.keys, self.skipped_inputs)

    @property
    def rows(self) -> pl.DataFrame:
        """Not kept."""
        raise StoreError(_NOT_KEPT)

    def __getitem__(self, rows: Any) -> Tensor:
        raise StoreError(_NOT_KEPT)

    def chunks(self, chunk_rows: int) -> Iterator[tuple[int, Tensor]]:
        """Not kept."""
        raise StoreError(_NOT_KEPT)

    def statistics(self) -> RowStatistics:
        """Mean and spread, estimated from the first rows in the order of seed 0; made once."""
        if self._statistics is None:
            limit, kept, count = min(self.buffer_rows, STATISTICS_ROWS), [], 0
            for _, rows in self._produce(self._blocks(0, 0), 0):
                kept.append(rows.cpu())
                count += len(rows)
                if count >= limit:
                    break
            self._statistics = statistics_of(kept, self.d_in)
        return self._statistics

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
        """Full batches `(batch_rows, d_in)` of one pass over the inputs, float32 on the device.

        Arguments as for `ActivationStore.batches`. Skipping runs the model over what it has to: from the last filling
        whose beginning is known, else from the start of the pass. Every process of several runs the whole model.

        Raises:
            ConfigError: the buffer holds fewer than two batches.
            NonFiniteError: a row is NaN or infinite, or does not fit the buffer's dtype; names the inputs.
            NotEnoughMemoryError: the device does not hold the buffer.
            InputError, StoreError: as `ActivationStore.collect`.
        """
        check_batch_rows("batch_rows", batch_rows)
        place = torch.device(device)
        lanes = min(batch_rows, self._length)
        slots = self.buffer_rows // lanes
        if slots < 2 and self._length >= 2 * lanes:
            raise ConfigError(
                f"The buffer holds {self.buffer_rows:,} rows, fewer than two batches of {batch_rows:,}. "
                f"Give rows={16 * batch_rows} or more, or a smaller batch."
            )
        slots = max(slots, 1)
        order = {"seed": seed, "epoch": epoch, "lanes": lanes, "slots": slots, "block": self._batch_inputs}
        if order != self._order:
            self._order, self._marks = order, {}
        buffer = self._allocate(slots, lanes, place)
        first, last = share
        return (batch[first::last] for batch in self._mix(buffer, seed, epoch, skip, self._marks))

    def held_bytes(self, device: torch.device) -> int:
        """Bytes that `batches` takes there."""
        return self.buffer_rows * self.d_in * self.dtype.itemsize

    def resume_state(self) -> dict[str, Any]:
        """Where the last fillings began, for `Session.save`."""
        return {"order": self._order, "marks": [[number, *mark] for number, mark in self._marks.items()]}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take over what `resume_state` gave."""
        self._order = dict(state["order"])
        self._marks = {number: (block, row) for number, block, row in state["marks"]}

    # ── the buffer ────────────────────────────────────────────────────────────────────────────────────────────

    def _allocate(self, slots: int, lanes: int, device: torch.device) -> Tensor:
        rows, free = slots * lanes, free_bytes(device)
        size = rows * self.d_in * self.dtype.itemsize
        what = f"{rows:,} rows × {self.d_in:,} × {self.dtype.itemsize} bytes = {readable_bytes(size)} on {device}"
        if self._show:
            print(f"Buffer of {self.site.name}: {what}")
            self._show = False
        if free is not None and size > free:
            raise NotEnoughMemoryError(
                f"The buffer needs {what}, {readable_bytes(free)} are free. Give a smaller rows= or bytes=."
            )
        return torch.empty(slots, lanes, self.d_in, dtype=self.dtype, device=device)

    def _mix(
        self, buffer: Tensor, seed: int, epoch: int, skip: int, marks: dict[int, tuple[int, int]]
    ) -> Iterator[Tensor]:
        """Draw without replacement, lane by lane; a filling lies at the top of the buffer, the next grows from there.

        A draw takes, in every lane, a random one of the rows that are left, and moves the lane's last one into its
        place; the slot that falls free is the next filling's.
        """
        slots, lanes, width = buffer.shape
        flat, lane = buffer.view(-1, width), torch.arange(lanes, device=buffer.device)
        filling, draws = divmod(skip, slots)
        known = max((number for number in marks if number <= filling), default=0)
        block, row = marks.get(known, (0, 0))
        with Filler(self._produce(self._blocks(seed, epoch), block), buffer, block, row) as filler:
            for _ in range((filling - known) * slots):
                if not filler.take(slots - 1):
                    return
            count = self._fill(filler, filling, slots, marks)
            while count:
                picks = self._picks(seed, epoch, filling, count, lanes).to(buffer.device)
                coming = 0
                mark = filler.position
                for draw in range(count):
                    last = slots - 1 - draw  # the top one of those that are left
                    chosen = picks[draw].add(slots - count).mul_(lanes).add_(lane)
                    batch = flat.index_select(0, chosen).float() if draw >= draws else None
                    flat.index_copy_(0, chosen, buffer[last].clone())
                    if coming == draw and filler.take(last):
                        coming += 1
                    if draw == 0 and coming:
                        _mark(marks, filling + 1, mark)
                    if batch is not None:
                        yield batch
                filling, draws, count = filling + 1, 0, coming

    @staticmethod
    def _fill(filler: Filler, filling: int, slots: int, marks: dict[int, tuple[int, int]]) -> int:
        _mark(marks, filling, filler.position)
        for count in range(slots):
            if not filler.take(slots - 1 - count):
                return count
        return slots

    @staticmethod
    def _picks(seed: int, epoch: int, filling: int, count: int, lanes: int) -> Tensor:
        """`(draws, lanes)`: which of the rows that are left each draw takes."""
        state = np.random.SeedSequence(entropy=seed % 2**64, spawn_key=(epoch, 1 + filling)).generate_state(
            1, np.uint64
        )
        generator = torch.Generator().manual_seed(int(state[0]) % 2**63)
        chance = torch.rand(count, lanes, generator=generator, dtype=torch.float64)
        left = torch.arange(count, 0, -1)[:, None]
        return (chance * left).long()

    # ── the model ─────────────────────────────────────────────────────────────────────────────────────────────

    def _blocks(self, seed: int, epoch: int) -> list[range]:
        """Neighbouring inputs that the model sees together, in the order of a pass."""
        starts = np.arange(0, len(self._inputs), self._batch_inputs)
        sequence = np.random.SeedSequence(entropy=seed % 2**64, spawn_key=(epoch, 0))
        shuffled = np.random.Generator(np.random.PCG64(sequence)).permutation(starts)
        return [range(int(one), min(int(one) + self._batch_inputs, len(self._inputs))) for one in shuffled]

    def _produce(self, blocks: list[range], first: int) -> Iterator[tuple[int, Tensor]]:
        """Number of a block and its rows, in the buffer's dtype, on the device where the model leaves them."""
        workers, pin = self._options.workers or 0, self._model.device.type == "cuda"
        unchecked: deque[tuple[range, Readback]] = deque()
        with decoded(self._decoder, blocks[first:], workers=workers, pin=pin) as batches:
            for number, batch in enumerate(batches, start=first):
                self.skipped_inputs.update(batch.skipped)
                pieces = list(self._capture(batch))
                for piece in pieces:
                    if len(piece):
                        unchecked.append((batch.offered, Readback(torch.stack(torch.aminmax(piece)))))
                # Values are looked at one block later where the model runs on a GPU, which so is not waited for.
                while len(unchecked) > (len(pieces) if pin else 0):
                    self._check(*unchecked.popleft())
                for piece in pieces:
                    yield number, piece.to(self.dtype)
            while unchecked:
                self._check(*unchecked.popleft())

    def _capture(self, batch: DecodedBatch) -> Iterator[Tensor]:
        if batch.tensor is None:
            return
        options, size = self._options, self._batch_inputs
        for start in range(0, len(batch.tensor), size):
            part = slice(start, start + size)
            given = batch.tensor[part]
            with torch.no_grad():
                seen = self._model.capture_rows(given, [site.name for site in self._sites], self.modality)
            keep = None if batch.keep is None else batch.keep[part].numpy()
            special = None if batch.special is None else batch.special[part].numpy()
            chosen = [
                choose_rows(
                    site, seen[site.name], len(given), keep, special, tokens=options.tokens,
                    special_tokens=options.special_tokens,
                )[0]
                for site in self._sites
            ]  # fmt: skip
            yield chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=1)

    def _check(self, offered: range, ends: Readback) -> None:
        low, high = ends.wait()[0].tolist()
        limit = torch.finfo(self.dtype).max
        if -limit <= low and high <= limit:
            return
        where = f"inputs {offered.start} to {offered.stop - 1} at {self.site.name!r}"
        if not np.isfinite([low, high]).all():
            raise NonFiniteError(f"The activations of {where} hold NaN or infinity. Leave the broken input out.")
        name = str(self.dtype).removeprefix("torch.")
        raise NonFiniteError(
            f"The activations of {where} reach {max(-low, high):.6g}; {name} ends at {limit:.6g}. Stream with "
            f"dtype={'bfloat16' if name == 'float16' else 'float32'!r}."
        )


def joined(sites: Sequence[Site]) -> Site:
    """Rows of several sites side by side, as if they were of one."""
    name = " + ".join(one.name for one in sites[:3]) + (" + …" if len(sites) > 3 else "")
    return replace(sites[0], name=name, width=sum(one.width for one in sites))


def _mark(marks: dict[int, tuple[int, int]], filling: int, position: tuple[int, int]) -> None:
    marks[filling] = position
    for old in [number for number in marks if number < filling - 2]:
        del marks[old]


_NOT_KEPT = (
    "A stream keeps no rows: they cannot be read again by number or in order. Collect a store of some of the inputs "
    "(ActivationStore.collect) to look at."
)
