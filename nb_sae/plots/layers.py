"""Figures across the layers of a model."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from nb_sae.flow.schema import LANES, LAYER_QUALITY
from nb_sae.plots.drawing import PALETTE, dressed, log_axis, require

_DASHES = dict(zip(LANES, ("solid", "dash", "dot", "solid"), strict=True))
_SYMBOLS = dict(zip(LANES, ("circle", "square", "diamond", "star"), strict=True))
_PANELS = (
    ("fvu", "FVU"),
    ("l0", "L0, latents per row"),
    ("loss_recovered", "output recovered"),
    ("dead", "dead, share of latents"),
)


def layer_quality(frame: pl.DataFrame) -> go.Figure:
    """FVU, L0, what the model keeps of its output and dead latents by layer and budget, from `ns.layer_quality`.

    A colour is a budget, in the order from the smallest; dash and marker tell residual stream, attention, MLP and
    embedding apart. What was not measured has no point.
    """
    require(frame, tuple(LAYER_QUALITY), "layer_quality(frame)", "nb_sae.layer_quality(…)")
    figure = make_subplots(rows=2, cols=2, horizontal_spacing=0.1, vertical_spacing=0.16)
    numbered = _with_place(frame)
    lines = numbered.partition_by("lane", "budget", maintain_order=True)
    for number, line in enumerate(sorted(lines, key=lambda one: (_lane_number(one), one["budget"][0]))):
        look = _look(line, several_lanes=numbered["lane"].n_unique() > 1)
        for place, (column, _) in enumerate(_PANELS):
            figure.add_scatter(
                x=line["place"].to_list(),
                y=line[column].to_list(),
                text=[escape(site) for site in line["site"]],
                hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
                legendgroup=str(number),
                showlegend=place == 0,
                row=place // 2 + 1,
                col=place % 2 + 1,
                **look,
            )
    order = numbered.sort("order")["place"].unique(maintain_order=True).to_list()
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    figure.update_xaxes(title="layer", row=2)
    for place, (column, title) in enumerate(_PANELS):
        known = frame[column].drop_nulls()
        known = known.filter(known.is_finite())
        logarithmic = column in ("fvu", "l0") and known.len() and bool((known > 0).all())
        axis: dict[str, Any] = log_axis(known) if logarithmic else {"type": "linear"}
        figure.update_yaxes(title=title, row=place // 2 + 1, col=place % 2 + 1, **axis)
    rows = frame["rows"].max() if frame.height else 0
    dressed(figure, f"{frame['site'].n_unique()} dictionaries by layer, up to {rows or 0:,} rows")
    figure.update_layout(height=620, legend={"x": 0, "xanchor": "left", "y": -0.1, "yanchor": "top"})
    return figure


def _with_place(frame: pl.DataFrame) -> pl.DataFrame:
    """Where each line is drawn: at the number of its layer, at "embedding", or under its own name."""
    embedding = (pl.col("lane") == "embedding").fill_null(False)
    budgets = frame["k"].unique().sort().to_list()
    return frame.with_columns(
        pl.when(embedding)
        .then(pl.lit("embedding"))
        .otherwise(pl.coalesce(pl.col("layer").cast(pl.String), pl.col("site").map_elements(escape, pl.String)))
        .alias("place"),
        pl.when(embedding).then(2**15).otherwise(pl.col("layer").cast(pl.Int64)).fill_null(2**16).alias("order"),
        pl.col("k").map_elements(budgets.index, pl.Int64, skip_nulls=False).alias("budget"),
    )


def _look(line: pl.DataFrame, *, several_lanes: bool) -> dict[str, Any]:
    lane, k = line["lane"][0], line["k"][0]
    name = "own rule" if k is None else f"k = {k}"
    return {
        "name": f"{name}, {lane or 'other'}" if several_lanes else name,
        "mode": "lines+markers",
        "line": {"color": PALETTE[line["budget"][0] % len(PALETTE)], "width": 2, "dash": _DASHES.get(lane, "solid")},
        "marker": {"size": 8, "symbol": _SYMBOLS.get(lane, "x")},
    }


def _lane_number(line: pl.DataFrame) -> int:
    lane = line["lane"][0]
    return LANES.index(lane) if lane in LANES else len(LANES)
