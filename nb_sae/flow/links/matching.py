"""Which rows of one dictionary lie nearest to each row of another: exact, in blocks, never all cosines at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.errors import NonFiniteError

BLOCK_BYTES = 32 * 2**20
"""Of the cosines that are held at a time."""
PART_BYTES = 4 * 2**20
"""Of the directions that are gathered at a time; larger pieces are new memory each time, which costs more than work."""
GROUP = 64
"""Sources whose largest cosine is taken first: the k largest of all lie in the k groups with the largest maxima."""
SPARE = 4
"""Candidates beyond k that are scored again, so that rounding inside the matrix product decides no rank."""
UNIT = 1e-5
"""Rows whose norm differs from 1 by no more are not divided by it before they are compared."""


@dataclass(frozen=True)
class Nearest:
    """Cosines between two sets of directions: the best sources of each target, and the best target of each source."""

    cosines: Float[Tensor, "targets k"]
    """Largest first; of equal ones the lower source number first."""
    sources: Int[Tensor, "targets k"]
    carried: Float[Tensor, " sources"]
    """Largest cosine of each source with any target."""
    carried_to: Int[Tensor, " sources"]
    """Which target that is; of equal ones the lower number."""


@torch.no_grad()
def nearest_rows(
    targets: Float[Tensor, "targets d"], sources: Float[Tensor, "sources d"], k: int, *, block: int | None = None
) -> Nearest:
    """The k sources with the largest cosine to each target, and for each source the target with the largest.

    One matrix product of `block` targets with all sources at a time. Candidates are scored again one by one in a sum
    whose order does not depend on where they stand, so the result does not depend on `block` and equal rows tie.

    Args:
        targets: Directions as rows; norms do not matter. A row of norm 0 has the cosine 0 with everything.
        sources: Directions as rows of the same width.
        k: How many sources of each target; at most as many as there are.
        block: Targets at a time. None: as many as make `BLOCK_BYTES`.

    Raises:
        NonFiniteError: a row holds NaN or infinity.
    """
    sources = sources.to(targets.device)
    count, k = len(sources), min(k, len(sources))
    block = min(block or max(16, BLOCK_BYTES // (4 * count)), len(targets))
    target_scale, source_scale = inverse_norms(targets, "targets"), inverse_norms(sources, "sources")
    kept = min(k + SPARE, count)
    grouped = count > 4 * GROUP * kept
    held = targets.new_full((block, -(-count // GROUP) * GROUP if grouped else count), -torch.inf)
    plain = bool(((source_scale - 1).abs() <= UNIT).all())
    cosines, numbers = targets.new_empty(len(targets), k), torch.empty(len(targets), k, dtype=torch.long)
    forward = Forward(count, targets.device)
    for first in range(0, len(targets), block):
        rows = targets[first : first + block]
        scale = target_scale[first : first + block, None]
        similarity = torch.mm(rows * scale, sources.T, out=held[: len(rows), :count])
        if not plain:
            similarity *= source_scale
        forward.look(similarity, first)
        chosen = _largest(held[: len(rows)], kept) if grouped else largest_of(similarity, kept)
        exact = _products(rows, sources, chosen) * source_scale[chosen] * scale
        order = _order(exact, chosen)[:, :k]
        cosines[first : first + block] = exact.gather(1, order)
        numbers[first : first + block] = chosen.gather(1, order)
    carried_to = forward.targets
    carried = _products(sources, targets, carried_to[:, None])[:, 0] * source_scale * target_scale[carried_to]
    return Nearest(*(one.cpu() for one in (cosines.clamp(-1, 1), numbers, carried.clamp(-1, 1), carried_to)))


def _products(
    rows: Float[Tensor, "rows d"], others: Float[Tensor, "others d"], chosen: Int[Tensor, "rows k"]
) -> Float[Tensor, "rows k"]:
    """Each row with its chosen others, one sum over the width at a time."""
    size = max(1, PART_BYTES // (4 * rows.shape[1] * chosen.shape[1]))
    parts = zip(rows.split(size), chosen.split(size), strict=True)
    return torch.cat([others[numbers].mul_(part[:, None]).sum(-1) for part, numbers in parts])


def inverse_norms(rows: Float[Tensor, "rows d"], what: str) -> Float[Tensor, " rows"]:
    """1 / ‖row‖, and 0 for a row of norm 0. Raises `NonFiniteError` for a row that is not finite."""
    norms = torch.cat([part.norm(dim=-1) for part in rows.split(4096)])
    bad = ~torch.isfinite(norms)
    if bad.any():
        raise NonFiniteError(
            f"Row {int(bad.nonzero()[0])} of the {what} is not finite. Train or load this dictionary again."
        )
    return torch.where(norms > 0, 1 / norms, 0.0)


class Forward:
    """The best target of every source so far. Few columns improve in a block once some blocks were seen."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self.best = torch.full((sources,), -torch.inf, device=device)
        self.targets = torch.zeros(sources, dtype=torch.long, device=device)

    def look(self, similarity: Float[Tensor, "block sources"], first: int) -> None:
        """Take in the cosines of some targets, the first of which has the number `first`."""
        largest = similarity.amax(0)
        better = (largest > self.best).nonzero().flatten()
        self.best[better] = largest[better]
        for part in better.split(max(1, 2**24 // (4 * len(similarity)))):
            self.targets[part] = similarity.index_select(1, part).argmax(0) + first


def _keys(values: Tensor, numbers: Tensor) -> Tensor:
    """Integers that order as (value, then the lower number): a float's bits above, the number's complement below."""
    bits = values.contiguous().view(torch.int32)
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats have their bits in the opposite order
    return (ascending.long() << 32) | (0xFFFFFFFF - numbers)


def largest_of(similarity: Float[Tensor, "rows n"], k: int) -> Int[Tensor, "rows k"]:
    """Numbers of the k largest of each row, largest first; of equal ones the lower number first."""
    numbers = torch.arange(similarity.shape[1], device=similarity.device)
    return 0xFFFFFFFF - (_keys(similarity, numbers).topk(k, dim=-1).values & 0xFFFFFFFF)


def _order(values: Tensor, numbers: Tensor) -> Tensor:
    return _keys(values, numbers).argsort(dim=-1, descending=True)


def _largest(similarity: Tensor, k: int) -> Tensor:
    """Numbers of the k largest of each row, reading all of it once.

    What is outside the first k groups, ordered by maximum and then number, has k different values before it, so ties
    at the cut are settled as they are by sorting everything.
    """
    grouped = similarity.unflatten(1, (-1, GROUP))
    groups = largest_of(grouped.amax(-1), k)
    inside = grouped.gather(1, groups[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    numbers = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=similarity.device)).flatten(1)
    return 0xFFFFFFFF - (_keys(inside, numbers).topk(k, dim=-1).values & 0xFFFFFFFF)
