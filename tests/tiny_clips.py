"""Random CLIPs of every build, small enough to be made in a test."""

from __future__ import annotations

from typing import Any

import timm
import torch
import transformers
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from tiny_models import SHAPE, lively
from torch import nn

from nb_sae.models.clip import ClipModel, load_clip

PIXELS, EMBED, WORDS = 32, 24, 50
TEXT: dict[str, Any] = {"context_length": 9, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 3}
VIT: dict[str, Any] = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": PIXELS}


class Marks:
    """Stands for a tokenizer: 0 is padding, the last word is the end mark."""

    eot_token_id, sot_token_id, all_special_ids = WORDS - 1, WORDS - 2, (WORDS - 1, WORDS - 2)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = torch.zeros(len(texts), TEXT["context_length"], dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = [WORDS - 2, *(1 + ord(letter) % (WORDS - 4) for letter in text[:6]), WORDS - 1]
            row[: len(words)] = torch.tensor(words)
        return rows


def wrap(module: nn.Module, *, tokenizer: Any = None) -> ClipModel:
    return load_clip(lively(module), tokenizer=tokenizer or Marks(), name="tiny")


def vit(**settings: Any) -> ClipModel:
    return wrap(CLIP(EMBED, VIT | settings, TEXT))


def custom(**settings: Any) -> ClipModel:
    return wrap(CustomTextCLIP(EMBED, VIT, TEXT | settings))


def siglip(**settings: Any) -> ClipModel:
    """A CLIP whose image tower is timm's, with the pooling of SigLIP unless told otherwise."""
    clip: Any = CustomTextCLIP(EMBED, VIT, TEXT | {"no_causal_mask": True, "pool_type": "last"}, init_logit_bias=-10.0)
    shape: dict[str, Any] = {"img_size": PIXELS, "patch_size": 8, "embed_dim": EMBED, "depth": 3, "num_heads": 2}
    pool = {"global_pool": "map", "class_token": False, "num_classes": 0}
    visual: Any = nn.Module()
    visual.trunk = timm.models.VisionTransformer(**shape | pool | settings)
    visual.head = nn.Sequential()
    visual.image_size = PIXELS
    visual.forward = lambda x: visual.head(visual.trunk(x))
    clip.visual = visual
    return wrap(clip)


def hugging_face_text(pooler: str = "mean_pooler", **settings: Any) -> ClipModel:
    """A CLIP whose text tower is a BERT."""
    clip: Any = CustomTextCLIP(EMBED, VIT, TEXT)
    config = transformers.BertConfig(**SHAPE | settings)
    clip.text = HFTextEncoder("none", EMBED, config=config, pooler_type=pooler, proj_type="mlp")
    clip.context_length = TEXT["context_length"]
    return wrap(clip)
