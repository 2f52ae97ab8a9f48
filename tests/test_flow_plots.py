"""Figures of a flow: what they draw is what the frames say."""

from __future__ import annotations

import polars as pl
import pytest

from nb_sae import plots
from nb_sae.errors import WidgetError
from nb_sae.flow.schema import DEACTIVATION, FLOW_LATENTS, FLOW_NULLS, GROUPS


def latents(kinds=("translated", "processed", "newborn", "unexplained")):
    first = [{"site": "blocks.0", "latent": i, "layer": 0, "lane": "residual"} for i in range(4)]
    second = [
        {"site": "blocks.1", "latent": i, "layer": 1, "lane": "residual", "kind": kind, "s_residual": 0.2 * i,
         "s_attention": 0.1, "s_mlp": 0.3}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    return pl.DataFrame(first + second, schema=FLOW_LATENTS)


def test_kinds_are_shares_of_the_sites_that_have_any():
    figure = plots.flow_kinds(latents(("translated", "translated", "newborn", "unexplained")))
    drawn = {trace.name: list(trace.y) for trace in figure.data}
    assert drawn == {"translated": [0.5], "processed": [], "newborn": [0.25], "unexplained": [0.25]}
    with pytest.raises(WidgetError, match="two residual sites"):
        plots.flow_kinds(latents((None,) * 4))


def test_scores_stand_against_their_thresholds():
    nulls = pl.DataFrame(
        [
            {"source_site": "blocks.0", "target_site": "blocks.1", "threshold": 0.5, "paper": 0.5},
            {"source_site": "blocks.1.mlp", "target_site": "blocks.1", "threshold": 0.25, "paper": 0.15},
        ],
        schema=FLOW_NULLS,
    )
    figure = plots.flow_scores(latents(), nulls)
    assert sorted(x for trace in figure.data for x in trace.x) == pytest.approx([0.0, 0.2, 0.4, 0.6])
    lines = [(shape.x0, shape.y0) for shape in figure.layout.shapes]
    assert (0.5, 0) in lines
    assert (0, 0.25) in lines
    with pytest.raises(WidgetError, match=r"blocks\.7"):
        plots.flow_scores(latents(), site="blocks.7")


def test_groups_are_drawn_beside_what_chance_gives():
    frame = pl.DataFrame(
        {
            "site": ["blocks.1"] * 8,
            "group": list(GROUPS),
            "share": [0.3, 0.7, *[0.0] * 6],
            "expected": [0.9, 0.1, *[0.0] * 6],
        }
    )
    figure = plots.activation_groups(frame)
    assert [list(trace.y) for trace in figure.data][:2] == [[0.3, 0.9], [0.7, 0.1]]
    assert list(figure.data[0].x[1]) == ["seen", "chance"]


def test_deactivation_keeps_controls_apart_and_refuses_what_was_not_measured():
    lines = [
        {"source_site": "blocks.0", "how": how, "factor": 0.0, "latent": 3, "source_latent": 1, "change": change}
        for how, change in (("control", 0.0), ("top1", 0.9), ("top1", None))
    ]
    figure = plots.deactivation(pl.DataFrame(lines, schema=DEACTIVATION))
    assert {trace.name: list(trace.y) for trace in figure.data} == {"top1": [0.9], "control": [0.0]}
    with pytest.raises(WidgetError, match="more inputs"):
        plots.deactivation(pl.DataFrame(lines[2:], schema=DEACTIVATION))


def test_faithfulness_shows_the_random_order_with_its_band():
    frame = pl.DataFrame(
        {
            "order": ["attribution", "attribution", "random", "random"],
            "latents": [1, 4, 1, 4],
            "recovered": [0.8, 1.0, 0.1, 0.5],
            "low": [None, None, 0.0, 0.3],
            "high": [None, None, 0.2, 0.7],
        }
    )
    band, chance, mine = plots.faithfulness(frame).data
    assert list(band.y) == [0.0, 0.3, 0.7, 0.2]
    assert list(chance.y) == [0.1, 0.5]
    assert list(mine.y) == [0.8, 1.0]


def test_a_frame_of_another_table_is_refused():
    for draw in (plots.flow_kinds, plots.flow_scores, plots.activation_groups, plots.deactivation, plots.faithfulness):
        with pytest.raises(WidgetError, match="expected"):
            draw(pl.DataFrame({"x": [1]}))
