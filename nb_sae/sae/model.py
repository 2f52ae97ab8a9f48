"""The sparse autoencoder as a torch module, in normalised units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nb_sae.sae.config import Sparsity
from nb_sae.sae.kernels.encoder import affine
from nb_sae.sae.sparsity import top_k

FIRST_THRESHOLD = 0.1
"""Where JumpReLU's thresholds start, in normalised units: below the typical positive pre-activation of the start."""


class SAE(nn.Module):
    """One encoder and one decoder; budgets, widths, sparsity and losses are functions around it.

    Parameters are `W_enc (d_in, d_sae)` (absent if tied), `b_enc (d_sae,)`, `W_dec (d_sae, d_out)` with unit rows,
    `b_dec (d_out,)`; "jump_relu" adds `log_threshold (d_sae,)`, "gated" adds `r_mag` and `b_mag (d_sae,)` (its `b_enc`
    is the gate's bias). "batch_top_k" has the buffer `threshold (budgets,)`, estimated in training. With `d_out` it is
    a transcoder: rows of one site in, rows of another out, and `b_dec` stays out of the encoder. With several `levels`
    each learns one factor for all latents, `log_level_scale (levels,)`: few latents of a nested code are worth more
    each than the same ones among many. `axes (d_in, d_in)` are the directions that rows are turned to before anything.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        d_out: int | None = None,
        sparsity: Sparsity = "top_k",
        budgets: Sequence[int] | None = None,
        tied: bool = False,
        encoder_scale: float = 0.2,
        levels: int = 1,
        principal_axes: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        W_dec = F.normalize(torch.randn(d_sae, d_out or d_in, generator=generator, dtype=dtype), dim=-1)
        self.W_dec = nn.Parameter(W_dec)
        self.pre_bias = d_out is None
        if not tied:
            directions = W_dec
            if d_out is not None:
                directions = F.normalize(torch.randn(d_sae, d_in, generator=generator, dtype=dtype), dim=-1)
            self.W_enc = nn.Parameter(encoder_scale * directions.T.contiguous())
        self.tied = tied
        self.b_enc = nn.Parameter(torch.zeros(d_sae, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(d_out or d_in, dtype=dtype))
        if sparsity == "jump_relu":
            self.log_threshold = nn.Parameter(torch.full((d_sae,), FIRST_THRESHOLD, dtype=dtype).log())
        if sparsity == "gated":
            self.r_mag = nn.Parameter(torch.zeros(d_sae, dtype=dtype))
            self.b_mag = nn.Parameter(torch.zeros(d_sae, dtype=dtype))
        if sparsity == "batch_top_k":
            self.register_buffer("threshold", torch.zeros(len(budgets or (0,)), dtype=dtype))
            self.threshold: Tensor
        self.log_level_scale = nn.Parameter(torch.zeros(levels, dtype=dtype)) if levels > 1 else None
        if principal_axes:
            self.register_buffer("axes", torch.eye(d_in, dtype=dtype))
            self.register_buffer("target_axes", None if d_out is None else torch.eye(d_out, dtype=dtype))
        self.axes: Tensor | None = getattr(self, "axes", None)
        self.target_axes: Tensor | None = getattr(self, "target_axes", None)

    @property
    def level_scale(self) -> Float[Tensor, " level"] | None:
        """What each level multiplies the latents by, or None where there is one level."""
        return None if self.log_level_scale is None else self.log_level_scale.exp()

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @property
    def encoder(self) -> Float[Tensor, "d_in d_sae"]:
        """`W_enc`, or the transposed decoder where the two are tied."""
        return self.W_dec.T if self.tied else self.W_enc

    def pre_activations(
        self, x: Float[Tensor, "batch d_in"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "batch d_sae"]:
        """(x − b_dec) W_enc + b_enc, computed in `dtype`; without the pre-bias for a transcoder.

        The value of the pre-bias enters with the rows, its gradient through a matrix–vector product of its own: the
        gradient is exact, and the (batch, d_in) product that autograd would form only to sum it away is never made.
        """
        W_enc = self.encoder
        bias = self.b_enc
        if self.pre_bias:
            fixed = self.b_dec.detach()
            bias = bias + (fixed - self.b_dec) @ W_enc.detach()
            x = x - fixed
        dtype = dtype or W_enc.dtype
        return affine(x, W_enc, bias, dtype)

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
