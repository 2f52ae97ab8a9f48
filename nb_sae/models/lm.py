"""Language models, hooked: Hugging Face decoders and encoders, transformer_lens bridges, or the user's own module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nb_sae.errors import ConfigError, InputError, ShapeError
from nb_sae.hooks import hook_points, run_to
from nb_sae.models.lm_loading import dtype_of, pretrained, tokenizer_of
from nb_sae.models.next_token import continuation, losses_of, read_logits, room_for, sees_ahead, write_on
from nb_sae.models.sites import SiteTable, check_evaluating, check_movable, choose_device, fingerprint, module_device
from nb_sae.models.tokens import (
    PADDING,
    WindowPreprocessor,
    check_vocabulary,
    plain_ids,
    token_strings,
    window_preprocessor,
)
from nb_sae.types import Modality, Site

DEFAULT_CONTEXT_TOKENS = 128
_PROBE_TOKENS = 7
_ID_TYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)


def load_lm(
    model: str | Path | nn.Module = "demo",
    *,
    tokenizer: Any = None,
    device: Any = None,
    dtype: str | torch.dtype | None = None,
    context_tokens: int | None = None,
    name: str | None = None,
) -> LanguageModel:
    """Load a language model to look into.

    Args:
        model: `"demo"`, the small model shipped inside; a Hugging Face name; a local folder in Hugging Face form; or a
            module: a Hugging Face model, a transformer_lens `TransformerBridge`, anything with a `hook_dict`, or your
            own that takes `(context, position)` token ids first. A module is put into evaluation mode.
        tokenizer: A Hugging Face tokenizer, or the folder or name of one. Needed with a module that brings none.
        device: Where to run; by default CUDA, then MPS, then the CPU. A module stays where it is.
        dtype: `fp32` (the default), `bf16` or `fp16`. A module stays as it is.
        context_tokens: Positions of the windows texts are cut into; by default 128, or less if the model takes less.
        name: How stores and reports call the model.

    Raises:
        ConfigError: A setting that the model does not allow.
        InputNotFoundError: Missing folder, or no network to download from.
    """
    if isinstance(model, nn.Module):
        check_movable(model, device=device, dtype=dtype)
        module = model if device is None else model.to(torch.device(device))
        module = module if dtype is None else module.to(dtype_of(dtype))
        found = tokenizer_of(tokenizer) if tokenizer is not None else getattr(module, "tokenizer", None)
        return LanguageModel(module, tokenizer=found, context_tokens=context_tokens, name=name or type(model).__name__)
    if model == "demo":
        from nb_sae.models.demo import demo_lm_folder

        name = name or "demo-lm"
        model = demo_lm_folder()
    folder = Path(model).expanduser()
    source = str(folder) if folder.is_dir() else str(model)
    module = pretrained(source, dtype=dtype_of(dtype)).to(choose_device(device))
    found = tokenizer_of(source if tokenizer is None else tokenizer)
    name = name or (folder.resolve().name if folder.is_dir() else source)
    return LanguageModel(module, tokenizer=found, context_tokens=context_tokens, name=name)


class LanguageModel:
    """A language model whose sites are named, checked and hooked; a `types.HookedModel`. Made by `load_lm`.

    Sites are module paths and, for models with a `hook_dict`, hook names with their aliases. A decoder block may give
    a tensor or a tuple; both are read.
    """

    def __init__(self, module: nn.Module, *, tokenizer: Any, context_tokens: int | None, name: str) -> None:
        self.module = module.eval()
        self.name = name
        self.revision = fingerprint(module)
        self.tokenizer = tokenizer
        self.pseudo_sites: dict[str, str] = {}
        self.max_context_tokens = _longest_context(module)
        self.context_tokens = self._allowed(
            min(DEFAULT_CONTEXT_TOKENS, self.max_context_tokens or DEFAULT_CONTEXT_TOKENS)
            if context_tokens is None
            else context_tokens
        )
        self._arguments = _forward_arguments(module)
        self._sees_ahead: bool | None = None
        self._tokens: int | None = None
        self._vocabulary = _embeddings(module)
        self._padding_id = _padding_id(tokenizer, module)
        self._sites = SiteTable(self, {"text": self._probe_batch}, text_positions=self.context_tokens)

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, revision={self.revision!r}, device={str(self.device)!r})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return module_device(self.module)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are: of a padded vocabulary those that the tokenizer has."""
        if self._tokens is None:
            size = self._vocabulary
            if size is None:
                with torch.no_grad():
                    size = self.logits(torch.zeros(1, 1, dtype=torch.long)).shape[-1]
            known = len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else 0
            self._tokens = min(size, known) or size
        return self._tokens

    def token_id(self, token: str | int) -> int:
        """The id of a token that is given by its id, or as a text that is one token (mind the leading space: " Paris").

        Raises:
            ConfigError: a text that is not one token, no tokenizer, or no id from 0 on.
        """
        if not isinstance(token, str):
            if isinstance(token, bool) or not isinstance(token, int | np.integer) or token < 0:
                raise ConfigError(f"{token!r} is no token. Give its id, a whole number from 0 on, or its text.")
            return int(token)
        if self.tokenizer is None:
            raise ConfigError(f"{self.name} was loaded without a tokenizer. Give the token's id in place of {token!r}.")
        ids = plain_ids(self.tokenizer, token)
        if len(ids) == 1:
            return ids[0]
        pieces = ", ".join(map(repr, self.token_strings(ids))) or "none"
        raise ConfigError(
            f"{token!r} is {len(ids)} tokens for {self.name} ({pieces}); expected one. Mind the leading space, choose "
            "a word that is one token, or give a token's id."
        )

    def hook_names(self) -> list[str]:
        """Every site that gives rows, in the order of the forward pass; hook names with their aliases."""
        return self._sites.names()

    def site(self, name: str, modality: Modality = "text") -> Site:
        """What lies at a site; its positions are `context_tokens`. Raises `HookError` with the closest names."""
        return self._sites.site(name, modality)

    def require_rows(self, name: str) -> None:
        """Raise `HookError` unless the site gives rows."""
        self._sites.require(name)

    def preprocessor(self, modality: Modality = "text", *, context_tokens: int | None = None) -> WindowPreprocessor:
        """A picklable function from a text to `Prepared`: windows of `context_tokens`, the last one padded.

        Special tokens are added to every window as the tokenizer adds them to a text: none for GPT-2, BOS for Llama,
        CLS and SEP for BERT. In the ids, padding is −1 whatever the vocabulary says; `capture_rows` makes the attention
        mask from it, so that the ids are all that a store has to hand over.

        Raises:
            ConfigError: No tokenizer, another modality, or a context longer than the model's.
        """
        if modality != "text":
            raise ConfigError(f"{self.name} takes texts, not {modality!r} inputs. Give it texts.")
        positions = self.context_tokens if context_tokens is None else self._allowed(context_tokens)
        return window_preprocessor(self._required_tokenizer(ConfigError), positions)

    @torch.no_grad()
    def capture_rows(self, batch: Tensor, sites: Sequence[str], modality: Modality = "text") -> dict[str, Tensor]:
        """Run forward as far as the last site needs.

        Args:
            batch: `(context, position)` token ids, −1 on padding.
            sites: Sites of this model.
            modality: Always `"text"`.

        Returns:
            Site → `(context, position, width)` or `(context, width)`, on the model's device. Rows of padding are
            there and mean nothing.

        Raises:
            HookError: Unknown site.
            ShapeError: `batch` holds no token ids.
        """
        for site in sites:
            self.site(site, modality)
        self._require_ids(batch)
        return run_to(self, sites, lambda: self.forward(batch))

    def logits(self, batch: Tensor) -> Float[Tensor, "context position vocabulary"]:
        """What the model says of every position, in its own precision, with gradients where they are enabled.

        Args:
            batch: `(context, position)` token ids, −1 on padding, of which the logits mean nothing.

        Raises:
            ConfigError: a model without a language-model head, or a context longer than the model's.
            ShapeError: `batch` holds no token ids.
        """
        self._require_ids(batch)
        return read_logits(self.forward(batch), vocabulary=self._vocabulary, name=self.name)

    @torch.no_grad()
    def token_losses(self, batch: Tensor) -> Float[Tensor, "context position-1"]:
        """Cross-entropy of every token given those before it, in nats, float32; NaN on padding.

        Raises:
            ConfigError: an encoder, whose every position sees all the others; or a model without a head.
        """
        self.require_next_token()
        return losses_of(self.logits(batch), batch)

    def next_token_loss(self, inputs: Any, *, batch: int = 16) -> float:
        """Mean cross-entropy of the next token in nats, over every token but the first of each context.

        Args:
            inputs: `Inputs` of texts, a text, a sequence of texts, or `(context, position)` token ids.
            batch: Contexts per forward pass.

        Raises:
            ConfigError: an encoder, or a model without a head.
            InputError: nothing to predict.
        """
        if batch < 1:
            raise ConfigError(f"batch={batch}: expected at least one context per forward pass.")
        losses = torch.cat(
            [self.token_losses(ids).flatten().cpu() for ids in self.contexts(inputs).split(batch)]
        ).double()
        if losses.isnan().all():
            raise InputError("No context has a second token, so there is no next token to predict. Give longer texts.")
        return float(losses.nanmean())

    def generate(self, prompt: str, *, tokens: int = 40, seed: int | None = None, temperature: float = 1.0) -> str:
        """The text that the model writes after the prompt, without the prompt.

        Inside `intervene` the edits act on every position, at every token. The prompt gets the special tokens that the
        tokenizer puts before a text. Ends at the tokenizer's end mark.

        Args:
            prompt: What to begin with.
            tokens: Most tokens to write.
            seed: Draws each token by its probability; None takes the most probable one.
            temperature: With a seed, divides the logits before drawing.

        Raises:
            InputError: a prompt longer than the model's context, or without tokens.
            ConfigError: prompt and `tokens` together are longer; an encoder; no tokenizer.
        """
        tokenizer = self._required_tokenizer(ConfigError)
        if not isinstance(prompt, str):
            raise InputError(f"Got a {type(prompt).__name__} as prompt; expected a str. Give a text.")
        ids = [*self.preprocessor().prefix, *plain_ids(tokenizer, prompt)]
        room_for(len(ids), tokens, self.max_context_tokens, self.name)
        self.require_next_token()
        end = getattr(tokenizer, "eos_token_id", None)
        written = write_on(self.logits, ids, tokens=tokens, end_id=end, seed=seed, temperature=temperature)
        return continuation(tokenizer, ids, written)

    def contexts(self, inputs: Any) -> Int[Tensor, "context position"]:
        """Texts as the windows the model takes, −1 on padding; token ids as they are. Raises `InputError`."""
        if isinstance(inputs, Tensor):
            self._require_ids(inputs)
            return inputs
        prepare = self.preprocessor()
        if not hasattr(inputs, "__len__"):
            raise InputError(f"Got a {type(inputs).__name__}; expected texts, a text, or token ids. Give those.")
        texts = [inputs] if isinstance(inputs, str) else [inputs[i] for i in range(len(inputs))]
        if not texts:
            raise InputError("No texts were given; expected at least one.")
        return torch.cat([prepare(text).tensor for text in texts])

    def require_next_token(self) -> None:
        """Raise `ConfigError` unless the model predicts the next token from those before it; tried once."""
        if self._sees_ahead is None:
            self._sees_ahead = sees_ahead(self.logits, self.probe_batch())
        if self._sees_ahead:
            raise ConfigError(
                f"{self.name} is an encoder: every position sees all the others, so there is no next token to "
                "predict. Use a measure of its activations (FVU, cosine), or load a decoder."
            )

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The text of each token id as a reader sees it. Raises `InputError` for a model without a tokenizer."""
        return token_strings(self._required_tokenizer(InputError), ids)

    def forward(self, batch: Tensor, modality: Modality = "text") -> Any:
        """What the module gives for `(context, position)` token ids, −1 on padding; with gradients.

        Raises:
            ConfigError: the module was put into training mode.
        """
        check_evaluating(self.module, self.name)
        ids = batch.to(self.device)
        real = ids != PADDING
        ids = ids.masked_fill(~real, self._padding_id)
        given: dict[str, Any] = {}
        if "attention_mask" in self._arguments:
            given["attention_mask"] = real.long()
        if "use_cache" in self._arguments:
            given["use_cache"] = False
        if "input_ids" in self._arguments:
            return self.module(input_ids=ids, **given)
        return self.module(ids, **given)

    def probe_batch(self, modality: Modality = "text") -> Tensor:
        """A small batch of random token ids, the same every time, to try the model on."""
        shape, generator = (2, min(_PROBE_TOKENS, self.context_tokens)), torch.Generator().manual_seed(0)
        return torch.randint(0, self._vocabulary or 2, shape, generator=generator)

    def _probe_batch(self, size: int) -> tuple[Callable[[Tensor], Any], Tensor]:
        return self.forward, torch.zeros(size, min(_PROBE_TOKENS, self.context_tokens), dtype=torch.long)

    def _require_ids(self, batch: Tensor) -> None:
        known = isinstance(batch, Tensor)
        if not known or batch.ndim != 2 or batch.dtype not in _ID_TYPES or not len(batch):
            given = f"{batch.dtype} of shape {tuple(batch.shape)}" if known else f"a {type(batch).__name__}"
            raise ShapeError(
                f"Got {given}; expected (context, position) token ids, at least one context. Prepare texts with "
                "preprocessor('text')."
            )
        self._allowed(batch.shape[1])
        check_vocabulary(batch, self._vocabulary)

    def _allowed(self, context_tokens: int) -> int:
        longest = self.max_context_tokens
        if context_tokens < 1 or (longest is not None and context_tokens > longest):
            most = "" if longest is None else f" to {longest}, which is as far as {self.name} can see"
            raise ConfigError(
                f"context_tokens={context_tokens} is outside what the model takes; expected 1{most}. "
                "Choose another context_tokens."
            )
        return context_tokens

    def _required_tokenizer(self, error: type[ConfigError] | type[InputError]) -> Any:
        if self.tokenizer is None:
            raise error(f"{self.name} was loaded without a tokenizer. Use load_lm(model, tokenizer=…).")
        return self.tokenizer


def _longest_context(module: nn.Module) -> int | None:
    """How many positions the model has, where its configuration says so."""
    for holder in (getattr(module, "config", None), getattr(module, "cfg", None)):
        for field in ("max_position_embeddings", "n_positions", "n_ctx"):
            value = getattr(holder, field, None)
            if isinstance(value, int) and value > 0:
                # RoBERTa counts positions from after its padding id and has that many fewer.
                offset = getattr(holder, "pad_token_id", None) if _counts_from_padding(module) else None
                return value - offset - 1 if isinstance(offset, int) else value
    return None


def _counts_from_padding(module: nn.Module) -> bool:
    return getattr(getattr(module, "config", None), "model_type", "") in {"roberta", "xlm-roberta", "camembert"}


def _forward_arguments(module: nn.Module) -> frozenset[str]:
    """Arguments that the forward call names; a transformer_lens model gets its ids by position."""
    named = frozenset(inspect.signature(module.forward).parameters)
    return named - {"input_ids", "use_cache"} if hook_points(module) else named


def _embeddings(module: nn.Module) -> int | None:
    """How many token ids the model has embeddings for, where it says so."""
    table = getattr(module, "get_input_embeddings", lambda: None)() if not hook_points(module) else None
    size = getattr(table, "num_embeddings", None)
    return size if isinstance(size, int) else None


def _padding_id(tokenizer: Any, module: nn.Module) -> int:
    """An id to stand where the mask is 0: any that the vocabulary has will do."""
    for holder in (tokenizer, getattr(module, "config", None)):
        for field in ("pad_token_id", "eos_token_id"):
            value = getattr(holder, field, None)
            if isinstance(value, int) and value >= 0:
                return value
    return 0
