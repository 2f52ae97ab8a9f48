"""What the metrics read: rows in a tensor or a store, taken in chunks, and anything that encodes and decodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from nb_sae.errors import ConfigError, NonFiniteError, ShapeError, StoreError
from nb_sae.sae.model import nested_decode
from nb_sae.types import ActivationSource

CHUNK_ROWS = 4096
CHUNK_LATENTS = 2**23
"""Latents that are held at a time: a large dictionary takes fewer rows."""

Rows = Tensor | ActivationSource
"""`(rows, d_in)` in memory, or a store."""


class Coder(Protocol):
    """What a `Dictionary` and the classical baselines have in common."""

    W_dec: Tensor
    b_dec: Tensor

    @property
    def d_in(self) -> int:
        """Width of a row."""
        ...

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        ...

    @property
    def is_transcoder(self) -> bool:
        """Whether its reconstructions are of other rows than it reads."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def encode(self) -> Callable[..., Any]:
        """`encode(x, k=None, sparse=False)`: latents, dense or `(values, latent numbers)`.

        The first k' of k numbers are what a smaller k' would select.
        """
        ...

    def decode(self, latents: Any) -> Tensor:
        """Rows from latents."""
        ...


def rows_at_a_time(chunk_rows: int | None, *coders: Coder) -> int:
    """As given, or as many rows as their latents let be held: 4,096 up to d_sae = 2,048. Raises `ConfigError`."""
    if chunk_rows is not None and chunk_rows < 1:
        raise ConfigError(f"chunk_rows={chunk_rows} must be at least 1.")
    return chunk_rows or max(1, min(CHUNK_ROWS, *(CHUNK_LATENTS // coder.d_sae for coder in coders)))


def chunks_of(rows: Rows, chunk_rows: int = CHUNK_ROWS) -> Iterator[Tensor]:
    """The rows in order, float, a chunk at a time.

    Raises:
        ShapeError: not `(rows, d_in)`, or no rows.
        NonFiniteError: names the first row that holds NaN or infinity.
    """
    if isinstance(rows, Tensor):
        if rows.ndim != 2 or not len(rows):
            raise ShapeError(f"Rows of shape {tuple(rows.shape)} were given; expected (rows, d_in) with at least one.")
        parts: Iterable[tuple[int, Tensor]] = (
            (first, rows[first : first + chunk_rows]) for first in range(0, len(rows), chunk_rows)
        )
    else:
        parts = rows.chunks(chunk_rows)
    for first, part in parts:
        check_finite(part, first=first)
        yield part


def check_finite(rows: Tensor, *, first: int = 0, what: str = "rows") -> None:
    """Raises `NonFiniteError` with the number of the first row that holds NaN or infinity."""
    finite = torch.isfinite(rows).all(-1)
    if not finite.all():
        bad = first + int((~finite).nonzero()[0])
        raise NonFiniteError(f"Row {bad} of the {what} holds NaN or infinity. Leave it out, or collect it again.")


def check_ks(ks: Sequence[int], d_sae: int) -> tuple[int, ...]:
    """Ascending k's between 1 and `d_sae`, each once. Raises `ConfigError`."""
    chosen = tuple(int(k) for k in ks)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 1 or chosen[-1] > d_sae:
        raise ConfigError(f"ks={chosen} must be ascending numbers from 1 to d_sae={d_sae}, for example (1, 4, 16).")
    return chosen


def decode_at(coder: Coder, x: Tensor, values: Tensor, indices: Tensor, ks: Sequence[int]) -> list[Tensor]:
    """One reconstruction of `x` for each k from latents in their order, each latent decoded once."""
    if getattr(coder, "row_norm", None):  # the norm of a row is not in its latents, so they alone do not give x̂
        return [coder.reconstruct(x, k) for k in ks]  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(coder, "decode_prefixes"):  # a dictionary may have learned a factor for each budget
        return coder.decode_prefixes(values, indices, ks)  # pyright: ignore[reportAttributeAccessIssue]
    return nested_decode(values, indices, coder.W_dec, coder.b_dec, ks)


def check_same_site(coder: Coder) -> None:
    """Refuse a transcoder where x̂ is compared with what was read. Raises `ConfigError`."""
    if coder.is_transcoder:
        raise ConfigError(
            f"This is a transcoder {_sites(coder)}: it does not reconstruct the rows that it reads. Measure it with "
            "recovery_curve or compare on ns.pair(x, y), or with fvu(y, transcoder.reconstruct(x))."
        )


@overload
def targets_of(coder: Coder, rows: ActivationSource) -> ActivationSource: ...


@overload
def targets_of(coder: Coder, rows: Rows) -> Rows: ...


def targets_of(coder: Coder, rows: Rows) -> Rows:
    """What reconstructions of `rows` are compared with: the rows themselves, or for a transcoder those of its target.

    Raises:
        StoreError: a transcoder, and the rows are no pair, or a pair with another target.
    """
    if not coder.is_transcoder:
        return rows
    target: ActivationSource | None = getattr(rows, "target", None)
    if target is None:
        raise StoreError(
            f"This is a transcoder {_sites(coder)}, and what it should write was not given. Give the rows of both "
            "sites: ns.pair(x, y)."
        )
    known = getattr(coder, "target", None)
    if target.d_in != coder.W_dec.shape[1] or known not in (None, target.site.name):
        raise StoreError(
            f"This is a transcoder {_sites(coder)}; the pair's second side is {target.site.name!r} of width "
            f"{target.d_in}. Give ns.pair(x, y) with the rows that it was trained to write."
        )
    return target


def chunks_with_targets(rows: Rows, targets: Rows, chunk_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows in order, a chunk at a time, each with the rows of `targets` (from `targets_of`) that belong to it.

    Raises:
        ShapeError: see `chunks_of`.
        NonFiniteError: names the first row that holds NaN or infinity, on either side.
    """
    first = 0
    for part in chunks_of(rows, chunk_rows):
        beside = part
        if targets is not rows:
            beside = targets[first : first + len(part)]
            check_finite(beside, first=first, what="target's rows")
        yield part, beside
        first += len(part)


def _sites(coder: Coder) -> str:
    reads, writes = getattr(coder, "site", None), getattr(coder, "target", None)
    return f"(reads {reads!r}, width {coder.d_in}; writes {writes!r}, width {coder.W_dec.shape[1]})"
