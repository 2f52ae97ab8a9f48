"""What is searched for: a picture, a text, a latent, a row or an embedding, as one row in the store's units.

Owns the reading of queries, and the gap between texts and images: whether the dictionary may read the latents of a
query, and how one is edited where it may not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from nb_sae.concepts.lookup import find_latent
from nb_sae.errors import ConfigError, NonFiniteError, ShapeError, StoreError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import Changes, apply_changes
from nb_sae.types import ActivationSource

Kind = Literal["row", "image", "text", "latent", "embedding"]
Gap = Literal["raw", "mean"]
_MODALITY = {"image_embed": "image", "text_embed": "text"}


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        kind: What was given.
        label: How messages call it.
        x: `(d_in,)`, float32.
        row: Its row in the store, which is never found; None for others.
        latents: How its latents are known: "encoded" by the dictionary, "given" (a latent's own direction: that latent
            at 1, all others 0), or "none" (a text among images: no latent of it counts as active).
        latent: Which, for a latent.
    """

    kind: Kind
    label: str
    x: Float[Tensor, " d_in"]
    row: int | None = None
    latents: Literal["encoded", "given", "none"] = "encoded"
    latent: int | None = None

    def edited(self, dictionary: Dictionary, changes: Changes) -> Float[Tensor, " d_in"]:
        """The query with its latents changed, the error term kept.

        Raises:
            ConfigError: latents that nobody knows are scaled, removed or clamped, or nothing is left of the query.
        """
        if not changes.latents:
            return self.x
        if self.latents == "encoded":
            x = apply_changes(dictionary, self.x[None], changes)[0]
        else:
            x = self.x + self._step(dictionary, changes)
        if not float(x.norm()) > 1e-6 * float(self.x.norm()):
            raise ConfigError(f"The edit leaves nothing of {self.label}, and nothing is near to nothing. Change less.")
        return x

    def _step(self, dictionary: Dictionary, changes: Changes) -> Tensor:
        if self.latents == "none" and (
            changes.bounded or any(f != 1 and s == 0 for f, s in zip(changes.factor, changes.shift, strict=True))
        ):
            raise ConfigError(
                f"{self.label} has no latents of this dictionary, which was trained on {dictionary.site!r}: they "
                "cannot be scaled or removed. Use set=, which adds their directions; or gap='mean' with texts=, which "
                "moves the text to where the images are and encodes it."
            )
        z = torch.zeros(1, len(changes.latents))
        if self.latent in changes.latents:
            z[0, changes.latents.index(self.latent)] = 1.0
        step = changes.of(z).to(dictionary.device) @ dictionary.W_dec[list(changes.latents)]
        return step[0].to(self.x.device)


@dataclass(frozen=True)
class QueryReader:
    """Reads queries for one store."""

    dictionary: Dictionary
    store: ActivationSource
    clip: Any = None
    names: Any = None
    gap: Gap = "raw"
    texts: Sequence[str] | Tensor | None = None

    def read(self, query: Any, kind: Kind | None = None) -> Query:
        """A query from what the user gave; `kind` where its type does not say it.

        A whole number is a row, a `str` a text, a `PIL` image a picture, a one-dimensional tensor or array an
        embedding. Without a model to embed texts, a `str` is the name of a latent.

        Raises:
            ConfigError: a model or names are missing, or the query is of no known type.
            ShapeError: an embedding of another width.
            NonFiniteError: an embedding with NaN or infinity, or zero.
            StoreError: a row that the store has not, or a model other than that of the rows.
        """
        if self.gap not in ("raw", "mean"):
            raise ConfigError(f"gap={self.gap!r} is not known. Use 'raw' or 'mean'.")
        kind = kind or self._kind(query)
        if kind not in ("row", "image", "text", "latent", "embedding"):
            raise ConfigError(f"kind={kind!r} is not known. Use 'row', 'image', 'text', 'latent' or 'embedding'.")
        read = {"row": self._row, "image": self._image, "text": self._text, "latent": self._latent}
        found = read.get(kind, self._embedding)(query)
        if found.x.shape != (self.dictionary.d_in,):
            raise ShapeError(
                f"{found.label} has shape {tuple(found.x.shape)}; the rows have width {self.dictionary.d_in}. "
                "Give one embedding of the store's site."
            )
        if not math.isfinite(float(found.x.norm())) or not float(found.x.norm()) > 0:
            raise NonFiniteError(f"{found.label} is zero or holds NaN or infinity, so nothing is near to it.")
        return found

    def _kind(self, query: Any) -> Kind:
        if isinstance(query, bool):
            raise ConfigError(f"query={query!r}: give a row number, a text, a picture or an embedding.")
        if isinstance(query, int | np.integer):
            return "row"
        if isinstance(query, str):
            return "text" if self.clip is not None else "latent"
        if isinstance(query, Image.Image):
            return "image"
        if isinstance(query, Tensor | np.ndarray):
            return "embedding"
        raise ConfigError(
            f"A query was given as {type(query).__name__}; expected a row number, a text, a PIL image or an embedding "
            "(d_in,). A latent is given with kind='latent'."
        )

    def _row(self, query: Any) -> Query:
        count = len(self.store)
        if not 0 <= int(query) < count:
            raise StoreError(f"There is no row {query}; the store has rows 0 … {count - 1}.")
        return Query("row", f"row {int(query)}", self.store[int(query)], row=int(query))

    def _latent(self, query: Any) -> Query:
        latent = find_latent(query, self.names, self.dictionary.d_sae)
        x = self.dictionary.W_dec[latent].detach().cpu()
        return Query("latent", f"latent {latent}", x, latents="given", latent=latent)

    def _embedding(self, query: Any) -> Query:
        return Query("embedding", "the embedding", torch.as_tensor(query).detach().float().cpu())

    def _image(self, query: Any) -> Query:
        self._check_clip("a picture", "encode_image")
        x = self.clip.encode_image(query)[0].float().cpu()
        return self._of_modality(Query("image", "the picture", x), "image")

    def _text(self, query: Any) -> Query:
        if not isinstance(query, str) or not query.strip():
            raise ConfigError(f"query={query!r} is no text. Give one that says something.")
        self._check_clip("a text", "encode_text")
        x = self.clip.encode_text([query])[0].float().cpu()
        return self._of_modality(Query("text", f"the text {query!r}", x), "text")

    def _of_modality(self, query: Query, modality: str) -> Query:
        home = _MODALITY.get(self.store.site.name, "image")
        if home == modality:
            return query
        if self.gap == "raw":
            return replace(query, latents="none")
        if modality != "text":
            raise ConfigError("gap='mean' moves texts to where the images are; here a picture is sought among texts.")
        return replace(query, x=self._across(query.x))

    def _across(self, x: Tensor) -> Tensor:
        """The text at the place among the images that it has among texts: mean and spread of one become the other's."""
        texts = self.texts
        if texts is not None and not isinstance(texts, Tensor):
            texts = self.clip.encode_text(list(texts))
        if texts is None or len(texts) < 2:
            raise ConfigError(
                "gap='mean' needs texts=: some dozen texts or their embeddings (clip.encode_text), such as captions, "
                "whose mean is taken off. Or use gap='raw'."
            )
        texts = texts.double().cpu()
        centre, images = texts.mean(0), self.store.statistics()
        spread = float((texts - centre).square().sum(-1).mean().sqrt())
        ratio = math.sqrt(images.mean_square_distance) / max(spread, 1e-12)
        return (torch.as_tensor(images.mean).double() + ratio * (x.double() - centre)).float()

    def _check_clip(self, what: str, method: str) -> None:
        if not callable(getattr(self.clip, method, None)):
            raise ConfigError(f"The query is {what}; give clip=, the model whose {method} embeds it.")
        store = self.store
        if self.store.revision and (self.clip.name, self.clip.revision) != (store.model, store.revision):
            raise StoreError(
                f"The rows come from {store.model!r} (revision {store.revision!r}), clip= is {self.clip.name!r} "
                f"(revision {self.clip.revision!r}). Embed the query with the model of the rows."
            )
        if self.store.revision and store.site.name not in _MODALITY:
            raise ConfigError(
                f"The rows are of {store.site.name!r}, and {what} is embedded at {' or '.join(_MODALITY)}. Search a "
                "store of these, or give a row number or an embedding."
            )


def check_norm(query: Query, store: ActivationSource) -> None:
    """Refuse to edit an L2-normalised embedding among rows of another norm: a set latent would swamp it.

    Raises:
        StoreError: says both norms.
    """
    if query.kind != "embedding":
        return
    statistics = store.statistics()
    typical = math.sqrt(float(np.square(statistics.mean).sum()) + statistics.mean_square_distance)
    if abs(float(query.x.norm()) - 1) < 1e-3 and not 0.5 <= typical <= 2:
        raise StoreError(
            f"The embedding is L2-normalised; the rows have norms of about {typical:.3g}, and so has what the "
            "dictionary encodes. Give it as the model makes it: clip.encode_image(…, normalize=False)."
        )


def described(changes: Mapping[str, Any]) -> str:
    """The edit in a few words, or an empty text."""
    parts = []
    for what, given in changes.items():
        if what == "remove" and given:
            parts.append(f"remove {', '.join(map(str, given))}")
        elif given:
            parts += [f"{what} {which} {value:g}" for which, value in given.items()]
    return "; ".join(parts)
