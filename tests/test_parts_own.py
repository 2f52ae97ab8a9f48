"""Promises of nb_sae.models.parts for blocks that somebody wrote: they may return tuples or tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_parts import ids, seen_at, sum_of_heads
from tiny_models import VOCABULARY, lively
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.models.lm import load_lm
from nb_sae.models.parts import layer_sites, parts


class Attention(nn.Module):
    def __init__(self, *, as_tuple: bool) -> None:
        super().__init__()
        self.num_heads, self.as_tuple = 2, as_tuple
        self.v_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor) -> Any:
        pattern = torch.ones(hidden_states.shape[1], hidden_states.shape[1]).tril()
        pattern = (pattern / pattern.sum(-1, keepdim=True)).expand(len(hidden_states), 2, -1, -1)
        heads = pattern @ self.v_proj(hidden_states).unflatten(-1, (2, 4)).transpose(1, 2)
        out = self.o_proj(heads.transpose(1, 2).flatten(2))
        return (out, pattern) if self.as_tuple else out


class Block(nn.Module):
    def __init__(self, *, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.input_layernorm, self.self_attn = nn.LayerNorm(8), Attention(as_tuple=as_tuple)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Any:
        given = self.self_attn(self.input_layernorm(x))
        x = x + (given[0] if self.as_tuple else given)
        x = x + self.mlp(x)
        return (x, None) if self.as_tuple else x


class Own(nn.Module):
    def __init__(self, *, as_tuple: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList(Block(as_tuple=as_tuple) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)[0] if layer.as_tuple else layer(x)
        return x


@pytest.mark.parametrize("as_tuple", [True, False])
def test_blocks_may_return_tuples_or_tensors(as_tuple):
    lm = load_lm(lively(Own(as_tuple=as_tuple)), name="own")
    found = parts(lm)
    assert layer_sites(lm) == [f"layers.{i}{name}" for i in (0, 1) for name in (".self_attn", ".mlp", "")]
    assert found.additions(ids())[1] < 1e-6
    if as_tuple:
        out = seen_at(lm, ["layers.1.self_attn"], ids())["layers.1.self_attn"]
        torch.testing.assert_close(sum_of_heads(found, 1, ids()), out)
    else:
        with pytest.raises(ConfigError, match="does not show the attention pattern of block 1"):
            found.attention(1)
    assert found.mlp(0) is None
