"""The atlas on the Python side: places, columns, the choice, answers, budgets, bad input."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from PIL import Image
from test_widgets import ask, rows
from widget_fakes import HOSTILE, built, fake_analysis

import nb_sae as ns
from nb_sae.analysis import schema
from nb_sae.analysis.notes import Notes
from nb_sae.errors import WidgetError
from nb_sae.widgets import atlas, atlas_points
from nb_sae.widgets.atlas import SAVED_BYTES, AtlasDashboard
from nb_sae.widgets.atlas_picture import MAX_BYTES
from nb_sae.widgets.atlas_points import bits_of, latents_of

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")
FIXTURE = Path(__file__).parent / "fixtures" / "atlas.json"


def ring(count: int = 64) -> pl.DataFrame:
    """Latents on a circle of radius 2 about (1, 0), latent 0 to the right, counted against the clock."""
    angle = 2 * np.pi * np.arange(count) / count
    return pl.DataFrame({"latent": np.arange(count), "x": 1 + 2 * np.cos(angle), "y": 2 * np.sin(angle)})


@pytest.fixture
def dashboard() -> AtlasDashboard:
    return AtlasDashboard(
        fake_analysis(), ring(), names={3: "hat", 5: "striped hat"}, values={"group": np.arange(64) % 3}
    )


# Places and columns


def test_places_keep_their_shape_and_are_exact_to_a_16_bit_step(dashboard):
    state = dashboard.get_state()
    shown = rows(state["points_header"], state["points"], "points")
    planted = ring()
    for name, low in (("x", -1), ("y", -2)):
        np.testing.assert_allclose(shown[name] / 65_535, (planted[name] - low) / 4, atol=1 / 65_535)
    assert "latent" not in shown.columns


def test_one_scale_for_both_axes_of_a_map(dashboard):
    flat = ring().with_columns(pl.col("y") / 4)
    points = AtlasDashboard(fake_analysis(), flat).points_of_map
    assert int(points.x.max()) - int(points.x.min()) == 65_535
    assert int(points.y.max()) - int(points.y.min()) == pytest.approx(65_535 / 4, abs=1)


def test_bytes_of_a_column_give_its_values_back_to_a_step():
    analysis = fake_analysis()
    points = AtlasDashboard(analysis, ring()).points_of_map
    density, largest = points.column("density"), points.column("max")
    alive = ~analysis.latents["dead"].to_numpy()
    assert (density.codes[~alive] == 0).all()
    share = (density.codes[alive].astype(float) - 1) / 254
    values = density.low * (density.high / density.low) ** share
    ratio = (density.high / density.low) ** (0.5 / 254)
    wanted = analysis.latents["density"].to_numpy()[alive]
    assert (np.abs(np.log(values / wanted)) <= np.log(ratio) + 1e-9).all()
    back = largest.low + (largest.codes.astype(float) - 1) / 254 * (largest.high - largest.low)
    np.testing.assert_allclose(back, analysis.latents["max"], atol=(largest.high - largest.low) / 508 + 1e-9)


def test_given_columns_colour_by_category_or_number_and_missing_values_are_0():
    frame = ring().with_columns(cluster=pl.int_range(64) % 4 - 1, score=pl.lit(None, pl.Float64))
    values = {"kind": ["a", None] * 32, "wide": np.arange(64) ** 2 * 1.0}
    points = AtlasDashboard(fake_analysis(), frame, values=values).points_of_map
    assert points.keys == ["density", "level", "cluster", "score", "kind", "wide", "max"]
    cluster = points.column("cluster")
    assert (cluster.kind, cluster.categories) == ("category", ("-1", "0", "1", "2"))
    assert cluster.codes[:5].tolist() == [1, 2, 3, 4, 1]
    assert points.column("kind").codes[:4].tolist() == [1, 0, 1, 0]
    assert not points.column("score").codes.any()
    assert points.column("wide").codes[[0, 63]].tolist() == [1, 255]


def test_the_map_says_how_it_was_made_and_what_it_keeps_beside_chance():
    layout = ns.layout(np.random.default_rng(0).normal(size=(64, 8)))
    dashboard = AtlasDashboard(fake_analysis(), layout)
    about = dashboard.about["layout"]
    assert about == {"method": "pca", "kept": layout.kept.value, "null": layout.kept.null, "k": 10}
    assert "laid out by pca" in repr(dashboard)
    own = AtlasDashboard(fake_analysis(), ring())
    assert own.about["layout"] == {"method": "a frame of the user"}


def test_without_a_layout_density_and_activation_are_the_axes_and_dead_latents_have_no_place():
    analysis = fake_analysis()
    dashboard = AtlasDashboard(analysis)
    points = dashboard.points_of_map
    assert points.axes == ("density", "largest activation")
    assert 63 not in points.latents
    order = np.argsort(points.x, kind="stable")
    density = analysis.latents["density"].to_numpy()[points.latents][order]
    assert (np.diff(density) >= -1e-12).all()
    dashboard.latent = 63  # it can be picked all the same, as a link may do
    assert "63" in repr(dashboard)


def test_of_too_many_latents_the_densest_are_drawn_and_the_rest_is_counted(monkeypatch):
    monkeypatch.setattr(atlas_points, "MAX_POINTS", 20)
    analysis = fake_analysis()
    dashboard = AtlasDashboard(analysis, ring())
    assert dashboard.about["left_out"] == 44
    kept = analysis.latents.sort("density", descending=True)["latent"].head(20)
    assert set(dashboard.points_of_map.latents) == set(kept)


# The choice


def test_the_choice_goes_both_ways_as_one_bit_per_latent(dashboard):
    dashboard.selected = np.array([9, 3, 3, 63])
    assert dashboard.selected == [3, 9, 63]
    sent = dashboard.get_state(["selected"])["selected"]
    assert len(sent) == 8
    assert np.flatnonzero(np.unpackbits(np.frombuffer(sent, np.uint8), bitorder="little")).tolist() == [3, 9, 63]
    seen = []
    dashboard.observe(lambda change: seen.append(change.new), names=["selected"])
    update = {"method": "update", "state": {}, "buffer_paths": [["selected"]]}
    dashboard._handle_msg({"content": {"data": update}, "buffers": [memoryview(bits_of([5, 8], 64))]})
    assert dashboard.selected == [5, 8]
    assert seen == [[5, 8]]
    dashboard.selected = []
    assert latents_of(bits_of([], 13), 13) == []


@pytest.mark.parametrize("wrong", [[64], [-1], "12", 7, [1.5], [True], [[1, 2]], [[1], [2, 3]], None, ["3"]])
def test_a_wrong_choice_fails_where_it_is_set_and_leaves_the_old_one(dashboard, wrong):
    dashboard.selected = [4]
    with pytest.raises(WidgetError, match="selected"):
        dashboard.selected = wrong
    assert dashboard.selected == [4]


def test_a_choice_of_another_length_from_the_browser_is_refused(dashboard):
    with pytest.raises(WidgetError, match="1 bytes for 64 latents"):
        latents_of(b"\x01", dashboard.d_sae)


def test_colour_is_checked_where_it_is_set(dashboard):
    dashboard.colour = "group"
    with pytest.raises(WidgetError, match="Choose density, level, group, max"):
        dashboard.colour = "rainbow"
    assert dashboard.colour == "group"


def test_a_label_of_the_user_shows_at_once():
    class Noted(SimpleNamespace):
        @property
        def notes(self) -> pl.DataFrame:
            return self.book.frame

    analysis = Noted(**vars(fake_analysis()), book=Notes())
    dashboard = AtlasDashboard(analysis, ring(), names={3: "hat"})
    assert dashboard.name_of(3) == "hat"
    line = {"latent": [3], "label": ["cap"], "rating": [None], "comment": [None]}
    analysis.book.set(pl.DataFrame(line, schema=schema.NOTES))
    assert dashboard.labels == {"3": "cap"}
    assert dashboard.name_of(3) == "cap"


# Answers


@pytest.mark.parametrize("kind", ["patches", "pooled", "text"])
def test_a_card_gives_exact_numbers_and_the_strongest_examples(kind):
    analysis = fake_analysis(kind)
    content, buffers = ask(AtlasDashboard(analysis), {"id": 1, "kind": "card", "latent": 5})
    assert content["ok"]
    facts = rows(content["header"], buffers[0], "facts").row(0, named=True)
    wanted = analysis.latents.row(5, named=True)
    for name in ("latent", "density", "active_rows", "mean", "max", "dead"):
        assert facts[name] == pytest.approx(float(wanted[name]))
    examples = rows(content["header"], buffers[0], "examples")
    top = analysis.examples.filter((pl.col("latent") == 5) & (pl.col("kind") == "top")).sort("rank")
    np.testing.assert_allclose(examples["act"], top["act"].head(examples.height))
    keys = dict(analysis.inputs.iter_rows())
    assert examples["key"].to_list() == [keys[one] for one in top["input_id"].head(examples.height)]
    if kind == "text":
        tokens = analysis.contexts["tokens"][top["input_id"][0]].to_list()
        shown = examples["tokens"][0].to_list()
        assert shown[examples["at"][0]] == tokens[top["token"][0]]
        assert "".join(shown) in "".join(tokens)
        assert bool(examples["before"][0]) == ("".join(tokens).index("".join(shown)) > 0)


def test_find_looks_in_names_and_numbers_of_the_map(dashboard):
    content, buffers = ask(dashboard, {"id": 1, "kind": "find", "text": " HAT "})
    assert rows(content["header"], buffers[0], "found")["latent"].to_list() == [3, 5]
    content, buffers = ask(dashboard, {"id": 2, "kind": "find", "text": "#17"})
    assert rows(content["header"], buffers[0], "found")["latent"].to_list() == [17]


def test_a_search_that_finds_too_many_gives_the_first_and_says_so(dashboard, monkeypatch):
    assert ask(dashboard, {"id": 1, "kind": "find", "text": "hat"})[0]["cut"] is False
    monkeypatch.setattr(atlas, "FOUND", 1)
    content, buffers = ask(dashboard, {"id": 2, "kind": "find", "text": "hat"})
    assert content["cut"] is True
    assert rows(content["header"], buffers[0], "found")["latent"].to_list() == [3]


def test_a_column_is_given_as_its_bytes(dashboard):
    content, buffers = ask(dashboard, {"id": 1, "kind": "column", "column": "group"})
    assert content["ok"]
    assert list(buffers[0][:4]) == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("request_", "cause"),
    [
        ({"kind": "column", "column": "x"}, "no column of this map"),
        ({"kind": "column", "column": ["density"]}, "no column of this map"),
        ({"kind": "card", "latent": 64}, "outside 0 … 63"),
        ({"kind": "card"}, "no whole number"),
        ({"kind": "find", "text": "x" * 10_000_000}, "10,000,000 characters"),
        ({"kind": "find", "text": None}, "search is empty"),
        ({"kind": "paint"}, "answers no request of kind 'paint'"),
    ],
)
def test_every_bad_request_is_answered_with_its_cause(dashboard, request_, cause):
    content, _ = ask(dashboard, {"id": 9, **request_})
    assert content["ok"] is False
    assert cause in content["error"]["cause"]
    assert ask(dashboard, {"id": 10, "kind": "card", "latent": 1})[0]["ok"]


# Budgets and display


@pytest.fixture(scope="module")
def large() -> SimpleNamespace:
    """100,000 latents with names, and no examples."""
    count = 100_000
    rng = np.random.default_rng(0)
    small = fake_analysis(pictures=False)
    largest = rng.gamma(2, 1, count)
    latents = pl.DataFrame(
        {
            "latent": np.arange(count), "density": rng.beta(0.5, 20, count), "active_rows": 10, "mean": largest / 3,
            "max": largest, "level": np.arange(count) % 4, "dead": False, "histogram": [[1]] * count,
            "histogram_max": largest,
        },
        schema=schema.LATENTS,
    )  # fmt: skip
    fake = replace(small, latents=latents, d_sae=count)
    xy = rng.normal(size=(count, 2))
    layout = pl.DataFrame({"latent": np.arange(count), "x": xy[:, 0], "y": xy[:, 1], "cluster": np.arange(count) % 30})
    return SimpleNamespace(analysis=fake, layout=layout, names={one: f"concept number {one}" for one in range(count)})


def test_100k_latents_stay_below_a_megabyte_and_what_is_left_out_is_said(built, large):
    dashboard = AtlasDashboard(large.analysis, large.layout, names=large.names)
    assert dashboard.saved_bytes() <= 1_000_000
    assert len(dashboard.points) + len(dashboard.cards) + len(dashboard.cards_thumbs) <= SAVED_BYTES
    saved = {one["key"]: one["saved"] for one in dashboard.about["columns"]}
    assert saved == {"density": True, "level": True, "cluster": True, "max": False}
    names = dashboard.about["names"]
    assert names["all"] == 100_000
    assert 0 < names["saved"] < 100_000
    strongest = large.analysis.latents.sort("max", descending=True)["latent"].head(names["saved"])
    assert set(rows(dashboard.points_header, dashboard.points, "names")["latent"]) == set(strongest)
    dashboard.selected = range(100_000)
    assert dashboard.saved_bytes() <= 1_000_000
    assert len(dashboard.picture()) <= MAX_BYTES


def test_100k_latents_of_which_one_has_no_place_stay_below_a_megabyte_with_their_colours(built, large):
    placed = large.layout.filter(pl.col("latent") != 7)
    dashboard = AtlasDashboard(large.analysis, placed, names=large.names)
    assert dashboard.saved_bytes() <= 1_000_000
    assert dashboard.about["columns"][0]["saved"]
    skipped = rows(dashboard.points_header, dashboard.points, "points")["skipped"]
    np.testing.assert_array_equal(np.cumsum(1 + skipped.cast(pl.Int64).to_numpy()) - 1, placed["latent"])


def test_latents_far_apart_are_found_again_from_what_is_skipped():
    latents = np.array([3, 4, 70_000, 70_300, 5_000_000])
    none = np.zeros(5, np.uint16)
    skipped = atlas_points.Points(latents, none, none, (), (), 0).frame([], 6_000_000)["skipped"]
    np.testing.assert_array_equal(np.cumsum(1 + skipped.cast(pl.Int64).to_numpy()) - 1, latents)


def test_a_small_map_keeps_every_column_name_and_card(dashboard):
    assert all(one["saved"] for one in dashboard.about["columns"])
    assert dashboard.about["names"] == {"all": 2, "saved": 2}
    facts = rows(dashboard.cards_header, dashboard.cards, "facts")
    assert facts.height == dashboard.about["cards"] == 48
    assert dashboard.latent in facts["latent"]
    few = AtlasDashboard(dashboard.analysis, saved=2, latent=40)
    assert rows(few.cards_header, few.cards, "facts")["latent"][0] == 40
    assert few.about["cards"] == 3
    for wrong in (0, True, "all"):
        with pytest.raises(WidgetError, match="keeps no card"):
            AtlasDashboard(dashboard.analysis, saved=wrong)


def test_picture_shows_the_choice_the_picked_latent_and_the_colours(dashboard):
    def drawn() -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(dashboard.picture())).convert("RGB"), int)

    before = drawn()
    dashboard.latent = 0
    moved = drawn()
    assert (before != moved).any()
    # Latent 0 lies at the right edge of the map, half way up.
    changed = np.argwhere((before != moved).any(-1)[124:884, 40:800])
    assert any(abs(y - 380) < 30 and x > 720 for y, x in changed)
    dashboard.colour = "group"
    assert (drawn() != moved).any()
    coloured = drawn()
    dashboard.selected = [16]
    assert (drawn() != coloured).any()
    assert len(dashboard.picture()) <= MAX_BYTES
    assert "1 are chosen" in repr(dashboard)


def test_hostile_names_and_columns_stay_text():
    analysis = fake_analysis(hostile=True)
    dashboard = AtlasDashboard(analysis, ring(), names=dict(enumerate(HOSTILE)), values={HOSTILE[5]: [HOSTILE[0]] * 64})
    dashboard.latent = 2
    bundle = dashboard._repr_mimebundle_()
    assert "\u202e" not in bundle[0]["text/plain"]
    assert dashboard.about["columns"][2]["label"] == "line↵break⇥tab"
    assert len(dashboard.picture()) <= MAX_BYTES


# Bad input


@pytest.mark.parametrize(
    ("layout", "match"),
    [
        ("pca", "layout is a str"),
        (ring().drop("y"), "y is missing"),
        (ring().with_columns(latent=pl.lit(1)), "names a latent twice"),
        (ring().with_columns(pl.col("latent") + 1), "this analysis has 0 … 63"),
        (ring().with_columns(pl.col("latent") - 1), "speaks of latents -1"),
        (ring().with_columns(x=pl.lit(float("nan"))), "missing or infinite"),
        (ring().with_columns(x=pl.lit(None, pl.Float64)), "missing or infinite"),
        (ring().with_columns(x=pl.lit("a")), "expected a whole number and two numbers"),
        (ring().with_columns(density=pl.lit(1.0)), "Rename it"),
        (ring().with_columns(spread=pl.lit([1.0])), "has type List"),
        (ring().head(0), "No latent has a place"),
    ],
)
def test_a_layout_that_cannot_be_drawn_is_refused_with_the_next_step(layout, match):
    with pytest.raises(WidgetError, match=match):
        AtlasDashboard(fake_analysis(), layout)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([1, 2], "values is a list"),
        ({"short": [1.0]}, "holds 1 values; this analysis has 64 latents"),
        (pl.DataFrame({"latent": [1, 1], "a": [1.0, 2.0]}), "a latent twice"),
        (pl.DataFrame({"a": [1.0]}), "without a column latent"),
        (pl.DataFrame({"latent": [64], "a": [1.0]}), "expected whole numbers 0 … 63"),
        (pl.DataFrame({"latent": ["a"], "a": [1.0]}), "expected whole numbers 0 … 63"),
        ({"one": 3.0}, "a float that makes no column"),
        ({"mixed": [1, "a"] * 32}, "a list that makes no column"),
        ({"x": [1.0] * 64}, "Rename it"),
        ({"latent": list(range(64))}, "Rename it"),
    ],
)
def test_values_are_one_per_latent(values, match):
    with pytest.raises(WidgetError, match=match):
        AtlasDashboard(fake_analysis(), ring(), values=values)


def test_too_many_categories_and_what_is_no_analysis_are_refused():
    analysis = fake_analysis(d_sae=80)
    with pytest.raises(WidgetError, match="80 different values; at most 64"):
        AtlasDashboard(analysis, ring(80), values={"name": [str(one) for one in range(80)]})
    with pytest.raises(WidgetError, match="AtlasDashboard was given int, which has no latents"):
        AtlasDashboard(7)
    with pytest.raises(WidgetError, match="outside 0 … 79"):
        AtlasDashboard(analysis, latent=80)
    dead = replace(fake_analysis(), latents=fake_analysis().latents.with_columns(dead=pl.lit(True)))
    with pytest.raises(WidgetError, match="all of them are dead"):
        AtlasDashboard(dead)


# The contract with the browser side


_OF_THE_DAY = ("layout", "kernel_side")  # of this version or this session, not of the contract


def fixture() -> dict:
    analysis = fake_analysis("patches", d_sae=24, inputs=6, top=3, interval=1, hostile=True, pictures=False)
    frame = ring(24).with_columns(cluster=pl.int_range(24) // 8).filter(pl.col("latent") != 4)
    layout = SimpleNamespace(frame=frame, method="pca", kept=SimpleNamespace(value=0.5, null=0.1, k=10))
    dashboard = AtlasDashboard(analysis, layout, names={1: HOSTILE[0], 2: "hat", 3: "striped hat"}, latent=2, saved=3)
    dashboard.selected = [2, 9]
    asked = {
        "find": dashboard._answer({"id": 1, "kind": "find", "text": "hat"}),
        "card": dashboard._answer({"id": 2, "kind": "card", "latent": 3}),
        "column": dashboard._answer({"id": 3, "kind": "column", "column": "max"}),
    }
    state = {name: value for name, value in dashboard.get_state().items() if not name.startswith("_")}
    state = {name: value for name, value in state.items() if isinstance(value, bytes | dict | int | str)}
    encode = {name: base64.b64encode(value).decode() for name, value in state.items() if isinstance(value, bytes)}
    return {
        "state": {
            **{name: value for name, value in state.items() if name not in _OF_THE_DAY},
            **encode,
            "twin": "twin-6",
        },
        "binary": list(encode),
        "asked": {
            kind: {"content": content, "buffers": [base64.b64encode(one).decode() for one in buffers]}
            for kind, (content, buffers) in asked.items()
        },
    }


def test_the_committed_fixture_is_what_python_writes(built):
    said = "python tests/test_widgets_atlas.py writes it anew; vitest must then pass as well"
    assert json.loads(FIXTURE.read_text(encoding="utf-8")) == json.loads(json.dumps(fixture())), said


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(fixture(), indent=1) + "\n", encoding="utf-8")
