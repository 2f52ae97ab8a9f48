"""Small static figures for docs: panels of lines on log–log axes, as one SVG that reads in light and in dark.

Nothing is needed to make or to see them: no browser, no script in the file, no fonts of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

LIGHT = ("#8a8f98", "#c2570c", "#1d5fd1", "#0b7a4b", "#8b2fa8")
DARK = ("#9aa1ab", "#f0883e", "#6ea8fe", "#3fb97f", "#c98be0")
"""One colour per line, in the order of the lines; dashes and markers tell them apart without colour."""
DASHES = ("2 3", "6 3", "none", "8 2 2 2", "4 2")
WIDTH, HEIGHT = 264, 214
LEFT, RIGHT, TOP, BOTTOM = 50, 60, 30, 40
LABEL_GAP = 12


@dataclass(frozen=True)
class Line:
    """One curve: `y` at `x`, both above 0."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes; lines with one label have one colour in all panels."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class _Scale:
    """Log axis: numbers to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.stop - self.start)


def write_panels(path: Path, panels: Sequence[Panel], *, x: str, y: str, title: str, columns: int = 3) -> None:
    """Write the panels in rows of `columns`, a legend above, the same axes' names for all.

    Raises:
        ValueError: no panel, a line without points, or a number that is not above 0.
    """
    if not panels or not all(panel.lines for panel in panels):
        raise ValueError("Nothing to draw: give at least one panel, and each at least one line.")
    for panel in panels:
        for line in panel.lines:
            if not line.x or len(line.x) != len(line.y) or min(*line.x, *line.y) <= 0:
                raise ValueError(f"{line.label!r} of {panel.title!r} needs as many x as y, all above 0 for log axes.")
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    columns = min(columns, len(panels))
    width, height = max(columns * WIDTH, 440), 46 + math.ceil(len(panels) / columns) * HEIGHT
    body = [_legend(labels)]
    for number, panel in enumerate(panels):
        left, top = number % columns * WIDTH, 46 + number // columns * HEIGHT
        body.append(f'<g transform="translate({left} {top})">{_panel(panel, labels, x=x, y=y)}</g>')
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="t">\n<title id="t">{escape(title)}</title>\n{_style(len(labels))}\n'
        f'<rect class="paper" width="{width}" height="{height}"/>\n'
        f'<text class="head" x="12" y="18">{escape(title)}</text>\n' + "\n".join(body) + "\n</svg>\n",
        encoding="utf-8",
    )


def _style(lines: int) -> str:
    def colours(palette: Sequence[str]) -> str:
        picked = enumerate(palette[number % len(palette)] for number in range(lines))
        return "".join(f".l{number}{{stroke:{one}}}.f{number}{{fill:{one}}}" for number, one in picked)

    dashes = "".join(f".l{number}{{stroke-dasharray:{DASHES[number % len(DASHES)]}}}" for number in range(lines))
    return (
        "<style>text{font:11px system-ui,sans-serif;fill:#24292f}.head{font-size:13px;font-weight:600}"
        ".small{font-size:10px}.paper{fill:#ffffff}.grid{stroke:#d8dee4;stroke-width:1}"
        f".line{{fill:none;stroke-width:2}}text.label{{font-size:10px}}{dashes}{colours(LIGHT)}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.paper{fill:#0d1117}.grid{stroke:#30363d}"
        f"{colours(DARK)}}}</style>"
    )


def _legend(labels: Sequence[str]) -> str:
    out, left = [], 12.0
    for number, label in enumerate(labels):
        out.append(
            f'<path class="line l{number}" d="M{left:.0f} 34h24"/>{_marker(left + 12, 34, number)}'
            f'<text x="{left + 30:.0f}" y="38">{escape(label)}</text>'
        )
        left += 50 + 6.2 * len(label)
    return "".join(out)


def _panel(panel: Panel, labels: Sequence[str], *, x: str, y: str) -> str:
    xs = [one for line in panel.lines for one in line.x]
    ys = [one for line in panel.lines for one in line.y]
    across = _Scale(min(xs), max(xs) if max(xs) > min(xs) else 2 * min(xs), LEFT, WIDTH - RIGHT)
    up = _Scale(min(ys) / 1.15, max(ys) * 1.15, HEIGHT - BOTTOM, TOP)
    out = [f'<text x="12" y="16">{escape(panel.title)}</text>']
    out += [
        f'<path class="grid" d="M{LEFT} {up(one):.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="small" text-anchor="end" x="{LEFT - 6}" y="{up(one) + 3:.1f}">{one:g}</text>'
        for one in _ticks(up.low, up.high)
    ]
    out += [
        f'<text class="small" text-anchor="middle" x="{across(one):.1f}" y="{HEIGHT - BOTTOM + 15}">{one:g}</text>'
        for one in sorted(set(xs))
    ]
    middle, centre = (TOP + HEIGHT - BOTTOM) / 2, (LEFT + WIDTH - RIGHT) / 2
    out.append(
        f'<text class="small" text-anchor="middle" x="{centre}" y="{HEIGHT - 10}">{escape(x)}</text>'
        f'<text class="small" text-anchor="middle" transform="translate(14 {middle}) rotate(-90)">{escape(y)}</text>'
    )
    ends = _apart([up(line.y[-1]) for line in panel.lines], HEIGHT - BOTTOM - 3)
    for line, end in zip(panel.lines, ends, strict=True):
        number = labels.index(line.label)
        points = [(across(a), up(b)) for a, b in zip(line.x, line.y, strict=True)]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        out.append(f'<path class="line l{number}" d="M{path}"/>' + "".join(_marker(*one, number) for one in points))
        out.append(
            f'<text class="label f{number}" x="{points[-1][0] + 8:.1f}" y="{end + 3:.1f}">{line.y[-1]:.3g}</text>'
        )
    return "".join(out)


def _marker(x: float, y: float, number: int) -> str:
    """Circle, square or diamond."""
    if number % 3 == 0:
        return f'<circle class="f{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if number % 3 == 2 else ""
    return f'<rect class="f{number}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"{turn}/>'


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the axis; only powers of ten where these are enough."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**power for power in powers if low <= 10.0**power <= high]
    return tens if len(tens) > 3 else [f * 10.0**p for p in powers for f in (1, 2, 5) if low <= f * 10.0**p <= high]


def _apart(places: Sequence[float], lowest: float) -> list[float]:
    """The same places, moved where one label would lie on another, all above `lowest`."""
    moved, last = list(places), -math.inf
    order = sorted(range(len(places)), key=lambda one: places[one])
    for index in order:
        moved[index] = last = max(places[index], last + LABEL_GAP)
    last = lowest + LABEL_GAP
    for index in reversed(order):
        moved[index] = last = min(moved[index], last - LABEL_GAP)
    return moved
