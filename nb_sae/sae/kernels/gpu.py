"""Nested loss on CUDA: sums and dot products over gathered rows, by Triton. Never waits for the device.

Two kernels do all of it. `bag_sum` adds the rows of a table that each bag names: decoder rows for each (row, cell), and
tails for each latent, which is the decoder's gradient. `bag_dot` multiplies two named rows: ∂loss/∂pre. Bags are found
by a stable sort, so results do not depend on the order in which blocks run. Nothing of size (hits, d_out) is made.

Triton is imported when a kernel is first asked for. With TRITON_INTERPRET=1 the kernels run on a CPU, for tests.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nb_sae.sae.kernels.plan import Computed, Levels, Plan

GATHER_COST = 160
"""Latents of a dense product that cost as much as one gathered: 790 TFLOP/s in bfloat16 against 5 TB/s (H200's data
sheet, not measured). Gathers are chosen while the largest budget is at most d_sae over this number."""


HITS = 8
"""Rows a block reads at once."""


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def pays(pre: Tensor, plan: Plan) -> bool:
    """Whether gathers are expected to be faster than dense products here."""
    return pre.is_cuda and plan.budgets[-1] * GATHER_COST <= pre.shape[1] and has_triton()


def gpu(
    target: Tensor,
    pre: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    row_weights: Tensor | None,
    plan: Plan,
    gradients: bool,
    scale: Tensor | None = None,
) -> Computed:
    """See `nb_sae.sae.nested.nested_loss`."""
    batch, d_sae = pre.shape
    cells = len(plan.budgets) * len(plan.widths)
    W = W_dec.to(pre.dtype)
    values, flat, bucket = _selected(pre, plan)
    latents = flat % d_sae
    place = torch.div(flat, d_sae, rounding_mode="floor") * cells + bucket * len(plan.widths)
    for start, _ in plan.groups[1:]:
        place = place + (latents >= start)
    if plan.selection == "batch" or len(plan.widths) > 1:  # else they are in order as they are
        place, order = torch.sort(place, stable=True)
        values, flat, latents, bucket = values[order], flat[order], latents[order], bucket[order]
    sums = bag_sum(latents, _edges(place, batch * cells), values, W).view(batch, len(plan.budgets), -1, W.shape[1])
    levels = Levels(target, b_dec, row_weights, plan, scale)
    for number in range(len(plan.budgets)):
        levels.add(sums[:, number].unbind(1))
    loss, errors, residual = levels.finish()
    # A NaN sorts above every number, so it is selected and reaches the loss through the sums.
    seen, limits = _fired(values, latents, bucket, plan, d_sae)
    if not gradients:
        return Computed(loss, errors, residual, seen, limits)
    tails = levels.tails()
    table = torch.stack([tail for row in tails for tail in row], dim=1).flatten(0, 1)
    dots = bag_dot(latents, place, W, table) * (values > 0)
    grad_pre = torch.zeros_like(pre).view(-1).index_copy_(0, flat, dots.to(pre.dtype)).view_as(pre)
    ordered, order = torch.sort(latents, stable=True)
    grad_decoder = bag_sum(place[order], _edges(ordered, d_sae), values[order], table)
    return Computed(loss, errors, residual, seen, limits, grad_pre, grad_decoder, levels.grad_bias, levels.grad_scale)


def _selected(pre: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Values, flat positions and buckets of all that the largest budget selects."""
    batch, d_sae = pre.shape
    many = batch if plan.selection == "batch" else 1
    lines = pre.reshape(1, -1) if plan.selection == "batch" else pre
    values, indices = torch.topk(lines, plan.budgets[-1] * many, dim=-1, sorted=True)
    if plan.selection == "row":
        indices = indices + torch.arange(batch, device=pre.device)[:, None] * d_sae
    bucket = torch.zeros(values.shape[1], dtype=torch.int64, device=pre.device)
    for start, _ in list(pairwise((0, *plan.budgets)))[1:]:
        bucket[start * many :] += 1
    return values.relu().flatten(), indices.flatten(), bucket.expand_as(values).flatten()


def _edges(ordered: Tensor, bags: int) -> Tensor:
    return torch.searchsorted(ordered, torch.arange(bags + 1, device=ordered.device))


def _fired(values: Tensor, latents: Tensor, bucket: Tensor, plan: Plan, d_sae: int) -> tuple[Tensor, Tensor]:
    many = len(plan.budgets)
    counts = torch.zeros(many * d_sae, dtype=torch.int32, device=values.device)
    counts.index_add_(0, bucket * d_sae + latents, (values > 0).int())
    smallest = values.new_full((many,), torch.inf)
    smallest.scatter_reduce_(0, bucket, values.masked_fill(values <= 0, torch.inf), "amin")
    limits = smallest.cummin(0).values
    return counts.view(many, d_sae).cumsum(0) > 0, limits.masked_fill(limits.isinf(), 0)


def bag_sum(indices: Tensor, edges: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """Σ values · table[indices] over each bag edges[i]:edges[i+1]; `(bags, columns)` float32."""
    from nb_sae.sae.kernels.triton_kernels import bag_sum_kernel

    bags, columns = len(edges) - 1, table.shape[1]
    out = torch.empty(bags, columns, dtype=torch.float32, device=table.device)
    wide = _block(columns)
    grid = (bags, -(-columns // wide))
    sizes: dict[str, Any] = {"WIDE": wide, "HITS": HITS}
    bag_sum_kernel[grid](indices, edges, values, table.contiguous(), out, columns, **sizes)
    return out


def bag_dot(left: Tensor, right: Tensor, left_table: Tensor, right_table: Tensor) -> Tensor:
    """⟨left_table[left_i], right_table[right_i]⟩ for each i, float32."""
    from nb_sae.sae.kernels.triton_kernels import bag_dot_kernel

    hits, columns = len(left), left_table.shape[1]
    out = torch.empty(hits, dtype=torch.float32, device=left.device)
    tables = left_table.contiguous(), right_table.contiguous()
    sizes: dict[str, Any] = {"WIDE": _block(columns), "HITS": HITS}
    bag_dot_kernel[(-(-hits // HITS),)](left, right, *tables, out, hits, columns, **sizes)
    return out


def _block(columns: int) -> int:
    """Columns handled at once: a power of two as Triton wants it; the last block of a row is masked."""
    wide = 16
    while wide < columns and wide < 256:
        wide *= 2
    return wide
