"""The numbers of one nested loss, and what all ways of computing it share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from nb_sae.errors import ConfigError, ShapeError

Selection = Literal["row", "batch"]


@dataclass(frozen=True)
class Plan:
    """Budgets, widths and weights, checked.

    A *bucket* is what one budget adds to the one before it, a *group* what one width adds. A cell is their
    intersection; level (i, w) is the bias and all cells up to bucket i and group w.
    """

    budgets: tuple[int, ...]
    widths: tuple[int, ...]
    weights: tuple[float, ...]
    selection: Selection

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First and last + 1 latent of each group."""
        return list(pairwise((0, *self.widths)))

    def weight(self, bucket: int, group: int) -> float:
        """Weight of a level."""
        return self.weights[bucket * len(self.widths) + group]

    def merged(self, buckets: int) -> Plan:
        """The first `buckets` budgets, the last of them with the weights of all that follow it."""
        wide = len(self.widths)
        last = [sum(self.weights[(buckets - 1) * wide + group :: wide]) for group in range(wide)]
        return Plan(
            self.budgets[:buckets],
            self.widths,
            (*self.weights[: (buckets - 1) * wide], *last),
            self.selection,
        )

    @classmethod
    def make(
        cls,
        target: Tensor,
        pre: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        *,
        budgets: Sequence[int],
        widths: Sequence[int] | None,
        level_weights: Sequence[float],
        row_weights: Tensor | None,
        selection: Selection,
    ) -> Plan:
        """Check everything that can be checked without waiting for the device."""
        batch, d_sae = pre.shape
        wanted = {"target": (batch, W_dec.shape[1]), "W_dec": (d_sae, W_dec.shape[1]), "b_dec": (W_dec.shape[1],)}
        given = {"target": target, "W_dec": W_dec, "b_dec": b_dec}
        if row_weights is not None:
            wanted["row_weights"], given["row_weights"] = (batch,), row_weights
        for name, shape in wanted.items():
            if tuple(given[name].shape) != shape:
                raise ShapeError(f"{name} has shape {tuple(given[name].shape)}; pre {tuple(pre.shape)} needs {shape}.")
        if batch == 0:
            raise ShapeError("The batch has no rows. Give at least one.")
        budgets = tuple(int(k) for k in budgets)
        widths = tuple(int(w) for w in widths) if widths is not None else (d_sae,)
        for name, numbers in (("budgets", budgets), ("widths", widths)):
            if not numbers or numbers[0] < 1 or numbers[-1] > d_sae or any(b <= a for a, b in pairwise(numbers)):
                raise ConfigError(f"{name}={numbers} must rise strictly within [1, d_sae={d_sae}].")
        if widths[-1] != d_sae:
            raise ConfigError(f"widths={widths} must end at d_sae={d_sae}. Add it as the last width.")
        if len(level_weights) != len(budgets) * len(widths):
            raise ConfigError(
                f"level_weights has {len(level_weights)} numbers; {len(budgets)} budgets × {len(widths)} widths need "
                f"{len(budgets) * len(widths)}."
            )
        if selection not in ("row", "batch"):
            raise ConfigError(f'selection="{selection}" must be "row" or "batch".')
        return cls(budgets, widths, tuple(float(w) for w in level_weights), selection)


@dataclass(frozen=True)
class Computed:
    """What every way gives: the fields of `NestedLoss` and the gradients of the loss.

    Without gradients those three are None. Gradients of `pre` have its dtype, the others are at least float32.
    """

    loss: Tensor
    errors: Tensor
    residual: Tensor
    fired: Tensor
    thresholds: Tensor
    grad_pre: Tensor | None = None
    grad_decoder: Tensor | None = None
    grad_bias: Tensor | None = None
    grad_scale: Tensor | None = None
    """Of the levels' factors; None where there are none."""


class Levels:
    """Errors of all levels, added up cell by cell, and the sums of errors that the gradients need.

    Keeps `(batch, d_out)` per level, never anything of width d_sae.
    """

    def __init__(
        self, target: Tensor, b_dec: Tensor, row_weights: Tensor | None, plan: Plan, scale: Tensor | None = None
    ) -> None:
        self.plan, self.target, self.row_weights = plan, target, row_weights
        self.scale = None if scale is None else scale.detach().to(target.dtype)
        self.grad_bias: Tensor | None = None
        self.grad_scale: Tensor | None = None
        self._base = b_dec.to(target.dtype) - target
        self._groups: list[Tensor | None] = [None] * len(plan.widths)
        self._differences: list[Tensor] = []
        self._squares: Tensor = self._base

    def add(self, cells: Sequence[Tensor] | None) -> None:
        """The next bucket, one `(batch, d_out)` per group; None: it is empty."""
        x_hat: Tensor | None = None
        for group in range(len(self.plan.widths)):
            total = self._groups[group]
            if cells is not None:
                cell = cells[group].to(self._base.dtype)
                total = self._groups[group] = cell if total is None else total + cell
            if total is None:
                total = torch.zeros_like(self._base)
            x_hat = total if x_hat is None else x_hat + total
            if self.scale is None:
                self._differences.append(self._base + x_hat)
            else:
                self._differences.append(torch.addcmul(self._base, x_hat, self.scale[len(self._differences)]))

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, errors and residual."""
        squares = torch.stack([torch.linalg.vector_norm(d, dim=1) for d in self._differences]).square()
        self._squares = squares
        rows = squares / self.target.shape[1]
        weights = torch.tensor(self.plan.weights, dtype=rows.dtype).to(rows.device, non_blocking=True)
        weighted = rows if self.row_weights is None else rows * self.row_weights
        return weights @ weighted.mean(1), rows.mean(1), -self._differences[-1]

    def tails(self) -> list[list[Tensor]]:
        """∂loss/∂cell of each cell: the weighted errors of all levels that hold it. Uses up what was kept.

        Leaves the gradients of the bias and of the levels' factors in `grad_bias` and `grad_scale`.
        """
        plan, wide = self.plan, len(self.plan.widths)
        scale = 2 / self.target.numel()
        of_bias: Tensor | None = None
        of_scale: list[Tensor] = []
        tails: list[list[Tensor]] = []
        for bucket in reversed(range(len(plan.budgets))):
            row: list[Tensor] = []
            for group in reversed(range(wide)):
                level, factor = bucket * wide + group, scale * plan.weight(bucket, group)
                tail = self._differences.pop()
                if self.scale is not None:  # x̂ − b = (difference − base) / factor of the level
                    along = self._squares[level] - torch.linalg.vecdot(tail, self._base)
                    along = along if self.row_weights is None else along * self.row_weights
                    of_scale.append(along.sum() * factor / self.scale[level])
                tail.mul_(factor)
                if self.row_weights is not None:
                    tail.mul_(self.row_weights[:, None])
                if self.scale is not None:
                    of_bias = tail.sum(0) if of_bias is None else of_bias + tail.sum(0)
                    tail.mul_(self.scale[level])
                if row:
                    tail.add_(row[-1])
                row.append(tail)
            row.reverse()
            tails.append(row)
        # Up to here a tail sums over wider groups of its own bucket; now over later buckets.
        for later, earlier in pairwise(tails):
            for group in range(wide):
                earlier[group].add_(later[group])
        tails.reverse()
        # The tail of the first cell holds every level, and so does the bias, but without the levels' factors.
        self.grad_bias = tails[0][0].sum(0) if of_bias is None else of_bias
        self.grad_scale = torch.stack(of_scale[::-1]) if of_scale else None
        return tails
