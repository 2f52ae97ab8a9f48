"""What a ConceptDashboard asks: an input's concepts, what an edit of them finds, and what the model then says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from nb_sae.analysis.pictures import pictures_frame
from nb_sae.analysis.schema import PICTURES
from nb_sae.concepts.index import SearchIndex
from nb_sae.concepts.usage import ROWS_AT_A_TIME, usage
from nb_sae.errors import ConfigError, StoreError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.types import ActivationSource, Inputs

PICTURE_SIDE = 72
"""Pixels of a thumbnail's longest side."""
SAMPLE_ROWS = 20_000
"""Rows from which the 99th percentile of each latent is read."""
ACTIVE = 12
"""Strongest latents that an answer names."""


@dataclass(frozen=True)
class Answer:
    """What one row finds, as it is or edited.

    Attributes:
        row: Of the store.
        input_id: Of the row.
        hits: `row, input_id, key, score`: the nearest other rows by cosine, nearest first.
        probabilities: Zero-shot, one per prompt, summing to 1.
        cosine: Of the edited row to the row as it is.
        active: Its strongest latents before the edit, `(latent, activation)`.
    """

    row: int
    input_id: int
    hits: pl.DataFrame
    probabilities: tuple[float, ...]
    cosine: float
    active: tuple[tuple[int, float], ...]


class ConceptEditor:
    """Sets latents of rows of a store and answers what changes.

    Made once, it answers without reading the store again where its rows fit into memory (`SearchIndex`).

    The reconstruction error stays in the row: x' = x + Σ (new − old) W_dec, so an edit that changes nothing changes
    nothing. Retrieval is exact, by cosine over the rows as they are; the row itself is left out.

    Args:
        dictionary: Trained on the site of the store.
        store: One row per input, such as the image embeddings.
        clip: What embeds the prompts (`encode_text`, `logit_scale`); needed for `prompts` only.
        prompts: Two or more texts between which zero-shot chooses.
        inputs: The images of the store, for pictures.
        queries: Rows to start with; None: six, drawn with `seed`.
        hits: How many nearest rows.
        seed: Of the drawn rows.

    Raises:
        StoreError: the rows are not those the dictionary was trained for, or an input has several of them.
        ConfigError: one prompt, prompts without a model, or a row that the store has not.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        store: ActivationSource,
        clip: Any = None,
        *,
        prompts: Sequence[str] = (),
        inputs: Inputs | None = None,
        queries: Sequence[int] | None = None,
        hits: int = 10,
        seed: int = 0,
    ) -> None:
        dictionary.check(store)
        ids = store.rows["input_id"]
        if ids.n_unique() < len(ids):
            raise StoreError(
                f"The store has several rows per input ({store.site.name!r}); an editor moves one row per input. "
                "Collect a pooled site such as image_embed, or tokens='cls'."
            )
        if len(prompts) == 1 or (prompts and clip is None):
            raise ConfigError(f"prompts={list(prompts)!r}: give two or more, and clip= to embed them.")
        self.prompts = list(prompts)
        self.hits = min(hits, max(1, len(store) - 1))
        self.dictionary = dictionary
        self._ids = ids.to_numpy()
        self._keys = dict(store.inputs.select("input_id", "key").iter_rows())
        self._store, self._index = store, SearchIndex(store)
        self._inputs, self._site = inputs, store.site
        self._texts = clip.encode_text(self.prompts, normalize=True).float().cpu() if self.prompts else None
        self._scale = float(clip.logit_scale) if self.prompts else 1.0
        self._rng = np.random.default_rng(seed)
        self._high = self._percentiles()
        chosen = self._rng.choice(len(store), min(6, len(store)), replace=False) if queries is None else queries
        self.queries = [self._row(int(row)) for row in chosen]

    def high(self, latent: int) -> float:
        """99th percentile of the latent where it is active, in its own units; 1 where it never is."""
        return float(self._high[latent])

    def another(self) -> int:
        """A row drawn at random."""
        return int(self._rng.integers(len(self._store)))

    @torch.no_grad()
    def edit(self, row: int, latents: Mapping[int, float]) -> Answer:
        """What this row finds with latents set to activations; with none, as it is."""
        row = self._row(row)
        x = self._store[[row]]
        values, indices = self.dictionary.encode(x, sparse=True)
        edited = self.dictionary.edit_rows(x, set={**latents}) if latents else x
        unit, before = F.normalize(edited.cpu(), dim=-1)[0], F.normalize(x, dim=-1)[0]
        scores = self._index.scores(edited)[0].cpu()
        scores[row] = -torch.inf
        best = scores.topk(self.hits)
        places = best.indices.numpy()
        found = self._ids[places]
        hits = pl.DataFrame(
            {
                "row": places.astype(np.uint32),
                "input_id": found.astype(np.uint32),
                "key": [self._keys.get(one) for one in found.tolist()],
                "score": best.values.double().numpy(),
            }
        )
        probabilities: tuple[float, ...] = ()
        if self._texts is not None:
            probabilities = tuple((self._scale * (self._texts @ unit)).softmax(0).tolist())
        order = values[0].argsort(descending=True)[:ACTIVE]
        active = tuple((int(indices[0, i]), float(values[0, i])) for i in order if float(values[0, i]) > 0)
        cosine = float(unit @ before)
        return Answer(row, int(self._ids[row]), hits, probabilities, cosine, active)

    def pictures(self, input_ids: Sequence[int]) -> pl.DataFrame:
        """`input_id, key, webp` of these inputs; without `inputs` no picture, and so no line."""
        frame = pl.DataFrame(schema=PICTURES)
        if self._inputs is not None:
            frame = pictures_frame(self._inputs, list(input_ids), PICTURE_SIDE, self._site)
        keys = [self._keys.get(one) for one in frame["input_id"]]
        return frame.select("input_id", "webp").with_columns(pl.Series("key", keys, pl.String))

    def _row(self, row: int) -> int:
        if not 0 <= row < len(self._store):
            raise ConfigError(f"row={row} is outside the store's rows 0 … {len(self._store) - 1}.")
        return row

    def _percentiles(self) -> NDArray[np.float64]:
        """99th percentile of each latent where it is active, over a sample of the rows; 1 where it never is."""
        total = len(self._store)
        rows = np.sort(self._rng.choice(total, min(SAMPLE_ROWS, total), replace=False))
        used = usage(self.dictionary, self._store[rows].split(ROWS_AT_A_TIME))
        return np.where(used.active, used.p99, 1.0)
