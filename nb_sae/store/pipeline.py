"""Fill the shards that are still missing, write them behind the model's back; close a store that is full."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from torch import Tensor

from nb_sae.errors import InputError, ShapeError, StoreError
from nb_sae.progress import progress
from nb_sae.store import files
from nb_sae.store import manifest as manifests
from nb_sae.store.capturing import PendingRows, Rows, capture_batch
from nb_sae.store.decoding import DecodedBatch, Decoder, decoded
from nb_sae.types import HookedModel, Inputs, RowStatistics, Site

NO_ROW = "it has no row at this site: every token is padding or special"


@dataclass
class SiteJob:
    """One site's store while it is filled."""

    folder: Path
    site: Site
    manifest: manifests.Manifest
    parts: dict[int, manifests.Part] = field(default_factory=dict)
    """Finished shards by number."""
    open_rows: list[Rows] = field(default_factory=list)
    """Rows of the shard that is being filled."""

    def missing(self) -> set[int]:
        """Numbers of the shards that are not finished."""
        return set(range(self.manifest.shard_count)) - set(self.parts)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run; none of it changes which rows are stored."""

    batch_inputs: int
    workers: int
    show: bool
    owns: Callable[[int], bool] = lambda shard: True
    """Which shards this process collects; other processes collect the others."""


def fill(model: HookedModel, inputs: Inputs, decoder: Decoder, jobs: Sequence[SiteJob], options: RunOptions) -> None:
    """Collect every missing shard of every job, of those that are this process's, in one pass.

    Raises:
        NonFiniteError: NaN, infinity or an overflow of the stored dtype.
        StoreError: The disk is full, or a worker died. Finished shards are kept.
    """
    per_shard = jobs[0].manifest.inputs_per_shard
    shards = sorted(filter(options.owns, set().union(*(job.missing() for job in jobs))))
    spans = {shard: range(shard * per_shard, min((shard + 1) * per_shard, len(inputs))) for shard in shards}
    schedule = [
        (shard, range(start, min(start + options.batch_inputs, span.stop)))
        for shard, span in spans.items()
        for start in range(span.start, span.stop, options.batch_inputs)
    ]
    if schedule:
        _run(model, inputs, decoder, jobs, options, schedule, spans)


def _run(
    model: HookedModel,
    inputs: Inputs,
    decoder: Decoder,
    jobs: Sequence[SiteJob],
    options: RunOptions,
    schedule: Sequence[tuple[int, range]],
    spans: dict[int, range],
) -> None:
    request = jobs[0].manifest.request
    todo = sum(len(span) for span in spans.values())
    label = "Collecting " + ", ".join(job.site.name for job in jobs[:3]) + (", …" if len(jobs) > 3 else "")
    unit = f"{request.modality}s"
    pin = model.device.type == "cuda"
    with (
        _interrupts_named(jobs, options),
        decoded(decoder, [span for _, span in schedule], workers=options.workers, pin=pin) as batches,
        progress(len(inputs), unit, label, enabled=options.show, initial=len(inputs) - todo) as bar,
        _Writer() as writer,
    ):
        before: tuple[int, DecodedBatch, dict[str, list[PendingRows]]] | None = None
        skipped: dict[int, str] = {}
        for (shard, _), batch in zip(schedule, batches, strict=True):
            active = [job for job in jobs if shard not in job.parts]
            pending = capture_batch(
                model, batch, [job.site for job in active], modality=inputs.modality, tokens=request.tokens,
                special_tokens=request.special_tokens, dtype=files.DTYPES[request.dtype],
                contexts_per_forward=options.batch_inputs,
            )  # fmt: skip
            # A batch is taken over after the next one was handed to the GPU, which so never waits.
            if before is not None:
                _take_over(before, jobs, inputs, skipped)
                bar.update(len(before[1].offered))
                if before[0] != shard:
                    writer.finish(jobs, before[0], spans[before[0]], skipped)
                    skipped = {}
            before = (shard, batch, pending)
        if before is not None:
            _take_over(before, jobs, inputs, skipped)
            bar.update(len(before[1].offered))
            writer.finish(jobs, before[0], spans[before[0]], skipped)


def _take_over(
    done: tuple[int, DecodedBatch, dict[str, list[PendingRows]]],
    jobs: Sequence[SiteJob],
    inputs: Inputs,
    skipped: dict[int, str],
) -> None:
    _, batch, pending = done
    skipped.update(batch.skipped)
    for job in jobs:
        job.open_rows += [one.wait(inputs.keys) for one in pending.get(job.site.name, [])]


class _Writer:
    """Writes finished shards in a thread, one at a time, so that at most two shards are in memory."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nb_sae-shards")
        self._running: Future[None] | None = None

    def __enter__(self) -> _Writer:
        return self

    def finish(self, jobs: Sequence[SiteJob], shard: int, span: range, skipped: dict[int, str]) -> None:
        """Hand a filled shard of every job that misses it to the thread."""
        self._wait()
        filled = [(job, job.open_rows) for job in jobs if shard not in job.parts]
        for job, _ in filled:
            job.open_rows = []
        self._running = self._pool.submit(_write_shards, filled, shard, span, dict(skipped))

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()

    def _drain(self) -> None:
        # The one thread works in order, so an empty task ends after all others, also after one whose future an
        # interrupt took away; Thread.join would take a running thread for a finished one when it is interrupted.
        self._pool.submit(int).result()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # What was handed over is still written, so that an interrupt loses no finished shard.
        try:
            self._drain()
        except BaseException:
            # A second interrupt, or the news of a dead worker: the shard in hand is a matter of seconds.
            self._drain()
            raise
        finally:
            self._pool.shutdown(wait=False)
        if kind is None:
            self._wait()


def _write_shards(filled: list[tuple[SiteJob, list[Rows]]], number: int, span: range, skipped: dict[int, str]) -> None:
    for job, rows in filled:
        try:
            job.parts[number] = _write_shard(job, rows, number, span, skipped)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            size = sum(one.x.nbytes for one in rows)
            raise StoreError(
                f"No space is left on the disk of {job.folder} while writing {manifests.shard_file(number)} "
                f"({size / 1e6:,.1f} MB). {len(job.parts)} of {job.manifest.shard_count} shards are kept. "
                "Free some space and call collect again with the same arguments."
            ) from error


def _write_shard(job: SiteJob, rows: list[Rows], number: int, span: range, skipped: dict[int, str]) -> manifests.Part:
    request = job.manifest.request
    chunks: list[Tensor] = [one.x for one in rows]
    empty = np.empty(0, dtype=np.uint32)
    input_id = np.concatenate([empty, *(one.input_id for one in rows)])
    token = np.concatenate([empty, *(one.token for one in rows)])
    positions = _one_length(job.site, {one.positions for one in rows})
    present = set(np.unique(input_id).tolist())
    skipped = {one: skipped.get(one, NO_ROW) for one in span if one not in present}
    name = manifests.shard_file(number)
    mark = files.write_rows(
        job.folder / name, chunks, d_in=request.site.width, dtype=files.DTYPES[request.dtype]
    )  # fmt: skip
    part = manifests.Part(
        shard=manifests.Shard(name, len(input_id), span.start, span.stop, mark.bytes, mark.sha256),
        positions=positions,
        skipped=skipped,
        statistics=files.statistics_of(chunks, request.site.width),
    )
    manifests.write_part(job.folder, number, part, pl.DataFrame({"input_id": input_id, "token": token}))
    return part


def _one_length(site: Site, seen: set[int]) -> int:
    if len(seen) > 1:
        raise ShapeError(
            f"Site {site.name!r} gave contexts of {sorted(seen)} positions; all must have the same number, or a "
            "token's number means nothing. Pad or resize all inputs alike."
        )
    return seen.pop() if seen else 0


def close(job: SiteJob, inputs: Inputs) -> None:
    """Write the tables and the manifest of a store whose shards are all finished.

    Raises:
        InputError: No input could be read.
    """
    manifest, width = job.manifest, job.site.width
    parts = [job.parts[number] for number in range(manifest.shard_count)]
    skipped = {input_id: reason for part in parts for input_id, reason in part.skipped.items()}
    if len(skipped) == len(inputs):
        first = min(skipped)
        manifests.remove_store(job.folder)
        raise InputError(
            f"None of the {len(inputs):,} inputs of {inputs.name!r} could be used; the first, {inputs.keys[first]!r}: "
            f"{skipped[first]}. Check the folder and the preprocessing."
        )
    positions = _one_length(job.site, {part.positions for part in parts if part.positions})
    rows = pl.concat([manifests.read_part_rows(job.folder, number) for number in range(len(parts))])
    tables = {
        manifests.ROWS_TABLE: files.write_table(job.folder / manifests.ROWS_TABLE, rows),
        manifests.INPUTS_TABLE: files.write_table(
            job.folder / manifests.INPUTS_TABLE, inputs_table(inputs.keys, skipped)
        ),
    }
    statistics: RowStatistics = files.merge_statistics([part.statistics for part in parts], width)
    job.manifest = replace(
        manifest,
        request=replace(manifest.request, site=replace(job.site, positions=positions)),
        complete=True,
        rows=statistics.rows,
        skipped=len(skipped),
        statistics=statistics,
        shards=tuple(part.shard for part in parts),
        tables=tables,
    )
    manifests.write_manifest(job.folder, job.manifest)
    manifests.remove_partial(job.folder)


def inputs_table(keys: Sequence[str], skipped: dict[int, str]) -> pl.DataFrame:
    """`input_id, key, status, reason` of every input that was offered."""
    reasons = [skipped.get(input_id) for input_id in range(len(keys))]
    return pl.DataFrame(
        {
            "input_id": np.arange(len(keys), dtype=np.uint32),
            "key": [plain(str(key)) for key in keys],
            "status": ["ok" if reason is None else "skipped" for reason in reasons],
            "reason": [None if reason is None else plain(reason) for reason in reasons],
        },
        schema=manifests.INPUTS_SCHEMA,
    )


def plain(text: str) -> str:
    """Text that any table can hold: lone surrogates, as broken file names have them, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextmanager
def _interrupts_named(jobs: Sequence[SiteJob], options: RunOptions) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if options.show:
            job = jobs[0]
            print(
                f"Interrupted: {len(job.parts)} of {job.manifest.shard_count} shards are kept in {job.folder}. "
                "Call collect again with the same arguments to go on."
            )
        raise
