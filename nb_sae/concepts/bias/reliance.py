"""What a classifier leans on: its probability when a concept is set over its observed range, beside matched latents.

The edit keeps the reconstruction error, x' = x + (v − z) W_dec, so an effect holds nothing of what the dictionary fails
to reconstruct; what reconstruction alone does to the probability, p(x̂) − p(x), is measured beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from nb_sae.concepts.bias.classifier import Classifier, LinearClassifier
from nb_sae.concepts.bias.rows import ConceptRows, high_of
from nb_sae.concepts.schema import CONTROLS, CURVES, IMAGE_CURVES, RELIANCE
from nb_sae.sae.edits import activations_of
from nb_sae.statistics import benjamini_hochberg, mean_interval, t_p

LEAST_CONTROLS = 5
"""Below it there is no p-value: too few to say how much they differ among themselves."""
CALIPER = 3.0
"""A control's density and mean activation differ from the concept's by less than this factor."""


@dataclass(frozen=True)
class Reliance:
    """Frames of `schema`: `RELIANCE`, `CURVES`, `IMAGE_CURVES`, `CONTROLS`."""

    reliance: pl.DataFrame
    curves: pl.DataFrame
    image_curves: pl.DataFrame
    controls: pl.DataFrame


def matched_controls(rows: ConceptRows, count: int) -> list[Int[Array, " controls"]]:
    """For each concept the live latents nearest in log density and log mean activation, within `CALIPER` in both.

    The concepts of the report are left out, unless fewer than `count` others are as near: then they may serve too,
    the concept itself apart.
    """
    live = np.flatnonzero(rows.density > 0)
    logs = np.log(np.stack([rows.density[live], np.maximum(rows.mean[live], 1e-12)], 1))
    place = {int(latent): number for number, latent in enumerate(live)}
    named = [concept.latent for concept in rows.concepts]
    others = ~np.isin(live, named)
    found = []
    for latent in named:
        if latent not in place:
            found.append(np.array([], dtype=np.int64))
            continue
        apart = np.abs(logs - logs[place[latent]])
        near = (apart < math.log(CALIPER)).all(1) & (live != latent)
        allowed = near & others if (near & others).sum() >= count else near
        order = np.lexsort((live, np.where(allowed, np.square(apart).sum(1), np.inf)))
        found.append(live[order[: min(count, int(allowed.sum()))]])
    return found


def reliance_frames(
    rows: ConceptRows,
    classifier: Classifier,
    held: Int[Array, " rows"],
    *,
    controls: int,
    grid: int,
    shown: Int[Array, " images"],
    shuffled: LinearClassifier | None = None,
) -> Reliance:
    """Counterfactual curves of every concept over rows that the classifier was not trained on.

    A concept goes from `low`, the smallest activation seen, to `high`, its 99th percentile where it is active; each
    control goes over its own range in as many steps.

    `p_controls` is that of Student's t for one new value among those of the controls, two-sided: whether the classifier
    leans on this concept more than on latents like it, which may be concepts that it leans on too. `p_value` of a probe
    that was trained here is the same test among probes of shuffled labels: every probe leans on what its train rows
    happen to hold. The interval is about rows: the mean over others like them, of this very classifier.
    Args:
        rows: Of the report.
        classifier: What is asked.
        held: Rows that are edited.
        controls: Matched latents per concept.
        grid: Values between low and high, both included.
        shown: Rows of the store whose own curves are kept; a part of `held`.
        shuffled: Probes of shuffled labels, where the classifier is a probe.
    """
    dictionary = rows.dictionary
    x = rows.x[held].double()
    scale = rows.scale(held)
    base = classifier.probabilities(x)
    reconstruction = _reconstruction(rows, classifier, held, base)
    matched = matched_controls(rows, controls)
    every = sorted({int(latent) for group in matched for latent in group})
    z_controls = _activations(rows, held, every)
    column = {latent: number for number, latent in enumerate(every)}
    low, high = rows.z.min(0), high_of(rows.z)
    # Of the edited rows; where a control is active on none of them, its mean elsewhere.
    tops = high_of(z_controls)
    ranges = [
        (float(z_controls[:, place].min()), float(tops[place]) if tops[place] > 0 else float(rows.mean[latent]))
        for place, latent in enumerate(every)
    ]
    picked = np.flatnonzero(np.isin(held, shown))
    kept = _Lines(classifier.outputs)
    for number, concept in enumerate(rows.concepts):
        if not rows.live[number]:
            kept.add_silent(concept, len(held))
            continue
        mine = [column[int(latent)] for latent in matched[number]]
        z = np.concatenate([rows.z[held, number][:, None], z_controls[:, mine]], 1)
        ends = [(low[number], high[number]), *(ranges[latent] for latent in mine)]
        values = np.stack([np.linspace(start, stop, grid) for start, stop in ends])
        steps = torch.from_numpy((values[None] - z[..., None]) * scale[:, None, None])
        directions = dictionary.W_dec[[concept.latent, *map(int, matched[number])]].cpu()
        chances = classifier.after(x, directions, steps).numpy()
        ends_only = steps[:, :1, [0, -1]]
        nulls = np.zeros((0, len(classifier.outputs)))
        if shuffled is not None:
            fitted = shuffled.after(x, directions[:1], ends_only).diff(dim=2).mean((0, 1, 2))
            nulls = fitted.unflatten(0, (shuffled.probes, -1)).numpy()
        kept.add(concept, values[0], chances, reconstruction, nulls, held=held, picked=picked, input_ids=rows.input_ids)
        kept.add_controls(concept, matched[number], rows, chances, nulls)
    return kept.frames()


def _reconstruction(rows: ConceptRows, classifier: Classifier, held: Array, base: Tensor) -> Float[Array, " outputs"]:
    """Mean over rows of p(x̂) − p(x)."""
    parts = [rows.dictionary.reconstruct(part).cpu() for part in rows.x[held].split(4096)]
    return (classifier.probabilities(torch.cat(parts)) - base).mean(0).numpy()


def _activations(rows: ConceptRows, held: Array, latents: list[int]) -> Float[Array, "rows controls"]:
    if not latents:
        return np.zeros((len(held), 0))
    parts = [activations_of(rows.dictionary, part, latents).cpu() for part in rows.x[held].split(4096)]
    return torch.cat(parts).double().numpy()


class _Lines:
    """Collects the lines of the four tables, concept by concept."""

    def __init__(self, outputs: tuple[str, ...]) -> None:
        self._outputs = outputs
        self._reliance: list[dict[str, Any]] = []
        self._curves: list[tuple[Any, ...]] = []
        self._images: list[tuple[Any, ...]] = []
        self._controls: list[tuple[Any, ...]] = []

    def add_silent(self, concept: Any, n: int) -> None:
        """A concept that is never active has no range to be set over."""
        for output in self._outputs:
            line = {"concept": concept.name, "latent": concept.latent, "output": output, "n": n, "controls": 0}
            self._reliance.append(line)

    def add(
        self,
        concept: Any,
        values: Float[Array, " values"],
        chances: Float[Array, "rows m values outputs"],
        reconstruction: Float[Array, " outputs"],
        nulls: Float[Array, "shuffled outputs"],
        *,
        held: Array,
        picked: Array,
        input_ids: Array,
    ) -> None:
        """Chances of the concept first, of its controls after it."""
        change = chances - chances[:, :, :1]
        mean, below, above = mean_interval(change[:, 0])
        others = change[:, 1:].mean(0)  # (controls, values, outputs)
        band = np.quantile(others, [0.025, 0.975], axis=0) if len(others) else np.full((2, *mean.shape), np.nan)
        for number, output in enumerate(self._outputs):
            effect = float(mean[-1, number])
            by_controls = _among(effect, others[:, -1, number])
            self._reliance.append(
                {
                    "concept": concept.name, "latent": concept.latent, "output": output, "effect": effect,
                    "ci_low": float(below[-1, number]), "ci_high": float(above[-1, number]),
                    "low": float(values[0]), "high": float(values[-1]),
                    "reconstruction": float(reconstruction[number]), "n": len(held), "controls": len(others),
                    "control_low": float(band[0, -1, number]), "control_high": float(band[1, -1, number]),
                    "p_value": _among(effect, nulls[:, number]) if len(nulls) else by_controls,
                    "p_controls": by_controls,
                }
            )  # fmt: skip
            for step, value in enumerate(values):
                at = (float(part[step, number]) for part in (mean, below, above, band[0], band[1]))
                self._curves.append((concept.name, concept.latent, output, float(value), *at))
            for row in picked:
                for step, value in enumerate(values):
                    line = int(held[row]), int(input_ids[held[row]]), float(value), float(chances[row, 0, step, number])
                    self._images.append((concept.name, concept.latent, output, *line))

    def add_controls(self, concept: Any, matched: Array, rows: ConceptRows, chances: Array, nulls: Array) -> None:
        """Effects of the controls one by one, and of the concept in each probe of shuffled labels."""
        effects = (chances[:, 1:, -1] - chances[:, 1:, 0]).mean(0)
        for number, output in enumerate(self._outputs):
            for place, latent in enumerate(matched):
                about = int(latent), float(rows.density[latent]), float(rows.mean[latent])
                self._controls.append((concept.name, concept.latent, output, *about, float(effects[place, number])))
            for effect in nulls[:, number]:
                self._controls.append((concept.name, concept.latent, output, None, None, None, float(effect)))

    def frames(self) -> Reliance:
        """The tables; q-values over all concepts and outputs."""
        reliance = pl.DataFrame(self._reliance, schema=RELIANCE).with_columns(pl.col(pl.Float64).fill_nan(None))
        q = benjamini_hochberg(reliance["p_value"].fill_null(math.nan).to_numpy())
        return Reliance(
            reliance.with_columns(pl.Series("q_value", q, pl.Float64).fill_nan(None)),
            pl.DataFrame(self._curves, schema=CURVES, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None)),
            pl.DataFrame(self._images, schema=IMAGE_CURVES, orient="row"),
            pl.DataFrame(self._controls, schema=CONTROLS, orient="row"),
        )


def _among(effect: float, others: Float[Array, " controls"]) -> float | None:
    """Two-sided p of one new value among others, Student's t with its prediction error."""
    count = len(others)
    if count < LEAST_CONTROLS or not others.std(ddof=1) > 0:
        return None
    return t_p((effect - others.mean()) / (others.std(ddof=1) * math.sqrt(1 + 1 / count)), count - 1)
