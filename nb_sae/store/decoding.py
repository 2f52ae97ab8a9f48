"""Turn raw inputs into batches for a model, in worker processes, in order, with what could not be read."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nb_sae.errors import ConfigError, InputError, NbSaeError, StoreError
from nb_sae.types import Inputs, Prepared

SMALL_JOB_INPUTS = 512
"""Below this, starting worker processes costs more than they save."""
MAX_DEFAULT_WORKERS = 4
PREFETCH_BATCHES = 2
_REASON_LENGTH = 300
_SHARED_MEMORY = Path("/dev/shm")


@dataclass
class DecodedBatch:
    """Some neighbouring inputs, made ready, with the contexts of all of them stacked."""

    offered: range
    input_ids: np.ndarray
    """Of the inputs that could be read."""
    contexts: np.ndarray
    """Contexts of each of them."""
    tensor: Tensor | None
    """`(contexts, …)`; None if nothing could be read."""
    keep: Tensor | None
    special: Tensor | None
    skipped: dict[int, str]
    """Why, by `input_id`."""

    def pin_memory(self) -> DecodedBatch:
        """Put the tensor where a GPU fetches it without waiting."""
        if self.tensor is not None:
            self.tensor = self.tensor.pin_memory()
        return self


class Decoder(Dataset[DecodedBatch]):
    """Prepares a range of inputs. Picklable; sent to the worker processes."""

    def __init__(self, inputs: Inputs, prepare: Callable[[Any], Prepared]) -> None:
        self._inputs = inputs
        self._prepare = prepare

    def __getitem__(self, index: range) -> DecodedBatch:
        offered = index
        prepared: dict[int, Prepared] = {}
        skipped: dict[int, str] = {}
        for input_id in offered:
            try:
                prepared[input_id] = one = self._prepare(self._inputs[input_id])
                if not len(one.tensor):
                    del prepared[input_id]
                    skipped[input_id] = "it is empty"
            except Exception as error:
                # Whatever a broken file makes a decoder raise is a property of that file.
                skipped[input_id] = _reason(error)
        return _stack(offered, prepared, skipped)


def _stack(offered: range, prepared: dict[int, Prepared], skipped: dict[int, str]) -> DecodedBatch:
    for input_id, one in list(prepared.items()):
        first = next(iter(prepared.values()))
        if one.tensor.shape[1:] != first.tensor.shape[1:]:
            raise InputError(
                f"Input {input_id} was prepared to shape {tuple(one.tensor.shape[1:])}, the first of its batch to "
                f"{tuple(first.tensor.shape[1:])}; all must be alike. Resize in the preprocessing."
            )
    everything = list(prepared.values())
    return DecodedBatch(
        offered=offered,
        input_ids=np.fromiter(prepared, dtype=np.int64, count=len(prepared)),
        contexts=np.array([len(one.tensor) for one in everything], dtype=np.int64),
        tensor=torch.cat([one.tensor for one in everything]) if everything else None,
        keep=_stack_masks([one.keep for one in everything], everything, missing=True),
        special=_stack_masks([one.special for one in everything], everything, missing=False),
        skipped=skipped,
    )


def _stack_masks(masks: Sequence[Tensor | None], prepared: Sequence[Prepared], *, missing: bool) -> Tensor | None:
    shapes = [mask.shape[1:] for mask in masks if mask is not None]
    if not shapes:
        return None
    return torch.cat([
        mask if mask is not None else torch.full((len(one.tensor), *shapes[0]), missing)
        for mask, one in zip(masks, prepared, strict=True)
    ])  # fmt: skip


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    if not isinstance(error, NbSaeError):
        text = f"{type(error).__name__}: {text}"
    return text[:_REASON_LENGTH]


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def decoded(decoder: Decoder, ranges: Sequence[range], *, workers: int, pin: bool) -> Iterator[Iterator[DecodedBatch]]:
    """Prepare ranges of inputs in order; the worker processes end with the block, also at an interrupt.

    Raises:
        ConfigError: The inputs or the preprocessing cannot be sent to a worker.
        StoreError: A worker died.
    """
    context = _context(decoder) if workers else None
    loader = DataLoader(
        decoder, batch_size=None, sampler=ranges, collate_fn=_as_it_is, num_workers=workers, pin_memory=pin,
        multiprocessing_context=context, prefetch_factor=PREFETCH_BATCHES if workers else None,
    )  # fmt: skip
    with warnings.catch_warnings():
        # Python ≥ 3.12 warns of every fork beside a thread; the workers touch nothing that threads share.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        batches = iter(loader)
    try:
        yield _naming_lost_workers(batches, workers)
    except RuntimeError as error:
        # torch raises this from a signal handler, so it may come out of any line of the block.
        if "DataLoader worker" not in str(error):
            raise
        raise _worker_died(error, workers) from error
    finally:
        _end_workers(batches)


def _end_workers(batches: Any) -> None:
    # An exception's traceback would keep the iterator, and with it the processes, alive in a notebook.
    shutdown = getattr(batches, "_shutdown_workers", None)
    if shutdown is None:
        return
    try:
        shutdown()
    except RuntimeError:
        # The news of a dead worker may come only now; what it interrupted is finished here.
        for process in getattr(batches, "_workers", ()):
            process.terminate()


def _naming_lost_workers(batches: Iterator[DecodedBatch], workers: int) -> Iterator[DecodedBatch]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (OSError, EOFError) as error:
            if not workers:
                raise
            # The batch was announced, and its memory went with the process that held it.
            raise _worker_died(error, workers) from error
        yield batch


def _worker_died(error: Exception, workers: int) -> StoreError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return StoreError(
        f"A worker process that decodes inputs died ({reason}). Most often it was out of memory or of shared memory. "
        f"Finished shards are kept: call collect again with the same arguments and workers=0 (it was {workers})."
    )


def _context(decoder: Decoder) -> Any:
    # A forked worker starts at once and knows what the notebook defined; where there is no safe fork, it is spawned.
    if sys.platform == "linux":
        return multiprocessing.get_context("fork")
    try:
        pickle.dumps(decoder)
    except Exception as error:
        raise ConfigError(
            f"The inputs or the preprocessing cannot be sent to a worker process ({error}). "
            "Define them in a module, or call collect with workers=0."
        ) from error
    return multiprocessing.get_context("spawn")


def default_workers(modality: str, inputs: int, *, batch_bytes: int) -> int:
    """Worker processes for a job: none for texts and small jobs, else up to four, as shared memory allows."""
    if modality != "image" or inputs < SMALL_JOB_INPUTS:
        return 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(MAX_DEFAULT_WORKERS, cpus)
    if _SHARED_MEMORY.is_dir() and batch_bytes:
        room = shutil.disk_usage(_SHARED_MEMORY).free // 2
        workers = min(workers, room // (batch_bytes * (PREFETCH_BATCHES + 1)))
    return int(workers)


@dataclass(frozen=True)
class Sample:
    """A few inputs, looked at before the work starts: what they are and how many rows they will give."""

    sha256: str
    """Of the raw contents, to tell apart inputs that share their keys."""
    prepared: tuple[Prepared, ...]

    @property
    def bytes_per_input(self) -> int:
        """Bytes of the prepared tensors of one input."""
        return sum(one.tensor.nbytes for one in self.prepared) // max(len(self.prepared), 1)


def sample_inputs(inputs: Inputs, prepare: Callable[[Any], Prepared], count: int) -> Sample:
    """Look at up to `count` inputs, evenly spread. Inputs that cannot be read are part of the checksum as such."""
    digest, prepared = hashlib.sha256(), []
    for input_id in sorted({round(place) for place in np.linspace(0, len(inputs) - 1, min(count, len(inputs)))}):
        try:
            raw = inputs[input_id]
            digest.update(_raw_bytes(raw))
            prepared.append(prepare(raw))
        except Exception:
            digest.update(b"unreadable")
    return Sample(digest.hexdigest(), tuple(prepared))


def _raw_bytes(raw: Any) -> bytes:
    if isinstance(raw, str):
        return raw.encode("utf-8", "surrogatepass")
    if hasattr(raw, "tobytes"):
        return f"{getattr(raw, 'mode', '')}{getattr(raw, 'size', '')}".encode() + raw.tobytes()
    return type(raw).__qualname__.encode()


def fingerprint(keys: Sequence[str]) -> str:
    """SHA-256 of the inputs' keys in order."""
    digest = hashlib.sha256()
    for key in keys:
        encoded = str(key).encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
