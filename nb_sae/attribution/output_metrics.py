"""What is asked of a model's output: one number for one input. Ready-made ones, and the check of the user's own.

A metric is a function of what the model gives for one input: of a language model the logits `(position, vocabulary)` of
its real positions, of a CLIP tower the embedding `(embed_dim,)` before it is normalised; float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError, NonFiniteError, ShapeError
from nb_sae.models.clip import ClipModel
from nb_sae.models.contexts import TowerModel
from nb_sae.models.lm import LanguageModel

Metric = Callable[[Tensor], Any]
"""The output for one input → one number."""


@dataclass(frozen=True)
class OutputMetric:
    """A metric that has still to learn from the model what its tokens or texts are. Made by the functions below."""

    label: str
    make: Callable[[Any], Metric]
    """Model → the function of the output."""


def logit(token: str | int, *, position: int = -1) -> OutputMetric:
    """The logit of one token of the vocabulary.

    Args:
        token: Its id, or a text that is one token for the model (mind the leading space: " Paris").
        position: In the prompt, from 0; negative from its end. The logits there are about the token after it.

    Raises (when used):
        ConfigError: no language model, an encoder, or a text that is not one token.
        ShapeError: the prompt has no such position.
    """
    return OutputMetric(f"logit of {token!r}", _of_logits([token], position, lambda logits, ids: logits[ids[0]]))


def logit_difference(token: str | int, other: str | int, *, position: int = -1) -> OutputMetric:
    """The logit of one token less that of another: linear in the logits, and blind to what lifts all of them.

    Arguments and errors are those of `logit`.
    """
    make = _of_logits([token, other], position, lambda logits, ids: logits[ids[0]] - logits[ids[1]])
    return OutputMetric(f"logit of {token!r} less that of {other!r}", make)


def log_prob(token: str | int, *, position: int = -1) -> OutputMetric:
    """The natural logarithm of the probability of one token. Arguments and errors are those of `logit`."""
    make = _of_logits([token], position, lambda logits, ids: logits.log_softmax(-1)[ids[0]])
    return OutputMetric(f"log-probability of {token!r}", make)


def cosine_to(target: Any) -> OutputMetric:
    """The cosine of a CLIP's embedding to that of a text, or of a picture.

    Args:
        target: A text, a picture (PIL), or an embedding `(embed_dim,)`.

    Raises (when used):
        ConfigError: no CLIP.
        ShapeError: an embedding of another width.
        NonFiniteError: an embedding without a direction.
    """

    def make(model: Any) -> Metric:
        if not isinstance(model, ClipModel):
            raise ConfigError(
                f"cosine_to needs a CLIP's embedding; {getattr(model, 'name', model)} gives logits. Use log_prob or "
                "logit_difference, or a function of the logits."
            )
        if isinstance(target, Tensor | np.ndarray):
            vector = torch.as_tensor(target).detach().float().to(model.device)
        else:
            vector = (model.encode_text([target]) if isinstance(target, str) else model.encode_image([target]))[0]
        if vector.ndim != 1 or len(vector) != model.embed_dim:
            raise ShapeError(f"cosine_to got shape {tuple(vector.shape)}; expected one embedding ({model.embed_dim},).")
        if not float(vector.norm()) > 0:  # NaN too
            raise NonFiniteError("cosine_to got an embedding without a direction (zero or NaN). Give another.")
        unit = F.normalize(vector, dim=-1)
        return lambda embedding: F.normalize(embedding, dim=-1) @ unit

    named = repr(target) if isinstance(target, str) else f"a {type(target).__name__}"
    return OutputMetric(f"cosine to {named}", make)


def bound(metric: OutputMetric | Metric, model: TowerModel) -> tuple[str, Metric]:
    """What messages call a metric, and the function itself.

    Raises:
        ConfigError: neither a metric nor a function.
    """
    if isinstance(metric, OutputMetric):
        return metric.label, metric.make(model)
    if not callable(metric):
        raise ConfigError(
            f"metric={metric!r}: expected a function of the model's output for one input, or log_prob(…), "
            "logit_difference(…), cosine_to(…)."
        )
    name = getattr(metric, "__name__", "")
    return (name if name and name != "<lambda>" else "your metric"), metric


def one_number(value: Any, *, label: str, number: int) -> Tensor:
    """What a metric gave for one input, as a scalar tensor that keeps its gradient.

    Raises:
        ShapeError: not one number.
        NonFiniteError: NaN or infinity.
    """
    if isinstance(value, int | float):
        value = torch.tensor(float(value))
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ShapeError(
            f"For input {number}, {label} gave {given}; expected one number. A metric sees the output for one input, "
            "logits (position, vocabulary) or an embedding (embed_dim,): choose or sum in it, such as logits[-1, 17]."
        )
    value = value.reshape(())
    if not bool(torch.isfinite(value.detach())):
        raise NonFiniteError(
            f"For input {number}, {label} is {float(value.detach())}. A masked logit, a division by 0 or half "
            "precision may be why; load the model with fp32, or change the metric."
        )
    return value


def _of_logits(tokens: list[str | int], position: int, read: Callable[[Tensor, list[int]], Tensor]) -> Any:
    def make(model: Any) -> Metric:
        if not isinstance(model, LanguageModel):
            raise ConfigError(
                f"{getattr(model, 'name', model)} has no logits over tokens. For a CLIP use cosine_to(text), or a "
                "function of the embedding."
            )
        model.require_next_token()
        if isinstance(position, bool) or not isinstance(position, int):
            raise ConfigError(f"position={position!r}: expected a whole number. Choose a position of the prompt.")
        ids = [model.token_id(token) for token in tokens]

        def metric(logits: Tensor) -> Tensor:
            if logits.ndim != 2:
                raise ConfigError(
                    f"{model.name} gave an output of shape {tuple(logits.shape)} for one prompt; expected logits "
                    "(position, vocabulary). Load a model with a language-model head."
                )
            if logits.shape[-1] <= max(ids):
                raise ConfigError(f"Token {max(ids)} is none of {model.name}, which has 0 … {logits.shape[-1] - 1}.")
            if not -len(logits) <= position < len(logits):
                raise ShapeError(f"position={position}: the prompt has {len(logits)} tokens. Choose one of them.")
            return read(logits[position], ids)

        return metric

    return make
