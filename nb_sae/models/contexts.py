"""Some contexts as a model takes them, with which of their tokens count.

Which inputs come together, and whether a long text is cut or refused, is up to who makes the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nb_sae.models.clip import ClipModel
from nb_sae.models.lm import LanguageModel
from nb_sae.models.tokens import PADDING, caption_preprocessor, special_ids
from nb_sae.types import Prepared

TowerModel = LanguageModel | ClipModel


@dataclass(frozen=True)
class Batch:
    """Some contexts; the rows of special tokens count where that is asked for, those of padding never."""

    given: Tensor
    """Pixels `(context, 3, h, w)`, or token ids `(context, position)` with −1 on padding."""
    special: Bool[Tensor, "context position"] | None = None
    """Positions of special tokens; None: pictures, or not known."""
    special_tokens: bool = False
    """Whether those of BOS, EOS, CLS and SEP count."""
    inputs: range = range(0)
    """Numbers of the inputs, where each has one context."""

    def counted(self, shape: Sequence[int]) -> Bool[Tensor, "context token"]:
        """Which rows of a site count; `shape` is what it gives, `(context, token, width)` or `(context, width)`."""
        mask = torch.ones(shape[0], shape[1] if len(shape) == 3 else 1, dtype=torch.bool)
        if len(shape) != 3 or self.given.is_floating_point():
            return mask
        real = self.given.cpu() != PADDING
        if self.special is not None and not self.special_tokens:
            real = real & ~self.special
        mask[:, : real.shape[1]] = real
        mask[:, real.shape[1] :] = False  # what a tower appends to a text, as CoCa's class token, is none of it
        return mask


def prepared_ids(model: TowerModel, ids: Int[Tensor, "context position"]) -> Prepared:
    """Token ids that a user gives, on the CPU, as the model's preprocessing would give them.

    Padding of a CLIP's tokenizer (0 after the end mark) becomes −1. Without a tokenizer special tokens are not known.
    """
    ids = ids.cpu().long()
    if model.tokenizer is None:
        return Prepared(ids)
    if isinstance(model, ClipModel):
        return caption_preprocessor(model.tokenizer).of_ids(ids)
    known = torch.tensor(sorted(special_ids(model.tokenizer)), dtype=torch.long)
    return Prepared(ids, special=torch.isin(ids, known))
