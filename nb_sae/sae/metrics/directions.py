"""Decoder directions: how far apart they are, and how near they are to a dictionary that is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.metrics.reconstruction import exact
from nb_sae.sae.metrics.rows import Coder

BLOCK_ENTRIES = 2**24


@dataclass(frozen=True)
class Orthogonality:
    """Mean squared cosine between different decoder rows, beside the two numbers that it must be read with."""

    value: float
    random: float
    """Expected for random unit rows: 1 / d. Trained dictionaries sit near it, so alone the value says little."""
    welch: float
    """No set of so many unit rows can be below: (N − d) / (d(N − 1)), or 0 where N ≤ d."""
    d_sae: int
    d_in: int


@dataclass(frozen=True)
class MMCS:
    """Mean over the true atoms of the largest cosine to any learned one."""

    value: float
    null: float
    """The same for random unit rows in place of the learned ones: it grows with their number."""
    cosines: Float[Tensor, " atoms"]
    """Largest cosine of each true atom."""
    nearest: Int[Tensor, " atoms"]
    """Which learned row that is."""


@torch.no_grad()
def orthogonality(dictionary: Coder | Float[Tensor, "d_sae d_in"]) -> Orthogonality:
    """Mean over i ≠ j of cos²(w_i, w_j) of the decoder rows.

    Σ_ij (w_i·w_j)² = ‖WᵀW‖² for the d × d matrix WᵀW, so no N × N matrix is made: N·d² operations.

    Raises:
        ShapeError: fewer than two rows, or a row of norm 0.

    Source:
        "DO" of Zaigrajew et al. 2025, arXiv:2502.20578, over pairs of different rows and with unit rows; Welch 1974.
    """
    W = unit_rows(directions_of(dictionary, "decoder"), "decoder")
    n, d = W.shape
    if n < 2:
        raise ShapeError(f"{n} decoder row was given; a pair needs two.")
    gram = W.T @ W if d <= n else W @ W.T
    total = float(gram.square().sum()) - n  # cos² of a row with itself is 1
    return Orthogonality(
        value=max(0.0, total / (n * (n - 1))),
        random=1 / d,
        welch=max(0.0, (n - d) / (d * (n - 1))),
        d_sae=n,
        d_in=d,
    )


@torch.no_grad()
def mmcs(dictionary: Coder | Float[Tensor, "d_sae d_in"], atoms: Float[Tensor, "atoms d_in"], *, seed: int = 0) -> MMCS:
    """Mean max-cosine similarity of known atoms to the learned decoder rows.

    Signed: a learned row that points the other way does not count. Several atoms may share a learned row.

    Args:
        dictionary: Learned rows.
        atoms: The truth, one direction per row; norms do not matter.
        seed: Of the random rows of the null.

    Raises:
        ShapeError: different widths, or a row of norm 0.

    Source:
        Sharkey et al. 2022, Taking features out of superposition with sparse autoencoders (MMCS).
    """
    learned = unit_rows(directions_of(dictionary, "decoder"), "decoder")
    truth = unit_rows(atoms, "atoms").to(learned.device)
    if truth.shape[1] != learned.shape[1]:
        raise ShapeError(f"Atoms of width {truth.shape[1]}, decoder rows of width {learned.shape[1]}: expected one.")
    cosines, nearest = _largest(truth, learned)
    chance, _ = _largest(truth, random_rows(*learned.shape, seed=seed).to(learned.device))
    return MMCS(float(cosines.mean()), float(chance.mean()), cosines.float().cpu(), nearest.cpu())


def directions_of(dictionary: Coder | Tensor, side: str) -> Float[Tensor, "d_sae d_in"]:
    """Decoder rows, or encoder columns as rows, of a dictionary; a tensor stands for itself."""
    if isinstance(dictionary, Tensor):
        return dictionary
    if side not in ("decoder", "encoder"):
        raise ConfigError(f"side={side!r}: use 'decoder' or 'encoder'.")
    return dictionary.W_dec if side == "decoder" else dictionary.W_enc.T  # pyright: ignore[reportAttributeAccessIssue]


def unit_rows(W: Float[Tensor, "rows d"], what: str) -> Float[Tensor, "rows d"]:
    """Rows of norm 1, float64. Raises `ShapeError` for a row without a direction."""
    if W.ndim != 2 or not len(W):
        raise ShapeError(f"{what}: shape {tuple(W.shape)} was given; expected (rows, width).")
    W = exact(W.detach())
    norm = W.norm(dim=-1)
    bad = ~(torch.isfinite(norm) & (norm > 0))
    if bad.any():
        raise ShapeError(f"Row {int(bad.nonzero()[0])} of the {what} has norm 0 or is not finite: it has no direction.")
    return W / norm[:, None]


def random_rows(rows: int, width: int, *, seed: int) -> Float[Tensor, "rows width"]:
    """Unit rows in directions drawn uniformly, float64."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.double), dim=-1)


def _largest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of a the largest product with a row of b, and which."""
    block = max(1, BLOCK_ENTRIES // len(b))
    found = [(a[first : first + block] @ b.T).max(-1) for first in range(0, len(a), block)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
