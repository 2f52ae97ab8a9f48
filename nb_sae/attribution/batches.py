"""A tower of a model and what it is run on: batches of contexts, with which of their tokens count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from jaxtyping import Bool
from torch import Tensor

from nb_sae.errors import ConfigError, HookError, InputError, ShapeError
from nb_sae.hook_rows import tensor_of
from nb_sae.models.clip import ClipModel
from nb_sae.models.contexts import Batch, TowerModel, prepared_ids
from nb_sae.models.lm import LanguageModel
from nb_sae.models.tokens import PADDING
from nb_sae.types import Modality, Prepared, Site, Tokens

KEPT_BYTES = 2**28
"""Prepared inputs that are kept for the next pass over them: 256 MB, 445 pictures of 224 pixels."""


@dataclass(frozen=True)
class Tower:
    """One tower of a model and what it is run on."""

    model: TowerModel
    modality: Modality
    place: Site
    tokens: Tokens
    batches: Batches = field(repr=False)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    @property
    def inputs(self) -> int:
        """How many."""
        return self.batches.inputs

    @property
    def site(self) -> str:
        """Its name."""
        return self.place.name

    def counted(self, batch: Batch, shape: Sequence[int]) -> Bool[Tensor, "context token"]:
        """Which rows of the site count; `shape` is what it gives, `(context, token, width)` or `(context, width)`."""
        mask = batch.counted(shape)
        if len(shape) == 3:
            prefix = self.place.prefix_tokens
            mask[:, prefix:] &= self.tokens != "cls"
            mask[:, :prefix] &= self.tokens != "patches"
        return mask


def tower_of(
    model: Any,
    site: str,
    inputs: Any,
    *,
    batch: int,
    d_in: int,
    tokens: Tokens = "all",
    special_tokens: bool = False,
) -> Tower:
    """The tower that a site lies in, with the inputs cut into batches for it.

    Args:
        model: From `load_lm` or `load_clip`.
        site: A name from `hook_names()`.
        inputs: `Inputs`, a text or a list of texts, a picture or a list of pictures, or what the model takes: token ids
            `(context, position)` or `(position,)`, pixels `(context, 3, h, w)`.
        batch: Contexts per forward pass.
        d_in: Width of the dictionary that reads the site.
        tokens: Whose rows count, as in a store: all, "cls" (prefix tokens) or "patches" (all but those).
        special_tokens: Whether rows of BOS, EOS, CLS and SEP of texts count.

    Raises:
        ConfigError: another kind of model, no inputs, or tokens that the site does not have.
        HookError: no such site.
        ShapeError: the site has another width than the dictionary.
        InputError: an empty text, one that is longer than the context, or what is neither text nor picture.
    """
    if not isinstance(model, LanguageModel | ClipModel):
        raise ConfigError(
            f"Got a {type(model).__name__} as the model; expected one from load_lm() or load_clip(). Load it with them."
        )
    modality, found = _modality(model, site)
    if found.width != d_in:
        raise ShapeError(
            f"Site {site!r} of {model.name} has width {found.width}; the dictionary takes {d_in}. Give the model and "
            "site that it was trained on, or site=."
        )
    if tokens not in ("all", "cls", "patches"):
        raise ConfigError(f"tokens={tokens!r} is not known. Use 'all', 'cls' or 'patches'.")
    if tokens != "all" and found.pooled:
        raise ConfigError(f"Site {site!r} has one row per input, so tokens={tokens!r} has no meaning. Use 'all'.")
    if tokens == "cls" and not found.prefix_tokens:
        raise ConfigError(f"Site {site!r} has no CLS or other prefix token. Use tokens='all' or 'patches'.")
    batches = Batches(model, modality, inputs, batch, special_tokens=special_tokens)
    return Tower(model, modality, found, tokens, batches)


class Batches(Sequence[Batch]):
    """Inputs of one tower, batch by batch, prepared when they are asked for and kept as far as they are few.

    Input i has one context, so that a token's number is its position.

    Arguments and errors are those of `tower_of`.
    """

    def __init__(
        self, model: TowerModel, modality: Modality, inputs: Any, batch: int, *, special_tokens: bool = False
    ) -> None:
        if not isinstance(batch, int) or batch < 1:
            raise ConfigError(f"batch={batch!r}: expected at least one context per forward pass.")
        self._model, self._modality, self._batch = model, modality, batch
        self._special_tokens = special_tokens
        self._inputs = (_tensor if isinstance(inputs, Tensor) else _listed)(model, modality, inputs)
        longest = None if isinstance(model, ClipModel) else model.max_context_tokens or model.context_tokens
        prepared = isinstance(inputs, Tensor)
        self._prepare = None if prepared else model.preprocessor(modality, context_tokens=longest)
        self._kept: dict[int, Batch] = {}
        self._kept_bytes = 0

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return len(self._inputs)

    def __len__(self) -> int:
        return -(-len(self._inputs) // self._batch)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self._kept:
            made = self._made(range(index * self._batch, min((index + 1) * self._batch, len(self._inputs))))
            if self._kept_bytes + made.given.nbytes > KEPT_BYTES:
                return made
            self._kept[index] = made
            self._kept_bytes += made.given.nbytes
        return self._kept[index]

    def _made(self, numbers: range) -> Batch:
        if self._prepare is None:
            given = self._inputs[numbers.start : numbers.stop]
            if self._modality == "image":
                return Batch(given, inputs=numbers)
            ids = prepared_ids(self._model, given)
            return Batch(ids.tensor, ids.special, self._special_tokens, numbers)
        prepared = [self._one(self._prepare, number) for number in numbers]
        given = torch.cat([one.tensor for one in prepared])
        if self._modality == "image":
            return Batch(given, inputs=numbers)
        # A CLIP's text tower wants its own length; of a language model the longest prompt of the batch sets it.
        stop = int((given != PADDING).sum(-1).max()) if isinstance(self._model, LanguageModel) else given.shape[1]
        marks = [one.special for one in prepared if one.special is not None]
        special = torch.cat(marks)[:, :stop].clone() if marks else None
        return Batch(given[:, :stop].clone(), special, self._special_tokens, numbers)

    def _one(self, prepare: Callable[[Any], Prepared], number: int) -> Prepared:
        given = self._inputs[number]
        if isinstance(given, str) and not given:
            raise InputError(f"Input {number} is an empty text; expected at least one token. Leave it out.")
        if (self._modality == "text") != isinstance(given, str):
            raise InputError(
                f"Input {number} is a {type(given).__name__}; this site takes {self._modality}s. Give those."
            )
        prepared = prepare(given)
        if len(prepared.tensor) > 1 and isinstance(self._model, LanguageModel):
            tokens = int((prepared.tensor != PADDING).sum())
            raise InputError(
                f"Input {number} has {tokens} tokens; {self._model.name} sees {prepared.tensor.shape[1]} at once, and "
                "what it says of one window knows nothing of the others. Cut the text."
            )
        return prepared


def output_of(model: TowerModel, given: Tensor, modality: Modality) -> Tensor:
    """What a model gives for a batch, `(context, …)` float32: logits, the last hidden states without a head, or a
    CLIP's embedding. Autograd follows it where gradients are on.
    """
    output = model.forward(given, modality)
    logits = getattr(output, "logits", None)
    found = logits if isinstance(logits, Tensor) else tensor_of(output)
    if found is None:
        raise ShapeError(f"{model.name} gave a {type(output).__name__}, in which there is no tensor to measure.")
    return found.float()


def _modality(model: TowerModel, site: str) -> tuple[Modality, Site]:
    if isinstance(model, LanguageModel):
        return "text", model.site(site)
    try:
        return "image", model.site(site, "image")
    except HookError as error:
        if "text" not in str(error) or "belongs to the text tower" not in str(error):
            raise
    return "text", model.site(site, "text")


def _tensor(model: TowerModel, modality: Modality, given: Tensor) -> Tensor:
    """Pixels or token ids that the tower takes, `(context, …)`."""
    given = given[None] if given.ndim in (1, 3) else given
    axes = 4 if modality == "image" else 2
    if given.ndim != axes or given.is_floating_point() != (modality == "image"):
        expected = "pixels (context, 3, h, w)" if modality == "image" else "token ids (context, position)"
        raise ShapeError(f"Got {given.dtype} of shape {tuple(given.shape)} as inputs; expected {expected}.")
    if not given.numel():
        raise InputError(f"Inputs of shape {tuple(given.shape)} hold nothing. Give at least one with a token.")
    if modality == "image":
        return given
    if isinstance(model, LanguageModel):
        longest = model.max_context_tokens
        if longest is not None and given.shape[1] > longest:
            raise InputError(
                f"The prompt has {given.shape[1]} tokens; {model.name} sees {longest} at once. Cut it to {longest}."
            )
        given = model.contexts(given)
    empty = (given == PADDING).all(-1).nonzero()
    if len(empty):
        raise InputError(f"Input {int(empty[0])} has no tokens, only padding. Leave it out.")
    return given


def _listed(model: TowerModel, modality: Modality, inputs: Any) -> Any:
    """Inputs as a sequence."""
    if isinstance(inputs, Mapping):
        raise InputError("Inputs are a mapping; expected one or a list of them. Give list(inputs.values()).")
    listed: Any = [inputs] if isinstance(inputs, str) or not hasattr(inputs, "__len__") else inputs
    if getattr(listed, "modality", modality) != modality:
        raise InputError(
            f"{listed.modality}s were given for a site of the {modality} tower of {model.name}. Give {modality}s, or a "
            "dictionary of the other tower."
        )
    if not len(listed):
        raise ConfigError("No inputs were given. Give a text, a picture, or several.")
    return listed
