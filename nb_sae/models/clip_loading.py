"""Finding and building an open_clip model: by name and tag, from the hub, or from a local folder or checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn

from nb_sae.errors import ConfigError, InputError, InputNotFoundError, NbSaeError, closest

PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")
_HUB, _FOLDER = "hf-hub:", "local-dir:"
_CONFIG_FILE = "open_clip_config.json"
_VOCABULARY_FILE = "bpe.txt.gz"
"""A vocabulary of the model's own, where the folder holds one."""


@dataclass(frozen=True)
class ClipParts:
    """What a CLIP is loaded as."""

    module: nn.Module
    preprocess: Callable[[Any], torch.Tensor] | None
    tokenizer: Callable[[list[str]], torch.Tensor] | None
    name: str


def load_parts(model: str, pretrained: str | None, *, device: torch.device, precision: str) -> ClipParts:
    """Build the model that `load_clip` was asked for by a string.

    Raises:
        ConfigError: Unknown name, tag or precision; an architecture without weights, or with another one's.
        InputNotFoundError: A folder or checkpoint is missing, or the weights cannot be downloaded.
        InputError: A folder or checkpoint cannot be read as this model.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r} is unknown. Choose one of {', '.join(PRECISIONS)}.")
    if model == "demo":
        return _demo(device=device, precision=precision)
    folder = Path(model.removeprefix(_FOLDER)).expanduser()
    if model.startswith(_FOLDER) or folder.is_dir():
        return _from_folder(folder, pretrained, device=device, precision=precision)
    if model.startswith(_HUB):
        if pretrained is not None:
            raise ConfigError(f"{model!r} brings its own weights; expected no pretrained={pretrained!r}. Leave it out.")
        return _build(model, None, name=model, device=device, precision=precision)
    return _from_name(model, pretrained, device=device, precision=precision)


def default_preprocess(module: nn.Module) -> Callable[[Any], torch.Tensor] | None:
    """The evaluation transform that open_clip recorded in a model it made; None for any other module."""
    settings = getattr(getattr(module, "visual", None), "preprocess_cfg", None)
    if not settings:
        return None
    return cast("Callable[[Any], torch.Tensor]", image_transform_v2(PreprocessCfg(**settings), is_train=False))


def _demo(*, device: torch.device, precision: str) -> ClipParts:
    from nb_sae.models.demo import demo_clip_folder

    return _from_folder(demo_clip_folder(), None, device=device, precision=precision, name="demo-clip")


def _from_folder(
    folder: Path, pretrained: str | None, *, device: torch.device, precision: str, name: str | None = None
) -> ClipParts:
    if pretrained is not None:
        raise ConfigError(
            f"Folder {folder.name!r} brings its own weights; expected no pretrained={pretrained!r}. To load a "
            "checkpoint into a known architecture, give the architecture's name as model."
        )
    config_file = folder / _CONFIG_FILE
    if not config_file.is_file():
        raise InputNotFoundError(
            f"Folder {folder} holds no {_CONFIG_FILE}; expected a model folder as open_clip saves it. "
            "For a bare checkpoint use load_clip('ViT-B-32', pretrained='path/to/checkpoint.safetensors')."
        )
    try:
        text = json.loads(config_file.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{config_file} is not an open_clip configuration: {error!r}; expected model_cfg with text_cfg. "
            "Save the model again with open_clip's push_to_hf_hub.save_for_hf."
        ) from error
    # open_clip would look for the vocabulary beside the working directory, not beside the configuration.
    vocabulary = folder / ((text.get("tokenizer_kwargs") or {}).get("bpe_path") or _VOCABULARY_FILE)
    return _build(
        f"{_FOLDER}{folder}",
        None,
        name=name or folder.resolve().name,
        device=device,
        precision=precision,
        vocabulary=vocabulary if vocabulary.is_file() else None,
    )


def _from_name(model: str, pretrained: str | None, *, device: torch.device, precision: str) -> ClipParts:
    known = open_clip.list_models()
    if model not in known:
        hub = f"A model on the Hugging Face hub is written '{_HUB}{model}'. " if "/" in model else ""
        raise ConfigError(
            f"{model!r} is no open_clip model and no folder. {closest(model, known)}{hub}"
            "List all with open_clip.list_models()."
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise ConfigError(
            f"{model!r} is an architecture without weights; expected pretrained=. Choose one of its tags, "
            f"{', '.join(tags) or 'of which there are none'}, or give the path of a checkpoint."
        )
    settings = get_pretrained_cfg(model, pretrained)
    if settings:
        # The tag knows what its weights were trained with; the plain architecture of that name computes GELU.
        quick = bool(settings.get("quick_gelu"))
        name = f"{model}/{pretrained}"
        return _build(model, pretrained, name=name, device=device, precision=precision, quick_gelu=quick)
    checkpoint = Path(pretrained).expanduser()
    if not checkpoint.is_file():
        plain = model.removesuffix("-quickgelu")
        if plain != model and get_pretrained_cfg(plain, pretrained):
            raise ConfigError(
                f"{pretrained!r} belongs to {plain!r} and was trained with GELU; {model!r} computes QuickGELU, which "
                f"would shift every activation. Use load_clip({plain!r}, pretrained={pretrained!r})."
            )
        looks_like_path = len(checkpoint.parts) > 1 or checkpoint.suffix
        problem = f"{pretrained!r} is neither a tag of {model!r} nor a file. {closest(pretrained, tags)}"
        advice = f"Its tags are {', '.join(tags) or 'none'}; or give the path of a checkpoint."
        raise (InputNotFoundError if looks_like_path else ConfigError)(problem + advice)
    name = f"{model}/{checkpoint.name}"
    return _build(model, str(checkpoint), name=name, device=device, precision=precision)


def _build(
    model: str,
    pretrained: str | None,
    *,
    name: str,
    device: torch.device,
    precision: str,
    quick_gelu: bool = False,
    vocabulary: Path | None = None,
) -> ClipParts:
    try:
        module = open_clip.create_model(
            model,
            pretrained,
            device=device,
            precision=precision,
            force_quick_gelu=quick_gelu,
            require_pretrained=True,
        )
        extra: dict[str, Any] = {"bpe_path": str(vocabulary)} if vocabulary else {}
        tokenizer = open_clip.get_tokenizer(model, **extra)
    except NbSaeError:
        raise
    except Exception as error:
        # open_clip, huggingface_hub and torch raise all kinds of errors here; the cause stays attached.
        raise _explained(error, model, pretrained, name) from error
    return ClipParts(module, default_preprocess(module), tokenizer, name)


def _explained(error: Exception, model: str, pretrained: str | None, name: str) -> NbSaeError:
    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    reason = reason[:400].rstrip(".")
    local = model.startswith(_FOLDER) or (pretrained is not None and Path(pretrained).expanduser().is_file())
    if local:
        return InputError(
            f"{name!r} cannot be loaded: {reason}. Expected weights of exactly this architecture, as safetensors "
            "or as a torch checkpoint that holds tensors only. Check that configuration and checkpoint belong together."
        )
    return InputNotFoundError(
        f"{name!r} could not be fetched: {reason}. Without a network, load what is on disk: "
        "load_clip('path/to/folder') with open_clip_config.json and weights, or "
        "load_clip('ViT-B-32', pretrained='path/to/checkpoint.safetensors'); or run once with a network, after which "
        "the download is kept in the Hugging Face cache (HF_HOME)."
    )
