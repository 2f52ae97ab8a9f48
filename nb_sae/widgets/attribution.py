"""The attribution strip: the tokens or patches of an input, coloured by what an output owes to them.

strip = ns.AttributionStrip(attribution, tokens=lm.token_strings(ids), faithfulness=attribution.faithfulness())
strip.latent                                                     # chosen in the browser, or set here
ns.link(strip, dashboard)                                        # the feature dashboard follows
"""

from __future__ import annotations

import io
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import traitlets
from PIL import Image

from nb_sae.errors import WidgetError
from nb_sae.widgets import wire
from nb_sae.widgets.attribution_tables import StripFrames, read_frames, square_grid
from nb_sae.widgets.base import Dashboard

SAVED_BYTES = 200_000
"""What the tokens and the latents behind them may take in a saved view."""
DIRECT_BYTES = 120_000
"""What heads by sources may take."""
PICTURE_SIDE = 336
PICTURE_BYTES = 60_000
_PER_TOKEN = (64, 32, 16)
"""Latents behind each token that are kept: as many as let every input in, else the fewest."""


class Number(traitlets.TraitType):
    """A whole number that is not negative; numpy's count too."""

    info_text = "a whole number that is not negative"

    def validate(self, obj: Any, value: Any) -> int:
        """Raises `WidgetError` for anything else."""
        try:
            number = operator.index(value)
        except TypeError:
            number = -1
        if isinstance(value, bool) or number < 0:
            what = self.name or "number"
            raise WidgetError(f"{what}={value!r} is no whole number that is not negative. Give 0, 1, 2 …")
        return number


class AttributionStrip(Dashboard):
    """Look at what an output owes to each token or patch, to the latents behind it, and to heads and sources.

    Blue is for the metric, orange against it, 0 has no colour; the height of the line says the same without colour,
    below a token for what is positive, above it for what is negative.

    Args:
        attribution: What `ns.attribute` gives, or what `ns.direct_attribution` gives; None with `direct` alone.
        tokens: One string per position, `lm.token_strings(ids)`; of several inputs a list of such lists, or
            `{input_id: strings}`. None: those that `direct` knows, else positions are numbered.
        names: Names to show, `{latent: name}` or a frame with the columns `latent` and `name`.
        direct: What `ns.direct_attribution` gives, for the view by head and source.
        faithfulness: What `attribution.faithfulness()` gives, for the curve beside random orders.
        picture: The image of an image model, or `{input_id: image}`; its centre is shown, as most models see it.
        grid: Rows and columns of patches. None: a square, where there is a picture.
        latent: The latent to start with; None: the strongest.

    Raises:
        WidgetError: frames, tokens, names or pictures are not what is expected, or the scripts are not built.
    """

    _dashboard = "attribution"

    latent = Number(default_value=0, help="The chosen latent, in both directions.").tag(sync=True)
    token = Number(default_value=0, help="The chosen token, in both directions.").tag(sync=True)
    input = Number(default_value=0, help="The chosen input, in both directions.").tag(sync=True)
    about = traitlets.Dict(help="Metric, method, sums, and what was left out.").tag(sync=True)
    tables_header = traitlets.Dict().tag(sync=True)
    tables = traitlets.Bytes(help="Tokens, the latents behind them, the ranking, faithfulness.").tag(sync=True)
    direct_header = traitlets.Dict().tag(sync=True)
    direct = traitlets.Bytes(help="Contributions by head and source of the saved latents.").tag(sync=True)
    thumbs_header = traitlets.Dict().tag(sync=True)
    thumbs = traitlets.Bytes(help="The pictures of the saved inputs.").tag(sync=True)

    def __init__(
        self,
        attribution: Any = None,
        *,
        tokens: Any = None,
        names: Any = None,
        direct: Any = None,
        faithfulness: pl.DataFrame | None = None,
        picture: Any = None,
        grid: tuple[int, int] | None = None,
        latent: int | None = None,
    ) -> None:
        given = {"tokens": tokens, "names": names, "direct": direct, "faithfulness": faithfulness}
        frames = read_frames(attribution, **given, grid=grid)
        if grid is None and picture is not None:
            grid = square_grid(max(frames.positions.values()))
            if grid is None:
                raise WidgetError(
                    f"A picture was given, and {max(frames.positions.values())} positions are no square of patches. "
                    "Give grid=(rows, columns)."
                )
            frames = read_frames(attribution, **given, grid=grid)
        self.frames: StripFrames = frames
        self._pictures_of = _read_pictures(picture, frames.inputs, frames.grid)
        self._facts: Mapping[str, Any] = getattr(attribution, "about", None) or getattr(direct, "about", None) or {}
        state = self._state()
        start = self._strongest() if latent is None else Number().validate(self, latent)
        first = frames.inputs[0]
        super().__init__(latent=start, token=self._loudest(first), input=first, **state)

    def _places(self) -> Mapping[str, int | None]:
        return {self.about["site"]: None}

    # State

    def _strongest(self) -> int:
        frames = self.frames
        if frames.direct.height:  # one that every part knows, where there is one
            both = frames.latents.join(frames.pairs().select("latent").unique(), on="latent", how="semi")
            return int((both if both.height else frames.direct)["latent"][0])
        return int(frames.latents["latent"][0]) if frames.latents.height else 0

    def _loudest(self, input_id: int) -> int:
        """The token with the largest sum, which the strip starts at."""
        sums = self.frames.of_inputs([input_id], 0)["tokens"]
        if sums.height and sums["total"].abs().max():
            return int(sums["total"].abs().arg_max() or 0)
        targets = self.frames.direct["target"]
        return int(targets[0]) if len(targets) else 0

    def _state(self) -> dict[str, Any]:
        frames, shared = self.frames, self.frames.shared()
        saved, per_token = self._fitting(SAVED_BYTES - len(wire.pack(shared)[1]))
        tables_header, tables = wire.pack({**shared, **frames.of_inputs(saved, per_token)})
        cells, held = [], 0
        for latent, target in frames.pairs().select("latent", "target").iter_rows():
            cell = frames.cells(latent, target)
            held += 6 * cell["heads"][0] * cell["sources"][0] + 32
            if held > DIRECT_BYTES and cells:
                break
            cells.append(cell)
        direct_header, direct = wire.pack({"cells": pl.concat(cells)} if cells else {})
        thumbs_header, thumbs = wire.pack_thumbs(self._thumbs(saved))
        about = self._about(saved, per_token, len(cells))
        return {
            "about": about, "tables_header": tables_header, "tables": tables, "direct_header": direct_header,
            "direct": direct, "thumbs_header": thumbs_header, "thumbs": thumbs,
        }  # fmt: skip

    def _fitting(self, room: int) -> tuple[list[int], int]:
        """The inputs that a saved view holds, and how many latents behind each of their tokens."""
        frames = self.frames

        def size(inputs: Sequence[int], per_token: int) -> int:
            return len(wire.pack(frames.of_inputs(inputs, per_token))[1])

        for per_token in _PER_TOKEN:
            if size(frames.inputs, per_token) <= room:
                return frames.inputs, per_token
        kept: list[int] = []
        for one in frames.inputs:
            room -= size([one], _PER_TOKEN[-1])
            if kept and room < 0:
                break
            kept.append(one)
        return kept, _PER_TOKEN[-1]

    def _thumbs(self, inputs: Sequence[int]) -> list[bytes]:
        thumbs, held = [], 0
        for one in inputs:
            picture = self._pictures_of.get(one, b"")
            held += len(picture)
            thumbs.append(picture if held <= PICTURE_BYTES or not any(thumbs) else b"")
        return thumbs

    def _about(self, saved: Sequence[int], per_token: int, cells: int) -> dict[str, Any]:
        frames, facts = self.frames, self._facts
        numbers = {name: _number(facts.get(name)) for name in ("value", "error", "bias", "none")}
        texts = {name: wire.clean_text(facts.get(name) or "") for name in ("metric", "method", "site", "model", "note")}
        return {
            "version": wire.WIRE_VERSION,
            "title": f"Attribution of {texts['metric']}" if texts["metric"] else "Attribution by head and source",
            **texts,
            **numbers,
            "grid": list(frames.grid) if frames.grid else None,
            "prefix_tokens": frames.prefix_tokens,
            "numbered": not frames.texts,
            "inputs": frames.inputs,
            "saved": list(saved),
            "per_token": per_token,
            "cells": cells,
            "latents": frames.latents.height,
            "by_token": frames.tokens.filter(pl.col("latent").is_not_null()).height > 0,
        }

    # Answers

    def _respond(self, kind: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        number = Number()
        if kind == "input":
            asked = number.validate(self, request.get("input_id"))
            if asked not in self.frames.positions:
                raise WidgetError(
                    f"There is no input {asked}. There are {len(self.frames.positions):,}; choose of them."
                )
            header, block = wire.pack(self.frames.of_inputs([asked], _PER_TOKEN[0]))
            thumbs_header, thumbs = wire.pack_thumbs([self._pictures_of.get(asked, b"")])
            return {"header": header, "thumbs_header": thumbs_header}, [block, thumbs]
        if kind == "direct":
            asked = (number.validate(self, request.get(name)) for name in ("latent", "target"))
            header, block = wire.pack({"cells": self.frames.cells(*asked)})
            return {"header": header}, [block]
        return super()._respond(kind, request)

    # Display

    def _picture_key(self) -> object:
        return self.latent, self.token, self.input

    def _draw_picture(self) -> bytes:
        from nb_sae.widgets.attribution_picture import draw_attribution

        return draw_attribution(
            self.frames, self.about, self.input, self.token, self.latent, self._pictures_of.get(self.input)
        )

    def _summary(self) -> str:
        """The metric, and the strongest tokens and latents."""
        frames, about = self.frames, self.about
        said = [f"AttributionStrip: {wire.visible_text(about['title'])}"]
        if about["value"] is not None:
            said[0] += f" = {wire.sig3(about['value'])}"
        if about["by_token"]:
            lines = (
                frames.of_inputs(frames.inputs[:1], 0)["tokens"].sort(pl.col("total").abs(), descending=True).head(3)
            )
            shown = (self._named(row) for row in lines.iter_rows(named=True))
            said.append(f"strongest tokens: {', '.join(shown)}")
        if frames.latents.height:
            top = frames.latents.head(3).select("latent", "attribution").iter_rows()
            said.append("strongest latents: " + ", ".join(f"{one} {wire.sig3(value)}" for one, value in top))
        if frames.direct.height:
            pairs = frames.pairs()
            row = pairs.row(0, named=True)
            said.append(
                f"{pairs.height} pre-activations by head and source, the first of latent {row['latent']} at token "
                f"{row['target']}: sum {wire.sig3(row['sum'])}"
            )
        return "; ".join(said) + "."

    def _named(self, row: Mapping[str, Any]) -> str:
        text = f" “{wire.visible_text(row['text'])}”" if row["text"] else ""
        return f"{row['token']}{text} {wire.sig3(row['total'])}"


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number and abs(number) != float("inf") else None


def _read_pictures(picture: Any, inputs: Sequence[int], grid: tuple[int, int] | None) -> dict[int, bytes]:
    if picture is None or grid is None:
        return {}
    listed = picture if isinstance(picture, Mapping) else {inputs[0]: picture}
    return {int(input_id): _encoded(one, grid) for input_id, one in listed.items()}


def _encoded(picture: Any, grid: tuple[int, int]) -> bytes:
    """The centre of a picture in the shape of the grid, as WebP."""
    try:
        if isinstance(picture, bytes | bytearray):
            picture = Image.open(io.BytesIO(picture))
        picture = picture.convert("RGB")
    except (OSError, AttributeError, ValueError):
        raise WidgetError(
            f"picture is a {type(picture).__name__} that cannot be read. "
            "Give a PIL image, or the bytes of an image file."
        ) from None
    rows, columns = grid
    unit = min(picture.width / columns, picture.height / rows)
    width, height = unit * columns, unit * rows
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    shape = PICTURE_SIDE / max(grid)
    size = (max(1, round(columns * shape)), max(1, round(rows * shape)))
    shown = picture.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    out = io.BytesIO()
    shown.save(out, "WEBP", quality=80, method=4)
    return out.getvalue()
