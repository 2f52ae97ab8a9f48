"""The atlas: a map of all latents, where one is picked, and many are chosen with a lasso.

atlas = ns.AtlasDashboard(analysis, layout=ns.layout(dictionary), names=names)
atlas.latent          # the picked one, in both directions
atlas.selected        # the chosen ones, in both directions
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
import traitlets

from nb_sae.errors import WidgetError
from nb_sae.widgets import wire
from nb_sae.widgets.atlas_cards import pack_cards
from nb_sae.widgets.atlas_points import Points, bits_of, latents_of, make_points
from nb_sae.widgets.base import Dashboard
from nb_sae.widgets.cards import choose_saved
from nb_sae.widgets.feature import LatentNumber, about_analysis, check_analysis, read_names, read_notes

SAVED_BYTES = 735_000
"""Points, names and cards of a saved view before base64, which makes 980 kB of them."""
CARD_BYTES = 180_000
SAVED_CARDS = 48
SEARCH_CHARS = 1_000
DRAW = ("auto", "gl", "canvas")
FOUND = 5_000
"""Latents that an answer to a search names."""


class LatentList(traitlets.TraitType):
    """Numbers of latents, ascending and each once, checked where they are set. Assign a new list to change it."""

    info_text = "a list of latents"

    def validate(self, obj: Any, value: Any) -> list[int]:
        """Raises `WidgetError` for what is no list of latents of this dictionary."""
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise WidgetError(f"selected={value!r} is no list of latents. Give their numbers.")
        given = list(value)
        try:
            numbers = np.asarray(given) if given else np.zeros(0, np.int64)
        except ValueError:  # lists of different lengths
            numbers = np.empty((0, 0))
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise WidgetError(f"selected holds {given[:3]!r} …; expected whole numbers 0 … {obj.d_sae - 1}.")
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < obj.d_sae:
            wrong = numbers.min() if numbers.min() < 0 else numbers.max()
            raise WidgetError(f"selected holds {wrong}, which is outside 0 … {obj.d_sae - 1}.")
        return np.unique(numbers).tolist()


class ColourName(traitlets.TraitType):
    """A column of the map, checked where it is set."""

    info_text = "a column to colour by"

    def validate(self, obj: Any, value: Any) -> str:
        """Raises `WidgetError` for no column of this map."""
        return obj.points_of_map.column(value).key


class AtlasDashboard(Dashboard):
    """Every latent as a point: who lies near whom, coloured by a number, picked one by one or chosen with a lasso.

    Args:
        analysis: What `ns.analyze` gives.
        layout: What `ns.layout(dictionary)` gives, or a frame with latent, x and y; its other columns are offered as
            colours. None: density against largest activation, the two numbers that every analysis has.
        names: `{latent: name}` or a frame with latent and name. A label of the user (`analysis.note`) wins.
        values: More columns to colour by: `{name: one value per latent}`, or a frame with latent.
        colour: The column to start with; "density", "level", "max", or one that was given.
        latent: The latent to start with; None: the one with the largest maximum.
        saved: Latents whose cards stay in the saved notebook and in the report, as far as there is room for them.
        draw: "auto": WebGL2 where graphics hardware draws it, else a 2D canvas; "gl": WebGL2 in any case where there is
            one; "canvas": never WebGL2, of which a page has about sixteen.

    Raises:
        WidgetError: the analysis, the layout, a column, a latent or a name is not what is expected, or the scripts are
            not built.
    """

    _dashboard = "atlas"

    latent = LatentNumber(default_value=0, help="The picked latent, in both directions.").tag(sync=True)
    selected = LatentList(default_value=[], help="The chosen latents, in both directions.").tag(
        sync=True,
        to_json=lambda value, widget: bits_of(value, widget.d_sae),
        from_json=lambda value, widget: latents_of(value, widget.d_sae),
    )
    colour = ColourName(default_value="density", help="The column that colours, in both directions.").tag(sync=True)
    about = traitlets.Dict(help="Title, counts, columns, and what a saved view leaves out.").tag(sync=True)
    points_header = traitlets.Dict().tag(sync=True)
    points = traitlets.Bytes(help="Places, columns and names.").tag(sync=True)
    cards_header = traitlets.Dict().tag(sync=True)
    cards = traitlets.Bytes(help="The cards of the saved latents.").tag(sync=True)
    cards_thumbs_header = traitlets.Dict().tag(sync=True)
    cards_thumbs = traitlets.Bytes().tag(sync=True)
    labels = traitlets.Dict(help="{latent: label} of the user's notes.").tag(sync=True)

    def __init__(
        self,
        analysis: Any,
        layout: Any = None,
        *,
        names: Mapping[int, str] | pl.DataFrame | None = None,
        values: Any = None,
        colour: str = "density",
        latent: int | None = None,
        saved: int = SAVED_CARDS,
        draw: str = "auto",
    ) -> None:
        if draw not in DRAW:
            raise WidgetError(f"draw={draw!r} is none of {', '.join(DRAW)}.")
        if isinstance(saved, bool) or not isinstance(saved, int) or saved < 1:
            raise WidgetError(f"saved={saved!r} keeps no card. Give a number of at least 1.")
        check_analysis(type(self).__name__, analysis)
        self.analysis = analysis
        self.layout_of_map = layout
        self.draw = draw
        self.d_sae = int(analysis.d_sae)
        self.names = read_names(names, self.d_sae)
        self.points_of_map = make_points(analysis, layout, values)
        if not len(self.points_of_map.latents):
            raise WidgetError(
                "No latent has a place: all of them are dead, or the layout is empty. Analyse more inputs."
            )
        self._order = choose_saved(analysis.latents, saved)
        on_map = set(self.points_of_map.latents.tolist())
        first = next((one for one in self._order if one in on_map), int(self.points_of_map.latents[0]))
        start = LatentNumber().validate(self, first if latent is None else latent)
        labels = _labels(analysis)
        super().__init__(
            latent=start, colour=colour, labels=labels, **self._state(start, {**self.names, **_numbered(labels)})
        )
        if hasattr(analysis, "book"):
            analysis.book.watch(self._show_labels)

    # What a saved view holds

    def _state(self, start: int, names: Mapping[int, str]) -> dict[str, Any]:
        """Places first, then as many columns, cards and names as `SAVED_BYTES` holds."""
        points = self.points_of_map
        limit = SAVED_BYTES - len(bits_of([], self.d_sae))
        kept = [key for key in points.keys if _fits(points, self.d_sae, limit, key)]
        frame = points.frame(kept, self.d_sae)
        room = limit - int(frame.estimated_size())
        saved = list(dict.fromkeys([start, *self._order]))
        cards_header, block, thumbs_header, thumbs = pack_cards(self.analysis, saved, min(CARD_BYTES, room // 2))
        if len(block) + len(thumbs) > room:
            saved = []
            cards_header, block, thumbs_header, thumbs = pack_cards(self.analysis, saved)
        named = _names_that_fit(names, self.analysis.latents, room - len(block) - len(thumbs))
        points_header, points_block = wire.pack({"points": frame, "names": named})
        return {
            "about": self._about(kept, named.height, len(names), saved),
            "points_header": points_header, "points": points_block,
            "cards_header": cards_header, "cards": block,
            "cards_thumbs_header": thumbs_header, "cards_thumbs": thumbs,
        }  # fmt: skip

    def _about(self, kept: list[str], named: int, names: int, saved: list[int]) -> dict[str, Any]:
        points = self.points_of_map
        return {
            **about_analysis(self.analysis),
            "axes": list(points.axes),
            "layout": _about_layout(self.layout_of_map),
            "left_out": points.left_out,
            "columns": [{**one.about, "saved": one.key in kept} for one in points.columns],
            "names": {"all": names, "saved": named},
            "draw": self.draw,
            "cards": len(saved),
        }

    # Answers

    def _respond(self, kind: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        if kind == "column":
            return {}, [self.points_of_map.column(request.get("column")).codes.tobytes()]
        if kind == "find":
            found = self._find(request.get("text"))
            header, block = wire.pack({"found": found.head(FOUND)})
            return {"header": header, "cut": found.height > FOUND}, [block]
        if kind == "card":
            latent = LatentNumber().validate(self, request.get("latent"))
            header, block, thumbs_header, thumbs = pack_cards(self.analysis, [latent])
            return {"header": header, "thumbs_header": thumbs_header}, [block, thumbs]
        return super()._respond(kind, request)

    def _find(self, text: Any) -> pl.DataFrame:
        """`latent, name` of those on the map whose number is `text`, or whose name holds it, without case."""
        if not isinstance(text, str) or not text.strip():
            raise WidgetError("The search is empty. Type a name or a number.")
        if len(text) > SEARCH_CHARS:
            raise WidgetError(f"The search has {len(text):,} characters; at most {SEARCH_CHARS:,} are looked for.")
        wanted = text.strip().lower().removeprefix("#")
        names = {**self.names, **_numbered(self.labels)}
        found = [
            (int(one), names.get(int(one), ""))
            for one in self.points_of_map.latents
            if str(one) == wanted or wanted in names.get(int(one), "").lower()
        ]
        return pl.DataFrame(found, schema={"latent": pl.UInt32, "name": pl.String}, orient="row")

    # Display

    def _show_labels(self) -> None:
        self.labels = _labels(self.analysis)

    def name_of(self, latent: int) -> str | None:
        """The user's label of a latent, else its name in `names=`; None where it has neither."""
        return self.labels.get(str(latent)) or self.names.get(latent)

    def _picture_key(self) -> object:
        return self.latent, self.colour, self.name_of(self.latent), tuple(self.selected)

    def _draw_picture(self) -> bytes:
        from nb_sae.widgets.atlas_picture import draw_atlas

        return draw_atlas(self)

    def _summary(self) -> str:
        points = self.points_of_map
        shown = wire.visible_text(points.column(self.colour).label)
        by = " by density and largest activation" if points.axes else f" laid out by {self.about['layout']['method']}"
        name = self.name_of(self.latent)
        named = f" “{wire.visible_text(name)}”" if name else ""
        chosen = f", {len(self.selected):,} are chosen" if self.selected else ""
        return (
            f"AtlasDashboard of {len(points.latents):,} latents at {wire.visible_text(self.analysis.site.name)}{by}, "
            f"coloured by {shown}; latent {self.latent}{named} is picked{chosen}."
        )

    def saved_bytes(self) -> int:
        """Size of the state that a saved notebook holds, its bytes as base64; without script, sheet and picture."""
        return sum(
            len(base64.b64encode(value)) if isinstance(value, bytes) else len(str(value))
            for name, value in self.get_state().items()
            if not name.startswith("_")
        )


def _fits(points: Points, d_sae: int, limit: int, key: str) -> bool:
    """Whether the columns up to `key` fit beside the places."""
    upto = points.keys[: points.keys.index(key) + 1]
    return points.frame(upto, d_sae).estimated_size() <= limit


def _names_that_fit(names: Mapping[int, str], latents: pl.DataFrame, room: int) -> pl.DataFrame:
    """`latent, name`, those with the largest activation first where not all fit."""
    order = latents.sort("max", "latent", descending=[True, False])["latent"]
    kept, used = [], 0
    for latent in order.to_list() if names else []:
        if latent not in names:
            continue
        used += 4 + 6 + len(wire.clean_text(names[latent]).encode())
        if used > room:
            break
        kept.append((latent, names[latent]))
    return pl.DataFrame(kept, schema={"latent": pl.UInt32, "name": pl.String}, orient="row")


def _about_layout(layout: Any) -> dict[str, Any]:
    """How the map was made and what it keeps, as far as the layout says."""
    kept = getattr(layout, "kept", None)
    about: dict[str, Any] = {"method": str(getattr(layout, "method", "a frame of the user"))}
    if kept is not None and math.isfinite(kept.value):
        about |= {"kept": float(kept.value), "null": float(kept.null), "k": int(kept.k)}
    return about


def _labels(analysis: Any) -> dict[str, str]:
    notes = read_notes(analysis) or {}
    return {latent: line["label"] for latent, line in notes.items() if line["label"]}


def _numbered(labels: Mapping[str, str]) -> dict[int, str]:
    return {int(latent): label for latent, label in labels.items()}
