"""overcomplete: a state dict of one of its SAEs, or a whole module where the user trusts the pickle.

A state dict of overcomplete holds neither k nor BatchTopK's threshold; ours writes a JSON file of the same name beside
it. Its decoders have no bias.

Source:
    overcomplete 0.3.0, `overcomplete.sae`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nb_sae.atomic import read_json, write_json
from nb_sae.errors import ConfigError, FormatError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats.common import (
    EQUAL_NORMS,
    Told,
    at_least,
    build,
    folded,
    imported,
    new_file,
    per_latent,
    read_torch,
    recalled,
    refuse,
    remembered,
    rule_for,
    take,
    warn,
    write_torch,
)

NAME = "overcomplete"
_ENCODERS = (
    ("encoder.final_block.0.weight", "encoder.final_block.0.bias"),  # the default: one linear layer
    ("encoder.weight", "encoder.bias"),  # TieableEncoder
)
_ROWS, _MULTIPLIER, _THRESHOLDS = "dictionary._weights", "dictionary.multiplier", "thresholds"


def owns_content(content: Any) -> bool:
    """Whether a loaded file is one of its state dicts or modules."""
    if isinstance(content, Mapping):
        return _ROWS in content
    return type(content).__module__.split(".")[0] == NAME


def read(path: Path, told: Told) -> Dictionary:
    """Read a state dict, or a module saved whole (`trust_pickle=True`).

    Decoder rows are brought to unit norm, as overcomplete's modules do when they are evaluated.

    Raises:
        FormatError: another encoder or dictionary than a linear one, or a k or threshold that nobody stated.
    """
    content = read_torch(path, told)
    beside = path.with_suffix(".json")
    notes = read_json(beside) if beside.is_file() else {}
    kind = notes.get("class")
    k, threshold = told.k if told.k is not None else notes.get("top_k"), told.threshold
    normalization = notes.get("normalization", "l2")
    if not isinstance(content, Mapping):
        content, kind, found_k, found_threshold, normalization = _from_module(content, path)
        k, threshold = (k if k is not None else found_k), (threshold if threshold is not None else found_threshold)
    weights, state = _weights(content, normalization, path)
    d_sae = weights["W_dec"].shape[0]
    about: dict[str, Any] = {"budgets": None, "sparsity": "relu"}
    if _THRESHOLDS in state:
        weights["threshold"] = per_latent(at_least(state[_THRESHOLDS].exp()), d_sae)
        about["sparsity"] = "jump_relu"
    elif threshold is not None:
        weights["threshold"] = per_latent(at_least(threshold), d_sae)
        about |= {"sparsity": "batch_top_k", "budgets": None if k is None else (int(k),)}
    elif kind == "BatchTopKSAE":
        raise FormatError(
            f"{path} is a BatchTopKSAE without its threshold, which overcomplete does not save. Give it: "
            "load_dictionary(…, threshold=float(sae.running_threshold))."
        )
    elif k is not None:
        about |= {"sparsity": "top_k", "budgets": (int(k),)}
    elif kind is None:
        warn(
            f"{path} does not state its rule (overcomplete saves no k): read as ReLU. If it was a TopKSAE: "
            "load_dictionary(…, k=…); a BatchTopKSAE: threshold=…."
        )
    kept = notes.get("nb_sae")
    about |= recalled(kept, about["sparsity"], k)
    if isinstance(kept, dict) and "b_dec" in kept:
        # Taken off before the encoder of what is written is only b_enc; the bias of the decoder comes back from here.
        weights["b_dec"] = torch.tensor(kept["b_dec"])
    about["provenance"] = {**about.get("provenance", {}), **imported(NAME, path, kind=kind)}
    return build(path, weights, pre_bias=False, **about)


def write(dictionary: Dictionary, path: Path, *, k: int | None = None, overwrite: bool = False) -> Path:
    """Write a state dict for a `TopKSAE`, `SAE` or `JumpSAE` with the default encoder; the latents are unchanged.

    Beside it goes a JSON file with the class, k, and what overcomplete has no place for: also the decoder's bias, so
    what overcomplete reconstructs is x̂ − b_dec.

    Raises:
        ConfigError: a gated dictionary, a transcoder or normalised rows.
        PathExistsError: something is there and `overwrite` is False.
    """
    refuse(dictionary, NAME)
    rule, chosen = rule_for(dictionary, k, ("relu", "top_k", "batch_top_k", "jump_relu"), NAME)
    if path.suffix not in (".pt", ".pth"):
        raise ConfigError(f"{path} is no name for a state dict. End it in .pt or .pth.")
    tensors = folded(dictionary, pre_bias=False)
    norm = tensors["W_dec"].norm(dim=-1)
    unit = bool(((norm - 1).abs() < EQUAL_NORMS).all())
    weight, bias = _ENCODERS[0]
    state: dict[str, Tensor] = {
        weight: tensors["W_enc"].T,
        bias: tensors["b_enc"],
        _ROWS: tensors["W_dec"],
        _MULTIPLIER: torch.tensor(0.0),
    }
    kind = {"relu": "SAE", "top_k": "TopKSAE"}.get(rule, "JumpSAE")
    if kind == "JumpSAE":
        state[_THRESHOLDS] = _log_above(tensors["threshold"])
    notes = {
        "class": kind,
        "input_shape": dictionary.d_in,
        "nb_concepts": dictionary.d_sae,
        "top_k": chosen if kind == "TopKSAE" else None,
        "normalization": "l2" if unit else "identity",
        "nb_sae": {**remembered(dictionary, threshold=kind != "JumpSAE"), "b_dec": tensors["b_dec"].tolist()},
    }
    write_torch(new_file(path, overwrite=overwrite), state)
    write_json(path.with_suffix(".json"), notes)
    return path


def _log_above(threshold: Tensor) -> Tensor:
    """Its rule is pre ≥ exp(t), ours pre > threshold: the smallest t whose exponential is above the threshold."""
    t = threshold.clamp_min(torch.finfo(torch.float32).tiny).log()
    while bool((low := t.exp() <= threshold).any()):
        t = torch.where(low, torch.nextafter(t, torch.full((), torch.inf)), t)
    return t


def _weights(content: Mapping[str, Any], normalization: str, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights of the dictionary, tensors of the file)."""
    encoder = next(((w, b) for w, b in _ENCODERS if w in content), None)
    shapes: dict[str, tuple[int | str, ...]] = {_ROWS: ("K", "d"), _MULTIPLIER: (), _THRESHOLDS: ("K",)}
    if encoder is not None:
        shapes |= {encoder[0]: ("K", "d"), encoder[1]: ("K",)}
    known = {name for name in content if str(name) in shapes or str(name) in ("bandwidth",)}
    if encoder is None and any(str(name).startswith("encoder.") for name in content if name not in known):
        raise FormatError(f"{path} has an encoder with hidden layers; nb_sae has linear ones.")
    optional = [_MULTIPLIER, _THRESHOLDS, *(encoder[1:] if encoder else ())]
    state = take(content, shapes, path, optional=optional, ignored=("bandwidth",))
    rows = state[_ROWS]
    norm = {
        "l2": lambda: rows.norm(dim=1, keepdim=True) + 1e-8,
        "max_l2": lambda: rows.norm(dim=1).amax(),
        "l1": lambda: rows.norm(p=1, dim=1, keepdim=True) + 1e-8,
        "max_l1": lambda: rows.norm(p=1, dim=1).amax(),
        "identity": lambda: torch.ones(()),
    }
    if normalization not in norm:
        raise FormatError(f"{path} has a normalization {normalization!r} of its own, which nb_sae does not know.")
    rows = rows / norm[normalization]() * state.get(_MULTIPLIER, torch.zeros(())).exp()
    d_sae, d_in = rows.shape
    # Without weights of its own the encoder is tied to the dictionary.
    W_enc = state[encoder[0]].T if encoder else rows.T
    b_enc = state.get(encoder[1] if encoder else "", torch.zeros(d_sae))
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": rows, "b_dec": torch.zeros(d_in)}, state


def _from_module(module: Any, path: Path) -> tuple[Mapping[str, Any], str, int | None, float | None, str]:
    """(state dict, class, k, threshold, normalization) of a module that was saved whole; overcomplete is not needed."""
    kind = type(module).__name__
    if not owns_content(module) or kind not in ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE"):
        raise FormatError(
            f"{path} holds a {kind} of {type(module).__module__}; nb_sae reads overcomplete's SAE, TopKSAE, "
            "BatchTopKSAE and JumpSAE."
        )
    layer = module._modules["dictionary"]
    normalization = getattr(layer.normalization, "__name__", "").removeprefix("normalize_")
    running = getattr(module, "running_threshold", None)
    k = module.top_k if kind == "TopKSAE" else None
    return _state(module), kind, k, None if running is None else float(running), normalization


def _state(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """What `state_dict()` gives, also of a module whose class is not installed."""
    own = {**module._parameters, **module._buffers}
    state = {prefix + name: tensor for name, tensor in own.items() if tensor is not None}
    for name, child in module._modules.items():
        state |= _state(child, f"{prefix}{name}.")
    return state
