"""Numbers that a chain should move: the log-probability of tokens, or the cosine of image embeddings with texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError
from nb_sae.flow.effects.contexts import Contexts
from nb_sae.models.contexts import Batch
from nb_sae.sae.metrics.downstream import kl_of_rows

ROWS = 64
"""Answers whose distance is taken at a time."""


class Readout(Protocol):
    """What is read off a model for a batch of inputs."""

    name: str

    def batches(self) -> Iterator[Batch]:
        """The inputs."""
        ...

    def answer(self, batch: Batch) -> Float[Tensor, "rows answer"]:
        """What the model says, one row per position or picture."""
        ...

    def score(self, answer: Float[Tensor, "rows answer"]) -> Float[Tensor, " rows"]:
        """The number of each row that the chain should move."""
        ...

    def cost(self, clean: Tensor, moved: Tensor) -> Float[Tensor, " rows"]:
        """How far each whole answer moved."""
        ...


class TokenReadout:
    """Mean log-probability of some tokens as the next one, at every position that is no padding or special token."""

    name = "log-probability"

    def __init__(self, model: Any, inputs: Any, tokens: Sequence[int], batch: int) -> None:
        self.contexts = Contexts(model, inputs, batch=batch)
        self.tokens = list(tokens)

    def batches(self) -> Iterator[Batch]:
        """The prompts."""
        return iter(self.contexts)

    def answer(self, batch: Batch) -> Float[Tensor, "positions vocabulary"]:
        """Log-probabilities of the next token."""
        logits = self.contexts.model.logits(batch.given)
        kept = logits.flatten(0, 1)[batch.counted(logits.shape).flatten().to(logits.device)]
        return kept.float().log_softmax(-1)

    def score(self, answer: Float[Tensor, "positions vocabulary"]) -> Float[Tensor, " positions"]:
        """Mean over the tokens."""
        return answer[:, self.tokens].mean(-1)

    def cost(self, clean: Tensor, moved: Tensor) -> Float[Tensor, " positions"]:
        """KL(clean ‖ moved), nats."""
        # In double: some rows at a time, with a vocabulary of 150,000 all of them would be gigabytes.
        return torch.cat([kl_of_rows(*parts) for parts in zip(clean.split(ROWS), moved.split(ROWS), strict=True)])


class CosineReadout:
    """Mean cosine of image embeddings with some texts."""

    name = "cosine"

    def __init__(self, model: Any, inputs: Any, texts: Sequence[str], batch: int) -> None:
        self.contexts = Contexts(model, inputs, batch=batch)
        if self.contexts.modality != "image":
            raise ConfigError("Texts were given for a CLIP's image tower. Give pictures, and the texts as toward=.")
        self.texts = model.encode_text(list(texts), normalize=True)

    def batches(self) -> Iterator[Batch]:
        """The pictures."""
        return iter(self.contexts)

    def answer(self, batch: Batch) -> Float[Tensor, "pictures embed_dim"]:
        """Unit embeddings."""
        return F.normalize(self.contexts.model.encode_image(batch.given), dim=-1)

    def score(self, answer: Float[Tensor, "pictures embed_dim"]) -> Float[Tensor, " pictures"]:
        """Mean over the texts."""
        return (answer @ self.texts.T).mean(-1)

    def cost(self, clean: Tensor, moved: Tensor) -> Float[Tensor, " pictures"]:
        """1 − cosine of the two embeddings."""
        return 1 - (clean * moved).sum(-1)


def token_numbers(model: Any, tokens: Sequence[str | int]) -> list[int]:
    """Ids of tokens that are given by id or as text. Raises `ConfigError` for a text that is not one token."""
    numbers = [model.token_id(token) for token in tokens]
    wrong = next((one for one in numbers if one >= model.vocabulary), None)
    if wrong is not None:
        raise ConfigError(f"toward= holds {wrong}; expected a token as text, or its id 0 … {model.vocabulary - 1}.")
    return numbers
