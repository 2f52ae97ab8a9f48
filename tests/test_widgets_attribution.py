"""The attribution strip on the Python side: what is sent, answers, display, budgets, bad input."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import traitlets
from PIL import Image
from strip_fakes import PROMPT, FakeAttribution, fake_attribution, fake_direct, fake_faithfulness
from test_widgets import ask, rows
from widget_fakes import HOSTILE, built, fake_analysis, thumb

import nb_sae as ns
from nb_sae.attribution import schema
from nb_sae.attribution.direct import direct_attribution
from nb_sae.attribution.output import attribute
from nb_sae.attribution.output_metrics import log_prob
from nb_sae.errors import WidgetError
from nb_sae.widgets.attribution import SAVED_BYTES, AttributionStrip
from nb_sae.widgets.attribution_tables import square_grid
from nb_sae.widgets.feature import FeatureDashboard
from nb_sae.widgets.picture import MAX_BYTES

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")
FIXTURE = Path(__file__).parent / "fixtures" / "attribution.json"
TRAITS = (
    "latent", "token", "input", "twin", "about", "tables_header", "tables", "direct_header", "direct",
    "thumbs_header", "thumbs",
)  # fmt: skip


def picture(size: tuple[int, int] = (90, 60)) -> Image.Image:
    return Image.open(io.BytesIO(thumb(3, size)))


def whole(**given) -> AttributionStrip:
    return AttributionStrip(
        fake_attribution(), tokens=PROMPT, direct=fake_direct(), faithfulness=fake_faithfulness(), **given
    )


def saved(strip: AttributionStrip, name: str) -> pl.DataFrame:
    return rows(strip.tables_header, strip.tables, name)


def fixture() -> dict:
    """The state of a small strip of hostile prompts, of which one is not saved, and of one of patches."""
    found = {}
    prompt = [*HOSTILE[:4], " a", " b"]
    text = AttributionStrip(
        fake_attribution(positions=6, inputs=2, active=3, d_sae=12, hostile=True),
        tokens=[prompt, prompt[::-1]],
        names={0: HOSTILE[0], 1: "one"},
        direct=fake_direct(latents=(0, 1), heads=2, positions=6),
        faithfulness=fake_faithfulness(8),
    )
    text.about = {**text.about, "saved": [0]}
    patches = AttributionStrip(fake_attribution(positions=5, active=2, d_sae=12), grid=(2, 2))
    for name, strip in (("text", text), ("patches", patches)):
        state = {one: getattr(strip, one) for one in TRAITS}
        encode = {one: base64.b64encode(value).decode() for one, value in state.items() if isinstance(value, bytes)}
        found[name] = {"state": {**state, **encode, "twin": "twin-1"}, "binary": list(encode)}
    content, buffers = text._answer({"id": 1, "kind": "input", "input_id": 1})
    found["asked"] = {"content": content, "buffers": [base64.b64encode(one).decode() for one in buffers]}
    return found


def test_the_committed_fixture_is_what_python_writes():
    said = "python tests/test_widgets_attribution.py writes it anew; vitest must then pass as well"
    assert json.loads(FIXTURE.read_text(encoding="utf-8")) == json.loads(json.dumps(fixture())), said


# What is sent


def test_every_token_has_the_sum_of_its_latents_and_its_own_error():
    attribution = fake_attribution()
    tokens = saved(AttributionStrip(attribution, tokens=PROMPT), "tokens")
    assert tokens["text"].to_list() == list(PROMPT)
    for place, row in enumerate(tokens.iter_rows(named=True)):
        planted = attribution.tokens.filter(token=place)
        error = planted.filter(pl.col("latent").is_null())["attribution"].item()
        assert row["error"] == pytest.approx(error, rel=1e-5)
        assert row["total"] == pytest.approx(planted["attribution"].sum() - error, rel=1e-4, abs=1e-5)


def test_latents_behind_a_token_are_listed_strongest_first_and_the_rest_is_summed():
    attribution = fake_attribution(active=40)
    strip = AttributionStrip(attribution, tokens=PROMPT)
    tables = strip.frames.of_inputs([0], 16)
    for place, row in enumerate(tables["tokens"].iter_rows(named=True)):
        planted = attribution.tokens.filter(token=place).drop_nulls("latent")
        planted = planted.sort(pl.col("attribution").abs(), descending=True)
        own = tables["shares"].filter(line=place)
        assert own["latent"].to_list() == planted["latent"].head(16).to_list()
        assert own["activation"].to_list() == planted["activation"].head(16).to_list()
        assert row["rest_count"] == 24
        assert row["rest"] == pytest.approx(planted["attribution"].slice(16).sum())


def test_a_token_on_which_nothing_is_active_is_there_with_zero():
    attribution = fake_attribution()
    quiet = replace(attribution, tokens=attribution.tokens.filter(pl.col("token") != 4))
    tokens = saved(AttributionStrip(quiet, tokens=PROMPT), "tokens")
    assert tokens.height == len(PROMPT)
    assert tokens["total"][4] == 0
    assert np.isnan(tokens["error"][4])


def test_heads_by_sources_are_the_frames_numbers_with_zero_where_a_head_does_not_look():
    direct = fake_direct()
    sparse = replace(direct, frame=direct.frame.filter(pl.col("source") != 2))
    strip = AttributionStrip(sparse, tokens=PROMPT)
    cells = rows(strip.direct_header, strip.direct, "cells").row(1, named=True)
    assert (cells["latent"], cells["target"], cells["heads"], cells["sources"]) == (17, 18, 4, 19)
    planted = sparse.frame.filter(latent=17)
    values = np.array(cells["contribution"]).reshape(4, 19)
    attention = np.array(cells["attention"]).reshape(4, 19) / 65_535
    for row in planted.iter_rows(named=True):
        assert values[row["head"], row["source"]] == pytest.approx(row["contribution"], rel=1e-6)
        assert attention[row["head"], row["source"]] == pytest.approx(row["attention"], abs=1e-5)
    assert not values[:, 2].any()
    assert saved(strip, "pairs")["sum"][1] == pytest.approx(values.sum(), rel=1e-5)


def test_heads_and_bias_together_are_the_pre_activation():
    pairs = saved(whole(), "pairs")
    np.testing.assert_allclose(pairs["sum"] + pairs["bias"], pairs["pre"], atol=1e-5)
    without = AttributionStrip(direct=fake_direct().frame)
    assert saved(without, "pairs")["pre"].is_nan().all()


def test_direct_attribution_brings_its_own_tokens_and_starts_at_its_target():
    strip = AttributionStrip(fake_direct(tokens=list(PROMPT)))
    assert saved(strip, "tokens")["text"].to_list() == list(PROMPT)
    assert (strip.latent, strip.token) == (3, 18)
    assert AttributionStrip(direct=fake_direct().frame).about["by_token"] is False


def test_it_starts_with_the_strongest_latent_that_every_part_knows():
    attribution = fake_attribution()
    assert AttributionStrip(attribution, tokens=PROMPT).latent == attribution.latents["latent"][0]
    known = attribution.latents.filter(pl.col("latent").is_in([3, 17, 40]))["latent"].to_list()
    assert whole().latent == known[0]


def test_an_ablation_without_tokens_still_lists_its_latents():
    attribution = replace(fake_attribution(), tokens=schema.ATTRIBUTED_TOKENS.to_frame())
    strip = AttributionStrip(attribution, tokens=PROMPT)
    assert strip.about["by_token"] is False
    assert saved(strip, "ranking").height == attribution.latents.height
    assert saved(strip, "tokens")["text"].to_list() == list(PROMPT)


def test_what_the_library_itself_makes_is_shown():
    lm = ns.load_lm("demo", device="cpu")
    site = "gpt_neox.layers.2.attention"
    width = lm.site(site).width
    W = torch.nn.functional.normalize(torch.randn(64, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    dictionary = ns.Dictionary.from_weights(
        W.T.contiguous(), torch.zeros(64), W, torch.zeros(width), budgets=(8,), site=site
    )
    prompt = "def mean(values): return the"
    attribution = attribute(lm, dictionary, prompt, log_prob(" mean"))
    direct = direct_attribution(lm, dictionary, prompt, attribution.latents["latent"].head(2).to_list())
    strip = AttributionStrip(attribution, direct=direct, faithfulness=attribution.faithfulness([0, 4], orders=2))
    tokens = saved(strip, "tokens")
    assert "".join(tokens["text"]).strip() == prompt
    assert tokens["total"].sum() == pytest.approx(attribution.latents["attribution"].sum(), rel=1e-4)
    pairs = saved(strip, "pairs")
    np.testing.assert_allclose(pairs["sum"] + pairs["bias"], pairs["pre"], atol=1e-4)
    assert strip.about["value"] == pytest.approx(attribution.about["value"])


# Pictures


def test_a_picture_is_cut_to_its_centre_and_the_grid_is_found():
    strip = AttributionStrip(fake_attribution(positions=65), picture=picture((120, 60)))
    assert (strip.about["grid"], strip.about["prefix_tokens"]) == ([8, 8], 1)
    assert Image.open(io.BytesIO(strip.thumbs)).size == (336, 336)
    wide = AttributionStrip(fake_attribution(positions=8), picture=picture((120, 60)), grid=(2, 4))
    assert (wide.about["prefix_tokens"], Image.open(io.BytesIO(wide.thumbs)).size) == (0, (336, 168))


def test_square_grids_are_found_with_and_without_a_cls_token():
    assert [square_grid(n) for n in (65, 64, 50, 49, 7, 2, 0)] == [(8, 8), (8, 8), (7, 7), (7, 7), None, None, None]


# Budgets and answers


def test_saved_view_of_a_long_prompt_stays_within_its_budget():
    long = fake_attribution(positions=512, active=64, d_sae=2000)
    strip = AttributionStrip(
        long, tokens=["tok"] * 512, direct=fake_direct(latents=tuple(range(9)), heads=12, positions=512)
    )
    state = strip.get_state()
    assert len(strip.tables) <= SAVED_BYTES
    assert sum(len(v) if isinstance(v, bytes) else len(json.dumps(v)) for v in state.values()) < 450_000
    assert 0 < strip.about["cells"] < 9
    asked, (block,) = ask(strip, {"id": 1, "kind": "direct", "latent": 8, "target": 511})
    assert rows(asked["header"], block, "cells")["latent"].to_list() == [8]


def test_inputs_that_are_not_saved_come_from_the_kernel():
    attribution = fake_attribution(inputs=60, positions=30, active=40, d_sae=300)
    strip = AttributionStrip(attribution, tokens=[[f"{one}:{at}" for at in range(30)] for one in range(60)])
    assert len(strip.tables) <= SAVED_BYTES
    assert 1 <= len(strip.about["saved"]) < 60
    asked, (block, _) = ask(strip, {"id": 1, "kind": "input", "input_id": 59})
    assert rows(asked["header"], block, "tokens")["text"][3] == "59:3"
    assert rows(asked["header"], block, "shares").height == 30 * 40


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "input", "input_id": 7},
        {"kind": "input", "input_id": "<img>"},
        {"kind": "direct", "latent": 3},
        {"kind": "direct", "latent": 999, "target": 0},
        {"kind": "unknown"},
    ],
)
def test_a_wrong_request_is_answered_with_its_cause(content):
    reply, _ = ask(whole(), {"id": 3, **content})
    assert (reply["id"], reply["ok"]) == (3, False)
    assert reply["error"]["cause"]


# Traits and display


def test_the_chosen_latent_can_be_linked_with_a_feature_dashboard():
    strip, dashboard = whole(), FeatureDashboard(fake_analysis("text"))
    traitlets.link((strip, "latent"), (dashboard, "latent"))
    strip.latent = 17
    assert dashboard.latent == 17
    dashboard.latent = 5
    assert strip.latent == 5
    for wrong in (-1, 1.5, None, True, "x"):
        with pytest.raises(WidgetError, match="latent="):
            strip.latent = wrong


@pytest.mark.parametrize(
    "strip",
    [
        whole,
        lambda: AttributionStrip(fake_direct(), tokens=PROMPT),
        lambda: AttributionStrip(fake_attribution(positions=65), picture=picture()),
        lambda: AttributionStrip(fake_attribution(positions=300), faithfulness=fake_faithfulness()),
        lambda: AttributionStrip(fake_attribution(positions=1, active=1)),
        lambda: AttributionStrip(FakeAttribution(schema.ATTRIBUTED.to_frame(), schema.ATTRIBUTED_TOKENS.to_frame())),
    ],
    ids=["all", "direct", "patches", "long", "one", "empty"],
)
def test_the_static_picture_is_drawn_and_follows_the_choice(strip):
    made = strip()
    first = made.picture()
    assert first[:4] == b"\x89PNG"
    assert len(first) < MAX_BYTES
    assert repr(made).startswith("<AttributionStrip: ")
    if made.frames.tokens.height > 2:
        made.token = 0 if made.token else 1
        assert made.picture() != first


def test_hostile_strings_stay_text():
    names = dict(enumerate(HOSTILE))
    strip = AttributionStrip(fake_attribution(positions=len(HOSTILE), hostile=True), tokens=HOSTILE, names=names)
    data, _ = strip._repr_mimebundle_()
    assert "text/html" not in data
    assert saved(strip, "tokens")["text"][0] == HOSTILE[0]
    json.dumps(strip.about).encode()


# Bad input


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "Nothing to show"),
        ({"attribution": {}}, r"given dict.*no frame"),
        ({"attribution": fake_attribution(), "tokens": PROMPT[:5]}, "5 strings for input 0.*token 18"),
        ({"attribution": fake_attribution(), "tokens": "The doctor"}, "one string per position"),
        ({"attribution": fake_attribution(), "names": "x"}, "names is a str"),
        ({"attribution": fake_attribution(), "picture": picture()}, r"19 positions are no square.*grid="),
        ({"attribution": fake_attribution(positions=65), "picture": "face.jpg"}, "str that cannot be read"),
        ({"attribution": fake_attribution(), "faithfulness": pl.DataFrame({"n": [1]})}, "no column order"),
        ({"attribution": fake_attribution(), "latent": -2}, "latent|number"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_give(given, said):
    with pytest.raises(WidgetError, match=said):
        AttributionStrip(**given)


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(fixture(), indent=1) + "\n", encoding="utf-8")
