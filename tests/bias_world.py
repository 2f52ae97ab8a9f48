"""Latents planted directly: rows whose concepts, labels and biases are known, and a dictionary that recovers them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

import nb_sae as ns

LATENTS = 24
DEAD = LATENTS - 1


@dataclass(frozen=True)
class BiasWorld:
    """Concept 0 depends on Male, 1 and 2 on Young, which depends on Male; the others on nothing; the last is dead."""

    dictionary: ns.Dictionary
    store: ns.ActivationStore
    attributes: pl.DataFrame
    z: np.ndarray
    x: torch.Tensor


def bias_world(
    rows: int = 1500, *, effect: float = 1.0, seed: int = 0, norm: float = 8.0, noise: float = 0.02
) -> BiasWorld:
    """With `effect=0` nothing depends on anything."""
    random = np.random.default_rng(seed)
    male = random.random(rows) < 0.5
    young = random.random(rows) < np.where(male, 0.5 - 0.3 * effect, 0.5 + 0.3 * effect)
    density = np.full((rows, LATENTS), 0.15)
    density[:, 0] += 0.25 * effect * np.where(male, 1, -0.4)
    density[:, 1] += 0.3 * effect * young
    density[:, 2] += 0.3 * effect * young
    density[:, DEAD] = 0
    z = random.gamma(4, 0.4, (rows, LATENTS)) * (random.random((rows, LATENTS)) < density)
    # Orthogonal directions beside a common one: every activation is read exactly, and rows lie in a cone as CLIP's do.
    basis = np.linalg.qr(random.normal(size=(LATENTS + 8, LATENTS + 8)))[0]
    W = torch.tensor(basis[:LATENTS], dtype=torch.float32)
    middle = torch.tensor(norm * basis[LATENTS], dtype=torch.float32)
    rest = random.normal(scale=noise, size=(rows, 7)) @ basis[LATENTS + 1 :]
    x = torch.tensor(z, dtype=torch.float32) @ W + middle + torch.tensor(rest, dtype=torch.float32)
    distance = float((x - x.mean(0)).square().sum(1).mean())
    threshold = torch.full((LATENTS,), 1e-3)  # of rounding
    dictionary = ns.Dictionary.from_weights(
        W.T.contiguous(),
        torch.zeros(LATENTS),
        W,
        middle,
        threshold=threshold,
        mean=x.mean(0),
        mean_square_distance=distance,
    )
    labels: dict[str, Any] = {"key": [str(number) for number in range(rows)], "Male": male, "Young": young}
    labels["age"] = 30 + 20 * ~young + random.normal(scale=5, size=rows)
    labels["race"] = random.choice(["Black", "East", "White"], rows)
    return BiasWorld(dictionary, ns.ActivationStore.from_tensor(x), pl.DataFrame(labels), z, x)
