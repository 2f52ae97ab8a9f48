"""CLIP models, hooked: open_clip ViT, timm/SigLIP and ResNet image towers with their text towers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from nb_sae.errors import ConfigError, HookError, InputError, ShapeError
from nb_sae.hooks import run_to
from nb_sae.models.clip_loading import default_preprocess, load_parts
from nb_sae.models.sites import Forward, SiteTable, check_evaluating, choose_device, fingerprint, module_device
from nb_sae.models.tokens import PADDING, caption_preprocessor, check_vocabulary, encodable, token_strings
from nb_sae.types import Modality, Prepared, Site

_PROBE_PIXELS = 64
_FITS = {"shortest": "crop", "squash": "squash", "longest": "pad"}
"""open_clip's names for how a picture is brought to a square."""


def load_clip(
    model: str | nn.Module = "demo",
    pretrained: str | None = None,
    *,
    preprocess: Callable[[Any], Tensor] | None = None,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
    device: Any = None,
    precision: str = "fp32",
    name: str | None = None,
) -> ClipModel:
    """Load a CLIP to look into.

    Args:
        model: `"demo"`, the small model shipped inside; an open_clip name such as `"ViT-B-32"`; `"hf-hub:org/name"`;
            a folder with `open_clip_config.json` and weights; or your own module with `encode_image` (and
            `encode_text`). A module is put into evaluation mode.
        pretrained: With an open_clip name: one of its tags, or the path of a checkpoint.
        preprocess: Picture → `(3, h, w)` tensor. Needed with your own module.
        tokenizer: List of texts → `(text, position)` token ids. Needed with your own module, for texts.
        device: Where to run; by default CUDA, then MPS, then the CPU. Your own module stays where it is.
        precision: `fp32`, `fp16`, `bf16`, `pure_fp16` or `pure_bf16`, as open_clip means them.
        name: How stores and reports call the model.

    Raises:
        ConfigError: Unknown name, tag or precision; an architecture without weights.
        InputNotFoundError: Missing folder or checkpoint, or no network to download from.
        InputError: A folder or checkpoint that is not what it should be.
    """
    if isinstance(model, nn.Module):
        if pretrained is not None or precision != "fp32":
            raise ConfigError("A module brings its own weights and precision. Leave out pretrained= and precision=.")
        module = model if device is None else model.to(torch.device(device))
        preprocess = preprocess or default_preprocess(module)
        return ClipModel(module, preprocess=preprocess, tokenizer=tokenizer, name=name or type(model).__name__)
    parts = load_parts(model, pretrained, device=choose_device(device), precision=precision)
    return ClipModel(
        parts.module,
        preprocess=preprocess or parts.preprocess,
        tokenizer=tokenizer or parts.tokenizer,
        name=name or parts.name,
    )


@dataclass(frozen=True)
class PicturePreprocessor:
    """One picture as the one context of an image tower. Holds the transform, no weights."""

    transform: Callable[[Any], Tensor]

    def __call__(self, picture: Any) -> Prepared:
        """Raises `InputError` for what the transform does not take, `ShapeError` if it gives no `(3, h, w)` tensor."""
        try:
            pixels = self.transform(picture)
        except (TypeError, AttributeError) as error:
            raise InputError(
                f"The model's preprocessing does not take a {type(picture).__name__} ({error}). Give pictures; for "
                "files ns.images(folder)."
            ) from error
        if not isinstance(pixels, Tensor) or pixels.ndim != 3:
            given = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ShapeError(f"preprocess gave {given}; expected a (3, h, w) tensor. Pass one picture's transform.")
        return Prepared(pixels[None])


class ClipModel:
    """A CLIP whose sites are named, checked and hooked; a `types.HookedModel`. Made by `load_clip`.

    Sites are module paths of both towers, and `image_embed` / `text_embed`: the projected embeddings before they are
    normalised.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        preprocess: Callable[[Any], Tensor] | None,
        tokenizer: Callable[[list[str]], Tensor] | None,
        name: str,
    ) -> None:
        if not callable(getattr(module, "encode_image", None)):
            raise ConfigError(
                f"{type(module).__name__} has no encode_image; expected a module with encode_image(pixels), and "
                "encode_text(ids) where it takes texts. Wrap yours in a torch.nn.Module that has them."
            )
        self.module = module.eval()
        self.name = name
        self.revision = fingerprint(module)
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self._padding_id = (caption_preprocessor(tokenizer).padding_id if tokenizer is not None else None) or 0
        towers: dict[Modality, Forward] = {"image": self._image_probe}
        self.pseudo_sites = {"image_embed": "encode_image"}
        if callable(getattr(module, "encode_text", None)):
            if tokenizer is not None or isinstance(getattr(module, "context_length", None), int):
                towers["text"] = self._text_probe
            self.pseudo_sites["text_embed"] = "encode_text"
        self._sites = SiteTable(self, towers)

    def __repr__(self) -> str:
        return f"ClipModel({self.name!r}, revision={self.revision!r}, device={str(self.device)!r})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return module_device(self.module)

    @property
    def embed_dim(self) -> int:
        """Width of the shared embedding."""
        return self.site("image_embed", "image").width

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before the softmax: the factor itself, not its logarithm."""
        scale = getattr(self.module, "logit_scale", None)
        return float(scale.detach().exp()) if scale is not None else 100.0

    def hook_names(self) -> list[str]:
        """Every site that gives rows, in the order of the forward pass: image tower, text tower, embeddings."""
        return self._sites.names()

    def site(self, name: str, modality: Modality) -> Site:
        """What lies at a site. Raises `HookError` with the closest names, or with what is wrong with this one."""
        site = self._sites.site(name, modality)
        config = getattr(getattr(self.module, "visual", None), "preprocess_cfg", None)
        mode = config.get("resize_mode") if isinstance(config, dict) else None
        return replace(site, fit=_FITS.get(str(mode), "crop")) if site.grid is not None else site

    def require_rows(self, name: str) -> None:
        """Raise `HookError` unless the site gives rows for pictures or for texts."""
        self._sites.require(name)

    def preprocessor(self, modality: Modality, *, context_tokens: int | None = None) -> Callable[[Any], Prepared]:
        """A picklable function from a picture or a text to `Prepared`.

        A text is one context of the model's own length, cut if longer; `context_tokens` does not apply.

        Raises:
            ConfigError: The model was loaded without `preprocess` or `tokenizer`.
        """
        if modality == "image":
            if self.preprocess is None:
                raise ConfigError(f"{self.name} has no preprocessing. Use load_clip(model, preprocess=…).")
            return PicturePreprocessor(self.preprocess)
        return caption_preprocessor(self._tokenizer())

    @torch.no_grad()
    def capture_rows(self, batch: Tensor, sites: Sequence[str], modality: Modality) -> dict[str, Tensor]:
        """Run one tower as far as the last site needs.

        Args:
            batch: `(context, 3, h, w)` pixels or `(context, position)` token ids, −1 on padding.
            sites: Sites of that tower.
            modality: Which tower.

        Returns:
            Site → `(context, token, width)` or `(context, width)`, on the model's device.

        Raises:
            HookError: Unknown site, or a site of the other tower.
        """
        for site in sites:
            self.site(site, modality)
        rows = run_to(self, sites, lambda: self.forward(batch, modality))
        if modality == "image":
            return rows
        # CoCa appends a class token to the texts; it stands for no token of them.
        return {site: x[:, : batch.shape[1]] if x.ndim == 3 else x for site, x in rows.items()}

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The text of each token id as a reader sees it. Raises `InputError` for a model without a tokenizer."""
        if self.tokenizer is None:
            raise InputError(f"{self.name} was loaded without a tokenizer. Use load_clip(model, tokenizer=…).")
        return token_strings(self.tokenizer, ids)

    @torch.no_grad()
    def encode_image(self, images: Any, normalize: bool = False, *, batch: int = 64) -> Tensor:
        """Embeddings of pictures, `(image, embed_dim)` float32 on the model's device.

        Args:
            images: `Inputs` of pictures, a picture, a sequence of pictures, or preprocessed pixels `(image, 3, h, w)`.
            normalize: Divide by the norm.
            batch: Pictures per forward pass.
        """
        encoded = [self._image_forward(pixels).float() for pixels in self.pixel_batches(images, batch)]
        return _joined(encoded, self.embed_dim, normalize, self.device)

    @torch.no_grad()
    def encode_text(self, texts: Any, normalize: bool = False, *, batch: int = 256) -> Tensor:
        """Embeddings of texts, `(text, embed_dim)` float32 on the model's device.

        Args:
            texts: A text, a sequence of texts, or `Inputs` of texts.
            normalize: Divide by the norm.
            batch: Texts per forward pass.
        """
        if not hasattr(texts, "__len__"):
            raise InputError(f"Got a {type(texts).__name__}; expected texts. Give a text or several.")
        listed = [texts] if isinstance(texts, str) else [texts[i] for i in range(len(texts))]
        wrong = next((text for text in listed if not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(f"Got a {type(wrong).__name__} among the texts; expected str. Give texts.")
        tokenizer = self._tokenizer()
        encoded = [
            self._text_forward(tokenizer([encodable(text) for text in listed[i : i + batch]])).float()
            for i in range(0, len(listed), batch)
        ]
        return _joined(encoded, self.embed_dim, normalize, self.device)

    def pixel_batches(self, images: Any, batch: int) -> Iterator[Tensor]:
        """Preprocessed pixels `(image, 3, h, w)` of what `encode_image` takes, at most `batch` at a time.

        Raises:
            ConfigError: less than one at a time.
            InputError: what is no picture.
            ShapeError: a tensor that holds no preprocessed pictures.
        """
        if isinstance(images, Tensor):
            if images.ndim != 4:
                raise ShapeError(f"Got pixels of shape {tuple(images.shape)}; expected (image, 3, h, w), preprocessed.")
            yield from images.split(batch)
            return
        if isinstance(images, Image.Image):
            images = [images]
        if not hasattr(images, "__len__") or isinstance(images, str):
            raise InputError(f"Got a {type(images).__name__}; expected pictures. For files give ns.images(folder).")
        if batch < 1:
            raise ConfigError(f"batch={batch}: expected at least one picture per forward pass.")
        prepare = self.preprocessor("image")
        for start in range(0, len(images), batch):
            stop = min(start + batch, len(images))
            yield torch.cat([prepare(images[i]).tensor for i in range(start, stop)])

    def zero_shot(self, images: Any, prompts: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """How likely each prompt is for each picture, `(image, prompt)`: softmax over the prompts.

        Args:
            images: What `encode_image` takes, or embeddings `(image, embed_dim)`.
            prompts: At least two texts to choose from.
            templates: Texts with `{}` for the prompt, such as `"a photo of {}"`; their embeddings are averaged.
        """
        classes = self.class_embeddings(prompts, templates)
        pictures = images if _is_embedding(images) else self.encode_image(images)
        pictures = torch.as_tensor(pictures, dtype=torch.float32, device=self.device)
        return (self.logit_scale * torch.nn.functional.normalize(pictures, dim=-1) @ classes.T).softmax(dim=-1)

    def class_embeddings(
        self, prompts: Sequence[str], templates: Sequence[str] | None = None
    ) -> Float[Tensor, "prompt embed_dim"]:
        """What `zero_shot` compares pictures with: unit embeddings of the prompts, averaged over the templates.

        Raises:
            ConfigError: fewer than two prompts, or a template without `{}`.
        """
        if isinstance(prompts, str) or len(prompts) < 2:
            raise ConfigError(f"prompts={prompts!r} leaves nothing to choose; expected a list of two or more texts.")
        wrong = [template for template in templates or () if "{}" not in template]
        if wrong:
            raise ConfigError(f"Template {wrong[0]!r} has no {{}} for the prompt. Write for example 'a photo of {{}}'.")
        filled = [template.replace("{}", prompt) for prompt in prompts for template in templates or ["{}"]]
        embedded = self.encode_text(filled, normalize=True).unflatten(0, (len(prompts), -1)).mean(1)
        return torch.nn.functional.normalize(embedded, dim=-1)

    def forward(self, batch: Tensor, modality: Modality) -> Tensor:
        """Embeddings before they are normalised, `(context, embed_dim)`, of pixels or of token ids, with gradients.

        The batch is what `preprocessor(modality)` gives; in token ids −1 is padding.

        Raises:
            ConfigError: the module was put into training mode.
        """
        return self._image_forward(batch) if modality == "image" else self._text_forward(batch)

    def filled(self, ids: Tensor) -> Tensor:
        """Token ids with the model's own padding id in place of −1, as its text tower takes them."""
        return ids.masked_fill(ids == PADDING, self._padding_id)

    def probe_batch(self, modality: Modality) -> Tensor:
        """A small batch of random pixels or token ids, the same every time, to try the model on."""
        generator = torch.Generator().manual_seed(0)
        _, like = (self._image_probe if modality == "image" else self._text_probe)(2)
        if modality == "image":
            return torch.randn(like.shape, generator=generator)
        size = getattr(self.module, "vocab_size", None)
        return torch.randint(0, size if isinstance(size, int) else 2, like.shape, generator=generator)

    def _image_forward(self, pixels: Tensor) -> Tensor:
        check_evaluating(self.module, self.name)
        try:
            return _encode(self.module, "encode_image", pixels.to(self.device, _pixel_dtype(self.module)))
        except RuntimeError as error:
            side = getattr(getattr(self.module, "visual", None), "image_size", None)
            expected = (3, *((side, side) if isinstance(side, int) else side or ()))
            if side is None or tuple(pixels.shape[1:]) == expected:
                raise
            raise ShapeError(
                f"Got pixels of shape {tuple(pixels.shape)}; {self.name} takes {expected} each. Prepare pictures with "
                "preprocessor('image')."
            ) from error

    def _text_forward(self, ids: Tensor) -> Tensor:
        check_evaluating(self.module, self.name)
        check_vocabulary(ids, getattr(self.module, "vocab_size", None))
        return _encode(self.module, "encode_text", self.filled(ids).to(self.device))

    def _tokenizer(self) -> Callable[[list[str]], Tensor]:
        if "text" not in self._towers_taken():
            raise HookError(f"{self.name} has no text tower (encode_text). Load a model that has one.")
        if self.tokenizer is None:
            raise ConfigError(f"{self.name} was loaded without a tokenizer. Use load_clip(model, tokenizer=…).")
        return self.tokenizer

    def _towers_taken(self) -> set[str]:
        return {"image", "text"} if "text_embed" in self.pseudo_sites else {"image"}

    def _image_probe(self, size: int) -> tuple[Callable[[Tensor], Any], Tensor]:
        if self.preprocess is not None:
            one = self.preprocessor("image")(Image.new("RGB", (_PROBE_PIXELS, _PROBE_PIXELS))).tensor
        else:
            pixels = getattr(getattr(self.module, "visual", None), "image_size", None)
            if pixels is None:
                raise ConfigError(f"{self.name} has no preprocessing. Use load_clip(model, preprocess=…).")
            one = torch.zeros(1, 3, *((pixels, pixels) if isinstance(pixels, int) else pixels))
        return self._image_forward, one.repeat(size, 1, 1, 1)

    def _text_probe(self, size: int) -> tuple[Callable[[Tensor], Any], Tensor]:
        if self.tokenizer is not None:
            one = caption_preprocessor(self.tokenizer)("a photo").tensor
        else:
            one = torch.zeros(1, int(getattr(self.module, "context_length", 1)), dtype=torch.long)
        return self._text_forward, one.repeat(size, 1)


def _encode(module: nn.Module, name: str, batch: Tensor) -> Tensor:
    method: Callable[..., Tensor] = getattr(module, name)
    try:
        return method(batch, normalize=False)
    except TypeError as error:
        if "normalize" not in str(error):
            raise
        return method(batch)  # OpenAI's own CLIP has no such argument and never normalises


def _pixel_dtype(module: nn.Module) -> torch.dtype:
    """Of the first convolution: in open_clip's mixed precisions other weights stay float32."""
    tower = getattr(module, "visual", module)
    convolution = next((part for part in tower.modules() if isinstance(part, nn.Conv2d)), None)
    weight = convolution.weight if convolution is not None else next(module.parameters(), None)
    return weight.dtype if weight is not None else torch.float32


def _is_embedding(images: Any) -> bool:
    return getattr(images, "ndim", 0) == 2 and hasattr(images, "dtype")


def _joined(encoded: list[Tensor], width: int, normalize: bool, device: torch.device) -> Tensor:
    rows = torch.cat(encoded) if encoded else torch.empty(0, width, device=device)
    return torch.nn.functional.normalize(rows, dim=-1) if normalize else rows
