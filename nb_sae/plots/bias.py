"""Figures of a bias report: effects with their intervals, controls and chance."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
import polars as pl

from nb_sae.plots.drawing import BASELINE, PALETTE, dressed, require


def association(frame: pl.DataFrame, *, most: int = 20) -> go.Figure:
    """Effect of each concept with its interval, from `bias.association` (or `bias.conditional`): the `most` largest.

    A full dot passes q ≤ 0.05 among all that was tried, an open one does not. Masked groups are left out.
    """
    needed = ("concept", "group", "effect", "ci_low", "ci_high", "q_value", "n", "masked")
    require(frame, needed, "association(frame)", "bias.association")
    shown = _largest(frame.filter(~pl.col("masked")), most)
    groups = frame["group"].unique(maintain_order=True).to_list()
    figure = go.Figure()
    _add_whiskers(figure, shown, several=len(groups) > 1)
    figure.update_xaxes(title="rank-biserial difference (2 AUC − 1), 95 % interval")
    title = f"Association with {groups[0]}" if len(groups) == 1 else "Association by group"
    return _as_list(dressed(figure, escape(title)), shown.height)


def reliance(frame: pl.DataFrame, *, most: int = 20) -> go.Figure:
    """What setting each concept from low to high does to the classifier, from `bias.reliance`: the `most` largest.

    The grey bar behind each holds 95 % of what matched latents do: a dot inside it says nothing about the concept.
    """
    needed = ("concept", "effect", "ci_low", "ci_high", "control_low", "control_high", "q_value", "output")
    require(frame, needed, "reliance(frame)", "bias.reliance")
    outputs = frame["output"].unique(maintain_order=True).to_list()
    shown = _largest(frame.with_columns(group=pl.col("output")), most)
    figure = go.Figure()
    labels = _labels(shown, several=len(outputs) > 1)
    figure.add_bar(
        y=labels,
        x=(shown["control_high"] - shown["control_low"]).to_list(),
        base=shown["control_low"].to_list(),
        orientation="h",
        name="matched latents",
        marker={"color": BASELINE, "opacity": 0.3},
        width=0.7,
        hoverinfo="skip",
    )
    _add_whiskers(figure, shown, several=len(outputs) > 1)
    figure.update_xaxes(title="change of the probability, 95 % interval over rows")
    title = f"Reliance of p({outputs[0]})" if len(outputs) == 1 else "Reliance of each output"
    return _as_list(dressed(figure, escape(title)), shown.height)


def error_gaps(frame: pl.DataFrame) -> go.Figure:
    """Differences of accuracy, TPR, FPR and positive rate between groups, from `bias.gaps`; concepts left out."""
    needed = ("group", "versus", "concept", "measure", "gap", "ci_low", "ci_high", "q_value", "masked")
    require(frame, needed, "error_gaps(frame)", "bias.gaps")
    shown = frame.filter(pl.col("concept").is_null() & ~pl.col("masked")).with_columns(
        pl.format("{}: {}", "group", pl.col("measure").cast(pl.String)).alias("concept"), effect=pl.col("gap")
    )
    figure = go.Figure()
    _add_whiskers(figure, shown.reverse(), several=False)
    masked = frame.filter(pl.col("concept").is_null() & pl.col("masked")).height
    figure.update_xaxes(title="rate in the group less that of the rest, 95 % interval")
    return _as_list(dressed(figure, f"Gaps between groups ({masked} masked)"), shown.height)


def retrieval(frame: pl.DataFrame) -> go.Figure:
    """MaxSkew@k of each query before and after concepts are removed, beside chance, from `bias.retrieval`."""
    needed = ("query", "k", "removed", "max_skew", "chance_skew")
    require(frame, needed, "retrieval(frame)", "bias.retrieval")
    figure = go.Figure()
    for number, (k, removed) in enumerate(
        frame.select("k", pl.col("removed").is_not_null()).unique(maintain_order=True).rows()
    ):
        lines = frame.filter((pl.col("k") == k) & (pl.col("removed").is_not_null() == removed))
        figure.add_scatter(
            x=lines["max_skew"].to_list(),
            y=[escape(query) for query in lines["query"]],
            name=f"k = {k}, concepts removed" if removed else f"k = {k}",
            mode="markers",
            marker={
                "color": PALETTE[number // 2 % len(PALETTE)],
                "size": 10,
                "symbol": "circle-open" if removed else "circle",
            },
        )
        if not removed:
            figure.add_scatter(
                x=lines["chance_skew"].to_list(),
                y=[escape(query) for query in lines["query"]],
                name=f"97.5 % of {k} random rows",
                mode="markers",
                marker={"color": BASELINE, "size": 12, "symbol": "line-ns-open"},
            )
    figure.update_xaxes(title="MaxSkew@k: log of the largest over-representation of a group", rangemode="tozero")
    return _as_list(dressed(figure, "Who is retrieved"), frame["query"].n_unique())


def _largest(frame: pl.DataFrame, most: int) -> pl.DataFrame:
    """The largest effects, the largest last: figures are read from the top and drawn from the bottom."""
    return frame.drop_nulls("effect").sort(pl.col("effect").abs(), descending=True).head(most).reverse()


def _labels(frame: pl.DataFrame, *, several: bool) -> list[str]:
    names = frame.select("concept", "group").iter_rows()
    return [escape(f"{concept} ({group})" if several else str(concept)) for concept, group in names]


def _add_whiskers(figure: go.Figure, frame: pl.DataFrame, *, several: bool) -> None:
    passes = (frame["q_value"] <= 0.05).fill_null(False).to_list()
    figure.add_scatter(
        x=frame["effect"].to_list(),
        y=_labels(frame, several=several),
        mode="markers",
        showlegend=False,
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (frame["ci_high"] - frame["effect"]).to_list(),
            "arrayminus": (frame["effect"] - frame["ci_low"]).to_list(),
            "thickness": 1.5,
            "width": 0,
        },
        marker={"color": PALETTE[0], "size": 9, "symbol": ["circle" if one else "circle-open" for one in passes]},
        text=[f"q = {value:.3g}" for value in frame["q_value"].fill_null(float("nan"))],
        hovertemplate="%{y}<br>%{x:.3f}, %{text}<extra></extra>",
    )


def _as_list(figure: go.Figure, lines: int) -> go.Figure:
    figure.add_vline(x=0, line={"color": BASELINE, "width": 1})
    figure.update_layout(height=max(260, 110 + 22 * lines), legend={"y": 1.02, "yanchor": "bottom"})
    figure.update_yaxes(automargin=True)
    return figure
