"""What a module gave, read as rows: `(batch, token, width)` or `(batch, width)`.

A convolutional feature map `(batch, channel, h, w)` is `h * w` tokens of width `channel`, row by row from the top left.
Installs nothing; `nb_sae.hooks` does.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EXPECTED = "expected (batch, token, width) or (batch, width)"


@dataclass(frozen=True)
class Probed:
    """What one module gave in a probing forward pass."""

    shape: tuple[int, ...]
    """As rows, `(batch, token, width)` or `(batch, width)`; as seen if it cannot be read as rows."""
    grid: tuple[int, int] | None = None
    """Rows and columns of a feature map."""
    problem: str = ""
    """Why it gives no rows; empty if it does."""


def shape_problem(tensor: Tensor, *, maps: bool, batches: set[int]) -> str:
    """Why a tensor cannot be read as rows, or an empty string.

    Args:
        tensor: What a site gave.
        maps: The site belongs to convolutions, so four axes are a feature map.
        batches: Batch sizes of the model's inputs; empty if they are not known.
    """
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point():
        return f"gives {tensor.dtype} values of shape {shape}; expected floating-point activations"
    known = f" for a batch of {' or '.join(map(str, sorted(batches)))}" if batches else ""
    if len(shape) == 3 and batches and shape[0] not in batches and shape[1] in batches:
        return (
            f"gives {shape}{known}, which looks like (token, batch, width); {EXPECTED}. "
            "Build the model with batch_first=True"
        )
    if len(shape) == 4 and maps and shape[1] == shape[2] != shape[3]:
        return f"gives {shape}, which looks like (batch, h, w, channel); {EXPECTED}, or a map (batch, channel, h, w)"
    if len(shape) not in (2, 3) and not (len(shape) == 4 and maps):
        return f"gives {shape}{known}; {EXPECTED}"
    if batches and shape[0] not in batches:
        return f"gives {shape}{known}; {EXPECTED}"
    return ""


def describe(output: Any, *, maps: bool, batches: set[int]) -> Probed:
    """What an output is as rows, or why it is none."""
    tensor = tensor_of(output)
    if tensor is None:
        return Probed((), problem=f"gives a {type(output).__name__}, not a tensor")
    problem = shape_problem(tensor, maps=maps, batches=batches)
    if problem:
        return Probed(tuple(tensor.shape), problem=problem)
    grid = (tensor.shape[2], tensor.shape[3]) if tensor.ndim == 4 else None
    return Probed(tuple(to_rows(tensor).shape), grid=grid)


def tensor_of(output: Any) -> Tensor | None:
    """The tensor of an output: itself, `last_hidden_state`, or the first of a tuple; None if there is none."""
    if isinstance(output, Tensor):
        return output
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None and isinstance(output, tuple | list) and output:
        hidden = output[0]
    return hidden if isinstance(hidden, Tensor) else None


def put_back(output: Any, tensor: Tensor) -> Any:
    """`output` with its tensor replaced; the same kind of container."""
    if isinstance(output, Tensor):
        return tensor
    if getattr(output, "last_hidden_state", None) is not None:
        changed = copy.copy(output)
        changed.last_hidden_state = tensor
        return changed
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: tensor})
    return type(output)([tensor, *output[1:]])


def to_rows(tensor: Tensor) -> Tensor:
    """A feature map as `(batch, h * w, channel)`; anything else as it is."""
    return tensor.flatten(2).transpose(1, 2) if tensor.ndim == 4 else tensor


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Undo `to_rows`, in the memory layout of `like`, so that the next convolution computes the same bits."""
    if like.ndim != 4:
        return rows
    layout = torch.contiguous_format if like.is_contiguous() else torch.channels_last
    return rows.transpose(1, 2).reshape(like.shape).contiguous(memory_format=layout)


def holds_maps(root: nn.Module, site: str) -> bool:
    """Whether four axes at a site are a feature map: the module or its parent has convolutions."""
    for path in (site, site.rpartition(".")[0]):
        try:
            module = root.get_submodule(path)
        except AttributeError:
            continue
        if any(isinstance(part, nn.Conv2d) for part in module.modules()):
            return True
    return False
