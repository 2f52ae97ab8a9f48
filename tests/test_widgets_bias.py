"""The bias dashboard on the Python side: what is sent and what never is, budgets, answers, the picture, bad input."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from bias_fakes import FakeBias, fake_bias
from PIL import Image
from test_widgets import ask
from test_widgets_wire import read
from widget_fakes import HOSTILE, built

from nb_sae.errors import WidgetError
from nb_sae.widgets import bias as module
from nb_sae.widgets.bias import BiasDashboard
from nb_sae.widgets.bias_tables import BiasFrames, ranked
from nb_sae.widgets.picture import MAX_BYTES

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")
FIXTURE = Path(__file__).parent / "fixtures" / "bias.json"
STATE_BOUND = 400_000
BINARY = ("overview", "details", "inputs", "thumbs")


@pytest.fixture(scope="module")
def report() -> FakeBias:
    return fake_bias(24)


@pytest.fixture
def dashboard(report) -> BiasDashboard:
    return BiasDashboard(report)


def table(dashboard: BiasDashboard, trait: str, name: str) -> pl.DataFrame:
    header, block = getattr(dashboard, f"{trait}_header"), getattr(dashboard, trait)
    columns = [column["name"] for column in header["tables"][name]["columns"]]
    return pl.DataFrame({one: read(header, block, name, one) for one in columns}, strict=False)


def saved_bytes(dashboard: BiasDashboard) -> int:
    """What the dashboard takes in a notebook, its scripts too: base64 and JSON."""
    state = dict(dashboard.get_state())
    state |= {name: base64.b64encode(one).decode() for name, one in state.items() if isinstance(one, bytes)}
    return len(json.dumps(state, default=str))


# What is sent


def test_the_ranking_that_is_sent_is_that_of_the_report(dashboard, report):
    sent = table(dashboard, "overview", "association")
    labels = table(dashboard, "overview", "labels")["text"]
    names = table(dashboard, "overview", "concepts")["name"]
    assert sent.height == report.association.height
    for place, row in enumerate(report.association.iter_rows(named=True)):
        assert names[sent["concept"][place]] == row["concept"]
        assert labels[sent["group"][place]] == row["group"]
        if not row["masked"]:
            assert sent["effect"][place] == pytest.approx(row["effect"], rel=1e-6)
            assert sent["n"][place] == row["n"]


def test_ranking_compares_effects_only_among_what_passes():
    frame = pl.DataFrame(
        {
            "name": ["loud", "small", "large", "masked", "quiet"],
            "effect": [0.9, 0.1, -0.3, None, 0.01],
            "q_value": [0.4, 0.01, 0.04, None, 0.2],
            "masked": [False, False, False, True, False],
        }
    )
    found = ranked(frame, 0.05)
    assert found["name"].to_list() == ["large", "small", "quiet", "loud", "masked"]
    assert found["flagged"].to_list() == [True, True, False, False, False]


def test_no_number_of_a_masked_group_leaves_python(report):
    loud = pl.when("masked").then(0.7777777).otherwise("accuracy").alias("accuracy")
    told = replace(report, errors=report.errors.with_columns(loud))
    dashboard = BiasDashboard(told)
    assert told.errors.filter("masked")["n"].to_list() == [11]
    errors = table(dashboard, "overview", "errors").filter(pl.col("masked") == 1)
    assert errors.height == 1
    assert errors["n"].to_list() == [0]
    assert math.isnan(errors["accuracy"][0])
    association = table(dashboard, "overview", "association").filter(pl.col("masked") == 1)
    assert association["n"].to_list() == [0]
    assert b"0.7777777" not in dashboard.csv("errors")
    masked = pl.read_csv(io.BytesIO(dashboard.csv("errors")), infer_schema_length=None).filter("masked")
    assert masked.select(pl.exclude("group", "concept", "level", "masked")).null_count().row(0) == (1,) * 14


def test_curves_come_back_as_they_were_measured(dashboard, report):
    latent = dashboard.latent
    number = dashboard.concepts.filter(pl.col("latent") == latent)["concept"][0]
    sent = table(dashboard, "details", "image_curves").filter(pl.col("concept") == number)
    measured = report.image_curves.filter(pl.col("latent") == latent)
    for input_id, steps in sent.select("input_id", "probability").iter_rows():
        one = measured.filter(pl.col("input_id") == input_id).sort("value")
        np.testing.assert_allclose(np.array(steps) / 65_535, one["probability"], atol=1e-5)
    mean = table(dashboard, "details", "curves").filter(pl.col("concept") == number)["mean"][0]
    np.testing.assert_allclose(mean, report.curves.filter(pl.col("latent") == latent).sort("value")["mean"], rtol=1e-6)


def test_latents_of_one_name_are_told_apart_and_show_no_errors_of_each_other():
    report = fake_bias(3, names=("hat", "hat", "smile"))
    dashboard = BiasDashboard(report)
    assert set(dashboard.concepts["name"]) == {"hat #3", "hat #10", "smile"}
    shown = table(dashboard, "details", "levels")["concept"].unique().to_list()
    assert dashboard.concepts["name"].gather(shown).to_list() == ["smile"]
    dashboard.latent = "hat #10"
    assert dashboard.latent == 10
    with pytest.raises(WidgetError, match="several latents"):
        dashboard.latent = "hat"


# Budgets


@pytest.mark.parametrize(("outputs", "least"), [(("Smiling",), 100), (("Smiling", "not Smiling"), 60)])
def test_a_hundred_concepts_of_two_groups_with_curves_fit_into_the_saved_state(outputs, least):
    dashboard = BiasDashboard(fake_bias(100, outputs=outputs))
    assert saved_bytes(dashboard) <= STATE_BOUND
    assert dashboard.about["saved"] >= least
    assert table(dashboard, "overview", "association").height == 200
    assert dashboard.about["thumbs"] >= 40


def test_what_is_cut_is_said_and_the_clearest_concepts_stay():
    dashboard = BiasDashboard(fake_bias(700))
    about = dashboard.about
    assert saved_bytes(dashboard) <= STATE_BOUND
    assert about["concepts"] == 700
    assert about["saved"] < dashboard.concepts.height < 700
    assert about["thumbs"] < about["inputs"]
    assert dashboard.concepts["name"][0] == dashboard._frames.concepts["name"][0]
    everything = dashboard._frames.frames["association"]
    kept = everything.filter(pl.col("latent").is_in(dashboard.concepts["latent"].implode()))
    dropped = everything.filter(~pl.col("latent").is_in(dashboard.concepts["latent"].implode()))
    assert dropped.filter(pl.col("q_value") <= 0.05).height < kept.filter(pl.col("q_value") <= 0.05).height


# Answers


def test_a_concept_that_is_not_saved_comes_from_the_kernel(monkeypatch, report):
    monkeypatch.setattr(module, "SAVED_BYTES", 20_000)
    dashboard = BiasDashboard(report)
    assert dashboard.about["saved"] < 24
    latent = int(dashboard.concepts["latent"][-1])
    reply, (block,) = ask(dashboard, {"id": 1, "kind": "concept", "latent": latent})
    assert reply["ok"]
    curves = read(reply["header"], block, "image_curves", "probability")
    assert len(curves) == 12
    wrong, _ = ask(dashboard, {"id": 2, "kind": "concept", "latent": 999})
    assert not wrong["ok"]
    assert "no concept of this report" in wrong["error"]["cause"]


def test_pictures_are_answered_small_and_unreadable_ones_left_out(report):
    broken = report.pictures.with_columns(
        webp=pl.when(pl.col("input_id") == 3).then(pl.lit(b"not a picture")).otherwise("webp")
    )
    dashboard = BiasDashboard(report, pictures=broken)
    reply, (block, thumbs) = ask(dashboard, {"id": 1, "kind": "pictures", "input_ids": [2, 3, 5, 10_000]})
    places = read(reply["header"], block, "inputs", "thumb")
    assert places == [0, -1, 1, -1]
    first = Image.open(io.BytesIO(thumbs[: reply["thumbs_header"]["ends"][0]]))
    assert max(first.size) <= module.PICTURE_SIDE
    bad, _ = ask(dashboard, {"id": 2, "kind": "pictures", "input_ids": ["../x"]})
    assert not bad["ok"]


def test_texts_stand_in_for_pictures(report):
    class Texts:
        modality = "text"
        keys = tuple(f"doc {n}" for n in range(400))

        def __len__(self) -> int:
            return 400

        def __getitem__(self, number: int) -> str:
            return f"{HOSTILE[number % len(HOSTILE)]} {number} " * 20

    dashboard = BiasDashboard(report, inputs=Texts())
    inputs = table(dashboard, "inputs", "inputs")
    assert inputs["thumb"].unique().to_list() == [-1]
    assert all(0 < len(text) <= 161 for text in inputs["text"])
    assert inputs["key"][0] == f"doc {inputs['input_id'][0]}"


def test_every_table_is_exported_whole(dashboard, report):
    for name in ("association", "conditional", "reliance", "curves", "image_curves", "errors", "retrieval", "examples"):
        _, (encoded,) = ask(dashboard, {"id": 1, "kind": "table", "name": name})
        frame = pl.read_csv(io.BytesIO(encoded), infer_schema_length=None)
        assert frame.height == getattr(report, name).height
        assert frame.columns == getattr(report, name).columns
    wrong, _ = ask(dashboard, {"id": 2, "kind": "table", "name": "__class__"})
    assert "no table" in wrong["error"]["cause"]


# Display


def test_the_picture_and_the_summary_say_what_is_shown(dashboard):
    picture = dashboard.picture()
    assert len(picture) <= MAX_BYTES
    assert Image.open(io.BytesIO(picture)).size[0] >= 900
    said = dashboard._summary()
    assert "BiasDashboard of 24 concepts" in said
    assert "associated at q ≤ 0.05: eyeglasses" in said
    assert "[" in said
    assert "annotators' labels" in said


def test_hostile_names_are_drawn_and_sent_as_text(report):
    names = (*HOSTILE[:7], "plain")
    dashboard = BiasDashboard(fake_bias(8, groups=(HOSTILE[1], "rest"), names=names))
    assert dashboard.picture().startswith(b"\x89PNG")
    assert "\u202e" not in dashboard._summary()


def test_a_report_without_a_classifier_shows_what_there_is(report):
    absent = ("reliance", "curves", "image_curves", "errors", "retrieval")
    empty = {name: getattr(report, name).clear() for name in absent}
    dashboard = BiasDashboard(replace(report, **empty, pictures=None))
    assert "relied" not in dashboard._summary()
    assert dashboard.picture().startswith(b"\x89PNG")
    assert not dashboard.about["pictures"]


# Bad input


def test_what_is_no_report_is_refused_with_the_next_step(report):
    with pytest.raises(WidgetError, match=r"no frame 'association'.*ns\.bias_report"):
        BiasDashboard(report.association)
    with pytest.raises(WidgetError, match="has no column q_value"):
        BiasDashboard(replace(report, association=report.association.drop("q_value")))
    with pytest.raises(WidgetError, match="no concept"):
        BiasDashboard(
            replace(
                report,
                association=report.association.clear(),
                reliance=report.reliance.clear(),
                curves=report.curves.clear(),
            )
        )
    shifted = pl.col("value") + (pl.col("input_id") == report.image_curves["input_id"][0]).cast(pl.Float64)
    with pytest.raises(WidgetError, match="different values"):
        BiasDashboard(replace(report, image_curves=report.image_curves.with_columns(shifted)))
    with pytest.raises(WidgetError, match="input_id and webp"):
        BiasDashboard(report, pictures=pl.DataFrame({"key": ["a"]}))
    with pytest.raises(WidgetError, match="inputs is a int"):
        BiasDashboard(report, inputs=3)
    with pytest.raises(WidgetError, match="no rate"):
        BiasDashboard(report, q=5)


def test_latent_is_checked_where_it_is_set(dashboard):
    dashboard.latent = np.int64(10)
    dashboard.latent = "hat"
    assert dashboard.latent == 17
    for wrong in (-1, 4, 2.5, "7", None, True):
        with pytest.raises(WidgetError):
            dashboard.latent = wrong
    assert dashboard.latent == 17


# The contract with the browser


def fixture() -> dict:
    """A small dashboard with a hostile name; its pictures are any bytes, as encoders differ."""
    names = ("eyeglasses", HOSTILE[0], HOSTILE[2], "beard", "hat", "smile", "bangs", "goatee")
    report = fake_bias(8, images=4, grid=5, inputs=20, pictures=False, names=names, given=("Young",))
    frame = report.examples.filter(pl.col("rank") < 4)
    frame = pl.concat([frame, report.examples.filter(pl.col("latent").is_null() & (pl.col("rank") >= 4))])
    dashboard = BiasDashboard(replace(report, examples=frame))
    last = int(dashboard.concepts["latent"][1])
    content, buffers = dashboard._answer({"id": 1, "kind": "concept", "latent": last})
    traits = ("latent", "about", *(f"{name}_header" for name in BINARY), *BINARY)
    state = {name: getattr(dashboard, name) for name in traits}
    encoded = {name: base64.b64encode(state[name]).decode() for name in BINARY}
    return {
        "state": {**state, **encoded, "twin": "twin-1"},
        "binary": list(BINARY),
        "asked": {
            "latent": last, "content": content, "buffers": [base64.b64encode(one).decode() for one in buffers],
        },
    }  # fmt: skip


def test_the_committed_fixture_is_what_python_writes():
    committed = json.loads(FIXTURE.read_text(encoding="utf-8"))
    made = json.loads(json.dumps(fixture()))
    assert committed == made, "python tests/test_widgets_bias.py writes it anew; vitest must then pass as well"


def test_frames_are_read_once_and_not_changed(report):
    before = report.association.clone()
    BiasFrames.of(report, 0.05)
    assert report.association.equals(before)


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(fixture(), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
