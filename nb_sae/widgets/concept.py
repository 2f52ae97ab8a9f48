"""The concept dashboard: find a concept, see what it is, and move it on an input.

dashboard = ns.ConceptDashboard(analysis, names, editor=ns.ConceptEditor(dictionary, store, clip, names=names))
dashboard.latent = names.find("eyeglasses")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl
import traitlets

from nb_sae.errors import WidgetError
from nb_sae.widgets import wire
from nb_sae.widgets.base import Dashboard
from nb_sae.widgets.cards import Limits, cut_cards

SAVED_CARDS = 48
CARD_BYTES = 350_000
"""What the pictures of the saved cards may hold."""
ANSWER_BYTES = 500_000
"""What the pictures of the saved answers may hold."""
SAVED_CONCEPTS = 12
"""Concepts that a saved view can move."""
SAVED_STEPS = 5
"""Values that a saved view can move a concept to, from 0 to its 99th percentile."""
_NAMES = {
    "latent": pl.UInt32, "name": pl.String, "cosine": pl.Float64, "margin": pl.Float64,
    "runner_ups": pl.List(pl.String), "runner_up_cosines": pl.List(pl.Float64), "density": pl.Float64,
    "accepted": pl.Boolean, "data_name": pl.String, "data_auc": pl.Float64, "agrees": pl.Boolean,
}  # fmt: skip


class Answer(Protocol):
    """What one input finds, as it is or edited: see `nb_sae.concepts.editor.Answer`."""

    row: int
    input_id: int
    hits: pl.DataFrame
    probabilities: Sequence[float]
    cosine: float
    active: Sequence[tuple[int, float]]


class Editor(Protocol):
    """What computes edits; handed in, so that dashboards know tables only: `ns.ConceptEditor`."""

    prompts: Sequence[str]
    hits: int
    queries: Sequence[int]

    def high(self, latent: int) -> float:
        """Largest value a slider sets, the 99th percentile where active."""
        ...

    def edit(self, row: int, latents: Mapping[int, float]) -> Answer:
        """What this row of the store finds with latents set to activations; with none, as it is."""
        ...

    def another(self) -> int:
        """A row that was not given before."""
        ...

    def pictures(self, input_ids: Sequence[int]) -> pl.DataFrame:
        """`input_id, key, webp`; no line for what cannot be drawn."""
        ...


class ConceptDashboard(Dashboard):
    """Search the named latents, see how sure each name is, and move concepts of an input.

    Args:
        analysis: What `ns.analyze` gives; its notes win over found names.
        names: What `ns.name_concepts` gives, or a frame with its columns (`latent` and `name` at least).
        editor: What moves concepts, `ns.ConceptEditor(…)`; None: names and cards only. With a kernel any input and any
            mixture of concepts; without one the saved inputs, one concept at a time at five values.
        latent: The concept to start with; None: the first.
        saved: Latents that a saved view can move. None: the first one shown and the accepted names of
            different words, twelve in all.

    Raises:
        WidgetError: what was given has not the tables that are needed, or the scripts are not built.
    """

    _dashboard = "concept"

    latent = traitlets.Int(help="The chosen concept's latent, in both directions.").tag(sync=True)
    about = traitlets.Dict().tag(sync=True)
    concepts_header = traitlets.Dict().tag(sync=True)
    concepts = traitlets.Bytes(help="One row per named latent.").tag(sync=True)
    cards_header = traitlets.Dict().tag(sync=True)
    cards = traitlets.Bytes(help="Strongest inputs of the saved concepts.").tag(sync=True)
    cards_thumbs_header = traitlets.Dict().tag(sync=True)
    cards_thumbs = traitlets.Bytes().tag(sync=True)
    answers_header = traitlets.Dict().tag(sync=True)
    answers = traitlets.Bytes(help="What the saved inputs find, edited one concept at a time.").tag(sync=True)
    answers_thumbs_header = traitlets.Dict().tag(sync=True)
    answers_thumbs = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        analysis: Any,
        names: Any,
        *,
        editor: Editor | None = None,
        latent: int | None = None,
        saved: Iterable[int] | None = None,
    ) -> None:
        self.table = _concepts(analysis, names)
        self._analysis, self._editor = analysis, editor
        known = set(self.table["latent"].to_list())
        start = self._checked(latent, known) if latent is not None else (self.table["latent"].to_list() or [0])[0]
        movable = self._movable(saved, known, start)
        self.saved_latents = movable
        cards = self._saved_cards(start)
        packed = cards.pack()
        state: dict[str, Any] = dict(zip(_four("cards"), packed, strict=True))
        if editor is not None:
            state |= dict(zip(_four("answers"), self._grid(editor, movable), strict=True))
        highs = {one: editor.high(one) for one in known} if editor is not None else {}
        table = self.table.with_columns(
            high=pl.col("latent").replace_strict(highs, default=1.0, return_dtype=pl.Float64)
        )
        header, block = wire.pack({"concepts": table})
        about = {
            "version": wire.WIRE_VERSION,
            "title": wire.clean_text(analysis.title),
            "site": wire.clean_text(analysis.site.name),
            "rows": int(analysis.rows),
            "d_sae": int(analysis.d_sae),
            "rule": _rule(getattr(names, "about", {})),
            "prompts": [wire.clean_text(prompt) for prompt in (editor.prompts if editor is not None else ())],
            "hits": int(editor.hits) if editor is not None else 0,
            "edits": editor is not None,
        }
        super().__init__(latent=start, about=about, concepts_header=header, concepts=block, **state)

    def _places(self) -> Mapping[str, int | None]:
        return {self._analysis.site.name: int(self._analysis.d_sae)}

    @traitlets.validate("latent")
    def _check_latent(self, proposal: Any) -> int:
        return self._checked(proposal["value"], set(self.table["latent"].to_list()))

    def _checked(self, latent: int, known: set[int]) -> int:
        if known and latent not in known:
            raise WidgetError(
                f"latent={latent} has no name; {len(known):,} latents have one. Choose from names.frame['latent']."
            )
        return int(latent)

    def _movable(self, saved: Iterable[int] | None, known: set[int], start: int) -> list[int]:
        if saved is not None:
            return [self._checked(latent, known) for latent in dict.fromkeys(saved)]
        accepted = self.table.filter("accepted").unique("shown", keep="first", maintain_order=True)
        first = [start] if start in known else []
        return list(dict.fromkeys([*first, *accepted["latent"].to_list()]))[:SAVED_CONCEPTS]

    def _saved_cards(self, start: int) -> Any:
        first = [*self.saved_latents, start, *self.table.filter("accepted")["latent"].head(SAVED_CARDS).to_list()]
        chosen = list(dict.fromkeys(first))[: max(SAVED_CARDS, len(self.saved_latents) + 1)]
        return cut_cards(self._analysis, chosen, Limits(top=10, interval=0, max_bytes=CARD_BYTES, window=(12, 8)))

    # Answers

    def _grid(self, editor: Editor, latents: Sequence[int]) -> tuple[dict[str, Any], bytes, dict[str, Any], bytes]:
        """Every saved input with every saved concept at every step."""
        before = [editor.edit(row, {}) for row in editor.queries]
        cells: list[tuple[int, int, float, Answer]] = []
        for latent in latents:
            for value in np.linspace(0, np.float32(editor.high(latent)), SAVED_STEPS, dtype=np.float32).tolist():
                for number, row in enumerate(editor.queries):
                    cells.append((number, latent, value, editor.edit(row, {latent: value})))
        return _pack(editor, before, cells, ANSWER_BYTES)

    def _respond(self, kind: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        if kind not in ("edit", "another") or self._editor is None:
            return super()._respond(kind, request)
        if kind == "another":
            packed = _pack(self._editor, [self._editor.edit(self._editor.another(), {})], [], None)
        else:
            row, latents = _read_edit(request, set(self.table["latent"].to_list()))
            packed = _pack(self._editor, [], [(0, -1, 0.0, self._editor.edit(row, latents))], None)
        header, block, thumbs_header, thumbs = packed
        return {"header": header, "thumbs_header": thumbs_header}, [block, thumbs]

    # Display

    def _picture_key(self) -> object:
        return self.latent

    def _draw_picture(self) -> bytes:
        from nb_sae.widgets.picture import draw_feature

        return draw_feature(self._analysis, self.latent, self._name())

    def _name(self) -> str | None:
        row = self.table.filter(pl.col("latent") == self.latent)
        return row["shown"][0] if row.height else None

    def _summary(self) -> str:
        row = self.table.filter(pl.col("latent") == self.latent)
        accepted = int(self.table["accepted"].sum())
        said = f"ConceptDashboard of {accepted:,} concepts at {wire.visible_text(self._analysis.site.name)}"
        if not row.height:
            return f"{said}."
        one = row.row(0, named=True)
        cosine = "" if one["cosine"] is None else f", cosine {wire.sig3(one['cosine'])}"
        return f"{said}; latent {self.latent} “{wire.visible_text(one['shown'])}”{cosine}."


def _four(name: str) -> tuple[str, str, str, str]:
    return f"{name}_header", name, f"{name}_thumbs_header", f"{name}_thumbs"


def _rule(about: Mapping[str, Any]) -> str:
    """How names were accepted, in words."""
    if about.get("accept") == "null":
        return f"names that chance gives to {about['false_name_rate']:.0%} of meaningless latents"
    limits = about.get("cosine_and_ratio")
    return f"names of cosine ≥ {limits[0]:g} and ratio ≥ {limits[1]:g}" if limits else ""


def _concepts(analysis: Any, names: Any) -> pl.DataFrame:
    """Named latents with the user's labels, the accepted ones first, the clearest of them first."""
    frame = getattr(names, "frame", names)
    if not isinstance(frame, pl.DataFrame) or {"latent", "name"} - set(frame.columns):
        raise WidgetError(
            f"names is a {type(names).__name__} without latent and name. Give what ns.name_concepts returns, or a "
            "frame with these columns."
        )
    missing = [pl.lit(None, kind).alias(name) for name, kind in _NAMES.items() if name not in frame.columns]
    frame = frame.with_columns(missing).select(pl.col(name).cast(kind) for name, kind in _NAMES.items())
    outside = frame.filter(pl.col("latent") >= analysis.d_sae)
    if outside.height:
        raise WidgetError(
            f"names speaks of latent {outside['latent'][0]}; this analysis has 0 … {analysis.d_sae - 1}. Name the "
            "dictionary that was analysed."
        )
    notes = getattr(analysis, "notes", None)
    if notes is None:
        notes = pl.DataFrame(schema={"latent": pl.UInt32, "label": pl.String, "rating": pl.Int8, "comment": pl.String})
    by_hand = notes.filter(pl.col("label").is_not_null() & (pl.col("latent") < analysis.d_sae))["latent"]
    extra = pl.DataFrame({"latent": by_hand.filter(~by_hand.is_in(frame["latent"].implode()))}).cast(pl.UInt32)
    frame = pl.concat([frame, extra], how="diagonal")
    density = analysis.latents.select(pl.col("latent").cast(pl.UInt32), pl.col("density").alias("measured"))
    frame = frame.join(notes.select("latent", "label", "comment"), on="latent", how="left", maintain_order="left")
    frame = frame.join(density, on="latent", how="left", maintain_order="left")
    accepted = pl.col("accepted").fill_null(pl.col("cosine").is_null() & pl.col("name").is_not_null())
    return (
        frame.with_columns(
            accepted=accepted | pl.col("label").is_not_null(),
            agrees=pl.col("agrees").cast(pl.Int8).fill_null(-1),
            density=pl.coalesce("density", "measured"),
            shown=pl.coalesce("label", "name", pl.format("latent {}", "latent")),
            runner_ups=pl.col("runner_ups").fill_null([]),
            runner_up_cosines=pl.col("runner_up_cosines").fill_null([]),
        )
        .drop("measured")
        .sort(
            pl.col("accepted"), pl.col("label").is_not_null(), pl.col("cosine"), "latent",
            descending=[True, True, True, False], nulls_last=True,
        )
    )  # fmt: skip


def _read_edit(request: Mapping[str, Any], known: set[int]) -> tuple[int, dict[int, float]]:
    row, pairs = request.get("row"), request.get("set")
    if not isinstance(row, int) or not isinstance(pairs, list):
        raise WidgetError("An edit needs a row and the latents to set. Reload the page.")
    latents: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in known:
            raise WidgetError(f"{pair!r} is no pair of a named latent and its activation. Reload the page.")
        value = float(pair[1])
        if not np.isfinite(value):
            raise WidgetError(f"Latent {pair[0]} cannot be set to {value}.")
        latents[int(pair[0])] = value
    return row, latents


def _pack(
    editor: Editor, before: Sequence[Answer], cells: Sequence[tuple[int, int, float, Answer]], max_bytes: int | None
) -> tuple[dict[str, Any], bytes, dict[str, Any], bytes]:
    """Answers as tables; hits are positions in `inputs`. The pictures that are wanted most are kept first."""
    answers = [*before, *(answer for *_, answer in cells)]
    wanted: dict[int, int] = {answer.input_id: 10**9 for answer in before}
    keys: dict[int, str] = {}
    for answer in answers:
        for input_id, key in answer.hits.select("input_id", "key").iter_rows():
            wanted[input_id] = wanted.get(input_id, 0) + 1
            keys[input_id] = key
    order = sorted(wanted, key=lambda one: (-wanted[one], one))
    pictures = editor.pictures(order)
    encoded = dict(zip(pictures["input_id"], pictures["webp"], strict=True))
    keys |= {one: key for one, key in zip(pictures["input_id"], pictures["key"], strict=True) if key is not None}
    thumbs: list[bytes] = []
    places, held = {}, 0
    lines = []
    for input_id in order:
        picture = encoded.get(input_id)
        fits = picture is not None and (max_bytes is None or held + len(picture) <= max_bytes)
        if picture is not None and fits:
            held += len(picture)
            thumbs.append(picture)
        places[input_id] = len(places)
        lines.append(
            (input_id, wire.clean_text(keys.get(input_id, f"input {input_id}")), len(thumbs) - 1 if fits else -1)
        )
    inputs = pl.DataFrame(lines, schema={"input_id": pl.UInt32, "key": pl.String, "thumb": pl.Int32}, orient="row")
    tables = {
        "inputs": inputs,
        "queries": pl.DataFrame(
            {
                "row": [one.row for one in before],
                "input": [places[one.input_id] for one in before],
                "active": [[latent for latent, _ in one.active] for one in before],
                "active_acts": [[act for _, act in one.active] for one in before],
            },
            schema={
                "row": pl.UInt32, "input": pl.UInt32, "active": pl.List(pl.UInt32), "active_acts": pl.List(pl.Float32),
            },
        ),
        "before": _answers(before, places),
        "cells": pl.DataFrame(
            [(query, latent, value) for query, latent, value, _ in cells],
            schema={"query": pl.UInt16, "latent": pl.Int32, "value": pl.Float32},
            orient="row",
        ).hstack(_answers([answer for *_, answer in cells], places)),
    }  # fmt: skip
    return *wire.pack(tables), *wire.pack_thumbs(thumbs)


def _answers(answers: Sequence[Answer], places: Mapping[int, int]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "hits": [[places[one] for one in answer.hits["input_id"]] for answer in answers],
            "scores": [answer.hits["score"].to_list() for answer in answers],
            "probabilities": [list(answer.probabilities) for answer in answers],
            "cosine": [answer.cosine for answer in answers],
        },
        schema={
            "hits": pl.List(pl.UInt16), "scores": pl.List(pl.Float32), "probabilities": pl.List(pl.Float32),
            "cosine": pl.Float32,
        },
    )  # fmt: skip
