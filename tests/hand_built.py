"""A two-layer GPT-2 whose heads are built by hand: each attends to exactly one position, or evenly to all.

Token and position of a row are one-hot, so a layer norm is a shift and a constant factor. Layer 0: a previous-token
head, which writes the token before into dimensions of its own, and a head that attends evenly. Layer 1: an induction
head, which looks for rows whose previous token is its own, and a head that rests on the first position.
"""

from __future__ import annotations

import torch
import transformers

from nb_sae.models.lm import LanguageModel, load_lm

TOKENS, POSITIONS = 14, 24
HEADS, D_HEAD = 2, 26
WIDTH = HEADS * D_HEAD  # = TOKENS + POSITIONS + TOKENS
SHARP = 1e4
"""Large enough for a softmax to be 1 and 0 exactly."""


def induction_circuit() -> LanguageModel:
    assert WIDTH == TOKENS + POSITIONS + TOKENS
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=POSITIONS, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    for name, weight in model.named_parameters():
        weight.data.fill_(float("ln" in name and name.endswith("weight")))
    token, position, before = torch.eye(WIDTH).split([TOKENS, POSITIONS, TOKENS])
    model.transformer.wte.weight.data[:] = token
    model.transformer.wpe.weight.data[:] = position
    first, second = model.transformer.h
    own = torch.eye(D_HEAD)
    query, key, value = first.attn.c_attn.weight.data.split(WIDTH, dim=1)
    to = own[(torch.arange(POSITIONS) - 1).clamp_min(0)]
    query[:, :D_HEAD] += SHARP * position.T @ to
    key[:, :D_HEAD] += position.T @ own[:POSITIONS]
    value[:, :D_HEAD] += token.T @ own[:TOKENS]
    first.attn.c_proj.weight.data[:D_HEAD] += own[:, :TOKENS] @ before
    query, key, _ = second.attn.c_attn.weight.data.split(WIDTH, dim=1)
    query[:, :D_HEAD] += SHARP * token.T @ own[:TOKENS]
    key[:, :D_HEAD] += before.T @ own[:TOKENS]
    # The first position has no token before it: its own must not count as one. A dimension of its own tells it.
    second.attn.c_attn.bias.data[D_HEAD - 1] = SHARP
    key[:, D_HEAD - 1] -= 99 * position[0]
    second.attn.c_attn.bias.data[D_HEAD] = SHARP  # the query of the second head
    key[:, D_HEAD] += position[0]
    return load_lm(model, context_tokens=POSITIONS, name="by hand")
