"""Dictionaries whose latents are known, for the tests of the metrics."""

from __future__ import annotations

import torch

import nb_sae as ns


def gaussian(*shape: int, seed: int = 0, dtype=torch.double) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dictionary_of(directions: torch.Tensor, *, budgets=(4,), **about) -> ns.Dictionary:
    """An encoder that reads the directions by their inner products."""
    weights = {
        "W_enc": directions.T.float().contiguous(),
        "b_enc": torch.zeros(len(directions)),
        "W_dec": directions.float(),
        "b_dec": torch.zeros(directions.shape[1]),
    }
    return ns.Dictionary(weights, budgets=budgets, **about)
