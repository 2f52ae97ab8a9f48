"""Where latents are active on pictures, and whether two of them are active in the same places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.sae.controls import matched_latents
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.metrics.rows import check_finite
from nb_sae.types import Site

BLOCK_BYTES = 64 * 2**20
LEAST_INPUTS = 5
"""Pictures below which activations are not correlated over pictures."""


@dataclass
class Codes:
    """Activations of every latent of one site on some pictures, as sparse as the dictionary makes them."""

    site: Site
    dictionary: Dictionary
    _values: list[Tensor] = field(default_factory=list)
    _latents: list[Tensor] = field(default_factory=list)

    def add(self, rows: Float[Tensor, "inputs *tokens d_in"]) -> None:
        """Encode what the site gives for some pictures. Raises `NonFiniteError` for NaN or infinity."""
        check_finite(rows.reshape(-1, rows.shape[-1]), what=f"tokens of {self.site.name!r}")
        values, latents = self.dictionary.encode(rows.reshape(-1, rows.shape[-1]).float(), sparse=True)
        shape = len(rows), -1 if rows.ndim == 3 else 1, values.shape[1]
        self._values.append(values.cpu().view(shape))
        self._latents.append(latents.cpu().view(shape))

    def of(self, latents: Sequence[int]) -> Float[Tensor, "inputs tokens latents"]:
        """Activations of some latents on every token, prefix tokens first."""
        column = torch.full((self.dictionary.d_sae,), len(latents), dtype=torch.long)
        column[list(latents)] = torch.arange(len(latents))
        found = []
        for values, numbers in zip(self._values, self._latents, strict=True):
            z = values.new_zeros(*values.shape[:2], len(latents) + 1)  # the last column takes what nobody asked for
            found.append(z.scatter_add_(2, column[numbers], values)[..., :-1])
        return torch.cat(found)

    def patches(self, latents: Sequence[int]) -> Float[Tensor, "inputs patches latents"]:
        """Activations on the patches."""
        return self.of(latents)[:, self.site.prefix_tokens :]

    def answers(self, latents: Sequence[int]) -> Float[Tensor, "inputs latents"]:
        """One activation per picture: on the CLS token or of the embedding; without either the mean over patches."""
        found = self.of(latents)
        return found[:, 0] if self.has_answer else found.mean(1)

    @property
    def has_answer(self) -> bool:
        """Whether one token stands for the picture."""
        return self.site.pooled or self.site.prefix_tokens > 0

    def usage(self, first: int, stop: int | None) -> tuple[Any, Any]:
        """Density and mean activation where active of every latent, `(d_sae,)` each, on the tokens from `first` on."""
        count, total = np.zeros(self.dictionary.d_sae), np.zeros(self.dictionary.d_sae)
        rows = 0
        for values, numbers in zip(self._values, self._latents, strict=True):
            values, numbers = values[:, first:stop], numbers[:, first:stop]
            active = values > 0
            here = numbers[active].numpy()
            count += np.bincount(here, minlength=len(count))
            total += np.bincount(here, weights=values[active].double().numpy(), minlength=len(total))
            rows += values.shape[0] * values.shape[1]
        return count / max(1, rows), np.divide(total, count, out=np.zeros_like(total), where=count > 0)

    def controls(self, latent: int, count: int, *, answers: bool, seed: int) -> list[int]:
        """Other latents that are active as often and as strongly on the tokens that are compared; as many as there are.

        None where this one is never active.
        """
        span = (0, 1) if answers and self.has_answer else (self.site.prefix_tokens, None)
        density, mean = self.usage(*span)
        if not density[latent] > 0:
            return []
        others = int((density > 0).sum()) - 1
        return matched_latents(density, mean, latent, min(count, others), seed=seed)


def map_agreement(
    sources: Float[Tensor, "inputs patches latents"], target: Float[Tensor, "inputs patches"]
) -> tuple[Float[Tensor, " latents"], int]:
    """Rank correlation of each source map with the target's, mean over pictures; and how many pictures count.

    Pictures on which the target is the same everywhere say nothing and are left out; a source that is the same
    everywhere on a picture that counts agrees by 0 there.
    """
    telling = (target.amax(1) > target.amin(1)).nonzero().flatten()
    if not len(telling):
        return torch.full((sources.shape[2],), torch.nan, dtype=torch.double), 0
    total = torch.zeros(sources.shape[2], dtype=torch.double)
    patches = target.shape[1]
    at_a_time = max(1, BLOCK_BYTES // (8 * patches * (1 + sources.shape[2])))
    for some in telling.split(at_a_time):
        a, b = _centred_ranks(sources[some].transpose(1, 2)), _centred_ranks(target[some][:, None])
        total += ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-12)).sum(0)
    return total / len(telling), len(telling)


def answer_agreement(
    sources: Float[Tensor, "inputs latents"], target: Float[Tensor, " inputs"]
) -> tuple[Float[Tensor, " latents"], int]:
    """Rank correlation over pictures; NaN where the target is the same on all or there are too few pictures."""
    if len(target) < LEAST_INPUTS:
        return torch.full((sources.shape[1],), torch.nan, dtype=torch.double), 0
    found, telling = map_agreement(sources[None], target[None])
    return found, len(target) if telling else 0


def _centred_ranks(x: Tensor) -> Tensor:
    """Mid-ranks along the last axis, less their mean; double."""
    x = x.contiguous()
    ordered = x.sort(-1).values
    below, upto = (torch.searchsorted(ordered, x, side=side) for side in ("left", "right"))
    return (below + upto).double() / 2 - x.shape[-1] / 2
