"""Promises of nb_sae.models.parts for transformer_lens: bridges, and models with hooks by the older names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from test_lm import byte_level
from tiny_models import VOCABULARY, lively
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.hooks import capture
from nb_sae.layers import place_of
from nb_sae.models.lm import LanguageModel, load_lm
from nb_sae.models.parts import layer_sites, parts

hook_points = pytest.importorskip("transformer_lens.hook_points")
FAMILIES = {"gpt2": tiny_models.gpt2, "gemma2": tiny_models.gemma2, "neox": tiny_models.neox, "bert": tiny_models.bert}


class Attention(nn.Module):
    """As HookedTransformer names it, with grouped queries: W_V is given once for every head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.zeros(heads, width, 8)) for _ in range(3))
        self.W_O, self.b_V, self.b_O = (nn.Parameter(torch.zeros(s)) for s in ((heads, 8, width), (heads, 8), (width,)))
        self.hook_pattern, self.hook_z = hook_points.HookPoint(), hook_points.HookPoint()

    def forward(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> Tensor:
        q, k = (torch.einsum("btd,hdk->bhtk", x, W) for x, W in ((query_input, self.W_Q), (key_input, self.W_K)))
        scores = (q @ k.transpose(-1, -2)).masked_fill(torch.ones(q.shape[2], q.shape[2]).triu(1).bool(), -torch.inf)
        pattern = self.hook_pattern(scores.softmax(-1))
        values = torch.einsum("btd,hdk->bhtk", value_input, self.W_V) + self.b_V[:, None]
        z = self.hook_z((pattern @ values).transpose(1, 2))
        return torch.einsum("bthk,hkd->btd", z, self.W_O) + self.b_O


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_in, self.W_out = nn.Parameter(torch.zeros(width, 20)), nn.Parameter(torch.zeros(20, width))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.W_in).relu() @ self.W_out


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, 3), Mlp(width)
        for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            setattr(self, f"hook_{name}", hook_points.HookPoint())

    def forward(self, x: Tensor) -> Tensor:
        x = self.hook_resid_pre(x)
        normed = self.ln1(x)
        x = x + self.hook_attn_out(self.attn(query_input=normed, key_input=normed, value_input=normed))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(x))))


class Unembed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_U, self.b_U = nn.Parameter(torch.zeros(width, VOCABULARY)), nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_U + self.b_U


class Hooked(nn.Module):
    """Stands for HookedTransformer, which version 4 no longer has: the same names, the same hooks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.ln_final, self.unembed = nn.LayerNorm(width), Unembed(width)

    @property
    def hook_dict(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.named_modules() if isinstance(part, hook_points.HookPoint)}

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.ln_final(x))


def hooked_transformer() -> nn.Module:
    """transformer_lens' own, where it still has one."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig  # pyright: ignore
    except ImportError:
        pytest.skip("this transformer_lens has no HookedTransformer")
    config = HookedTransformerConfig(
        n_layers=3, d_model=16, n_ctx=20, d_head=8, n_heads=4, n_key_value_heads=2, d_vocab=VOCABULARY, act_fn="gelu"
    )
    return lively(HookedTransformer(config))


@pytest.fixture(scope="module")
def bridges(tmp_path_factory) -> dict[str, LanguageModel]:
    lens = pytest.importorskip("transformer_lens.model_bridge")
    made = {}
    for name, make in FAMILIES.items():
        folder: Path = tmp_path_factory.mktemp("bridges") / name
        lively(make()).save_pretrained(folder)
        byte_level().save_pretrained(folder)
        made[name] = load_lm(lens.TransformerBridge.boot_transformers(str(folder), device="cpu"), name=name)
    return made


def ids(contexts: int = 3, tokens: int = 8) -> Tensor:
    return torch.randint(2, VOCABULARY, (contexts, tokens), generator=torch.Generator().manual_seed(5))


def check(lm: LanguageModel, *, pre_norm: bool = True, exact: float = 0) -> None:
    """Every identity at once: additions, heads, what attention reads, logits, neurons."""
    found = parts(lm)
    largest = max(found.additions(ids()).values())
    assert largest < 1e-6 if pre_norm else largest > 0.1
    for block in found.blocks:
        read = found.attention(block.layer)
        pattern, x_normed = found.attention_run(ids(), [block.layer])[block.layer]
        values = torch.einsum("bsd,hdk->bhsk", x_normed, read.W_V)
        values = values if read.b_V is None else values + read.b_V[:, None]
        given = torch.einsum("bhts,bhsk,hkd->btd", pattern, values, read.W_O)
        given = given if read.b_O is None else given + read.b_O
        with torch.no_grad(), capture(lm, [read.site, block.attention]) as seen:
            lm.forward(ids())
            added = given if read.after is None else read.after(given)
        torch.testing.assert_close(given, seen[read.site], atol=1e-4, rtol=0)
        torch.testing.assert_close(added, seen[block.attention], atol=1e-4, rtol=0)
    before, last = found.blocks[0].residual, found.blocks[-1].residual
    with torch.no_grad(), capture(lm, [before, last]) as seen:
        expected = lm.logits(ids())
        torch.testing.assert_close(found.attention(1).norm(seen[before]), found.attention_run(ids(), [1])[1].x_normed)
    torch.testing.assert_close(found.logits(seen[last]), expected, atol=exact, rtol=0)
    W_in, W_out = found.mlp(1)
    assert W_in.shape == W_out.shape


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bridge_is_read_as_the_model_inside_it(bridges, name):
    lm = bridges[name]
    check(lm, pre_norm=name != "bert")
    plain = parts(load_lm(lively(FAMILIES[name]())))
    for part in ("W_V", "b_V", "W_O", "b_O"):
        torch.testing.assert_close(getattr(parts(lm).attention(1), part), getattr(plain.attention(1), part))
    torch.testing.assert_close(parts(lm).unembed[0], plain.unembed[0])
    assert parts(lm).softcap == plain.softcap
    torch.testing.assert_close(parts(lm).mlp(1), plain.mlp(1))


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_a_bridge_whose_weights_were_processed_is_read_as_it_now_computes(name, tmp_path):
    lens = pytest.importorskip("transformer_lens.model_bridge")
    lively(FAMILIES[name]()).save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    bridge = lens.TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    before = parts(load_lm(bridge)).attention(1).W_O
    bridge.enable_compatibility_mode()
    lm = load_lm(bridge, name=name)
    check(lm, exact=1e-4)
    assert not torch.allclose(parts(lm).attention(1).W_O, before)  # centred now


def test_a_bridge_has_the_older_names_of_its_sites(bridges):
    sites = layer_sites(bridges["gemma2"])
    assert sites[:3] == [f"blocks.0.hook_{name}" for name in ("attn_out", "mlp_out", "resid_post")]
    lanes = [place_of(site) for name in FAMILIES for site in layer_sites(bridges[name])]
    assert {(place.lane, place.point) for place in lanes if place} == {
        ("attention", "out"),
        ("mlp", "out"),
        ("residual", "out"),
    }
    assert None not in lanes


def test_a_bridge_predicts_as_the_model_inside_it(bridges):
    plain = load_lm(lively(tiny_models.gpt2()))
    assert bridges["gpt2"].next_token_loss(ids()) == pytest.approx(plain.next_token_loss(ids()), rel=1e-5)
    with pytest.raises(ConfigError, match="bert is an encoder"):
        bridges["bert"].next_token_loss(ids())


def test_hooks_by_the_older_names_are_enough():
    lm = load_lm(lively(Hooked()), name="hooked")
    check(lm)
    assert layer_sites(lm, "attention") == [f"blocks.{i}.hook_attn_out" for i in range(3)]
    assert parts(lm).attention(0).kv_heads == 3
    assert parts(lm).softcap is None


def test_hooked_transformer_is_read_with_its_grouped_heads():
    lm = load_lm(hooked_transformer(), name="hooked")
    check(lm)
    read = parts(lm).attention(1)
    assert (read.heads, read.kv_heads) == (4, 2)
    assert torch.equal(read.W_V[0], read.W_V[1])


def test_hooked_encoder_is_read_after_its_norms():
    try:
        from transformer_lens import HookedEncoder, HookedTransformerConfig  # pyright: ignore
    except ImportError:
        pytest.skip("this transformer_lens has no HookedEncoder")
    shape = {"n_layers": 3, "d_model": 32, "n_ctx": 20, "d_head": 8, "n_heads": 4, "d_vocab": VOCABULARY}
    config = HookedTransformerConfig(**shape, act_fn="gelu", attention_dir="bidirectional")
    lm = load_lm(lively(HookedEncoder(config)), name="encoder")
    check(lm, pre_norm=False)
    assert layer_sites(lm, "residual") == [f"blocks.{i}.hook_normalized_resid_post" for i in range(3)]
    with pytest.raises(ConfigError, match="encoder is an encoder"):
        lm.next_token_loss(ids())


def test_lens_models_without_the_needed_parts_are_refused():
    module: Any = Hooked()
    del module.blocks[1].attn.W_V
    lm = load_lm(lively(module), name="odd")
    with pytest.raises(ConfigError, match=r"attention of block 1 of odd has no W_V and W_O by head"):
        parts(lm)._read_attention(1)
    bare: Any = Hooked()
    bare.unembed = nn.Identity()
    with pytest.raises(ConfigError, match=r"bare has no unembedding"):
        _ = parts(load_lm(lively(bare), name="bare")).unembed
    lost: Any = Hooked()
    lost.blocks[2].hook_resid_post = nn.Identity()
    with pytest.raises(ConfigError, match=r"no hook hook_resid_post or hook_out in block 2"):
        _ = parts(load_lm(lively(lost), name="lost")).blocks
