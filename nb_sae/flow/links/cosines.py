"""Scores of a pair of sites by the cosine of decoder rows, and the null of such cosines."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nb_sae.errors import ShapeError
from nb_sae.flow.links.matching import nearest_rows
from nb_sae.flow.links.nulls import (
    NullName,
    chance_in,
    chance_of_largest,
    covariance_null,
    expected_largest,
    isotropic_null,
)
from nb_sae.flow.links.routes import Route
from nb_sae.flow.links.scores import Chance, Scored, Thresholds, threshold_of
from nb_sae.flow.links.spaces import through_final_norm
from nb_sae.layers import Place
from nb_sae.sae.dictionary import Dictionary


class Directions:
    """Decoder rows of every site. Nulls of one width and number of sources are drawn once.

    Args:
        dictionaries: Of every site.
        found: Where the sites lie.
        model: Leads from the last residual site to the embedding.
        null: "isotropic" or "covariance".
        draws: Random rows of each null.
        seed: Of the nulls.
    """

    def __init__(
        self,
        dictionaries: Mapping[str, Dictionary],
        found: Mapping[str, Place],
        model: Any,
        *,
        null: NullName,
        draws: int,
        seed: int,
    ) -> None:
        self.dictionaries, self.found, self.model = dictionaries, found, model
        self.null, self.draws, self.seed = null, draws, seed
        self._drawn: dict[tuple[int, int], Tensor] = {}

    def of(self, way: Route) -> tuple[Float[Tensor, "targets d"], Float[Tensor, "sources d"]]:
        """Decoder rows of both sites in the space of the target.

        Raises:
            ShapeError: the model's embedding has another width than the target.
            ConfigError: the model's tower does not end in a norm and a linear map.
        """
        targets = self.dictionaries[way.target].W_dec
        sources = self.dictionaries[way.source].W_dec.to(targets.device)
        if way.target_lane == "embedding":
            sources = through_final_norm(self.model, self.found[way.target].tower, sources)
            if sources.shape[1] != targets.shape[1]:
                raise ShapeError(
                    f"{way.target!r} has width {targets.shape[1]}, and the model projects {way.source!r} to width "
                    f"{sources.shape[1]}. Give the model that both dictionaries were trained on."
                )
        return targets, sources

    def chance(self, targets: Float[Tensor, "targets d"], sources: Float[Tensor, "sources d"]) -> Chance:
        """What random rows give in place of these."""
        d_in, count = targets.shape[1], len(sources)
        if self.null == "covariance":
            draws = covariance_null(targets, sources, draws=self.draws, seed=self.seed)
            return Chance(draws, None, partial(drawn_p, draws, count))
        if (d_in, count) not in self._drawn:
            self._drawn[d_in, count] = isotropic_null(d_in, count, draws=self.draws, seed=self.seed)
        return Chance(self._drawn[d_in, count], expected_largest(d_in, count), partial(_isotropic_p, d_in))


def by_cosine(directions: Directions, way: Route, *, top: int, thresholds: Thresholds, block: int | None) -> Scored:
    """The `top` nearest sources of every target latent."""
    targets, sources = directions.of(way)
    chance = directions.chance(targets, sources)
    threshold, chosen_by = threshold_of(way, chance.draws, thresholds, paper=way.paper)
    return Scored(
        route=way,
        d_in=targets.shape[1],
        nearest=nearest_rows(targets, sources, top, block=block),
        chance=chance,
        paper=way.paper,
        threshold=threshold,
        chosen_by=chosen_by,
    )


def _isotropic_p(d_in: int, scores: Any, count: int) -> Any:
    return chance_of_largest(scores, d_in, count)


def drawn_p(draws: Tensor, drawn_of: int, scores: Any, count: int) -> Any:
    """`Chance.p_of` from draws, each of which is the largest of `drawn_of`."""
    return chance_in(draws, scores, count / drawn_of)
