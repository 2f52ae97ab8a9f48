"""A dictionary that is split over processes: each holds some of the latents, with encoder, decoder and Adam's moments.

Every process computes the pre-activations of its own latents for the same rows. The k largest of a row are among the
k largest of each process, so these alone are exchanged, k · processes numbers per row; each process decodes what is its
own among the winners and the reconstructions are summed. The result is that of one process, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nb_sae.errors import ConfigError
from nb_sae.sae.distributed import LATENT_DIM, Group
from nb_sae.sae.nested import NestedLoss

_ENTRIES = 65_536
"""Active latents whose decoder rows are gathered at a time."""


# ── tensors ─────────────────────────────────────────────────────────────────────────────────────────────────────


def own_part(tensors: Mapping[str, Tensor], group: Group, d_sae: int) -> dict[str, Tensor]:
    """Of whole tensors by name (`W_dec`, `adam.W_dec.exp_avg`, …), what this process holds."""
    if group.latent_shares == 1:
        return dict(tensors)
    mine = group.latents(d_sae)
    size = mine.stop - mine.start
    return {
        name: value if (dim := _dim(name, value)) is None else value.narrow(dim, mine.start, size).clone()
        for name, value in tensors.items()
    }


def whole(tensors: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """The inverse, on every process, in main memory; every process must ask."""
    if group.latent_shares == 1:
        return dict(tensors)
    split = {name: (value, _dim(name, value)) for name, value in tensors.items()}
    return {
        name: (value if dim is None else group.gather_latents(value, dim)).cpu() for name, (value, dim) in split.items()
    }


def to_main(tensors: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """The same on the main process alone, tensor by tensor in main memory: whole ones may not fit on a device."""
    if group.latent_shares == 1:
        return dict(tensors)
    found: dict[str, Tensor] = {}
    if group.rank >= group.latent_shares:  # not of the main process's dictionary but of a copy
        return found
    for name, value in tensors.items():
        dim, part = _dim(name, value), value.detach().cpu()
        if dim is None:
            found[name] = part
            continue
        part = part.movedim(dim, 0).contiguous()
        parts = [torch.empty_like(part) for _ in range(group.latent_shares)] if group.is_main else None
        dist.gather(part, parts, dst=0, group=group.latent_group)
        if parts is not None:
            found[name] = torch.cat(parts).movedim(0, dim).contiguous()
    return found


def _dim(name: str, value: Tensor) -> int | None:
    found = next((dim for key, dim in LATENT_DIM.items() if key in name.split(".")), None)
    return found if found is not None and value.ndim > found else None  # Adam's step is a number


# ── loss ────────────────────────────────────────────────────────────────────────────────────────────────────────


def nested_loss(
    target: Float[Tensor, "batch d_out"],
    pre: Float[Tensor, "batch d_own"],
    W_dec: Float[Tensor, "d_own d_out"],
    b_dec: Float[Tensor, " d_out"],
    *,
    group: Group,
    budgets: Sequence[int],
    level_weights: Sequence[float],
    widths: Sequence[int] | None = None,
    level_scale: Float[Tensor, " levels"] | None = None,
    row_weights: Float[Tensor, " batch"] | None = None,
    selection: str = "row",
) -> NestedLoss:
    """`nested.nested_loss` of a dictionary that is split: `pre` and `W_dec` are of this process's latents.

    Loss, errors and residual are the same on every process; `fired` is of its own latents. Gradients of `pre` and
    `W_dec` are complete; that of `b_dec` is divided by the number of shares, so that the sum over them, which its part
    through the encoder needs anyway, is exact.

    Raises:
        ConfigError: the k largest of the whole batch were asked for.
    """
    if selection != "row":
        raise ConfigError(
            "BatchTopK chooses among the whole batch, which is not done across a split dictionary. Use "
            "SAEConfig.topk or .msae, or latent_shares=1."
        )
    d_sae = pre.shape[1] * group.latent_shares
    first = group.latents(d_sae).start
    groups = torch.tensor(tuple(widths or (d_sae,)), device=pre.device)
    entries = _select(pre, tuple(budgets), group)
    if widths is not None:
        wider = torch.searchsorted(groups, entries["latent"] + first, right=True)
        entries["cell"] = entries["cell"] * len(groups) + wider
    weights = torch.tensor(tuple(level_weights), dtype=target.dtype, device=target.device)
    out = _Split.apply(
        target.detach(), pre, W_dec, b_dec, row_weights, weights.view(len(budgets), len(groups)), entries, group,
        torch.ones_like(weights) if level_scale is None else level_scale,
    )  # fmt: skip
    loss, errors, residual = out  # pyright: ignore[reportGeneralTypeIssues]
    return NestedLoss(loss, errors, residual, entries["fired"], entries["thresholds"])


@torch.no_grad()
def _select(pre: Tensor, budgets: tuple[int, ...], group: Group) -> dict[str, Tensor]:
    """The positive winners among this process's latents, one entry each: `row`, `latent`, `cell` (the budget)."""
    most = min(budgets[-1], pre.shape[1])
    values, latents = torch.topk(pre, most, dim=-1)
    everywhere = group.gather_latents(values, 1)
    top = torch.topk(everywhere, budgets[-1], dim=-1, sorted=True)
    first = torch.repeat_interleave(
        torch.arange(len(budgets), device=pre.device),
        torch.tensor([b - a for a, b in pairwise((0, *budgets))], device=pre.device),
        output_size=budgets[-1],
    )
    none = torch.full(everywhere.shape, len(budgets), device=pre.device)
    bucket = none.scatter_(1, top.indices, first.expand_as(top.indices))
    positive = torch.where(top.values > 0, top.values, torch.inf)
    lowest = torch.stack([positive[:, :k].amin() for k in budgets])
    own = bucket[:, group.latent_share * most : (group.latent_share + 1) * most]
    row, column = ((own < len(budgets)) & (values > 0)).nonzero(as_tuple=True)
    latent, cell = latents[row, column], own[row, column]
    fired = torch.zeros(len(budgets), pre.shape[1], dtype=torch.uint8, device=pre.device)
    fired[cell, latent] = 1
    return {
        "row": row, "latent": latent, "cell": cell, "fired": fired.cummax(0).values.bool(),
        "thresholds": torch.where(lowest.isinf(), 0, lowest),
    }  # fmt: skip


class _Split(torch.autograd.Function):
    """Loss and gradients in one go; backward only scales what forward kept."""

    @staticmethod
    def forward(
        ctx: Any, target: Tensor, pre: Tensor, W_dec: Tensor, b_dec: Tensor, row_weights: Tensor | None,
        weights: Tensor, entries: dict[str, Tensor], group: Any, level_scale: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        budgets, widths = weights.shape
        batch, d_out = target.shape
        row, latent, cell = (entries[name] for name in ("row", "latent", "cell"))
        value = pre[row, latent].to(W_dec.dtype)
        steps = _sums(latent, cell * batch + row, value, W_dec, bags=budgets * widths * batch)
        dist.all_reduce(steps, group=group.latent_group)
        factors = level_scale.detach().view(budgets, widths, 1, 1)
        sums = steps.view(budgets, widths, batch, d_out).cumsum(0).cumsum(1)
        difference = (sums * factors + b_dec).to(target.dtype) - target
        squares = difference.square().mean(-1)
        weighted = squares if row_weights is None else squares * row_weights
        loss = (weights * weighted.mean(-1)).sum()
        scale = 2 / target.numel() * (1 if row_weights is None else row_weights[:, None])
        # What a latent feels: the errors of its own level and of all that hold it, larger budgets and wider prefixes.
        errors_felt = weights[..., None, None] * difference * scale
        later = (errors_felt * factors).flip(0, 1).cumsum(0).cumsum(1).flip(0, 1)
        flat = later.view(-1, d_out).to(W_dec.dtype)
        place = cell * batch + row
        feels = torch.cat(
            [
                (W_dec[latent[start : start + _ENTRIES]] * flat[place[start : start + _ENTRIES]]).sum(-1)
                for start in range(0, max(len(row), 1), _ENTRIES)
            ]
        )
        grad_pre = torch.zeros_like(pre)
        grad_pre[row, latent] = feels.to(pre.dtype)
        grad_W = _sums(place, latent, value, flat, bags=len(W_dec))
        grad_b = errors_felt.sum((0, 1, 2)) / group.latent_shares
        grad_scale = (errors_felt * sums).sum((2, 3)).flatten().to(level_scale.dtype) / group.latent_shares
        ctx.save_for_backward(grad_pre, grad_W, grad_b.to(b_dec.dtype), grad_scale)
        errors, residual = squares.mean(-1).flatten(), -difference[-1, -1]
        ctx.mark_non_differentiable(errors, residual)
        return loss, errors, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, W_dec, b_dec, level_scale = (kept * grads[0].to(kept.dtype) for kept in ctx.saved_tensors)
        return None, pre, W_dec, b_dec, None, None, None, None, level_scale


def _sums(
    index: Int[Tensor, " entries"],
    bag: Int[Tensor, " entries"],
    value: Float[Tensor, " entries"],
    table: Float[Tensor, "any d"],
    *,
    bags: int,
) -> Float[Tensor, "bags d"]:
    """Σ value · table[index] of the entries of each bag, in a fixed order."""
    order = torch.argsort(bag, stable=True)
    offsets = torch.searchsorted(bag[order], torch.arange(bags, device=bag.device))
    return F.embedding_bag(index[order], table, offsets, per_sample_weights=value[order], mode="sum")


def dead_latent_loss(
    residual: Float[Tensor, "batch d_out"],
    pre: Float[Tensor, "batch d_own"],
    W_dec: Float[Tensor, "d_own d_out"],
    dead: Bool[Tensor, " d_own"],
    k_aux: int,
    *,
    group: Group,
) -> Float[Tensor, ""]:
    """`dead.dead_latent_loss` of a dictionary that is split. All must call it, also a process without dead latents."""
    if not bool(group.sum_over_latents(dead.any().float()) > 0):
        return residual.new_zeros(())
    target = residual.detach()
    masked = torch.where(dead, pre, torch.full_like(pre, -torch.inf))
    nothing = torch.zeros(W_dec.shape[1], dtype=W_dec.dtype, device=W_dec.device)
    found = nested_loss(target, masked, W_dec, nothing, group=group, budgets=(k_aux,), level_weights=(1.0,))
    return found.loss / group.mean(target.square().mean()).clamp_min(1e-12)
