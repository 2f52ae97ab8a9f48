"""What a training step asks of the processes that train together, and the answers of one that is alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

AGREE_EVERY = 16
"""Steps between two exchanges about stopping; on a GPU every exchange waits for the device."""


class Group(Protocol):
    """The processes of one training run, as one of them sees them."""

    rank: int
    """Number of this process, 0 … world-1."""
    world: int
    """How many processes there are."""
    row_shares: int
    """Into how many parts a batch is split; every part is computed on `latent_shares` processes."""
    latent_shares: int
    """Into how many parts the dictionary is split."""
    latent_share: int
    """Which part of the dictionary this process holds."""
    latent_group: Any
    """torch.distributed's group of the processes that hold the parts of one dictionary; None for one process."""

    @property
    def is_main(self) -> bool:
        """Whether this process prints, logs and writes files."""
        ...

    # ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def share(self) -> tuple[int, int]:
        """What `source.batches(share=…)` is given: this process reads part `rank` of `world` of every batch."""
        ...

    def batch(self, rows: Tensor) -> Tensor:
        """The rows this process computes on, from those that it has read: those of its latent group together."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all processes. Its gradient is that of the local value, so that `reduce_gradients` makes it exact.

        Everything that is not linear in the mean over rows needs it: an L0 target, a loss divided by a variance.
        """
        ...

    def any(self, mask: Tensor) -> Tensor:
        """Where a boolean tensor holds on at least one row share: latents that fired. A scalar: on any process."""
        ...

    def smallest(self, value: Tensor) -> Tensor:
        """Elementwise minimum over the row shares: the threshold of BatchTopK."""
        ...

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all row shares, on every process, share after share. For what is rare: resampling."""
        ...

    # ── parameters ────────────────────────────────────────────────────────────────────────────────────────────

    def latents(self, d_sae: int) -> slice:
        """The latents that this process holds."""
        ...

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first row share, so that all start equal."""
        ...

    def reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average `.grad` over the row shares. Between the backward pass and anything that reads a gradient."""
        ...

    def clip_gradients(self, parameters: Iterable[Tensor], largest: float) -> None:
        """Scale `.grad` so that its norm over all parameters, wherever they are, is at most `largest`."""
        ...

    def split(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Leave of each parameter, by name, the part that this process holds."""
        ...

    def sum_over_latents(self, value: Tensor) -> Tensor:
        """Sum of a detached value over the latent shares: the squared norm of a gradient that is split."""
        ...

    def gather_latents(self, part: Tensor, dim: int) -> Tensor:
        """The whole of a tensor that is split along `dim`; every process must ask, every process gets it."""
        ...

    # ── together ──────────────────────────────────────────────────────────────────────────────────────────────

    def agree_to_stop(self, wanted: bool, step: int, *, now: bool = False) -> bool:
        """Whether to stop after this step: all processes stop at the same one, or none does.

        Several processes exchange this every `AGREE_EVERY` steps, or `now`; in between the answer is False.
        """
        ...

    def wait(self) -> None:
        """Return when every process is here: a file that the main process wrote is there for all."""
        ...


class Alone:
    """One process: everything is local."""

    rank, world, row_shares, latent_shares, latent_share = 0, 1, 1, 1, 0
    latent_group = None
    is_main = True
    share = (0, 1)

    def batch(self, rows: Tensor) -> Tensor:
        """See `Group`."""
        return rows

    def mean(self, value: Tensor) -> Tensor:
        """See `Group`."""
        return value

    def any(self, mask: Tensor) -> Tensor:
        """See `Group`."""
        return mask

    def smallest(self, value: Tensor) -> Tensor:
        """See `Group`."""
        return value

    def gather_rows(self, rows: Tensor) -> Tensor:
        """See `Group`."""
        return rows

    def latents(self, d_sae: int) -> slice:
        """See `Group`."""
        return slice(0, d_sae)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """See `Group`."""

    def reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See `Group`."""

    def clip_gradients(self, parameters: Iterable[Tensor], largest: float) -> None:
        """See `Group`."""
        torch.nn.utils.clip_grad_norm_(parameters, largest)

    def split(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """See `Group`."""

    def sum_over_latents(self, value: Tensor) -> Tensor:
        """See `Group`."""
        return value

    def gather_latents(self, part: Tensor, dim: int) -> Tensor:
        """See `Group`."""
        del dim
        return part

    def agree_to_stop(self, wanted: bool, step: int, *, now: bool = False) -> bool:
        """See `Group`."""
        del step, now
        return wanted

    def wait(self) -> None:
        """See `Group`."""
