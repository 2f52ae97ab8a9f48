"""The rows of a report in memory: embeddings, the chosen concepts' activations, and how often each latent is active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.metrics.rows import check_finite
from nb_sae.types import ActivationSource

CHUNK_ROWS = 4096
CHOOSING_ROWS = 20_000
"""Rows by which concepts are chosen where none are named."""
MOST_UNNAMED = 100


@dataclass(frozen=True)
class Concept:
    """A latent under the name that the report uses."""

    name: str
    latent: int


@dataclass(frozen=True)
class ConceptRows:
    """Rows of a store with the activations of some concepts.

    Attributes:
        x: Embeddings in model units, on the CPU.
        z: Activations of the concepts, one column each.
        concepts: In the order of the columns.
        density: Share of the rows on which each latent of the dictionary is active.
        mean: Mean activation of each latent over those rows; 0 if none.
        input_ids: Of the rows.
    """

    dictionary: Dictionary
    x: Float[Tensor, "rows d_in"]
    z: Float[Array, "rows concepts"]
    concepts: tuple[Concept, ...]
    density: Float[Array, " d_sae"]
    mean: Float[Array, " d_sae"]
    input_ids: Int[Array, " rows"]

    @property
    def live(self) -> tuple[bool, ...]:
        """Whether each concept is active on any row."""
        return tuple(bool(self.density[concept.latent] > 0) for concept in self.concepts)

    def scale(self, rows: Int[Array, " some"]) -> Float[Array, " some"]:
        """What a step along a decoder row is multiplied with in each row; 1 without `row_norm`."""
        scale = self.dictionary.row_scale(self.x[rows])
        return scale.cpu().double().numpy().reshape(-1) if isinstance(scale, Tensor) else np.ones(len(rows))


def read_rows(dictionary: Dictionary, store: ActivationSource, concepts: Sequence[Concept]) -> ConceptRows:
    """Read the store once: rows, activations of the concepts, density and mean of all latents."""
    x = torch.empty(len(store), store.d_in)
    z = np.zeros((len(store), len(concepts)), dtype=np.float32)
    latents = [concept.latent for concept in concepts]
    count, total = torch.zeros(dictionary.d_sae), torch.zeros(dictionary.d_sae, dtype=torch.double)
    column = torch.full((dictionary.d_sae,), -1)
    column[latents] = torch.arange(len(latents))
    for start, rows in store.chunks(CHUNK_ROWS):
        check_finite(rows)
        x[start : start + len(rows)] = rows
        values, indices = (part.cpu() for part in dictionary.encode(rows, sparse=True))
        active = values > 0
        count += torch.bincount(indices[active], minlength=dictionary.d_sae)
        total.index_add_(0, indices[active], values[active].double())
        place = column[indices]
        row, slot = torch.nonzero(active & (place >= 0), as_tuple=True)
        z[start + row.numpy(), place[row, slot].numpy()] = values[row, slot].numpy()
    ids = store.rows["input_id"].to_numpy()
    density = (count / max(1, len(store))).double().numpy()
    mean = (total / count.clamp_min(1)).numpy()
    return ConceptRows(dictionary, x, z, tuple(concepts), density, mean, ids)


def high_of(z: Float[Array, "rows latents"]) -> Float[Array, " latents"]:
    """99th percentile of each column over the rows on which it is active; NaN if there are none."""
    active = [column[column > 0] for column in z.T]
    return np.array([np.quantile(values, 0.99) if len(values) else np.nan for values in active])


def read_concepts(concepts: Any, dictionary: Dictionary, store: ActivationSource, seed: int) -> tuple[Concept, ...]:
    """The concepts that were asked for.

    Args:
        concepts: What `name_concepts` gives (its accepted names), a list of latents, `{name: latent}`, or None: the
            latents of the largest density × mean², chosen without looking at any label.

    A name that several latents share gets the latent's number behind it.

    Raises:
        ConfigError: none, a latent twice, or one that does not exist.
    """
    if concepts is None:
        chosen = [Concept(f"latent {latent}", latent) for latent in _strongest(dictionary, store, seed)]
    elif hasattr(concepts, "frame"):
        frame = concepts.frame
        labelled = sorted(getattr(concepts, "labels", {}))
        latents = [*frame.filter(frame["accepted"])["latent"].to_list(), *labelled]
        chosen = [Concept(concepts.name_of(latent), latent) for latent in dict.fromkeys(latents)]
    elif isinstance(concepts, Mapping):
        chosen = [Concept(str(name), _number(latent)) for name, latent in concepts.items()]
    else:
        chosen = [Concept(f"latent {latent}", _number(latent)) for latent in concepts]
    latents = [concept.latent for concept in chosen]
    if not latents:
        raise ConfigError("There are no concepts. Give latents or {name: latent}, or names of which some are accepted.")
    if odd := [latent for latent in latents if not 0 <= latent < dictionary.d_sae]:
        raise ConfigError(f"Latent {odd[0]} does not exist; this dictionary has 0 … {dictionary.d_sae - 1}.")
    if len(set(latents)) < len(latents):
        twice = next(latent for latent in latents if latents.count(latent) > 1)
        raise ConfigError(f"Latent {twice} is named twice among the concepts. Name it once: it is tested once.")
    names = [concept.name for concept in chosen]
    return tuple(
        Concept(f"{one.name} #{one.latent}", one.latent) if names.count(one.name) > 1 else one for one in chosen
    )


def _number(latent: Any) -> int:
    if isinstance(latent, bool) or not isinstance(latent, int | np.integer):
        raise ConfigError(f"concepts holds {latent!r}; give numbers of latents, {{name: latent}}, or names.")
    return int(latent)


def _strongest(dictionary: Dictionary, store: ActivationSource, seed: int) -> list[int]:
    rows = np.arange(len(store))
    if len(rows) > CHOOSING_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, CHOOSING_ROWS, replace=False))
    energy = torch.zeros(dictionary.d_sae, dtype=torch.double)
    for start in range(0, len(rows), CHUNK_ROWS):
        values, indices = dictionary.encode(store[rows[start : start + CHUNK_ROWS]], sparse=True)
        energy.index_add_(0, indices.cpu().flatten(), values.cpu().double().square().flatten())
    order = energy.argsort(descending=True, stable=True)[:MOST_UNNAMED]
    return sorted(int(latent) for latent in order if energy[latent] > 0)
