"""plotly figures of the tables. They take frames and give `go.Figure`; nothing here knows torch."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from nb_sae.concepts.schema import STEERING
from nb_sae.errors import WidgetError

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe & Ito 2008: tells apart with every common colour vision."""
BASELINE = "#7f7f7f"


def training(log: pl.DataFrame) -> go.Figure:
    """FVU of each budget against rows seen, from `Session.log`."""
    _require(log, ("rows",), "training(log)", "session.log")
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
    return _dressed(figure, "Fraction of variance unexplained while training")


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
        _require(frame, needed, "pareto(qualities)", "nb_sae.compare(…) or analysis.quality by name")
        _add_dictionary(figure, name, frame, index)
        ks.update(frame["k"].drop_nulls().to_list())
    if pca is not None:
        _require(pca, ("k", "fvu"), "pca", "nb_sae.pca_quality(…)")
        _add_baseline(figure, "PCA, k components", pca)
    _pareto_axes(figure, sorted(ks))
    return _dressed(figure, "Fraction of variance unexplained at each budget")


def density(latents: pl.DataFrame) -> go.Figure:
    """How many latents are active on which fraction of the rows, from `analysis.latents`."""
    _require(latents, ("density", "dead"), "density(latents)", "analysis.latents")
    alive = latents.filter(~pl.col("dead"))
    logs = alive["density"].log10().to_list()
    figure = go.Figure(go.Histogram(x=logs, nbinsx=40, marker_color=PALETTE[0]))
    dead = latents.height - alive.height
    figure.update_xaxes(title="density, fraction of rows (powers of ten)", tickprefix="10<sup>", ticksuffix="</sup>")
    figure.update_yaxes(title="latents")
    return _dressed(figure, f"Density of {alive.height:,} active latents ({dead:,} dead)")


def naming(names: pl.DataFrame, *, null: pl.DataFrame | None = None) -> go.Figure:
    """How near latents are to their names: share with at least a cosine, from `names.frame`, beside `names.null`.

    Where the line of the latents lies no further right than that of the null, the names say nothing. A point is a
    latent with an accepted name; to hover over it tells which.
    """
    _require(names, ("latent", "name", "cosine", "accepted"), "naming(names)", "names.frame")
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
        _require(null, ("quantile", "cosine"), "null", "names.null")
        figure.add_scatter(
            x=null["cosine"].to_list(),
            y=(1 - null["quantile"]).to_list(),
            name="null",
            mode="lines",
            line={"color": BASELINE, "width": 2, "dash": "dash"},
        )
    figure.update_xaxes(title="cosine of the name")
    figure.update_yaxes(title="share with at least this cosine")
    return _dressed(figure, f"Names of {ordered.height:,} latents, {accepted.height:,} accepted")


def _comparison(frame: pl.DataFrame) -> go.Figure:
    _require(frame, ("name", "rule", "k", "fvu", "l0"), "pareto(frame)", "nb_sae.compare([…], store)")
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
    _dressed(figure, f"Fraction of variance unexplained at the same k{rows}")
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


def _dressed(figure: go.Figure, title: str) -> go.Figure:
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
    figure.update_xaxes(gridcolor="rgba(128,136,144,0.25)", linecolor="rgba(128,136,144,0.6)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,136,144,0.25)", linecolor="rgba(128,136,144,0.6)", zeroline=False)
    return figure


def _require(frame: pl.DataFrame, columns: tuple[str, ...], what: str, source: str) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise WidgetError(f"{what} was given a frame without {', '.join(missing)}; expected {source}.")


def steering(curve: pl.DataFrame) -> go.Figure:
    """Probability of each prompt against strength with its band over rows, and the cosine to the rows as they were.

    Args:
        curve: `steering_curve(…).frame`. The grey band holds the curves of all controls for the first prompt: what
            steering a latent chosen by chance does.
    """
    _require(curve, tuple(STEERING), "steering(curve)", "nb_sae.steering_curve(…).frame")
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
    _dressed(figure, f"Steering latent {latent}, {rows:,} rows, bands of 95 %")
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


def association(frame: pl.DataFrame, *, most: int = 20) -> go.Figure:
    """Effect of each concept with its interval, from `bias.association` (or `bias.conditional`): the `most` largest.

    A full dot passes q ≤ 0.05 among all that was tried, an open one does not. Masked groups are left out.
    """
    needed = ("concept", "group", "effect", "ci_low", "ci_high", "q_value", "n", "masked")
    _require(frame, needed, "association(frame)", "bias.association")
    shown = _largest(frame.filter(~pl.col("masked")), most)
    groups = frame["group"].unique(maintain_order=True).to_list()
    figure = go.Figure()
    _add_whiskers(figure, shown, several=len(groups) > 1)
    figure.update_xaxes(title="rank-biserial difference (2 AUC − 1), 95 % interval")
    title = f"Association with {groups[0]}" if len(groups) == 1 else "Association by group"
    return _as_list(_dressed(figure, escape(title)), shown.height)


def reliance(frame: pl.DataFrame, *, most: int = 20) -> go.Figure:
    """What setting each concept from low to high does to the classifier, from `bias.reliance`: the `most` largest.

    The grey bar behind each holds 95 % of what matched latents do: a dot inside it says nothing about the concept.
    """
    needed = ("concept", "effect", "ci_low", "ci_high", "control_low", "control_high", "q_value", "output")
    _require(frame, needed, "reliance(frame)", "bias.reliance")
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
    return _as_list(_dressed(figure, escape(title)), shown.height)


def error_gaps(frame: pl.DataFrame) -> go.Figure:
    """Differences of accuracy, TPR, FPR and positive rate between groups, from `bias.gaps`; concepts left out."""
    needed = ("group", "versus", "concept", "measure", "gap", "ci_low", "ci_high", "q_value", "masked")
    _require(frame, needed, "error_gaps(frame)", "bias.gaps")
    shown = frame.filter(pl.col("concept").is_null() & ~pl.col("masked")).with_columns(
        pl.format("{}: {}", "group", pl.col("measure").cast(pl.String)).alias("concept"), effect=pl.col("gap")
    )
    figure = go.Figure()
    _add_whiskers(figure, shown.reverse(), several=False)
    masked = frame.filter(pl.col("concept").is_null() & pl.col("masked")).height
    figure.update_xaxes(title="rate in the group less that of the rest, 95 % interval")
    return _as_list(_dressed(figure, f"Gaps between groups ({masked} masked)"), shown.height)


def retrieval(frame: pl.DataFrame) -> go.Figure:
    """MaxSkew@k of each query before and after concepts are removed, beside chance, from `bias.retrieval`."""
    needed = ("query", "k", "removed", "max_skew", "chance_skew")
    _require(frame, needed, "retrieval(frame)", "bias.retrieval")
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
    return _as_list(_dressed(figure, "Who is retrieved"), frame["query"].n_unique())


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
