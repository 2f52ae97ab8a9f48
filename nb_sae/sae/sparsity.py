"""Which latents stay active: functions from pre-activations to sparse latents."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.errors import ConfigError


def top_k(pre: Float[Tensor, "batch d_sae"], k: int) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The `k` largest positive pre-activations of each row, strongest first.

    The first k' columns are the selection for every smaller budget k', so one call serves all nested budgets.

    Args:
        pre: Encoder output.
        k: Active latents per row.

    Returns:
        Values (0 where a row has fewer than `k` positive pre-activations) and latent numbers.

    Raises:
        ConfigError: `k` is outside [1, d_sae].
    """
    d_sae = pre.shape[-1]
    if not 1 <= k <= d_sae:
        raise ConfigError(f"k={k} is outside [1, d_sae={d_sae}]. Ask for fewer active latents per row.")
    values, indices = torch.topk(pre, k, dim=-1, sorted=True)
    return values.relu(), indices


def to_dense(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], d_sae: int
) -> Float[Tensor, "batch d_sae"]:
    """Sparse latents as a dense matrix; what was not kept is exactly 0."""
    return torch.zeros(*values.shape[:-1], d_sae, dtype=values.dtype, device=values.device).scatter(-1, indices, values)
