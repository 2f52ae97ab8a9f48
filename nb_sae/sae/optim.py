"""What surrounds the optimiser's step: precision, unit decoder rows, projected gradients, a moving average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.sae.model import SAE
from nb_sae.sae.training import TrainConfig

HURRY = {"log_threshold": 10.0, "log_level_scale": 5.0}
"""Learning rate over that of the weights: JumpReLU's thresholds have orders of magnitude to go, and a level's one
factor has the gradient of all latents to follow."""

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


def precision_note(train: TrainConfig, device: torch.device) -> str | None:
    """What to tell of a GPU whose products are slower than a reader may expect; None where there is nothing to tell."""
    if train.autocast != "auto" or train.dtype != "float32" or device.type == "cpu" or _computes_bfloat16(device):
        return None
    return f"Products are made in float32: {device} does not compute in bfloat16."


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":  # a T4 only emulates it, more slowly than float32
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    return False


def check_device(train: TrainConfig, device: torch.device) -> None:
    """Refuse a precision that a device does not have.

    Raises:
        ConfigError: names both.
    """
    if device.type == "mps" and train.dtype == "float64":
        raise ConfigError("dtype='float64': Apple's MPS has no float64. Use dtype='float32', or device='cpu'.")


def has_fused_adam(device: torch.device) -> bool:
    """Whether Adam runs in one kernel on this device, in this version of torch."""
    try:
        torch.optim.Adam([torch.zeros(1, device=device)], fused=True)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def make_optimizer(sae: SAE, train: TrainConfig, device: torch.device) -> torch.optim.Adam:
    """Adam, in one kernel where the device has it; its learning rate is set before every step."""
    fused = has_fused_adam(device)
    slow = [value for name, value in sae.named_parameters() if name not in HURRY]
    groups: list[dict[str, Any]] = [{"params": slow, "rate_scale": 1.0}]
    for name, value in sae.named_parameters():
        if name in HURRY:
            groups.append({"params": [value], "rate_scale": HURRY[name]})
    rate, betas = train.learning_rate or 1e-3, train.betas or (0.9, 0.999)
    return torch.optim.Adam(groups, lr=rate, betas=betas, eps=train.eps, fused=fused)


@torch.no_grad()
def project_decoder_gradient(sae: SAE) -> None:
    """Take out of each decoder row's gradient what would only change the row's length."""
    grad = sae.W_dec.grad
    if grad is not None:
        grad.addcmul_(sae.W_dec, torch.linalg.vecdot(grad, sae.W_dec)[:, None], value=-1)


@torch.no_grad()
def unit_decoder(sae: SAE, failed: Tensor | None = None, *, encoder_follows: bool = False) -> None:
    """Bring decoder rows to unit norm; `encoder_follows` scales the encoder so that no reconstruction changes.

    Where `failed` (a bool on the device) holds, every bit stays as it is.
    """
    norms = sae.W_dec.norm(dim=-1).clamp_min(1e-12)
    if failed is not None:
        norms = torch.where(failed, 1.0, norms)
    sae.W_dec.div_(norms[:, None])
    if encoder_follows:
        if not sae.tied:
            sae.W_enc.mul_(norms)
        sae.b_enc.mul_(norms)


class MovingAverage:
    """Exponential moving average of the parameters, on their device.

    The decay grows with the steps taken, (1 + t) / (10 + t), up to the one asked for, so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int, failed: Tensor | None = None) -> None:
        """Move towards the parameters as they are; not at all where `failed`, a bool on the device, holds."""
        rate: float | Tensor = 1 - min(self.decay, (1 + step) / (10 + step))
        if failed is not None:
            rate = torch.where(failed, 0.0, rate)
        current = dict(module.named_parameters())
        for name, average in self.tensors.items():
            average.lerp_(current[name].detach(), rate.to(average.dtype) if isinstance(rate, Tensor) else rate)
