"""Masked dense products, one bucket at a time: works on every device and dtype and never waits for the device."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from nb_sae.sae.kernels.plan import Computed, Levels, Plan


def first_budget(pre: Tensor, plan: Plan) -> Tensor:
    """Which budget first selects each latent of each row, `(batch, d_sae)` uint8; n_budgets where none does."""
    flat = pre.reshape(1, -1) if plan.selection == "batch" else pre
    many = len(pre) if plan.selection == "batch" else 1
    stops = [k * many for k in plan.budgets]
    whole = stops[-1] == flat.shape[1]  # a budget of everything needs no selection
    last = len(stops) - 1 if whole else len(stops)
    first = torch.full_like(flat, last, dtype=torch.uint8)
    kept = stops[:-1] if whole else stops
    if kept:
        indices = torch.topk(flat, kept[-1], dim=-1, sorted=True).indices
        for number, (start, stop) in enumerate(pairwise((0, *kept))):
            first.scatter_(-1, indices[:, start:stop], number)
    return first.view_as(pre)


def dense(
    target: Tensor,
    pre: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    row_weights: Tensor | None,
    plan: Plan,
    gradients: bool,
    scale: Tensor | None = None,
    first: Tensor | None = None,
) -> Computed:
    """See `nb_sae.sae.nested.nested_loss`. `first`: what `first_budget` would give, where it is known already."""
    buckets, none = range(len(plan.budgets)), len(plan.budgets)
    latents, W = pre.relu(), W_dec.to(pre.dtype)
    first = (first_budget(pre, plan) if first is None else first).masked_fill(latents == 0, none)
    levels = Levels(target, b_dec, row_weights, plan, scale)
    fired, smallest = [], []
    for bucket in buckets:
        mine = first == bucket
        codes = latents * mine
        fired.append(mine.any(0))
        smallest.append(latents.masked_fill(~mine, torch.inf).amin())
        levels.add([codes[:, start:stop] @ W[start:stop] for start, stop in plan.groups])
    loss, errors, residual = levels.finish()
    limits = torch.stack(smallest).cummin(0).values
    limits = limits.masked_fill(limits.isinf(), 0)
    seen = torch.stack(fired).cumsum(0) > 0
    if not gradients:
        return Computed(loss, errors, residual, seen, limits)
    tails = levels.tails()
    grad_pre = torch.zeros_like(pre)
    grad_W = torch.zeros_like(W_dec, dtype=target.dtype)
    for bucket in buckets:
        mine = first == bucket
        codes = latents * mine
        for tail, (start, stop) in zip(tails[bucket], plan.groups, strict=True):
            error = tail.to(pre.dtype)
            grad_pre[:, start:stop] += (error @ W[start:stop].T) * mine[:, start:stop]
            grad_W[start:stop] += codes[:, start:stop].T @ error
    return Computed(loss, errors, residual, seen, limits, grad_pre, grad_W, levels.grad_bias, levels.grad_scale)
