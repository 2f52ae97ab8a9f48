"""Dictionaries of several sites with known chains: rows carried on with a rotation, copied from an MLP, or new."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

import nb_sae as ns

ANGLE = np.deg2rad(5.0)


def unit(rows: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=-1)


def rotated(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Each row turned by exactly 5° towards a random side."""
    side = torch.randn(rows.shape, generator=generator)
    side = side - (side * rows).sum(-1, keepdim=True) * rows
    return np.cos(ANGLE) * rows + np.sin(ANGLE) * torch.nn.functional.normalize(side, dim=-1)


def dictionary(W_dec: Tensor, site: str | None = None, **about) -> ns.Dictionary:
    about.setdefault("budgets", (min(4, len(W_dec)),))
    return ns.Dictionary.from_weights(
        W_dec.T.contiguous(), torch.zeros(len(W_dec)), W_dec, torch.zeros(W_dec.shape[1]), site=site, **about
    )


@dataclass
class Chains:
    dictionaries: dict[str, ns.Dictionary]
    before: dict[str, np.ndarray] = field(default_factory=dict)
    """Residual site → the latent of the residual site before that each latent continues; −1: none."""
    from_mlp: dict[str, np.ndarray] = field(default_factory=dict)
    """Residual site → the latent of the MLP of its block that each latent is a copy of; −1: none."""


def residual(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def mlp(layer: int) -> str:
    return f"blocks.{layer}.hook_mlp_out"


def attention(layer: int) -> str:
    return f"blocks.{layer}.hook_attn_out"


def chains(*, layers: int = 4, latents: int = 500, width: int = 128, seed: int = 0) -> Chains:
    """70 % of the rows carried with 5°, 20 % copied from MLP rows, 10 % new; shuffled at every layer.

    Of the carried rows, a fifth also lies near an MLP row, which makes them "processed".
    """
    generator = torch.Generator().manual_seed(seed)
    made = Chains({})
    before = unit(latents, width, generator)
    made.dictionaries[residual(0)] = dictionary(before, residual(0))
    carried, copied = int(0.7 * latents), int(0.2 * latents)
    for layer in range(1, layers):
        order = torch.randperm(latents, generator=generator)
        kept, own = torch.randperm(latents, generator=generator)[:carried], unit(latents, width, generator)
        written = torch.randperm(latents, generator=generator)[: copied + carried // 5]
        rows = torch.cat(
            [rotated(before[kept], generator), rotated(own[written[:copied]], generator),
             unit(latents - carried - copied, width, generator)]
        )  # fmt: skip
        own[written[copied:]] = rotated(rows[: carried // 5], generator)
        previous, source = torch.full((latents,), -1), torch.full((latents,), -1)
        previous[:carried] = kept
        source[: carried // 5], source[carried : carried + copied] = written[copied:], written[:copied]
        before = rows[order]
        made.before[residual(layer)], made.from_mlp[residual(layer)] = previous[order].numpy(), source[order].numpy()
        made.dictionaries |= {
            residual(layer): dictionary(before, residual(layer)),
            mlp(layer): dictionary(own, mlp(layer)),
            attention(layer): dictionary(unit(latents, width, generator), attention(layer)),
        }
    return made
