"""Promises of nb_sae.models.clip, against open_clip's own intermediates."""

from __future__ import annotations

import gzip
import json
import pickle

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from nb_sae import types
from nb_sae.errors import ConfigError, HookError, InputError, InputNotFoundError, ShapeError
from nb_sae.hooks import capture, intervene, run_to
from nb_sae.models.clip import ClipModel, load_clip

PIXELS, EMBED = 32, 24
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
VIT = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": PIXELS}
RESNET = {"layers": (1, 1, 1, 1), "width": 8, "head_width": 64, "image_size": 64}
SIGLIP = {
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_pool": "map",
    "timm_proj": "none",
    "image_size": 224,
}


class Tokenizer(open_clip.SimpleTokenizer):
    def __init__(self) -> None:
        super().__init__(context_length=TEXT["context_length"])


def transform(size: int = PIXELS):
    return image_transform_v2(PreprocessCfg(size=size), is_train=False)


def wrap(module: nn.Module, size: int = PIXELS) -> ClipModel:
    return load_clip(module, preprocess=transform(size), tokenizer=Tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def vit() -> ClipModel:
    torch.manual_seed(0)
    return wrap(CLIP(EMBED, VIT, TEXT))


@pytest.fixture(scope="module")
def custom() -> ClipModel:
    torch.manual_seed(0)
    return wrap(CustomTextCLIP(EMBED, VIT, TEXT | {"no_causal_mask": True, "pool_type": "last"}))


@pytest.fixture(scope="module")
def resnet() -> ClipModel:
    torch.manual_seed(0)
    module = CLIP(EMBED, RESNET, TEXT)
    for part in module.modules():  # the last normalisation starts at zero, which would hide every mistake
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return wrap(module, 64)


@pytest.fixture(scope="module")
def siglip() -> ClipModel:
    torch.manual_seed(0)
    timm = pytest.importorskip("timm")
    assert timm
    module = CustomTextCLIP(192, SIGLIP, TEXT | {"no_causal_mask": True}, init_logit_bias=-10.0)
    return wrap(module, 224)


def pixels(size: int = PIXELS, count: int = 4) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def pictures(count: int = 3) -> list[Image.Image]:
    return [Image.new("RGB", (40, 50), (40 * i, 90, 200 - 30 * i)) for i in range(count)]


def ids(texts: list[str]) -> Tensor:
    return Tokenizer()(texts)


def oracle(clip: ClipModel, **given) -> dict:
    with torch.no_grad():
        return clip.module.forward_intermediates(
            **given, normalize=False, image_output_extra_tokens=True, image_output_fmt="NLC"
        )


def test_a_loaded_clip_is_a_hooked_model(vit):
    assert isinstance(vit, types.HookedModel)
    assert str(vit.device) in repr(vit)


def test_vit_sites_equal_open_clips_intermediates(vit):
    sites = [f"visual.transformer.resblocks.{i}" for i in range(3)]
    rows = vit.capture_rows(pixels(), [*sites, "image_embed"], "image")
    expected = oracle(vit, image=pixels())
    for i, site in enumerate(sites):
        torch.testing.assert_close(rows[site][:, 1:], expected["image_intermediates"][i])
        torch.testing.assert_close(rows[site][:, :1], expected["image_intermediates_prefix"][i])
    torch.testing.assert_close(rows["image_embed"], expected["image_features"])
    assert vit.site(sites[0], "image") == types.Site(sites[0], 48, prefix_tokens=1, positions=17, grid=(4, 4))
    assert vit.site("image_embed", "image") == types.Site("image_embed", EMBED, pooled=True)


def test_vit_feature_map_site_knows_its_grid(vit):
    site = vit.site("visual.conv1", "image")
    assert (site.grid, site.prefix_tokens, site.positions) == ((4, 4), 0, 16)


@pytest.mark.parametrize("kind", ["vit", "custom"])
def test_text_sites_equal_open_clips_intermediates(kind, request):
    clip = request.getfixturevalue(kind)
    root = "transformer" if kind == "vit" else "text.transformer"
    sites = [f"{root}.resblocks.{i}" for i in range(3)]
    tokens = ids(["a face", "a smiling face with a hat"])
    rows = clip.capture_rows(tokens, [*sites, "text_embed"], "text")
    with torch.no_grad():
        expected = clip.module.forward_intermediates(text=tokens, normalize=False, text_output_fmt="NLC")
    for i, site in enumerate(sites):
        torch.testing.assert_close(rows[site], expected["text_intermediates"][i])
    torch.testing.assert_close(rows["text_embed"], expected["text_features"])
    assert clip.site(sites[0], "text") == types.Site(sites[0], 32, positions=16)


def test_siglip_tower_has_patches_and_no_prefix(siglip):
    sites = ["visual.trunk.blocks.0", "visual.trunk.blocks.11"]
    rows = siglip.capture_rows(pixels(224, 2), [*sites, "image_embed"], "image")
    with torch.no_grad():
        expected = siglip.module.visual.forward_intermediates(pixels(224, 2), indices=[0, 11], output_fmt="NLC")
        embedding = siglip.module.encode_image(pixels(224, 2))
    site = siglip.site(sites[0], "image")
    torch.testing.assert_close(rows["image_embed"], embedding)
    for i, name in enumerate(sites):
        torch.testing.assert_close(rows[name][:, site.prefix_tokens :], expected["image_intermediates"][i])
    assert site.grid == (14, 14)
    assert site.positions == site.prefix_tokens + 196


def test_resnet_layers_are_patches_without_prefix(resnet):
    sites = [f"visual.layer{i}" for i in (1, 2, 3, 4)]
    rows = resnet.capture_rows(pixels(64), [*sites, "image_embed"], "image")
    with torch.no_grad():
        expected = resnet.module.visual.forward_intermediates(pixels(64))
    for site, kept in zip(sites, expected["image_intermediates"][1:], strict=True):
        torch.testing.assert_close(rows[site], kept.flatten(2).transpose(1, 2))
        described = resnet.site(site, "image")
        assert (described.grid, described.prefix_tokens) == (tuple(kept.shape[2:]), 0)
    torch.testing.assert_close(rows["image_embed"], expected["image_features"])
    assert resnet.site("visual.attnpool", "image").pooled


@pytest.mark.parametrize("kind", ["vit", "custom", "resnet"])
def test_every_listed_site_gives_the_rows_it_promises(kind, request):
    clip = request.getfixturevalue(kind)
    names = clip.hook_names()
    assert names[-2:] == ["image_embed", "text_embed"]
    size = 64 if kind == "resnet" else PIXELS
    for modality, batch in (("image", pixels(size)), ("text", ids(["a", "b", "c d"]))):
        sites = {name: clip.site(name, modality) for name in names if belongs(clip, name, modality)}
        for name, rows in clip.capture_rows(batch, list(sites), modality).items():
            site = sites[name]
            shape = (len(batch), site.width) if site.pooled else (len(batch), site.positions, site.width)
            assert rows.shape == shape
            if site.grid:
                assert site.positions == site.prefix_tokens + site.grid[0] * site.grid[1]


def belongs(clip: ClipModel, name: str, modality: types.Modality) -> bool:
    try:
        clip.site(name, modality)
    except HookError:
        return False
    return True


def test_the_pass_stops_after_the_last_site(vit):
    called = []
    handle = vit.module.visual.transformer.resblocks[2].register_forward_hook(lambda *_: called.append(1))
    vit.capture_rows(pixels(), ["visual.transformer.resblocks.1"], "image")
    handle.remove()
    assert called == []


def test_unknown_site_offers_the_closest_names(vit):
    with pytest.raises(HookError, match=r"tiny has no module 'visual\.transformer\.resblock\.1'\. Closest: visual\."):
        vit.capture_rows(pixels(), ["visual.transformer.resblock.1"], "image")
    with pytest.raises(HookError, match=r"Closest: .*hook_names"), capture(vit, "visual.layer1"):
        pass


def test_a_module_that_never_runs_is_not_called_unknown(vit):
    with pytest.raises(HookError, match="does not run in a forward pass"):
        vit.site("visual.transformer.resblocks.0.attn.out_proj", "image")


def test_an_image_site_asked_for_with_texts_is_refused(vit):
    with pytest.raises(HookError, match="belongs to the image tower and was asked for with text inputs"):
        vit.capture_rows(ids(["a"]), ["visual.transformer.resblocks.1"], "text")


def test_token_first_blocks_are_refused_with_the_shape_seen():
    module = CLIP(EMBED, VIT, TEXT)
    module.visual.transformer.batch_first = False  # open_clip before 2.26
    for block in module.visual.transformer.resblocks:
        block.attn.batch_first = False
    clip = wrap(module)
    with pytest.raises(HookError, match=r"\(17, 2, 48\) for a batch of 2, which looks like \(token, batch, width\)"):
        clip.site("visual.transformer.resblocks.1", "image")
    assert "visual.transformer.resblocks.1" not in clip.hook_names()


def test_probe_uses_another_batch_where_there_are_as_many_tokens_as_pictures():
    class TwoTokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.batch_first, self.token_first = nn.Identity(), nn.Identity()

        def encode_image(self, x: Tensor) -> Tensor:
            x = self.batch_first(x.mean((1, 3), keepdim=False)[:, :2, None].repeat(1, 1, 5))
            return self.token_first(x.transpose(0, 1)).mean(0)

    clip = load_clip(TwoTokens(), preprocess=transform())
    assert clip.site("batch_first", "image").positions == 2
    with pytest.raises(HookError, match=r"looks like \(token, batch, width\)"):
        clip.site("token_first", "image")


def test_captions_keep_their_words_and_mark_the_rest(vit):
    prepared = vit.preprocessor("text")("a face")
    assert prepared.tensor.shape == (1, 16)
    assert prepared.keep[0].tolist() == [True] * 4 + [False] * 12
    assert prepared.special[0].tolist() == [True, False, False, True] + [True] * 12
    assert vit.token_strings(prepared.tensor[0, :4].tolist()) == ["<start_of_text>", "a ", "face ", "<end_of_text>"]


def test_prepared_captions_give_what_the_tokenizers_own_ids_give(custom):
    site = "text.transformer.resblocks.2"  # without a causal mask every row sees the padding
    prepared = custom.preprocessor("text")("a face").tensor
    assert custom.token_strings(prepared[0].tolist()) == ["<start_of_text>", "a ", "face ", "<end_of_text>", *[""] * 12]
    expected = custom.capture_rows(ids(["a face"]), [site, "text_embed"], "text")
    for name, rows in custom.capture_rows(prepared, [site, "text_embed"], "text").items():
        assert torch.equal(rows, expected[name])


def test_padding_does_not_change_the_rows_of_a_caption(vit):
    site = "transformer.resblocks.1"
    alone = vit.capture_rows(ids(["a face"]), [site], "text")[site]
    other = ids(["a face"])
    other[0, 4:] = 7
    torch.testing.assert_close(vit.capture_rows(other, [site], "text")[site][:, :4], alone[:, :4])


def test_token_strings_never_raise(vit):
    every = vit.token_strings([-1, 10**9, *range(0, 49408, 97)])
    assert every[:2] == ["", "<id 1000000000>"]
    assert all(isinstance(text, str) for text in every)


def test_preprocessors_are_picklable_and_hold_no_weights(vit):
    for modality, raw in (("image", pictures()[1]), ("text", "a face")):
        prepare = vit.preprocessor(modality)
        again = pickle.loads(pickle.dumps(prepare))
        assert torch.equal(again(raw).tensor, prepare(raw).tensor)
    assert len(pickle.dumps(vit.preprocessor("image"))) < 10_000


def test_a_tokenizer_of_another_model_is_refused():
    clip = load_clip(CLIP(EMBED, VIT, TEXT | {"vocab_size": 100}), preprocess=transform(), tokenizer=Tokenizer())
    with pytest.raises(InputError, match=r"vocabulary of 100.*another model"):
        clip.encode_text(["a face"])


def test_hostile_and_empty_captions_are_taken(vit):
    hostile = ["", "<img src=x onerror=1>", "</script>", "\u202egnp", "\ud800 lone", "x" * 5000]
    prepare = vit.preprocessor("text")
    assert all(prepare(text).tensor.shape == (1, 16) for text in hostile)
    assert vit.encode_text(hostile).isfinite().all()
    with pytest.raises(InputError, match="expected str"):
        vit.encode_text(["a", 3])


def test_encode_image_takes_pictures_pixels_and_inputs(vit):
    class Photos:
        modality, name, keys = "image", "photos", ["a", "b", "c"]

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Image.Image:
            return pictures()[index]

    ready = torch.stack([transform()(picture) for picture in pictures()])
    expected = vit.module.encode_image(ready).detach()
    for given in (pictures(), Photos(), ready):
        torch.testing.assert_close(vit.encode_image(given, batch=2), expected)
    assert vit.encode_image(pictures(1)[0], normalize=True).norm() == pytest.approx(1)
    assert vit.encode_image([]).shape == (0, EMBED)
    with pytest.raises(ShapeError, match="expected"):
        vit.encode_image(ready[0])


def test_zero_shot_is_open_clips_softmax(vit):
    prompts = ["a hat", "no hat"]
    with torch.no_grad():
        ready = torch.stack([transform()(picture) for picture in pictures()])
        images = vit.module.encode_image(ready, normalize=True)
        texts = vit.module.encode_text(ids(prompts), normalize=True)
        expected = (vit.module.logit_scale.exp() * images @ texts.T).softmax(-1)
    torch.testing.assert_close(vit.zero_shot(pictures(), prompts), expected)
    torch.testing.assert_close(vit.zero_shot(vit.encode_image(pictures()), prompts, ["{}"]), expected)
    two = vit.zero_shot(images.numpy(), prompts, ["a photo of {}", "{}"])
    torch.testing.assert_close(two.sum(1), torch.ones(3))
    with pytest.raises(ConfigError, match=r"has no \{\}"):
        vit.zero_shot(pictures(), prompts, ["a photo"])
    with pytest.raises(ConfigError, match="two or more"):
        vit.zero_shot(pictures(), "hat")


def test_identity_edits_change_no_bit(vit, resnet):
    for clip, sites in ((vit, ["visual.transformer.resblocks.1", "visual.conv1"]), (resnet, ["visual.layer2"])):
        size = 64 if clip is resnet else PIXELS
        expected = clip.encode_image(pixels(size))
        with intervene(clip, {site: lambda x: x for site in [*sites, "image_embed"]}):
            assert torch.equal(clip.encode_image(pixels(size)), expected)
        assert torch.equal(clip.encode_image(pixels(size)), expected)


def test_zeroing_the_last_block_leaves_one_embedding_for_all(vit):
    with intervene(vit, {"visual.transformer.resblocks.2": torch.zeros_like}):
        out = vit.encode_image(pixels())
    torch.testing.assert_close(out, out[:1].expand_as(out))


@pytest.mark.parametrize("kind", ["vit", "custom"])
def test_embeddings_are_edited_before_normalisation_everywhere(kind, request):
    clip = request.getfixturevalue(kind)
    plain = clip.encode_image(pixels())
    tokens = ids(["a", "b"])
    edit = {"image_embed": lambda x: x + 1, "text_embed": torch.zeros_like}
    with intervene(clip, edit), torch.no_grad():
        torch.testing.assert_close(clip.encode_image(pixels()), plain + 1)
        image, text, *_ = clip.module(pixels(), tokens)
        assert (clip.encode_text(["a"]) == 0).all()
    torch.testing.assert_close(image, nn.functional.normalize(plain + 1, dim=-1))
    assert (text == 0).all()
    assert torch.equal(clip.encode_image(pixels()), plain)


def test_hooks_are_removed_after_a_failure_in_the_middle(vit):
    with pytest.raises(KeyboardInterrupt), capture(vit, ["image_embed", "visual.conv1"]):
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError):
        run_to(vit, ["image_embed"], lambda: vit.module.encode_image(torch.zeros(1, 4, 32, 32)))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in vit.module.modules())
    assert not {"encode_image", "encode_text"} & set(vit.module.__dict__)


def test_revision_tells_weights_apart_and_is_stable():
    torch.manual_seed(3)
    one = CLIP(EMBED, VIT, TEXT)
    torch.manual_seed(3)
    same = CLIP(EMBED, VIT, TEXT)
    assert wrap(one).revision == wrap(same).revision
    with torch.no_grad():
        same.visual.proj.mul_(1.001)
    assert wrap(one).revision != wrap(same).revision


def save_folder(module: nn.Module, folder, text: dict = TEXT, **config) -> None:
    folder.mkdir(exist_ok=True)
    settings = {"model_cfg": {"embed_dim": EMBED, "vision_cfg": VIT, "text_cfg": text} | config}
    (folder / "open_clip_config.json").write_text(json.dumps(settings | {"preprocess_cfg": {"size": PIXELS}}))
    save_file({name: x.contiguous() for name, x in module.state_dict().items()}, folder / "open_clip_model.safetensors")


def test_the_vocabulary_in_a_folder_is_the_models(tmp_path, vit):
    merges = "#version\nf a\nc e</w>\nfa ce</w>"
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress(merges.encode()))
    save_folder(vit.module, tmp_path, text=TEXT | {"tokenizer_kwargs": {"bpe_path": "bpe.txt.gz"}})
    clip = load_clip(str(tmp_path), device="cpu")
    ids = clip.preprocessor("text")("face").tensor[0, :3].tolist()
    assert ids == [515, 514, 516]  # 512 letters, 3 merges, two marks
    assert clip.token_strings(ids) == ["<start_of_text>", "face ", "<end_of_text>"]


def test_a_local_folder_is_loaded_with_its_name(tmp_path, vit):
    save_folder(vit.module, tmp_path / "mine")
    for given in (str(tmp_path / "mine"), f"local-dir:{tmp_path / 'mine'}"):
        loaded = load_clip(given, device="cpu")
        assert (loaded.name, loaded.revision) == ("mine", vit.revision)
        torch.testing.assert_close(loaded.encode_image(pixels()), vit.encode_image(pixels()))
        torch.testing.assert_close(loaded.encode_text(["a face"]), vit.encode_text(["a face"]))
    with pytest.raises(ConfigError, match="brings its own weights"):
        load_clip(str(tmp_path / "mine"), "openai")


def test_half_precision_weights_run(tmp_path, vit):
    save_folder(vit.module, tmp_path)
    half = load_clip(str(tmp_path), precision="bf16", device="cpu")
    exact, rough = vit.encode_image(pixels(), True), half.encode_image(pixels(), True)
    assert rough.dtype == torch.float32
    assert (exact * rough).sum(1).min() > 0.99
    with pytest.raises(ConfigError, match="precision='int3'"):
        load_clip(str(tmp_path), precision="int3")


def test_folders_that_hold_no_model_are_named(tmp_path, vit):
    with pytest.raises(InputNotFoundError, match="holds no open_clip_config"):
        load_clip(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match="not an open_clip configuration"):
        load_clip(str(tmp_path))
    save_folder(vit.module, tmp_path, text=TEXT | {"width": 64})
    with pytest.raises(InputError, match="exactly this architecture"):
        load_clip(str(tmp_path))
    save_folder(vit.module, tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="Check that configuration and checkpoint"):
        load_clip(str(tmp_path))


def test_unknown_names_and_tags_offer_the_closest():
    with pytest.raises(ConfigError, match="Closest: ViT-B-32"):
        load_clip("ViT-B-23", "openai")
    with pytest.raises(ConfigError, match="hf-hub:laion/some"):
        load_clip("laion/some")
    with pytest.raises(ConfigError, match="Closest: laion2b_s34b_b79k"):
        load_clip("ViT-B-32", "laion2b_s34b_b79")
    with pytest.raises(ConfigError, match=r"architecture without weights.*openai"):
        load_clip("ViT-B-32")
    with pytest.raises(InputNotFoundError, match="neither a tag"):
        load_clip("ViT-B-32", "missing/checkpoint.safetensors")


def test_the_activation_function_follows_the_weights(monkeypatch):
    asked = {}

    def create(model, pretrained, **settings):
        asked.update(settings)
        return CLIP(EMBED, VIT, TEXT)

    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda model: Tokenizer())
    load_clip("ViT-B-32", "openai", device="cpu")
    assert asked["force_quick_gelu"] is True
    load_clip("ViT-B-32", "laion2b_s34b_b79k", device="cpu")
    assert asked["force_quick_gelu"] is False
    assert asked["require_pretrained"] is True
    with pytest.raises(ConfigError, match=r"load_clip\('ViT-B-32', pretrained='laion2b_s34b_b79k'\)"):
        load_clip("ViT-B-32-quickgelu", "laion2b_s34b_b79k", device="cpu")


@pytest.mark.parametrize("name", ["hf-hub:nobody/nothing-at-all", "ViT-B-32"])
def test_without_a_network_the_message_says_what_to_do(name, monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("open_clip.factory.download_pretrained", no_network)
    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", no_network)
    with pytest.raises(InputNotFoundError, match=r"Without a network.*path/to/folder"):
        load_clip(name, None if name.startswith("hf-hub") else "openai", device="cpu")


def test_own_module_without_preprocessing_or_towers_says_what_is_missing():
    module = CLIP(EMBED, VIT, TEXT)
    bare = load_clip(module)
    assert bare.site("image_embed", "image").width == EMBED
    with pytest.raises(ConfigError, match="preprocess="):
        bare.encode_image(pictures())
    with pytest.raises(ConfigError, match="tokenizer="):
        bare.encode_text(["a"])
    with pytest.raises(InputError, match="tokenizer="):
        bare.token_strings([1])
    del module.context_length
    assert load_clip(module, preprocess=transform()).hook_names()[-1] == "image_embed"
    with pytest.raises(ConfigError, match="encode_image"):
        load_clip(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="its own weights"):
        load_clip(module, "openai")


def test_the_demo_clip_is_there_with_its_own_words():
    clip = load_clip(device="cpu")
    assert clip.name == "demo-clip"
    assert clip.site("visual.transformer.resblocks.0", "image").grid == (8, 8)
    prepared = clip.preprocessor("text")("a smiling face with a hat")
    words = "".join(clip.token_strings(prepared.tensor[~prepared.special].tolist()))
    assert words.strip() == "a smiling face with a hat"
