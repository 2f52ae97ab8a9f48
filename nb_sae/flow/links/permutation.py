"""One partner for each latent: the assignment of one dictionary's rows to another's that costs least (SAE-Match)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.errors import MissingDependencyError
from nb_sae.flow.links.cosines import Directions
from nb_sae.flow.links.matching import Nearest, inverse_norms
from nb_sae.flow.links.routes import Route
from nb_sae.flow.links.scores import Scored, Thresholds, threshold_of
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.metrics.alignment import best_pairs, greedy_pairs
from nb_sae.sae.metrics.rows import rows_at_a_time

EXACT_LATENTS = 4096
"""Up to so many latents the assignment is the best of all (SciPy, a time that grows with n³); beyond, greedy."""


def by_permutation(
    directions: Directions, way: Route, *, lengths: Mapping[str, Tensor], thresholds: Thresholds
) -> tuple[Scored, str]:
    """One-to-one partners of the least summed squared distance between decoder rows of given lengths.

    Args:
        directions: Decoder rows of every site.
        way: The pair of sites.
        lengths: Site → what each row is multiplied with ("folding"); a site that is missing has unit rows.
        thresholds: As for cosines: the score of a pair is the cosine of its rows.

    Returns:
        The scores, and how pairs were found: "hungarian" or "greedy". The p of a pair is that of the best of all
        sources at this cosine, which is too large for a partner that had to be left to somebody else.

    Source:
        Balagansky, Maksimov & Gavrilov 2024, Mechanistic Permutability: Match Features Across Layers,
        arXiv:2410.07656; it folds the thresholds of JumpReLU dictionaries into the rows.
    """
    targets, sources = directions.of(way)
    chance = directions.chance(targets, sources)
    units = [rows * inverse_norms(rows, name)[:, None] for rows, name in ((targets, "targets"), (sources, "sources"))]
    folded = [
        unit * lengths[site].to(unit)[:, None] if site in lengths else unit
        for unit, site in zip(units, (way.target, way.source), strict=True)
    ]
    exact = max(map(len, folded)) <= EXACT_LATENTS
    a, b = _as_products(folded[0], 1), _as_products(folded[1], 0)
    try:
        first, second, _ = best_pairs(a, b) if exact else greedy_pairs(a, b)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            "rule='permutation' needs 'scipy', which cannot be imported. Run: pip install \"nb_sae[baselines]\", or "
            "use rule='cosine'."
        ) from error
    nearest = _partners(units[0], units[1], first, second)
    threshold, chosen_by = threshold_of(way, chance.draws, thresholds, paper=way.paper)
    scored = Scored(
        route=way,
        d_in=targets.shape[1],
        nearest=nearest,
        chance=chance,
        paper=way.paper,
        threshold=threshold,
        chosen_by=chosen_by,
    )
    return scored, "hungarian" if exact else "greedy"


@torch.no_grad()
def mean_activations(dictionary: Dictionary, store: Any, *, chunk_rows: int | None = None) -> Float[Tensor, " d_sae"]:
    """Mean activation of each latent on the rows on which it is active; 0 for one that never is."""
    total, active = (torch.zeros(dictionary.d_sae, dtype=torch.double) for _ in range(2))
    for _, rows in store.chunks(rows_at_a_time(chunk_rows, dictionary)):
        values, numbers = (one.cpu() for one in dictionary.encode(rows, sparse=True))
        total.index_add_(0, numbers.flatten(), values.flatten().double())
        active.index_add_(0, numbers.flatten(), (values > 0).flatten().double())
    return (total / active.clamp_min(1)).float()


def _as_products(rows: Float[Tensor, "n d"], place: int) -> Float[Tensor, "n d+2"]:
    """Rows whose products are −‖a − b‖²: (√2 a, −‖a‖², 1) · (√2 b, 1, −‖b‖²)."""
    rows = rows.double()
    norms = -rows.square().sum(-1, keepdim=True)
    ones = torch.ones_like(norms)
    return torch.cat([2**0.5 * rows, *((norms, ones) if place else (ones, norms))], dim=-1)


def _partners(targets: Tensor, sources: Tensor, first: Tensor, second: Tensor) -> Nearest:
    """`Nearest` of one partner each; −1 and a score of 0 where there are fewer on the other side."""
    cosines = (targets[first] * sources[second]).sum(-1).cpu()
    first, second = first.cpu(), second.cpu()
    forth, back = torch.full((len(targets),), -1), torch.full((len(sources),), -1)
    score, carried = torch.zeros(len(targets)), torch.zeros(len(sources))
    forth[first], score[first] = second, cosines
    back[second], carried[second] = first, cosines
    return Nearest(score[:, None], forth[:, None], carried, back)
