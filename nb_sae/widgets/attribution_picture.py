"""The static picture of the attribution strip: tokens or patches, strongest latents, heads by sources, the curve."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from PIL import Image, ImageDraw

from nb_sae.widgets.attribution_tables import StripFrames
from nb_sae.widgets.picture import AGAINST, FOR, SCALE, Canvas
from nb_sae.widgets.wire import sig3, visible_text

WIDTH = 900
LATENTS = 8
LINES = 7
"""Lines of tokens; what does not fit is counted."""
_MARGIN, _GAP, _LINE_HEIGHT, _SIDE, _HALF = 20, 28, 23, 208, 200
_INK, _DIM, _LINE, _BRAND, _PAPER = (27, 31, 39), (98, 103, 112), (221, 224, 229), (31, 95, 191), (255, 255, 255)
_BAND = (212, 215, 220)


def draw_attribution(
    frames: StripFrames, about: Mapping[str, Any], input_id: int, token: int, latent: int, picture: bytes | None
) -> bytes:
    """PNG, below 150 kB."""
    shown = input_id if input_id in frames.positions else frames.inputs[0]
    tables = frames.of_inputs([shown], LATENTS)
    tokens = tables["tokens"]
    totals = tokens["total"].to_numpy() if about["by_token"] else _sources(frames, latent, tokens.height)
    probe = Canvas(WIDTH, 10)
    lines = 0 if frames.grid else _draw_tokens(probe, tokens, totals, token, top=-4000)
    body = _SIDE + 30 if frames.grid else max(1, lines) * _LINE_HEIGHT + 10
    below = 66 + body
    canvas = Canvas(WIDTH, below + 236)
    canvas.text((_MARGIN, 13), about["title"], size=15, bold=True, width=WIDTH - 2 * _MARGIN)
    canvas.text((_MARGIN, 36), _said(about), size=10.5, fill=_DIM, width=WIDTH - 2 * _MARGIN)
    if frames.grid:
        _draw_patches(canvas, frames, totals, token, picture, top=66)
    else:
        _draw_tokens(canvas, tokens, totals, token, top=66)
    middle = WIDTH / 2 + _GAP / 2 if frames.latents.height else _MARGIN
    if frames.latents.height:
        _draw_latents(canvas, frames, latent, top=below)
    if frames.direct.height:
        _draw_heads(canvas, frames, latent, (middle, below, WIDTH - _MARGIN, below + 196))
    elif frames.faithfulness.height:
        _draw_curve(canvas, frames.faithfulness, (middle, below, WIDTH - _MARGIN, below + 190))
    said = "Blue: for, orange: against. Static picture; the live dashboard needs a browser with scripts."
    canvas.text((_MARGIN, canvas.height - 24), said, size=10, fill=_DIM)
    return canvas.png()


def _said(about: Mapping[str, Any]) -> str:
    found = [f"{name} {sig3(about[name])}" for name in ("value", "error", "bias") if about[name] is not None]
    return " · ".join([*(about[name] for name in ("method", "site", "model") if about[name]), *found])


def _sources(frames: StripFrames, latent: int, positions: int) -> np.ndarray:
    """Contribution of every source to the pre-activation of the chosen latent, or of the first that is known."""
    found = np.zeros(positions)
    pairs = frames.pairs()
    if not pairs.height:
        return found
    own = pairs.filter(pl.col("latent") == latent)
    row = (own if own.height else pairs).row(0, named=True)
    cells = frames.cells(row["latent"], row["target"])
    sums = cells["contribution"][0].to_numpy().reshape(cells["heads"][0], -1).sum(0)
    found[: len(sums)] = sums[:positions]
    return found


def _mix(share: float) -> tuple[int, int, int]:
    """Paper at 0, blue at 1, orange at −1."""
    hue, size = (FOR if share >= 0 else AGAINST), min(1.0, abs(share))
    red, green, blue = (round(p + (h - p) * size) for p, h in zip(_PAPER, hue, strict=True))
    return red, green, blue


def _draw_tokens(canvas: Canvas, tokens: pl.DataFrame, totals: np.ndarray, chosen: int, *, top: float) -> int:
    """Tokens in lines, each with its colour and a bar whose height says the same. Returns the number of lines."""
    largest = float(np.abs(totals).max(initial=0)) or 1.0
    x, line = float(_MARGIN), 0
    for place, text in enumerate(tokens["text"]):
        shown = visible_text(text)[:40] or f"[{place}]"
        y = top + line * _LINE_HEIGHT
        length = canvas.text((-4000, -4000), shown, size=11.5)
        if x + length > WIDTH - _MARGIN - 90 and x > _MARGIN:
            line, x = line + 1, float(_MARGIN)
            if line == LINES:
                canvas.text((WIDTH - _MARGIN, y), f"and {tokens.height - place} more", size=10, fill=_DIM, end=True)
                return line
            y = top + line * _LINE_HEIGHT
        share = totals[place] / largest
        canvas.box((x, y - 2, x + length, y + 17), _mix(share))
        bar = abs(share) * 4
        canvas.box((x, y + 17 - bar, x + length, y + 17) if share > 0 else (x, y - 2, x + length, y - 2 + bar), _INK)
        if place == chosen:
            canvas.frame((x - 0.5, y - 2.5, x + length + 0.5, y + 17.5), _BRAND, 3)
        canvas.text((x, y), shown, size=11.5)
        x += length
    return line + 1


def _draw_patches(
    canvas: Canvas, frames: StripFrames, totals: np.ndarray, chosen: int, picture: bytes | None, *, top: float
) -> None:
    rows, columns = frames.grid or (1, 1)
    side = _SIDE / max(rows, columns)
    size = round(columns * side * SCALE), round(rows * side * SCALE)
    shown = Image.new("RGB", size, _PAPER)
    if picture:
        with Image.open(io.BytesIO(picture)) as opened:
            shown = opened.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    # Prefix tokens carry much of what a tower says and would leave every patch pale.
    prefix = frames.prefix_tokens
    largest = float(np.abs(totals[prefix:]).max(initial=0)) or 1.0
    canvas.paste(shown, (_MARGIN, top))
    shares = totals[prefix : prefix + rows * columns] / largest
    colours = np.array([FOR if share >= 0 else AGAINST for share in shares], np.uint8).reshape(rows, columns, 3)
    mask = (np.sqrt(np.abs(shares)) * 215).astype(np.uint8).reshape(rows, columns)
    nearest = Image.Resampling.NEAREST
    over = Image.fromarray(colours).resize(size, nearest)
    left = _MARGIN + columns * side + _GAP
    # Colours are only read on grey.
    grey = shown.convert("L").convert("RGB")
    canvas.paste(Image.composite(over, grey, Image.fromarray(mask).resize(size, nearest)), (left, top))
    if prefix <= chosen < prefix + rows * columns:
        y, x = divmod(chosen - prefix, columns)
        corner = left + x * side, top + y * side
        canvas.frame((*corner, corner[0] + side, corner[1] + side), _INK, 4)
    said = [f"prefix token {place}: {sig3(float(totals[place]))}" for place in range(min(prefix, 4))]
    said += [f"patches: {sig3(float(totals[prefix:].sum()))}", f"strongest patch: ±{sig3(largest)}"]
    for place, text in enumerate(said):
        canvas.text((left + columns * side + _GAP, top + 4 + 20 * place), text, size=11)


def _draw_latents(canvas: Canvas, frames: StripFrames, latent: int, *, top: float) -> None:
    canvas.text((_MARGIN, top), "Strongest latents", size=12, bold=True)
    shown = frames.latents.head(LATENTS)
    largest = float(shown["attribution"].abs().max() or 1)  # pyright: ignore[reportArgumentType]
    right = WIDTH / 2 - _GAP / 2
    middle, half = right - 132, 66
    for place, row in enumerate(shown.iter_rows(named=True)):
        y = top + 26 + 22 * place
        own = row["latent"] == latent
        name = frames.names.get(row["latent"])
        used = canvas.text((_MARGIN, y), str(row["latent"]), size=11, bold=own, fill=_BRAND if own else _INK)
        if name:
            canvas.text((_MARGIN + used + 8, y), name, size=11, width=middle - half - _MARGIN - used - 16)
        share = row["attribution"] / largest
        ends = sorted((middle, middle + share * half))
        canvas.box((ends[0], y + 1, ends[1], y + 14), FOR if share > 0 else AGAINST)
        canvas.box((middle - 0.5, y - 2, middle + 0.5, y + 17), _DIM)
        canvas.text((right, y), sig3(row["attribution"]), size=11, end=True)


def _draw_heads(canvas: Canvas, frames: StripFrames, latent: int, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    pairs = frames.pairs()
    own = pairs.filter(pl.col("latent") == latent)
    row = (own if own.height else pairs).row(0, named=True)
    cells = frames.cells(row["latent"], row["target"])
    heads, sources = int(cells["heads"][0]), int(cells["sources"][0])
    values = cells["contribution"][0].to_numpy().reshape(heads, sources)
    title = f"Latent {row['latent']} at token {row['target']}: heads × sources, sum {sig3(float(row['sum']))}"
    canvas.text((left, top), title, size=12, bold=True, width=right - left)
    largest = float(np.abs(values).max(initial=0)) or 1.0
    colours = np.array([[_mix(one / largest) for one in line] for line in values], np.uint8)
    width, height = right - left - 40, min(bottom - top - 46, heads * 26)
    size = round(width * SCALE), round(height * SCALE)
    canvas.paste(Image.fromarray(colours).resize(size, Image.Resampling.NEAREST), (left + 40, top + 26))
    canvas.frame((left + 40, top + 26, right, top + 26 + height), _LINE, 1)
    for head in range(0, heads, max(1, math.ceil(heads * 13 / height))):
        canvas.text((left, top + 26 + (head + 0.5) * height / heads - 7), f"head {head}", size=9.5, fill=_DIM)
    foot = top + 30 + height
    canvas.text((left + 40, foot), "source 0", size=9.5, fill=_DIM)
    canvas.text((right, foot), str(sources - 1), size=9.5, fill=_DIM, end=True)


def _draw_curve(canvas: Canvas, curve: pl.DataFrame, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    canvas.text((left, top), "Metric recovered by the n strongest latents", size=12, bold=True, width=right - left)
    edges = [one for name in ("recovered", "low", "high") for one in curve[name].to_list() if one is not None]
    low, high = min(0.0, *edges), max(1.0, *edges)
    most = math.log2(1 + max(1, int(curve["latents"].max() or 1)))  # pyright: ignore[reportArgumentType]
    frame_left, frame_top, frame_bottom = left + 40, top + 28, bottom - 22

    def at(count: int, value: float) -> tuple[float, float]:
        x = frame_left + math.log2(1 + count) / most * (right - frame_left)
        y = frame_bottom - (value - low) / (high - low) * (frame_bottom - frame_top)
        return x * SCALE, y * SCALE

    draw = ImageDraw.Draw(canvas.image)
    random = curve.filter(pl.col("order").cast(pl.String) == "random").sort("latents")
    band = random.drop_nulls(["low", "high"])
    if band.height > 1:
        lower = [at(*row) for row in band.select("latents", "low").iter_rows()]
        upper = [at(*row) for row in band.select("latents", "high").iter_rows()]
        draw.polygon([*lower, *reversed(upper)], fill=_BAND)
    placed: list[float] = []
    for value in (0.0, 1.0, low, high):
        y = at(0, value)[1] / SCALE
        if any(abs(y - other) < 12 for other in placed):
            continue
        placed.append(y)
        canvas.box((frame_left, y, right, y + 0.5), _LINE)
        canvas.text((frame_left - 6, y - 6), sig3(value), size=9.5, fill=_DIM, end=True)
    own = curve.filter(pl.col("order").cast(pl.String) == "attribution").sort("latents")
    for frame, colour, width in ((random, _DIM, 1), (own, _BRAND, 2)):
        points = [at(*row) for row in frame.select("latents", "recovered").iter_rows()]
        if len(points) > 1:
            draw.line(points, fill=colour, width=width * SCALE)
    canvas.text((frame_left, frame_bottom + 4), "0", size=9.5, fill=_DIM)
    canvas.text((right, frame_bottom + 4), f"{int(curve['latents'].max() or 0):,}", size=9.5, fill=_DIM, end=True)  # pyright: ignore[reportArgumentType]
    said = "latents kept (log scale); grey: random orders, 95 %"
    canvas.text((frame_left + 40, frame_bottom + 4), said, size=9.5, fill=_DIM)
