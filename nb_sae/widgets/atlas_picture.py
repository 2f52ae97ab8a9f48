"""The static picture of the atlas: the map, its colours, the chosen latents and the picked one."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from PIL import Image, ImageDraw

from nb_sae.widgets.atlas_points import Column
from nb_sae.widgets.picture import SCALE, Canvas, cividis
from nb_sae.widgets.wire import sig3, visible_text

WIDTH, HEIGHT = 900, 470
MAX_BYTES = 80_000
_MARGIN, _TOP, _SIDE = 20, 62, 380
"""The map is a square of `_SIDE` pixels; what is known of the picked latent stands beside it."""
_INK, _DIM, _LINE, _MISSING = (27, 31, 39), (98, 103, 112), (221, 224, 229), (190, 194, 200)
_LOW, _HIGH = 0.62, 0.0
"""Ends of cividis on paper: what is weak stays at 3 : 1 against it."""
OKABE_ITO = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 130, 98),
    (176, 90, 140),
    (150, 110, 0),
    (60, 130, 180),
    (90, 90, 90),
    (0, 0, 0),
)
"""Eight colours that stay apart without red and green (Okabe & Ito 2008), darkened to 3 : 1 on paper."""


def draw_atlas(dashboard: Any) -> bytes:
    """PNG below 80 kB."""
    points = dashboard.points_of_map
    column = points.column(dashboard.colour)
    canvas = Canvas(WIDTH, HEIGHT)
    about = dashboard.about
    canvas.text((_MARGIN, 13), about["title"], size=11, fill=_DIM, width=WIDTH - 2 * _MARGIN)
    by = "density and largest activation" if points.axes else about["layout"]["method"]
    said = f"{len(points.latents):,} latents at {about['site']}, by {by}"
    canvas.text((_MARGIN, 32), said, size=13, bold=True, width=WIDTH - 2 * _MARGIN)
    chosen = np.isin(points.latents, dashboard.selected)
    _draw_points(canvas, points, _palette(column)[column.codes], chosen)
    _draw_picked(canvas, points, dashboard.latent)
    _draw_facts(canvas, dashboard, column)
    said = "Static picture. The live dashboard needs a browser with scripts."
    canvas.text((_MARGIN, HEIGHT - 20), said, size=10, fill=_DIM)
    return canvas.png(MAX_BYTES)


def _palette(column: Column) -> np.ndarray:
    """A colour for each byte."""
    count = len(column.categories)
    if column.kind == "category" and column.key != "level" and count <= len(OKABE_ITO):
        colours = np.array([OKABE_ITO[code % len(OKABE_ITO)] for code in range(255)], np.uint8)
    else:
        steps = count - 1 if column.kind == "category" else 254
        shares = np.clip(np.arange(255) / max(1, steps), 0, 1)
        colours = cividis(_LOW + (_HIGH - _LOW) * shares)
    return np.concatenate([np.array([_MISSING], np.uint8), colours])


def _draw_points(canvas: Canvas, points: Any, colours: np.ndarray, chosen: np.ndarray) -> None:
    """Squares of two to eight drawn pixels; with a choice, the others fade."""
    left, top, side = round(_MARGIN * SCALE), round(_TOP * SCALE), round(_SIDE * SCALE)
    canvas.frame((_MARGIN, _TOP, _MARGIN + _SIDE, _TOP + _SIDE), _LINE, 1)
    size = int(np.clip(600 / np.sqrt(max(1, len(points.latents))), 2, 8))
    x = left + 6 + np.rint(points.x / 65_535 * (side - 12 - size)).astype(int)
    y = top + 6 + np.rint((1 - points.y / 65_535) * (side - 12 - size)).astype(int)
    pixels = np.asarray(canvas.image).copy()
    if chosen.any():
        colours = np.where(chosen[:, None], colours, (colours.astype(int) + 3 * 255) // 4).astype(np.uint8)
    order = np.argsort(chosen, kind="stable")
    for row in range(size):
        for at in range(size):
            pixels[y[order] + row, x[order] + at] = colours[order]
    canvas.paste(Image.fromarray(pixels), (0, 0))


def _draw_picked(canvas: Canvas, points: Any, latent: int) -> None:
    at = np.flatnonzero(points.latents == latent)
    if not len(at):
        return
    side = _SIDE * SCALE - 12
    x = _MARGIN * SCALE + 6 + points.x[at[0]] / 65_535 * side
    y = _TOP * SCALE + 6 + (1 - points.y[at[0]] / 65_535) * side
    draw = ImageDraw.Draw(canvas.image)
    draw.ellipse((x - 11, y - 11, x + 11, y + 11), outline=(255, 255, 255), width=6)
    draw.ellipse((x - 10, y - 10, x + 10, y + 10), outline=_INK, width=3)


def _draw_facts(canvas: Canvas, dashboard: Any, column: Column) -> None:
    x, room = _MARGIN + _SIDE + 26, WIDTH - 2 * _MARGIN - _SIDE - 26
    row = dashboard.analysis.latents.row(by_predicate=pl.col("latent") == dashboard.latent, named=True)
    name = dashboard.name_of(dashboard.latent)
    canvas.text((x, _TOP), f"Latent {dashboard.latent}", size=18, bold=True)
    if name:
        canvas.text((x, _TOP + 26), name, size=14, bold=True, fill=(31, 95, 191), width=room)
    said = f"active on {sig3(row['density'] * 100)} % of {dashboard.analysis.rows:,} rows, largest {sig3(row['max'])}"
    canvas.text((x, _TOP + 50), "never active" if row["dead"] else said, size=12, width=room)
    _draw_legend(canvas, column, (x, _TOP + 84), room)
    about, y = dashboard.about["layout"], _TOP + 170
    if "kept" in about:
        shares = sig3(about["kept"]), sig3(about["null"])
        kept = f"{shares[0]} of the {about['k']} nearest by cosine are near here, {shares[1]} by chance"
        canvas.text((x, y), kept, size=11, fill=_DIM, width=room)
    selected = dashboard.selected
    if selected:
        canvas.text((x, y + 30), f"{len(selected):,} chosen", size=13, bold=True)
        for line, latent in enumerate(selected[:8]):
            said = f"{latent}  {visible_text(dashboard.name_of(latent) or '')}"
            canvas.text((x, y + 52 + 17 * line), said, size=11, width=room)


def _draw_legend(canvas: Canvas, column: Column, at: tuple[float, float], room: float) -> None:
    x, y = at
    canvas.text((x, y), f"colour: {column.label}", size=11, fill=_DIM)
    palette = _palette(column)
    if column.kind != "category":
        strip = np.repeat(palette[None, 1:], 12 * SCALE, 0)
        width = round(min(room, 254) * SCALE)
        canvas.paste(Image.fromarray(strip).resize((width, 12 * SCALE)), (x, y + 20))
        canvas.text((x, y + 36), sig3(column.low), size=10, fill=_DIM)
        canvas.text((x + width / SCALE, y + 36), sig3(column.high), size=10, fill=_DIM, end=True)
        return
    for number, category in enumerate(column.categories[:8]):
        place = (x + (number % 4) * 110, y + 20 + (number // 4) * 20)
        red, green, blue = (int(part) for part in palette[number + 1])
        canvas.box((place[0], place[1] + 2, place[0] + 11, place[1] + 13), (red, green, blue))
        canvas.text((place[0] + 17, place[1]), category, size=11, width=88)
