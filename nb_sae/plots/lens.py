"""Figures of what an image tower holds, block by block: identifiability and heat maps over patches."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from nb_sae.attribution.schema import IDENTIFIABILITY
from nb_sae.errors import WidgetError
from nb_sae.plots.drawing import BASELINE, PALETTE, dressed, require

_CALLED = {"cls": "answer (CLS)", "patches": "patches"}
_CELL = 110
"""Pixels of one heat map's side."""


def identifiability(frame: pl.DataFrame) -> go.Figure:
    """How well each block tells the class of an input, from `VisionLens.identifiability`, above what random texts give.

    The band is what 95 % of single draws of random texts give for these inputs. The second panel is the share of tokens
    whose own-class logit grew from the block before; 0.5 is neither way.
    """
    require(frame, tuple(IDENTIFIABILITY), "identifiability(frame)", "lens.identifiability(labels)")
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12, column_widths=[0.6, 0.4])
    for number, tokens in enumerate(("cls", "patches")):
        line = frame.filter(pl.col("tokens") == tokens).sort("layer")
        if not line.height:
            continue
        x, colour = line["layer"].to_list(), PALETTE[number]
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*line["null_high"], *line["null_low"].reverse()],
            mode="lines",
            fill="toself",
            fillcolor=f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, 0.15)",
            line={"width": 0},
            hoverinfo="skip",
            name=f"random texts, {_CALLED[tokens]}",
            legendgroup=tokens,
            showlegend=False,
        )
        for column, values in enumerate(("identifiability", "change")):
            figure.add_scatter(
                x=x,
                y=line[values].to_list(),
                name=_CALLED[tokens],
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 8, "symbol": ("circle", "square")[number]},
                text=[escape(site) for site in line["site"]],
                hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
                legendgroup=tokens,
                showlegend=column == 0,
                row=1,
                col=column + 1,
            )
    figure.add_hline(y=0.5, line={"color": BASELINE, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(title="block", dtick=max(1, frame["layer"].n_unique() // 12))
    figure.update_yaxes(title="identifiability of the class", col=1)
    figure.update_yaxes(title="share with a larger logit", range=[0, 1], col=2)
    rows = frame.filter(pl.col("tokens") == "cls")["rows"]
    return dressed(figure, f"Class identifiability by block, {rows[0] if rows.len() else 0:,} inputs")


def patch_maps(frame: pl.DataFrame, *, inputs: Sequence[int] | None = None, text: str | None = None) -> go.Figure:
    """Heat maps over the patches: a row per picture, a column per block.

    Args:
        frame: `ConceptFlow.frame` (activations of a chain of latents), or what `VisionLens.patches(layer)` gives, of
            several blocks if they are joined (logits of a text).
        inputs: Only these pictures, by input_id. None: four, of a chain those where it is most active along the blocks.
        text: Of a lens: which text; None: the first.

    Colours are comparable inside a column: of a chain every latent has its own unit.
    """
    require(frame, ("input_id", "site", "layer", "rows", "columns", "map"), "patch_maps(frame)", "ConceptFlow.frame")
    shown = frame.drop_nulls("map")
    if "text" in frame.columns and frame.height:
        shown = shown.filter(pl.col("text") == (text if text is not None else frame["text"][0]))
    wanted = _four_of(shown) if inputs is None else list(inputs)
    shown = shown.filter(pl.col("input_id").is_in(wanted))
    if not shown.height:
        raise WidgetError("There is no map of these pictures and this text. Choose input_ids and a text of the frame.")
    order = [name for name in ("step", "layer") if name in shown.columns]
    columns = shown.sort(order).select("site", *order[:1]).unique(maintain_order=True)
    titles = [_title(shown, site) for site in columns["site"]]
    figure = make_subplots(
        rows=len(wanted), cols=columns.height, column_titles=titles, horizontal_spacing=0.02, vertical_spacing=0.03
    )
    for column, site in enumerate(columns["site"]):
        of_site = shown.filter(pl.col("site") == site)
        values = of_site["map"].explode().drop_nulls().to_numpy()
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        for line in of_site.iter_rows(named=True):
            grid = [line["map"][i * line["columns"] : (i + 1) * line["columns"]] for i in range(line["rows"])]
            figure.add_heatmap(
                z=grid,
                zmin=low,
                zmax=high if high != low else low + 1,  # an empty map is dark, not half bright
                colorscale="Viridis",
                showscale=False,
                hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>",
                row=wanted.index(line["input_id"]) + 1,
                col=column + 1,
            )
    dressed(figure, "Where it is active, by block" if "latent" in frame.columns else "What patches say, by block")
    figure.update_xaxes(showticklabels=False, showgrid=False, constrain="domain")
    figure.update_yaxes(showticklabels=False, showgrid=False, autorange="reversed", constrain="domain")
    for place, axis in enumerate(figure.select_yaxes()):
        axis.scaleanchor = f"x{place + 1 if place else ''}"  # square patches
    for row, number in enumerate(wanted):
        figure.update_yaxes(title=f"input {number}", row=row + 1, col=1)
    figure.update_layout(height=110 + _CELL * len(wanted), margin={"t": 76})
    return figure


def _four_of(frame: pl.DataFrame) -> list[int]:
    """The pictures to show where none are asked for, ascending."""
    if "latent" not in frame.columns:
        return frame["input_id"].unique().sort().to_list()[:4]
    peak, most = pl.col("map").list.max(), pl.col("map").list.max().max().over("site")
    share = frame.select("input_id", share=pl.when(most > 0).then(peak / most))
    mean = share.group_by("input_id").agg(pl.col("share").mean())
    strongest = mean.sort("share", "input_id", descending=[True, False], nulls_last=True)
    return sorted(strongest["input_id"].to_list()[:4])


def _title(frame: pl.DataFrame, site: str) -> str:
    line = frame.filter(pl.col("site") == site).row(0, named=True)
    lane = line.get("lane", "residual")
    place = f"block {line['layer']}" if lane == "residual" else f"{lane} {line['layer']}"
    if "latent" not in line:
        return place
    name = f"<br>{escape(line['name'])}" if line["name"] else ""
    return f"{place}: {line['latent']}{name}"
