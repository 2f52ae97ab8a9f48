"""SAELens directories: `cfg.json` beside `sae_weights.safetensors`, inference and training ones.

Source:
    SAELens 6, `SAE.load_from_disk`, `TrainingSAE.save_model`, `save_inference_model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from nb_sae.atomic import read_json, write_json
from nb_sae.errors import ConfigError, FormatError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats.common import (
    Told,
    build,
    folded,
    imported,
    new_folder,
    per_latent,
    read_safetensors,
    recalled,
    remembered,
    rule_for,
    take,
    warn,
    write_safetensors,
)

NAME = "saelens"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FORMAT_VERSION = "6.0.0"
"""Stated as `sae_lens_version`: without a version from 6 on, SAELens reads a directory by its older rules."""

_RULES = {
    "standard": "relu",
    "topk": "top_k",
    "batchtopk": "batch_top_k",
    "matryoshka_batchtopk": "batch_top_k",
    "jumprelu": "jump_relu",
    "gated": "gated",
    "transcoder": "relu",
    "jumprelu_transcoder": "jump_relu",
}
_ROW_NORMS = {"layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
_FOLDED_NORMS = ("none", "expected_average_only_in", "covariance_whitening")
_LEGACY = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}


def owns(folder: Path) -> bool:
    """Whether a folder is a SAELens directory."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, told: Told) -> Dictionary:
    """Read an inference directory or a training checkpoint.

    A BatchTopK checkpoint gives the dictionary that SAELens would save for inference: its threshold estimate, decoder
    norms folded where the selection was rescaled by them, and the scale of the activations folded where the checkpoint
    holds it.

    Raises:
        FormatError: a kind of SAE that nb_sae has not, or files that do not fit together.
    """
    cfg, metadata = _settings(read_json(folder / CONFIG))
    architecture = cfg.get("architecture", "standard")
    rule = _RULES.get(architecture)
    if rule is None:
        raise FormatError(
            f"{folder / CONFIG} has architecture {architecture!r}; nb_sae reads {', '.join(_RULES)}. Use it in SAELens."
        )
    norm = cfg.get("normalize_activations") or "none"
    if norm not in _ROW_NORMS and norm not in _FOLDED_NORMS:
        raise FormatError(f"{folder / CONFIG} has normalize_activations={norm!r}, which this nb_sae does not know.")
    transcoder = "transcoder" in architecture
    pre_bias = bool(cfg.get("apply_b_dec_to_input", True)) and not transcoder
    if transcoder and norm in _ROW_NORMS:
        raise FormatError(f"{folder} is a transcoder with {norm}, whose reconstruction nb_sae cannot undo.")
    weights = _tensors(folder, cfg, rule, told)
    if norm == "covariance_whitening":
        _fold_whitening(folder, weights, pre_bias)
    k = _budget(folder, cfg, rule, told)
    about: dict[str, Any] = {"budgets": None if k is None else (k,), "sparsity": rule, "widths": _widths(folder, cfg)}
    about |= {"site": metadata.get("hook_name"), "target": metadata.get("hook_name_out") if transcoder else None}
    about |= recalled(metadata.get("nb_sae"), rule, k)
    provenance = imported(
        NAME,
        folder,
        version=metadata.get("sae_lens_version"),
        architecture=architecture,
        model=metadata.get("model_name"),
        reshape=cfg.get("reshape_activations"),
    )
    about["provenance"] = {**about.get("provenance", {}), **provenance}
    return build(folder, weights, pre_bias=pre_bias, row_norm=_ROW_NORMS.get(norm), **about)


def write(dictionary: Dictionary, folder: Path, *, k: int | None = None, overwrite: bool = False) -> Path:
    """Write a directory that `SAE.load_from_disk` reads; latents and thresholds are unchanged.

    A BatchTopK dictionary becomes "jumprelu" with its thresholds, as SAELens saves its own. Budgets, widths and what
    else has no place there are kept in `metadata.nb_sae`.

    Raises:
        ConfigError: a top-k or gated transcoder, which SAELens has not.
        PathExistsError: something is there and `overwrite` is False.
    """
    rule, chosen = rule_for(dictionary, k, ("relu", "top_k", "batch_top_k", "jump_relu", "gated"), NAME)
    transcoder = dictionary.target is not None or dictionary.d_in != dictionary.d_out
    architecture = {"relu": "standard", "top_k": "topk", "gated": "gated"}.get(rule, "jumprelu")
    if transcoder:
        if rule in ("top_k", "gated") or dictionary.row_norm is not None:
            raise ConfigError(
                f"SAELens has no {rule!r} transcoders{' with row_norm' if dictionary.row_norm else ''}; it has relu "
                "and jump_relu ones. Use format='nb_sae'."
            )
        architecture = "transcoder" if rule == "relu" else "jumprelu_transcoder"
    tensors = folded(dictionary, pre_bias=dictionary.pre_bias and not transcoder)
    if rule == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    if rule in ("relu", "top_k"):
        tensors.pop("threshold", None)
    norms = {ours: theirs for theirs, ours in _ROW_NORMS.items()}
    cfg = {
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.pre_bias and not transcoder,
        "normalize_activations": norms.get(dictionary.row_norm or "", "none"),
        "reshape_activations": "none",
        "metadata": _metadata(dictionary, rule),
        "architecture": architecture,
    }
    if rule == "top_k":
        cfg |= {"k": chosen, "rescale_acts_by_decoder_norm": False}
    if transcoder:
        cfg["d_out"] = dictionary.d_out
    new_folder(folder, overwrite=overwrite)
    write_safetensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, cfg)
    return folder


def _metadata(dictionary: Dictionary, rule: str) -> dict[str, Any]:
    metadata = {
        "sae_lens_version": FORMAT_VERSION,
        "sae_lens_training_version": None,
        "model_name": dictionary.model,
        "hook_name": dictionary.site,
        "hook_head_index": None,
        "nb_sae": remembered(dictionary, threshold=rule in ("relu", "top_k")),
    }
    if dictionary.target is not None:
        metadata["hook_name_out"] = dictionary.target
    if dictionary.widths is not None:
        metadata["matryoshka_widths"] = list(dictionary.widths)
    return metadata


def _settings(cfg: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, metadata), the flat ones from before version 6 brought to the present names."""
    metadata = cfg.get("metadata") or {}
    version = str(cfg.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 6:
        return cfg, metadata
    cfg = {_LEGACY.get(name, name): value for name, value in cfg.items()}
    if isinstance(cfg.get("normalize_activations"), bool):
        cfg["normalize_activations"] = "expected_average_only_in" if cfg["normalize_activations"] else "none"
    chosen = (cfg.get("activation_fn_kwargs") or {}).get("k")
    if cfg.get("activation_fn") == "topk" and chosen is not None:
        cfg |= {"architecture": "topk", "k": chosen}
    elif cfg.get("activation_fn") not in (None, "relu", "topk"):
        raise FormatError(f"activation_fn={cfg['activation_fn']!r} is not among the rules of nb_sae (relu, topk).")
    return cfg, {**{name: cfg.get(name) for name in ("hook_name", "model_name", "sae_lens_version")}, **metadata}


def _tensors(folder: Path, cfg: dict[str, Any], rule: str, told: Told) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    found = read_safetensors(path)
    if "log_threshold" in found:  # JumpReLU checkpoints before 6.48
        found["threshold"] = found.pop("log_threshold").exp()
    scaling = found.pop("scaling_factor", None)
    d_in, d_sae = cfg.get("d_in", "d_in"), cfg.get("d_sae", "d_sae")
    d_out = cfg.get("d_out", "d_out") if "transcoder" in str(cfg.get("architecture")) else d_in
    shapes: dict[str, tuple[int | str, ...]] = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
    }
    if rule == "gated":
        del shapes["b_enc"]
        shapes |= {"b_gate": (d_sae,), "b_mag": (d_sae,), "r_mag": (d_sae,)}
    if rule == "jump_relu":
        shapes["threshold"] = (d_sae,)
    if rule == "batch_top_k":
        shapes["topk_threshold"] = ()
    weights = take(found, shapes, path)
    if rule == "gated":
        weights["b_enc"] = weights.pop("b_gate")
    if scaling is not None and cfg.get("finetuning_scaling_factor"):
        weights["W_dec"] = weights["W_dec"] * scaling.float()[:, None]
    rescaled = bool(cfg.get("rescale_acts_by_decoder_norm", False))
    if cfg.get("normalize_activations") == "expected_average_only_in":
        _fold_scale(folder, weights, rescaled)
    if rescaled:  # the selection is by pre · ‖row‖ and the decoder divides by it: unit rows, exactly
        norm = weights["W_dec"].norm(dim=-1).clamp_min(1e-8)
        weights |= {"W_enc": weights["W_enc"] * norm, "b_enc": weights["b_enc"] * norm}
        weights["W_dec"] = weights["W_dec"] / norm[:, None]
    if "topk_threshold" in weights:
        threshold = float(weights.pop("topk_threshold"))
        if threshold <= 0 and told.threshold is not None:
            threshold = told.threshold
        elif threshold <= 0:
            warn(
                f"{path}: topk_threshold is {threshold:g}, never estimated: every positive latent is active. Give one: "
                "load_dictionary(…, threshold=…), or encode(x, k=…)."
            )
        weights["threshold"] = per_latent(threshold, weights["W_dec"].shape[0])
    if rule == "jump_relu":
        weights["threshold"] = per_latent(weights["threshold"], weights["W_dec"].shape[0])
    return weights


def _fold_scale(folder: Path, weights: dict[str, Tensor], rescaled: bool) -> None:
    """The scale of the activations, which a training checkpoint keeps beside its weights."""
    beside = folder / "activation_scaler.json"
    scale = read_json(beside).get("scaling_factor") if beside.is_file() else None
    if scale is None:
        _warn_of_norm(folder, "expected_average_only_in")
        return
    weights["W_enc"] = weights["W_enc"] * scale
    weights["W_dec"] = weights["W_dec"] / scale
    weights["b_dec"] = weights["b_dec"] / scale
    if rescaled and "topk_threshold" in weights:  # it is in units of pre · ‖row‖
        weights["topk_threshold"] = weights["topk_threshold"] / scale


def _fold_whitening(folder: Path, weights: dict[str, Tensor], pre_bias: bool) -> None:
    """z = (x − mean) M and back, which a training checkpoint keeps beside its weights."""
    path = folder / "activation_whitening.safetensors"
    if not path.is_file():
        _warn_of_norm(folder, "covariance_whitening")
        return
    white = take(read_safetensors(path), {"mean": ("d",), "matrix": ("d", "d"), "inverse_matrix": ("d", "d")}, path)
    weights["W_enc"] = white["matrix"] @ weights["W_enc"]
    if not pre_bias:
        shift = white["mean"] @ weights["W_enc"]
        weights["b_enc"] = weights["b_enc"] - shift
        if "b_mag" in weights:
            weights["b_mag"] = weights["b_mag"] - shift * weights["r_mag"].exp()
    weights["W_dec"] = weights["W_dec"] @ white["inverse_matrix"]
    weights["b_dec"] = weights["b_dec"] @ white["inverse_matrix"] + white["mean"]


def _warn_of_norm(folder: Path, norm: str) -> None:
    warn(
        f"{folder} was trained with normalize_activations={norm!r} and does not hold the statistics: its latents "
        "are those of SAELens for the same rows, so give it rows as they were normalised in training."
    )


def _budget(folder: Path, cfg: dict[str, Any], rule: str, told: Told) -> int | None:
    if rule not in ("top_k", "batch_top_k"):
        return None
    k = cfg.get("k", told.k)
    if k is None:
        raise FormatError(f"{folder / CONFIG} does not state k. Give it: load_dictionary(…, k=…).")
    return max(1, round(float(k)))


def _widths(folder: Path, cfg: dict[str, Any]) -> tuple[int, ...] | None:
    """Matryoshka widths: in the settings of a checkpoint; for inference only beside them, in `runner_cfg.json`."""
    found = cfg.get("matryoshka_widths") or (cfg.get("metadata") or {}).get("matryoshka_widths")
    runner = folder / "runner_cfg.json"
    if not found and runner.is_file():
        settings = read_json(runner)
        sae = settings.get("sae")
        found = (sae if isinstance(sae, dict) else settings).get("matryoshka_widths")
    if not found:
        return None
    widths = sorted(int(width) for width in found)
    d_sae = int(cfg.get("d_sae", widths[-1]))
    return tuple(widths if widths[-1] == d_sae else [*widths, d_sae])
