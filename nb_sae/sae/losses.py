"""What training minimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nb_sae.sae.model import decode_sparse
from nb_sae.sae.sparsity import top_k


def level_errors(
    x: Float[Tensor, "batch d_in"], reconstructions: Sequence[Float[Tensor, "batch d_in"]]
) -> Float[Tensor, " level"]:
    """Mean squared error over rows and dimensions, one per budget, sparsest first."""
    return torch.stack([(x - x_hat).square().mean() for x_hat in reconstructions])


def dead_latent_loss(
    residual: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    dead: Bool[Tensor, " d_sae"],
    k_aux: int,
) -> Float[Tensor, ""]:
    """How badly the `k_aux` strongest dead latents explain what the others leave, as a fraction of it.

    `residual` is taken as given (no gradient); the size is fixed, so nothing waits for the device, and the loss is 0
    when no latent is dead. The gradient reaches encoder and decoder of dead latents only.

    Source:
        Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093, appendix A.2.
    """
    target = residual.detach()
    masked = torch.where(dead, pre, torch.full_like(pre, -torch.inf))
    values, indices = top_k(masked, k_aux)
    error = (target - decode_sparse(values, indices, W_dec)).square().mean()
    return torch.where(dead.any(), error / target.square().mean().clamp_min(1e-12), 0.0)
