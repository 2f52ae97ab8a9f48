"""Where heads look on random repeated tokens: induction, the token before, the first token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.attribution.schema import HEAD_SCORES, INDUCTION
from nb_sae.errors import ConfigError
from nb_sae.models.lm import LanguageModel
from nb_sae.models.parts import parts
from nb_sae.models.tokens import special_ids, window_preprocessor

TOKENS = 40
"""Random tokens of a context before they are repeated, where the context holds as many."""
CONTEXTS = 16
CONTEXTS_AT_A_TIME = 4
"""Run together: a layer of 12 heads and 80 positions gives 1.2 MB of patterns."""


def head_scores(
    model: Any,
    layers: int | Sequence[int] | None = None,
    *,
    tokens: int | None = None,
    contexts: int = CONTEXTS,
    seed: int = 0,
) -> pl.DataFrame:
    """What every head attends to in contexts of random tokens that come twice, so that only place and copies count.

    Induction is the mean attention from a token of the second copy to the one after its first copy; `previous` that to
    the token before, and `first` that to the first position, where heads rest. The nulls are those of a head that
    attends evenly to itself and all before it (of an encoder, to all): the mean of 1 / (t + 1) over the same positions
    t. Special tokens that the tokenizer puts before a text stand before the first copy.

    Args:
        model: From `load_lm`.
        layers: Numbers of blocks, or one; None: all that have an attention.
        tokens: Different tokens before they repeat; None: 40, or half of what the context holds.
        contexts: Over how many the mean is.
        seed: Of the tokens.

    Returns:
        `schema.HEAD_SCORES`, a line per head.

    Raises:
        ConfigError: no language model, no such block, or a context or vocabulary that is too short.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv:2209.11895.
    """
    probe = RandomTokens(model, tokens, seed)
    once = torch.stack([probe.draw() for _ in range(_at_least_one(contexts))])
    start, length = probe.start, probe.tokens
    batch = probe.begun(torch.cat([once, once], dim=1))
    second = torch.arange(start + length, start + 2 * length)
    later = torch.arange(1, start + 2 * length)
    frames = []
    for layer, pattern in probe.mean(batch, layers).items():
        own, even = (
            {
                "induction": one[:, second, second - length + 1].mean(-1).tolist(),
                "previous": one[:, later, later - 1].mean(-1).tolist(),
                "first": one[:, later, 0].mean(-1).tolist(),
            }
            for one in (pattern, _even(pattern))
        )
        nulls = {"induction_null": even["induction"], "previous_null": even["previous"]}
        frames.append(pl.DataFrame({**probe.named(layer, len(pattern)), **own, **nulls}, schema=HEAD_SCORES))
    return pl.concat(frames)


def induction_curve(
    model: Any,
    layers: int | Sequence[int] | None = None,
    *,
    prefixes: int | Sequence[int] = tuple(range(1, 10)),
    tokens: int | None = None,
    contexts: int = CONTEXTS,
    seed: int = 0,
) -> pl.DataFrame:
    """Induction by how many tokens are repeated: some heads need one, others a longer match.

    A context is different random tokens followed by a copy of `prefix` of them from a random place; the score is the
    attention from the last token to the one after the copied piece. Arguments and errors are those of `head_scores`.

    Returns:
        `schema.INDUCTION`, a line per head and prefix.

    Source:
        Kissane et al. 2024, Interpreting Attention Layer Outputs with Sparse Autoencoders, arXiv:2406.17759: long- and
        short-prefix induction.
    """
    probe = RandomTokens(model, tokens, seed)
    asked = [prefixes] if isinstance(prefixes, int) else list(prefixes)
    wrong = [prefix for prefix in asked if not 1 <= prefix < probe.tokens]
    if wrong or not asked:
        raise ConfigError(f"prefixes={asked}: expected numbers from 1 to {probe.tokens - 1}.")
    frames = []
    for prefix in asked:
        once = [probe.draw() for _ in range(_at_least_one(contexts))]
        places = [probe.place(probe.tokens - prefix) for _ in once]
        copied = [torch.cat([one, one[at : at + prefix]]) for one, at in zip(once, places, strict=True)]
        batch = probe.begun(torch.stack(copied))
        after = torch.tensor(places) + prefix + probe.start
        for layer, last in probe.rows_of_last(batch, layers).items():
            score = last[torch.arange(len(batch)), :, after].mean(0)
            about = {"prefix": [prefix] * len(score), "induction": score.tolist()}
            null = {"null": [1 / batch.shape[1]] * len(score)}
            frames.append(pl.DataFrame({**probe.named(layer, len(score)), **about, **null}, schema=INDUCTION))
    return pl.concat(frames).sort("layer", "head", "prefix")


class RandomTokens:
    """Contexts of random tokens for one model, and its attention patterns on them.

    Raises:
        ConfigError: no language model, or a context or vocabulary that is too short.
    """

    def __init__(self, model: Any, tokens: int | None, seed: int) -> None:
        if not isinstance(model, LanguageModel):
            raise ConfigError(
                f"Got {getattr(model, 'name', type(model).__name__)}; expected a language model from load_lm(): the "
                "scores are about tokens that come again, and pictures have none."
            )
        longest = model.max_context_tokens or model.context_tokens
        known = model.tokenizer is not None
        self._before = torch.tensor(window_preprocessor(model.tokenizer, longest).prefix if known else ()).long()
        self.start = len(self._before)
        most = (longest - self.start) // 2
        self.tokens = min(TOKENS, most) if tokens is None else tokens
        if not isinstance(self.tokens, int) or not 2 <= self.tokens <= most:
            raise ConfigError(
                f"tokens={self.tokens!r}: they come twice in {longest} positions, {self.start} of which are special "
                f"tokens; expected 2 to {most}."
            )
        self._parts = parts(model)
        special = special_ids(model.tokenizer) if known else frozenset[int]()
        self._ids = torch.tensor([one for one in range(model.vocabulary) if one not in special])
        if len(self._ids) < self.tokens:
            raise ConfigError(
                f"tokens={self.tokens} different ones are needed; {model.name} has {len(self._ids)}. Lower tokens."
            )
        self._random = torch.Generator().manual_seed(seed)

    def draw(self) -> Int[Tensor, " tokens"]:
        """Different tokens of the vocabulary, none of them special."""
        return self._ids[torch.randperm(len(self._ids), generator=self._random)[: self.tokens]]

    def place(self, below: int) -> int:
        """A random number from 0 to `below` − 1."""
        return int(torch.randint(0, below, (1,), generator=self._random))

    def begun(self, ids: Int[Tensor, "context position"]) -> Int[Tensor, "context more"]:
        """The contexts with the special tokens that come before a text."""
        return torch.cat([self._before.expand(len(ids), -1), ids], dim=1)

    def mean(
        self, batch: Int[Tensor, "context position"], layers: int | Sequence[int] | None
    ) -> Mapping[int, Float[Tensor, "heads dst src"]]:
        """Layer → where its heads look, the mean over contexts; float64 on the CPU."""
        total: dict[int, Tensor] = {}
        for layer, pattern in self._patterns(batch, layers):
            total[layer] = pattern.sum(0) + total.get(layer, 0)
        return {layer: one / len(batch) for layer, one in total.items()}

    def rows_of_last(
        self, batch: Int[Tensor, "context position"], layers: int | Sequence[int] | None
    ) -> Mapping[int, Float[Tensor, "context heads src"]]:
        """Layer → where its heads look from the last position, float64 on the CPU."""
        found: dict[int, list[Tensor]] = {}
        for layer, pattern in self._patterns(batch, layers):
            found.setdefault(layer, []).append(pattern[:, :, -1].clone())
        return {layer: torch.cat(ones) for layer, ones in found.items()}

    def _patterns(
        self, batch: Int[Tensor, "context position"], layers: int | Sequence[int] | None
    ) -> Iterator[tuple[int, Float[Tensor, "context heads dst src"]]]:
        """A few contexts at a time: layer and where its heads look."""
        blocks = self._parts.blocks
        asked = [layers] if isinstance(layers, int) else layers
        wanted = [block.layer for block in blocks if block.attention] if asked is None else list(asked)
        for some in batch.split(CONTEXTS_AT_A_TIME):
            for layer, (pattern, _) in self._parts.attention_run(some, wanted).items():
                yield layer, pattern.cpu().double()

    def named(self, layer: int, heads: int) -> dict[str, list[Any]]:
        """The columns that name the heads of a layer."""
        site = self._parts.blocks[layer].attention
        return {"site": [site] * heads, "layer": [layer] * heads, "head": list(range(heads))}


def _even(pattern: Float[Tensor, "heads dst src"]) -> Float[Tensor, "heads dst src"]:
    """Heads that attend evenly to all they may see: all before where no head looks ahead, else everything."""
    seen = torch.ones_like(pattern)
    if not pattern.triu(1).any():
        seen = seen.tril()
    return seen / seen.sum(-1, keepdim=True)


def _at_least_one(contexts: int) -> int:
    if contexts < 1:
        raise ConfigError(f"contexts={contexts}: expected at least one.")
    return contexts
