"""Promises of nb_sae.models.parts for language models: what is read off the weights is what the model computes."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import tiny_models
import torch
from tiny_models import ENCODERS, PRE_NORM, VOCABULARY, lively
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.hooks import capture
from nb_sae.models.lm import LanguageModel, load_lm
from nb_sae.models.parts import Parts, layer_sites, parts

FAMILIES = [*PRE_NORM, *ENCODERS]
WRITES = ("c_proj", "dense_4h_to_h", "down_proj", "dense", "lin2", "Wo")
READS = ("c_fc", "dense_h_to_4h", "gate_proj", "gate_up_proj", "dense", "lin1", "Wi")


@pytest.fixture(scope="module")
def loaded() -> dict[str, LanguageModel]:
    made = {**PRE_NORM, **ENCODERS}
    return {name: load_lm(lively(make()), context_tokens=12, name=name) for name, make in made.items()}


def ids(contexts: int = 3, tokens: int = 8) -> Tensor:
    return torch.randint(2, VOCABULARY, (contexts, tokens), generator=torch.Generator().manual_seed(5))


def seen_at(lm: Any, sites: list[str], batch: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), capture(lm, sites) as seen:
        lm.forward(batch)
    return dict(seen)


def sum_of_heads(found: Parts, layer: int, batch: Tensor) -> Tensor:
    """Head by head, position by position: slow and plain."""
    read, (pattern, x_normed) = found.attention(layer), found.attention_run(batch, [layer])[layer]
    out = torch.zeros_like(x_normed) if read.b_O is None else read.b_O.expand_as(x_normed).clone()
    for head in range(read.heads):
        values = x_normed @ read.W_V[head]
        values = values if read.b_V is None else values + read.b_V[head]
        out += pattern[:, head] @ values @ read.W_O[head]
    return out


@pytest.mark.parametrize("family", PRE_NORM)
def test_attention_and_mlp_are_all_that_a_block_adds(loaded, family):
    lm, found = loaded[family], parts(loaded[family])
    seen = seen_at(lm, layer_sites(lm), ids())
    for before, block in zip(found.blocks, found.blocks[1:], strict=False):
        change = seen[block.residual] - seen[before.residual]
        torch.testing.assert_close(change, seen[block.attention] + seen[block.mlp], atol=1e-5, rtol=0)
    assert max(found.additions(ids()).values()) < 1e-6


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_that_normalises_afterwards_says_so(loaded, family):
    found = parts(loaded[family])
    assert min(found.additions(ids()).values()) > 0.1
    block = found.blocks[1]
    names = (found.blocks[0].residual, block.attention, block.mlp, block.residual)
    seen = seen_at(loaded[family], list(names), ids())
    before, attention, mlp, after = (seen[name] for name in names)
    layer = loaded[family].module.get_submodule(block.residual)
    distilled = family == "distilbert"
    first = layer.sa_layer_norm if distilled else layer.attention.output.LayerNorm
    last = layer.output_layer_norm if distilled else layer.output.LayerNorm
    torch.testing.assert_close(last(first(before + attention) + mlp), after)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_heads_sum_to_what_attention_gives(loaded, family):
    lm, found = loaded[family], parts(loaded[family])
    for block in found.blocks:
        read = found.attention(block.layer)
        seen = seen_at(lm, [read.site, block.attention], ids())
        given = sum_of_heads(found, block.layer, ids())
        torch.testing.assert_close(given, seen[read.site], atol=1e-4, rtol=0)
        added = given if read.after is None else read.after(given)
        torch.testing.assert_close(added, seen[block.attention], atol=1e-4, rtol=0)
        assert read.W_V.shape == (read.heads, 32, read.d_head)
        assert (read.after is None) == (family not in ("gemma2", "gemma3", "olmo2"))


def test_heads_share_values_where_the_model_groups_them(loaded):
    shared = {family: parts(loaded[family]).attention(1).kv_heads for family in ("llama", "falcon", "falcon_grouped")}
    assert shared == {"llama": 2, "falcon": 1, "falcon_grouped": 2}
    W_V = parts(loaded["llama"]).attention(1).W_V
    assert torch.equal(W_V[0], W_V[1])
    assert not torch.equal(W_V[1], W_V[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_attention_reads_is_the_normed_stream(loaded, family):
    found = parts(loaded[family])
    before = seen_at(loaded[family], [found.blocks[0].residual], ids())[found.blocks[0].residual]
    run = found.attention_run(ids(), [1])[1]
    torch.testing.assert_close(found.attention(1).norm(before), run.x_normed)


@pytest.mark.parametrize("family", ["neox", "llama", "gemma3", "bert"])
def test_patterns_equal_the_librarys_own_and_leave_the_model_as_it_was(loaded, family):
    lm, found = loaded[family], parts(loaded[family])
    before = lm.module.config._attn_implementation
    runs = found.attention_run(ids(), [0, 2])
    assert lm.module.config._attn_implementation == before == "sdpa"
    try:
        lm.module.set_attn_implementation("eager")
        with torch.no_grad():
            expected = lm.module(ids(), output_attentions=True).attentions
    finally:
        lm.module.set_attn_implementation(before)
    for layer, run in runs.items():
        torch.testing.assert_close(run.pattern, expected[layer])
        torch.testing.assert_close(run.pattern.sum(-1), torch.ones(3, 4, 8))
    looks_ahead = runs[0].pattern.triu(1).abs().max() > 0
    assert looks_ahead == (family == "bert")


def test_padding_is_not_attended_to(loaded):
    found = parts(loaded["llama"])
    padded = torch.cat([ids(2, 5), torch.full((2, 3), -1)], dim=1)
    pattern = found.attention_run(padded, [1])[1].pattern
    assert pattern[:, :, :5, 5:].abs().max() == 0
    torch.testing.assert_close(pattern[:, :, :5, :5], found.attention_run(ids(2, 5), [1])[1].pattern)


def test_hooks_and_attention_are_put_back_when_a_run_fails(loaded):
    lm, found = loaded["llama"], parts(loaded["llama"])

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hooks = [dict(module._forward_hooks) for module in lm.module.modules()]  # transformers leaves some of its own
    handle = lm.module.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        found.attention_run(ids(), [2])
    handle.remove()
    assert lm.module.config._attn_implementation == "sdpa"
    assert [dict(module._forward_hooks) for module in lm.module.modules()] == hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_final_norm_and_unembedding_give_the_logits_exactly(loaded, family):
    lm, found = loaded[family], parts(loaded[family])
    last = found.blocks[-1].residual
    with torch.no_grad():
        expected = lm.logits(ids())
        rows = seen_at(lm, [last], ids())[last]
        torch.testing.assert_close(found.logits(rows), expected, atol=0, rtol=0)
        W_U, b_U = found.unembed
        by_hand = found.final_norm(rows) @ W_U + (0 if b_U is None else b_U)
    if found.softcap is not None:
        by_hand = found.softcap * (by_hand / found.softcap).tanh()
    torch.testing.assert_close(by_hand, expected)
    assert W_U.shape == (32, VOCABULARY)
    assert (found.softcap == 2.0) == (family == "gemma2")


@pytest.mark.parametrize(("family", "tied"), [("qwen2", True), ("llama", False), ("gpt2", True)])
def test_a_tied_unembedding_is_the_embedding(loaded, family, tied):
    lm = loaded[family]
    W_U, _ = parts(lm).unembed
    assert torch.equal(W_U.T, lm.module.get_input_embeddings().weight) == tied


def test_a_model_without_a_head_has_blocks_and_no_logits(loaded):
    whole = loaded["llama"]
    bare = load_lm(whole.module.model, name="bare")
    found = parts(bare)
    assert found.blocks[1].attention == "layers.1.self_attn"
    torch.testing.assert_close(sum_of_heads(found, 1, ids()), sum_of_heads(parts(whole), 1, ids()))
    with pytest.raises(ConfigError, match=r"bare has no unembedding.*AutoModelForCausalLM"):
        _ = found.unembed
    with pytest.raises(ConfigError, match=r"no projection.*logits\(x\)"):
        found.project(torch.zeros(1, 2, 32))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gemma2", "gemma3", "olmo2", "mixtral")])
def test_neurons_read_and_write_by_these_rows(loaded, family):
    lm, found = loaded[family], parts(loaded[family])
    W_in, W_out = found.mlp(1)
    block = lm.module.get_submodule(found.blocks[1].residual)
    bert, mlp = hasattr(block, "intermediate"), getattr(block, "mlp", getattr(block, "ffn", None))
    reads, writes = (block.intermediate, block.output) if bert else (mlp, mlp)
    read = next(getattr(reads, name) for name in READS if hasattr(reads, name))
    write = next(getattr(writes, name) for name in WRITES if hasattr(writes, name))
    noted: dict[str, Tensor] = {}
    handles = [
        read.register_forward_hook(lambda _, args, out: noted.update(given=args[0], pre=out.clone())),
        write.register_forward_hook(lambda _, args, out: noted.update(neurons=args[0], out=out.clone())),
    ]
    with torch.no_grad():
        lm.forward(ids())
    for handle in handles:
        handle.remove()
    # Differences of two tokens: biases fall out.
    change = {name: value[0, 3] - value[0, 2] for name, value in noted.items()}
    torch.testing.assert_close(change["given"] @ W_in.T, change["pre"][: len(W_in)], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(change["neurons"] @ W_out, change["out"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_a_norm_after_the_mlp_is_multiplied_into_the_rows_that_write(loaded, family):
    lm, found = loaded[family], parts(loaded[family])
    _, W_out = found.mlp(1)
    layer = lm.module.model.layers[1]
    neurons: list[Tensor] = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: neurons.append(args[0]))
    added = seen_at(lm, [found.blocks[1].mlp], ids())[found.blocks[1].mlp]
    handle.remove()
    given = neurons[0] @ W_out
    torch.testing.assert_close(nn.functional.normalize(given, dim=-1), nn.functional.normalize(added, dim=-1))


class Squashed(nn.Linear):
    """A linear map that is none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def test_a_model_that_computes_something_else_is_refused():
    module: Any = lively(tiny_models.llama())
    for holder, name in ((module.model.layers[1].self_attn, "o_proj"), (module, "lm_head")):
        own = getattr(holder, name)
        other = Squashed(own.in_features, own.out_features, bias=own.bias is not None)
        other.load_state_dict(own.state_dict())
        setattr(holder, name, other)
    found = parts(load_lm(module, name="odd"))
    assert found.attention(0).heads == 4
    with pytest.raises(ConfigError, match=r"attention of block 1 of odd is not the sum of its heads"):
        found.attention(1)
    with pytest.raises(ConfigError, match=r"logits of odd are not .* logit lens does not apply"):
        _ = found.unembed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
def test_half_precision_models_are_read_as_float32(family, dtype):
    lm = load_lm(lively(PRE_NORM[family]()).to(dtype), name=family)
    found = parts(lm)
    read, run = found.attention(1), found.attention_run(ids(), [1])[1]
    W_U, _ = found.unembed
    W_in, _ = found.mlp(1)
    assert {x.dtype for x in (read.W_V, read.W_O, run.pattern, run.x_normed, W_U, W_in)} == {torch.float32}
    assert next(lm.module.parameters()).dtype == dtype
    rows = seen_at(lm, [found.blocks[-1].residual], ids())[found.blocks[-1].residual]
    exact = parts(load_lm(lm.module.float(), name=family)).logits(rows.float())
    torch.testing.assert_close(
        found.final_norm(rows.float()), found.final_norm(rows.double()).float(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.logits(rows.float()), exact)


def test_gradients_reach_the_rows_and_leave_the_model_alone(loaded):
    found = parts(loaded["llama"])
    rows = torch.randn(2, 32, requires_grad=True)
    found.logits(rows)[:, 3].sum().backward()
    assert rows.grad.abs().min() > 0
    assert all(weight.grad is None for weight in loaded["llama"].module.parameters())


def test_weights_that_wait_on_the_disk_are_read(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    whole, spread = lively(tiny_models.neox()), lively(tiny_models.neox())
    away = ("gpt_neox.layers", "gpt_neox.final_layer_norm", "embed_out", "lm_head")
    places = {name: "disk" if name in away else "cpu" for name, _ in whole.gpt_neox.named_children()}
    places = {f"gpt_neox.{name}": "disk" if f"gpt_neox.{name}" in away else "cpu" for name in places}
    places |= {name: "disk" for name, _ in whole.named_children() if name != "gpt_neox"}
    spread = accelerate.dispatch_model(spread, places, main_device="cpu", offload_dir=str(tmp_path))
    assert spread.gpt_neox.final_layer_norm.weight.is_meta
    expected, found = parts(load_lm(whole)), parts(load_lm(spread))
    for name in ("W_V", "b_V", "W_O", "b_O"):
        torch.testing.assert_close(getattr(found.attention(1), name), getattr(expected.attention(1), name))
    torch.testing.assert_close(found.mlp(2), expected.mlp(2))
    rows = torch.randn(2, 32)
    torch.testing.assert_close(found.logits(rows), expected.logits(rows))


def test_a_model_that_scales_what_it_adds_has_no_such_sites():
    lm = load_lm(lively(tiny_models.granite()), name="granite")
    with pytest.raises(ConfigError, match=r"granite do not give what their block adds.*lanes='residual'"):
        layer_sites(lm)
    assert layer_sites(lm, "residual") == [f"model.layers.{i}" for i in range(3)]
    rows = seen_at(lm, ["model.layers.2"], ids())["model.layers.2"]
    torch.testing.assert_close(parts(lm).logits(rows), lm.logits(ids()).detach())


def test_an_mlp_that_gives_no_rows_is_left_out():
    lm = load_lm(lively(tiny_models.opt()), name="opt")
    assert layer_sites(lm)[:2] == ["model.decoder.layers.0.self_attn", "model.decoder.layers.0"]
    with pytest.raises(ConfigError, match="no site that gives rows for lanes="):
        layer_sites(lm, "mlp")
    assert parts(lm).mlp(1)[1].shape == (48, 32)
    seen = seen_at(lm, ["model.decoder.layers.1.self_attn"], ids())["model.decoder.layers.1.self_attn"]
    torch.testing.assert_close(sum_of_heads(parts(lm), 1, ids()), seen, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="logit lens does not apply"):
        _ = parts(lm).unembed


def test_experts_have_no_rows_of_their_own(loaded):
    assert parts(loaded["mixtral"]).mlp(0) is None


def test_layer_sites_are_in_the_order_of_the_pass(loaded):
    sites = layer_sites(loaded["gpt2"])
    assert sites[:4] == ["transformer.h.0.attn", "transformer.h.0.mlp", "transformer.h.0", "transformer.h.1.attn"]
    assert layer_sites(loaded["gpt2"], "residual") == [f"transformer.h.{i}" for i in range(3)]
    visited = [site for site in loaded["gpt2"].hook_names() if site in sites]
    assert visited == sites


def test_lanes_layers_and_models_that_are_not_there_are_refused(loaded):
    lm = loaded["gpt2"]
    with pytest.raises(ConfigError, match=r"'residul' is no lane\. Closest: residual"):
        layer_sites(lm, ["residul"])
    with pytest.raises(ConfigError, match="ends in no embedding"):
        layer_sites(lm, ["residual", "embedding"])
    with pytest.raises(ConfigError, match=r"tower='image' is none of gpt2.*It has: text"):
        parts(lm, "image")
    with pytest.raises(ConfigError, match=r"layer=3 does not exist in gpt2; expected 0 to 2"):
        parts(lm).attention(3)
    with pytest.raises(ConfigError, match="names no block"):
        parts(lm).attention_run(ids(), [])
    with pytest.raises(ConfigError, match=r"expected a model from load_lm\(\) or load_clip\(\)"):
        parts(lm.module)
    with pytest.raises(ConfigError, match="does not know the blocks of plain"):
        parts(load_lm(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), name="plain"))


def test_parts_are_made_once_for_each_model(loaded):
    assert parts(loaded["gpt2"]) is parts(loaded["gpt2"], "text")
    assert parts(loaded["gpt2"]) is not parts(loaded["llama"])


def test_parts_do_not_keep_a_model_alive():
    lm = load_lm(lively(tiny_models.gpt2()))
    assert parts(lm).attention(0).heads == 4
    gone = weakref.ref(lm.module)
    del lm
    gc.collect()
    assert gone() is None
