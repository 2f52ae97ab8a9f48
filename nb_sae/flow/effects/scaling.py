"""The edit of a deactivation: latents of one site scaled in a batch whose rows are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import moved
from nb_sae.types import Edit


@torch.no_grad()
def scaling(
    dictionary: Dictionary,
    site: str,
    x: Float[Tensor, "*rows d_in"],
    acts: Float[Tensor, "rows m"],
    latents: Sequence[int],
    factor: float,
) -> Edit:
    """An edit of a batch whose rows are known: a (r − 1) v is added to every row on which one of the latents is active.

    All other rows keep their bits.

    Args:
        dictionary: Of the site.
        site: Where.
        x: The rows of this batch, as the model gives them.
        acts: Activations of the latents on these rows.
        latents: Which.
        factor: r.
    """
    hit = (acts > 0).any(1)
    rows = flat(x)[hit.to(x.device)]
    changed = moved(dictionary, rows.float(), latents, (factor - 1) * acts[hit]).to(x.dtype)

    def apply(now: Tensor) -> Tensor:
        edited = flat(now).clone()
        edited[hit.to(now.device)] = changed.to(now.device)
        return edited.reshape(now.shape)

    return Edit(site, apply, f"scale {factor:g} on latent {', '.join(map(str, latents))}")


def flat(rows: Tensor) -> Float[Tensor, "rows width"]:
    """`(context, token, width)` or `(context, width)` as rows."""
    return rows.reshape(-1, rows.shape[-1])
