"""ViT-Prisma: `weights.pt` beside `config.json`, or one pickle of both where the user trusts it.

Source:
    ViT-Prisma 2, `SparseAutoencoder.load_from_pretrained`; read in its source, its release on PyPI has no autoencoders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    read_torch,
    recalled,
    refuse,
    remembered,
    rule_for,
    take,
    write_torch,
)

NAME = "prisma"
CONFIG, WEIGHTS = "config.json", "weights.pt"
_ROW_NORMS = {"layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm", "none": None, None: None}


def owns(folder: Path) -> bool:
    """Whether a folder holds one of its autoencoders."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def owns_content(content: Any) -> bool:
    """Whether a loaded file is one of its pickles."""
    return isinstance(content, dict) and {"cfg", "state_dict"} <= content.keys()


def read(path: Path, told: Told) -> Dictionary:
    """Read a folder with `weights.pt` and `config.json`, or a pickle `{"cfg", "state_dict"}` (`trust_pickle=True`).

    Raises:
        FormatError: an architecture or activation that nb_sae has not, or files that do not fit together.
    """
    file = path / WEIGHTS if path.is_dir() else path
    content = read_torch(file, told)
    if owns_content(content):
        settings, state = content["cfg"], content["state_dict"]
        cfg = dict(settings) if isinstance(settings, dict) else dict(vars(settings))
    else:
        cfg, state = read_json(file.parent / CONFIG), content
    if not isinstance(state, dict):
        raise FormatError(f"{file} holds a {type(state).__name__}; expected a state dict of tensors.")
    architecture = str(cfg.get("architecture", "standard"))
    if architecture not in ("standard", "gated") or cfg.get("is_transcoder"):
        what = "transcoder" if cfg.get("is_transcoder") else architecture
        raise FormatError(f"{file} is a {what!r}; nb_sae reads Prisma's 'standard' and 'gated' autoencoders.")
    norm = cfg.get("normalize_activations", "layer_norm")
    if norm not in _ROW_NORMS:
        raise FormatError(f"{file} has normalize_activations={norm!r}, which this nb_sae does not know.")
    weights = _tensors(state, architecture, file)
    rule, k = _rule(cfg, architecture, told, file)
    about: dict[str, Any] = {"budgets": None if k is None else (k,), "sparsity": rule, "site": _site(cfg)}
    about |= recalled(cfg.get("nb_sae"), rule, k)
    tokens = "cls" if cfg.get("cls_token_only") else "patches" if cfg.get("use_patches_only") else None
    provenance = imported(NAME, file, architecture=architecture, model=cfg.get("model_name"), tokens=tokens)
    about["provenance"] = {**about.get("provenance", {}), **provenance}
    return build(file, weights, row_norm=_ROW_NORMS[norm], **about)


def write(dictionary: Dictionary, folder: Path, *, k: int | None = None, overwrite: bool = False) -> Path:
    """Write `weights.pt` and `config.json` as Prisma's `load_from_pretrained` reads them; the latents are unchanged.

    Raises:
        ConfigError: a threshold rule (give k), or a transcoder.
        PathExistsError: something is there and `overwrite` is False.
    """
    refuse(dictionary, NAME, row_norm=False)
    rule, chosen = rule_for(dictionary, k, ("relu", "top_k", "gated"), NAME)
    tensors = folded(dictionary, pre_bias=True)
    state: dict[str, Tensor] = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if rule == "gated":
        # Prisma's gated autoencoder also has a b_enc, which its encoder does not use.
        state |= {"b_gate": tensors["b_enc"], "r_mag": tensors["r_mag"], "b_mag": tensors["b_mag"]}
    norms = {ours: theirs for theirs, ours in _ROW_NORMS.items() if theirs is not None}
    cfg = {
        "architecture": "gated" if rule == "gated" else "standard",
        "model_name": dictionary.model,
        **_place(dictionary.site),
        "d_in": dictionary.d_in,
        # Prisma makes d_sae from a whole number of times d_in, or takes it where its version has the field.
        "expansion_factor": max(1, dictionary.d_sae // dictionary.d_in),
        "d_sae": dictionary.d_sae,
        "activation_fn_str": "topk" if rule == "top_k" else "relu",
        "activation_fn_kwargs": {"k": chosen} if rule == "top_k" else {},
        "normalize_activations": norms[dictionary.row_norm],
        "initialization_method": "independent",
        "nb_sae": remembered(dictionary, threshold=True),
    }
    new_folder(folder, overwrite=overwrite)
    write_torch(folder / WEIGHTS, state)
    write_json(folder / CONFIG, {name: value for name, value in cfg.items() if value is not None})
    return folder


def _tensors(state: dict[str, Any], architecture: str, file: Path) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int | str, ...]] = {
        "W_enc": ("d_in", "d_sae"),
        "b_enc": ("d_sae",),
        "W_dec": ("d_sae", "d_in"),
        "b_dec": ("d_in",),
    }
    if architecture == "standard":
        return take(state, shapes, file)
    gate: dict[str, tuple[int | str, ...]] = dict.fromkeys(("b_gate", "r_mag", "b_mag"), ("d_sae",))
    weights = take(state, {**shapes, **gate}, file, optional=("b_enc",))
    weights["b_enc"] = weights.pop("b_gate")
    return weights


def _rule(cfg: dict[str, Any], architecture: str, told: Told, file: Path) -> tuple[str, int | None]:
    activation = cfg.get("activation_fn_str", "relu")
    if architecture == "gated" and activation == "relu":
        return "gated", None
    if activation == "relu":
        return "relu", None
    if activation == "topk" and architecture == "standard":
        k = (cfg.get("activation_fn_kwargs") or {}).get("k", told.k)
        if k is None:
            raise FormatError(f"{file}: the configuration states no k. Give it: load_dictionary(…, k=…).")
        return "top_k", int(k)
    raise FormatError(f"{file} is {architecture} with activation {activation!r}; nb_sae reads relu and, plain, topk.")


def _site(cfg: dict[str, Any]) -> str | None:
    if isinstance(cfg.get("hook_point"), str):
        return cfg["hook_point"]
    layer, subtype = cfg.get("hook_point_layer"), cfg.get("layer_subtype")
    return f"blocks.{layer}.{subtype}" if isinstance(layer, int) and isinstance(subtype, str) else None


def _place(site: str | None) -> dict[str, Any]:
    """Layer and subtype of a site `blocks.<layer>.<subtype>`."""
    parts = (site or "").split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdigit():
        return {"hook_point_layer": int(parts[1]), "layer_subtype": parts[2]}
    return {}
