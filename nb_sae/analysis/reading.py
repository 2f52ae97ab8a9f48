"""Reads one text with a language model and its dictionary: which latents are active on which of its tokens.

read = ns.reader(lm, dictionary)
read("def mean(values):", [417]).activations      # (token, 1)
ns.FeatureDashboard(analysis, read=read)          # a field for the text on every card
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from nb_sae.errors import ConfigError, HookError, InputError, NbSaeError
from nb_sae.hooks import intervene
from nb_sae.models.lm import LanguageModel
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import latent_number, listed
from nb_sae.sae.origin import check_model
from nb_sae.types import HookedModel

STRONGEST = 64
"""Latents that a reading names."""
_READ_CHARS = 1_000_000  # a tokenizer takes seconds per megabyte, and no context is that long


@dataclass(frozen=True)
class Reading:
    """One text as the model and the dictionary see it.

    Attributes:
        tokens: One string per position, special tokens included.
        activations: `(token, latent)` float32, of the latents that were asked for, in their order; model units.
        strongest: `latent, act, token`: the latents with the largest activation on any token, strongest first, and the
            first token on which they reach it.
        next_token: `(token, latent)` float32: the log-probability of the token that follows, minus that with the latent
            removed from the whole text, in nats; NaN at the last token. None where the model predicts no next token.
    """

    tokens: tuple[str, ...]
    activations: np.ndarray
    strongest: pl.DataFrame
    next_token: np.ndarray | None = None


class TextReader:
    """Reads texts; made by `reader`. The last text is kept, so that asking for another latent costs no second pass.

    Inside `intervene` it is the edited model that reads.
    """

    def __init__(self, model: HookedModel, dictionary: Dictionary, *, site: str, effects: bool) -> None:
        self.model, self.dictionary, self.site, self.effects = model, dictionary, site, effects
        self._prepare = model.preprocessor("text")
        self._kept: _Pass | None = None

    def __call__(self, text: str, latents: int | Sequence[int]) -> Reading:
        """Activations of some latents on a text.

        Raises:
            InputError: no text, an empty one, or more tokens than one context holds.
            ConfigError: no such latent.
        """
        asked = [latent_number(latent, None, self.dictionary.d_sae) for latent in listed(latents)]
        kept, hooks = self._kept, _hooks_in(self.model.module)
        if kept is None or kept.text != text or kept.hooks != hooks:
            kept = self._kept = self._run(text, hooks)
        acts = np.stack([kept.activations(latent) for latent in asked], 1) if asked else np.zeros((len(kept.ids), 0))
        return Reading(kept.tokens, acts.astype(np.float32), kept.strongest(), self._effects(kept, asked, acts))

    @torch.no_grad()
    def _run(self, text: str, hooks: tuple[int, ...]) -> _Pass:
        if not isinstance(text, str) or not text.strip():
            raise InputError("The text is empty; expected at least one word. Type some.")
        if len(text) > _READ_CHARS:
            raise InputError(
                f"The text has {len(text):,} characters; at most {_READ_CHARS:,} are looked at. Give a shorter passage."
            )
        prepared = self._prepare(text)
        keep = torch.ones_like(prepared.tensor, dtype=torch.bool) if prepared.keep is None else prepared.keep
        if len(prepared.tensor) > 1:
            raise InputError(
                f"The text has {int(keep.sum()):,} tokens, a context of {self.model.name} holds "
                f"{prepared.tensor.shape[1]:,}. Shorten it, or load the model with a larger context_tokens."
            )
        stop = int(keep[0].nonzero().max()) + 1
        # A CLIP's text tower wants its own length, and that of SigLIP looks at the padding too.
        batch = prepared.tensor[:, :stop] if isinstance(self.model, LanguageModel) else prepared.tensor
        rows = self.model.capture_rows(batch, [self.site], "text")[self.site][:, :stop]
        batch = batch[:, :stop]
        values, indices = self.dictionary.encode(rows.reshape(-1, rows.shape[-1]).float(), sparse=True)
        tokens = tuple(self.model.token_strings(batch[0].tolist()))
        return _Pass(text, hooks, batch, tokens, values.cpu().numpy(), indices.cpu().numpy())

    @torch.no_grad()
    def _effects(self, kept: _Pass, latents: list[int], acts: np.ndarray) -> np.ndarray | None:
        if not self.effects or kept.batch.shape[1] < 2:
            return None
        losses: Any = getattr(self.model, "token_losses", None)
        if losses is None:
            return None
        try:
            if kept.losses is None:
                kept.losses = losses(kept.batch)[0]
            found = np.zeros_like(acts, dtype=np.float32)
            for place, latent in enumerate(latents):
                if acts[:, place].any():  # a latent that is silent changes nothing
                    with intervene(self.model, self.dictionary.ablate([latent], site=self.site)):
                        found[:-1, place] = (losses(kept.batch)[0] - kept.losses).cpu().numpy()
        except ConfigError:  # an encoder predicts no next token
            return None
        found[-1] = np.nan
        return found


@dataclass
class _Pass:
    """What one pass over a text gave."""

    text: str
    hooks: tuple[int, ...]
    """Those that were in the model."""
    batch: Tensor
    tokens: tuple[str, ...]
    values: np.ndarray
    indices: np.ndarray
    losses: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        return self.batch[0]

    def activations(self, latent: int) -> np.ndarray:
        """`(token,)` of one latent."""
        return np.where(self.indices == latent, self.values, 0).sum(1)

    def strongest(self) -> pl.DataFrame:
        """`latent, act, token` of the strongest latents."""
        rows = np.repeat(np.arange(len(self.values), dtype=np.uint32), self.values.shape[1])
        frame = pl.DataFrame(
            {"latent": self.indices.reshape(-1).astype(np.uint32), "act": self.values.reshape(-1), "token": rows},
            schema={"latent": pl.UInt32, "act": pl.Float32, "token": pl.UInt32},
        )
        active = frame.filter(pl.col("act") > 0).sort("act", "latent", "token", descending=[True, False, False])
        return active.unique("latent", keep="first", maintain_order=True).head(STRONGEST)


def _hooks_in(module: nn.Module) -> tuple[int, ...]:
    """Numbers of the hooks in a model, which torch gives once each: others, such as an edit, make another model."""
    return tuple(number for one in module.modules() for number in one._forward_hooks)


def reader(
    model: HookedModel, dictionary: Dictionary, *, site: str | None = None, next_token: bool = True
) -> TextReader:
    """What `FeatureDashboard(analysis, read=…)` reads a text of the user with.

    A text is read as one context, as the model's own preprocessing cuts it. The effect on the next token is that of
    removing the latent from the whole text (its decoder row times its activation, the error term kept): one more pass
    for every latent that is active on it.

    Args:
        model: A language model, or a CLIP model for a dictionary of its text tower.
        dictionary: Trained on a site of it.
        site: Where; None: where the dictionary was trained.
        next_token: Whether to measure the effect on the next token, where the model predicts one.

    Raises:
        ConfigError: another model than the dictionary's, no site is known, or the model takes no texts.
        HookError: the model has no such site, or one row per text.
    """
    check_model(model, dictionary, site)
    where = site or dictionary.site
    if where is None:
        raise ConfigError("The dictionary does not say where it was trained. Give site=, one of model.hook_names().")
    try:
        found = model.site(where, "text")
    except NbSaeError as error:
        raise HookError(f"A reader needs a site that gives rows for texts: {error}") from error
    if found.pooled:
        raise HookError(
            f"{where} gives one row per text, which has no tokens to show. Take a dictionary of a site with one row "
            "per token, such as the output of a block."
        )
    if found.width != dictionary.d_in:
        raise ConfigError(
            f"{where} of {model.name} is {found.width} wide, the dictionary takes {dictionary.d_in}. "
            "Give the dictionary that was trained there, or its site=."
        )
    return TextReader(model, dictionary, site=where, effects=next_token)
