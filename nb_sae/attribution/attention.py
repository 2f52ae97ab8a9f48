"""The attention that a dictionary was trained on: which block, before or after W_O, how its latents read each head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.hooks import hook_points
from nb_sae.layers import place_of
from nb_sae.models.clip import ClipModel
from nb_sae.models.contexts import TowerModel
from nb_sae.models.lm import LanguageModel
from nb_sae.models.parts import AttentionParts, Parts, parts
from nb_sae.models.weights import gain
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.origin import check_model


@dataclass(frozen=True)
class ReadAttention:
    """One attention and the site of it that a dictionary reads."""

    parts: Parts
    weights: AttentionParts
    site: str
    before_output: bool
    """Whether the rows are the concatenated heads, `(heads · d_head)`, or what attention adds to the residual."""
    after: nn.Module | None
    """What normalises the output of W_O before the site, where something does."""

    @property
    def d_in(self) -> int:
        """Width of the rows."""
        heads, d_head, d_model = self.weights.W_O.shape
        return heads * d_head if self.before_output else d_model

    def pulled_back(self, directions: Float[Tensor, "d_in m"]) -> Float[Tensor, "heads d_head m"]:
        """Directions of the site as directions of what each head gives before W_O.

        Where a norm comes after W_O its factor per dimension is in it, and the factor per row is not.
        """
        own = self.weights
        directions = directions.to(own.W_O)
        if self.before_output:
            return directions.unflatten(0, (own.heads, own.d_head))
        return torch.einsum("hkd,dm->hkm", own.W_O, self.gained(directions))

    def gained(self, directions: Float[Tensor, "d_model m"]) -> Float[Tensor, "d_model m"]:
        """Directions times the factors of the norm after W_O; as they are where there is none.

        Raises:
            ConfigError: that norm takes off a mean, so that heads do not add up after it.
        """
        if self.after is None:
            return directions
        factors = gain(self.after, len(directions))
        if factors is None:
            raise ConfigError(
                f"{self.after} comes between the heads and {self.site!r} and takes off a mean. Train the dictionary on "
                f"{self.weights.site!r}, which is before it."
            )
        return directions * factors.to(directions)[:, None]


def read_attention(model: Any, dictionary: Dictionary, site: str | None = None) -> ReadAttention:
    """The attention whose output a dictionary reads.

    Args:
        model: From `load_lm` or `load_clip`.
        dictionary: Trained on what an attention adds to the residual stream, or on the heads before W_O
            (`blocks.3.attn.hook_z`).
        site: Where; None: where the dictionary was trained.

    Raises:
        ConfigError: another model than the dictionary's, no site, one that is no attention of this model, or an
            attention that cannot be taken apart.
        ShapeError: the dictionary has another width.
    """
    if not isinstance(model, LanguageModel | ClipModel):
        raise ConfigError(
            f"Got a {type(model).__name__} as the model; expected one from load_lm() or load_clip(). Load it with them."
        )
    check_model(model, dictionary, site)
    name = site or dictionary.site
    if name is None:
        raise ConfigError("This dictionary does not say which site it is of. Give site=, the name of an attention.")
    found = _found(model, name)
    if found.d_in != dictionary.d_in:
        what = "heads before W_O" if found.before_output else "output"
        raise ShapeError(
            f"The {what} of the attention at {name!r} of {model.name} has width {found.d_in}; the dictionary takes "
            f"{dictionary.d_in}. Give the model and site that it was trained on."
        )
    return found


def _found(model: TowerModel, name: str) -> ReadAttention:
    place = place_of(name)
    if place is not None and place.lane == "attention" and place.point == "heads":
        tower = parts(model, place.tower)
        return ReadAttention(tower, tower.attention(place.layer), name, before_output=True, after=None)
    sites: list[str] = []
    for tower in _towers(model):
        for block in tower.blocks:
            if block.attention is None:
                continue
            sites.append(block.attention)
            # The names of transformer_lens have aliases; elsewhere a name of another family may be another place.
            alias = bool(hook_points(model.module)) and place is not None and place == place_of(block.attention)
            if name == block.attention or alias or name.startswith(f"{block.attention.rpartition('.')[0]}."):
                weights = tower.attention(block.layer)
                if name == weights.site:
                    return ReadAttention(tower, weights, name, before_output=False, after=None)
                if name == block.attention or alias:
                    return ReadAttention(tower, weights, name, before_output=False, after=weights.after)
    what = f"holds the {place.lane} lane" if place is not None and place.lane != "attention" else "is none"
    raise ConfigError(
        f"Site {name!r} {what}; heads are told apart at an attention of {model.name} only: {', '.join(sites[:3])}"
        f"{', …' if len(sites) > 3 else ''}. Train a dictionary there (ns.layer_sites(model, 'attention'))."
    )


def _towers(model: TowerModel) -> Iterator[Parts]:
    if isinstance(model, LanguageModel):
        yield parts(model)
        return
    yield parts(model, "image")
    if "text_embed" in model.pseudo_sites:
        yield parts(model, "text")
