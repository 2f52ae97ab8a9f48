"""What training takes in memory: said before anything is allocated, and what to lower where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from nb_sae.errors import NotEnoughMemoryError
from nb_sae.machine import free_bytes, readable_bytes
from nb_sae.sae import optim
from nb_sae.sae.config import SAEConfig
from nb_sae.sae.residual import rounds
from nb_sae.sae.training import TrainConfig

MATRICES = {"top_k": 6, "batch_top_k": 6, "relu": 7, "jump_relu": 11, "gated": 15}
"""Matrices of (batch, d_sae) that are alive together at the peak of a step: pre-activations, latents, masks, gradients,
and the auxiliary loss where latents are dead. Measured as the peak of a process at (512 rows, 256 × 2,048) and (512,
512 × 4,096); tests/test_memory.py measures again."""
ROUNDS_MATRICES = 9
"""The same for budgets in rounds, where later budgets have pre-activations of their own."""
KEPT_PER_ROUND = 4
"""Rows of `d_in` for each round until the gradients are made: what it saw, what it left, what it feels, and one of them
again where those of all rounds are put side by side."""
KEPT_SHARE = 0.25
"""Of the free main memory that the copy of the last sound state may take; a larger one is not made."""


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of one SAE in training on one device. Rows that the source keeps there are not part of it."""

    weights: int
    gradients: int
    moments: int
    average: int
    kept: int
    """Copy of all these but the gradients in main memory, for a run that diverges; 0 where it has no room."""
    per_row: int
    """Of a batch, for every row of it."""
    batch_rows: int
    d_in: int
    d_sae: int
    device: torch.device

    @classmethod
    def of(
        cls,
        config: SAEConfig,
        train: TrainConfig,
        d_in: int,
        d_out: int | None,
        device: torch.device,
        *,
        row_shares: int = 1,
        latent_shares: int = 1,
    ) -> MemoryBudget:
        """From resolved settings, for one of the processes that share rows and latents; nothing is allocated."""
        d_sae, out = (config.d_sae or 0) // latent_shares, d_out or d_in
        numbers = d_sae * (out + (0 if config.tied else d_in)) + d_sae + out
        numbers += d_sae * {"jump_relu": 1, "gated": 2}.get(config.sparsity, 0)
        item = getattr(torch, train.dtype).itemsize
        compute = optim.compute_dtype(train, device, d_in * d_sae).itemsize
        average = numbers * item if train.ema_decay else 0
        kept, room = 3 * numbers * item + average, free_bytes(torch.device("cpu"))
        matrices = ROUNDS_MATRICES if config.residual else MATRICES[config.sparsity]
        kept_rows = len(config.levels)
        if config.residual and config.budgets:
            kept_rows = KEPT_PER_ROUND * len(rounds(config.budgets, config.budgets[-1], config.looks or 1))
        # A threshold is compared with in its own precision.
        matrix_item = item if config.sparsity == "jump_relu" else compute
        return cls(
            weights=numbers * item + (numbers * compute if compute != item else 0),
            gradients=numbers * item,
            moments=2 * numbers * item,
            average=average,
            kept=kept if room is None or kept <= KEPT_SHARE * room else 0,
            per_row=matrices * d_sae * matrix_item + (3 * d_in + (4 + kept_rows) * out) * item,
            batch_rows=(train.batch_rows or 0) // row_shares,
            d_in=d_in,
            d_sae=d_sae,
            device=device,
        )

    @property
    def state(self) -> int:
        """What lasts from step to step."""
        kept = self.kept if self.device.type == "cpu" else 0
        return self.weights + self.gradients + self.moments + self.average + kept

    @property
    def batch(self) -> int:
        """What one step adds."""
        return self.per_row * self.batch_rows

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.batch

    def __str__(self) -> str:
        parts = [
            f"{readable_bytes(self.weights)} weights",
            f"{readable_bytes(self.gradients)} gradients",
            f"{readable_bytes(self.moments)} moments",
            *([f"{readable_bytes(self.average)} averages"] if self.average else []),
            *([f"{readable_bytes(self.kept)} to go back to"] if self.kept and self.device.type == "cpu" else []),
            f"{readable_bytes(self.batch)} for {self.batch_rows:,} rows",
        ]
        return (
            f"Training {self.d_sae:,} latents of width {self.d_in:,} on {self.device}: {' + '.join(parts)} = about "
            f"{readable_bytes(self.total)}"
        )

    def check(self) -> None:
        """Refuse what cannot fit into what is free.

        Raises:
            NotEnoughMemoryError: says which setting would.
        """
        free = free_bytes(self.device)
        if free is not None and self.total > free:
            raise NotEnoughMemoryError(f"{self}, {readable_bytes(free)} are free. {self.advice(free)}")

    def advice(self, free: int | None) -> str:
        """Which setting to lower, and to what."""
        smaller = self.batch_rows // 2
        if free is not None:
            smaller = min(smaller, int((free - self.state) / max(self.per_row, 1)))
        if smaller >= 32 and self.batch > self.state / 4:
            return f"Lower TrainConfig.batch_rows to {2 ** (smaller.bit_length() - 1)}."
        if self.device.type != "cpu":
            return "Lower SAEConfig.d_sae, or TrainConfig.batch_rows, or free the device of other tensors."
        return "Lower SAEConfig.d_sae or TrainConfig.batch_rows."


@contextmanager
def memory_errors(budget: MemoryBudget) -> Iterator[None]:
    """Turn an allocator's message into what was needed and what to lower.

    Raises:
        NotEnoughMemoryError: in place of torch's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = str(error)
        if isinstance(error, NotEnoughMemoryError) or not (
            isinstance(error, torch.OutOfMemoryError | MemoryError)
            or "not enough memory" in told
            or "out of memory" in told
        ):
            raise
        reason = (told.splitlines() or ["out of memory"])[0]
        raise NotEnoughMemoryError(f"{budget}; that did not fit ({reason}). {budget.advice(None)}") from error
