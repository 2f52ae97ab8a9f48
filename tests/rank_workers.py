"""What the other processes of a test of several ranks do, and how they are started.

They are forked from a server that has imported torch but never used polars, whose threads do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from store_fakes import SMALL, FakeInputs, FakeModel, colours

from nb_sae.store import ActivationStore

ITEMS = [*colours(30), None, *colours(10)]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "PIL.Image", "nb_sae.store"])


def start(function: Callable[..., Any], *arguments: Any, **settings: Any) -> BaseProcess:
    """Run a function of an importable module in a process of its own."""
    process = _context.Process(target=function, args=arguments, kwargs=settings)
    process.start()
    return process


def collect(
    path: Path, rank: int, world: int, *, seconds: float = 0.0, items: list[Any] | None = None
) -> ActivationStore:
    """Collect as one of several ranks."""
    inputs = FakeInputs(ITEMS if items is None else items, seconds=seconds)
    return ActivationStore.collect(FakeModel(), inputs, site="tokens", path=path, rank=rank, world=world, **SMALL)
