"""What a language model predicts: logits, the loss of the next token, and text written token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.errors import ConfigError, InputError
from nb_sae.models.tokens import PADDING

_SEES_AHEAD = 1e-3
"""Part of a change at the last position that may be seen before it; rounding is far below, an encoder far above."""


def read_logits(output: Any, *, vocabulary: int | None, name: str) -> Float[Tensor, "context position vocabulary"]:
    """The logits in what a model gave.

    Args:
        output: A tensor, a tuple that begins with one, or a Hugging Face output.
        vocabulary: How many tokens the model has, where it says so.
        name: How the message calls the model.

    Raises:
        ConfigError: it ends in something else.
    """
    given = getattr(output, "logits", None)
    if given is None and getattr(output, "last_hidden_state", None) is None:
        given = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(given, Tensor) or given.ndim != 3 or given.shape[-1] < (vocabulary or 1):
        what = tuple(given.shape) if isinstance(given, Tensor) else "hidden states"
        raise ConfigError(
            f"{name} gives {what} and no logits (context, position, vocabulary): it has no language-model head. Load "
            "it with one (AutoModelForCausalLM), or choose a measure of its activations."
        )
    return given


@torch.no_grad()
def sees_ahead(logits: Callable[[Tensor], Tensor], batch: Int[Tensor, "context position"]) -> bool:
    """Whether a token changes what the model says of positions before it, as in an encoder; tried on one context."""
    if batch.shape[1] < 2:
        return False
    pair = batch[:1].repeat(2, 1)
    pair[1, -1] = pair[0, 0] if pair[0, 0] != pair[0, -1] else (pair[0, -1] + 1) % 2
    first, second = logits(pair).float()
    change = (first - second).abs().amax(-1)
    return bool(change[:-1].max() > _SEES_AHEAD * change[-1])


def losses_of(logits: Tensor, batch: Int[Tensor, "context position"]) -> Float[Tensor, "context position-1"]:
    """Cross-entropy of every next token in nats, float32; NaN where the token or its predecessor is padding."""
    ids = batch.to(logits.device)
    real = (ids != PADDING)[:, 1:] & (ids != PADDING)[:, :-1]
    targets = ids[:, 1:].clamp_min(0)
    # One context at a time: with a large vocabulary the float32 copy of all logits would be the largest tensor of all.
    rows = [
        torch.nn.functional.cross_entropy(one[:-1].float(), target, reduction="none")
        for one, target in zip(logits, targets, strict=True)
    ]
    return torch.stack(rows).masked_fill(~real, torch.nan)


def room_for(prompt: int, tokens: int, longest: int | None, name: str) -> None:
    """Refuse a prompt, or a continuation, that goes beyond the model's context.

    Raises:
        InputError: the prompt alone is empty or too long.
        ConfigError: prompt and continuation together are too long, or less than one token is asked for.
    """
    if prompt < 1:
        raise InputError(f"The prompt has no tokens; expected at least one. Give {name} a text to begin with.")
    if not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"tokens={tokens!r} asks for nothing; expected 1 or more. Raise tokens=.")
    if longest is not None and prompt > longest:
        raise InputError(
            f"The prompt has {prompt} tokens; {name} sees at most {longest} of them at a time. Shorten the prompt."
        )
    if longest is not None and prompt + tokens > longest:
        raise ConfigError(
            f"The prompt has {prompt} tokens and {tokens} more were asked for; {name} sees at most {longest}. Shorten "
            f"the prompt, or ask for tokens={longest - prompt} or fewer."
        )


@torch.no_grad()
def write_on(
    logits: Callable[[Tensor], Tensor],
    ids: list[int],
    *,
    tokens: int,
    end_id: int | None,
    seed: int | None,
    temperature: float,
) -> list[int]:
    """Token ids after `ids`: at most `tokens`, up to the end mark.

    The whole text is run again for every token, so that an edit acts on all positions in the same way each time.

    Args:
        logits: `(1, position)` ids → `(1, position, vocabulary)`.
        ids: What to begin with.
        tokens: Most tokens to add.
        end_id: Ends the text; not part of what is returned.
        seed: Draws tokens by their probability; None takes the most probable each time.
        temperature: Divides the logits before drawing.

    Raises:
        ConfigError: `temperature` is not above 0, or a seed that is no whole number.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature} is not above 0. Leave seed out for the most probable tokens.")
    if seed is not None and not isinstance(seed, int):
        raise ConfigError(f"seed={seed!r}: expected a whole number, or None for the most probable tokens.")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    text = torch.tensor([ids])
    for _ in range(tokens):
        last = logits(text)[0, -1].float().cpu()
        if generator is None:
            token = int(last.argmax())
        else:
            token = int(torch.multinomial((last / temperature).softmax(-1), 1, generator=generator))
        if token == end_id:
            break
        text = torch.cat([text, torch.tensor([[token]])], dim=1)
    return text[0, len(ids) :].tolist()


def continuation(tokenizer: Any, ids: list[int], written: list[int]) -> str:
    """The text of what was written after `ids`, with the space before it where the tokenizer makes one."""
    before, whole = tokenizer.decode(ids), tokenizer.decode([*ids, *written])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(written)
