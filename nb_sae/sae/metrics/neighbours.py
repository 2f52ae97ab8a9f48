"""CKNNA: do two representations of the same inputs agree on who is near whom?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.metrics.reconstruction import exact
from nb_sae.sae.metrics.rows import check_finite

BLOCK_ENTRIES = 2**24
"""Entries of the similarity matrix that are held at a time."""
NULL_SHUFFLES = 8


@dataclass(frozen=True)
class CKNNA:
    """Mutual nearest-neighbour kernel alignment of two representations."""

    value: float
    """1: the same neighbours with proportional similarities. NaN where it is undefined, see `reason`."""
    null: float
    """The mean of the same number when the rows of the second representation are shuffled: about 0."""
    null_std: float
    """Standard deviation over the shuffles."""
    k: int
    rows: int
    reason: str = ""
    """Why `value` is NaN."""


@torch.no_grad()
def cknna(
    a: Float[Tensor, "rows d_a"],
    b: Float[Tensor, "rows d_b"],
    *,
    k: int = 10,
    epsilon: float = 1e-6,
    seed: int = 0,
) -> CKNNA:
    """Centered kernel nearest-neighbour alignment between two representations of the same rows.

    With K = AAᵀ, L = BBᵀ (rows neither centred nor normalised) and M the pairs that are among the k most similar in
    both, the diagonal left out:

        CKNNA = HSIC(M∘K, M∘L) / (√(HSIC(M_K∘K, M_K∘K) · HSIC(M_L∘L, M_L∘L)) + ε)
        HSIC(P, Q) = [Σ P∘Qᵀ + ΣP ΣQ / ((n−1)(n−2)) − 2 Σ(PQ) / (n−2)] / (n(n−3))

    P and Q have at most k entries per row and are kept as such, and Σ(PQ) = (Pᵀ1)·(Q1): beyond the similarities
    themselves, which are taken in blocks, the cost is n·k² and no n × n matrix is held.

    Two uses, never to be confused: `cknna(x, x_hat)`, what reconstruction does to neighbours, and `cknna(x, latents)`,
    whether the latents have the neighbours of the rows. Rows beyond some ten thousand cost time (n² d) but no memory.

    Args:
        a: One representation, `(rows, d_a)`.
        b: The other, of the same rows in the same order.
        k: Neighbours.
        epsilon: Added to the denominator, as in the source. It is not free of units: HSIC of rows of norm 1 is about
            k / n, so with ten thousand of them ε takes 0.1 % away. 0 makes the number independent of scale.
        seed: Of the shuffles for the null.

    Raises:
        ConfigError: fewer than 4 rows, or k outside [1, n).
        ShapeError: not two matrices with as many rows.
        NonFiniteError: NaN or infinity.

    Source:
        Huh et al. 2024, The Platonic Representation Hypothesis, arXiv:2405.07987, appendix A; HSIC as in Song et al.
        2012, equation 5. Ties are broken as `torch.topk` breaks them.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ShapeError(
            f"Representations of shape {tuple(a.shape)} and {tuple(b.shape)} were given; expected (rows, width) twice "
            "with the same rows."
        )
    n = len(a)
    if n < 4:
        raise ConfigError(f"{n} rows were given; HSIC needs at least 4. Give more rows.")
    if not 1 <= k < n:
        raise ConfigError(f"k={k} neighbours of {n} rows; expected 1 ≤ k < {n}. Lower k or give more rows.")
    check_finite(a, what="first representation")
    check_finite(b, what="second representation")
    for what, x in (("first", a), ("second", b)):
        if (x == x[0]).all():
            reason = f"all rows of the {what} representation are equal, so nobody is nearest"
            return CKNNA(math.nan, math.nan, math.nan, k, n, reason)
    near_a, near_b = _nearest(a, k), _nearest(b, k)
    own = _hsic(near_a, near_a), _hsic(near_b, near_b)
    if min(own) <= 0:
        reason = "the estimated HSIC of a representation with itself is not positive: give more rows or a larger k"
        return CKNNA(math.nan, math.nan, math.nan, k, n, reason)
    denominator = math.sqrt(own[0] * own[1]) + epsilon
    generator = torch.Generator().manual_seed(seed)
    shuffled = [
        _hsic(near_a, _shuffled(near_b, torch.randperm(n, generator=generator).to(a.device))) / denominator
        for _ in range(NULL_SHUFFLES)
    ]
    null = torch.tensor(shuffled, dtype=torch.double)
    return CKNNA(_hsic(near_a, near_b) / denominator, float(null.mean()), float(null.std()), k, n)


_Near = tuple[Tensor, Tensor]
"""The k largest similarities of each row to others, float64, and whose they are."""


def _nearest(x: Tensor, k: int) -> _Near:
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    block = max(1, BLOCK_ENTRIES // len(x))
    indices = []
    for first in range(0, len(x), block):
        similarity = x[first : first + block] @ x.T
        own = torch.arange(len(similarity), device=x.device)
        similarity[own, first + own] = -math.inf
        indices.append(similarity.topk(k, dim=-1).indices)
    chosen = torch.cat(indices).to(exact(x[:1]).device)
    rows = exact(x)
    # The chosen similarities again in float64: sums of n·k terms that nearly cancel.
    return torch.stack([(rows * rows[chosen[:, s]]).sum(-1) for s in range(k)], dim=1), chosen


def _shuffled(near: _Near, order: Tensor) -> _Near:
    """Neighbours of the same rows in another order, so that row i is old row order[i]."""
    values, indices = near
    order = order.to(values.device)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return values[order], place[indices[order]]


def _hsic(near_p: _Near, near_q: _Near) -> float:
    """Unbiased HSIC of two similarity matrices that are 0 but for pairs in both lists of neighbours."""
    (p, p_index), (q, q_index) = near_p, near_q
    n = len(p)
    same = p_index[:, :, None] == q_index[:, None, :]
    both = same.any(-1)
    # From here on an entry is (i, j = p_index[i, s]): P is `p`, Q is `q_here`, both 0 outside the intersection.
    q_here = (same * q[:, None, :]).sum(-1)
    p = p * both
    back = p_index[p_index] == torch.arange(n, device=p.device)[:, None, None]
    q_back = (back * q_here[p_index]).sum(-1)
    column = torch.zeros(n, dtype=p.dtype, device=p.device).scatter_add_(0, p_index.flatten(), p.flatten())
    trace = (p * q_back).sum()
    product = p.sum() * q_here.sum() / ((n - 1) * (n - 2))
    return float((trace + product - 2 * (column @ q_here.sum(-1)) / (n - 2)) / (n * (n - 3)))
