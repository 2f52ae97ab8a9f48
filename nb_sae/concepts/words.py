"""Embedded words: a vocabulary through the text tower once, ready to be compared with directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.data.vocabulary import Vocabulary, vocabulary
from nb_sae.errors import ConfigError, NonFiniteError, ShapeError

Gap = Literal["raw", "text_mean"]

TEXTS_AT_A_TIME = 4096


@dataclass(frozen=True, kw_only=True, repr=False)
class EmbeddedWords:
    """A vocabulary and the unit embedding of each word. Made by `embed_words`; embed once, name many dictionaries."""

    vocabulary: Vocabulary
    vectors: Float[Tensor, "words embed_dim"]
    """Unit rows, the modality gap still in them."""
    model: str | None = None
    revision: str | None = None

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __repr__(self) -> str:
        return f"EmbeddedWords({self.vocabulary!r}, {self.vectors.shape[1]} wide, of {self.model!r})"

    def unit(self, gap: Gap) -> Float[Tensor, "words embed_dim"]:
        """Unit rows to compare with directions; `"text_mean"` takes the mean over the words off first.

        A word that is the mean itself has no direction left and becomes zeros: it is nearest to nothing.
        """
        if gap == "raw":
            return self.vectors
        centred = self.vectors - self.vectors.mean(0)
        norm = centred.norm(dim=-1, keepdim=True)
        return torch.where(norm > 1e-6, centred / norm.clamp_min(1e-6), torch.zeros_like(centred))


def embed_words(
    clip: Any,
    words: Vocabulary | EmbeddedWords | str | Sequence[str] | Mapping[str, str],
) -> EmbeddedWords:
    """The unit embedding of every word: the mean over its templates of unit text embeddings, normalised.

    Args:
        clip: Anything with `encode_text(list of texts, normalize=True)`, such as `ns.load_clip(…)`. Not needed (None)
            for words that are embedded already.
        words: What `ns.vocabulary` gives or takes; or what this gave before.

    Raises:
        ConfigError: fewer than two words: a margin needs a second one.
        NonFiniteError: a text has no finite embedding.
    """
    if isinstance(words, EmbeddedWords):
        _check_model(clip, words)
        return words
    listed = vocabulary(words)
    if len(listed) < 2:
        raise ConfigError(
            f"The vocabulary {listed.name!r} has {len(listed)} word ({listed.words[0]!r}). A name is the nearest of "
            "several, and its margin needs a second: give at least two words."
        )
    if not callable(getattr(clip, "encode_text", None)):
        raise ConfigError(
            f"clip is a {type(clip).__name__}; expected a model with encode_text, such as ns.load_clip('demo'). "
            "Only words that embed_words has embedded need none."
        )
    texts, templates = listed.texts(), len(listed.templates)
    at_a_time = max(1, TEXTS_AT_A_TIME // templates) * templates
    parts = []
    for first in range(0, len(texts), at_a_time):
        rows = clip.encode_text(texts[first : first + at_a_time], normalize=True)
        parts.append(F.normalize(rows.float().unflatten(0, (-1, templates)).mean(1), dim=-1))
    vectors = torch.cat(parts)
    bad = torch.nonzero(~torch.isfinite(vectors).all(-1)).flatten()
    if len(bad):
        raise NonFiniteError(f"The embedding of {listed.words[int(bad[0])]!r} holds NaN or infinity. Check the model.")
    return EmbeddedWords(
        vocabulary=listed, vectors=vectors, model=getattr(clip, "name", None), revision=getattr(clip, "revision", None)
    )


def check_gap(gap: str) -> None:
    """Raises `ConfigError` for what is no way of treating the modality gap."""
    if gap not in get_args(Gap):
        raise ConfigError(f"gap={gap!r} is not known. Use 'raw' or 'text_mean' (the mean of the words taken off).")


def check_space(dictionary: Any, words: EmbeddedWords) -> None:
    """Refuse a dictionary whose directions do not lie in the space of the words.

    Raises:
        ShapeError: another width.
        ConfigError: another site or model.
    """
    width, expected = dictionary.W_dec.shape[1], words.vectors.shape[1]
    site = getattr(dictionary, "target", None) or getattr(dictionary, "site", None)
    if width != expected:
        raise ShapeError(
            f"The directions are {width} wide (site {site!r}), the embedded words {expected}. Names come from the "
            "embedding that pictures and texts share: train on site 'image_embed' of the same model."
        )
    if site not in (None, "image_embed", "text_embed"):
        raise ConfigError(
            f"The dictionary is of site {site!r}, where a text has no embedding. Names come from the embedding that "
            "pictures and texts share: train on site 'image_embed' (or 'text_embed')."
        )
    for what in ("model", "revision"):
        given, own = getattr(words, what), getattr(dictionary, what, None)
        if given is not None and own is not None and given != own:
            raise ConfigError(
                f"The dictionary is of {what} {own!r}, the words were embedded by {what} {given!r}. Use the model that "
                "the dictionary was trained on."
            )


def _check_model(clip: Any, words: EmbeddedWords) -> None:
    name, revision = getattr(clip, "name", None), getattr(clip, "revision", None)
    if clip is not None and words.revision is not None and revision is not None and revision != words.revision:
        raise ConfigError(
            f"The words were embedded by {words.model!r} (revision {words.revision!r}), given is {name!r} (revision "
            f"{revision!r}). Embed them again with this model."
        )
