"""Figures of dictionaries: training, quality at each budget, density."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import polars as pl

from nb_sae.plots.drawing import BASELINE, PALETTE, dressed, require


def training(log: pl.DataFrame) -> go.Figure:
    """FVU of each budget against rows seen, from `Session.log`."""
    require(log, ("rows",), "training(log)", "session.log")
    budgets = [name for name in log.columns if name.startswith("fvu_k")]
    figure = go.Figure()
    for index, name in enumerate(budgets):
        figure.add_scatter(
            x=log["rows"].to_list(),
            y=log[name].to_list(),
            name=f"k = {name.removeprefix('fvu_k')}",
            mode="lines",
            line={"color": PALETTE[index % len(PALETTE)], "width": 2},
        )
    figure.update_yaxes(type="log", title="FVU of the batch")
    figure.update_xaxes(title="rows seen")
    return dressed(figure, "Fraction of variance unexplained while training")


def quality(quality: pl.DataFrame, *, pca: pl.DataFrame | None = None) -> go.Figure:
    """FVU at each budget k, from `analysis.quality`, beside PCA with as many components (`pca_quality`).

    A dictionary whose rule sets no k (null: a threshold, a gate, ReLU) is an open star at the L0 that was measured.
    """
    return pareto({"MSAE" if quality.height > 1 else "dictionary": quality}, pca=pca)


def pareto(qualities: pl.DataFrame | Mapping[str, pl.DataFrame], *, pca: pl.DataFrame | None = None) -> go.Figure:
    """FVU against the number of active latents, several dictionaries on the same rows.

    Args:
        qualities: What `nb_sae.compare([…], store)` gives; or frames with `k` and `fvu` by name, as `analysis.quality`
            (and with `l0`, where a k is null).
        pca: With frames by name: what `nb_sae.pca_quality` gives. `compare` brings PCA along.

    A dictionary at a rule of its own (BatchTopK, JumpReLU, ReLU) is an open star at the L0 that was measured.
    """
    if isinstance(qualities, pl.DataFrame):
        return _comparison(qualities)
    figure, ks = go.Figure(), set[int]()
    for index, (name, frame) in enumerate(qualities.items()):
        needed = ("k", "fvu", "l0") if "k" in frame.columns and frame["k"].null_count() else ("k", "fvu")
        require(frame, needed, "pareto(qualities)", "nb_sae.compare(…) or analysis.quality by name")
        _add_dictionary(figure, name, frame, index)
        ks.update(frame["k"].drop_nulls().to_list())
    if pca is not None:
        require(pca, ("k", "fvu"), "pca", "nb_sae.pca_quality(…)")
        _add_baseline(figure, "PCA, k components", pca)
    _pareto_axes(figure, sorted(ks))
    return dressed(figure, "Fraction of variance unexplained at each budget")


def density(latents: pl.DataFrame) -> go.Figure:
    """How many latents are active on which fraction of the rows, from `analysis.latents`."""
    require(latents, ("density", "dead"), "density(latents)", "analysis.latents")
    alive = latents.filter(~pl.col("dead"))
    logs = alive["density"].log10().to_list()
    figure = go.Figure(go.Histogram(x=logs, nbinsx=40, marker_color=PALETTE[0]))
    dead = latents.height - alive.height
    figure.update_xaxes(title="density, fraction of rows (powers of ten)", tickprefix="10<sup>", ticksuffix="</sup>")
    figure.update_yaxes(title="latents")
    return dressed(figure, f"Density of {alive.height:,} active latents ({dead:,} dead)")


def _comparison(frame: pl.DataFrame) -> go.Figure:
    require(frame, ("name", "rule", "k", "fvu", "l0"), "pareto(frame)", "nb_sae.compare([…], store)")
    figure, colour = go.Figure(), 0
    for name in frame["name"].unique(maintain_order=True):
        lines = frame.filter(pl.col("name") == name)
        if name.removesuffix(" (these rows)") in ("PCA", "linear map"):
            _add_baseline(figure, name, lines)
            continue
        _add_dictionary(figure, name, lines, colour)
        colour += 1
    _pareto_axes(figure, frame["k"].drop_nulls().unique().sort().to_list())
    rows = f" on {frame['rows'][0]:,} rows" if "rows" in frame.columns and frame.height else ""
    dressed(figure, f"Fraction of variance unexplained at the same k{rows}")
    # Many names are long: below the drawing they do not run into the title.
    figure.update_layout(height=560, legend={"x": 0, "xanchor": "left", "y": -0.16, "yanchor": "top"})
    return figure


def _add_dictionary(figure: go.Figure, name: str, frame: pl.DataFrame, index: int) -> None:
    """A line over the k's, and an open star at the L0 of a rule that sets no k."""
    turn, place = divmod(index, len(PALETTE))  # where the colours are used up, dash and marker keep the lines apart
    matched, own = frame.filter(pl.col("k").is_not_null()), frame.filter(pl.col("k").is_null())
    if matched.height:
        figure.add_scatter(
            x=matched["k"].to_list(),
            y=matched["fvu"].to_list(),
            name=name,
            mode="lines+markers",
            line={"color": PALETTE[place], "width": 2.5, "dash": ("solid", "dot", "dashdot", "longdash")[turn % 4]},
            marker={"size": 9, "symbol": ("circle", "square", "triangle-up", "x")[turn % 4]},
        )
    if own.height:
        figure.add_scatter(
            x=own["l0"].to_list(),
            y=own["fvu"].to_list(),
            name=f"{name}, own rule",
            mode="markers",
            marker={"size": 13, "symbol": "star-open", "color": PALETTE[place]},
        )


def _add_baseline(figure: go.Figure, name: str, frame: pl.DataFrame) -> None:
    figure.add_scatter(
        x=frame["k"].to_list(),
        y=frame["fvu"].to_list(),
        name=name,
        mode="lines+markers",
        line={"color": BASELINE, "width": 2, "dash": "dash"},
        marker={"size": 8, "symbol": "diamond"},
    )


def _pareto_axes(figure: go.Figure, ks: list[int]) -> None:
    figure.update_xaxes(type="log", title="k, active latents per row", tickvals=ks, ticktext=None)
    figure.update_yaxes(type="log", title="FVU")
