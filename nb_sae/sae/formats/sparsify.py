"""sparsify (EleutherAI): `cfg.json` beside `sae.safetensors`.

Source:
    eai-sparsify 1.3.3, `SparseCoder.load_from_disk`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nb_sae.atomic import read_json, write_json
from nb_sae.errors import ConfigError, FormatError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats.common import (
    Told,
    build,
    folded,
    imported,
    new_folder,
    read_safetensors,
    recalled,
    refuse,
    remembered,
    rule_for,
    take,
    write_safetensors,
)

NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "encoder.weight": ("num_latents", "d_in"),
    "encoder.bias": ("num_latents",),
    "W_dec": ("num_latents", "d_in"),
    "b_dec": ("d_in",),
}


def owns(folder: Path) -> bool:
    """Whether a folder holds one of its sparse coders."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, told: Told) -> Dictionary:
    """Read the folder of one hook point.

    Raises:
        FormatError: GroupMax, a skip connection, or files that do not fit together.
    """
    cfg = read_json(folder / CONFIG)
    if cfg.get("activation", "topk") != "topk":
        raise FormatError(f"{folder} has activation {cfg['activation']!r}; nb_sae has its topk only.")
    if cfg.get("skip_connection"):
        raise FormatError(f"{folder} has a skip connection (W_skip), which nb_sae has not: x̂ would lack a part.")
    tensors = take(read_safetensors(folder / WEIGHTS), _SHAPES, folder / WEIGHTS)
    transcode = bool(cfg.get("transcode", False))
    if cfg.get("d_in") is not None and cfg["d_in"] != len(tensors["b_dec"]):
        raise FormatError(f"{folder / CONFIG} has d_in={cfg['d_in']}; its tensors have {len(tensors['b_dec'])}.")
    k = cfg.get("k", told.k)
    if k is None:
        raise FormatError(f"{folder / CONFIG} does not state k. Give it: load_dictionary(…, k=…).")
    weights = {"W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"]}
    weights |= {"W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    about: dict[str, Any] = {"budgets": (int(k),), **recalled(cfg.get("nb_sae"), "top_k", int(k))}
    provenance = imported(NAME, folder, transcode=transcode or None, multi_topk=cfg.get("multi_topk") or None)
    about["provenance"] = {**about.get("provenance", {}), **provenance}
    # The folder is named after the hook point; a transcoder's target is the output of the same module.
    about.setdefault("site", folder.name)
    return build(folder, weights, sparsity="top_k", pre_bias=not transcode, **about)


def write(dictionary: Dictionary, folder: Path, *, k: int | None = None, overwrite: bool = False) -> Path:
    """Write a folder that `Sae.load_from_disk` reads; the latents are unchanged.

    Raises:
        ConfigError: not a top-k rule (give k), normalised rows, or a transcoder to another width.
        PathExistsError: something is there and `overwrite` is False.
    """
    refuse(dictionary, NAME, transcoder=False)
    if dictionary.d_in != dictionary.d_out:
        raise ConfigError(
            f"sparsify has no transcoders from width {dictionary.d_in} to {dictionary.d_out}, only to the same width. "
            "Use format='saelens' or 'nb_sae'."
        )
    _, chosen = rule_for(dictionary, k, ("top_k",), NAME)
    tensors = folded(dictionary, pre_bias=dictionary.pre_bias)
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, dictionary.d_sae // dictionary.d_in),
        "normalize_decoder": True,
        "num_latents": dictionary.d_sae,
        "k": chosen,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": not dictionary.pre_bias,
        "d_in": dictionary.d_in,
        "nb_sae": remembered(dictionary, threshold=True),
    }
    new_folder(folder, overwrite=overwrite)
    write_safetensors(
        folder / WEIGHTS,
        {
            "encoder.weight": tensors["W_enc"].T,
            "encoder.bias": tensors["b_enc"],
            "W_dec": tensors["W_dec"],
            "b_dec": tensors["b_dec"],
        },
    )
    write_json(folder / CONFIG, cfg)
    return folder
