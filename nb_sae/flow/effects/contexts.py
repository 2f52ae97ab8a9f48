"""Inputs as batches of contexts for one tower of a model; long texts are cut into several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nb_sae.errors import InputError, ShapeError
from nb_sae.flow.settings import check_whole
from nb_sae.models.contexts import Batch, prepared_ids
from nb_sae.types import Modality


class Contexts:
    """Inputs cut into batches, again each time they are iterated; a long text fills several contexts."""

    def __init__(self, model: Any, inputs: Any, *, batch: int, special_tokens: bool = False) -> None:
        check_whole(1, batch=batch)
        self.model, self.batch, self.special_tokens = model, batch, special_tokens
        self.inputs = [inputs] if isinstance(inputs, str) or not hasattr(inputs, "__len__") else inputs
        if not len(self.inputs):
            raise InputError("No inputs were given. Give texts or pictures, at least one.")
        self.modality: Modality = self._modality()

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self.inputs, Tensor):
            for given in self.inputs.split(self.batch):
                if self.modality == "image":
                    yield Batch(given)
                else:
                    ids = prepared_ids(self.model, given)
                    yield Batch(ids.tensor, ids.special, self.special_tokens)
            return
        prepare = self.model.preprocessor(self.modality)
        waiting: list[Any] = []
        for number in range(len(self.inputs)):
            prepared = prepare(self.inputs[number])
            special = (
                torch.zeros_like(prepared.tensor, dtype=torch.bool) if prepared.special is None else prepared.special
            )
            waiting += (
                list(zip(prepared.tensor, special, strict=True)) if self.modality == "text" else list(prepared.tensor)
            )
            while len(waiting) >= self.batch:
                yield self._batch(waiting[: self.batch])
                waiting = waiting[self.batch :]
        if waiting:
            yield self._batch(waiting)

    def _batch(self, contexts: list[Any]) -> Batch:
        if self.modality == "image":
            return Batch(torch.stack(contexts))
        ids, special = (torch.stack(part) for part in zip(*contexts, strict=True))
        return Batch(ids, special, self.special_tokens)

    def _modality(self) -> Modality:
        known = getattr(self.inputs, "modality", None)
        if known in ("text", "image"):
            return known
        if isinstance(self.inputs, Tensor):
            pixels = self.inputs.is_floating_point()
            if self.inputs.ndim != (4 if pixels else 2):
                raise ShapeError(
                    f"Got {self.inputs.dtype} of shape {tuple(self.inputs.shape)}; expected token ids (context, "
                    "position) or pixels (context, 3, h, w)."
                )
            return "image" if pixels else "text"
        return "text" if isinstance(self.inputs[0], str) else "image"
