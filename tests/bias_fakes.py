"""Made-up bias reports with the columns of `nb_sae.concepts.schema`, for tests of what shows them.

Effects are drawn, not measured: concept 0 is strongly associated, every fourth one a little, the others not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from nb_sae.concepts import schema

WORDS = (
    "eyeglasses", "beard", "hat", "earrings", "smile", "bangs", "lipstick", "bow tie", "grey hair", "red background",
    "necklace", "headscarf", "blond hair", "wavy hair", "open mouth", "pale skin", "sideburns", "goatee", "freckles",
    "dimples",
)  # fmt: skip


@dataclass
class FakeBias:
    """The frames of a bias report, without the code that measures them."""

    association: pl.DataFrame
    conditional: pl.DataFrame
    reliance: pl.DataFrame
    curves: pl.DataFrame
    image_curves: pl.DataFrame
    controls: pl.DataFrame
    errors: pl.DataFrame
    retrieval: pl.DataFrame
    groups: pl.DataFrame
    examples: pl.DataFrame
    gaps: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=schema.GAPS))
    class_errors: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=schema.CLASS_ERRORS))
    histograms: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=schema.HISTOGRAMS))
    about: dict[str, Any] = field(default_factory=dict)
    pictures: pl.DataFrame | None = None


def fake_bias(
    concepts: int = 100,
    groups: tuple[str, ...] = ("Male", "not Male"),
    *,
    outputs: tuple[str, ...] = ("Smiling",),
    given: tuple[str, ...] = ("Young", "Eyeglasses"),
    images: int = 12,
    grid: int = 9,
    inputs: int = 400,
    pictures: bool = True,
    names: tuple[str, ...] | None = None,
    seed: int = 0,
) -> FakeBias:
    """A report with `concepts` concepts; the last one has a group that is masked."""
    from widget_fakes import thumb

    rng = np.random.default_rng(seed)
    words = names or tuple(f"{WORDS[i % len(WORDS)]}{'' if i < len(WORDS) else f' {i}'}" for i in range(concepts))
    keyed = [(word, 7 * i + 3) for i, word in enumerate(words)]
    strong = np.array([0.25 * rng.standard_normal() if i % 4 == 0 else 0.0 for i in range(concepts)])
    strong[0] = 0.6
    frame = pl.DataFrame(
        [(n, 64, 48, thumb(n)) for n in range(inputs)],
        schema={"input_id": pl.UInt32, "width": pl.UInt16, "height": pl.UInt16, "webp": pl.Binary},
        orient="row",
    )  # fmt: skip
    return FakeBias(
        association=_association(rng, keyed, groups, (None,), strong),
        conditional=_association(rng, keyed, groups, given, strong * 0.5),
        reliance=_reliance(rng, keyed, outputs, strong),
        curves=_curves(rng, keyed, outputs, grid, strong),
        image_curves=_image_curves(rng, keyed, outputs, grid, images, inputs, strong),
        controls=pl.DataFrame(schema=schema.CONTROLS),
        gaps=_gaps(groups),
        histograms=_histograms(rng, keyed, groups),
        errors=_errors(rng, keyed, groups),
        retrieval=_retrieval(rng, groups),
        groups=pl.DataFrame(
            [(g, 4_000 // (i + 1), 0.3 + 0.1 * i, False) for i, g in enumerate(groups)]
            + [(f"{groups[0]} × Bald", 11, 0.4, True)],
            schema=schema.GROUPS,
            orient="row",
        ),
        examples=_examples(rng, keyed, groups, inputs),
        about={
            "target": "Male", "classes": list(outputs), "n": 20_000, "min_n": 20, "accuracy_train": 0.934,
            "accuracy_test": 0.921, "n_train": 14_000, "n_test": 6_000, "classifier": "linear-probe",
            "caution": "Attributes are annotators' labels; association is not cause; groups below n = 20 are masked.",
        },
        pictures=frame if pictures else None,
    )  # fmt: skip


def _association(rng, keyed, groups, given, strong) -> pl.DataFrame:
    lines = []
    for number, (word, latent) in enumerate(keyed):
        for side, group in enumerate(groups):
            for condition in given:
                masked = number == len(keyed) - 1 and side == 1
                effect = float(np.clip(strong[number] * (1 - 2 * (side % 2)) + 0.01 * rng.standard_normal(), -1, 1))
                half = float(rng.uniform(0.02, 0.05))
                p = float(np.clip(np.exp(-((effect / half * 1.96) ** 2) / 2), 1e-12, 1))
                numbers = (effect, effect - half, min(1.0, effect + half), effect * 1.8)
                density = float(rng.beta(2, 8))
                lines.append((
                    word, latent, group, condition, *(numbers if not masked else (None,) * 4),
                    11 if masked else 8_000, 12_000, int(rng.integers(0, 40)), 0.4,
                    *((density + 0.1 * max(effect, 0), density) if not masked else (None, None)),
                    *((p, min(1.0, p * 3)) if not masked else (None, None)), masked,
                ))  # fmt: skip
    return pl.DataFrame(lines, schema=schema.ASSOCIATION, orient="row")


def _reliance(rng, keyed, outputs, strong) -> pl.DataFrame:
    lines = []
    for number, (word, latent) in enumerate(keyed):
        for side, output in enumerate(outputs):
            effect = float(strong[number] * 0.5 * (1 - 2 * (side % 2)) + 0.004 * rng.standard_normal())
            p = 0.001 if abs(effect) > 0.03 else float(rng.uniform(0.1, 1))
            lines.append((
                word, latent, output, effect, effect - 0.012, effect + 0.012, 0.0, float(rng.uniform(1, 8)),
                0.0034, 6_000, 20, -0.018, 0.021, p, min(1.0, p * 4), p,
            ))  # fmt: skip
    return pl.DataFrame(lines, schema=schema.RELIANCE, orient="row")


def _curves(rng, keyed, outputs, grid, strong) -> pl.DataFrame:
    lines = []
    for number, (word, latent) in enumerate(keyed):
        top = 1.0 + number % 7
        for side, output in enumerate(outputs):
            for step in np.linspace(0, 1, grid):
                noise = 0.002 * rng.standard_normal() * step
                mean = float(strong[number] * 0.5 * (1 - 2 * (side % 2)) * step**1.5 + noise)
                lines.append((
                    word, latent, output, float(step * top), mean, mean - 0.012 * step, mean + 0.012 * step,
                    -0.018 * step, 0.021 * step,
                ))  # fmt: skip
    return pl.DataFrame(lines, schema=schema.CURVES, orient="row")


def _image_curves(rng, keyed, outputs, grid, images, inputs, strong) -> pl.DataFrame:
    lines = []
    rows = rng.choice(inputs, images, replace=False)
    for number, (word, latent) in enumerate(keyed):
        for output in outputs:
            for row in rows:
                start, gain = rng.uniform(0.1, 0.6), strong[number] * rng.uniform(0.1, 1.0)
                for step in np.linspace(0, 1, grid):
                    chance = float(np.clip(start + gain * step**1.5, 0, 1))
                    lines.append((word, latent, output, int(row), int(row), float(step * (1 + number % 7)), chance))
    return pl.DataFrame(lines, schema=schema.IMAGE_CURVES, orient="row")


def _errors(rng, keyed, groups) -> pl.DataFrame:
    lines = []
    whole = [(group, None, None) for group in (*groups, f"{groups[0]} × Bald")]
    parts = [(group, word, level) for word, _ in keyed for group in groups for level in ("on", "off")]
    for group, word, level in [*whole, *parts]:
        masked = "×" in group
        numbers = []
        for middle in (0.9, 0.85, 0.1):
            value = float(np.clip(middle + 0.04 * rng.standard_normal(), 0, 1))
            numbers += [value, max(0.0, value - 0.02), min(1.0, value + 0.02)]
        numbers += [float(0.01 * rng.standard_normal()), float(rng.uniform(0.01, 0.05))]
        lines.append((
            group, word, level, 11 if masked else 1_200, None if masked else 500, None if masked else 0.42,
            *((None,) * 11 if masked else numbers), masked,
        ))  # fmt: skip
    return pl.DataFrame(lines, schema=schema.ERRORS, orient="row")


def _gaps(groups) -> pl.DataFrame:
    lines = []
    for group, masked in ((groups[0], False), (f"{groups[0]} × Bald", True)):
        for measure, gap in (("accuracy", -0.031), ("tpr", -0.084), ("fpr", 0.012), ("positive rate", 0.12)):
            numbers = (None,) * 3 if masked else (gap, gap - 0.02, gap + 0.02)
            ps = (None, None) if masked else (0.01, 0.02)
            lines.append((group, "the rest", None, measure, *numbers, 11 if masked else 1_200, 1_300, *ps, masked))
    return pl.DataFrame(lines, schema=schema.GAPS, orient="row")


def _histograms(rng, keyed, groups) -> pl.DataFrame:
    lines = [
        (word, latent, group, np.histogram(rng.gamma(2, 1, 900), 20, (0, 8))[0].tolist(), 8.0)
        for word, latent in keyed
        for group in groups
    ]
    return pl.DataFrame(lines, schema=schema.HISTOGRAMS, orient="row")


def _retrieval(rng, groups) -> pl.DataFrame:
    lines = []
    for query in ("a smiling person", "a portrait of a leader"):
        for removed, skew in ((None, 0.52), ("eyeglasses, beard", 0.19)):
            share = 0.5 + skew / 2
            rest = [(1 - share) / (len(groups) - 1)] * (len(groups) - 1)
            lines.append((query, 100, removed, skew, skew * 0.1, 0.12, [share, *rest], 0.05, 0.01, 0.02))
    return pl.DataFrame(lines, schema=schema.RETRIEVAL, orient="row")


def _examples(rng, keyed, groups, inputs) -> pl.DataFrame:
    lines = []
    for word, latent in keyed:
        for group in groups:
            for rank, row in enumerate(rng.choice(inputs, 8, replace=False)):
                lines.append((word, latent, group, rank, int(row), int(row), float(6 - 0.3 * rank)))
    for number, query in enumerate(("a smiling person", "a portrait of a leader")):
        hits = range(8 * number, 8 * number + 8)
        lines += [(None, None, query, rank, row, row, 0.3 - 0.01 * rank) for rank, row in enumerate(hits)]
    return pl.DataFrame(lines, schema=schema.BIAS_EXAMPLES, orient="row")
