"""BatchTopK over several processes: the k · batch largest of all rows, wherever they are.

The largest of the whole batch are among the largest of each process, so these alone are exchanged, k · rows values per
process. Every process then makes the same choice and keeps what is its own. The result is that of one process, but for
the order of sums and, among equal values at the cut, which of them are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.sae.group import Group
from nb_sae.sae.nested import NestedLoss
from nb_sae.sae.nested import nested_loss as local_loss


def nested_loss(
    target: Float[Tensor, "batch d_out"],
    pre: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
    *,
    group: Group,
    budgets: Sequence[int],
    **others: Any,
) -> NestedLoss:
    """`nested.nested_loss` with `selection="batch"`, of the rows of this process among those of all.

    Loss and gradients are of its own rows; `thresholds` are those of the whole batch. Every process must call it.
    """
    first, thresholds = select(pre.detach(), budgets, group)
    found = local_loss(target, pre, W_dec, b_dec, budgets=budgets, first=first, **others)
    return replace(found, thresholds=thresholds)


def select(
    pre: Float[Tensor, "batch d_sae"], budgets: Sequence[int], group: Group
) -> tuple[Int[Tensor, "batch d_sae"], Float[Tensor, " n_budgets"]]:
    """Which budget first selects each latent of each row, n_budgets where none does, and the smallest positive value
    within each budget; 0 where there is none.
    """
    edges, none = [0, *(k * len(pre) * group.row_shares for k in budgets)], len(budgets)
    values, places = torch.topk(pre.flatten(), min(edges[-1], pre.numel()), sorted=False)
    top = torch.topk(group.gather_rows(values), edges[-1], sorted=True)
    bucket = torch.full((len(values) * group.row_shares,), none, dtype=torch.uint8, device=pre.device)
    for number, (start, stop) in enumerate(pairwise(edges)):
        bucket[top.indices[start:stop]] = number
    share = group.rank // group.latent_shares
    first = torch.full((pre.numel(),), none, dtype=torch.uint8, device=pre.device)
    first.scatter_(0, places, bucket[share * len(values) : (share + 1) * len(values)])
    positive = torch.where(top.values > 0, top.values, torch.inf)
    lowest = torch.stack([positive[:stop].amin() for stop in edges[1:]])
    return first.view(pre.shape), torch.where(lowest.isinf(), 0, lowest)
