"""One bias report from a dictionary, a store and labels: what is read, in which order, on which rows.

Association and histograms use every labelled row; everything that asks a classifier uses rows that it was not trained
on, and the concepts that retrieval removes are chosen on the train rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy import ndarray as Array

from nb_sae.concepts.bias.association import association_frame, examples_frame, histograms_frame
from nb_sae.concepts.bias.classifier import make_classifier
from nb_sae.concepts.bias.error_gaps import error_frames, group_cells
from nb_sae.concepts.bias.labels import Label, joined_to, read_label
from nb_sae.concepts.bias.reliance import reliance_frames
from nb_sae.concepts.bias.report import CAUTION, TABLES, BiasReport
from nb_sae.concepts.bias.retrieval import read_queries, retrieval_frame, retrieved_examples
from nb_sae.concepts.bias.rows import Concept, ConceptRows, read_concepts, read_rows
from nb_sae.concepts.bias.world import ReportWorld
from nb_sae.concepts.schema import GROUPS
from nb_sae.errors import ConfigError, InputError, closest
from nb_sae.sae.dictionary import Dictionary
from nb_sae.types import ActivationSource

MOST_REMOVED = 10
"""Concepts that retrieval removes together: the most associated ones."""
TESTING = ("association", "conditional", "reliance", "gaps", "retrieval")
"""Tables with p-values."""
MOST_QUERIES = 12
"""Where no queries are given: names of the most associated concepts."""


def bias_report(
    dictionary: Dictionary,
    store: ActivationSource,
    attributes: Any,
    target: str,
    concepts: Any = None,
    *,
    classifier: Any = "linear-probe",
    clip: Any = None,
    given: Sequence[str] = (),
    groups: Sequence[str] | None = None,
    queries: Any = None,
    ks: Sequence[int] = (20, 100),
    test: float | str = 0.3,
    min_n: int = 20,
    controls: int = 20,
    grid: int = 9,
    images: int = 12,
    rows: int = 2000,
    shuffles: int = 20,
    seed: int = 0,
) -> BiasReport:
    """What the data is biased about, and what a classifier of it leans on, in terms of a dictionary's concepts.

    Args:
        dictionary: Trained on the site of the store.
        store: One row per input, such as `image_embed`.
        attributes: A polars frame with `key` (or `input_id`) and one column per attribute; `faces.attributes`.
            Boolean, 0/1, −1/1, text, whole numbers (up to ten values are classes) or other numbers; null where unknown.
        target: The attribute whose groups are compared and which the classifier is about. A quantity is compared by
            rank correlation; where classes are needed it is cut at its median over the train rows.
        concepts: What `name_concepts` gives, latents, `{name: latent}`; None: the 100 latents of the largest
            density × mean², chosen without labels.
        classifier: "linear-probe", trained here on the train rows; a function of rows `(rows, d_in)` that gives
            probabilities; prompts, one per class (of a yes/no target: for, against), with `clip`; None: no classifier.
        clip: What embeds prompts and queries.
        given: Attributes to condition on; each alone and all together.
        groups: Attributes by which errors and retrieval are split; None: the target and `given`. Errors cross the first
            with the concepts, retrieval is judged by the first.
        queries: Texts or `{name: embedding}` to retrieve by; None: with a clip, the names of the concepts that are most
            associated; without one, none.
        ks: How many are retrieved.
        test: Share of the labelled rows that is held out, or a column of `attributes` that is "test" or True on them
            and "train" or False on those to train on (rows with other values are in neither).
        min_n: Rows below which a group is masked.
        controls: Matched latents per concept, at most.
        grid: Values of a counterfactual curve.
        images: Rows whose own curves and examples are kept.
        rows: Held-out rows that are edited, at most; drawn with the seed.
        shuffles: Probes of shuffled labels that a linear probe is compared with; 0: none.
        seed: Of every draw.

    Raises:
        StoreError: rows of another model, site or scale (such as L2-normalised ones), or several rows per input.
        InputError: attributes that cannot be joined or read, or with one class only.
        ConfigError: a setting, concept or classifier that cannot be used.

    Source:
        Zaigrajew et al. 2025, arXiv:2502.20578, section on CelebA, gives the question; the steps are defined here and
        in docs/bias.md.
    """
    _check_settings(min_n, controls, grid, images, rows, shuffles)
    dictionary.check(store)
    vectors = {} if queries is None else read_queries(queries, clip, store.d_in)
    if dictionary.is_transcoder:
        raise ConfigError("A transcoder's latents have no direction among the rows it reads. Use an SAE of the site.")
    frame = joined_to(store, attributes)
    wanted = read_label(frame, target)
    conditions = _labels(frame, given, but=target)
    train, held = _split(frame, wanted, test, seed)
    judged = _classes(wanted, train)
    split = (
        [judged, *conditions] if groups is None else [judged if n == target else read_label(frame, n) for n in groups]
    )
    split = [_classes(label, train) for label in split] or [judged]
    data = read_rows(dictionary, store, read_concepts(concepts, dictionary, store, seed))
    asked = None
    if classifier is not None:
        asked = make_classifier(classifier, judged, data.x, train, clip=clip)
    world = ReportWorld(data, judged, split, train, held, asked, classifier == "linear-probe", seed)
    tables: dict[str, pl.DataFrame] = {name: pl.DataFrame(schema=columns) for name, columns in TABLES.items()}
    tables["association"] = association_frame(data, wanted, min_n=min_n)
    tables["conditional"] = _conditional(data, wanted, conditions, min_n)
    named = {name: judged.codes == code for code, name in enumerate(judged.classes)}
    tables["histograms"] = histograms_frame(data, named, min_n=min_n)
    tables["examples"] = examples_frame(data, named, count=images, min_n=min_n)
    tables["groups"] = _groups(split, min_n)
    if asked is not None:
        tables |= _asked_tables(
            world, controls=controls, grid=grid, images=images, rows=rows, shuffles=shuffles, min_n=min_n
        )
    if queries is None and clip is not None:
        vectors = read_queries(_own_queries(world, min_n), clip, store.d_in)
    if vectors:
        tables |= _retrieval_tables(world, vectors, ks, images, min_n, tables["examples"])
    tables, correction = _corrected(tables)
    about = world.about() | {
        "target": target, "given": list(given), "groups": [label.name for label in split], "test": test,
        "min_n": min_n, "controls": controls, "shuffles": shuffles, "grid": grid, "rows": rows, "seed": seed,
        "missing": {label.name: label.missing for label in (wanted, *conditions)},
        "correction": correction,
        "caution": CAUTION.format(min_n=min_n),
    }  # fmt: skip
    return BiasReport(**tables, about=about, _mitigate=None if asked is None else world.mitigate)


def _conditional(data: ConceptRows, target: Label, conditions: list[Label], min_n: int) -> pl.DataFrame:
    """Inside strata of each attribute, and of all of them; q-values over the whole table."""
    sets = [[label] for label in conditions] + ([conditions] if len(conditions) > 1 else [])
    if not sets:
        return pl.DataFrame(schema=TABLES["conditional"])
    return association_frame(data, target, given=sets, min_n=min_n)


def _asked_tables(
    world: ReportWorld, *, controls: int, grid: int, images: int, rows: int, shuffles: int, min_n: int
) -> dict[str, pl.DataFrame]:
    assert world.classifier is not None
    data, held = world.data, world.held
    random = np.random.default_rng((world.seed, 1))
    edited = held if len(held) <= rows else np.sort(random.choice(held, rows, replace=False))
    shown = _spread(edited, world.judged, images, random)
    found = reliance_frames(
        data, world.classifier, edited, controls=controls, grid=grid, shown=shown, shuffled=world.shuffled(shuffles)
    )
    groups = [Label(label.name, label.kind, label.codes[held], label.classes) for label in world.split]
    errors, classes, gaps = error_frames(
        world.predictions(held, data.x[held]), groups, data.concepts, data.z[held] > 0, world.classifier.outputs,
        min_n=min_n,
    )  # fmt: skip
    return {
        "reliance": found.reliance, "curves": found.curves, "image_curves": found.image_curves,
        "controls": found.controls, "errors": errors, "class_errors": classes, "gaps": gaps,
    }  # fmt: skip


def _spread(edited: Array, judged: Label, images: int, random: np.random.Generator) -> Array:
    """Rows to show, about as many of every class."""
    shuffled = random.permutation(edited)
    turn = np.zeros(len(shuffled))
    for code in range(len(judged.classes)):
        members = judged.codes[shuffled] == code
        turn[members] = np.arange(members.sum())
    return np.sort(shuffled[np.argsort(turn, kind="stable")][:images])


def _retrieval_tables(
    world: ReportWorld,
    vectors: dict[str, torch.Tensor],
    ks: Sequence[int],
    images: int,
    min_n: int,
    examples: pl.DataFrame,
) -> dict[str, pl.DataFrame]:
    label = world.split[0]
    held = world.held[label.codes[world.held] >= 0]
    fitting = [int(k) for k in ks if 1 <= k <= len(held) // 2] or [max(1, len(held) // 4)]
    removed = _associated(world, min_n)[:MOST_REMOVED]
    found = retrieval_frame(world.data, vectors, held, label, removed, ks=fitting, seed=world.seed)
    shown = retrieved_examples(world.data, vectors, held, images)
    return {"retrieval": found, "examples": pl.concat([examples, shown])}


def _associated(world: ReportWorld, min_n: int) -> list[Concept]:
    """Concepts that differ between the groups on the train rows, the strongest first."""
    within = np.zeros(len(world.data.x), dtype=bool)
    within[world.train] = True
    frame = association_frame(world.data, world.split[0], min_n=min_n, within=within)
    found = frame.filter(pl.col("q_value") <= 0.05).sort(pl.col("effect").abs(), descending=True)
    by_latent = {concept.latent: concept for concept in world.data.concepts}
    return [by_latent[latent] for latent in found["latent"].unique(maintain_order=True)]


def _own_queries(world: ReportWorld, min_n: int) -> list[str]:
    """Names of the concepts that differ most between the groups on the train rows."""
    names = [concept.name for concept in _associated(world, min_n) if concept.name != f"latent {concept.latent}"]
    return names[:MOST_QUERIES]


def _corrected(tables: dict[str, pl.DataFrame]) -> tuple[dict[str, pl.DataFrame], str]:
    """q-values of each table times the number of tables that test, so that all together keep the level of one."""
    testing = [name for name in TESTING if tables[name]["p_value"].count()]
    for name in testing:
        tables[name] = tables[name].with_columns((pl.col("q_value") * len(testing)).clip(upper_bound=1.0))
    listed = ", ".join(testing)
    return tables, f"Benjamini–Hochberg over the lines of each table, times the {len(testing)} tables ({listed})"


def _groups(split: list[Label], min_n: int) -> pl.DataFrame:
    """Every group of the split and their crossings; those of the first attribute come first, in order of codes."""
    cells, inside = group_cells(split)
    n = inside.sum(0)
    known = int(split[0].known.sum())
    lines = [
        (cell.group, int(count), count / max(1, known), bool(count < min_n))
        for cell, count in zip(cells[1:], n[1:], strict=True)
    ]
    return pl.DataFrame(lines, schema=GROUPS, orient="row")


def _classes(label: Label, train: Array) -> Label:
    """A quantity as two halves at its median over the train rows; classes as they are."""
    if label.kind != "continuous":
        return label
    rows = np.zeros(len(label.codes), dtype=bool)
    rows[train] = True
    return label.cut(2, rows)


def _labels(frame: pl.DataFrame, names: Sequence[str], *, but: str) -> list[Label]:
    if isinstance(names, str):
        raise ConfigError(f"given={names!r} is one text; give a list, such as given=[{names!r}].")
    if but in names:
        raise ConfigError(f"given= holds the target {but!r}: inside its groups there is nothing to compare.")
    return [read_label(frame, name) for name in names]


def _split(frame: pl.DataFrame, target: Label, test: float | str, seed: int) -> tuple[Array, Array]:
    """Row numbers to train on and to judge by; both have the target's label."""
    known = np.flatnonzero(target.known)
    if isinstance(test, str):
        if test not in frame.columns:
            raise InputError(f"test={test!r} is no column of the attributes. {closest(test, frame.columns)}")
        column = frame[test].cast(pl.String).to_numpy()
        train = known[np.isin(column[known], ("train", "false"))]
        held = known[np.isin(column[known], ("test", "true"))]
    else:
        if isinstance(test, bool) or not 0 < test < 1:
            raise ConfigError(f"test={test!r} is outside (0, 1). Give the share to hold out, or a column's name.")
        order = np.random.default_rng((seed, 0)).permutation(known)
        count = min(max(round(test * len(known)), 1), len(known) - 1)
        train, held = np.sort(order[count:]), np.sort(order[:count])
    if not len(train) or not len(held):
        raise InputError(
            f"test={test!r} leaves {len(train)} rows to train on and {len(held)} to judge by. Give a share, or a "
            "column that is 'train' and 'test' (or False and True)."
        )
    return train, held


def _check_settings(min_n: int, controls: int, grid: int, images: int, rows: int, shuffles: int) -> None:
    for name, value, least in (
        ("min_n", min_n, 2), ("controls", controls, 0), ("grid", grid, 2), ("images", images, 0), ("rows", rows, 2),
        ("shuffles", shuffles, 0),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"{name}={value!r}; give a whole number of at least {least}.")
