"""What is active before anything is changed: how often and how strongly sources are, and together with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray as Array
from numpy.typing import NDArray
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.flow.effects.contexts import Contexts
from nb_sae.flow.sources import SourceLane
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import latent_number, listed

DRAWN = 20
"""Latents that are watched where none are named."""


@dataclass(frozen=True)
class Counted:
    """Activity of the sources over some inputs, beside that of the watched latents."""

    site: str
    watched: list[int]
    rows: int
    """Rows of the watched site that count."""
    density: Mapping[SourceLane, NDArray[np.float64]]
    """`(sources,)`: fraction of the rows of the source site on which each is active."""
    mean: Mapping[SourceLane, NDArray[np.float64]]
    """`(sources,)`: activation where it is active; 0 where it never is."""
    together: Mapping[SourceLane, NDArray[np.int64]]
    """`(watched, sources)`: rows on which both are active."""


def count(
    contexts: Contexts,
    dictionaries: Mapping[str, Dictionary],
    site: str,
    sources: Mapping[SourceLane, str],
    matches: Mapping[SourceLane, Int[Array, " d_sae"]],
    latents: Sequence[int] | None,
    *,
    seed: int = 0,
) -> Counted:
    """One pass over the inputs; two where the latents have to be drawn first.

    Args:
        contexts: What the model is run on.
        dictionaries: Of the site and its sources.
        site: Of the latents.
        sources: Lane → source site.
        matches: Lane → the match of every latent of the site, −1 for none.
        latents: Those to watch; None: `DRAWN` of those that are active together with a match, by chance.
        seed: Of that draw.

    Raises:
        ConfigError: a latent that is not there, or none that is ever active together with a match.
    """
    d_sae = dictionaries[site].d_sae
    if latents is None:
        watched = _drawn(contexts, dictionaries, site, sources, matches, seed)
    else:
        watched = [latent_number(one, None, d_sae) for one in dict.fromkeys(listed(latents))]
        if not watched:
            raise ConfigError("latents is empty. Name some, or leave it out to have them drawn.")
    totals: dict[SourceLane, _Total] = {
        lane: _Total(dictionaries[source].d_sae, len(watched)) for lane, source in sources.items()
    }
    rows = 0
    for target, before in _passes(contexts, dictionaries, site, sources):
        rows += len(target)
        for lane, acts in before.items():
            totals[lane].add(acts, target[:, watched] > 0)
    return Counted(
        site,
        watched,
        rows,
        {lane: one.active / max(1, rows) for lane, one in totals.items()},
        {lane: one.sum / np.maximum(one.active, 1) for lane, one in totals.items()},
        {lane: one.together for lane, one in totals.items()},
    )


class _Total:
    def __init__(self, sources: int, watched: int) -> None:
        self.active: NDArray[np.float64] = np.zeros(sources)
        self.sum: NDArray[np.float64] = np.zeros(sources)
        self.together: NDArray[np.int64] = np.zeros((watched, sources), dtype=np.int64)

    def add(self, acts: Tensor, watched: Tensor) -> None:
        active = acts > 0
        self.active += active.sum(0).numpy()
        self.sum += acts.double().sum(0).numpy()
        self.together += (watched.float().T @ active.float()).long().numpy()  # exact: a batch has few rows


def _drawn(
    contexts: Contexts,
    dictionaries: Mapping[str, Dictionary],
    site: str,
    sources: Mapping[SourceLane, str],
    matches: Mapping[SourceLane, Int[Array, " d_sae"]],
    seed: int,
) -> list[int]:
    together = np.zeros(dictionaries[site].d_sae, dtype=np.int64)
    for target, before in _passes(contexts, dictionaries, site, sources):
        for lane, acts in before.items():
            match = torch.from_numpy(matches[lane])
            together += ((target > 0) & (acts[:, match] > 0) & (match >= 0)).sum(0).numpy()
    live = np.flatnonzero(together)
    if not len(live):
        raise ConfigError(
            f"No latent of {site!r} is active together with a match on these inputs. Give more inputs, or latents=."
        )
    chosen = np.random.default_rng(seed).choice(live, min(DRAWN, len(live)), replace=False)
    return sorted(map(int, chosen))


def _passes(
    contexts: Contexts, dictionaries: Mapping[str, Dictionary], site: str, sources: Mapping[SourceLane, str]
) -> Iterator[tuple[Tensor, dict[SourceLane, Tensor]]]:
    """Latents of the watched site and of its sources, on the rows that count; sources of a pooled site are the largest
    over its tokens.
    """
    wanted = [*dict.fromkeys(sources.values()), site]
    for given in contexts:
        seen = contexts.model.capture_rows(given.given, wanted, contexts.modality)
        kept = given.counted(seen[site].shape).flatten()
        latents = {one: _latents(dictionaries[one], seen[one], seen[site]) for one in wanted}
        yield latents[site][kept], {lane: latents[source][kept] for lane, source in sources.items()}


def _latents(dictionary: Dictionary, rows: Tensor, like: Tensor) -> Tensor:
    latents = dictionary.encode(rows.reshape(-1, rows.shape[-1]).float()).cpu()
    if rows.ndim == 3 and like.ndim == 2:
        return latents.reshape(*rows.shape[:-1], -1).amax(1)
    return latents
