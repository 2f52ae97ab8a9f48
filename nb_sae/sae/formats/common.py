"""What every format needs: files read without running code from them, and a dictionary rewritten for other rules."""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from nb_sae.atomic import write_atomically
from nb_sae.errors import ConfigError, FormatError, InputNotFoundError, PathExistsError, ShapeError
from nb_sae.sae.config import BUDGETED
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.residual import rounds

EQUAL_NORMS = 1e-3
"""Decoder rows whose norms differ by less than this share are of one norm: rescaling them keeps a top-k selection."""


@dataclass(frozen=True)
class Told:
    """What the user says about a file that does not say it itself."""

    k: int | None = None
    threshold: float | None = None
    trust_pickle: bool = False


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        InputNotFoundError: no such file.
        FormatError: truncated or another format.
    """
    if not path.is_file():
        raise InputNotFoundError(f"{path.parent} holds no {path.name}. Check the path.")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"{path} cannot be read ({error}). It is truncated or no safetensors file: get it again."
        ) from error


def read_torch(path: Path, told: Told) -> Any:
    """What `torch.save` wrote: tensors and plain values; other Python objects only with `trust_pickle`.

    Raises:
        InputNotFoundError: no such file.
        FormatError: damaged, or it holds Python objects and `trust_pickle` is False.
    """
    if not path.is_file():
        raise InputNotFoundError(f"{path.parent} holds no {path.name}. Check the path.")
    try:
        with torch.serialization.safe_globals(_plain_numpy()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        if not told.trust_pickle:
            raise FormatError(
                f"{path} is damaged or holds Python objects besides tensors ({_first_line(error)}). Reading such "
                "objects can run code that is hidden in the file, so it is refused. If you trust where the file comes "
                "from: load_dictionary(…, trust_pickle=True)."
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_lenient_pickle())
    except Exception as error:
        raise FormatError(f"{path} cannot be read ({_first_line(error)}). Get the file again.") from error


class StandIn:
    """An object whose class is not installed: only its attributes are kept."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def _lenient_pickle() -> ModuleType:
    """The pickle module, with a `StandIn` in place of each class that cannot be imported."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                return type(name, (StandIn,), {"__module__": module})

    lenient = ModuleType("lenient_pickle")
    lenient.__dict__.update({"Unpickler": Unpickler, "load": pickle.load, "loads": pickle.loads})
    return lenient


def _plain_numpy() -> list[Any]:
    """What NumPy's numbers and arrays are pickled with; none of it runs code."""
    core = sys.modules.get("numpy._core.multiarray") or sys.modules["numpy.core.multiarray"]
    kinds = [getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Float16DType", "Int64DType")]
    plain: list[Any] = [np.ndarray, np.dtype, *kinds]
    for name in ("_reconstruct", "scalar"):
        function = getattr(core, name)
        # The module was called numpy.core before NumPy 2; files of either carry that name.
        plain += [(function, f"{module}.{name}") for module in ("numpy.core.multiarray", "numpy._core.multiarray")]
    return plain


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def take(
    tensors: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int | str]],
    source: Path | str,
    *,
    optional: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> dict[str, Tensor]:
    """The named tensors in fp32, after a check that they are there, fit together, and that nothing else is.

    Args:
        tensors: What a file holds.
        shapes: Names with their shapes; a word stands for the same number everywhere.
        source: File, for the message.
        optional: Names of `shapes` that may be missing.
        ignored: Names that may be there and are not needed.

    Raises:
        FormatError: a tensor is missing, unknown or of another shape. An unknown one is refused because it would be a
            part of the dictionary that is left out.
    """
    missing = [name for name in shapes if name not in tensors and name not in optional]
    if missing:
        raise FormatError(f"{source} lacks {', '.join(missing)}; it holds {', '.join(sorted(map(str, tensors)))}.")
    unknown = [str(name) for name in tensors if name not in shapes and name not in ignored]
    if unknown:
        raise FormatError(
            f"{source} holds {', '.join(unknown)}, which this nb_sae does not know: it is of a newer version or "
            "another kind of dictionary. Update nb_sae, or convert it with the library that wrote it."
        )
    sizes: dict[str, int] = {}
    taken = {}
    for name, expected in shapes.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else None
        pairs = zip(expected, shape or (), strict=False)
        known = tuple(sizes.setdefault(n, size) if isinstance(n, str) else n for n, size in pairs)
        if shape is None or len(shape) != len(expected) or shape != known:
            stated = ", ".join(f"{n}={sizes[n]}" if n in sizes else str(n) for n in expected)
            raise FormatError(f"{source}: {name} is {shape or type(tensor).__name__}; expected ({stated}).")
        taken[name] = tensor.float()
    return taken


def per_latent(threshold: Tensor | float, d_sae: int) -> Tensor:
    """A threshold for every latent, from one number or one per latent; below 0 it is 0, where ReLU cuts anyway."""
    values = torch.as_tensor(threshold, dtype=torch.float32).reshape(-1).clamp_min(0.0)
    return values.expand(d_sae).clone() if len(values) == 1 else values


def at_least(threshold: Tensor | float) -> Tensor:
    """The threshold that lets `pre ≥ threshold` pass where the rule is `pre > threshold`."""
    values = torch.as_tensor(threshold, dtype=torch.float32)
    return torch.nextafter(values, torch.full_like(values, -torch.inf))


def build(source: Path | str, weights: dict[str, Tensor], **about: Any) -> Dictionary:
    """A dictionary from what a file says, its faults reported as faults of the file."""
    if (scale := about.pop("level_scale", None)) is not None:
        weights = {**weights, "level_scale": scale}
    try:
        return Dictionary({name: tensor.contiguous() for name, tensor in weights.items()}, **about)
    except (ShapeError, ConfigError) as error:
        raise FormatError(f"{source}: {error}") from error


def imported(name: str, path: Path, **about: Any) -> dict[str, Any]:
    """What the provenance says of a file that was read."""
    return {"imported_from": {"format": name, "file": path.name, **{k: v for k, v in about.items() if v is not None}}}


def warn(text: str) -> None:
    """Tell what a file leaves open."""
    warnings.warn(text, UserWarning, stacklevel=5)


def with_unit_rows(dictionary: Dictionary) -> Dictionary:
    """The same reconstructions with decoder rows of norm 1: latents become lengths in the model's units.

    Raises:
        ConfigError: a top-k rule over rows of unequal norm, whose selection would change.
    """
    norm = dictionary.W_dec.norm(dim=-1).clamp_min(1e-12)
    if dictionary.sparsity == "top_k" and float(norm.max() / norm.min()) > 1 + EQUAL_NORMS:
        raise ConfigError(
            f"The decoder rows have norms from {norm.min():.3g} to {norm.max():.3g}. With unit rows the top k would be "
            "others, and so the reconstructions. Keep the rows as they are (unit_rows=False)."
        )
    weights = dictionary._tensors()
    weights |= {"W_enc": weights["W_enc"] * norm, "W_dec": weights["W_dec"] / norm[:, None]}
    for name in ("b_enc", "threshold", "b_mag"):
        if name in weights:
            weights[name] = weights[name] * norm
    return Dictionary(weights, **dictionary._about())


def at_budget(dictionary: Dictionary, k: int | None) -> Dictionary:
    """The same dictionary for whoever takes its top k: the factor of that k goes into the weights.

    Other libraries know no factors of budgets. Budgets above k are left out, those below keep theirs, relative to k's.
    """
    if dictionary.residual:
        budgets = dictionary.budgets or (1,)
        _, first = rounds(budgets, budgets[-1], dictionary.looks)[0]
        if k is None or k > first:
            raise ConfigError(
                f"Each round of this dictionary encodes what those before it left, which no other library does. Write "
                f"its first round (k={first}), or train with SAEConfig.msae(residual=False)."
            )
        alone = {"budgets": (k,), "residual": False, "looks": 1}
        return Dictionary(dictionary._tensors(), **{**dictionary._about(), **alone})
    if dictionary.level_scale is None or k is None or not dictionary.budgets or not 1 <= k <= dictionary.d_sae:
        return dictionary
    budgets = (*(budget for budget in dictionary.budgets if budget < k), k)
    factor = dictionary.scale_at(k)
    weights = dictionary._tensors()
    weights |= {name: weights[name] * factor for name in ("W_enc", "b_enc", "threshold") if name in weights}
    weights["level_scale"] = torch.tensor([dictionary.scale_at(budget) / factor for budget in budgets])
    return Dictionary(weights, **{**dictionary._about(), "budgets": budgets})


def folded(dictionary: Dictionary, *, pre_bias: bool) -> dict[str, Tensor]:
    """Its tensors for an encoder that takes `b_dec` off its input, or does not; the latents stay the same."""
    tensors = {name: tensor.cpu() for name, tensor in dictionary._tensors().items() if name != "level_scale"}
    if dictionary.pre_bias != pre_bias:
        shift = tensors["b_dec"] @ tensors["W_enc"] * (1 if pre_bias else -1)
        tensors["b_enc"] = tensors["b_enc"] + shift
        if "b_mag" in tensors:
            tensors["b_mag"] = tensors["b_mag"] + shift * tensors["r_mag"].exp()
    return tensors


def rule_for(dictionary: Dictionary, k: int | None, allowed: Sequence[str], name: str) -> tuple[str, int | None]:
    """What makes a latent active in the exported file: the trained rule, or the top k where the user gives k.

    Raises:
        ConfigError: the format has no such rule, or k is out of range.
    """
    if k is not None:
        if dictionary.sparsity == "gated":
            raise ConfigError(f"k={k} was given for a gated dictionary, whose latents have no top-k rule. Leave k out.")
        if not 1 <= k <= dictionary.d_sae:
            raise ConfigError(f"k={k} is outside [1, d_sae={dictionary.d_sae}].")
        rule, chosen = "top_k", k
    else:
        rule = dictionary.sparsity
        chosen = dictionary.budgets[-1] if dictionary.budgets else None
    if rule not in allowed:
        ways = " Give k= to write it as a top-k one." if "top_k" in allowed and rule != "gated" else ""
        raise ConfigError(f"{name} has no {rule!r} dictionaries (it has {', '.join(allowed)}).{ways}")
    return rule, chosen


def refuse(dictionary: Dictionary, name: str, *, transcoder: bool = True, row_norm: bool = True) -> None:
    """Refuse what a format cannot hold (each True says that it cannot)."""
    if transcoder and dictionary.is_transcoder:
        raise ConfigError(f"{name} has no transcoders. Write this one with format='saelens' or 'nb_sae'.")
    if row_norm and dictionary.row_norm is not None:
        raise ConfigError(
            f"{name} does not normalise rows, which this dictionary needs (row_norm={dictionary.row_norm!r}). "
            "Write it with format='saelens', 'prisma' or 'nb_sae'."
        )


def remembered(dictionary: Dictionary, *, threshold: bool = False) -> dict[str, Any]:
    """What other formats have no place for; `recalled` reads it back.

    Args:
        threshold: Also the thresholds, where the format's tensors hold none.
    """
    from nb_sae import __version__

    about = {key: value for key, value in dictionary._about().items() if key != "mean"}
    about["nb_sae_version"] = __version__
    scale = dictionary.level_scale
    about["level_scale"] = None if scale is None else scale.tolist()
    about["mean"] = None if dictionary.mean is None else dictionary.mean.tolist()
    if threshold and dictionary.threshold is not None:
        about["threshold"] = dictionary.threshold.tolist()
    return about


def recalled(about: Any, rule: str, k: int | None) -> dict[str, Any]:
    """The settings that `remembered` put into a file, where they agree with the file's own rule.

    The file's rule wins: budgets above its k are left out, so that `encode` gives what the file's library gives.
    """
    if not isinstance(about, dict) or "nb_sae_version" not in about:
        return {}
    kept = {name: about.get(name) for name in ("site", "model", "revision", "target", "mean_square_distance")}
    kept["provenance"] = dict(about.get("provenance") or {})
    if about.get("mean") is not None:
        kept["mean"] = torch.tensor(about["mean"])
    if about.get("widths"):
        kept["widths"] = tuple(about["widths"])
    budgets = tuple(about.get("budgets") or ())
    if rule == "top_k" and k is not None and about.get("sparsity") in BUDGETED:
        kept["budgets"] = (*(b for b in budgets if b < k), k)
    elif rule in ("jump_relu", "batch_top_k") and about.get("sparsity") == "batch_top_k":
        kept |= {"sparsity": "batch_top_k", "budgets": budgets or None}
    if about.get("level_scale") and kept.get("budgets") == budgets:
        kept["level_scale"] = torch.tensor(about["level_scale"])
    return kept


def new_folder(path: Path, *, overwrite: bool) -> Path:
    """Make a folder to write into.

    Raises:
        PathExistsError: something is there and `overwrite` is False.
    """
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise PathExistsError(f"{path} exists. Choose another path or pass overwrite=True.")
    path.mkdir(parents=True, exist_ok=True)
    return path


def new_file(path: Path, *, overwrite: bool) -> Path:
    """Make room for one file.

    Raises:
        PathExistsError: something is there and `overwrite` is False, or it is a folder.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise PathExistsError(f"{path} exists. Choose another path or pass overwrite=True.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors into one file, whole or not at all."""
    content = safetensors_bytes(_own_storage(dict(tensors)))
    write_atomically(path, [content])


def write_torch(path: Path, content: dict[str, Any]) -> None:
    """What `torch.save` writes, whole or not at all; every tensor with storage of its own."""
    buffer = io.BytesIO()
    torch.save(_own_storage(content), buffer)
    write_atomically(path, [buffer.getvalue()])


def _own_storage(content: Any) -> Any:
    if isinstance(content, Tensor):
        return content.detach().cpu().contiguous().clone()
    if isinstance(content, dict):
        return {name: _own_storage(value) for name, value in content.items()}
    return content
