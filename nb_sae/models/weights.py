"""Reading the weights of a model as float32, and applying one of its modules in float32, whatever they are kept as."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.models.sites import module_device, values_of


class InFloat:
    """A module applied to float32 rows, whatever the precision of its weights; its own precision for rows of that."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __repr__(self) -> str:
        return f"InFloat({self.module!r})"

    def __call__(self, x: Tensor) -> Tensor:
        """The module's output for `(…, d_model)` rows, in their precision; gradients reach the rows alone."""
        weights = {name: value.detach() for name, value in self.module.named_parameters()}
        own = next((value.dtype for value in weights.values() if value.is_floating_point()), x.dtype)
        x = x.to(module_device(self.module))
        if any(value.is_meta for value in weights.values()):
            return self.module(x.to(own)).to(x.dtype)  # accelerate brings the weights when the module runs
        if x.dtype == own:
            return torch.func.functional_call(self.module, weights, (x,))
        return torch.func.functional_call(self.module, {name: value.to(x) for name, value in weights.items()}, (x,))


def acts(block: nn.Module, name: str) -> bool:
    """Whether a block has such a module and it does something."""
    return not isinstance(getattr(block, name, None), nn.Identity | None)


def float_weight(root: nn.Module, owner: nn.Module, name: str = "weight") -> Tensor:
    """A weight as float32, also one that accelerate keeps elsewhere. Raises `ConfigError` for a quantised one."""
    value = getattr(owner, name)
    if value.is_meta:
        path = next(path for path, module in root.named_modules() if module is owner)
        value = values_of(root, f"{path}.{name}")
    return float_values(value, f"{name} of {type(owner).__name__}")


def float_values(value: Tensor, what: str) -> Tensor:
    """A weight as float32. Raises `ConfigError` for a quantised one and for one without values."""
    if value.is_meta or not value.is_floating_point() or value.element_size() < 2:
        held = "on the device 'meta', without values" if value.is_meta else f"as {value.dtype}"
        raise ConfigError(
            f"The {what} is held {held}; expected floating-point values. Load the model without quantisation and with "
            "its weights to read them; its activations can be used as they are."
        )
    return value.detach().float()


def affine(root: nn.Module, module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Weight and bias of a linear map, float32; of GPT-2's `Conv1D` too, which keeps it transposed."""
    weight = float_weight(root, module)
    if type(module).__name__ == "Conv1D":
        weight = weight.T
    bias = getattr(module, "bias", None)
    return weight, float_weight(root, module, "bias") if isinstance(bias, Tensor) else None


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What an attention module is given to read: by name where it has one, otherwise the first tensor."""
    for name in ("value_input", "hidden_states", "x"):
        if isinstance(kwargs.get(name), Tensor):
            return kwargs[name]
    return next((value for value in args if isinstance(value, Tensor)), None)


def gain(norm: nn.Module, width: int) -> Float[Tensor, " width"] | None:
    """The factor per dimension of an RMS norm; None for a norm that subtracts a mean. Raises as `linear_part`."""
    factors, centres = linear_part(InFloat(norm), width, module_device(norm))
    return None if centres else factors


@torch.no_grad()
def linear_part(norm: Any, width: int, device: torch.device) -> tuple[Float[Tensor, " d_model"], bool]:
    """Weight of a norm and whether it takes the mean off, asked of the norm itself, up to a positive factor near 1.

    N(x) − N(−x) holds no bias, and for a row of mean 0 and spread 1 it is 2 · weight · x in a LayerNorm as in an RMS
    norm, however the weight is stored (Gemma keeps weight − 1).

    Args:
        norm: Takes and gives `(…, d_model)`; None: no norm, whose weight is 1.
        width: d_model.
        device: Where it runs.

    Raises:
        ConfigError: neither a LayerNorm nor an RMS norm.
    """
    if norm is None:
        return torch.ones(width, device=device), False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, width, generator=generator)
    rows = rows.sign() * (0.5 + rows.abs())  # no entry near 0, by which is divided
    rows = rows - rows.mean(-1, keepdim=True)
    rows = (rows / rows.square().mean(-1, keepdim=True).sqrt()).to(device)
    found = (norm(rows) - norm(-rows)) / 2
    usable = rows.abs() > 0.1
    gain = (found * usable / torch.where(usable, rows, 1.0)).sum(0) / usable.sum(0).clamp_min(1)
    shifted = (norm(rows + 1) - norm(-rows - 1)) / 2
    scale = float(gain.abs().max()) + 1e-12
    centres = bool((shifted - found).abs().max() < 1e-3 * scale)
    again = (rows + 1) / (rows + 1).square().mean(-1, keepdim=True).sqrt() * gain
    known = (found - rows * gain).abs().max() < 1e-3 * scale and usable.any(0).all()
    if not known or not (centres or (shifted - again).abs().max() < 1e-3 * scale):
        raise ConfigError(
            f"The norm ({norm!r}) is neither a LayerNorm nor an RMS norm, so no direction passes it by itself. "
            "Look at logits of whole rows with model.logits(batch)."
        )
    return gain, centres
