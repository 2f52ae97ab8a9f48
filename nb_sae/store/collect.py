"""Decide what a collection has to do: the request, what is already there, the byte budget.

The work itself is `pipeline`'s.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from nb_sae.atomic import file_names
from nb_sae.errors import ConfigError, InputError, PathExistsError, StoreError
from nb_sae.machine import readable_bytes
from nb_sae.store import files
from nb_sae.store import manifest as manifests
from nb_sae.store.decoding import Decoder, default_workers, fingerprint, sample_inputs
from nb_sae.store.pipeline import RunOptions, SiteJob, close, fill
from nb_sae.store.ranks import Lock, Rank, await_manifest, finish_together, locked
from nb_sae.types import HookedModel, Inputs, Prepared, Site, Tokens

SHARD_BYTES = 256 * 1024 * 1024
"""Of all sites together; two such shares are in memory while the older one is written."""
MAX_INPUTS_PER_SHARD = 4096
"""What an interrupt can cost at most, in inputs."""
IMAGE_SAMPLE, TEXT_SAMPLE = 3, 64
"""Inputs that are looked at before the work starts."""
TABLE_BYTES_PER_ROW = 8


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """The arguments of `ActivationStore.collect` beside model, inputs, sites and path."""

    tokens: str = "all"
    dtype: str = "float16"
    batch_inputs: int | None = None
    workers: int | None = None
    inputs_per_shard: int | None = None
    special_tokens: bool = False
    overwrite: bool = False
    progress: bool = True
    rank: Rank = field(default_factory=Rank)

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            ConfigError: Names the value and what is allowed.
        """
        if self.tokens not in get_args(Tokens):
            raise ConfigError(f"tokens={self.tokens!r} is not one of {', '.join(map(repr, get_args(Tokens)))}.")
        if self.dtype not in files.DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is not one of {', '.join(map(repr, files.DTYPES))}.")
        for name in ("batch_inputs", "inputs_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is below 1. Leave it out for a default.")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers={self.workers} is below 0. Give 0 to decode in this process.")
        if self.overwrite and not self.rank.alone:
            raise ConfigError(
                "overwrite=True with several processes: none could tell the old store from the new one. "
                "Remove the old store first, or give another path."
            )


def collect_sites(
    model: HookedModel, inputs: Inputs, sites: Sequence[Site], folders: Sequence[Path], options: CollectOptions
) -> None:
    """Bring a complete store of every site into its folder: open, resume or collect.

    Raises:
        PathExistsError: A folder holds something that is no store.
        StoreError: A folder holds a store of another request, or the disk is too small.
    """
    options.check()
    if not len(inputs):
        raise InputError(f"{inputs.name!r} holds no inputs. Give at least one image or text.")
    for site in sites:
        _check_tokens(site, options.tokens)
    context_tokens = getattr(inputs, "context_tokens", None)
    prepare = model.preprocessor(inputs.modality, context_tokens=context_tokens)
    sample = sample_inputs(inputs, prepare, IMAGE_SAMPLE if inputs.modality == "image" else TEXT_SAMPLE)
    requests = [
        manifests.Request(
            model=model.name, revision=model.revision, modality=inputs.modality, site=site, tokens=options.tokens,
            special_tokens=options.special_tokens, dtype=options.dtype, inputs=len(inputs),
            keys_sha256=fingerprint(inputs.keys), sample_sha256=sample.sha256, context_tokens=context_tokens,
        )
        for site in sites
    ]  # fmt: skip
    for folder in folders:
        _check_folder(folder)
    if options.overwrite:
        for folder in folders:
            if manifests.is_store(folder):
                manifests.remove_store(folder)
    batch_inputs = options.batch_inputs or _default_batch(model, inputs.modality)
    per_input = [rows_per_input(sample.prepared, site, options) for site in sites]
    shard_inputs = options.inputs_per_shard or _default_shard(per_input, requests, batch_inputs)
    jobs = [
        job
        for request, folder in zip(requests, folders, strict=True)
        if (job := _job(request, folder, shard_inputs, options)) is not None
    ]
    if not jobs:
        return
    _one_shard_size(jobs)
    if options.rank.number == 0:
        _announce(jobs, dict(zip((site.name for site in sites), per_input, strict=True)), options)
    workers = options.workers
    if workers is None:
        workers = default_workers(
            inputs.modality, len(inputs), batch_bytes=sample.bytes_per_input * batch_inputs
        )  # fmt: skip
    rank = options.rank
    with locked([job.folder for job in jobs], rank) as locks:
        for job, lock in zip(jobs, locks, strict=True):
            manifests.remove_temporaries(job.folder, None if rank.alone else rank.owns)
            if rank.number:
                await_manifest(job.folder, lock)
            if rank.alone or not manifests.is_store(job.folder):
                manifests.write_manifest(job.folder, job.manifest)
            else:
                job.manifest = _joined(job)
            if not job.manifest.complete:
                manifests.forget_parts(job.folder, filter(rank.owns, job.missing()))
        # Another rank may have closed a store since it was looked at.
        jobs, locks = _incomplete(jobs, locks)
        if not jobs:
            return
        run = RunOptions(batch_inputs=batch_inputs, workers=workers, show=options.progress, owns=rank.owns)
        fill(model, inputs, Decoder(inputs, prepare), jobs, run)
        if rank.alone:
            for job in jobs:
                close(job, inputs)
        else:
            finish_together(jobs, rank, locks, lambda job: close(job, inputs))
    if rank.number == 0:
        _report_skipped(jobs, inputs)


def site_folders(path: Path, names: Sequence[str]) -> list[Path]:
    """One folder per site below `path`, named after the site as far as file names allow."""
    return [path / name for name in file_names(names)]


def rows_per_input(prepared: Sequence[Prepared], site: Site, options: CollectOptions) -> float:
    """Rows that an input gives on average, from those that were looked at."""
    counts = [_count_rows(one, site, options) for one in prepared]
    return sum(counts) / len(counts) if counts else float(site.positions)


def _count_rows(one: Prepared, site: Site, options: CollectOptions) -> int:
    contexts = len(one.tensor)
    if site.pooled:
        return contexts
    if options.tokens == "cls":
        return contexts * site.prefix_tokens
    dropped = site.prefix_tokens if options.tokens == "patches" else 0
    mask = one.keep
    if one.special is not None and not options.special_tokens:
        mask = ~one.special if mask is None else mask & ~one.special
    if mask is not None:
        return int(mask[:, dropped:].sum())
    positions = site.positions if site.positions > 1 or one.tensor.dim() != 2 else one.tensor.shape[1]
    return contexts * (positions - dropped)


def _check_tokens(site: Site, tokens: str) -> None:
    if tokens == "all":
        return
    if site.pooled:
        raise ConfigError(f"Site {site.name!r} has one row per input, so tokens={tokens!r} has no meaning. Use 'all'.")
    if tokens == "cls" and not site.prefix_tokens:
        raise ConfigError(f"Site {site.name!r} has no CLS or other prefix token. Use tokens='all' or 'patches'.")


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        if not manifests.is_store(folder) and not manifests.is_free(folder):
            raise PathExistsError(
                f"{folder} exists and is no activation store. Nothing in it was touched; give another path."
            )
    elif folder.exists() or folder.is_symlink():
        raise PathExistsError(f"{folder} exists and is not a folder. Give another path.")


def _default_batch(model: HookedModel, modality: str) -> int:
    on_gpu = model.device.type != "cpu"
    if modality == "image":
        return 256 if on_gpu else 64
    return 128 if on_gpu else 32


def _default_shard(per_input: Sequence[float], requests: Sequence[manifests.Request], batch_inputs: int) -> int:
    bytes_per_input = sum(
        rows * request.site.width * files.DTYPES[request.dtype].itemsize
        for rows, request in zip(per_input, requests, strict=True)
    )
    wanted = min(int(SHARD_BYTES / max(bytes_per_input, 1)), MAX_INPUTS_PER_SHARD)
    return max(wanted // batch_inputs, 1) * batch_inputs


def _job(request: manifests.Request, folder: Path, shard_inputs: int, options: CollectOptions) -> SiteJob | None:
    """What is left to do for a site; None if its store is complete."""
    if not manifests.is_store(folder):
        return SiteJob(folder, request.site, manifests.Manifest(request=request, inputs_per_shard=shard_inputs))
    there = manifests.read_manifest(folder)
    differences = there.request.differences(request)
    if differences:
        raise StoreError(
            f"{folder} already holds a store of another request: {'; '.join(differences)}. "
            "Give another path, or overwrite=True to replace it."
        )
    if there.complete:
        manifests.remove_partial(folder)
        _say(options, f"{folder} already holds this store ({there.rows:,} rows): opened, nothing was collected.")
        return None
    if options.inputs_per_shard not in (None, there.inputs_per_shard):
        raise StoreError(
            f"{folder} was begun with inputs_per_shard={there.inputs_per_shard}, {options.inputs_per_shard} is asked "
            "for. Leave it out to resume, or give overwrite=True to begin again."
        )
    parts = {number: part for number, part in manifests.read_parts(folder).items() if number < there.shard_count}
    return SiteJob(folder, request.site, there, parts)


def _incomplete(jobs: Sequence[SiteJob], locks: Sequence[Lock]) -> tuple[list[SiteJob], list[Lock]]:
    left = [(job, lock) for job, lock in zip(jobs, locks, strict=True) if not job.manifest.complete]
    return [job for job, _ in left], [lock for _, lock in left]


def _joined(job: SiteJob) -> manifests.Manifest:
    """The manifest that lies there, if it is of the same request.

    Raises:
        StoreError: It is not.
    """
    there = manifests.read_manifest(job.folder)
    differences = there.request.differences(job.manifest.request)
    if there.inputs_per_shard != job.manifest.inputs_per_shard:
        differences.append(f"inputs_per_shard ({there.inputs_per_shard} there, {job.manifest.inputs_per_shard} here)")
    if differences:
        raise StoreError(
            f"Another rank is collecting something else into {job.folder}: {'; '.join(differences)}. Call collect with "
            "the same arguments on every rank."
        )
    return there


def _one_shard_size(jobs: Sequence[SiteJob]) -> None:
    sizes = {job.manifest.inputs_per_shard for job in jobs}
    if len(sizes) == 1:
        return
    begun = [job for job in jobs if job.parts]
    if len({job.manifest.inputs_per_shard for job in begun}) > 1:
        raise StoreError(
            f"{', '.join(str(job.folder) for job in begun)} were begun with different inputs_per_shard. "
            "Collect them one by one, or give overwrite=True."
        )
    size = (begun or jobs)[0].manifest.inputs_per_shard
    for job in jobs:
        job.manifest = manifests.Manifest(request=job.manifest.request, inputs_per_shard=size)


def _announce(jobs: Sequence[SiteJob], per_input: dict[str, float], options: CollectOptions) -> None:
    """Say what it will take, sites of the same size on one line, and refuse if the disk lacks it."""
    need = 0.0
    alike: dict[tuple[float, int, int], list[SiteJob]] = {}
    for job in jobs:
        alike.setdefault((per_input[job.site.name], job.site.width, len(job.parts)), []).append(job)
    for (rows, width, done), group in alike.items():
        first, request = group[0], group[0].manifest.request
        item = files.DTYPES[request.dtype].itemsize
        about = "about " if request.modality == "text" else ""
        size = request.inputs * rows * width * item
        resumed = f"; resuming after {done} of {first.manifest.shard_count} shards" if done else ""
        one = len(group) == 1
        named = first.site.name if one else f"{len(group)} sites, {first.site.name} … {group[-1].site.name},"
        total = "" if one else f" each, {readable_bytes(size * len(group))} in all,"
        _say(
            options,
            f"{named} of {request.model}, {request.dtype}: {request.inputs:,} {request.modality}s × "
            f"{about}{_count(rows)} row{'' if rows == 1 else 's'} × {width:,} × {item} bytes = "
            f"{about}{readable_bytes(size)}{total} in {first.folder if one else first.folder.parent}{resumed}",
        )
        left = 1 - done / max(first.manifest.shard_count, 1)
        need += len(group) * left * (size + request.inputs * rows * TABLE_BYTES_PER_ROW)
    if not isinstance(jobs[0].folder, Path):
        return  # an object store does not say
    free = free_bytes(jobs[0].folder)
    if need > free:
        raise StoreError(
            f"Collecting needs {readable_bytes(need)} on the disk of {jobs[0].folder}, {readable_bytes(free)} are "
            "free. Free some space, take fewer inputs or sites, or tokens='cls'."
        )


def _count(rows: float) -> str:
    return f"{rows:,.0f}" if rows >= 100 or rows == int(rows) else f"{rows:.3g}"


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that a path lies on, or will lie on."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _report_skipped(jobs: Sequence[SiteJob], inputs: Inputs) -> None:
    for job in jobs:
        skipped = {one: reason for part in job.parts.values() for one, reason in part.skipped.items()}
        if skipped:
            shown = "; ".join(f"{inputs.keys[one]!r}: {skipped[one]}" for one in sorted(skipped)[:3])
            more = " …" if len(skipped) > 3 else ""
            print(
                f"{job.site.name}: {len(skipped):,} of {len(inputs):,} inputs were skipped (all in store.skipped): "
                f"{shown}{more}"
            )


def _say(options: CollectOptions, text: str) -> None:
    if options.progress:
        print(text)
