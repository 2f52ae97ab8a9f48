"""The parts of a model: which sites lie in which block, and the weights of attention, MLP, norm and unembedding.

One door for every library; each family is a file `*_parts.py` beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from nb_sae.errors import ConfigError, closest
from nb_sae.hooks import display_name, hook_points
from nb_sae.layers import LANES, Tower
from nb_sae.models.hf_parts import HuggingFaceParts, HuggingFaceTextParts
from nb_sae.models.lens_parts import LensParts
from nb_sae.models.open_clip_parts import OpenClipParts
from nb_sae.models.timm_parts import TimmParts
from nb_sae.models.tower_parts import AttentionParts, AttentionRun, BlockParts, Parts, heads_sum

__all__ = ["AttentionParts", "AttentionRun", "BlockParts", "Parts", "heads_sum", "layer_sites", "parts"]

_STACKS = (
    "gpt_neox.layers",
    "model.layers",
    "transformer.h",
    "transformer.blocks",
    "model.language_model.layers",
    "language_model.model.layers",
    "layers",
    "h",
)
"""Where Hugging Face models keep their blocks."""
_STACK_ENDS = ("encoder.layer", "transformer.layer", "encoder.layers", "decoder.layers", "language_model.layers")
"""How the path ends in models that put it under a name of their own."""


def parts(model: Any, tower: Tower | None = None) -> Parts:
    """The parts of a model from `load_lm` or `load_clip`.

    Args:
        model: A `LanguageModel` or a `ClipModel`.
        tower: `"text"` or `"image"`; by default the text of a language model and the image of a CLIP.

    Raises:
        ConfigError: another kind of model, a tower it lacks, or blocks that nb_sae does not know.
    """
    root = getattr(model, "module", None)
    if not isinstance(root, nn.Module) or not hasattr(model, "probe_batch"):
        raise ConfigError(
            f"Got a {type(model).__name__}; expected a model from load_lm() or load_clip(). A module of your own is "
            "wrapped by load_lm(module) or load_clip(module)."
        )
    clip = "image_embed" in model.pseudo_sites
    towers: list[Tower] = ["text"]
    if clip:
        towers = ["image", "text"] if "text_embed" in model.pseudo_sites else ["image"]
    tower = tower or towers[0]
    if tower not in towers:
        raise ConfigError(
            f"tower={tower!r} is none of {display_name(model)}. {closest(tower, towers)}It has: {', '.join(towers)}."
        )
    # Kept on the model, so that both go together.
    kept: dict[Tower, Parts] = vars(model).setdefault("_parts", {})
    if tower not in kept:
        kept[tower] = (_clip_parts if clip else _text_parts)(model, root, tower)
    return kept[tower]


def layer_sites(
    model: Any, lanes: str | Sequence[str] = ("residual", "attention", "mlp"), *, tower: Tower | None = None
) -> list[str]:
    """The sites of every block of a model, in the order of the forward pass.

    Args:
        model: A `LanguageModel` or a `ClipModel`.
        lanes: What of each block: `"residual"` (the stream after it), `"attention"` and `"mlp"` (what they add to the
            stream), and `"embedding"` (of a CLIP, the final embedding).
        tower: `"text"` or `"image"`; by default the text of a language model and the image of a CLIP.

    Raises:
        ConfigError: unknown lane; a model whose blocks nb_sae does not know; or one whose attention and MLP do not
            give what the block adds.
    """
    wanted: list[Any] = list(lanes) if isinstance(lanes, list | tuple) else [lanes]
    wrong = next((lane for lane in wanted if lane not in LANES), None)
    if wrong is not None or not wanted:
        hint = closest(str(wrong), LANES)
        raise ConfigError(f"lanes={wanted!r}: {wrong!r} is no lane. {hint}Choose from {', '.join(LANES)}.")
    found = parts(model, tower)
    named = [(lane, getattr(block, lane)) for block in found.blocks for lane in ("attention", "mlp", "residual")]
    if "attention" in wanted or "mlp" in wanted:
        found.prove_additions()
    sites = [site for lane, site in named if lane in wanted and site is not None]
    if "embedding" in wanted:
        embedding = f"{found.tower}_embed"
        if embedding not in model.pseudo_sites:
            raise ConfigError(f"{display_name(model)} ends in no embedding. Leave 'embedding' out of lanes.")
        sites.append(embedding)
    if not sites:
        raise ConfigError(
            f"{found} has no site that gives rows for lanes={wanted!r}. Choose other lanes, or sites from "
            "model.hook_names()."
        )
    return sites


def _text_parts(model: Any, root: nn.Module, tower: Tower) -> Parts:
    if hook_points(root):
        if not isinstance(_at(root, "blocks"), nn.ModuleList):
            raise _unknown(model, root)
        return LensParts(model)
    stack = next((path for path in _stacks(root) if isinstance(_at(root, path), nn.ModuleList)), None)
    if stack is not None:
        return HuggingFaceParts(model, tower, stack, root)
    raise _unknown(model, root)


def _clip_parts(model: Any, root: nn.Module, tower: Tower) -> Parts:
    if tower == "image":
        if isinstance(_at(root, "visual.trunk.blocks"), nn.Sequential | nn.ModuleList):
            return TimmParts(model)
        stack, holder = "visual.transformer.resblocks", _at(root, "visual")
    else:
        own = _at(root, "text")
        stack = "transformer.resblocks" if own is None else "text.transformer.resblocks"
        holder = root if own is None else own
        inner = None if own is None else _at(own, "transformer")
        if inner is not None and hasattr(own, "pooler"):
            path = next((path for path in _stacks(inner) if isinstance(_at(inner, path), nn.ModuleList)), None)
            if path is not None:
                return HuggingFaceTextParts(model, f"text.transformer.{path}", holder)
    if holder is not None and _at(root, stack) is not None:
        return OpenClipParts(model, tower, stack, holder)
    raise _unknown(model, root)


def _stacks(root: nn.Module) -> Iterator[str]:
    yield from _STACKS
    yield from (path for path, _ in root.named_modules() if path.endswith(_STACK_ENDS))


def _at(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _unknown(model: Any, root: nn.Module) -> ConfigError:
    lists = [path for path, module in root.named_modules() if isinstance(module, nn.ModuleList)][:4]
    return ConfigError(
        f"nb_sae does not know the blocks of {display_name(model)} ({type(root).__name__}"
        f"{', with lists at ' + ', '.join(lists) if lists else ''}); expected a transformer of Hugging Face, "
        "transformer_lens, open_clip or timm. Choose sites by name from model.hook_names()."
    )
