"""Figures of attention heads: which look where, and which latents belong to which."""

from __future__ import annotations

from html import escape
from typing import Literal

import plotly.graph_objects as go
import polars as pl

from nb_sae.attribution.schema import HEAD_SCORES, HEAD_WEIGHTS, INDUCTION
from nb_sae.errors import WidgetError
from nb_sae.plots.drawing import BASELINE, PALETTE, dressed, legend_below, require

SHOWN_LATENTS = 40
SHOWN_HEADS = 6


def head_scores(frame: pl.DataFrame, score: Literal["induction", "previous", "first"] = "induction") -> go.Figure:
    """Heat map of one score, layers by heads, from `ns.head_scores(…)`; the title holds what an even head scores.

    Raises:
        WidgetError: another frame, or no such score.
    """
    require(frame, tuple(HEAD_SCORES), "head_scores(frame)", "ns.head_scores(model)")
    if score not in ("induction", "previous", "first"):
        raise WidgetError(f"score={score!r} is not known. Use 'induction', 'previous' or 'first'.")
    table = frame.sort("layer", "head").pivot("head", index="layer", values=score)
    figure = go.Figure(
        go.Heatmap(
            z=table.drop("layer").to_numpy() if table.width > 1 else [],
            x=[f"head {head}" for head in table.columns[1:]],
            y=[f"block {layer}" for layer in table["layer"]],
            zmin=0,
            zmax=1,
            colorscale="Blues",
            colorbar={"title": "attention"},
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )
    # Even attention rests on the first token as much as on the token before.
    null = frame["induction_null" if score == "induction" else "previous_null"].mean()
    what = {"induction": "Induction", "previous": "Attention to the token before", "first": "Attention to the first"}
    return dressed(figure, f"{what[score]} by head" + (f"; an even head: {null:.3f}" if frame.height else ""))


def head_weights(frame: pl.DataFrame) -> go.Figure:
    """Heat map of the shares of heads, latents by heads, from `ns.head_weights(…)`.

    Of many latents the 40 whose largest share is farthest above its null are shown, grouped by that head.
    """
    require(frame, tuple(HEAD_WEIGHTS), "head_weights(frame)", "ns.head_weights(model, dictionary)")
    over = frame.with_columns(over=pl.col("share") - pl.col("null"))
    best = over.group_by("latent").agg(
        pl.col("over").max().alias("most"), pl.col("head").get(pl.col("over").arg_max()).alias("own")
    )
    shown = best.sort("most", "latent", descending=[True, False]).head(SHOWN_LATENTS).sort("own", "latent")
    table = shown.join(frame.sort("head").pivot("head", index="latent", values="share"), on="latent", how="left")
    values = table.drop("latent", "most", "own")
    figure = go.Figure(
        go.Heatmap(
            z=values.to_numpy() if values.width else [],
            x=[f"head {head}" for head in values.columns],
            y=[f"latent {latent}" for latent in table["latent"]],
            zmin=0,
            colorscale="Blues",
            colorbar={"title": "share"},
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_yaxes(type="category")
    least, most = (f"{one:.2f}" for one in (frame["null"].min() or 0.0, frame["null"].max() or 0.0))
    span = least if least == most else f"{least} to {most}"
    count = f"{shown.height} of {best.height:,} latents" if best.height > shown.height else f"{best.height} latents"
    figure = dressed(figure, f"What each head gives to {count}; a random latent: {span}")
    return figure.update_layout(height=140 + 16 * max(shown.height, 12))


def induction_curve(frame: pl.DataFrame) -> go.Figure:
    """Induction by the number of repeated tokens, from `ns.induction_curve(…)`: six heads and the null."""
    require(frame, tuple(INDUCTION), "induction_curve(frame)", "ns.induction_curve(model)")
    figure = go.Figure()
    by = ["layer", "head"]
    best = frame.group_by(by).agg(pl.col("induction").max()).sort("induction", *by, descending=[True, False, False])
    for number, (layer, head) in enumerate(best.head(SHOWN_HEADS).select(by).iter_rows()):
        line = frame.filter((pl.col("layer") == layer) & (pl.col("head") == head)).sort("prefix")
        figure.add_scatter(
            x=line["prefix"].to_list(), y=line["induction"].to_list(), mode="lines+markers",
            name=f"{layer}.{head}", line={"color": PALETTE[number % len(PALETTE)]},
            text=[escape(site) for site in line["site"]],
            hovertemplate="%{text}, prefix %{x}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
    null = frame.group_by("prefix").agg(pl.col("null").mean()).sort("prefix")
    figure.add_scatter(
        x=null["prefix"].to_list(), y=null["null"].to_list(), name="even head", mode="lines",
        line={"color": BASELINE, "dash": "dash"},
    )  # fmt: skip
    figure.update_xaxes(title="tokens that are repeated", dtick=1)
    figure.update_yaxes(title="attention to what comes next", range=[0, 1.02])
    return legend_below(dressed(figure, "Induction by the length of what is repeated (block.head)"))
