"""The vision lens: what a CLIP's image tower would answer after each block, and what each patch says of each text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nb_sae.attribution.identifiability import checked_labels, identifiability_frame
from nb_sae.attribution.schema import LENS_PATCHES, LENS_TOP
from nb_sae.errors import ConfigError, InputError, NotEnoughMemoryError
from nb_sae.models.clip import ClipModel
from nb_sae.models.parts import parts
from nb_sae.progress import progress as progress_bar

Which = Literal["cls", "patches"]
MEMORY_BYTES = 2 * 2**30
"""Embeddings that may be held: inputs × blocks × tokens × embed_dim floats."""


@dataclass(frozen=True, kw_only=True, repr=False)
class VisionLens:
    """Every block's tokens in the space of the texts. Made by `vision_lens`; holds embeddings, not pictures."""

    model: str
    texts: tuple[str, ...]
    sites: tuple[str, ...]
    """The residual stream after each block."""
    layers: tuple[int, ...]
    grid: tuple[int, int]
    """Rows and columns of patches."""
    keys: tuple[str, ...]
    """Of the inputs, by input_id."""
    answers: Float[Tensor, "inputs layers embed_dim"]
    """Unit rows: what the tower gives if it ends after that block (norm, its own pooling, projection)."""
    patches_embedded: Float[Tensor, "inputs layers patches embed_dim"] | None
    """Unit rows: every patch token by itself through the final norm and the projection."""
    text_vectors: Float[Tensor, "texts embed_dim"]
    logit_scale: float

    def logits(self, layer: int = -1, tokens: Which = "cls") -> Float[Tensor, "inputs *tokens texts"]:
        """Zero-shot logits after a block: `(inputs, texts)` of its answer, `(inputs, patches, texts)` of its patches.

        Args:
            layer: Number of the block; negative: from the end, −1 the last.
            tokens: "cls": what the tower pools, which is the CLS token where it has one. "patches".

        Raises:
            ConfigError: no such block, or a lens that was made without patches.
        """
        place = self._place(layer)
        if tokens == "cls":
            return self.logit_scale * self.answers[:, place] @ self.text_vectors.T
        if tokens != "patches":
            raise ConfigError(f"tokens={tokens!r} is not known. Use 'cls' or 'patches'.")
        return self.logit_scale * self._patches()[:, place] @ self.text_vectors.T

    def top(self, k: int = 5) -> pl.DataFrame:
        """The `k` likeliest texts of every input after every block, `schema.LENS_TOP`."""
        if not isinstance(k, int) or k < 1:
            raise ConfigError(f"k={k!r}: expected a whole number, at least 1 text.")
        k = min(k, len(self.texts))
        frames = []
        for place, (layer, site) in enumerate(zip(self.layers, self.sites, strict=True)):
            logits = self.logits(place)
            best = logits.topk(k)
            frames.append(
                pl.DataFrame(
                    {
                        "input_id": np.repeat(np.arange(len(logits)), k),
                        "layer": [layer] * logits[:, :k].numel(),
                        "site": [site] * logits[:, :k].numel(),
                        "rank": np.tile(np.arange(k), len(logits)),
                        "text": [self.texts[i] for i in best.indices.flatten().tolist()],
                        "logit": best.values.flatten().numpy(),
                        "probability": logits.softmax(-1).gather(1, best.indices).flatten().numpy(),
                    },
                    schema=LENS_TOP,
                    strict=False,
                )
            )
        return pl.concat(frames).sort("input_id", "layer", "rank")

    def patches(
        self, layer: int, *, texts: str | Sequence[str] | None = None, inputs: int | Sequence[int] | None = None
    ) -> pl.DataFrame:
        """Heat maps over the patches after a block, `schema.LENS_PATCHES`: one line per input and text.

        Args:
            layer: Number of the block; negative: from the end.
            texts: Only these; None: all.
            inputs: Only these, by input_id; None: all.

        Raises:
            ConfigError: no such block, text or input, or a lens that was made without patches.
        """
        place = self._place(layer)
        wanted = list(self.texts) if texts is None else [texts] if isinstance(texts, str) else list(texts)
        unknown = [text for text in wanted if text not in self.texts]
        asked = [inputs] if isinstance(inputs, int) else inputs
        chosen = list(range(len(self.keys))) if asked is None else [int(one) for one in asked]
        outside = [one for one in chosen if not 0 <= one < len(self.keys)]
        if unknown or outside:
            missing = f"text {unknown[0]!r}" if unknown else f"input {outside[0]}"
            known = ", ".join(self.texts[:6]) + (", …" if len(self.texts) > 6 else "")
            raise ConfigError(
                f"The lens has no {missing}; it has inputs 0 … {len(self.keys) - 1} and the texts {known}. Choose from "
                "them."
            )
        numbers = [self.texts.index(text) for text in wanted]
        vectors = self.text_vectors[numbers]
        maps = self.logit_scale * self._patches()[chosen, place] @ vectors.T
        answers = self.logit_scale * self.answers[chosen, place] @ vectors.T
        count = len(chosen) * len(wanted)
        return pl.DataFrame(
            {
                "input_id": np.repeat(np.array(chosen, dtype=np.uint32), len(wanted)),
                "layer": [self.layers[place]] * count,
                "site": [self.sites[place]] * count,
                "text": wanted * len(chosen),
                "rows": [self.grid[0]] * count,
                "columns": [self.grid[1]] * count,
                "map": maps.transpose(1, 2).flatten(0, 1).tolist(),
                "cls": answers.flatten().numpy(),
            },
            schema=LENS_PATCHES,
            strict=False,
        )

    def identifiability(self, labels: Sequence[str | int | None], *, draws: int = 32, seed: int = 0) -> pl.DataFrame:
        """How well each block tells the class of an input, `attribution.schema.IDENTIFIABILITY`.

        1 − rank / (texts − 1) of the own class among the texts: 1 where it is the nearest, 0 where the farthest, a tie
        counting half. The null has as many random directions in place of the texts: 0.5, with the interval of what one
        draw gives for these inputs. `change` is the share of tokens whose own-class logit grows from the block before,
        logits about their mean over the texts: what all texts share, CLIP's modality gap, tells no class.

        Args:
            labels: Class of every input: one of the texts, its number, or None where it is not known.
            draws: Sets of random directions; each counts twice, as itself and reversed.
            seed: Of the draws.

        Raises:
            InputError: not one label per input, no label at all, or one that is no text.
            ConfigError: draws below 2.

        Source:
            Vilas, Schaumlöffel & Roig 2023, Analyzing Vision Transformers for Image Classification in Class Embedding
            Space, section 3.
        """
        own = checked_labels(labels, self.texts, len(self.keys))
        return identifiability_frame(self, own, draws=draws, seed=seed)

    def _place(self, layer: int) -> int:
        if not isinstance(layer, int) or not -len(self.layers) <= layer < len(self.layers):
            raise ConfigError(
                f"layer={layer!r} does not exist; the lens has blocks 0 … {len(self.layers) - 1} (or −1 for the last)."
            )
        return layer % len(self.layers)

    def _patches(self) -> Tensor:
        if self.patches_embedded is None:
            raise ConfigError("This lens was made with tokens='cls'. Make it again with tokens='all' for patches.")
        return self.patches_embedded

    def __repr__(self) -> str:
        patches = "without patches" if self.patches_embedded is None else f"{self.grid[0]} × {self.grid[1]} patches"
        return (
            f"VisionLens({self.model}: {len(self.keys):,} inputs, {len(self.layers)} blocks, {patches}, "
            f"{len(self.texts)} texts)"
        )


@torch.no_grad()
def vision_lens(
    clip: Any,
    images: Any,
    texts: Sequence[str] | Any,
    *,
    templates: Sequence[str] | None = None,
    tokens: Literal["all", "cls"] = "all",
    batch: int = 64,
    memory_bytes: int = MEMORY_BYTES,
    progress: bool = True,
) -> VisionLens:
    """What a CLIP would say of pictures after each block of its image tower, and what each patch says.

    The residual stream after a block goes through what the tower does with its last one (final norm, pooling,
    projection) and is compared with the texts. After the last block that is the model's own zero-shot answer. Patches
    go through norm and projection one by one; the model never does that, so a map says what a patch holds in the space
    of the answer and not what the answer is made of.

    A tower without a CLS token (SigLIP) answers by its own pooling, and a patch by itself is pooled as the only token.

    Args:
        clip: From `load_clip`, a ViT.
        images: What `clip.encode_image` takes.
        texts: Two or more classes or concepts; or `ConceptNames`, whose accepted names are taken.
        templates: Texts with `{}` for the class, such as `"a photo of {}"`; their embeddings are averaged.
        tokens: "cls": only the answers, which needs far less memory.
        batch: Pictures per forward pass.
        memory_bytes: Most that the embeddings may take.
        progress: Show how far it is.

    Raises:
        ConfigError: not a CLIP, a tower without blocks that nb_sae knows (a ResNet), fewer than two texts, a text that
            is given twice, or a setting that is not known.
        InputError: no pictures.
        NotEnoughMemoryError: the embeddings would take more than `memory_bytes`.

    Source:
        Vilas, Schaumlöffel & Roig 2023, Analyzing Vision Transformers for Image Classification in Class Embedding
        Space, section 3.
    """
    if not isinstance(clip, ClipModel):
        raise ConfigError(
            f"Got a {type(clip).__name__}; expected a CLIP from load_clip(). Language models: logit_lens."
        )
    if tokens not in ("all", "cls"):
        raise ConfigError(f"tokens={tokens!r} is not known. Use 'all' or 'cls'.")
    if isinstance(images, str) or not (isinstance(images, Tensor | Image.Image) or hasattr(images, "__len__")):
        raise InputError(f"Got a {type(images).__name__}; expected pictures. For files give ns.images(folder).")
    found = parts(clip, "image")
    words = _classes(texts)
    vectors = clip.class_embeddings(words, templates)
    sites = [block.residual for block in found.blocks]
    site = clip.site(sites[-1], "image")
    if site.grid is None:
        raise ConfigError(f"The tokens of {sites[-1]!r} lie on no grid of patches. A lens needs a ViT.")
    count = 1 if isinstance(images, Image.Image) else len(images)
    if not count:
        raise InputError("No pictures were given. Give at least one.")
    patches = site.grid[0] * site.grid[1] if tokens == "all" else 0
    _check_memory(count * len(sites) * (1 + patches) * vectors.shape[1] * 4, memory_bytes, count, tokens)
    answers = torch.empty(count, len(sites), vectors.shape[1])
    embedded = torch.empty(count, len(sites), patches, vectors.shape[1]) if patches else None
    first = 0
    with progress_bar(count, "pictures", "vision lens", enabled=progress) as bar:
        for pixels in clip.pixel_batches(images, batch):
            rows = clip.capture_rows(pixels, sites, "image")
            here = slice(first, first + len(pixels))
            for place, name in enumerate(sites):
                answers[here, place] = F.normalize(found.project(rows[name]).float(), dim=-1).cpu()
                if embedded is not None:
                    alone = found.final_lens(rows[name][:, site.prefix_tokens :])
                    embedded[here, place] = F.normalize(alone.float(), dim=-1).cpu()
            first += len(pixels)
            bar.update(len(pixels))
    keys = getattr(images, "keys", None)
    return VisionLens(
        model=clip.name,
        texts=tuple(words),
        sites=tuple(sites),
        layers=tuple(block.layer for block in found.blocks),
        grid=site.grid,
        keys=tuple(map(str, keys if isinstance(keys, Sequence) else range(count))),
        answers=answers,
        patches_embedded=embedded,
        text_vectors=vectors.cpu(),
        logit_scale=clip.logit_scale,
    )


def _classes(texts: Any) -> list[str]:
    frame = getattr(texts, "frame", None)
    if isinstance(frame, pl.DataFrame) and {"name", "accepted"} <= set(frame.columns):
        words = frame.filter("accepted")["name"].unique(maintain_order=True).to_list()
    elif isinstance(texts, str | Mapping) or not isinstance(texts, Sequence):
        raise ConfigError(f"texts is a {type(texts).__name__}; expected a list of texts, or names from name_concepts.")
    else:
        words = list(texts)
    wrong = next((word for word in words if not isinstance(word, str)), None)
    if wrong is not None:
        raise ConfigError(f"{wrong!r} is among the texts; expected str. Give the names of classes or concepts.")
    if len(words) < 2:
        raise ConfigError(f"texts={words!r} leaves nothing to choose; expected two or more.")
    twice = next((word for word, times in Counter(words).items() if times > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice!r} is given twice among the texts. Give each once.")
    return words


def _check_memory(needed: int, allowed: int, count: int, tokens: str) -> None:
    if needed > allowed:
        fit = max(1, int(count * allowed / needed))
        less = " or tokens='cls'" if tokens == "all" else ""
        raise NotEnoughMemoryError(
            f"The embeddings of {count:,} pictures take {needed / 2**30:.1f} GiB; memory_bytes allows "
            f"{allowed / 2**30:.1f} GiB. Give {fit:,} pictures{less}, or raise memory_bytes."
        )
