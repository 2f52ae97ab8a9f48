"""The sparse autoencoder as a torch module, in normalised units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nb_sae.sae.sparsity import top_k


class SAE(nn.Module):
    """One encoder and one decoder; budgets, sparsity and losses are functions around it.

    Parameters are `W_enc (d_in, d_sae)`, `b_enc (d_sae,)`, `W_dec (d_sae, d_in)` with unit rows, `b_dec (d_in,)`.
    """

    def __init__(self, d_in: int, d_sae: int, *, encoder_scale: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        W_dec = F.normalize(torch.randn(d_sae, d_in, generator=generator), dim=-1)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(encoder_scale * W_dec.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """(x − b_dec) W_enc + b_enc.

        The pre-bias is folded into the bias: its gradient is then one matrix–vector product, not a matrix product.
        """
        return torch.addmm(self.b_enc - self.b_dec @ self.W_enc, x, self.W_enc)

    def encode(self, x: Float[Tensor, "batch d_in"], k: int) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        """The k strongest latents of each row, strongest first, as values and latent numbers."""
        return top_k(self.pre_activations(x), k)

    def decode(self, values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"]) -> Float[Tensor, "batch d_in"]:
        """Reconstruction from sparse latents."""
        return self.b_dec + decode_sparse(values, indices, self.W_dec)


def decode_sparse(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "batch d_in"]:
    """Σ values · decoder rows: touches k rows of the dictionary per input, not d_sae."""
    return F.embedding_bag(indices, W_dec, per_sample_weights=values.to(W_dec.dtype), mode="sum")


def nested_decode(
    values: Float[Tensor, "batch k"],
    indices: Int[Tensor, "batch k"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    budgets: Sequence[int],
) -> list[Float[Tensor, "batch d_in"]]:
    """One reconstruction per budget, sparsest first, from latents sorted by strength.

    x̂_i = x̂_{i−1} + Σ over the latents that budget i adds. Each latent is decoded once whatever the number of
    budgets, and autograd's way back through the chain of sums is the suffix sum Σ_{l≥i} ∂L/∂x̂_l, so the gradient is
    exact and also touches each latent once.
    """
    x_hat = b_dec.expand(values.shape[0], -1)
    reconstructions = []
    for start, stop in pairwise((0, *budgets)):
        x_hat = x_hat + decode_sparse(values[:, start:stop], indices[:, start:stop], W_dec)
        reconstructions.append(x_hat)
    return reconstructions
