"""The static picture of the training monitor: where each run stands, and its FVU over the rows that it saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import ImageDraw

from nb_sae.widgets.picture import SCALE, Canvas
from nb_sae.widgets.wire import sig3

WIDTH = 900
_MARGIN, _CHART, _ROW = 20, 220, 34
_INK, _DIM, _LINE = (27, 31, 39), (98, 103, 112), (221, 224, 229)
COLOURS = ((31, 95, 191), (200, 105, 0), (0, 122, 110), (130, 80, 160), (110, 110, 40), (60, 60, 60))
"""Blue, orange, teal, violet, olive, grey: told apart with red-green deficiency, and by their order."""
_SHOWN_RUNS = 6


def draw_monitor(title: str, runs: Sequence[Any]) -> bytes:
    """PNG, below 150 kB."""
    shown = list(runs)[:_SHOWN_RUNS]
    top = 46 + _ROW * max(1, len(shown))
    canvas = Canvas(WIDTH, top + _CHART + 60)
    canvas.text((_MARGIN, 13), title, size=15, bold=True, width=WIDTH - 2 * _MARGIN)
    if not shown:
        canvas.text((_MARGIN, 46), "No run has begun.", size=12, fill=_DIM)
    for at, run in enumerate(shown):
        _draw_run(canvas, run, 44 + at * _ROW, COLOURS[at % len(COLOURS)], alone=len(runs) == 1)
    _draw_chart(canvas, shown, top)
    said = "Static picture. The live dashboard needs a browser with scripts."
    if len(runs) > len(shown):
        said = f"{len(runs) - len(shown)} more runs are not drawn. " + said
    canvas.text((_MARGIN, canvas.height - 24), said, size=10, fill=_DIM)
    return canvas.png()


def _draw_run(canvas: Canvas, run: Any, y: float, colour: tuple[int, int, int], *, alone: bool) -> None:
    """One run in two lines; `alone`, its budgets have the colours of their curves, else it has that of its own."""
    if not alone:
        canvas.box((_MARGIN, y + 4, _MARGIN + 14, y + 9), colour)
    canvas.text((_MARGIN + 22, y), run.name, size=12, bold=True, width=300)
    step, steps = int(run.facts.get("step", run.points.last.get("step", 0))), run.facts.get("steps")
    of = f" of {steps:,}" if steps else ""
    state = f"{run.state}, step {step:,}{of}" + (f"; {run.why}" if run.why else "")
    canvas.text((_MARGIN + 22, y + 16), state, size=10.5, fill=_DIM, width=430)
    levels = [(f"k={k}" if k is not None else "FVU", fvu) for k, width, _, fvu in run.points.quality() if width is None]
    x = 480.0
    for place, (name, fvu) in enumerate(levels[:6]):
        if alone:
            canvas.box((x, y + 13, x + 40, y + 15), COLOURS[place % len(COLOURS)])
        canvas.text((x, y - 2), name, size=10, fill=_DIM)
        canvas.text((x, y + 16), sig3(fvu), size=12, bold=True)
        x += 66


def _draw_chart(canvas: Canvas, runs: Sequence[Any], top: float) -> None:
    """FVU of every budget of one run; of the largest budget of several."""
    canvas.text((_MARGIN, top), "FVU of the logged batches, log scale", size=11, bold=True)
    lines = []
    for at, run in enumerate(runs):
        frame = run.points.frame()
        names = [name for name in frame.columns if name.startswith("fvu")]
        for name in names if len(runs) == 1 else names[-1:]:
            values = frame[name].to_numpy().astype(float)
            good = np.isfinite(values) & (values > 0)
            if good.any():
                place = len(lines) if len(runs) == 1 else at
                lines.append((frame["step"].to_numpy()[good], values[good], COLOURS[place % len(COLOURS)]))
    left, right, upper, lower = _MARGIN + 46, WIDTH - _MARGIN, top + 24, top + _CHART
    canvas.box((left, lower, right, lower + 0.5), _DIM)
    if not lines:
        canvas.text((left, upper + 60), "No line of a log yet.", size=11, fill=_DIM)
        return
    low = math.log10(min(float(values.min()) for _, values, _ in lines))
    high = math.log10(max(float(values.max()) for _, values, _ in lines))
    low, high = low - 0.05, max(high, low + 0.1) + 0.05
    last = max(int(steps[-1]) for steps, _, _ in lines) or 1
    draw = ImageDraw.Draw(canvas.image)
    for steps, values, colour in lines:
        xs = left + steps / last * (right - left)
        ys = lower - (np.log10(values) - low) / (high - low) * (lower - upper)
        points = [(float(x) * SCALE, float(y) * SCALE) for x, y in zip(xs, ys, strict=True)]
        draw.line(points if len(points) > 1 else points * 2, fill=colour, width=2 * SCALE)
    for value, y in ((10**high, upper), (10 ** ((low + high) / 2), (upper + lower) / 2), (10**low, lower)):
        canvas.text((left - 6, y - 6), sig3(value), size=9.5, fill=_DIM, end=True)
        canvas.box((left, y, right, y + 0.5), _LINE)
    canvas.text((left, lower + 4), "0", size=9.5, fill=_DIM)
    canvas.text((right, lower + 4), f"step {last:,}", size=9.5, fill=_DIM, end=True)
