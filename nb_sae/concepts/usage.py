"""How often and how strongly each latent is active over some rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nb_sae.sae.dictionary import Dictionary

ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Usage:
    """Per latent, over some rows, by the trained rule."""

    density: NDArray[np.float64]
    """Fraction of the rows on which it is active."""
    mean: NDArray[np.float64]
    """Activation where it is active; 0 where it never is."""
    p99: NDArray[np.float64]
    """99th percentile of the activation where it is active; 0 where it never is."""

    @property
    def active(self) -> NDArray[np.bool_]:
        """Whether it is active on any of the rows."""
        return self.density > 0


def usage(dictionary: Dictionary, rows: Iterable[Float[Tensor, "rows d_in"]]) -> Usage:
    """Usage of every latent, from rows in model units that come in parts; an activation is kept, never a row."""
    values, latents, count_rows = [], [], 0
    for part in rows:
        count_rows += len(part)
        value, latent = dictionary.encode(part, sparse=True)
        values.append(value[value > 0].cpu().double().numpy())
        latents.append(latent[value > 0].cpu().numpy())
    value = np.concatenate(values) if values else np.zeros(0)
    latent = np.concatenate(latents) if latents else np.zeros(0, dtype=np.int64)
    order = np.lexsort((value, latent))
    value, latent = value[order], latent[order]
    count = np.bincount(latent, minlength=dictionary.d_sae)
    total = np.bincount(latent, weights=value, minlength=dictionary.d_sae).astype(np.float64)  # ints where none
    last = np.cumsum(count) - 1
    at = last - count + 1 + np.ceil(0.99 * count).astype(np.int64) - 1
    p99 = np.zeros(dictionary.d_sae)
    p99[count > 0] = value[at[count > 0]]
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return Usage(count / max(1, count_rows), mean, p99)
