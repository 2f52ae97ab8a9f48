"""What surrounds the optimiser's step: precision, unit decoder rows, projected gradients, a moving average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nb_sae.errors import ConfigError
from nb_sae.sae.model import SAE
from nb_sae.sae.training import TrainConfig

THRESHOLD_HURRY = 10.0
"""Learning rate of JumpReLU's log-thresholds over that of the weights: they have orders of magnitude to go."""

LARGE = 2**20
"""Numbers in a weight matrix from which bfloat16 products pay for the casts on a CPU."""


def compute_dtype(train: TrainConfig, device: torch.device, numbers: int) -> torch.dtype:
    """Precision of the matrix products on this device, for weight matrices of so many numbers.

    Raises:
        ConfigError: bfloat16 was asked for by name and the device does not compute in it.
    """
    own = getattr(torch, train.dtype)
    if train.autocast is None or own is torch.float64:
        return own
    able = _computes_bfloat16(device)
    if train.autocast == "bfloat16":
        if not able and device.type != "cpu":
            raise ConfigError(
                f"autocast='bfloat16': {device} does not compute in bfloat16. Use autocast='auto' or None (float32)."
            )
        return torch.bfloat16
    return torch.bfloat16 if able and (device.type != "cpu" or numbers >= LARGE) else own


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":  # a T4 only emulates it, more slowly than float32
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    return False


def make_optimizer(sae: SAE, train: TrainConfig, device: torch.device) -> torch.optim.Adam:
    """Adam, in one kernel where the device has it; its learning rate is set before every step."""
    fused = device.type in ("cuda", "cpu", "mps", "xpu")
    slow = [value for name, value in sae.named_parameters() if name != "log_threshold"]
    groups: list[dict[str, Any]] = [{"params": slow, "rate_scale": 1.0}]
    if hasattr(sae, "log_threshold"):
        groups.append({"params": [sae.log_threshold], "rate_scale": THRESHOLD_HURRY})
    return torch.optim.Adam(groups, lr=train.learning_rate, betas=train.betas, eps=train.eps, fused=fused)


@torch.no_grad()
def project_decoder_gradient(sae: SAE) -> None:
    """Take out of each decoder row's gradient what would only change the row's length."""
    grad = sae.W_dec.grad
    if grad is not None:
        grad -= (grad * sae.W_dec).sum(-1, keepdim=True) * sae.W_dec


@torch.no_grad()
def unit_decoder(sae: SAE, *, encoder_follows: bool = False) -> None:
    """Bring decoder rows to unit norm; `encoder_follows` scales the encoder so that no reconstruction changes."""
    if encoder_follows:
        norms = sae.W_dec.norm(dim=-1).clamp_min(1e-12)
        sae.W_dec.div_(norms[:, None])
        if not sae.tied:
            sae.W_enc.mul_(norms)
        sae.b_enc.mul_(norms)
        return
    F.normalize(sae.W_dec, dim=-1, out=sae.W_dec.data)


class MovingAverage:
    """Exponential moving average of the parameters, on their device.

    The decay grows with the steps taken, (1 + t) / (10 + t), up to the one asked for, so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the parameters as they are."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = dict(module.named_parameters())
        for name, average in self.tensors.items():
            average.lerp_(current[name].detach(), 1 - decay)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, value in tensors.items():
            self.tensors[name].copy_(value)
