"""Which heads a latent belongs to, read off the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from nb_sae.attribution.attention import read_attention
from nb_sae.attribution.schema import HEAD_WEIGHTS
from nb_sae.errors import ConfigError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import latent_number, listed

LATENTS_AT_A_TIME = 4096
"""Pulled back through W_O together: 12 heads of 64 numbers each are 12 MB."""


@torch.no_grad()
def head_weights(
    model: Any, dictionary: Dictionary, latents: int | Iterable[int] | None = None, *, site: str | None = None
) -> pl.DataFrame:
    """The share of each head in what a latent reads, from the weights alone.

    A dictionary of the attention's output reads head k along W_O^k W_enc[:, i], and the share is that of the norm:
    h_k(i) = ‖W_O^k W_enc[:, i]‖ / Σ_j ‖W_O^j W_enc[:, i]‖. Of a dictionary of the concatenated heads before W_O it is
    the norm of head k's block of the decoder row, as in the paper. A latent without any weight has shares of 0.

    The null is the share that a random direction has: of the Frobenius norm of W_O^k, 1 / heads before W_O.

    Args:
        model: From `load_lm` or `load_clip`.
        dictionary: Of an attention site of it.
        latents: Which; None: all.
        site: Where; None: where the dictionary was trained.

    Returns:
        `schema.HEAD_WEIGHTS`, a line per latent and head.

    Raises:
        ConfigError: another model than the dictionary's, no attention site, no such latent, or a transcoder of the
            heads, whose decoder writes elsewhere.
        ShapeError: the dictionary has another width.

    Source:
        Kissane et al. 2024, Interpreting Attention Layer Outputs with Sparse Autoencoders, arXiv:2406.17759, section 3.
    """
    read = read_attention(model, dictionary, site)
    if read.before_output and dictionary.is_transcoder:
        raise ConfigError(
            f"A transcoder reads the heads at {read.site!r} and writes {dictionary.target or 'other rows'!r}: its "
            "decoder rows are no blocks of heads. Give an SAE of the heads."
        )
    numbers = np.arange(dictionary.d_sae)
    if latents is not None:
        numbers = np.unique([latent_number(one, None, dictionary.d_sae) for one in listed(latents)]).astype(np.int64)
    heads = read.weights.heads
    table = dictionary.W_dec.T if read.before_output else dictionary.W_enc
    shares = np.zeros((len(numbers), heads))
    for start in range(0, len(numbers), LATENTS_AT_A_TIME):
        part = torch.from_numpy(numbers[start : start + LATENTS_AT_A_TIME]).to(table.device)
        shares[start : start + len(part)] = _shares(read.pulled_back(table[:, part]).norm(dim=1)).T
    everything = torch.eye(read.d_in, device=read.weights.W_O.device)
    null = _shares(read.pulled_back(everything).flatten(1).norm(dim=1))
    return pl.DataFrame(
        {
            "latent": np.repeat(numbers, heads),
            "head": np.tile(np.arange(heads), len(numbers)),
            "share": shares.ravel(),
            "null": np.tile(null, len(numbers)),
        },
        schema=HEAD_WEIGHTS,
    )


def _shares(norms: Tensor) -> np.ndarray:
    """Of the sum over the first axis, 0 where that is 0."""
    norms = norms.cpu().double()
    return (norms / norms.sum(0).clamp_min(1e-300)).numpy()
