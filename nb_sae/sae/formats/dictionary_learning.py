"""dictionary_learning: a folder with `ae.pt` (a state dict) and `config.json`.

Source:
    dictionary_learning 0.1.0, `utils.load_dictionary` and the `from_pretrained` of every class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nb_sae.atomic import read_json, write_json
from nb_sae.errors import FormatError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats.common import (
    Told,
    build,
    folded,
    imported,
    new_folder,
    per_latent,
    read_torch,
    recalled,
    refuse,
    remembered,
    rule_for,
    take,
    warn,
    with_unit_rows,
    write_torch,
)

NAME = "dictionary_learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"

_LINEAR = {"encoder.weight": ("F", "d"), "decoder.weight": ("d", "F")}
_TOP_K = {**_LINEAR, "encoder.bias": ("F",), "b_dec": ("d",), "k": (), "threshold": ()}
_PLAIN = {"W_enc": ("d", "F"), "b_enc": ("F",), "W_dec": ("F", "d"), "b_dec": ("d",)}
_CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "AutoEncoder": {**_LINEAR, "encoder.bias": ("F",), "bias": ("d",)},
    "AutoEncoderNew": {**_LINEAR, "encoder.bias": ("F",), "decoder.bias": ("d",)},
    "GatedAutoEncoder": {
        **_LINEAR,
        "decoder_bias": ("d",),
        "r_mag": ("F",),
        "gate_bias": ("F",),
        "mag_bias": ("F",),
    },
    "AutoEncoderTopK": _TOP_K,
    "BatchTopKSAE": _TOP_K,
    "MatryoshkaBatchTopKSAE": {**_PLAIN, "k": (), "threshold": (), "group_sizes": ("L",)},
    "JumpReluAutoEncoder": {**_PLAIN, "threshold": ("F",)},
}
_NAMES = {
    "encoder.bias": "b_enc",
    "gate_bias": "b_enc",
    "mag_bias": "b_mag",
    "bias": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
}


def owns(folder: Path) -> bool:
    """Whether a folder holds a dictionary_learning run."""
    return (folder / WEIGHTS).is_file()


def owns_content(content: Any) -> bool:
    """Whether a loaded file is one of its state dicts, or a backup that holds one."""
    if not isinstance(content, dict):
        return False
    return "ae" in content or {"encoder.weight", "decoder.weight"} <= content.keys() or "group_sizes" in content


def read(path: Path, told: Told) -> Dictionary:
    """Read a folder, its `ae.pt`, or a checkpoint `ae_<step>.pt` below it.

    A backup that training left (`{"ae": …, "norm_factor": …}`) is brought to the model's units, as the finished file
    would have been.

    Raises:
        FormatError: a class that nb_sae has not, or files that do not fit together.
    """
    file = path / WEIGHTS if path.is_dir() else path
    state = read_torch(file, told)
    if not isinstance(state, dict):
        raise FormatError(f"{file} holds a {type(state).__name__}; expected a state dict of tensors.")
    config = _config(file)
    norm_factor = None
    if "ae" in state:
        norm_factor, config = state.get("norm_factor"), config or {"trainer": state.get("config") or {}}
        state = state["ae"]
    trainer = config.get("trainer") or {}
    kind = str(trainer.get("dict_class") or _kind(state, file))
    if kind not in _CLASSES:
        raise FormatError(f"{file} is a {kind!r}; nb_sae reads {', '.join(_CLASSES)}. Use it in dictionary_learning.")
    taken = take(state, _CLASSES[kind], file, optional=("k", "threshold"))
    weights = {_NAMES.get(name, name): tensor for name, tensor in taken.items() if name not in ("k", "group_sizes")}
    if "encoder.weight" in weights:
        weights["W_enc"], weights["W_dec"] = weights.pop("encoder.weight").T, weights.pop("decoder.weight").T
    if norm_factor is not None:
        for name in ("b_enc", "b_dec", "b_mag"):
            if name in weights:
                weights[name] = weights[name] * float(norm_factor)
        if "threshold" in weights:
            weights["threshold"] = torch.where(weights["threshold"] >= 0, weights["threshold"] * norm_factor, -1.0)
    about = _rule(kind, weights, taken, trainer, told, file)
    about |= recalled(config.get("nb_sae"), about["sparsity"], about["budgets"][-1] if about["budgets"] else None)
    provenance = imported(
        NAME, file, dict_class=kind, model=trainer.get("lm_name"), layer=trainer.get("layer"), norm_factor=norm_factor
    )
    about["provenance"] = {**about.get("provenance", {}), **provenance}
    about.setdefault("site", trainer.get("submodule_name"))
    dictionary = build(file, weights, pre_bias=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"), **about)
    # Its own loader brings the decoder of an AutoEncoder to unit norm, and of no other class.
    return with_unit_rows(dictionary) if kind == "AutoEncoder" else dictionary


def write(dictionary: Dictionary, folder: Path, *, k: int | None = None, overwrite: bool = False) -> Path:
    """Write a folder that `dictionary_learning.utils.load_dictionary` reads; the latents are unchanged.

    Raises:
        ConfigError: a transcoder or normalised rows, which it has not.
        PathExistsError: something is there and `overwrite` is False.
    """
    refuse(dictionary, NAME)
    rule, chosen = rule_for(dictionary, k, ("relu", "top_k", "batch_top_k", "jump_relu", "gated"), NAME)
    kind = _kind_for(dictionary, rule)
    tensors = folded(dictionary, pre_bias=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
    state: dict[str, Tensor] = dict(tensors)
    if kind not in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        state = {"encoder.weight": tensors["W_enc"].T, "decoder.weight": tensors["W_dec"].T}
        for theirs, ours in _NAMES.items():
            if theirs in _CLASSES[kind] and ours in tensors:
                state[theirs] = tensors[ours]
        state |= {name: tensors[name] for name in ("b_dec", "r_mag") if name in _CLASSES[kind]}
    if "k" in _CLASSES[kind]:
        threshold = tensors.get("threshold")
        single = threshold is not None and bool((threshold == threshold[0]).all())
        state["threshold"] = threshold[0] if threshold is not None and single else torch.tensor(-1.0)
        state["k"] = torch.tensor(chosen or 1, dtype=torch.int32)
    if kind == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([0, *(dictionary.widths or ())]).diff()
    trainer = {
        "dict_class": kind,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.d_sae,
        "lm_name": dictionary.model,
        "layer": None,
        "submodule_name": dictionary.site,
    }
    if "k" in _CLASSES[kind]:
        trainer["k"] = chosen or 1
    kept = remembered(dictionary, threshold="threshold" not in _CLASSES[kind])
    new_folder(folder, overwrite=overwrite)
    write_torch(folder / WEIGHTS, {name: state[name] for name in _CLASSES[kind]})
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": {}, "nb_sae": kept})
    return folder


def _kind_for(dictionary: Dictionary, rule: str) -> str:
    if rule == "relu":
        # The loader of AutoEncoder rescales rows that are not of norm 1, which would change the latents.
        unit = torch.allclose(dictionary.W_dec.norm(dim=-1), torch.ones(()), atol=1e-5)
        return "AutoEncoder" if unit and dictionary.pre_bias else "AutoEncoderNew"
    if rule == "batch_top_k":
        threshold = dictionary.threshold
        if threshold is not None and not bool((threshold == threshold[0]).all()):
            return "JumpReluAutoEncoder"
        return "MatryoshkaBatchTopKSAE" if dictionary.widths else "BatchTopKSAE"
    return {"top_k": "AutoEncoderTopK", "jump_relu": "JumpReluAutoEncoder", "gated": "GatedAutoEncoder"}[rule]


def _config(file: Path) -> dict[str, Any]:
    """The settings beside the weights; those of a checkpoint stand one folder up."""
    for folder in (file.parent, file.parent.parent):
        if (folder / CONFIG).is_file():
            return read_json(folder / CONFIG)
    return {}


def _kind(state: dict[str, Any], file: Path) -> str:
    """The class, from the names of the tensors, where no settings are beside them."""
    fitting = [
        kind
        for kind, shapes in _CLASSES.items()
        if state.keys() <= shapes.keys() and shapes.keys() - {"k", "threshold"} <= state.keys()
    ]
    if len(fitting) == 1:
        return fitting[0]
    if "AutoEncoderTopK" in fitting:
        raise FormatError(
            f"{file} may be an AutoEncoderTopK or a BatchTopKSAE: their tensors have the same names. Put its {CONFIG} "
            "(trainer.dict_class) beside it."
        )
    raise FormatError(f"{file} holds {', '.join(sorted(map(str, state)))}, which no class of dictionary_learning has.")


def _rule(
    kind: str, weights: dict[str, Tensor], taken: dict[str, Tensor], trainer: dict[str, Any], told: Told, file: Path
) -> dict[str, Any]:
    """What makes a latent active, as keywords of `Dictionary`; sets or drops the threshold among `weights`."""
    about: dict[str, Any] = {"budgets": None, "widths": None}
    threshold = weights.pop("threshold", None)
    d_sae = weights["W_dec"].shape[0]
    if "k" in _CLASSES[kind]:
        k = int(taken["k"]) if "k" in taken else trainer.get("k", told.k)
        if k is None:
            raise FormatError(f"{file} and its {CONFIG} do not state k. Give it: load_dictionary(…, k=…).")
        about["budgets"] = (int(k),)
    if kind == "MatryoshkaBatchTopKSAE":
        about["widths"] = tuple(int(width) for width in taken["group_sizes"].cumsum(0))
    if kind == "JumpReluAutoEncoder" and threshold is not None:
        weights["threshold"] = per_latent(threshold, d_sae)
        return {**about, "sparsity": "jump_relu"}
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        value = -1.0 if threshold is None else float(threshold)
        if value < 0 and told.threshold is not None:
            value = told.threshold
        elif value < 0:
            warn(
                f"{file}: the threshold is {value:g}, which means that it was never estimated: every positive latent "
                "is active, as in dictionary_learning. Give one: load_dictionary(…, threshold=…), or encode(x, k=…)."
            )
        weights["threshold"] = per_latent(value, d_sae)
        return {**about, "sparsity": "batch_top_k"}
    if kind == "AutoEncoderTopK":
        if threshold is not None and float(threshold) >= 0:
            weights["threshold"] = per_latent(threshold, d_sae)
        return {**about, "sparsity": "top_k"}
    return {**about, "sparsity": "gated" if kind == "GatedAutoEncoder" else "relu"}
