"""Figures of concepts: names beside their null, steering beside its controls."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from nb_sae.concepts.schema import STEERING
from nb_sae.plots.drawing import BASELINE, PALETTE, dressed, require


def naming(names: pl.DataFrame, *, null: pl.DataFrame | None = None) -> go.Figure:
    """How near latents are to their names: share with at least a cosine, from `names.frame`, beside `names.null`.

    Where the line of the latents lies no further right than that of the null, the names say nothing. A point is a
    latent with an accepted name; to hover over it tells which.
    """
    require(names, ("latent", "name", "cosine", "accepted"), "naming(names)", "names.frame")
    ordered = names.drop_nulls("cosine").sort("cosine", descending=True).with_row_index("place", offset=1)
    ordered = ordered.with_columns(share=pl.col("place") / max(1, ordered.height))
    accepted = ordered.filter("accepted")
    figure = go.Figure()
    figure.add_scatter(
        x=ordered["cosine"].to_list(),
        y=ordered["share"].to_list(),
        name="latents",
        mode="lines",
        line={"color": PALETTE[0], "width": 2.5},
    )
    figure.add_scatter(
        x=accepted["cosine"].to_list(),
        y=accepted["share"].to_list(),
        name="accepted",
        mode="markers",
        marker={"color": PALETTE[1], "size": 6},
        text=[f"latent {latent}: {name}" for latent, name in accepted.select("latent", "name").iter_rows()],
        hovertemplate="%{text}<br>cosine %{x:.3f}<extra></extra>",
    )
    if null is not None:
        require(null, ("quantile", "cosine"), "null", "names.null")
        figure.add_scatter(
            x=null["cosine"].to_list(),
            y=(1 - null["quantile"]).to_list(),
            name="null",
            mode="lines",
            line={"color": BASELINE, "width": 2, "dash": "dash"},
        )
    figure.update_xaxes(title="cosine of the name")
    figure.update_yaxes(title="share with at least this cosine")
    return dressed(figure, f"Names of {ordered.height:,} latents, {accepted.height:,} accepted")


def steering(curve: pl.DataFrame) -> go.Figure:
    """Probability of each prompt against strength with its band over rows, and the cosine to the rows as they were.

    Args:
        curve: `steering_curve(…).frame`. The grey band holds the curves of all controls for the first prompt: what
            steering a latent chosen by chance does.
    """
    require(curve, tuple(STEERING), "steering(curve)", "nb_sae.steering_curve(…).frame")
    figure = make_subplots(rows=1, cols=2, column_widths=[0.64, 0.36], horizontal_spacing=0.1)
    prompts = curve.filter(pl.col("measure") == "probability")["prompt"].unique(maintain_order=True).to_list()
    own = curve.filter(pl.col("kind") == "latent").sort("strength")
    other = curve.filter(pl.col("kind") == "control")
    for column, measure in ((1, "probability"), (2, "cosine")):
        wanted = pl.col("measure") == measure
        shown = other.filter(wanted & ((pl.col("prompt") == prompts[0]) if column == 1 else pl.lit(True)))
        if shown.height:
            band = shown.group_by("strength").agg(low=pl.col("mean").min(), high=pl.col("mean").max()).sort("strength")
            latents = shown["latent"].n_unique()
            _add_band(figure, band, BASELINE, f"{latents} controls: {prompts[0]}", column, legend=column == 1)
    for index, prompt in enumerate(prompts):
        colour = PALETTE[index % len(PALETTE)]
        line = own.filter((pl.col("prompt") == prompt) & (pl.col("measure") == "probability"))
        _add_band(figure, line, colour, None, 1, legend=False)
        _add_curve(figure, line, colour, prompt, 1)
    cosine = own.filter(pl.col("measure") == "cosine")
    _add_band(figure, cosine, PALETTE[0], None, 2, legend=False)
    _add_curve(figure, cosine, PALETTE[0], None, 2)
    figure.update_xaxes(title="strength")
    figure.update_yaxes(title="probability, mean over rows", range=[0, 1], row=1, col=1)
    figure.update_yaxes(title="cosine to the row as it was", row=1, col=2)
    rows = int(own["rows"][0]) if own.height else 0
    latent = int(own["latent"][0]) if own.height else 0
    dressed(figure, f"Steering latent {latent}, {rows:,} rows, bands of 95 %")
    figure.update_layout(height=440, legend={"x": 0, "xanchor": "left", "y": -0.24, "yanchor": "top"})
    return figure


def _add_curve(figure: go.Figure, line: pl.DataFrame, colour: str, name: str | None, column: int) -> None:
    figure.add_scatter(
        x=line["strength"].to_list(),
        y=line["mean"].to_list(),
        name=None if name is None else escape(name),
        showlegend=name is not None,
        mode="lines+markers",
        line={"color": colour, "width": 2.5},
        row=1,
        col=column,
    )


def _add_band(
    figure: go.Figure, band: pl.DataFrame, colour: str, name: str | None, column: int, *, legend: bool
) -> None:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    strengths = band["strength"].to_list()
    figure.add_scatter(
        x=strengths + strengths[::-1],
        y=band["high"].to_list() + band["low"].to_list()[::-1],
        name=None if name is None else escape(name),
        showlegend=legend,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        hoverinfo="skip",
        row=1,
        col=column,
    )
