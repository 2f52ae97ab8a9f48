"""The static picture of the bias dashboard: the ranking, the chosen concept's curve and the error gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from PIL import ImageDraw

from nb_sae.widgets.bias_tables import BiasFrames, interval_text, ranked
from nb_sae.widgets.picture import SCALE, Canvas
from nb_sae.widgets.wire import sig3

WIDTH, HEIGHT = 900, 532
CONCEPTS = 12
GROUPS = 5
_MARGIN, _MIDDLE, _ROW = 20, 460, 26
_INK, _DIM, _LINE, _BRAND, _PAPER = (27, 31, 39), (98, 103, 112), (221, 224, 229), (31, 95, 191), (255, 255, 255)
_SHADE, _BAND = (212, 215, 220), (183, 205, 240)


def draw_bias(frames: BiasFrames, latent: int, about: Mapping[str, Any]) -> bytes:
    """PNG, below 150 kB: what passes the test with its interval and n, one curve with its control band, error gaps."""
    canvas = Canvas(WIDTH, HEIGHT)
    canvas.text((_MARGIN, 13), about["title"], size=15, bold=True, width=WIDTH - 2 * _MARGIN)
    canvas.text((_MARGIN, 36), about["caution"], size=10.5, fill=_DIM, width=WIDTH - 2 * _MARGIN)
    _draw_ranking(canvas, frames, about, top=66)
    _draw_curve(canvas, frames, latent, (_MIDDLE, 66, WIDTH - _MARGIN, 300))
    _draw_errors(canvas, frames, about, top=322)
    said = "Static picture. The live dashboard needs a browser with scripts."
    canvas.text((_MARGIN, HEIGHT - 24), said, size=10, fill=_DIM)
    return canvas.png()


def _draw_ranking(canvas: Canvas, frames: BiasFrames, about: Mapping[str, Any], *, top: int) -> None:
    """The first group's associations; reliances where there are none."""
    name = "association" if frames.frames["association"].height else "reliance"
    side = "group" if name == "association" else "output"
    frame = frames.frames[name]
    if not frame.height:
        canvas.text((_MARGIN, top), "The report holds no effects.", size=12, fill=_DIM)
        return
    chosen = frame[side][0]
    lines = ranked(frame.filter(pl.col(side) == chosen), about["q"])
    passing = lines.filter("flagged").height
    head = f"{name.capitalize()} with {chosen}: {passing} of {lines.height} pass q ≤ {about['q']:g}"
    canvas.text((_MARGIN, top), head, size=12, bold=True, width=_MIDDLE - _MARGIN - 30)
    shown = lines.head(CONCEPTS)
    ends = [abs(one) for column in ("ci_low", "ci_high") for one in shown[column] if one is not None]
    reach = max(ends, default=1.0) or 1.0
    left, right = 150.0, 330.0
    centre, half = (left + right) / 2, (right - left) / 2
    for place, row in enumerate(shown.iter_rows(named=True)):
        y = top + 26 + place * _ROW
        canvas.text((_MARGIN, y), row["concept"], size=11, width=left - _MARGIN - 12, bold=row["flagged"])
        if row.get("masked"):
            canvas.text((left, y), f"masked: n < {about['min_n']}", size=10.5, fill=_DIM)
            continue
        canvas.box((left, y + 7, right, y + 7.5), _LINE)
        canvas.box((centre - 0.5, y, centre + 0.5, y + 15), _DIM)
        low, effect, high = (centre + row[one] / reach * half for one in ("ci_low", "effect", "ci_high"))
        canvas.box((low, y + 6.5, high, y + 8.5), _BRAND)
        _dot(canvas, (effect, y + 7.5), filled=row["flagged"])
        canvas.text((right + 10, y), sig3(row["effect"]), size=11)
        canvas.text((_MIDDLE - 24, y + 1), f"n {row['n']:,}", size=9.5, fill=_DIM, end=True)
    y = top + 26 + shown.height * _ROW
    for x, text in ((left, -reach), (centre, 0.0), (right, reach)):
        canvas.text((x - 14, y), sig3(text), size=9.5, fill=_DIM)
    canvas.text((_MARGIN, y + 16), "Dots with 95 % intervals; hollow: does not pass.", size=9.5, fill=_DIM)


def _draw_curve(canvas: Canvas, frames: BiasFrames, latent: int, box: Sequence[float]) -> None:
    left, top, right, bottom = box
    curve = frames.frames["curves"].filter(pl.col("latent") == latent)
    concept = frames.concepts.filter(pl.col("latent") == latent)["name"].to_list()
    name = concept[0] if concept else f"latent {latent}"
    if not curve.height:
        canvas.text((left, top), f"{name}: no curve was measured.", size=12, fill=_DIM, width=right - left)
        return
    output = curve["output"][0]
    curve = curve.filter(pl.col("output") == output).sort("value")
    canvas.text((left, top), f"Change of p({output}) when {name} is set", size=12, bold=True, width=right - left)
    edges = curve.select("ci_low", "ci_high", "control_low", "control_high")
    bounds = [one for row in edges.iter_rows() for one in row if one is not None]
    low, high = min(0.0, *bounds), max(0.0, *bounds, 1e-9)
    largest = max(float(curve["value"].max() or 0), 1e-9)  # pyright: ignore[reportArgumentType]
    frame_left, frame_top, frame_bottom = left + 44, top + 26, bottom - 30

    def at(value: float, change: float | None) -> tuple[float, float]:
        share = ((change or 0.0) - low) / (high - low)
        x = frame_left + value / largest * (right - frame_left)
        return x * SCALE, (frame_bottom - share * (frame_bottom - frame_top)) * SCALE

    draw = ImageDraw.Draw(canvas.image)
    for colour, (lower, upper) in (
        (_SHADE, ("control_low", "control_high")),
        (_BAND, ("ci_low", "ci_high")),
    ):
        there = [at(value, one) for value, one in curve.select("value", lower).iter_rows()]
        back = [at(value, one) for value, one in curve.select("value", upper).iter_rows()][::-1]
        draw.polygon(there + back, fill=colour)
    zero = at(0, 0)[1] / SCALE
    canvas.box((frame_left, zero, right, zero + 0.5), _DIM)
    mean = [at(value, one) for value, one in curve.select("value", "mean").iter_rows()]
    draw.line(mean, fill=_BRAND, width=2 * SCALE)
    for change in {low, 0.0, high}:
        canvas.text((frame_left - 6, at(0, change)[1] / SCALE - 6), sig3(change), size=9.5, fill=_DIM, end=True)
    canvas.text((frame_left, frame_bottom + 4), "0", size=9.5, fill=_DIM)
    canvas.text((right, frame_bottom + 4), sig3(largest), size=9.5, fill=_DIM, end=True)
    said = "activation; blue: mean and 95 %, grey: matched latents"
    canvas.text((frame_left + 60, frame_bottom + 4), said, size=9.5, fill=_DIM)


def _draw_errors(canvas: Canvas, frames: BiasFrames, about: Mapping[str, Any], *, top: int) -> None:
    errors = frames.frames["errors"].filter(pl.col("concept").is_null())
    canvas.text((_MIDDLE, top), "Errors by group, 95 % intervals", size=12, bold=True)
    if not errors.height:
        canvas.text((_MIDDLE, top + 24), "No errors were measured.", size=11, fill=_DIM)
        return
    columns = ((_MIDDLE + 120, "accuracy"), (_MIDDLE + 250, "tpr"))
    for x, name in columns:
        canvas.text((x, top + 22), {"accuracy": "Accuracy", "tpr": "TPR"}[name], size=10, fill=_DIM)
    canvas.text((WIDTH - _MARGIN, top + 22), "n", size=10, fill=_DIM, end=True)
    for place, row in enumerate(errors.head(GROUPS).iter_rows(named=True)):
        y = top + 42 + place * 24
        canvas.text((_MIDDLE, y), row["group"], size=11, width=112)
        if row["masked"]:
            canvas.text((columns[0][0], y), f"masked: n < {about['min_n']}", size=10.5, fill=_DIM)
            continue
        for x, name in columns:
            text = interval_text(row[name], row[f"{name}_low"], row[f"{name}_high"])
            canvas.text((x, y), text, size=10.5, width=126)
        canvas.text((WIDTH - _MARGIN, y), f"{row['n']:,}", size=10.5, end=True)
    if errors.height > GROUPS:
        y = top + 42 + GROUPS * 24
        canvas.text((_MIDDLE, y), f"and {errors.height - GROUPS} more groups", size=10, fill=_DIM)


def _dot(canvas: Canvas, at: tuple[float, float], *, filled: bool) -> None:
    x, y, radius = at[0] * SCALE, at[1] * SCALE, 3.5 * SCALE
    corners = (x - radius, y - radius, x + radius, y + radius)
    fill = _BRAND if filled else _PAPER
    ImageDraw.Draw(canvas.image).ellipse(corners, fill=fill, outline=_BRAND, width=2 * SCALE)
