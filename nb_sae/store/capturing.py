"""One batch through the model: choose the rows at each site, check their values, bring them to main memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nb_sae.errors import NonFiniteError, NotEnoughMemoryError, ShapeError
from nb_sae.store.decoding import DecodedBatch
from nb_sae.types import HookedModel, Modality, Site


@dataclass(frozen=True)
class Rows:
    """Rows of one site with their identity, on the CPU, as they are stored."""

    x: Tensor
    """`(rows, d_in)`."""
    input_id: np.ndarray
    token: np.ndarray
    positions: int
    """Positions of one context."""


class PendingRows:
    """Rows of one site that a GPU may still be computing; `wait` hands them over."""

    def __init__(
        self, site: Site, source: Tensor, input_id: np.ndarray, token: np.ndarray, positions: int, dtype: torch.dtype
    ) -> None:
        self._site, self._source = site, source
        self._input_id, self._token, self._positions = input_id, token, positions
        self._dtype = dtype
        stored = source.to(dtype)
        self._range = torch.stack(torch.aminmax(source)) if source.numel() else None
        self._event: torch.cuda.Event | None = None
        if stored.is_cuda:
            self._host = torch.empty(stored.shape, dtype=dtype, pin_memory=True)
            self._host.copy_(stored, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            # A part of the model's output would keep all of it in memory until the shard is written.
            whole = stored.untyped_storage().nbytes() == stored.nbytes
            self._host = stored.cpu() if whole else stored.cpu().clone()

    def wait(self, keys: Sequence[str]) -> Rows:
        """The rows, once they are there.

        Raises:
            NonFiniteError: NaN or infinity, in the model's output or after rounding to the stored dtype.
        """
        if self._event is not None:
            self._event.synchronize()
        if self._range is not None:
            low, high = self._range.tolist()
            if not (-torch.finfo(self._dtype).max <= low and high <= torch.finfo(self._dtype).max):
                self._refuse(keys)
        return Rows(self._host, self._input_id, self._token, self._positions)

    def _refuse(self, keys: Sequence[str]) -> None:
        limit = torch.finfo(self._dtype).max
        source = self._source.detach().cpu().double()
        broken = (~source.isfinite()).any(1)
        overflowed = (source.abs() > limit).any(1)
        row = int((broken if broken.any() else overflowed).nonzero()[0, 0])
        where = (
            f"input {int(self._input_id[row])} ({keys[int(self._input_id[row])]!r}), "
            f"token {int(self._token[row])}, site {self._site.name!r}"
        )
        if broken.any():
            kind = "NaN" if source[row].isnan().any() else "infinite"
            raise NonFiniteError(
                f"The activation is {kind} at {where}. Rows must be finite: look at that input, or run the model "
                "in float32."
            )
        name = str(self._dtype).removeprefix("torch.")
        better = "bfloat16" if self._dtype == torch.float16 else "float32"
        raise NonFiniteError(
            f"The activation reaches {float(source[row].abs().max()):.6g} at {where}; {name} ends at {limit:.6g}. "
            f"Collect with dtype={better!r}."
        )


def capture_batch(
    model: HookedModel,
    batch: DecodedBatch,
    sites: Sequence[Site],
    *,
    modality: Modality,
    tokens: str,
    special_tokens: bool,
    dtype: torch.dtype,
    contexts_per_forward: int,
) -> dict[str, list[PendingRows]]:
    """Run the model over a batch, some contexts at a time; one list of pending rows per site.

    Raises:
        ShapeError: A site gave something else than rows.
        NotEnoughMemoryError: The GPU's memory does not hold the batch.
    """
    found: dict[str, list[PendingRows]] = {site.name: [] for site in sites}
    if batch.tensor is None:
        return found
    owner = np.repeat(batch.input_ids, batch.contexts)
    first = np.repeat(np.cumsum(batch.contexts) - batch.contexts, batch.contexts)
    context = np.arange(len(owner)) - first
    for start in range(0, len(owner), contexts_per_forward):
        part = slice(start, start + contexts_per_forward)
        pixels_or_ids = batch.tensor[part]
        try:
            with torch.no_grad():
                seen = model.capture_rows(pixels_or_ids, [site.name for site in sites], modality)
        except torch.OutOfMemoryError as error:
            raise NotEnoughMemoryError(
                f"{model.name} ran out of GPU memory on a batch of {len(pixels_or_ids)} "
                f"({str(error).splitlines()[0]}) Collect with batch_inputs={max(len(pixels_or_ids) // 2, 1)}; "
                "finished shards are kept."
            ) from error
        keep = None if batch.keep is None else batch.keep[part].numpy()
        special = None if batch.special is None else batch.special[part].numpy()
        for site in sites:
            chosen = choose_rows(
                site, seen[site.name], len(pixels_or_ids), keep, special, tokens=tokens, special_tokens=special_tokens
            )
            rows, contexts, positions, width = chosen
            found[site.name].append(
                PendingRows(
                    site,
                    rows,
                    owner[part][contexts].astype(np.uint32),
                    (context[part][contexts] * width + positions).astype(np.uint32),
                    width,
                    dtype,
                )
            )
    return found


def choose_rows(
    site: Site,
    seen: Tensor,
    contexts: int,
    keep: np.ndarray | None,
    special: np.ndarray | None,
    *,
    tokens: str,
    special_tokens: bool,
) -> tuple[Tensor, np.ndarray, np.ndarray, int]:
    """The rows that are wanted, the context and the position of each, and the positions of a context."""
    if site.pooled:
        _check_shape(site, seen, (contexts, site.width))
        return seen, np.arange(contexts), np.zeros(contexts, dtype=np.int64), 1
    positions = seen.shape[1] if seen.dim() == 3 else site.positions
    _check_shape(site, seen, (contexts, positions, site.width))
    for mask in (keep, special):
        if mask is not None and mask.shape != (contexts, positions):
            raise ShapeError(
                f"Site {site.name!r} has {positions} positions, its inputs were prepared with {mask.shape[1]}. "
                "Choose a site that keeps one position per token."
            )
    first = site.prefix_tokens if tokens == "patches" else 0
    stop = site.prefix_tokens if tokens == "cls" else positions
    wanted = np.ones((contexts, positions), dtype=bool) if keep is None else keep.copy()
    if special is not None and tokens != "cls" and not special_tokens:
        wanted &= ~special
    wanted = wanted[:, first:stop]
    context, position = np.nonzero(wanted)
    rows = seen[:, first:stop].reshape(-1, site.width)
    if not wanted.all():
        rows = rows.index_select(0, torch.from_numpy(np.flatnonzero(wanted)).to(rows.device))
    return rows, context, position + first, positions


def _check_shape(site: Site, seen: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(seen.shape) != expected:
        raise ShapeError(
            f"Site {site.name!r} gave {tuple(seen.shape)}, expected {expected} "
            f"({'one row' if site.pooled else 'one row per token'} of {site.width} values). "
            "List the sites that give rows with model.hook_names()."
        )
