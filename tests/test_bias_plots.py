"""Figures of a bias report: what they draw is what the frames say."""

from __future__ import annotations

import polars as pl
import pytest
from bias_fakes import fake_bias

from nb_sae import plots
from nb_sae.errors import WidgetError


@pytest.fixture(scope="module")
def bias():
    return fake_bias()


def test_association_draws_the_largest_effects_with_their_intervals(bias):
    figure = plots.association(bias.association, most=5)
    (points,) = figure.data
    expected = bias.association.filter(~pl.col("masked")).sort(pl.col("effect").abs(), descending=True).head(5)
    assert list(points.x) == pytest.approx(expected["effect"].reverse().to_list())
    ends = [x + more for x, more in zip(points.x, points.error_x.array, strict=True)]
    assert ends == pytest.approx(expected["ci_high"].reverse().to_list())
    filled = [symbol == "circle" for symbol in points.marker.symbol]
    assert filled == (expected["q_value"] <= 0.05).reverse().to_list()


def test_reliance_stands_before_the_band_of_matched_latents(bias):
    band, points = plots.reliance(bias.reliance, most=4).data
    assert list(band.y) == list(points.y)
    row = bias.reliance.sort(pl.col("effect").abs(), descending=True).row(0, named=True)
    assert band.base[-1] == pytest.approx(row["control_low"])
    assert band.base[-1] + band.x[-1] == pytest.approx(row["control_high"])


def test_gaps_leave_masked_groups_and_concepts_out_and_say_so(bias):
    figure = plots.error_gaps(bias.gaps)
    shown = bias.gaps.filter(pl.col("concept").is_null() & ~pl.col("masked"))
    assert sorted(figure.data[0].x) == pytest.approx(sorted(shown["gap"].to_list()))
    masked = bias.gaps.filter(pl.col("concept").is_null() & pl.col("masked")).height
    assert f"{masked} masked" in figure.layout.title.text


def test_retrieval_draws_every_query_before_after_and_by_chance(bias):
    figure = plots.retrieval(bias.retrieval)
    drawn = sum(len(trace.x) for trace in figure.data if "random" not in trace.name)
    assert drawn == bias.retrieval.height
    assert any("removed" in trace.name for trace in figure.data)


@pytest.mark.parametrize("draw", [plots.association, plots.reliance, plots.error_gaps, plots.retrieval])
def test_another_frame_is_refused_and_an_empty_one_is_drawn_empty(bias, draw):
    with pytest.raises(WidgetError, match="expected bias"):
        draw(pl.DataFrame({"latent": [1]}))


def test_names_are_text_and_empty_tables_are_empty_figures(bias):
    hostile = bias.association.with_columns(concept=pl.lit("<b onclick=x>"))
    assert all("<b" not in label for label in plots.association(hostile).data[0].y)
    assert len(plots.retrieval(bias.retrieval.head(0)).data) == 0
    assert list(plots.error_gaps(bias.gaps.head(0)).data[0].x) == []
