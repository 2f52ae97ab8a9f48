"""What lies at each site of a model: asked of the model itself by a probing forward pass, once, when first needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nb_sae.errors import ConfigError, HookError, closest
from nb_sae.hook_rows import Probed
from nb_sae.hooks import display_name, find_module, probe
from nb_sae.types import Modality, Site

PROBE_BATCHES = (2, 3)
"""The second is used where a site has as many tokens as the first."""
_MOST_PREFIX_TOKENS = 16
_SAMPLED_VALUES = 256

Forward = Callable[[int], tuple[Callable[[Tensor], Any], Tensor]]
"""Batch size → the forward call of a tower, and a batch to probe it with."""


class SiteTable:
    """The sites of every tower of one model.

    Args:
        model: The wrapper; its `module` is probed.
        towers: Modality → how to run that tower on a probing batch.
        text_positions: Positions of one text context, where there are texts.
    """

    def __init__(self, model: Any, towers: Mapping[Modality, Forward], *, text_positions: int | None = None) -> None:
        self._model = model
        self._towers = towers
        self._text_positions = text_positions
        self._sites: dict[str, dict[str, Site]] = {}
        self._problems: dict[str, dict[str, str]] = {}

    def names(self) -> list[str]:
        """Every site that gives rows, tower by tower, in the order of the forward pass."""
        found = dict.fromkeys(name for modality in self._towers for name in self._tower(modality))
        embeds = [name for name in self._model.pseudo_sites if name in found]
        return [name for name in found if name not in embeds] + embeds

    def site(self, name: str, modality: Modality) -> Site:
        """What lies at a site. Raises `HookError`, with the closest names or with what the site gives instead."""
        if modality not in self._towers:
            raise ConfigError(
                f"{display_name(self._model)} takes {' and '.join(f'{m}s' for m in self._towers)}, not "
                f"{modality!r} inputs. Give it inputs of a kind it takes."
            )
        sites = self._tower(modality)
        if name in sites:
            return sites[name]
        for other in self._towers:
            if other != modality and name in self._tower(other):
                raise HookError(
                    f"Site {name!r} of {display_name(self._model)} belongs to the {other} tower and was asked for with "
                    f"{modality} inputs. {closest(name, sites)}Give {other} inputs, or choose a site of the {modality} "
                    "tower."
                )
        raise self._unknown(name)

    def require(self, name: str) -> None:
        """Raise `HookError` unless some tower gives rows at this site."""
        if not any(name in self._tower(modality) for modality in self._towers):
            raise self._unknown(name)

    def _unknown(self, name: str) -> HookError:
        every = self.names()
        problem = next((table[name] for table in self._problems.values() if name in table), "")
        hint = f"{closest(name, every)}List all with model.hook_names()."
        if problem:
            return HookError(f"Site {name!r} of {display_name(self._model)} {problem}. {hint}")
        try:
            find_module(self._model, name)
        except HookError:
            return HookError(f"{display_name(self._model)} has no module {name!r}. {hint}")
        return HookError(f"Module {name!r} of {display_name(self._model)} does not run in a forward pass. {hint}")

    def _tower(self, modality: Modality) -> dict[str, Site]:
        if modality not in self._sites:
            seen = self._probe(modality)
            read = _image_sites(seen) if modality == "image" else _text_sites(seen, self._text_positions)
            self._sites[modality] = read
            self._problems[modality] = {name: found.problem for name, found in seen.items() if found.problem}
        return self._sites[modality]

    def _probe(self, modality: Modality) -> dict[str, Probed]:
        forward, batch = self._towers[modality](PROBE_BATCHES[0])
        seen = probe(self._model, forward, batch)
        if any(len(found.shape) == 3 and found.shape[1] == len(batch) for found in seen.values()):
            forward, batch = self._towers[modality](PROBE_BATCHES[1])
            again = probe(self._model, forward, batch)
            # A site that is fine with one batch size and not with the other was mistaken for rows once.
            seen = {name: found if found.problem else again.get(name, found) for name, found in seen.items()}
        return _with_expected_tokens(seen, batch.shape[1]) if modality == "text" else seen


def fingerprint(module: nn.Module) -> str:
    """A short hash that tells two sets of weights apart: names, shapes and an even sample of every tensor.

    Cheap on purpose: 256 values of each tensor. Any training step changes it; an edit of a few single weights may not.
    The same on every device; another precision of the same weights is another revision.

    Raises:
        ConfigError: weights are on the device "meta", and nothing says where their values are.
    """
    tensors = sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items())
    digest, samples = hashlib.sha256(), []
    for name, tensor in tensors:
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        flat = (values_of(module, name) if tensor.is_meta else tensor).detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLED_VALUES)
        samples.append(flat[::step][:_SAMPLED_VALUES].to("cpu", torch.float32))
    if samples:
        digest.update(torch.cat(samples).numpy().tobytes())
    return digest.hexdigest()[:16]


def choose_device(device: Any) -> torch.device:
    """The device asked for, or the best there is: CUDA, then Apple's MPS, then the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def module_device(module: nn.Module) -> torch.device:
    """Where inputs go: to the weights, or of a module spread by `device_map` where accelerate runs it first; the CPU
    for a module without any weights.
    """
    runs_on = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if runs_on is not None:
        return torch.device(runs_on)
    tensor = next(module.parameters(), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def check_evaluating(module: nn.Module, name: str) -> None:
    """Refuse to run a model that was put into training mode: with dropout its numbers would differ each time.

    Raises:
        ConfigError: says how to leave that mode.
    """
    if module.training:
        raise ConfigError(
            f"{name} is in training mode, in which dropout makes activations and losses random; expected evaluation "
            "mode, as it was loaded. Call model.module.eval() first."
        )


def check_movable(module: nn.Module, **given: Any) -> None:
    """Refuse to move or convert a module that accelerate has spread.

    Raises:
        ConfigError: names what was given.
    """
    spread = getattr(module, "hf_device_map", None)
    told = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    if told and spread and len(set(spread.values())) > 1:
        raise ConfigError(
            f"{told}: the model is spread over {', '.join(sorted({str(one) for one in spread.values()}))} by its "
            "device_map and stays as it is. Leave it out, or load the model without device_map."
        )


def values_of(module: nn.Module, name: str) -> Tensor:
    """The values of a weight that accelerate keeps on the disk or in main memory until it is needed."""
    owner, _, own_name = name.rpartition(".")
    hook = getattr(module.get_submodule(owner), "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        weights = getattr(one, "weights_map", None)
        if weights is not None:
            with suppress(KeyError):
                return weights[own_name]
    raise ConfigError(
        f"The weight {name!r} is on the device 'meta' and has no values. Load the model with its weights, or spread it "
        "by accelerate's dispatch_model."
    )


def _image_sites(seen: Mapping[str, Probed]) -> dict[str, Site]:
    """Image sites with their grid: the feature map that fits the number of tokens gives it, the rest are prefix."""
    sites: dict[str, Site] = {}
    grids: list[tuple[int, int]] = []
    pooled_by_attention = False
    for name, found in seen.items():
        # What an attention pooler makes of the patches has a count of its own, and lies on no grid.
        pooled_by_attention = pooled_by_attention or "attn_pool" in name
        if found.problem:
            continue
        if len(found.shape) == 2:
            sites[name] = Site(name, found.shape[1], pooled=True)
            continue
        _, tokens, width = found.shape
        site = Site(name, width, positions=tokens)
        if found.grid is not None:
            grids.append(found.grid)
            site = replace(site, grid=found.grid)
        elif not pooled_by_attention:
            fits = [grid for grid in grids if 0 <= tokens - grid[0] * grid[1] <= _MOST_PREFIX_TOKENS]
            if fits:
                grid = max(reversed(fits), key=lambda grid: grid[0] * grid[1])
                site = replace(site, grid=grid, prefix_tokens=tokens - grid[0] * grid[1])
        sites[name] = site
    return sites


def _text_sites(seen: Mapping[str, Probed], positions: int | None) -> dict[str, Site]:
    sites = {}
    for name, found in seen.items():
        if found.problem:
            continue
        if len(found.shape) == 2:
            sites[name] = Site(name, found.shape[1], pooled=True)
        else:
            sites[name] = Site(name, found.shape[2], positions=positions or found.shape[1])
    return sites


def _with_expected_tokens(seen: Mapping[str, Probed], tokens: int) -> dict[str, Probed]:
    """Text sites must give one row per token; one appended token (CoCa's class token) is cut off when captured."""
    checked = {}
    for name, found in seen.items():
        if not found.problem and len(found.shape) == 3 and found.shape[1] not in (tokens, tokens + 1):
            problem = f"gives {found.shape} for texts of {tokens} tokens; expected one row per token"
            found = replace(found, problem=problem)
        checked[name] = found
    return checked
