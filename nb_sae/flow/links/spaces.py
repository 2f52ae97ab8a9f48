"""Directions of one site in the space of another: the way through a tower's final norm and projection."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.hooks import display_name
from nb_sae.layers import Tower
from nb_sae.models.parts import parts

_LINEAR = 1e-3
"""Largest relative difference between the map of a sum of two directions and the sum of their maps."""


@torch.no_grad()
def through_final_norm(
    model: Any, tower: Tower, directions: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows embed_dim"]:
    """What a step along each direction of the last residual stream is in the embedding.

    Of a LayerNorm with weight w before the projection P it is (d − mean d) ⊙ w · P. The norm divides each token by its
    own spread, a positive number that a cosine does not see; how that number changes with the step is left out. Read
    off the model's own function as (f(d) − f(−d)) / 2, in which biases cancel; rows come with positive factors.

    Args:
        model: From `load_clip`.
        tower: Whose end it is.
        directions: Rows in the last residual stream.

    Raises:
        ConfigError: the tower does not end in a norm and a linear map (it pools by attention with an MLP), or it is a
            language model.
    """
    found = parts(model, tower)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.linalg.qr(_centred(torch.randn(2, directions.shape[1], generator=generator)).T)[0].T.to(directions)
    # Three directions of one norm and of mean 0, which every norm divides by the same number.
    of_sum, of_a, of_b = _odd_part(found, torch.stack([(a + b) / 2**0.5, a, b]))
    if float((of_sum - (of_a + of_b) / 2**0.5).norm() / of_sum.norm()) > _LINEAR:
        raise ConfigError(
            f"The {tower} tower of {display_name(model)} does not end in a norm and a linear map, so directions of its "
            "residual stream are no directions of the embedding. Leave the embedding out of the flow."
        )
    return torch.cat([_odd_part(found, part) for part in directions.float().split(8192)]).to(directions.device)


def _odd_part(found: Any, d: Tensor) -> Tensor:
    """(f(d) − f(−d)) / 2 of the final lens; steps are long, so that what a norm adds to its variance does not count."""
    d = d * (1e3 * d.shape[1] ** 0.5 / d.norm(dim=-1, keepdim=True).clamp_min(1e-30))
    return (found.final_lens(d) - found.final_lens(-d)) / 2


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)
