"""The words nearest to each direction, in blocks: one matrix product, and little beside it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK_BYTES = 32 * 2**20
"""Of the similarities that are held at a time: few enough to be read again before they have left the cache."""
GROUP = 64
"""Words whose largest similarity is taken first: the k largest of all lie in the k groups with the largest maxima."""


@torch.no_grad()
def nearest_words(
    directions: Float[Tensor, "n d"],
    words: Float[Tensor, "words d"],
    penalty: Float[Tensor, " words"] | None,
    k: int,
    *,
    block: int | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Cosines and numbers of the k words with the largest cosine − penalty, best first.

    Args:
        directions: Unit rows (or zeros).
        words: Unit rows.
        penalty: What is taken off each word's cosine when words are ranked; not part of what is returned.
        k: At most as many as there are words.
        block: Directions at a time. None: as many as make `BLOCK_BYTES`.
    """
    count = len(words)
    block = block or max(1, BLOCK_BYTES // (4 * max(count, 1)))
    # Groups must be full: the missing words at the end are as far as can be.
    grouped = count > 4 * GROUP * k
    padded = -(-count // GROUP) * GROUP if grouped else count
    transposed = words.new_zeros(words.shape[1], padded)
    transposed[:, :count] = words.T
    values, numbers = words.new_empty(len(directions), k), torch.empty(len(directions), k, dtype=torch.long)
    numbers = numbers.to(words.device)
    held = words.new_empty(min(block, len(directions)), padded)
    for first in range(0, len(directions), block):
        rows = directions[first : first + block]
        similarity = torch.mm(rows, transposed, out=held[: len(rows)])
        if penalty is not None:
            similarity[:, :count] -= penalty
        similarity[:, count:] = -torch.inf
        part, chosen = _largest(similarity, k) if grouped else similarity.topk(k)
        values[first : first + block] = part + (penalty[chosen] if penalty is not None else 0.0)
        numbers[first : first + block] = chosen
    return values, numbers


def _largest(similarity: Float[Tensor, "n words"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """`similarity.topk(k)`, reading all of it once: sorting few groups costs a fraction of sorting all words."""
    grouped = similarity.unflatten(1, (-1, GROUP))
    groups = grouped.amax(-1).topk(k, dim=-1).indices
    inside = grouped.gather(1, groups[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    part, place = inside.topk(k, dim=-1)
    return part, groups.gather(1, place // GROUP) * GROUP + place % GROUP
