"""Latents to compare a latent with: others that are active as often and as strongly, chosen by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nb_sae.errors import ConfigError

MATCHES = 3
"""Controls are drawn from so many times as many of the best matching latents."""


def matched_latents(
    density: NDArray[np.float64],
    mean: NDArray[np.float64],
    latent: int,
    count: int,
    *,
    seed: int,
    among: NDArray[np.bool_] | None = None,
) -> list[int]:
    """Live latents like this one in density and mean activation where active, drawn among the best `MATCHES` · count.

    How alike two are is the sum of the absolute log ratios of the two numbers. `among` says which may be chosen; None:
    any.

    Raises:
        ConfigError: fewer other live latents than `count`.
    """
    live = (density > 0) & (mean > 0) & (True if among is None else among)
    live[latent] = False
    if not 0 <= count <= int(live.sum()):
        raise ConfigError(f"controls={count}: there are {int(live.sum())} other live latents. Ask for 0 to as many.")
    others = np.flatnonzero(live)
    away = np.abs(np.log(density[others] / density[latent])) + np.abs(np.log(mean[others] / mean[latent]))
    best = others[np.argsort(away, kind="stable")[: MATCHES * count]]
    return np.random.default_rng(seed).choice(best, count, replace=False).tolist() if count else []
