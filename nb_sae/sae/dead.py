"""Latents that nothing activates: how long they were silent, and two ways to bring them back."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.sae.model import SAE, decode_sparse
from nb_sae.sae.sparsity import top_k


def count_silence(
    silent_rows: Float[Tensor, "budgets d_sae"], fired: Bool[Tensor, "budgets d_sae"], batch_rows: int | Tensor
) -> None:
    """Add a batch to the rows since each latent was last active within each budget; in place, on the device."""
    silent_rows.add_(batch_rows).masked_fill_(fired, 0)


def dead_latent_loss(
    residual: Float[Tensor, "batch d_out"],
    pre: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    dead: Bool[Tensor, " d_sae"],
    k_aux: int,
    *,
    power: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """How badly the `k_aux` strongest dead latents explain what the others leave, as a fraction of it.

    `residual` is taken as given (no gradient); the size is fixed, so nothing waits for the device, and the loss is 0
    when no latent is dead. The gradient reaches encoder and decoder of dead latents only. `power` is the mean square of
    what is left, where these are not all rows of the batch.

    Source:
        Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093, appendix A.2.
    """
    target = residual.detach()
    masked = torch.where(dead, pre, torch.full_like(pre, -torch.inf))
    values, indices = top_k(masked, k_aux)
    error = (target - decode_sparse(values, indices, W_dec)).square().mean()
    power = target.square().mean() if power is None else power
    return torch.where(dead.any(), error / power.clamp_min(1e-12), 0.0)


@torch.no_grad()
def resample(
    sae: SAE,
    optimizer: torch.optim.Optimizer,
    dead: Bool[Tensor, " d_sae"],
    x: Float[Tensor, "batch d_in"],
    residual: Float[Tensor, "batch d_out"],
    *,
    seed: int,
) -> int:
    """Start dead latents again at rows that are explained badly; gives how many.

    Rows are drawn with probability proportional to their squared error. The decoder row becomes what is left of that
    row, the encoder column points at the row itself with a fifth of the mean norm of the living ones, bias and Adam's
    moments start from 0.

    Source:
        Bricken et al. 2023, Towards Monosemanticity, appendix "Neuron resampling".
    """
    latents = dead.nonzero().flatten()
    chance = residual.square().sum(-1).cpu().double()  # MPS has no float64
    if not len(latents) or not float(chance.sum()) > 0:
        return 0
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial(chance.square(), len(latents), replacement=True, generator=generator).to(x.device)
    sae.W_dec[latents] = F.normalize(residual[rows].to(sae.W_dec.dtype), dim=-1)
    if not sae.tied:
        living = sae.W_enc[:, ~dead]
        norm = living.norm(dim=0).mean() if living.shape[1] else sae.W_enc.new_tensor(1.0)
        centred = x[rows] - sae.b_dec if sae.pre_bias else x[rows]
        sae.W_enc[:, latents] = 0.2 * norm * F.normalize(centred.to(sae.W_enc.dtype), dim=-1).T
    sae.b_enc[latents] = 0
    axes = {id(sae.W_dec): 0, id(sae.b_enc): 0} | ({} if sae.tied else {id(sae.W_enc): 1})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in axes and parameter in optimizer.state:
                for moment in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[parameter][moment].index_fill_(axes[id(parameter)], latents, 0)
    return len(latents)
