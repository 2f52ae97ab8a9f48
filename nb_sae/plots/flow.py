"""Figures of a flow: what becomes of features from layer to layer, with what chance gives beside it."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
import polars as pl

from nb_sae.errors import WidgetError
from nb_sae.flow.schema import ACTIVATION_GROUPS, DEACTIVATION, GROUPS, KINDS
from nb_sae.plots.drawing import BASELINE, PALETTE, dressed, legend_below, require

_KIND_COLOURS = dict(zip(KINDS, (PALETTE[0], PALETTE[4], PALETTE[1], BASELINE), strict=True))
_GROUP_COLOURS = dict(zip(GROUPS, (BASELINE, *PALETTE, "#f0e442"), strict=True))


def flow_kinds(latents: pl.DataFrame) -> go.Figure:
    """Share of translated, processed, newborn and unexplained latents of each residual site, from `flow.latents`."""
    require(latents, ("site", "layer", "kind"), "flow_kinds(latents)", "flow.latents")
    told = latents.drop_nulls("kind")
    if not told.height:
        raise WidgetError("flow_kinds: no latent has a kind. Give feature_flow two residual sites or more.")
    counted = told.group_by("site", "layer", "kind").len()
    counted = counted.with_columns(share=pl.col("len") / pl.col("len").sum().over("site")).sort("layer")
    figure = go.Figure()
    for kind in KINDS:
        part = counted.filter(pl.col("kind") == kind)
        figure.add_bar(
            x=part["layer"].to_list(),
            y=part["share"].to_list(),
            name=kind,
            marker_color=_KIND_COLOURS[kind],
            customdata=list(zip(map(escape, part["site"]), part["len"].to_list(), strict=True)),
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:,} latents, %{y:.1%}<extra>" + kind + "</extra>",
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="residual stream after block", dtick=1)
    figure.update_yaxes(title="share of its latents", range=[0, 1], tickformat=".0%")
    return legend_below(dressed(figure, f"Where the features of {counted['site'].n_unique()} layers come from"))


def flow_scores(latents: pl.DataFrame, nulls: pl.DataFrame | None = None, *, site: str | None = None) -> go.Figure:
    """s(R) of every latent of a residual site against the larger of s(M) and s(A); `nulls` draws the thresholds.

    Args:
        latents: `flow.latents`.
        nulls: `flow.nulls`.
        site: Which residual site; None: the last that has kinds.
    """
    columns = ("site", "latent", "kind", "layer", "s_residual", "s_attention", "s_mlp")
    require(latents, columns, "flow_scores(latents)", "flow.latents")
    told = latents.drop_nulls("kind")
    known = told["site"].unique(maintain_order=True).to_list()
    if not known or (site is not None and site not in known):
        raise WidgetError(f"flow_scores: no kinds for site {site!r}. Choose from: {', '.join(known) or 'none'}.")
    chosen: str = known[-1] if site is None else site
    part = told.filter(pl.col("site") == chosen).with_columns(module=pl.max_horizontal("s_attention", "s_mlp"))
    figure = go.Figure()
    for kind in KINDS:
        points = part.filter(pl.col("kind") == kind)
        figure.add_scatter(
            x=points["s_residual"].to_list(),
            y=points["module"].to_list(),
            text=[f"latent {latent}" for latent in points["latent"]],
            hovertemplate="%{text}<br>s(R) %{x:.3f}, module %{y:.3f}<extra>" + kind + "</extra>",
            name=kind,
            mode="markers",
            marker={"color": _KIND_COLOURS[kind], "size": 5, "opacity": 0.7},
        )
    if nulls is not None:
        require(nulls, ("source_site", "target_site", "threshold", "paper"), "nulls", "flow.nulls")
        for line in nulls.filter(pl.col("target_site") == chosen).iter_rows(named=True):
            before = latents.filter(pl.col("site") == line["source_site"])["lane"]
            draw = figure.add_vline if before.len() and before[0] == "residual" else figure.add_hline
            where = "x" if draw == figure.add_vline else "y"
            draw(**{where: line["threshold"]}, line={"color": BASELINE, "dash": "dash", "width": 1})
    figure.update_xaxes(title="s(R): cosine with the residual stream before")
    figure.update_yaxes(title="larger of s(M) and s(A)")
    return dressed(figure, f"{part.height:,} latents of {escape(chosen)}")


def activation_groups(groups: pl.DataFrame) -> go.Figure:
    """Which predecessors are active together with the latents of each site, beside what independence gives.

    Args:
        groups: `activation_groups(…).by_site()`, or its `.frame`, whose lines are then averaged over latents.
    """
    require(groups, ("site", "group", "share", "expected"), "activation_groups(groups)", "groups.by_site()")
    if "latent" in groups.columns:
        require(groups, tuple(ACTIVATION_GROUPS), "activation_groups(groups)", "groups.frame")
        groups = groups.group_by("site", "group", maintain_order=True).agg(pl.col("share", "expected").mean())
    sites = groups["site"].unique(maintain_order=True).to_list()
    # Two bars per site: what is seen, and what chance would show.
    axis = [[escape(site) for site in sites for _ in range(2)], ["seen", "chance"] * len(sites)]
    figure = go.Figure()
    for group in GROUPS:
        part = groups.filter(pl.col("group") == group)
        value = {site: (seen, chance) for site, seen, chance in part.select("site", "share", "expected").iter_rows()}
        figure.add_bar(
            x=axis,
            y=[number for site in sites for number in value.get(site, (None, None))],
            name=group,
            marker_color=_GROUP_COLOURS[group],
            hovertemplate="%{y:.1%}<extra>" + group + "</extra>",
        )
    figure.update_layout(barmode="stack")
    figure.update_yaxes(title="share of activations", range=[0, 1], tickformat=".0%")
    dressed(figure, "Matched predecessors that are active with a latent")
    # The names of sites take the room below, so that the legend stands above the bars.
    legend = {"y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"}
    return figure.update_layout(height=480, margin={"t": 100, "b": 120}, legend=legend)


def deactivation(frame: pl.DataFrame) -> go.Figure:
    """How much latents change when predecessors are scaled, one point each, from `deactivate(…).frame`.

    The grey points are the controls: unrelated latents of the same site, as often and as strongly active.
    """
    require(frame, tuple(DEACTIVATION), "deactivation(frame)", "deactivate(…).frame")
    measured = frame.drop_nulls("change")
    if not measured.height:
        raise WidgetError("deactivation: no latent was measured, see the `rows` of the frame. Give more inputs.")
    figure = go.Figure()
    rest = [how for how in measured["how"].unique(maintain_order=True) if how.startswith("control")]
    ways = [how for how in measured["how"].unique(maintain_order=True) if not how.startswith("control")]
    for number, how in enumerate([*ways, *rest]):
        part = measured.filter(pl.col("how") == how)
        if not part.height:
            continue
        colour = BASELINE if how in rest else PALETTE[number % len(PALETTE)]
        figure.add_box(
            x=[
                f"{escape(site)}<br>r = {factor:g}" for site, factor in part.select("source_site", "factor").iter_rows()
            ],
            y=part["change"].to_list(),
            text=[
                f"latent {mine} from {source}" for mine, source in part.select("latent", "source_latent").iter_rows()
            ],
            name=how,
            marker={"color": colour, "size": 5},
            boxpoints="all",
            jitter=0.4,
            pointpos=0,
            fillcolor="rgba(0,0,0,0)",
            line={"width": 1},
        )
    figure.add_hline(y=0, line={"color": BASELINE, "width": 1})
    figure.update_layout(boxmode="group")
    figure.update_yaxes(title="change of the activation, 1 − z′ / z")
    return dressed(figure, f"Effect on {measured['latent'].n_unique()} latents of scaling what they come from")
