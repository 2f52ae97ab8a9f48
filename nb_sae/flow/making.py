"""Make a flow: match the latents of every site with those of the sites that feed it, and say what chance gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.errors import ConfigError, HookError, ShapeError, closest
from nb_sae.flow.flow import FeatureFlow
from nb_sae.flow.frames import edges_of, latents_of, nulls_frame
from nb_sae.flow.matching import inverse_norms, nearest_rows
from nb_sae.flow.nulls import (
    NullName,
    chance_in,
    chance_of_largest,
    check_draws,
    covariance_null,
    expected_largest,
    isotropic_null,
)
from nb_sae.flow.routes import Route, places, routes
from nb_sae.flow.scores import Scored, Thresholds, check_thresholds, threshold_of
from nb_sae.flow.spaces import through_final_norm
from nb_sae.layers import Place
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary

Rule = Literal["cosine", "correlation", "permutation"]
DRAWS = 10_000
"""Random rows of a null: ten of them lie beyond its 99.9th percentile."""


def feature_flow(
    dictionaries: Mapping[str, Dictionary],
    *,
    top: int = 8,
    rule: Rule = "cosine",
    stores: Mapping[str, Any] | None = None,
    model: Any = None,
    kinds: Mapping[str, Any] | None = None,
    thresholds: Thresholds = "null",
    null: NullName = "isotropic",
    draws: int = DRAWS,
    seed: int = 0,
    block: int | None = None,
    progress: bool = True,
) -> FeatureFlow:
    """How latents of one site continue those of the sites before it, from the directions of their decoders alone.

    A residual site is matched with the residual site before it among those given, and with attention and MLP of its own
    block; attention and MLP with the last residual site before their block; a final embedding with the last residual
    site. Sites are put in the order of the forward pass, whatever order they are given in.

    A latent of a residual site is "translated" where s(R), its largest cosine with the residual site before, reaches
    the threshold and those with attention and MLP do not, "processed" where both do, "newborn" where only a module's
    does, "unexplained" where none does. Without dictionaries of modules nothing can be newborn or processed.

    Args:
        dictionaries: Site → the dictionary that was trained there, at least two sites of one tower of one model.
        top: Sources that are kept of each target latent.
        rule: "cosine" of decoder rows; for comparison "correlation" of activations (needs `stores`), or "permutation",
            one partner for each latent (SAE-Match).
        stores: Site → rows of the same inputs and tokens at every site; for "correlation", and for the mean
            activations that "permutation" folds into the rows.
        model: From `load_clip`: takes the last residual site through the tower's final norm and projection to the
            embedding. Without it that step is left out, and `.about["left_out"]` says so.
        kinds: For a site whose name nb_sae does not know: its lane ("residual", "attention", "mlp", "embedding"), or
            `(lane, number of the block)`.
        thresholds: "null": the larger of the paper's value and the 99.9th percentile of the null. "paper": 0.5 along
            the residual stream, 0.15 where one side is a module, which chance reaches in narrow models. Or numbers by
            lane of the source or by `(source site, target site)`; pairs not named take "null".
        null: "isotropic": both dictionaries are random rows in uniform directions. "covariance": target rows drawn
            with the second moments of the target's rows, sources as they are; harder where directions fill few
            dimensions, as trained ones do.
        draws: Random rows of each null, at least 1,000.
        seed: Of the nulls.
        block: Target latents at a time. None: as many as 32 MiB of cosines take.
        progress: Show how far it is.

    Returns:
        `p` of an edge is the chance that the best of as many random rows as the source has is at least so near: exact
        for the isotropic null, (1 + draws as near) / (1 + draws) for the other. For an edge that is not the best of
        its target (rank > 0) it is the same chance at its own cosine, which says less than the edge deserves.

    Raises:
        ConfigError: fewer than two sites, an unknown place, two names of one place, two towers, an attention
            dictionary from before W_O, a transcoder, dictionaries of different models, or settings outside their range.
        ShapeError: dictionaries of different widths.
        HookError: a site that `model` lacks.
        StoreError: `stores` with other rows at one site than at another.

    Source:
        Laptev, Balagansky, Aksenov & Gavrilov 2025, Analyze Feature Flow to Enhance Interpretation and Steering in
        Language Models, arXiv:2502.03032, sections 3 and 4. Its 0.15 is reached by chance in GPT-2 and CLIP; nulls
        are not in the paper.
    """
    found = _checked(dictionaries, model, kinds)
    ways, left_out = _possible(routes(found), found, dictionaries, model)
    if rule not in ("cosine", "correlation", "permutation"):
        raise ConfigError(f"rule={rule!r}: use 'cosine', 'correlation' or 'permutation'.")
    if null not in ("isotropic", "covariance"):
        raise ConfigError(f"null={null!r}: use 'isotropic' or 'covariance'.")
    if top < 1 or (block is not None and block < 1):
        raise ConfigError(f"top={top} and block={block} must be at least 1.")
    check_draws(draws)
    check_thresholds(thresholds, ways)
    maker = _Cosines(dictionaries, found, model, top=top, null=null, draws=draws, seed=seed, block=block)
    scores = []
    with progress_bar(len(ways), "pairs of sites", "matching", enabled=progress) as bar:
        for way in ways:
            scores.append(maker.scored(way, thresholds))
            bar.update()
    blocks = _blocks(found, model)
    shown = {site: replace(place, layer=min(place.layer, blocks)) for site, place in found.items()}
    latents = [latents_of(site, place, dictionaries[site].d_sae, scores) for site, place in shown.items()]
    about = {
        "rule": rule,
        "null": null,
        "draws": draws,
        "seed": seed,
        "top": top,
        "thresholds": thresholds if isinstance(thresholds, str) else "given",
        "places": {
            site: {
                "lane": place.lane,
                "layer": place.layer,
                "tower": place.tower,
                "latents": dictionaries[site].d_sae,
                "d_in": dictionaries[site].d_in,
                "without_direction": int((inverse_norms(dictionaries[site].W_dec, site) == 0).sum()),
            }
            for site, place in shown.items()
        },
        "left_out": left_out,
        "model": next((one.model for one in dictionaries.values() if one.model), None),
        "revision": next((one.revision for one in dictionaries.values() if one.revision), None),
    }
    return FeatureFlow(
        sites=list(found),
        edges=pl.concat([edges_of(one) for one in scores]),
        latents=pl.concat(latents),
        nulls=nulls_frame(scores),
        about=about,
    )


class _Cosines:
    """Matching by the cosine of decoder rows. Nulls of one width and number of sources are drawn once."""

    def __init__(
        self,
        dictionaries: Mapping[str, Dictionary],
        found: Mapping[str, Place],
        model: Any,
        *,
        top: int,
        null: NullName,
        draws: int,
        seed: int,
        block: int | None,
    ) -> None:
        self.dictionaries, self.found, self.model = dictionaries, found, model
        self.top, self.null, self.draws, self.seed, self.block = top, null, draws, seed, block
        self._drawn: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def scored(self, way: Route, thresholds: Thresholds) -> Scored:
        targets, sources = self.directions(way)
        d_in, count = targets.shape[1], len(sources)
        if self.null == "isotropic":
            if (d_in, count) not in self._drawn:
                self._drawn[d_in, count] = isotropic_null(d_in, count, draws=self.draws, seed=self.seed)
            draws = self._drawn[d_in, count]
            p_of, expected = partial(_isotropic_p, d_in), expected_largest(d_in, count)
        else:
            draws = covariance_null(targets, sources, draws=self.draws, seed=self.seed)
            p_of, expected = partial(_drawn_p, draws), None
        threshold, chosen_by = threshold_of(way, draws, thresholds, paper=way.paper)
        return Scored(
            route=way,
            d_in=d_in,
            nearest=nearest_rows(targets, sources, self.top, block=self.block),
            draws=draws,
            expected=expected,
            p_of=p_of,
            paper=way.paper,
            threshold=threshold,
            chosen_by=chosen_by,
        )

    def directions(self, way: Route) -> tuple[Float[Tensor, "targets d"], Float[Tensor, "sources d"]]:
        """Decoder rows of both sites in one space."""
        targets, sources = self.dictionaries[way.target].W_dec, self.dictionaries[way.source].W_dec
        if way.target_lane == "embedding":
            sources = through_final_norm(self.model, self.found[way.target].tower, sources)
            if sources.shape[1] != targets.shape[1]:
                raise ShapeError(
                    f"{way.target!r} has width {targets.shape[1]}, and the model projects {way.source!r} to width "
                    f"{sources.shape[1]}. Give the model that both dictionaries were trained on."
                )
        return targets, sources


def _isotropic_p(d_in: int, scores: Any, count: int) -> Any:
    return chance_of_largest(scores, d_in, count)


def _drawn_p(draws: Tensor, scores: Any, count: int) -> Any:
    return chance_in(draws, scores)


def _checked(dictionaries: Mapping[str, Dictionary], model: Any, kinds: Mapping[str, Any] | None) -> dict[str, Place]:
    """Where the sites lie, if the dictionaries can be matched at all."""
    if not isinstance(dictionaries, Mapping) or len(dictionaries) < 2:
        given = f"{len(dictionaries)} site" if isinstance(dictionaries, Mapping) else type(dictionaries).__name__
        raise ConfigError(
            f"{given} was given; a flow needs the dictionaries of at least two sites, as {{site: dictionary}}."
        )
    for site, one in dictionaries.items():
        if one.target is not None:
            raise ConfigError(
                f"The dictionary of {site!r} is a transcoder that reads {one.site!r} and writes {one.target!r}: its "
                "latents belong to no single site. Give a dictionary that was trained on one site."
            )
        if one.site is not None and one.site != site:
            raise ConfigError(
                f"The key {site!r} holds the dictionary of {one.site!r}. Use the site that it was trained on as key."
            )
    for what in ("model", "revision"):
        known = {getattr(one, what): site for site, one in dictionaries.items() if getattr(one, what)}
        if len(known) > 1:
            (first, site), (second, other) = list(known.items())[:2]
            raise ConfigError(
                f"{site!r} is of {what} {first!r}, {other!r} of {what} {second!r}. Directions of different models have "
                "nothing in common; train all dictionaries on one model."
            )
    found = places(dictionaries, kinds)
    _check_widths(dictionaries, found)
    if model is not None:
        _check_model(dictionaries, model)
    return {site: found[site] for site in found}


def _check_widths(dictionaries: Mapping[str, Dictionary], found: Mapping[str, Place]) -> None:
    stream = [site for site in found if found[site].lane != "embedding"]
    residual = next((site for site in stream if found[site].lane == "residual"), stream[0] if stream else None)
    for site in stream:
        if residual is None or dictionaries[site].W_dec.shape[1] == dictionaries[residual].W_dec.shape[1]:
            continue
        hint = (
            "An attention dictionary that was trained on the heads before W_O cannot be matched: train it on the "
            "output of the attention module. "
            if found[site].lane == "attention"
            else ""
        )
        raise ShapeError(
            f"{residual!r} has width {dictionaries[residual].W_dec.shape[1]}, {site!r} has width "
            f"{dictionaries[site].W_dec.shape[1]}. {hint}Sites of one residual stream have one width; collect what is "
            "added to the stream."
        )


def _check_model(dictionaries: Mapping[str, Dictionary], model: Any) -> None:
    names = model.hook_names()
    for site, one in dictionaries.items():
        if site not in names:
            raise HookError(
                f"{model.name} has no site {site!r}. {closest(site, names)}List all with model.hook_names()."
            )
        for what, given in (("model", model.name), ("revision", model.revision)):
            own = getattr(one, what)
            if own is not None and own != given:
                raise ConfigError(
                    f"The dictionary of {site!r} is of {what} {own!r}, the given model has {what} {given!r}. Give the "
                    "model that the dictionaries were trained on."
                )


def _possible(
    ways: list[Route], found: Mapping[str, Place], dictionaries: Mapping[str, Dictionary], model: Any
) -> tuple[list[Route], list[str]]:
    """The pairs that can be matched, and what is left out and why."""
    if model is None:
        left = [
            f"{way.source} → {way.target}: the tower's final norm and projection lie between the two; pass model= to "
            "go through them"
            for way in ways
            if way.target_lane == "embedding"
        ]
        ways = [way for way in ways if way.target_lane != "embedding"]
    else:
        left = []
    if not ways:
        told = ", ".join(f"{site} ({place.lane}, block {place.layer})" for site, place in found.items())
        raise ConfigError(
            f"No two of the sites feed each other: {told}. {'; '.join(left) + '. ' if left else ''}Give residual sites "
            "of two blocks, or a residual site and the modules of its block."
        )
    return ways, left


def _blocks(found: Mapping[str, Place], model: Any) -> int:
    """Number of blocks of the tower; without a model, of those that sites were given of."""
    if model is not None:
        from nb_sae.models.parts import parts

        with_blocks = next(iter(found.values())).tower
        return len(parts(model, with_blocks).blocks)
    return 1 + max((place.layer for place in found.values() if place.lane != "embedding"), default=-1)
