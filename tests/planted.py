"""Rows made from known atoms, so that tests can compare what was found with what is true."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def atoms(count: int = 256, d_in: int = 64, *, seed: int = 0) -> Tensor:
    """Random unit directions, `(count, d_in)`."""
    return F.normalize(torch.randn(count, d_in, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sparse_rows(directions: Tensor, rows: int, *, active: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Rows with `active` atoms each, coefficients U(0.5, 1.5), and the coefficients `(rows, atoms)`."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, len(directions), generator=generator).topk(active, dim=-1).indices
    strength = 0.5 + torch.rand(rows, active, generator=generator)
    coefficients = torch.zeros(rows, len(directions)).scatter(-1, chosen, strength)
    return coefficients @ directions, coefficients
