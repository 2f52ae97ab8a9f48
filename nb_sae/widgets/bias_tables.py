"""Turns the frames of a bias report into the tables that its dashboard sends: codes for names, masked numbers blanked.

The tables of the whole report (`overview`) rank its concepts; what one concept's card needs (`details`) is more. Both
are cut to a budget by leaving out the concepts at the end of the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from nb_sae.concepts import schema
from nb_sae.errors import WidgetError
from nb_sae.widgets import wire

FRAMES: dict[str, pl.Schema] = {
    "association": schema.ASSOCIATION,
    "conditional": schema.ASSOCIATION,
    "reliance": schema.RELIANCE,
    "curves": schema.CURVES,
    "image_curves": schema.IMAGE_CURVES,
    "errors": schema.ERRORS,
    "retrieval": schema.RETRIEVAL,
    "groups": schema.GROUPS,
    "examples": schema.BIAS_EXAMPLES,
}
OPTIONAL: dict[str, pl.Schema] = {
    "controls": schema.CONTROLS,
    "class_errors": schema.CLASS_ERRORS,
    "gaps": schema.GAPS,
    "histograms": schema.HISTOGRAMS,
}
"""Frames that a report may lack."""
_FACTS = (
    "classifier", "n", "n_train", "n_test", "accuracy_train", "accuracy_test", "accuracy_majority", "auc_test", "given",
    "model", "site",
)  # fmt: skip
_COUNTS = frozenset({"n", "n_rest", "n_positive", "missing"})
_PLACES_PER_TURN = 2
_PROBABILITY_STEPS = 65_535


@dataclass
class BiasFrames:
    """The frames of a report, checked; every concept, group and query has a number.

    Raises:
        WidgetError: what was given is no bias report, or one of its frames lacks a column.
    """

    frames: dict[str, pl.DataFrame]
    concepts: pl.DataFrame
    """`concept` (number), `latent`, `name`, `plain` (as the report has it); the most important first."""
    labels: list[str] = field(default_factory=list)
    """Names of groups, outputs and queries; the tables hold positions in it."""

    @classmethod
    def of(cls, bias: Any, q: float) -> BiasFrames:
        """Check and order. Concepts flagged at `q` in the most ways, and of those the strongest, come first."""
        frames = {name: _checked(bias, name, columns) for name, columns in FRAMES.items()}
        frames |= {name: _optional(bias, name, columns) for name, columns in OPTIONAL.items()}
        for name in ("association", "conditional", "errors", "class_errors", "gaps", "groups"):
            frames[name] = _blanked(frames[name])
        return cls(frames, _concepts(frames, q))

    def overview(self, count: int) -> dict[str, pl.DataFrame]:
        """The report as a whole, with the first `count` concepts."""
        part = self._of_concepts(range(count), ("association", "conditional", "reliance"))
        examples = self.frames["examples"]
        of_groups = ("errors", "class_errors", "gaps")
        whole = {name: self.frames[name].filter(pl.col("concept").is_null()) for name in of_groups} | {
            "retrieval": self.frames["retrieval"],
            "groups": self.frames["groups"],
            "shown": examples.filter(pl.col("latent").is_null()),
        }
        tables = {name: self.coded(frame) for name, frame in (part | whole).items()}
        return {"concepts": self.concepts.select("latent", "name").head(count), **tables}

    def texts(self) -> dict[str, pl.DataFrame]:
        """The names that the codes stand for. Made last: other tables add to them."""
        return {"labels": pl.DataFrame({"text": self.labels}, schema={"text": pl.String})}

    def details(self, numbers: Sequence[int], images: int | None = None) -> dict[str, pl.DataFrame]:
        """What the cards of these concepts show, without the pictures; `images` of the curves and examples."""
        part = self._of_concepts(numbers, ("curves", "image_curves", "examples", "histograms"))
        if images is not None:
            part["examples"] = part["examples"].filter(pl.col("rank") < images)
        part |= {"curves": _grids(part["curves"]), "image_curves": _image_lists(part["image_curves"], images)}
        chosen = self.concepts.filter(pl.col("concept").is_in(list(numbers)))
        return {name: self.coded(frame) for name, frame in (part | {"levels": self._levels(chosen)}).items()}

    def input_ids(self, numbers: Sequence[int], images: int | None = None) -> list[int]:
        """Inputs behind the numbers of these concepts and of the groups, those that are wanted most first."""
        place = pl.DataFrame(
            {"latent": self.concepts["latent"].gather(list(numbers)), "place": range(len(numbers))},
            schema={"latent": pl.UInt32, "place": pl.Int64},
        )
        examples = self.frames["examples"].select("latent", "input_id", turn=pl.col("rank").cast(pl.Int64))
        curves = self.frames["image_curves"].unique(["latent", "output", "input_id"], maintain_order=True)
        curves = curves.select("latent", "input_id", turn=pl.int_range(pl.len()).over("latent", "output"))
        found = pl.concat([examples, curves])
        if images is not None:
            found = found.filter((pl.col("turn") < images) | pl.col("latent").is_null())
        found = found.join(place, on="latent", how="left", maintain_order="left")
        found = found.filter(pl.col("place").is_not_null() | pl.col("latent").is_null())
        # The first concepts have all of theirs before the last ones have their second.
        turn = pl.col("turn") + pl.col("place").fill_null(-1) / _PLACES_PER_TURN
        wanted = found.sort(turn, maintain_order=True)
        return wanted["input_id"].unique(maintain_order=True).to_list()

    def coded(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Names as numbers, counts as whole numbers, the rest as the wire takes it."""
        number = dict(zip(self.concepts["latent"], self.concepts["concept"], strict=True))
        columns: list[pl.Series] = []
        for series in frame.get_columns():
            name = series.name
            if name == "latent":
                code = series.replace_strict(number, default=-1, return_dtype=pl.Int32).fill_null(-1)
                columns.append(code.alias("concept"))
            elif name in ("concept", "row"):
                continue
            elif name in ("group", "versus", "given", "output", "query", "level"):
                columns.append(self._codes(series))
            elif name == "removed":
                columns.append(series.fill_null("").map_elements(wire.clean_text, return_dtype=pl.String))
            elif name in _COUNTS:
                columns.append(series.fill_null(0).cast(pl.UInt32))
            elif name == "masked":
                columns.append(series.fill_null(value=False))
            else:
                columns.append(series)
        return pl.DataFrame(columns)

    def _codes(self, series: pl.Series) -> pl.Series:
        known = {label: number for number, label in enumerate(self.labels)}
        codes = []
        for text in series:
            if text is None:
                codes.append(-1)
                continue
            label = wire.clean_text(text)
            if label not in known:
                known[label] = len(self.labels)
                self.labels.append(label)
            codes.append(known[label])
        return pl.Series(series.name, codes, pl.Int32)

    def _of_concepts(self, numbers: Sequence[int], names: Iterable[str]) -> dict[str, pl.DataFrame]:
        latents = self.concepts["latent"].gather(list(numbers)).implode()
        return {name: self.frames[name].filter(pl.col("latent").is_in(latents)) for name in names}

    def _levels(self, chosen: pl.DataFrame) -> pl.DataFrame:
        """Errors by level of a concept, with its latent. A name that two latents share says nothing of either."""
        unique = chosen.filter(pl.col("name") == pl.col("plain")).select("latent", concept="plain")
        errors = self.frames["errors"].filter(pl.col("concept").is_not_null())
        return errors.join(unique, on="concept", how="inner", maintain_order="left")


def ranked(frame: pl.DataFrame, q: float) -> pl.DataFrame:
    """Lines with `flagged`: those at or below `q` first, the largest effect first; then by q-value; masked ones last.

    Effects are compared only among lines that pass: a large one that chance explains is no finding.
    """
    masked = pl.col("masked") if "masked" in frame.columns else pl.lit(value=False)
    flagged = ((pl.col("q_value") <= q) & ~masked & pl.col("effect").is_not_null()).fill_null(value=False)
    size = pl.when(flagged).then(-pl.col("effect").abs()).otherwise(pl.col("q_value"))
    return (
        frame.with_columns(flagged=flagged, _masked=masked, _size=size)
        .sort(
            "_masked", "flagged", "_size", descending=[False, True, False], nulls_last=True, maintain_order=True
        )
        .drop("_masked", "_size")
    )  # fmt: skip


def interval_text(effect: float | None, low: float | None, high: float | None) -> str:
    """`0.412 [0.380, 0.443]`, or "–" where there is no number."""
    if effect is None or low is None or high is None:
        return "–"
    return f"{wire.sig3(effect)} [{wire.sig3(low)}, {wire.sig3(high)}]"


def fits(tables: Callable[[int], dict[str, pl.DataFrame]], count: int, budget: int) -> int:
    """The largest number up to `count` of which the tables take at most `budget` bytes."""
    while count > 0:
        size = len(wire.pack(tables(count))[1])
        if size <= budget:
            break
        # What a concept takes differs little, so two or three rounds do.
        count = min(count - 1, int(count * budget / size))
    return count


def _checked(bias: Any, name: str, columns: Mapping[str, Any]) -> pl.DataFrame:
    frame = getattr(bias, name, None)
    if not isinstance(frame, pl.DataFrame):
        raise WidgetError(
            f"BiasDashboard was given {type(bias).__name__}, which has no frame {name!r}. "
            "Give it what ns.bias_report(…) returns, or ns.BiasReport.load(path)."
        )
    return _cast(frame, name, columns)


def _optional(bias: Any, name: str, columns: Mapping[str, Any]) -> pl.DataFrame:
    frame = getattr(bias, name, None)
    return _cast(frame, name, columns) if isinstance(frame, pl.DataFrame) else pl.DataFrame(schema=columns)


def _cast(frame: pl.DataFrame, name: str, columns: Mapping[str, Any]) -> pl.DataFrame:
    if missing := [column for column in columns if column not in frame.columns]:
        raise WidgetError(
            f"The report's frame {name!r} has no column {', '.join(missing)}; it has {', '.join(frame.columns)}. "
            "Make the report again with this version: ns.bias_report(…)."
        )
    return frame.select(pl.col(column).cast(dtype) for column, dtype in columns.items())


def _blanked(frame: pl.DataFrame) -> pl.DataFrame:
    """Masked lines keep who they are and lose every number: what is not sent cannot be shown."""
    numbers = [name for name, dtype in frame.schema.items() if dtype.is_numeric() and name != "latent"]
    masked = pl.col("masked").fill_null(value=True)
    return frame.with_columns(pl.when(~masked).then(pl.col(name)).alias(name) for name in numbers).with_columns(
        masked=masked
    )


def _concepts(frames: Mapping[str, pl.DataFrame], q: float) -> pl.DataFrame:
    """Every latent with its name; a name that two latents share gets the latent's number behind it."""
    found = pl.concat([frames[name].select("latent", "concept") for name in ("association", "reliance", "curves")])
    found = found.drop_nulls().unique("latent", maintain_order=True)
    if not found.height:
        raise WidgetError("The report holds no concept. Give ns.bias_report names or a list: concepts=[…].")
    flagged = pl.col("q_value") <= q
    scores = (
        pl.concat([frames[name].select("latent", "effect", "q_value") for name in ("association", "reliance")])
        .group_by("latent")
        .agg(ways=flagged.sum(), size=pl.col("effect").abs().filter(flagged).max().fill_null(0.0))
    )
    twice = ~pl.col("concept").is_unique()
    named = found.with_columns(name=pl.when(twice).then(pl.format("{} #{}", "concept", "latent")).otherwise("concept"))
    ordered = named.join(scores, on="latent", how="left", maintain_order="left").sort(
        "ways", "size", descending=True, nulls_last=True, maintain_order=True
    )
    return ordered.select(
        pl.int_range(pl.len(), dtype=pl.Int32).alias("concept"), "latent", "name", plain="concept"
    ).with_columns(pl.col("name", "plain").map_elements(wire.clean_text, return_dtype=pl.String))


def _grids(curves: pl.DataFrame) -> pl.DataFrame:
    """One line per concept and output, its points as lists in the order of `value`."""
    numbers = ("value", "mean", "ci_low", "ci_high", "control_low", "control_high")
    return (
        curves.sort("value", maintain_order=True)
        .group_by("latent", "output", maintain_order=True)
        .agg(pl.col(name).cast(pl.Float32) for name in numbers)
    )


def _image_lists(curves: pl.DataFrame, images: int | None) -> pl.DataFrame:
    """One line per concept, output and input (the first `images` of them); probabilities in steps of 1/65,535.

    `value` stands in the first line of a concept and output only: its images share it, or the report is refused.
    """
    lines = (
        curves.sort("value", maintain_order=True)
        .group_by("latent", "output", "input_id", maintain_order=True)
        .agg(
            pl.col("value").cast(pl.Float32),
            (pl.col("probability").clip(0, 1) * _PROBABILITY_STEPS).round().cast(pl.UInt16),
        )
    )
    if lines.height and lines.select(pl.col("value").n_unique().over("latent", "output").max()).item() > 1:
        raise WidgetError("The images of a concept have curves over different values. Make the report again.")
    place = pl.int_range(pl.len()).over("latent", "output")
    if images is not None:
        lines = lines.filter(place < images)
    first = place == 0
    return lines.with_columns(pl.when(first).then("value").otherwise(pl.lit([], pl.List(pl.Float32))).alias("value"))


def as_csv(frame: pl.DataFrame) -> bytes:
    """A frame as CSV; lists become text joined by ";"."""
    lists = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]
    joined = [pl.col(name).list.eval(pl.element().cast(pl.String)).list.join(";") for name in lists]
    return frame.with_columns(joined).write_csv().encode()


def facts(about: Mapping[str, Any]) -> list[list[str]]:
    """What a reader should know of the report first, as pairs of text; all of it is in `bias.about`."""
    found = []
    for key in _FACTS:
        value = about.get(key)
        if value is None or value == []:
            continue
        if isinstance(value, list | tuple):
            text = ", ".join(str(one) for one in value[:8])
        elif isinstance(value, float):
            text = wire.sig3(value) if np.isfinite(value) else "–"
        else:
            text = f"{value:,}" if isinstance(value, int) else str(value)
        found.append([wire.clean_text(key).replace("_", " "), wire.clean_text(text)[:120]])
    return found
