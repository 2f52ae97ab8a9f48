"""Do two dictionaries hold the same latents? One-to-one matching by cosine, with what random rows would give."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError, MissingDependencyError, NotEnoughMemoryError, ShapeError
from nb_sae.sae.metrics.directions import directions_of, random_rows, unit_rows
from nb_sae.sae.metrics.rows import Coder

SHARED_COSINE = 0.7
"""Paulo & Belrose 2025 call a latent shared from here on."""
CANDIDATES = 32
BLOCK_ENTRIES = 2**24


@dataclass(frozen=True)
class Alignment:
    """A one-to-one matching of the latents of two dictionaries."""

    value: float
    """Mean cosine of the matched pairs."""
    null: float
    """The same when the first dictionary is random rows, see `align(null=…)`."""
    shared: float
    """Fraction of pairs with a cosine of at least 0.7."""
    shared_null: float
    """The same for the random rows."""
    first: Int[Tensor, " pairs"]
    """Latents of the first dictionary, ascending."""
    second: Int[Tensor, " pairs"]
    """Their partners."""
    cosines: Float[Tensor, " pairs"]
    method: str
    side: str
    note: str = ""
    """Said where both were trained from one seed: then they started alike, and this is not stability over seeds."""


@torch.no_grad()
def align(
    a: Coder | Float[Tensor, "n_a d"],
    b: Coder | Float[Tensor, "n_b d"],
    *,
    method: Literal["hungarian", "greedy"] = "hungarian",
    side: Literal["decoder", "encoder"] = "decoder",
    null: Literal["isotropic", "covariance"] = "isotropic",
    seed: int = 0,
) -> Alignment:
    """Match latents one to one by the cosine of their directions: how stable a dictionary is over seeds.

    Args:
        a: A dictionary, or directions as rows.
        b: The other; it may have another number of latents, the smaller one is then matched completely.
        method: "hungarian" gives the largest possible sum of cosines, with n_a × n_b numbers in memory and a time
            that grows with n³ (SciPy). "greedy" takes the nearest pair that is still free, again and again: a lower
            bound, in blocks, for any number of latents.
        side: Decoder rows or encoder columns.
        null: What takes the place of `a` for the null: unit rows in uniform directions, or drawn with the second
            moments of `a`'s rows. The second is the harder test where activations fill few dimensions.
        seed: Of the null.

    Raises:
        ShapeError: different widths, or a direction of norm 0.
        MissingDependencyError: "hungarian" without SciPy.
        NotEnoughMemoryError: too many latents for "hungarian".

    Source:
        Paulo & Belrose 2025, Sparse Autoencoders Trained on the Same Data Learn Different Features, arXiv:2501.16615.
    """
    rows_a, rows_b = (unit_rows(directions_of(one, side), f"{side} directions") for one in (a, b))
    rows_b = rows_b.to(rows_a.device)
    if rows_a.shape[1] != rows_b.shape[1]:
        raise ShapeError(
            f"Directions of width {rows_a.shape[1]} and {rows_b.shape[1]} were given; two dictionaries of one site "
            "have the same width."
        )
    if method not in ("hungarian", "greedy"):
        raise ConfigError(f"method={method!r}: use 'hungarian' or 'greedy'.")
    match = best_pairs if method == "hungarian" else greedy_pairs
    first, second, cosines = match(rows_a, rows_b)
    drawn = random_rows(*rows_a.shape, seed=seed).to(rows_a.device)
    if null == "covariance":
        values, basis = torch.linalg.eigh(rows_a.T @ rows_a)
        drawn = F.normalize((drawn * values.clamp_min(0).sqrt()) @ basis.T, dim=-1)
    elif null != "isotropic":
        raise ConfigError(f"null={null!r}: use 'isotropic' or 'covariance'.")
    _, _, chance = match(drawn, rows_b)
    return Alignment(
        value=float(cosines.mean()),
        null=float(chance.mean()),
        shared=float((cosines >= SHARED_COSINE).double().mean()),
        shared_null=float((chance >= SHARED_COSINE).double().mean()),
        first=first,
        second=second,
        cosines=cosines.float(),
        method=method,
        side=side,
        note=_same_start(a, b),
    )


def _same_start(a: Coder | Tensor, b: Coder | Tensor) -> str:
    seeds = [(getattr(one, "provenance", {}).get("train") or {}).get("seed") for one in (a, b)]
    if a is b or seeds[0] is None or seeds[0] != seeds[1]:
        return ""
    return f"both were trained from seed {seeds[0]}: they may have started from the same directions"


def best_pairs(
    a: Float[Tensor, "n_a d"], b: Float[Tensor, "n_b d"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """One-to-one pairs of rows with the largest possible sum of products: `(rows of a, rows of b, products)`.

    Raises:
        MissingDependencyError: without SciPy.
        NotEnoughMemoryError: too many rows.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingDependencyError(
            f"Hungarian matching needs 'scipy', which cannot be imported ({error}). "
            "Run: pip install \"nb_sae[baselines]\", or use method='greedy'."
        ) from error
    try:
        similarity = (a @ b.T).cpu()
        first, second = (torch.as_tensor(one) for one in linear_sum_assignment(similarity.numpy(), maximize=True))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_large(a, b) from error
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        raise _too_large(a, b) from error
    return first, second, similarity[first, second]


def _too_large(a: Tensor, b: Tensor) -> NotEnoughMemoryError:
    gib = 8 * len(a) * len(b) / 2**30
    return NotEnoughMemoryError(
        f"Matching {len(a):,} with {len(b):,} latents exactly needs {gib:.1f} GiB or more. Use method='greedy'."
    )


def greedy_pairs(
    a: Float[Tensor, "n_a d"], b: Float[Tensor, "n_b d"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """One-to-one pairs of rows, the largest free product first, exactly, without an n × n matrix.

    Each row of a keeps a short list of its nearest rows of b. Rows wait in a heap with the best of them that was free
    when they were last looked at: an upper bound, so that the first one whose best is still free is the next pair.
    """
    if len(a) > len(b):
        second, first, cosines = greedy_pairs(b, a)
        order = first.argsort()
        return first[order], second[order], cosines[order]
    values, indices = _candidates(a, b)
    free = torch.ones(len(b), dtype=torch.bool, device=b.device)
    taken = [False] * len(b)
    heap = [(-row[0], number, 0) for number, row in enumerate(values)]
    heapq.heapify(heap)
    partner, cosine = [0] * len(a), [0.0] * len(a)
    while heap:
        negative, number, place = heapq.heappop(heap)
        column = indices[number][place]
        if not taken[column]:
            partner[number], cosine[number] = column, -negative
            taken[column] = True
            free[column] = False
            continue
        place = next((p for p in range(place + 1, len(values[number])) if not taken[indices[number][p]]), -1)
        if place < 0:  # its list is used up: look again among those that are free
            left = (b @ a[number]).masked_fill(~free, -torch.inf).topk(min(CANDIDATES, int(free.sum())))
            values[number], indices[number], place = left.values.tolist(), left.indices.tolist(), 0
        heapq.heappush(heap, (-values[number][place], number, place))
    return torch.arange(len(a)), torch.tensor(partner), torch.tensor(cosine, dtype=torch.double)


def _candidates(a: Tensor, b: Tensor) -> tuple[list[list[float]], list[list[int]]]:
    block = max(1, BLOCK_ENTRIES // len(b))
    count = min(CANDIDATES, len(b))
    found = [(a[first : first + block] @ b.T).topk(count, dim=-1) for first in range(0, len(a), block)]
    values = [row for one in found for row in one.values.tolist()]
    return values, [row for one in found for row in one.indices.tolist()]
