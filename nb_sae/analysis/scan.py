"""The single streaming pass over a store, from which every table is derived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from nb_sae.analysis.bundle import Analysis
from nb_sae.analysis.examples import ActivationGrid, BestOfGroups, IntervalSampler, Ints, rank_in_group
from nb_sae.analysis.latents import LatentCounts
from nb_sae.analysis.maps import example_frame
from nb_sae.analysis.pictures import contexts_frame, pictures_frame
from nb_sae.analysis.quality import quality_frame
from nb_sae.analysis.schema import INPUTS
from nb_sae.errors import ConfigError, InputError
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.metrics import RunningQuality

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary
    from nb_sae.types import ActivationSource, HookedModel, Inputs

BLOCK_BYTES = 16 * 2**20
"""Size of the block of pre-activations that is held at a time."""


def analyze(
    dictionary: Dictionary,
    store: ActivationSource,
    inputs: Inputs | None = None,
    *,
    model: HookedModel | None = None,
    top: int = 16,
    per_interval: int = 2,
    seed: int = 0,
    thumbnail: int | None = 112,
    title: str | None = None,
    progress: bool = True,
) -> Analysis:
    """Tables of what each latent does on the rows of a store.

    Memory is bounded by latents × examples, not by rows. Activations are those of the trained rule
    (`dictionary.encode` with k=None), in model units.

    Args:
        dictionary: Latents to describe.
        store: Rows of the site it was trained on.
        inputs: The images or texts behind the rows; without them there are numbers but no pictures.
        model: Needed to show texts: its tokenizer cuts them as it did when they were collected.
        top: Strongest contexts kept per latent, each with its strongest token; exact.
        per_interval: Rows sampled per latent from each of ten equal-width intervals of activation; uniform, seeded.
        seed: Of the sample.
        thumbnail: Longest side of the pictures, pixels; None: no pictures.
        title: Shown above the dashboard.

    Raises:
        StoreError: the rows are of another model, site, width or scale.
        InputError: the inputs are not those of the store.
    """
    if top < 1 or per_interval < 0:
        raise ConfigError(f"top={top} must be at least 1 and per_interval={per_interval} at least 0.")
    dictionary.check(store)
    if inputs is not None:
        _check_inputs(store, inputs)
        if inputs.modality == "text" and model is None:
            raise InputError("Texts are shown as tokens, which needs their tokenizer. Pass analyze(…, model=lm).")
    kept = _Scan(dictionary, store.site.positions, top, per_interval, seed)
    chunk_rows = max(1024, BLOCK_BYTES // (4 * dictionary.d_sae))
    with progress_bar(len(store), "rows", "analyze", enabled=progress) as bar:
        for first, rows in store.chunks(chunk_rows):
            ids = store.rows.slice(first, len(rows))
            kept.add(first, rows, ids["input_id"].to_numpy(), ids["token"].to_numpy())
            bar.update(len(rows))
    examples = example_frame(dictionary, store, kept.chosen(), kept.chunk_starts)
    used = examples["input_id"].unique().sort()
    pictures, contexts = None, None
    if inputs is not None and inputs.modality == "image" and thumbnail:
        pictures = pictures_frame(inputs, used.to_list(), thumbnail, store.site)
    if inputs is not None and inputs.modality == "text" and model is not None:
        contexts = contexts_frame(inputs, examples, store.site, model)
    return Analysis(
        latents=kept.counts.frame(kept.grid),
        examples=examples,
        quality=quality_frame(kept.budgets, kept.quality, kept.counts.unused()),
        inputs=store.inputs.filter(pl.col("input_id").is_in(used.implode())).select(INPUTS.names()).cast(INPUTS),
        pictures=pictures,
        contexts=contexts,
        site=store.site,
        rows=len(store),
        budgets=kept.budgets,
        modality=inputs.modality if inputs is not None else "image",
        model=store.model,
        title=title or f"{store.site.name} of {store.model}",
    )


class _Scan:
    """What the pass keeps."""

    def __init__(self, dictionary: Dictionary, positions: int, top: int, per_interval: int, seed: int) -> None:
        self.dictionary = dictionary
        self.budgets = dictionary.budgets or (dictionary.d_sae,)
        self.counts = LatentCounts(dictionary.d_sae, len(self.budgets))
        self.quality = RunningQuality(len(self.budgets))
        self.grid = ActivationGrid(dictionary.d_sae)
        self.chunk_starts: list[int] = []
        self._positions = positions
        self._strongest = BestOfGroups(dictionary.d_sae, top)
        self._sampler = IntervalSampler(dictionary.d_sae, per_interval, seed=seed) if per_interval else None
        ranks = np.arange(self.budgets[-1])
        self._level_of_rank = np.searchsorted(self.budgets, ranks, side="right")

    def add(self, first: int, rows: torch.Tensor, input_ids: Ints, tokens: Ints) -> None:
        """One chunk of rows that ends where a context ends."""
        self.chunk_starts.append(first)
        values, indices = self.dictionary.encode(rows, sparse=True)
        x_hats = [x_hat.cpu() for x_hat in self.dictionary.decode_levels(values, indices)]
        self.quality.add(rows, x_hats, [(values[:, :k] > 0).sum(-1).cpu() for k in self.budgets])
        active = values.cpu().numpy() > 0
        row, rank = np.nonzero(active)
        value = values.cpu().numpy()[active]
        latent = indices.cpu().numpy()[active]
        self.counts.add(len(rows), latent, value, self._level_of_rank[rank])
        self._keep_strongest(first, row, latent, value, _contexts(input_ids, tokens, self._positions))
        shift = self.grid.grow(self.counts.maxima)
        bins = self.grid.bins(latent, value)
        self.grid.add(latent, bins)
        if self._sampler is not None:
            self._sampler.regrid(shift)
            self._sampler.add(latent, bins, value, row + first)

    def _keep_strongest(self, first: int, row: Ints, latent: Ints, value: Any, context: Ints) -> None:
        """Offer the strongest row of each (latent, context); the first one where rows are equally strong."""
        able = -value.astype(np.float64) < self._strongest.threshold[latent]
        row, latent, value = row[able], latent[able], value[able]
        order = np.lexsort((row, -value, context[row], latent))
        pair = latent[order] * (int(context[-1]) + 1) + context[row[order]]
        order = order[np.r_[True, pair[1:] != pair[:-1]]] if len(order) else order
        self._strongest.add(latent[order], -value[order].astype(np.float64), value[order], row[order] + first)

    def chosen(self) -> pl.DataFrame:
        """`latent, kind, interval, rank, row, act` of every example, strongest first and then by interval."""
        latent, _, value, row = self._strongest.entries()
        strongest = _example_rows(latent, "top", np.full(len(latent), -1), rank_in_group(latent), row, value)
        if self._sampler is None:
            return strongest
        s = self._sampler.samples(self.grid, self.counts.maxima)
        sampled = _example_rows(s["latent"], "interval", s["interval"], s["rank"], s["row"], s["value"])
        return pl.concat([strongest, sampled]).sort("latent", "kind", "interval", "rank", maintain_order=True)


def _example_rows(latent: Any, kind: str, interval: Any, rank: Any, row: Any, value: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "latent": latent.astype(np.uint32),
            "kind": pl.Series([kind] * len(latent), dtype=pl.Enum(["top", "interval"])),
            "interval": interval.astype(np.int8),
            "rank": rank.astype(np.uint16),
            "row": row.astype(np.int64),
            "act": value.astype(np.float32),
        }
    )


def _contexts(input_ids: Ints, tokens: Ints, positions: int) -> Ints:
    """A running number of the context of each row of a chunk."""
    context = tokens // max(1, positions)
    changed = (input_ids[1:] != input_ids[:-1]) | (context[1:] != context[:-1])
    return np.r_[0, np.cumsum(changed)].astype(np.int64)


def _check_inputs(store: ActivationSource, inputs: Inputs) -> None:
    known = store.inputs
    largest = known["input_id"].max()
    if isinstance(largest, int) and largest >= len(inputs):
        raise InputError(
            f"The store numbers its inputs up to {largest}, but {len(inputs)} were given. "
            "Give the inputs that were collected, all of them, in the same order."
        )
    probe = known.sample(min(64, known.height), seed=0)
    for input_id, key in probe.select("input_id", "key").iter_rows():
        if inputs.keys[input_id] != key:
            raise InputError(
                f"Input {input_id} of the store is {key!r}, of the given inputs {inputs.keys[input_id]!r}. "
                "Give the inputs that were collected, in the same order."
            )
