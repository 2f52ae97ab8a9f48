"""The bias dashboard: concepts by association and reliance, error gaps, retrieval, and the images behind each number.

dashboard = ns.BiasDashboard(bias, inputs=faces)
dashboard.latent = 417        # or a concept's name; or choose it in the browser and read it here
"""

from __future__ import annotations

import io
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl
import traitlets
from PIL import Image

from nb_sae.errors import InputError, WidgetError
from nb_sae.widgets import wire
from nb_sae.widgets.base import Dashboard
from nb_sae.widgets.bias_tables import BiasFrames, as_csv, facts, fits, interval_text, ranked

SAVED_BYTES = 240_000
"""Bytes of tables and pictures in a saved view: 320 kB as base64, with the scripts below 400 kB."""
OVERVIEW_BYTES = 130_000
"""The ranking; some hundred concepts. Those beyond it, the least important ones, are left out and counted."""
PICTURE_BYTES = 55_000
"""Kept for pictures where the tables could take everything."""
PICTURE_SIDE = 56
_IMAGES = (None, 6, 3)
"""Curves and examples that a saved concept shows: all of them, or fewer where that lets more concepts in."""
ASKED_PICTURES = 64
"""Pictures that one answer of the kernel carries."""
_TEXT = 160
CAUTION = "Labels are annotators' labels; association is not cause"


class ConceptLatent(traitlets.TraitType):
    """A concept's latent, checked where it is set; its name does too."""

    info_text = "the latent or the name of a concept of the report"

    def validate(self, obj: Any, value: Any) -> int:
        """Raises `WidgetError` for what is no concept of this report."""
        known: pl.DataFrame = obj.concepts
        if isinstance(value, str):
            found = known.filter(pl.any_horizontal(pl.col("name", "plain") == value))["latent"].to_list()
            if len(found) == 1:
                return int(found[0])
            said = "is the name of several latents" if found else "is no concept of this report"
            some = known["name"].to_list() if not found else [f"{value} #{latent}" for latent in found]
            raise WidgetError(f"{value!r} {said}. Choose one of: {', '.join(some[:12])}.")
        try:
            number = operator.index(value)
        except TypeError:
            raise WidgetError(f"latent={value!r} is neither a number nor a name.") from None
        if isinstance(value, bool) or number not in known["latent"]:
            raise WidgetError(
                f"latent={value!r} is no concept of this report, which has {known.height}. "
                "Their latents are in bias.association['latent']."
            )
        return number


class BiasDashboard(Dashboard):
    """Look at a bias report: what differs between groups, what a classifier leans on, where it errs.

    Concepts are ranked among those that pass the corrected test, by effect; the others stand apart. Numbers of groups
    below the report's minimum n are masked and never leave the kernel.

    Args:
        bias: What `ns.bias_report` gives.
        inputs: The images or texts of the report, to show what is behind the numbers.
        pictures: A frame `input_id, webp` instead, for example `analysis.pictures`. None: that of the report, if any.
        latent: The concept to start with, by latent or name; None: the one that is flagged most clearly.
        q: Level of the false discovery rate at which a concept counts as flagged.

    Raises:
        WidgetError: the report, a concept or the pictures are not what is expected, or the scripts are not built.
    """

    _dashboard = "bias"

    latent = ConceptLatent(default_value=0, help="The chosen concept's latent, in both directions.").tag(sync=True)
    about = traitlets.Dict(help="Target, rules, facts and what was left out.").tag(sync=True)
    overview_header = traitlets.Dict().tag(sync=True)
    overview = traitlets.Bytes(help="Tables of the whole report.").tag(sync=True)
    details_header = traitlets.Dict().tag(sync=True)
    details = traitlets.Bytes(help="Curves, levels and examples of the saved concepts.").tag(sync=True)
    inputs_header = traitlets.Dict().tag(sync=True)
    inputs = traitlets.Bytes(help="Key or text of every input that the saved view names.").tag(sync=True)
    thumbs_header = traitlets.Dict(help="Where each picture of `thumbs` ends.").tag(sync=True)
    thumbs = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        bias: Any,
        *,
        inputs: Any = None,
        pictures: pl.DataFrame | None = None,
        latent: int | str | None = None,
        q: float = 0.05,
    ) -> None:
        if not isinstance(q, int | float) or not 0 < q < 1:
            raise WidgetError(f"q={q!r} is no rate between 0 and 1. The usual one is 0.05.")
        self.bias, self.q = bias, float(q)
        self._frames = BiasFrames.of(bias, self.q)
        self.concepts = self._frames.concepts
        self._shown = _Pictures(inputs, pictures if pictures is not None else getattr(bias, "pictures", None))
        state = self._state()
        start = ConceptLatent().validate(self, self.concepts["latent"][0] if latent is None else latent)
        super().__init__(latent=start, **state)

    def _places(self) -> Mapping[str, int | None]:
        return {str((getattr(self.bias, "about", None) or {}).get("site") or ""): None}

    def _state(self) -> dict[str, Any]:
        """All traits: the overview first, then details and pictures as far as they fit."""
        frames, every = self._frames, self._frames.concepts.height
        listed = fits(frames.overview, every, OVERVIEW_BYTES)
        self.concepts = frames.concepts.head(listed)
        free = SAVED_BYTES - len(wire.pack(frames.overview(listed))[1])
        wanted = PICTURE_BYTES if self._shown else 0
        # Fewer curves and examples first, fewer concepts only then.
        images, saved, room = None, range(0), free
        for images in _IMAGES:
            ids = frames.input_ids(range(listed), images)
            room = free - len(wire.pack({"inputs": self._shown.cut(ids, 0)[0]})[1])
            cards = partial(_first_details, frames, images)
            saved = range(fits(cards, listed, max(0, room - wanted)))
            if len(saved) == listed:
                break
        details_header, details = wire.pack(frames.details(saved, images))
        ids = frames.input_ids(saved, images)
        inputs, thumbs = self._shown.cut(ids, max(wanted, room - len(details)))
        inputs_header, packed_inputs = wire.pack({"inputs": inputs})
        thumbs_header, packed_thumbs = wire.pack_thumbs(thumbs)
        # Last, so that it holds every name that the other tables use.
        overview = frames.overview(listed)
        overview_header, packed = wire.pack({**overview, **frames.texts()})
        return {
            "about": self._about(len(saved), images, len(ids), len(thumbs)),
            "overview_header": overview_header, "overview": packed,
            "details_header": details_header, "details": details,
            "inputs_header": inputs_header, "inputs": packed_inputs,
            "thumbs_header": thumbs_header, "thumbs": packed_thumbs,
        }  # fmt: skip

    def _about(self, saved: int, images: int | None, inputs: int, thumbs: int) -> dict[str, Any]:
        about: Mapping[str, Any] = getattr(self.bias, "about", None) or {}
        min_n = int(about.get("min_n", 20))
        caution = str(about.get("caution") or f"{CAUTION}; groups below n = {min_n} are masked.")
        return {
            "version": wire.WIRE_VERSION,
            "title": wire.clean_text(about.get("title") or f"Bias about {about.get('target', 'the target')}"),
            "target": wire.clean_text(about.get("target", "")),
            "min_n": min_n,
            "q": self.q,
            "caution": wire.clean_text(caution),
            "facts": facts(about),
            "concepts": self._frames.concepts.height,
            "saved": saved,
            "images": images,
            "inputs": inputs,
            "thumbs": thumbs,
            "pictures": bool(self._shown),
        }

    # Answers

    def _respond(self, kind: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        if kind == "concept":
            latent = ConceptLatent().validate(self, request.get("latent"))
            number = self.concepts.filter(pl.col("latent") == latent)["concept"].to_list()
            tables = self._frames.details(number)
            inputs, _ = self._shown.cut(self._frames.input_ids(number), 0)
            header, block = wire.pack({**tables, "inputs": inputs, **self._frames.texts()})
            return {"header": header}, [block]
        if kind == "pictures":
            ids = request.get("input_ids")
            if not isinstance(ids, list) or not all(isinstance(one, int) and one >= 0 for one in ids):
                raise WidgetError("A request for pictures names input_ids. Reload the page.")
            inputs, thumbs = self._shown.cut(ids[:ASKED_PICTURES], None)
            header, block = wire.pack({"inputs": inputs})
            thumbs_header, pictures = wire.pack_thumbs(thumbs)
            return {"header": header, "thumbs_header": thumbs_header}, [block, pictures]
        if kind == "table":
            return {}, [self.csv(str(request.get("name")))]
        return super()._respond(kind, request)

    def csv(self, name: str) -> bytes:
        """One table of the report as CSV, the numbers of masked groups left empty.

        Raises:
            WidgetError: there is no such table.
        """
        known = self._frames.frames
        if name not in known:
            raise WidgetError(f"{name!r} is no table of a bias report. Choose one of: {', '.join(known)}.")
        return as_csv(known[name])

    # Display

    def _picture_key(self) -> object:
        return self.latent

    def _draw_picture(self) -> bytes:
        from nb_sae.widgets.bias_picture import draw_bias

        return draw_bias(self._frames, self.latent, self.about)

    def _summary(self) -> str:
        """Counts of flagged concepts and the clearest ones, each with its interval and n."""
        count, title = self._frames.concepts.height, wire.visible_text(self.about["title"])
        said = [f"BiasDashboard of {count:,} concepts: {title}."]
        for name, verb in (("association", "associated"), ("reliance", "relied on by the classifier")):
            frame = self._frames.frames[name]
            if not frame.height:
                continue
            found = ranked(frame, self.q).filter("flagged")
            count = found["latent"].n_unique()
            said.append(f"{count} {'is' if count == 1 else 'are'} {verb} at q ≤ {self.q:g}")
            clearest = found.unique("latent", keep="first", maintain_order=True).head(3)
            said[-1] += "".join(
                f"{':' if place == 0 else ';'} {self._name(row['latent'])} "
                f"{interval_text(row['effect'], row['ci_low'], row['ci_high'])}, n = {row['n']:,}"
                for place, row in enumerate(clearest.iter_rows(named=True))
            )
            said[-1] += "."
        return " ".join([*said, wire.visible_text(self.about["caution"])])

    def _name(self, latent: int) -> str:
        return wire.visible_text(self.concepts.filter(pl.col("latent") == latent)["name"][0])


def _first_details(frames: BiasFrames, images: int | None, count: int) -> dict[str, pl.DataFrame]:
    return frames.details(range(count), images)


class _Pictures:
    """Small pictures or texts of inputs, from a frame or from the inputs themselves; each is made once."""

    def __init__(self, inputs: Any, frame: pl.DataFrame | None) -> None:
        if frame is not None and (
            not isinstance(frame, pl.DataFrame) or {"input_id", "webp"} - set(getattr(frame, "columns", ()))
        ):
            raise WidgetError("pictures is no frame with input_id and webp. Give analysis.pictures, or inputs=.")
        if inputs is not None and not (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")):
            raise WidgetError(
                f"inputs is a {type(inputs).__name__}. Give the images or texts of the report, such as ns.celeba(path)."
            )
        self._inputs: Any = inputs
        self._is_text = getattr(inputs, "modality", "image") == "text"
        self._encoded = {} if frame is None else dict(frame.select("input_id", "webp").iter_rows())
        self._made: dict[int, bytes] = {}

    def __bool__(self) -> bool:
        return self._inputs is not None or bool(self._encoded)

    def cut(self, input_ids: Sequence[int], budget: int | None) -> tuple[pl.DataFrame, list[bytes]]:
        """One line per input, its picture where it fits into `budget` bytes (None: every one)."""
        thumbs: list[bytes] = []
        lines, held = [], 0
        for input_id in dict.fromkeys(input_ids):
            place = -1
            if budget is None or held < budget:
                webp = self._webp(input_id)
                if webp and (budget is None or held + len(webp) <= budget):
                    place, held = len(thumbs), held + len(webp)
                    thumbs.append(webp)
            lines.append((input_id, self._key(input_id), self._text(input_id), place))
        columns = {"input_id": pl.UInt32, "key": pl.String, "text": pl.String, "thumb": pl.Int32}
        return pl.DataFrame(lines, schema=columns, orient="row"), thumbs

    def _key(self, input_id: int) -> str:
        keys: Sequence[str] = () if callable(getattr(self._inputs, "keys", max)) else self._inputs.keys
        return wire.clean_text(keys[input_id]) if input_id < len(keys) else f"input {input_id}"

    def _text(self, input_id: int) -> str:
        if not self._is_text or not self._holds(input_id):
            return ""
        try:
            text = wire.clean_text(self._inputs[input_id])
        except InputError:
            return ""
        return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"

    def _holds(self, input_id: int) -> bool:
        return self._inputs is not None and 0 <= input_id < len(self._inputs)

    def _webp(self, input_id: int) -> bytes:
        """Empty where there is no picture or it cannot be read."""
        if input_id not in self._made:
            self._made[input_id] = self._make(input_id)
        return self._made[input_id]

    def _make(self, input_id: int) -> bytes:
        if self._is_text:
            return b""
        try:
            if input_id in self._encoded:
                with Image.open(io.BytesIO(self._encoded[input_id])) as opened:
                    return _small(opened.convert("RGB"))
            return _small(self._inputs[input_id].convert("RGB")) if self._holds(input_id) else b""
        except (InputError, OSError):
            return b""


def _small(picture: Image.Image) -> bytes:
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=64, method=4)
    return out.getvalue()
