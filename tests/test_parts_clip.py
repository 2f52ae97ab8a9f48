"""Promises of nb_sae.models.parts for the two towers of a CLIP."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_clips
import torch
from open_clip.model import CLIP
from tiny_models import lively
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.hooks import capture
from nb_sae.models.clip import ClipModel, load_clip
from nb_sae.models.parts import layer_sites, parts

IMAGES: dict[str, Any] = {
    "vit": tiny_clips.vit,
    "layer_scale": lambda: tiny_clips.vit(ls_init_value=0.5),
    "average": lambda: tiny_clips.vit(pool_type="avg", final_ln_after_pool=True),
    "coca": lambda: tiny_clips.vit(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2),
    "query_norm": lambda: tiny_clips.vit(qk_norm=True),
    "norm_after": lambda: tiny_clips.vit(scale_attn=True, ls_init_value=0.5),
    "siglip": tiny_clips.siglip,
    "timm_token": lambda: tiny_clips.siglip(init_values=0.5, global_pool="token", class_token=True, qk_norm=True),
    "timm_average": lambda: tiny_clips.siglip(global_pool="avg", class_token=True, fc_norm=True),
}
TEXTS: dict[str, Any] = {
    "vit": tiny_clips.vit,
    "custom": tiny_clips.custom,
    "last": lambda: tiny_clips.custom(no_causal_mask=True, pool_type="last", proj_bias=True),
    "class_token": lambda: tiny_clips.custom(embed_cls=True),
    "end_mark": lambda: tiny_clips.custom(pool_type="eos", eos_id=tiny_clips.WORDS - 1),
    "bert": tiny_clips.hugging_face_text,
    "bert_class": lambda: tiny_clips.hugging_face_text("cls_pooler"),
}
CASES = [*(("image", name) for name in IMAGES), *(("text", name) for name in TEXTS)]
POST_NORM = {("text", "bert"), ("text", "bert_class")}


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, str], ClipModel]:
    return {(tower, name): (IMAGES if tower == "image" else TEXTS)[name]() for tower, name in CASES}


def batch_for(clip: ClipModel, tower: Any) -> Tensor:
    return clip.probe_batch("image") if tower == "image" else clip.preprocessor("text")("abc").tensor.repeat(2, 1)


def seen_at(clip: ClipModel, sites: list[str], tower: Any) -> dict[str, Tensor]:
    with torch.no_grad(), capture(clip, sites) as seen:
        clip.forward(batch_for(clip, tower), tower)
    return dict(seen)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_attention_and_mlp_are_all_that_a_block_adds(made, case):
    found = parts(made[case], case[0])
    largest = max(found.additions(batch_for(made[case], case[0])).values())
    assert (largest < 1e-6) == (case not in POST_NORM)
    assert largest < 1e-6 or largest > 0.1


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_heads_sum_to_what_attention_gives(made, case):
    clip, found = made[case], parts(made[case], case[0])
    for block in found.blocks:
        read = found.attention(block.layer)
        pattern, x_normed = found.attention_run(batch_for(clip, case[0]), [block.layer])[block.layer]
        values = torch.einsum("bsd,hdk->bhsk", x_normed, read.W_V) + read.b_V[:, None]
        given = torch.einsum("bhts,bhsk,hkd->btd", pattern, values, read.W_O) + read.b_O
        expected = seen_at(clip, [read.site, block.residual], case[0])
        torch.testing.assert_close(given, expected[read.site], atol=1e-4, rtol=0)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]))
        before = found.blocks[block.layer - 1].residual
        if block.layer:
            torch.testing.assert_close(read.norm(seen_at(clip, [before], case[0])[before]), x_normed)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_project_does_what_the_tower_does_with_its_last_block(made, case):
    clip, found = made[case], parts(made[case], case[0])
    embed, last = f"{case[0]}_embed", found.blocks[-1].residual
    seen = seen_at(clip, [last, embed], case[0])
    # torch sums in another order where a pooling attention runs without gradients.
    off = 1e-6 if case[1] in ("coca", "siglip") else 0
    projected = found.project(seen[last], batch_for(clip, case[0]))
    torch.testing.assert_close(projected, seen[embed], atol=off, rtol=0)
    assert not projected.requires_grad
    lens = found.final_lens(seen[last])
    assert lens.shape == (*seen[last].shape[:2], tiny_clips.EMBED)
    if case[1] in ("vit", "layer_scale", "query_norm", "norm_after", "timm_token") and case[0] == "image":
        torch.testing.assert_close(lens[:, 0], seen[embed], atol=1e-5, rtol=0)
    if case[1] in ("last", "class_token"):
        torch.testing.assert_close(lens[:, -1], seen[embed], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["siglip", "coca"])
def test_a_token_alone_is_what_pooling_by_attention_would_make_of_it(made, name):
    clip, found = made["image", name], parts(made["image", name])
    x = torch.randn(2, 5, 24 if name == "siglip" else 48, generator=torch.Generator().manual_seed(1))
    same = x[:, :1].expand(-1, 5, -1)  # attention over five copies of a token is attention over the token
    torch.testing.assert_close(found.project(same), found.final_lens(x)[:, 0], atol=1e-5, rtol=0)
    assert clip.embed_dim == tiny_clips.EMBED


@pytest.mark.parametrize("case", [("image", "layer_scale"), ("image", "timm_token"), ("text", "vit")], ids="-".join)
def test_neurons_read_and_write_by_these_rows(made, case):
    clip, found = made[case], parts(made[case], case[0])
    W_in, W_out = found.mlp(1)
    block = clip.module.get_submodule(found.blocks[1].residual)
    first, last = ("fc1", "fc2") if case[1].startswith("timm") else ("c_fc", "c_proj")
    noted: dict[str, Tensor] = {}
    handles = [
        getattr(block.mlp, first).register_forward_hook(lambda _, args, out: noted.update(given=args[0], pre=out)),
        getattr(block.mlp, last).register_forward_pre_hook(lambda _, args: noted.update(neurons=args[0])),
    ]
    noted["out"] = seen_at(clip, [found.blocks[1].mlp], case[0])[found.blocks[1].mlp]
    for handle in handles:
        handle.remove()
    change = {name: value[0, 3] - value[0, 2] for name, value in noted.items()}
    torch.testing.assert_close(change["given"] @ W_in.T, change["pre"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(change["neurons"] @ W_out, change["out"], atol=1e-5, rtol=1e-4)


def test_fused_attention_is_put_back(made):
    clip = made["image", "siglip"]
    before = [block.attn.fused_attn for block in clip.module.visual.trunk.blocks]
    parts(clip).attention_run(clip.probe_batch("image"), [0, 2])
    assert [block.attn.fused_attn for block in clip.module.visual.trunk.blocks] == before


def test_a_causal_text_tower_does_not_look_ahead(made):
    for name, ahead in (("vit", False), ("last", True)):
        clip = made["text", name]
        pattern = parts(clip, "text").attention_run(batch_for(clip, "text"), [1])[1].pattern
        assert (pattern.triu(1).abs().max() > 0) == ahead


def test_sites_of_both_towers_and_the_embedding(made):
    clip = made["image", "layer_scale"]
    assert layer_sites(clip, ("residual", "embedding")) == [
        *(f"visual.transformer.resblocks.{i}" for i in range(3)),
        "image_embed",
    ]
    assert layer_sites(clip, "attention") == [f"visual.transformer.resblocks.{i}.ls_1" for i in range(3)]
    assert layer_sites(clip, ["mlp", "embedding"], tower="text")[-2:] == ["transformer.resblocks.2.mlp", "text_embed"]
    assert set(layer_sites(clip) + layer_sites(clip, tower="text")) <= set(clip.hook_names())


def test_a_tower_that_does_something_else_with_its_last_block_is_refused():
    clip: Any = tiny_clips.vit().module
    own = clip.visual.forward
    clip.visual.forward = lambda pixels: own(pixels).tanh()
    found = parts(load_clip(clip, name="odd"))
    for use in (lambda: found.final_lens(torch.ones(1, 48)), lambda: found.project(torch.ones(1, 17, 48))):
        with pytest.raises(ConfigError, match=r"odd does not make image_embed of its last block.*Capture image_embed"):
            use()
    assert found.attention(0).heads == 3


def test_half_precision_towers_project_in_their_own_precision():
    clip = load_clip(lively(CLIP(24, tiny_clips.VIT, tiny_clips.TEXT)).bfloat16(), name="half")
    found = parts(clip)
    last = found.blocks[-1].residual
    seen = seen_at(clip, [last, "image_embed"], "image")
    assert found.attention(1).W_O.dtype == found.final_lens(seen[last]).dtype == torch.float32
    torch.testing.assert_close(found.project(seen[last]), seen["image_embed"].float(), atol=0, rtol=0)
    finer = found.project(seen[last].float())
    torch.testing.assert_close(finer, seen["image_embed"].float(), atol=0.05, rtol=0.05)


def test_what_a_tower_lacks_is_said(made):
    with pytest.raises(ConfigError, match=r"The image tower of tiny has no unembedding.*final_lens"):
        _ = parts(made["image", "vit"]).unembed
    with pytest.raises(ConfigError, match="has no unembedding"):
        _ = parts(made["text", "bert"], "text").unembed
    with pytest.raises(ConfigError, match=r"pools at the end mark.*project\(x, ids\)"):
        parts(made["text", "vit"], "text").project(torch.zeros(1, 9, 32))
    with pytest.raises(ConfigError, match=r"pools over the tokens.*project\(x, ids\)"):
        parts(made["text", "bert"], "text").project(torch.zeros(1, 9, 32))
    with pytest.raises(ConfigError, match=r"class token after the 9 tokens of a text; got 9 positions"):
        parts(made["text", "class_token"], "text").project(torch.zeros(1, 9, 32))
    with pytest.raises(ConfigError, match=r"scales or normalises its heads.*Its sites can be used"):
        parts(tiny_clips.vit(scale_attn_inner=True)).attention(0)
    with pytest.raises(ConfigError, match="blocks of tiny"):
        parts(tiny_clips.vit(layers=(1, 1, 1, 1), width=8, head_width=64, image_size=64))
