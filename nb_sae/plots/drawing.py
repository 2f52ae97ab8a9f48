"""One look for every figure: colours, axes, what a frame must hold."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
import polars as pl

from nb_sae.errors import WidgetError

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe & Ito 2008: tells apart with every common colour vision."""
BASELINE = "#7f7f7f"
GRID = "rgba(128,136,144,0.25)"


def dressed(figure: go.Figure, title: str) -> go.Figure:
    """One look for every figure: no background of its own, so that it sits on a light or a dark page."""
    figure.update_layout(
        title={"text": title, "x": 0.0, "xanchor": "left", "font": {"size": 16}},
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#808890"},
        height=380,
        margin={"l": 64, "r": 16, "t": 48, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    figure.update_xaxes(gridcolor=GRID, linecolor="rgba(128,136,144,0.6)", zeroline=False)
    figure.update_yaxes(gridcolor=GRID, linecolor="rgba(128,136,144,0.6)", zeroline=False)
    return figure


def legend_below(figure: go.Figure) -> go.Figure:
    """The legend under the axis, where a title and a legend above would share a line."""
    return figure.update_layout(height=430, legend={"y": -0.22, "yanchor": "top", "x": 0, "xanchor": "left"})


def log_axis(values: pl.Series) -> dict[str, Any]:
    """A logarithmic axis with whole labels at 1, 2 and 5 of each decade, or 1 alone where they are many; plotly's own
    show the digit alone. The values are above 0 and finite.
    """
    low, high = (math.floor(math.log10(float(value))) for value in (values.min(), values.max()))  # pyright: ignore[reportArgumentType]
    places = [
        digit * 10.0**power for power in range(low, high + 1) for digit in ((1, 2, 5) if high - low < 4 else (1,))
    ]
    return {"type": "log", "tickvals": places, "ticktext": [f"{place:g}" for place in places]}


def require(frame: pl.DataFrame, columns: tuple[str, ...], what: str, source: str) -> None:
    """Refuse what is no frame or lacks these columns; `source` is what gives a right one. Raises `WidgetError`."""
    if not isinstance(frame, pl.DataFrame):
        raise WidgetError(f"{what} was given a {type(frame).__name__}; expected the frame {source}.")
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise WidgetError(f"{what} was given a frame without {', '.join(missing)}; expected {source}.")
