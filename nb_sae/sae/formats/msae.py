"""The MSAE authors' `.pth`: weights and statistics inside, the configuration in the file's name.

Source:
    Zaigrajew et al. 2025, arXiv:2502.20578; the public code's `sae.load_model` and `sae.SAE`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nb_sae.errors import ConfigError, FormatError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats.common import (
    Told,
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

NAME = "msae"
_BATCH = "BatchTopKReLU"
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "pre_bias": ("d",),
    "encoder": ("d", "N"),
    "latent_bias": ("N",),
    "decoder": ("N", "d"),
}
_NAME = re.compile(
    r"(?P<d_sae>\d+)_(?P<d_in>\d+)_(?P<activation>[A-Za-z]+)(_(?P<k>[\d.]+))?(_(?P<levels>UW|RW))?"
    r"_(?P<tied>True|False)_(?P<normalize>True|False)_(?P<soft_cap>[\d.]+)(_(?P<data>.+))?"
)


@dataclass(frozen=True)
class FileName:
    """What the name `N_d_ACTIVATION_k[_RW|_UW]_tied_normalize_softcap_dataset.pth` says."""

    d_sae: int
    d_in: int
    activation: str
    k: int | None
    levels: str | None
    tied: bool
    normalize: bool
    soft_cap: float
    data: str | None

    @classmethod
    def parse(cls, path: Path) -> FileName:
        """Read the name of a file.

        Raises:
            FormatError: the name is not of this form.
        """
        found = _NAME.fullmatch(path.name.split(".pt")[0])
        if found is None:
            raise FormatError(
                f"{path.name} does not state the configuration, which the authors keep in the file's name: "
                "N_d_ACTIVATION_k[_RW|_UW]_tied_normalize_softcap_dataset.pth, such as "
                "6144_768_TopKReLU_64_RW_False_False_0.0_cc3m.pth. Give the file its first name back."
            )
        # For ReLU the number is the weight of the L1 loss; only a top-k rule has a k.
        k = int(float(found["k"])) if found["k"] and "TopK" in found["activation"] else None
        return cls(
            d_sae=int(found["d_sae"]),
            d_in=int(found["d_in"]),
            activation=found["activation"],
            k=k,
            levels=found["levels"],
            tied=found["tied"] == "True",
            normalize=found["normalize"] == "True",
            soft_cap=float(found["soft_cap"]),
            data=found["data"],
        )


def owns_content(content: Any) -> bool:
    """Whether a loaded file is one of the authors' checkpoints."""
    return isinstance(content, dict) and {"model", "mean_center", "scaling_factor"} <= content.keys()


def read(path: Path, told: Told) -> Dictionary:
    """Read a `.pth` of the authors; x' = (x − mean) · scale is folded, the latents are theirs.

    Raises:
        FormatError: a soft cap, another activation, per-row normalisation of shifted rows, or a damaged file.
    """
    content = read_torch(path, told)
    if not owns_content(content):
        raise FormatError(f"{path} is no checkpoint of the MSAE code: it lacks model, mean_center or scaling_factor.")
    name = FileName.parse(path)
    if name.soft_cap > 0:
        raise FormatError(f"{path} caps its latents (c·tanh(z/c), c={name.soft_cap:g}), which nb_sae does not.")
    if name.activation not in ("ReLU", "TopKReLU", _BATCH):
        raise FormatError(
            f"{path} has activation {name.activation!r}; nb_sae reads ReLU, TopKReLU and {_BATCH}. The others keep "
            "negative latents."
        )
    d, N = name.d_in, name.d_sae
    shapes = {n: tuple({"d": d, "N": N}[str(s)] for s in shape) for n, shape in _SHAPES.items()}
    if name.tied:
        del shapes["decoder"]
    state = take(content["model"], shapes, path, ignored=("latents_activation_frequency",))
    decoder = state["encoder"].T if name.tied else state["decoder"]
    mean = torch.as_tensor(content["mean_center"], dtype=torch.float32).reshape(-1).expand(d)
    scale = float(content["scaling_factor"])
    if name.normalize and (bool(mean.any()) or scale != 1.0):
        raise FormatError(f"{path} normalises every row after a shift and a scale; nb_sae has one or the other.")
    if not scale > 0:
        raise FormatError(f"{path} has scaling_factor={scale:g}; it must be above 0.")
    weights = {
        "W_enc": state["encoder"] * scale,
        "b_enc": state["latent_bias"],
        "W_dec": decoder / scale,
        "b_dec": state["pre_bias"] / scale + mean,
    }
    k = name.k if name.k is not None else told.k if name.activation != "ReLU" else None
    rule = "relu" if name.activation == "ReLU" else "top_k"
    if rule == "top_k" and k is None:
        raise FormatError(f"{path.name} states no k after {name.activation}. Give it: load_dictionary(…, k=…).")
    about: dict[str, Any] = {"budgets": None if k is None else (k,), "sparsity": rule}
    if name.activation == _BATCH:
        about["sparsity"] = "batch_top_k"
        if told.threshold is None:
            warn(
                f"{path}: the authors' BatchTopK keeps no threshold. Every positive latent is active, as in their full "
                "latents; give one: load_dictionary(…, threshold=…), or encode(x, k=…)."
            )
        weights["threshold"] = per_latent(told.threshold or 0.0, N)
    about |= recalled(content.get("nb_sae"), about["sparsity"], k)
    if bool(mean.any()):
        about.setdefault("mean", mean.clone())
    provenance = imported(NAME, path, levels=name.levels, data=name.data, scaling_factor=scale)
    about["provenance"] = {**about.get("provenance", {}), **provenance}
    return build(path, weights, row_norm="layer_norm" if name.normalize else None, **about)


def write(dictionary: Dictionary, path: Path, *, k: int | None = None, overwrite: bool = False) -> Path:
    """Write a `.pth` for the authors' `load_model`, in model units (mean 0, scale 1); the latents are unchanged.

    Args:
        dictionary: A top-k or ReLU one.
        path: A folder, in which the file gets the name that the authors' code parses, or a file of such a name.
        k: The k after the activation; None: the largest budget. The authors name their files by the smallest.
        overwrite: Write over a file.

    Returns:
        The file.

    Raises:
        ConfigError: another rule, a transcoder, or a file whose name says something else.
        PathExistsError: something is there and `overwrite` is False.
    """
    refuse(dictionary, NAME, row_norm=dictionary.row_norm == "constant_norm")
    rule, chosen = rule_for(dictionary, k, ("relu", "top_k"), NAME)
    levels = "_UW" if rule == "top_k" and len(dictionary.budgets or ()) > 1 else ""
    normalize = dictionary.row_norm == "layer_norm"
    activation = f"TopKReLU_{chosen}{levels}" if rule == "top_k" else "ReLU_0"
    stem = f"{dictionary.d_sae}_{dictionary.d_in}_{activation}_False_{normalize}_0.0"
    if path.suffix not in (".pt", ".pth"):
        path = path / f"{stem}_nb-sae.pth"
    given = FileName.parse(path)
    wanted = FileName.parse(Path(stem + ".pth"))
    differing = [n for n in ("d_sae", "d_in", "activation", "k", "tied", "normalize", "soft_cap")
                 if getattr(given, n) != getattr(wanted, n)]  # fmt: skip
    if differing:
        raise ConfigError(f"The name {path.name} says otherwise about {', '.join(differing)}. Name it {stem}_….pth.")
    tensors = folded(dictionary, pre_bias=True)
    state: dict[str, Tensor] = {
        "pre_bias": tensors["b_dec"],
        "encoder": tensors["W_enc"],
        "latent_bias": tensors["b_enc"],
        "decoder": tensors["W_dec"],
        "latents_activation_frequency": torch.zeros(dictionary.d_sae, dtype=torch.int64),
    }
    content = {
        "model": state,
        "mean_center": torch.zeros(dictionary.d_in),
        "scaling_factor": 1.0,
        "target_norm": 0.0,
        "nb_sae": remembered(dictionary, threshold=True),
    }
    write_torch(new_file(path, overwrite=overwrite), content)
    return path
