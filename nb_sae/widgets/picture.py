"""The static picture of the feature dashboard, drawn by Pillow, for hosts that run no script.

Everything is drawn as text glyph by glyph; nothing is parsed. The card is light with a frame, so that it also reads on
a dark page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from PIL import Image, ImageDraw, ImageFont

from nb_sae.widgets.cards import Limits, cut_cards
from nb_sae.widgets.wire import sig3, visible_text

WIDTH = 900
"""In the page's pixels; drawn at `SCALE` times that."""
SCALE = 2
MAX_BYTES = 150_000
PICTURES = 8
PASSAGES = 6
TOKENS = 5
"""Promoted and suppressed tokens of each side."""
CHANCE = 0.05
"""Tokens with a larger p get no colour: a random direction has as good ones."""
_MARGIN = 20
_TILE = 100
_OPACITY = 0.7
_FAINT = 0.25

_INK, _DIM, _LINE, _BRAND, _PAPER = (27, 31, 39), (98, 103, 112), (221, 224, 229), (31, 95, 191), (255, 255, 255)
_HOT = (255, 176, 31)

_CIVIDIS = np.array([
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115),
    (138, 134, 120), (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56),
], np.float64)  # fmt: skip
"""Ten evenly spaced colours of cividis (Nuñez et al. 2018, doi:10.1371/journal.pone.0199239)."""


def draw_feature(analysis: Any, latent: int, name: str | None = None) -> bytes:
    """PNG of one latent's card, below 150 kB: facts, histogram and strongest examples."""
    cards = cut_cards(analysis, [latent], Limits(top=PICTURES, interval=0, window=(14, 10), promoted=TOKENS))
    facts = analysis.latents.row(by_predicate=pl.col("latent") == latent, named=True)
    is_text = analysis.modality == "text"
    examples = cards.tables["examples"].head(PASSAGES if is_text else PICTURES)
    body = (len(examples) * 27 if is_text else _TILE + 22) if examples.height else 26
    promoted = cards.tables.get("promoted", pl.DataFrame()).head(4 * TOKENS)
    below = 214 + body + 8
    lens = 26 + 17 * (TOKENS + 1) if promoted.height else 0
    canvas = Canvas(WIDTH, below + lens + 26)
    _draw_facts(canvas, analysis, facts, name)
    _draw_histogram(canvas, facts, top=112, height=62)
    canvas.text((_MARGIN, 198), "Strongest examples", size=12, bold=True)
    if not examples.height:
        said = f"Never active on these {analysis.rows:,} rows." if facts["dead"] else "No example is stored."
        canvas.text((_MARGIN, 222), said, size=12, fill=_DIM)
    elif is_text:
        _draw_texts(canvas, cards.tables, examples, top=222)
    else:
        _draw_pictures(canvas, analysis, cards.tables, cards.thumbs, examples, top=222)
    if lens:
        _draw_promoted(canvas, promoted, top=below)
    canvas.text(
        (_MARGIN, canvas.height - 24),
        "Static picture. The live dashboard needs a browser with scripts.",
        size=10,
        fill=_DIM,
    )
    return canvas.png()


class Canvas:
    """Draws in the page's pixels on an image `SCALE` times as large."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), _PAPER)
        self._draw = ImageDraw.Draw(self.image)
        self._draw.rounded_rectangle(
            (0, 0, width * SCALE - 1, height * SCALE - 1), radius=8 * SCALE, outline=_LINE, width=SCALE
        )

    def text(
        self,
        at: tuple[float, float],
        text: str,
        *,
        size: float,
        fill: tuple[int, int, int] = _INK,
        bold: bool = False,
        width: float | None = None,
        end: bool = False,
    ) -> float:
        """Draw one line, shortened to `width`, at its left (or right) end. Returns the width that it takes."""
        font = _font(size * SCALE, bold)
        shown = visible_text(text)[:400]
        if width is not None and font.getlength(shown) > width * SCALE:
            while shown and font.getlength(shown + "…") > width * SCALE:
                shown = shown[:-1]
            shown += "…"
        length = font.getlength(shown) / SCALE
        x = at[0] - length if end else at[0]
        self._draw.text((x * SCALE, at[1] * SCALE), shown, font=font, fill=fill)
        return length

    def box(self, corners: Sequence[float], fill: tuple[int, int, int]) -> None:
        """Fill (left, top, right, bottom)."""
        left, top, right, bottom = (round(value * SCALE) for value in corners)
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), fill=fill)

    def frame(self, corners: Sequence[float], outline: tuple[int, int, int], width: int) -> None:
        """Draw the edge of (left, top, right, bottom); `width` in drawn pixels."""
        self._draw.rectangle([round(value * SCALE) for value in corners], outline=outline, width=width)

    def paste(self, picture: Image.Image, at: tuple[float, float]) -> None:
        """Put a picture of drawn pixels with its left upper corner at `at`."""
        self.image.paste(picture, (round(at[0] * SCALE), round(at[1] * SCALE)))

    def png(self, max_bytes: int = MAX_BYTES) -> bytes:
        """Encoded; with fewer colours, then smaller, where it would be larger than `max_bytes`."""
        tries = (
            lambda: self.image,
            lambda: self.image.quantize(256, dither=Image.Dither.NONE),
            lambda: self.image.quantize(64, dither=Image.Dither.NONE),
            lambda: self.image.reduce(SCALE).quantize(64, dither=Image.Dither.NONE),
        )
        data = b""
        for attempt in tries:
            out = io.BytesIO()
            attempt().save(out, "PNG", compress_level=7)
            data = out.getvalue()
            if len(data) <= max_bytes:
                break
        return data


def _font(size: float, bold: bool) -> Any:
    """DejaVu where the machine has it (it knows many scripts), else the font inside Pillow."""
    try:
        return ImageFont.truetype(
            f"DejaVuSans{'-Bold' if bold else ''}.ttf", size, layout_engine=ImageFont.Layout.BASIC
        )
    except OSError:
        return ImageFont.load_default(size)


def level_of(analysis: Any, facts: dict[str, Any]) -> tuple[str, str]:
    """A latent's level, and what it is in: a nested width, a budget, or nothing where nothing is nested."""
    level = int(facts["level"])
    if analysis.widths:
        return str(level), f"first {analysis.widths[level]:,} latents"
    if level < len(analysis.budgets):
        return str(level), f"budget k = {analysis.budgets[level]:,}"
    return "–", "not nested"


def _draw_facts(canvas: Canvas, analysis: Any, facts: dict[str, Any], name: str | None) -> None:
    site = visible_text(analysis.site.name)
    room = WIDTH - 2 * _MARGIN
    used = canvas.text((_MARGIN, 13), analysis.title, size=11, fill=_DIM, width=room * 0.6)
    if site not in visible_text(analysis.title):
        canvas.text((_MARGIN + used + 12, 13), site, size=11, fill=_DIM, width=room - used - 12)
    used = canvas.text((_MARGIN, 33), f"Latent {facts['latent']}", size=18, bold=True)
    if name:
        canvas.text((_MARGIN + used + 14, 33), name, size=18, bold=True, fill=_BRAND, width=room - used - 14)
    level, nested = level_of(analysis, facts)
    columns = [
        ("Density", f"{sig3(facts['density'] * 100)} %", f"{facts['active_rows']:,} of {analysis.rows:,} rows"),
        ("Largest", sig3(facts["max"]), "activation"),
        ("Mean", sig3(facts["mean"]), "where active"),
        ("Level", level, nested),
    ]
    if facts["dead"]:
        columns = [columns[0], ("State", "dead", "never active")]
    x = float(_MARGIN)
    for term, value, unit in columns:
        canvas.text((x, 64), term, size=10, fill=_DIM)
        used = canvas.text((x, 77), value, size=13, bold=True)
        used += canvas.text((x + used + 6, 79), unit, size=10.5, fill=_DIM) + 6
        x += max(used, 60) + 34


def _draw_histogram(canvas: Canvas, facts: dict[str, Any], *, top: int, height: int) -> None:
    bins = np.asarray(facts["histogram"] if facts["histogram"] is not None else [], np.float64)
    left, right, base = _MARGIN, WIDTH - _MARGIN, top + height
    canvas.box((left, base, right, base + 0.5), _DIM)
    if bins.size and bins.max() > 0:
        tall = np.log10(bins + 1) / np.log10(bins.max() + 1) * height
        step = (right - left) / bins.size
        for number, size in enumerate(tall):
            canvas.box(
                (left + number * step + 0.5, base - size, left + (number + 1) * step - 0.5, base), (88, 135, 208)
            )
    canvas.text((left, base + 3), "0", size=9.5, fill=_DIM)
    canvas.text((right, base + 3), sig3(facts["histogram_max"]), size=9.5, fill=_DIM, end=True)
    canvas.text(((left + right) / 2 - 90, base + 3), "activation (rows per bin, log scale)", size=9.5, fill=_DIM)


def _draw_pictures(
    canvas: Canvas,
    analysis: Any,
    tables: dict[str, pl.DataFrame],
    thumbs: list[bytes],
    examples: pl.DataFrame,
    *,
    top: int,
) -> None:
    inputs = tables["inputs"]
    gap = (WIDTH - 2 * _MARGIN - PICTURES * _TILE) / (PICTURES - 1)
    for number, row in enumerate(examples.iter_rows(named=True)):
        x = _MARGIN + number * (_TILE + gap)
        found = inputs.row(row["input"], named=True)
        side = _TILE * SCALE
        canvas.box((x, top, x + _TILE, top + _TILE), _LINE)
        if found["thumb"] >= 0:
            drawn = tile(thumbs[found["thumb"]], row["map"], analysis.site.grid, side)
            canvas.paste(drawn, (x + (_TILE - drawn.width / SCALE) / 2, top + (_TILE - drawn.height / SCALE) / 2))
            if row["at"] >= 0 and len(row["map"]):
                _frame_peak(canvas, row["at"], analysis.site.grid, drawn, (x, top))
        else:
            canvas.text((x + 22, top + 42), "no picture", size=10, fill=_DIM)
        used = canvas.text((x, top + _TILE + 4), sig3(row["act"]), size=10.5, bold=True)
        canvas.text(
            (x + _TILE, top + _TILE + 4), _short(found["key"]), size=9.5, fill=_DIM, width=_TILE - used - 8, end=True
        )


def _short(key: str) -> str:
    return visible_text(key).replace("\\", "/").rsplit("/", 1)[-1]


def cividis(shares: np.ndarray) -> np.ndarray:
    """Colours `(…, 3)` as uint8 of shares 0 … 1."""
    channels = [np.interp(shares, np.linspace(0, 1, len(_CIVIDIS)), _CIVIDIS[:, i]) for i in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def tile(webp: bytes, heat: Sequence[int], grid: tuple[int, int] | None, side: int) -> Image.Image:
    """A picture whose long side is `side` drawn pixels, its heat map over it."""
    with Image.open(io.BytesIO(webp)) as opened:
        picture = opened.convert("RGB")
    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    if not grid or len(heat) != grid[0] * grid[1]:
        return picture
    values = np.asarray(heat, np.float64).reshape(grid) / 255
    colours = Image.fromarray(cividis(values)).resize(size, Image.Resampling.NEAREST)
    opacity = _OPACITY * (_FAINT + (1 - _FAINT) * np.sqrt(values)) * 255
    mask = Image.fromarray(opacity.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return Image.composite(colours, picture, mask)


def _frame_peak(canvas: Canvas, at: int, grid: tuple[int, int], tile: Image.Image, corner: tuple[float, float]) -> None:
    width, height = tile.width / SCALE, tile.height / SCALE
    x = corner[0] + (_TILE - width) / 2 + (at % grid[1]) * width / grid[1]
    y = corner[1] + (_TILE - height) / 2 + (at // grid[1]) * height / grid[0]
    canvas.frame((x, y, x + width / grid[1], y + height / grid[0]), (0, 0, 0), 1)
    canvas.frame((x + 0.5, y + 0.5, x + width / grid[1] - 0.5, y + height / grid[0] - 0.5), _PAPER, 2)


def _draw_texts(canvas: Canvas, tables: dict[str, pl.DataFrame], examples: pl.DataFrame, *, top: int) -> None:
    largest = max(float(tables["cards"]["scale"][0]), 1e-12)
    for number, row in enumerate(examples.iter_rows(named=True)):
        y = top + number * 27
        canvas.text((_MARGIN, y), sig3(row["act"]), size=11, bold=True)
        key = tables["inputs"]["key"][row["input"]]
        canvas.text((WIDTH - _MARGIN, y + 1), _short(key), size=9.5, fill=_DIM, width=120, end=True)
        if row["context"] < 0:
            canvas.text((_MARGIN + 56, y), "text not stored", size=11, fill=_DIM)
            continue
        tokens = tables["contexts"]["tokens"][row["context"]].to_list()
        values = dict(zip(row["map_at"], row["map"], strict=True))
        _draw_tokens(canvas, tokens, values, row["at"], largest, (_MARGIN + 56, y), WIDTH - 2 * _MARGIN - 196)


_LISTS = (
    (False, False, "Writes for"),
    (False, True, "Writes against"),
    (True, False, "Reads"),
    (True, True, "Reads against"),
)
FOR, AGAINST = (141, 184, 255), (255, 176, 31)
"""Blue for, orange against; 0 is the paper."""


def _draw_promoted(canvas: Canvas, promoted: pl.DataFrame, *, top: float) -> None:
    used = canvas.text((_MARGIN, top), "Promoted and suppressed tokens", size=12, bold=True)
    said = f"logits per unit of activation; writes: decoder row, reads: encoder column; coloured: p ≤ {CHANCE}"
    canvas.text((_MARGIN + used + 14, top + 1.5), said, size=10, fill=_DIM)
    width = (WIDTH - 2 * _MARGIN) / 4
    for place, (reads, suppressed, title) in enumerate(_LISTS):
        x = _MARGIN + place * width
        side = promoted.filter(pl.col("reads") == reads)
        largest = float(side["logit"].abs().max() or 1)  # pyright: ignore[reportArgumentType]
        canvas.text((x, top + 22), title, size=10, fill=_DIM)
        for row in side.filter(pl.col("suppressed") == suppressed).iter_rows(named=True):
            y, room = top + 38 + 17 * row["rank"], width - 24
            share = abs(row["logit"]) / largest
            if row["p"] <= CHANCE:
                canvas.box((x, y - 1, x + room * share, y + 14), AGAINST if suppressed else FOR)
            number = canvas.text((x + room - 3, y), sig3(row["logit"]), size=10, end=True)
            canvas.text((x + 4, y), row["token"], size=10.5, width=room - number - 14)


def _draw_tokens(
    canvas: Canvas,
    tokens: list[str],
    values: dict[int, float],
    peak: int,
    largest: float,
    at: tuple[float, float],
    room: float,
) -> None:
    """One line of tokens around the peak, from as far left as leaves the peak in view."""
    font, bold = _font(11 * SCALE, False), _font(11 * SCALE, True)
    shown = [visible_text(token)[:40] for token in tokens]
    lengths = [(bold if i == peak else font).getlength(text) / SCALE for i, text in enumerate(shown)]
    first = max(peak, 0)
    while first > 0 and sum(lengths[first - 1 : peak + 1]) < room * 0.62:
        first -= 1
    x, y = at
    for number in range(first, len(shown)):
        if x + lengths[number] > at[0] + room:
            canvas.text((x + 2, y), "…", size=11, fill=_DIM)
            break
        share = min(1.0, values.get(number, 0.0) / largest)
        if share > 0:
            mix = 0.12 + 0.88 * share
            colour = tuple(round(p + (h - p) * mix) for p, h in zip(_PAPER, _HOT, strict=True))
            canvas.box((x, y - 2, x + lengths[number], y + 16), (colour[0], colour[1], colour[2]))
        canvas.text((x, y), shown[number], size=11, bold=number == peak)
        if number == peak:
            canvas.box((x, y + 15, x + lengths[number], y + 16.5), _INK)
        x += lengths[number]
