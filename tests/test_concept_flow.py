"""A concept is followed from patches to the embedding: its chain, names and maps, and what chance gives for them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import open_clip
import polars as pl
import pytest
import torch
from metric_fakes import gaussian
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.errors import ConfigError, InputError, NonFiniteError
from nb_sae.flow.effects.concept_flow import concept_flow
from nb_sae.flow.effects.map_agreement import Codes, answer_agreement, map_agreement
from nb_sae.flow.links.making import feature_flow
from nb_sae.flow.links.spaces import through_final_norm
from nb_sae.flow.schema import CONCEPT_CHAIN, CONCEPT_FLOW, MAP_AGREEMENT
from nb_sae.types import Site

VIT = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
BLOCKS = [f"visual.transformer.resblocks.{i}" for i in range(3)]
SITES = [*BLOCKS, "image_embed"]
WORDS = ["hat", "glasses", "smile", "beard", "earring", "sky", "tree", "dog", "car", "house", "book", "cup"]
TOKENS = open_clip.SimpleTokenizer(context_length=16)
LATENTS, K, NAMED = 40, 8, 5


def wrap(module: nn.Module):
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    return ns.load_clip(module, preprocess=transform, tokenizer=TOKENS, name="still")


def still() -> CLIP:
    """A CLIP whose blocks add nothing: a patch is after every block what it was before."""
    torch.manual_seed(0)
    module = CLIP(24, VIT, TEXT)
    for block in module.visual.transformer.resblocks:
        for last in (block.attn.out_proj, block.mlp.c_proj):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    return module


@pytest.fixture(scope="module")
def clip():
    return wrap(still())


def pixels(count: int = 12) -> torch.Tensor:
    return gaussian(count, 3, 32, 32, seed=2, dtype=torch.float)


def dictionary_of(rows: torch.Tensor, site: str, clip=None) -> ns.Dictionary:
    about = {"model": clip.name, "revision": clip.revision} if clip is not None else {}
    weights = {"W_enc": rows.T.contiguous(), "b_enc": torch.zeros(len(rows)), "W_dec": rows}
    return ns.Dictionary(weights | {"b_dec": torch.zeros(rows.shape[1])}, budgets=(K,), site=site, **about)


@pytest.fixture(scope="module")
def world(clip):
    """The same random directions at every block, in another order each, and what they become in the embedding.

    Direction `NAMED` is one that the final norm and the projection take to the word "beard".
    """
    rows = F.normalize(gaussian(LATENTS, 48, seed=5, dtype=torch.float), dim=-1)
    words = clip.encode_text(WORDS, normalize=True)
    ends = torch.cat([clip.module.visual.proj.detach(), torch.ones(48, 1)], dim=1)
    beard = torch.cat([words[WORDS.index("beard")] - words.mean(0), torch.zeros(1)])
    rows[NAMED] = F.normalize(beard @ torch.linalg.pinv(ends), dim=-1)
    order = [torch.randperm(LATENTS, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    placed = [rows[one] for one in order[:3]]
    placed.append(F.normalize(through_final_norm(clip, "image", rows[order[3]]), dim=-1))
    dictionaries = {site: dictionary_of(one, site, clip) for site, one in zip(SITES, placed, strict=True)}
    number = {site: one.argsort().tolist() for site, one in zip(SITES, order, strict=True)}
    flow = feature_flow(dictionaries, model=clip, draws=1000, progress=False)
    return SimpleNamespace(dictionaries=dictionaries, number=number, flow=flow)


def follow(clip, world, latent: int = NAMED, site: str = "image_embed", **given):
    settings = {"images": pixels(), "progress": False} | given
    images = settings.pop("images")
    flow = settings.pop("flow", world.flow)
    dictionaries = settings.pop("dictionaries", world.dictionaries)
    return concept_flow(flow, dictionaries, clip, images, site, world.number[site][latent], **settings)


@pytest.fixture(scope="module")
def followed(clip, world):
    return follow(clip, world, texts=WORDS)


def test_the_chain_is_the_planted_one_at_every_block(followed, world):
    assert followed.chain.schema == CONCEPT_CHAIN
    assert followed.chain["site"].to_list() == SITES
    assert followed.chain["step"].to_list() == [-3, -2, -1, 0]
    assert followed.chain["latent"].to_list() == [world.number[site][NAMED] for site in SITES]
    torch.testing.assert_close(followed.chain["cosine"].head(3).to_torch(), torch.ones(3), atol=1e-4, rtol=0)


def test_maps_are_the_activations_on_the_patches_of_each_picture(clip, followed, world):
    frame = followed.frame
    assert frame.schema == CONCEPT_FLOW
    assert frame.height == 4 * 12
    for site in BLOCKS:
        rows = clip.capture_rows(pixels(), [site], "image")[site]
        acts = world.dictionaries[site].encode(rows.flatten(0, 1))[:, world.number[site][NAMED]].view(12, 17)
        lines = frame.filter(pl.col("site") == site).sort("input_id")
        torch.testing.assert_close(torch.tensor(lines["map"].to_list()), acts[:, 1:])
        torch.testing.assert_close(lines["cls"].to_torch(), acts[:, 0])
        assert lines.select("rows", "columns").unique().rows() == [(4, 4)]
    end = frame.filter(pl.col("site") == "image_embed").sort("input_id")
    assert end["map"].null_count() == end["rows"].null_count() == 12
    acts = world.dictionaries["image_embed"].encode(clip.encode_image(pixels()))
    torch.testing.assert_close(end["cls"].to_torch(), acts[:, world.number["image_embed"][NAMED]])


def test_a_latent_that_looks_at_the_same_places_agrees_beyond_chance(followed):
    frame = followed.agreement
    assert frame.schema == MAP_AGREEMENT
    assert frame["over"].to_list() == ["patches", "patches", "inputs"]
    maps = frame.head(2)
    assert maps["agreement"].to_list() == pytest.approx([1.0, 1.0])
    assert (maps["null_high"] < 0.5).all()
    assert maps["null_mean"].to_numpy() == pytest.approx(0, abs=0.2)
    assert maps["p"].to_list() == pytest.approx([1 / (1 + count) for count in maps["controls"]])


def test_links_between_unrelated_latents_agree_as_often_as_chance_does():
    rows = gaussian(60, 30, 48, seed=3, dtype=torch.float)
    codes = [Codes(Site("made", 48, positions=30, grid=(5, 6)), _random(seed)) for seed in (0, 1)]
    for one in codes:
        one.add(rows)
    maps = codes[1].patches(range(100))
    found = []
    for latent in range(100):
        others = codes[0].controls(latent, 19, answers=False, seed=latent)
        agreement, _ = map_agreement(codes[0].patches([latent, *others]), maps[..., latent])
        found.append(1 + int((agreement[1:] >= agreement[0]).sum()) <= 1)
    assert np.mean(found) == pytest.approx(1 / 20, abs=0.06)


def _random(seed: int) -> ns.Dictionary:
    return dictionary_of(F.normalize(gaussian(150, 48, seed=10 + seed, dtype=torch.float), dim=-1), "made")


def test_map_agreement_is_the_mean_rank_correlation():
    stats = pytest.importorskip("scipy.stats")
    sources = gaussian(7, 20, 3, seed=1).relu().float()
    target = gaussian(7, 20, seed=2).relu().float()
    target[4] = 0  # says nothing
    sources[1, :, 0] = 0  # agrees by 0
    found, inputs = map_agreement(sources, target)
    rho = [
        [0 if not sources[i, :, j].any() else stats.spearmanr(sources[i, :, j], target[i]).statistic for j in range(3)]
        for i in range(7)
        if i != 4
    ]
    assert inputs == 6
    np.testing.assert_allclose(found, np.mean(rho, axis=0), atol=1e-9)


def test_where_nothing_is_active_there_is_no_agreement():
    found, inputs = map_agreement(torch.rand(4, 9, 2), torch.zeros(4, 9))
    assert inputs == 0
    assert found.isnan().all()
    assert answer_agreement(torch.rand(4, 2), torch.rand(4))[1] == 0  # too few pictures
    same = torch.rand(6)
    assert float(answer_agreement(same[:, None], same)[0]) == pytest.approx(1)


def test_controls_are_active_as_often(world, clip):
    codes = Codes(clip.site(BLOCKS[0], "image"), world.dictionaries[BLOCKS[0]])
    codes.add(clip.capture_rows(pixels(), BLOCKS[:1], "image")[BLOCKS[0]])
    density, _ = codes.usage(1, None)
    acts = codes.patches(range(LATENTS)).flatten(0, 1)
    np.testing.assert_allclose(density, (acts > 0).double().mean(0), atol=1e-12)
    latent = int(np.argsort(density)[len(density) // 2])
    others = codes.controls(latent, 4, answers=False, seed=0)
    assert latent not in others
    assert len(set(others)) == 4
    assert np.abs(np.log(density[others] / density[latent])).max() < np.abs(np.log(density / density[latent])).max()
    assert len(codes.controls(latent, 10**6, answers=False, seed=0)) == int((density > 0).sum()) - 1


def named(world, latent: int, name: str, labels: dict[int, str] | None = None):
    numbers = [world.number["image_embed"][latent], 0 if world.number["image_embed"][latent] else 1]
    frame = pl.DataFrame(
        {
            "latent": numbers,
            "name": [name, "nothing"],
            "accepted": [True, False],
            "cosine": [0.6, 0.1],
            "p": [0.001, 0.9],
        }
    )
    return SimpleNamespace(frame=frame, labels=labels or {})


def test_names_come_from_the_embedding_and_weaker_ones_from_the_lens(clip, world):
    told = follow(clip, world, names=named(world, NAMED, "a beard"), texts=WORDS).chain
    assert told["name"].to_list() == ["beard", "beard", "beard", "a beard"]
    assert told["name_kind"].to_list() == ["lens", "lens", "lens", "name"]
    assert told["name_cosine"].to_list() == pytest.approx([1, 1, 1, 0.6], abs=1e-3)
    assert told["name_p"].max() <= 0.01
    label = {world.number["image_embed"][NAMED]: "my own"}
    told = follow(clip, world, names={"image_embed": named(world, NAMED, "a beard", label)}).chain
    assert told.select("name", "name_kind").row(-1) == ("my own", "label")
    assert told["name"].null_count() == 3  # one accepted name is nothing for a lens to choose from


def test_a_latent_without_a_match_is_a_chain_of_its_own(clip, world):
    rows = gaussian(LATENTS, 24, seed=77, dtype=torch.float)
    lone = {**world.dictionaries, "image_embed": dictionary_of(F.normalize(rows, dim=-1), "image_embed", clip)}
    strict = feature_flow(lone, model=clip, draws=1000, thresholds={"residual": 0.999}, progress=False)
    found = follow(clip, world, flow=strict, dictionaries=lone, texts=WORDS)
    assert found.chain["site"].to_list() == ["image_embed"]
    assert found.agreement.height == 0
    assert found.about["without_lens"] == "the chain passes no block"
    assert "1 steps" in repr(found)


def test_a_tower_that_pools_by_attention_gives_no_names_and_says_so(world):
    pytest.importorskip("timm")
    settings = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224}
    module = CustomTextCLIP(192, settings, TEXT | {"no_causal_mask": True})
    siglip = ns.load_clip(
        module, preprocess=image_transform_v2(PreprocessCfg(size=224), is_train=False), tokenizer=TOKENS
    )
    sites = ["visual.trunk.blocks.0", "visual.trunk.blocks.1"]
    rows = F.normalize(gaussian(LATENTS, 192, dtype=torch.float), dim=-1)
    dictionaries = {site: dictionary_of(rows, site, siglip) for site in sites}
    flow = feature_flow(dictionaries, draws=1000, progress=False)
    pictures = gaussian(2, 3, 224, 224, dtype=torch.float)
    found = concept_flow(flow, dictionaries, siglip, pictures, sites[1], 4, texts=WORDS, progress=False)
    assert found.chain.select("site", "name").rows() == [(sites[0], None), (sites[1], None)]
    assert "norm and a linear map" in found.about["without_lens"]
    assert found.frame["map"].list.len().unique().to_list() == [196]


def test_lens_names_of_random_directions_are_as_rare_as_chance(clip, world):
    kinds = [follow(clip, world, latent, texts=WORDS, controls=0).chain for latent in range(12) if latent != NAMED]
    lines = pl.concat(kinds).filter(pl.col("site") == BLOCKS[0])
    assert lines["nearest"].null_count() == 0
    assert (lines["name_kind"] == "lens").sum() <= 3
    assert lines.filter(pl.col("name").is_null())["name_p"].min() > 0.05


def test_a_chain_begins_anywhere_and_needs_no_null(clip, world):
    found = follow(clip, world, 7, BLOCKS[1], controls=0)
    assert found.chain["step"].to_list() == [-1, 0, 1, 2]
    assert found.agreement["p"].null_count() == found.agreement["null_mean"].null_count() == 3
    assert found.agreement["agreement"].head(2).to_list() == pytest.approx([1, 1])
    few = follow(clip, world, 7, BLOCKS[1], images=pixels(3))
    assert few.agreement["agreement"][-1] is None  # three pictures say nothing about an order of pictures


def test_a_silent_latent_has_empty_maps(clip, world):
    quiet = dict(world.dictionaries)
    for site in SITES:
        weights = {name: getattr(quiet[site], name).clone() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        weights["b_enc"][world.number[site][3]] = -1e3
        quiet[site] = ns.Dictionary(weights, budgets=(K,), site=site)
    found = follow(clip, world, 3, dictionaries=quiet)
    assert sum(sum(one) for one in found.frame["map"].drop_nulls()) == 0
    assert found.agreement["agreement"].null_count() == 3
    assert found.agreement["controls"].sum() == 0


def test_a_half_precision_model_gives_nearly_the_same_maps(clip, world, followed):
    half = wrap(still().bfloat16())
    own = {site: dictionary_of(one.W_dec, site) for site, one in world.dictionaries.items()}
    found = follow(half, world, dictionaries=own, texts=WORDS)
    assert found.chain["name"].head(3).to_list() == ["beard"] * 3
    here, there = (np.array(one.frame["map"].drop_nulls().to_list()).ravel() for one in (found, followed))
    assert np.corrcoef(here, there)[0, 1] > 0.98


def test_what_cannot_be_followed_is_refused(clip, world):
    with pytest.raises(ConfigError, match="expected a CLIP"):
        follow(ns.load_lm("demo"), world)
    with pytest.raises(InputError, match="No pictures"):
        follow(clip, world, images=[])
    with pytest.raises(ConfigError, match="Closest: image_embed"):
        concept_flow(world.flow, world.dictionaries, clip, pixels(), "image_embd", 0)
    with pytest.raises(ConfigError, match="outside 0 … 39"):
        concept_flow(world.flow, world.dictionaries, clip, pixels(), "image_embed", 40)
    with pytest.raises(ConfigError, match="There is no dictionary for"):
        follow(clip, world, dictionaries={site: world.dictionaries[site] for site in SITES[1:]})
    with pytest.raises(ConfigError, match="which is no site of the flow"):
        follow(clip, world, names={"text_embed": named(world, NAMED, "x")})
    for given, message in (
        ({"controls": -1}, "controls=-1"),
        ({"batch": 0}, "batch=0"),
        ({"names": "hat"}, "expected what ns.name_concepts gives"),
        ({"names": {"image_embed": 1}}, "expected what ns.name_concepts gives"),
    ):
        with pytest.raises(ConfigError, match=message):
            follow(clip, world, **given)
    with pytest.raises(ConfigError, match="as the flow"):
        concept_flow(world.flow.edges, world.dictionaries, clip, pixels(), "image_embed", 0)
    with pytest.raises(NonFiniteError, match=r"tokens of 'visual\.transformer"):
        follow(clip, world, images=torch.full((2, 3, 32, 32), torch.nan))


def test_dictionaries_of_another_model_or_flow_are_refused(clip, world):
    other = dict(world.dictionaries)
    other[BLOCKS[0]] = dictionary_of(other[BLOCKS[0]].W_dec[:30], BLOCKS[0], clip)
    with pytest.raises(ConfigError, match=r"30 latents of width 48, that of the flow 40"):
        follow(clip, world, dictionaries=other)
    torch.manual_seed(4)
    with pytest.raises(ConfigError, match="revision"):
        follow(wrap(CLIP(24, VIT, TEXT)), world)


def test_a_flow_of_texts_has_no_patches(clip):
    sites = ["transformer.resblocks.0", "text_embed"]
    rows = [gaussian(20, width, dtype=torch.float) for width in (32, 24)]
    dictionaries = {site: dictionary_of(one, site, clip) for site, one in zip(sites, rows, strict=True)}
    flow = feature_flow(dictionaries, model=clip, draws=1000, progress=False)
    with pytest.raises(ConfigError, match="text tower"):
        concept_flow(flow, dictionaries, clip, pixels(), "text_embed", 0)
