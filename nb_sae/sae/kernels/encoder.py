"""The encoder's product, with a way back that uses what the gradient leaves out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nb_sae.sae.kernels.gather import SUM_COST, gathered


def affine(x: Tensor, W: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """x W + bias, `(batch, d_sae)`, computed in `dtype`; gradients to all three.

    After a top-k nearly all of ∂loss/∂pre is 0. On a CPU in float32 the gradient of `W` is then a sum over what is
    left, as exact as the dense product and several times faster; elsewhere it is the dense product.
    """
    if x.device.type != "cpu" or dtype not in SUM_COST or torch.compiler.is_compiling():
        return torch.addmm(bias.to(dtype), x.to(dtype), W.to(dtype))
    return _Affine.apply(x.to(dtype), W, bias.to(dtype))  # pyright: ignore[reportReturnType]


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        return torch.addmm(bias, x, W.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, W = ctx.saved_tensors
        (grad,) = grads
        grad_x = grad @ W.to(grad.dtype).T if ctx.needs_input_grad[0] else None
        grad_W = _weight_gradient(x, grad).to(W.dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_W, grad.sum(0) if ctx.needs_input_grad[2] else None


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    if grad.dtype is torch.float32:
        used = grad.contiguous().numpy() != 0
        if np.count_nonzero(used) * SUM_COST[grad.dtype] * 2 <= used.size:
            return _sparse_weight_gradient(x, grad.contiguous(), used)
    # oneDNN multiplies a transposed matrix at half speed, and x is the small one: lay it out anew.
    return x.T.contiguous() @ grad


def _sparse_weight_gradient(x: Tensor, grad: Tensor, used: np.ndarray[Any, Any]) -> Tensor:
    """Σ of rows of x times their gradient, latent by latent."""
    batch, d_sae = grad.shape
    flat = np.flatnonzero(used)
    shift = int(batch - 1).bit_length()
    kind = np.int32 if d_sae << shift < 2**31 else np.int64
    rows = flat // d_sae
    order = ((flat - rows * d_sae) << shift | rows).astype(kind)
    order.sort()
    latents, rows = order >> shift, order & ((1 << shift) - 1)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(latents, minlength=d_sae)))).astype(kind)
    values = grad.view(-1).index_select(0, torch.from_numpy(rows.astype(np.int64) * d_sae + latents))
    return gathered(torch.from_numpy(rows), torch.from_numpy(offsets), values, x, turned=True)
