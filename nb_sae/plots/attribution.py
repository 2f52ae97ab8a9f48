"""Figures of what an output owes to latents."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from nb_sae.plots.drawing import BASELINE, PALETTE, dressed, require


def faithfulness(frame: pl.DataFrame) -> go.Figure:
    """Metric recovered by the n strongest latents, beside n drawn at random, from `attribution.faithfulness(…)`."""
    columns = ("order", "latents", "recovered", "low", "high")
    require(frame, columns, "faithfulness(frame)", "attribution.faithfulness(…)")
    figure = go.Figure()
    chance = frame.filter(pl.col("order") == "random").sort("latents")
    if chance.height:
        count = chance["latents"].to_list()
        band = [*chance["low"].to_list(), *reversed(chance["high"].to_list())]
        figure.add_scatter(
            x=[*count, *reversed(count)], y=band, mode="lines", fill="toself", fillcolor="rgba(127,127,127,0.2)",
            line={"width": 0}, hoverinfo="skip", name="random, 95 %",
        )  # fmt: skip
        figure.add_scatter(
            x=count, y=chance["recovered"].to_list(), name="random order", mode="lines",
            line={"color": BASELINE, "dash": "dash"},
        )  # fmt: skip
    mine = frame.filter(pl.col("order") == "attribution").sort("latents")
    figure.add_scatter(
        x=mine["latents"].to_list(), y=mine["recovered"].to_list(), name="by attribution", mode="lines+markers",
        line={"color": PALETTE[0], "width": 2.5},
    )  # fmt: skip
    figure.update_xaxes(title="latents that are kept")
    figure.update_yaxes(title="metric recovered")
    return dressed(figure, "How few latents carry the output")
