"""Make a flow: match the latents of every site with those of the sites that feed it, and say what chance gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import polars as pl
import torch
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.flow.flow import FeatureFlow
from nb_sae.flow.links.correlation import by_correlation
from nb_sae.flow.links.cosines import Directions, by_cosine
from nb_sae.flow.links.fitting import blocks_of, checked, possible
from nb_sae.flow.links.frames import edges_of, latents_of, nulls_frame
from nb_sae.flow.links.matching import inverse_norms
from nb_sae.flow.links.nulls import NullName, check_draws
from nb_sae.flow.links.permutation import by_permutation, mean_activations
from nb_sae.flow.links.routes import routes
from nb_sae.flow.links.scores import Scored, Thresholds, check_thresholds
from nb_sae.flow.settings import check_whole
from nb_sae.flow.sources import checked_stores
from nb_sae.layers import Place
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary

Rule = Literal["cosine", "correlation", "permutation"]
DRAWS = 10_000
"""Random rows of a null: ten of them lie beyond its 99.9th percentile."""
LARGEST_TOP = 65_535
"""What the column `rank` can hold."""


@torch.no_grad()
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
        rule: "cosine" of decoder rows. For comparison "correlation" of activations, whose null is shuffled rows (see
            `by_correlation`), or "permutation": one partner for each latent, by the least summed distance of decoder
            rows folded with what `stores` give, with thresholds where every dictionary has them, or not at all
            (`.about["folded"]`; see `by_permutation`).
        stores: Site → rows; for "correlation" (the same inputs and tokens at every site) and for the mean activations
            that "permutation" folds into the rows. "cosine" reads none.
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
        StoreError: a site without a store, rows that do not fit its dictionary, or other rows than at other sites.
        MissingDependencyError: "permutation" of up to 4,096 latents without SciPy.

    Source:
        Laptev, Balagansky, Aksenov & Gavrilov 2025, Analyze Feature Flow to Enhance Interpretation and Steering in
        Language Models, arXiv:2502.03032, sections 3 and 4. Its 0.15 is reached by chance in GPT-2 and CLIP; nulls
        are not in the paper.
    """
    found = checked(dictionaries, model, kinds)
    _check_settings(rule, null, top, block, seed)
    check_draws(draws)
    rows = _rows_of(stores, dictionaries, found, rule)
    wanted = routes(found)
    ways, left_out = possible(wanted, found, model=model, stores=rows if rule == "correlation" else None)
    matched = {site for way in wanted for site in (way.source, way.target)}
    left_out += [
        f"{site}: no residual site of its block or before it was given" for site in found if site not in matched
    ]
    check_thresholds(thresholds, ways)
    about: dict[str, Any] = {"rule": rule, "null": "shuffled rows" if rule == "correlation" else null}
    if rule == "correlation":
        scores = by_correlation(
            ways, dictionaries, rows, top=top, thresholds=thresholds, seed=seed, block=block, progress=progress
        )
    else:
        directions = Directions(dictionaries, found, model, null=null, draws=draws, seed=seed)
        lengths, about["folded"] = ({}, None) if rule == "cosine" else _lengths(dictionaries, rows)
        scores, paired = [], set[str]()
        with progress_bar(len(ways), "pairs of sites", "matching", enabled=progress) as bar:
            for way in ways:
                if rule == "cosine":
                    scores.append(by_cosine(directions, way, top=top, thresholds=thresholds, block=block))
                else:
                    scored, how = by_permutation(directions, way, lengths=lengths, thresholds=thresholds)
                    scores.append(scored)
                    paired.add(how)
                bar.update()
        about["paired_by"] = sorted(paired)
    about |= {
        "draws": draws,
        "seed": seed,
        "top": top,
        "thresholds": thresholds if isinstance(thresholds, str) else "given",
        "left_out": left_out,
        "model": next((one.model for one in dictionaries.values() if one.model), None),
        "revision": next((one.revision for one in dictionaries.values() if one.revision), None),
    }
    blocks = blocks_of(found, model)
    shown = {site: replace(place, layer=min(place.layer, blocks)) for site, place in found.items()}
    return _assembled(shown, dictionaries, scores, about)


def _assembled(
    shown: Mapping[str, Place], dictionaries: Mapping[str, Dictionary], scores: Sequence[Scored], about: dict[str, Any]
) -> FeatureFlow:
    about["places"] = {
        site: {
            "lane": place.lane,
            "layer": place.layer,
            "tower": place.tower,
            "latents": dictionaries[site].d_sae,
            "d_in": dictionaries[site].d_in,
            "without_direction": int((inverse_norms(dictionaries[site].W_dec, site) == 0).sum()),
        }
        for site, place in shown.items()
    }
    latents = [latents_of(site, place, dictionaries[site].d_sae, scores) for site, place in shown.items()]
    return FeatureFlow(
        sites=list(shown),
        edges=pl.concat([edges_of(one) for one in scores]),
        latents=pl.concat(latents),
        nulls=nulls_frame(scores),
        about=about,
    )


def _rows_of(
    stores: Mapping[str, Any] | None, dictionaries: Mapping[str, Dictionary], found: Mapping[str, Place], rule: Rule
) -> dict[str, Any]:
    """The stores that the rule reads, each fit for its dictionary; for correlations with the same rows."""
    if rule == "cosine" or (rule == "permutation" and stores is None):
        return {}
    if stores is None:
        raise ConfigError(
            "rule='correlation' compares activations and no stores were given. Give stores={site: store}, collected in "
            "one call for all sites, or use rule='cosine'."
        )
    if rule == "permutation":
        return {site: checked_stores(stores, dictionaries, [site])[site] for site in found}
    stream = [site for site in found if found[site].lane != "embedding"]
    ends = [site for site in found if found[site].lane == "embedding"]
    return checked_stores(stores, dictionaries, stream) | checked_stores(stores, dictionaries, ends)


def _lengths(dictionaries: Mapping[str, Dictionary], rows: Mapping[str, Any]) -> tuple[dict[str, Tensor], str | None]:
    """What decoder rows are multiplied with before they are paired, and what that is; nothing where it is not known."""
    if rows:
        return {site: mean_activations(dictionaries[site], store) for site, store in rows.items()}, "mean activation"
    known = {site: one.threshold for site, one in dictionaries.items() if one.threshold is not None}
    return (known, "threshold") if len(known) == len(dictionaries) else ({}, None)


def _check_settings(rule: Any, null: Any, top: int, block: int | None, seed: int) -> None:
    if rule not in get_args(Rule):
        raise ConfigError(f"rule={rule!r}: use 'cosine', 'correlation' or 'permutation'.")
    if null not in get_args(NullName):
        raise ConfigError(f"null={null!r}: use 'isotropic' or 'covariance'.")
    check_whole(1, top=top, **({} if block is None else {"block": block}))
    check_whole(seed=seed)
    if top > LARGEST_TOP:
        raise ConfigError(f"top={top} is outside [1, {LARGEST_TOP:,}]. 8 sources of each latent are plenty.")
