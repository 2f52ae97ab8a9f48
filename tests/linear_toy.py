"""A residual model that is linear, so that every effect of an edit is known: h0 = embedding, h1 = h0 + W h0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import nb_sae as ns

WIDTH, HALF, VOCABULARY = 24, 12, 40


class Block(nn.Module):
    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.W = nn.Parameter(W, requires_grad=False)

    def forward(self, h: Tensor) -> Tensor:
        return h + h @ self.W


class LinearResidual(nn.Module):
    """Features 0 … 11 are in the embedding; W writes feature i to 12 + i, times 0.7, and nothing else.

    Args:
        basis: `(WIDTH, WIDTH)` orthonormal rows: the directions of the features.
        sees_all: Every position also gets the mean over the context, as in an encoder.
    """

    def __init__(self, basis: Tensor, *, sees_all: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        features = torch.zeros(VOCABULARY, WIDTH)
        chosen = torch.rand(VOCABULARY, HALF, generator=generator).topk(4, dim=-1).indices
        features.scatter_(1, chosen, 0.5 + torch.rand(VOCABULARY, 4, generator=generator))
        write = torch.zeros(WIDTH, WIDTH)
        write[:HALF, HALF:] = 0.7 * torch.eye(HALF)
        self.embed = nn.Embedding(VOCABULARY, WIDTH, _weight=features @ basis)
        self.layers = nn.ModuleList([Block(torch.zeros(WIDTH, WIDTH)), Block(basis.T @ write @ basis)])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight.data = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.sees_all = sees_all

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        if self.sees_all:
            h = h + h.mean(1, keepdim=True)
        for layer in self.layers:
            h = layer(h)
        return self.head(h)


def rotated() -> Tensor:
    """An orthonormal basis along no axis."""
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))).Q


def linear_lm(basis: Tensor | None = None, *, sees_all: bool = False):
    basis = torch.eye(WIDTH) if basis is None else basis
    return ns.load_lm(LinearResidual(basis, sees_all=sees_all), name="toy", context_tokens=16)


def token_ids(contexts: int = 12, positions: int = 10) -> Tensor:
    return torch.randint(0, VOCABULARY, (contexts, positions), generator=torch.Generator().manual_seed(1))
