"""Every level by itself, dense and differentiable: what the fast ways are compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_level(target: Tensor, pre: Tensor, W_dec: Tensor, b_dec: Tensor, k: int, width: int, batch: bool) -> Tensor:
    """x̂ of one level as the paper writes it: one top-k, one scatter into a dense matrix, one dense product."""
    if batch:
        chosen = pre.flatten().topk(k * len(pre)).indices
        kept = torch.zeros_like(pre).flatten().scatter(0, chosen, 1.0).view_as(pre)
    else:
        kept = torch.zeros_like(pre).scatter(-1, pre.topk(k, dim=-1).indices, 1.0)
    latents = pre.relu() * kept
    return b_dec + latents[:, :width] @ W_dec[:width]


def dense_loss(
    target: Tensor,
    pre: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    *,
    budgets,
    widths=None,
    level_weights,
    row_weights=None,
    selection="row",
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, errors and the last residual, with autograd's own gradients through every level."""
    widths = widths or (pre.shape[1],)
    loss, errors, residual = pre.new_zeros(()), [], target
    for number, weight in enumerate(level_weights):
        k, width = budgets[number // len(widths)], widths[number % len(widths)]
        residual = target - dense_level(target, pre, W_dec, b_dec, k, width, selection == "batch")
        rows = residual.square().mean(1)
        errors.append(rows.mean())
        loss = loss + weight * (rows if row_weights is None else rows * row_weights).mean()
    return loss, torch.stack(errors), residual
