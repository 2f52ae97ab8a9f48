"""A language model that is linear after its site, so that what every latent does to the output is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.models.lm import LanguageModel, load_lm

D_IN, D_SAE, VOCABULARY = 16, 32, 11


class LinearReadout(nn.Module):
    """Ids → rows of a table (`stream`) → logits, at every position by itself; `bend` makes the way there curved."""

    def __init__(self, *, bend: bool = False) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, D_IN)
        self.stream = nn.Identity()
        self.bend = nn.Tanh() if bend else nn.Identity()
        self.head = nn.Linear(D_IN, VOCABULARY)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=draw)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bend(self.stream(self.table(ids))))


def linear_lm(*, bend: bool = False) -> LanguageModel:
    return load_lm(LinearReadout(bend=bend), context_tokens=8, name="linear")


def random_dictionary(d_in: int = D_IN, d_sae: int = D_SAE, site: str | None = "stream", **about) -> ns.Dictionary:
    """Random unit directions, read by their inner products."""
    draw = torch.Generator().manual_seed(1)
    W = F.normalize(torch.randn(d_sae, d_in, generator=draw), dim=-1)
    b_dec = 0.1 * torch.randn(d_in, generator=draw)
    weights = {"W_enc": W.T.contiguous(), "b_enc": torch.zeros(d_sae), "W_dec": W, "b_dec": b_dec}
    return ns.Dictionary(weights, **{"budgets": (4, 8), "site": site} | about)


def prompts(count: int = 3, tokens: int = 6, most: int = VOCABULARY) -> Tensor:
    return torch.randint(0, most, (count, tokens), generator=torch.Generator().manual_seed(2))
