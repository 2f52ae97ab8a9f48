"""Bars and lines for docs, as SVG written by hand, which every viewer shows without a network (log–log: figure.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

INK, GREY, LIGHT = "#222222", "#8a8a8a", "#e4e4e4"
COLOURS = ("#1f77b4", "#b0662f", "#8a8a8a")
FONT = 'font-family="system-ui, sans-serif" font-size="12"'
Panel = tuple[str, str, Mapping[str, Sequence[tuple[float, float]]], bool]
"""Title, name of the x axis, a line of (x, y) by name, and whether both axes are logarithmic."""


def lines(path: Path, title: str, panels: Sequence[Panel], *, unit: str) -> None:
    """Panels side by side, one line per name; the y axis starts at 0 where it is not logarithmic."""
    width, height = 380, 320
    parts = [_text(16, 22, title, size=15)]
    for number, (name, x_name, series, logarithmic) in enumerate(panels):
        parts += _panel(number * width, 36, (width, height), name, x_name, unit, series, logarithmic)
    for number, name in enumerate(panels[0][2]):
        parts.append(_text(70 + 110 * number, 36 + height + 16, f"— {name}", colour=COLOURS[number]))
    _write(path, width * len(panels), 36 + height + 30, title, parts)


def bars(path: Path, title: str, values: Mapping[str, float], *, marked: str, unit: str) -> None:
    """One horizontal bar per name, from 0; names that begin with `marked` have the colour."""
    left, wide, step, top = 280, 420, 22, 44
    largest = max(values.values())
    parts = [_text(16, 22, f"{title}, {unit}", size=15)]
    for number, (name, value) in enumerate(values.items()):
        y, long = top + number * step, value / largest * wide
        colour = COLOURS[0] if name.startswith(marked) else GREY
        parts.append(_text(left - 8, y + 13, name, anchor="end"))
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{long:.1f}" height="{step - 6}" fill="{colour}"/>')
        parts.append(_text(left + long + 6, y + 13, _short(value)))
    _write(path, left + wide + 70, top + len(values) * step + 12, title, parts)


def _panel(
    left: float,
    top: float,
    size: tuple[int, int],
    name: str,
    x_name: str,
    unit: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    logarithmic: bool,
) -> list[str]:
    wide, high = size[0] - 90, size[1] - 80
    x0, y0 = left + 62, top + 24 + high
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_at = _axis(min(xs), max(xs), x0, x0 + wide, logarithmic)
    y_at = _axis(min(ys) if logarithmic else 0.0, max(ys), y0, y0 - high, logarithmic)
    parts = [_text(x0, top + 10, name), _text(x0 + wide / 2, y0 + 38, x_name, anchor="middle")]
    parts.append(_text(x0 - 52, top + 10, unit, colour=GREY))
    for tick in _ticks(min(ys) if logarithmic else 0.0, max(ys), logarithmic):
        parts.append(f'<path d="M{x0} {y_at(tick):.1f}h{wide}" stroke="{LIGHT}"/>')
        parts.append(_text(x0 - 6, y_at(tick) + 4, _short(tick), anchor="end"))
    known = sorted(set(xs))
    shown = known[:: 2 if len(known) > 5 and logarithmic else 1]
    parts += [_text(x_at(x), y0 + 18, f"{x:,.0f}", anchor="middle") for x in shown]
    for colour, line in zip(COLOURS, series.values(), strict=False):
        path = "L".join(f"{x_at(x):.1f} {y_at(y):.1f}" for x, y in line)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
    return parts


def _axis(low: float, high: float, start: float, stop: float, logarithmic: bool):
    """Where a value lies, in pixels."""
    turn = math.log10 if logarithmic else float
    span = (turn(high) - turn(low)) or 1.0
    return lambda value: start + (turn(value) - turn(low)) / span * (stop - start)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [one * 10**power for power in powers for one in (1, 2, 5) if low <= one * 10**power <= high]
    step = 10 ** math.floor(math.log10(high))
    step = next(one for one in (step / 5, step / 2, step, 2 * step) if high / one <= 6)
    return [number * step for number in range(int(high / step) + 1)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK, size: int = 12) -> str:
    font = FONT.replace("12", str(size))
    return f'<text x="{x:.1f}" y="{y:.1f}" {font} fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'


def _write(path: Path, width: float, height: float, title: str, parts: Sequence[str]) -> None:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">'
    ground = f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>'
    path.write_text("\n".join([head, ground, *parts, "</svg>"]) + "\n")
