"""The feature dashboard on the Python side: traits, answers, display, budgets, bad input."""

from __future__ import annotations

import base64
import html
import io
import json
import threading

import anywidget
import numpy as np
import polars as pl
import pytest
from PIL import Image
from widget_fakes import HOSTILE, LONE_SURROGATE, FakeAnalysis, built, fake_analysis

from nb_sae.errors import WidgetError
from nb_sae.widgets import base, wire
from nb_sae.widgets.cards import Limits, choose_saved, cut_cards
from nb_sae.widgets.feature import FeatureDashboard
from nb_sae.widgets.picture import MAX_BYTES, draw_feature

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")
KINDS = ["patches", "pooled", "text"]


@pytest.fixture(scope="module", params=KINDS)
def analysis(request) -> FakeAnalysis:
    return fake_analysis(request.param)


@pytest.fixture
def dashboard(analysis) -> FeatureDashboard:
    return FeatureDashboard(analysis)


def ask(dashboard: base.Dashboard, content: object) -> tuple[dict, list[bytes]]:
    """Send a message as the browser would, and return the one answer."""
    sent: list = []
    dashboard.send = lambda content, buffers=None: sent.append((content, buffers))
    dashboard._handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})
    assert len(sent) == 1
    return sent[0]


def rows(header: dict, block: bytes, table: str) -> pl.DataFrame:
    from test_widgets_wire import read

    columns = [c["name"] for c in header["tables"][table]["columns"]]
    return pl.DataFrame({name: read(header, block, table, name) for name in columns}, strict=False)


# Traits


def test_latent_is_checked_where_it_is_set(dashboard):
    dashboard.latent = np.int64(3)
    assert dashboard.latent == 3
    for wrong in (-1, 64, 2.5, "7", None, True):
        with pytest.raises(WidgetError, match="latent="):
            dashboard.latent = wrong
    assert dashboard.latent == 3


def test_latent_chosen_in_the_browser_is_read_in_python(dashboard):
    seen = []
    dashboard.observe(lambda change: seen.append(change.new), names=["latent"])
    update = {"method": "update", "state": {"latent": 9}, "buffer_paths": []}
    dashboard._handle_msg({"content": {"data": update}, "buffers": []})
    assert dashboard.latent == 9
    assert seen == [9]


def test_everything_that_is_shown_is_in_synced_traits_under_their_python_names(dashboard, analysis):
    state = dashboard.get_state()
    listed = rows(state["latents_header"], state["latents"], "latents")
    assert listed["latent"].to_list() == list(range(64))
    np.testing.assert_allclose(listed["density"], analysis.latents["density"], rtol=1e-6)
    cards = rows(state["saved_header"], state["saved"], "cards")
    assert cards["latent"].to_list() == dashboard.saved_latents
    assert isinstance(state["thumbs"], bytes)
    json.dumps(state["about"])


# Cards


def test_a_card_shows_exactly_the_examples_of_its_latent(dashboard, analysis):
    reply, (block, _) = ask(dashboard, {"id": 1, "kind": "card", "latent": 5})
    shown = rows(reply["header"], block, "examples")
    planted = analysis.examples.filter(pl.col("latent") == 5).sort("interval", "rank")
    assert shown["act"].to_list() == pytest.approx(planted["act"].to_list())
    inputs = rows(reply["header"], block, "inputs")
    assert inputs["input_id"].gather(shown["input"]).to_list() == planted["input_id"].to_list()


def test_heat_maps_lie_on_the_grid_with_the_prefix_token_taken_off():
    analysis = fake_analysis("patches")
    cards = cut_cards(analysis, [3], Limits(top=4, interval=1))
    shown = cards.tables["examples"].filter(pl.col("interval") == -1)
    planted = analysis.examples.filter((pl.col("latent") == 3) & (pl.col("kind") == "top")).sort("rank").head(4)
    scale = cards.tables["cards"]["scale"][0]
    assert scale == pytest.approx(analysis.latents["max"][3], rel=1e-6)
    for found, want in zip(shown.iter_rows(named=True), planted.iter_rows(named=True), strict=True):
        assert found["at"] == want["token"] - 1
        np.testing.assert_allclose(np.array(found["map"]) / 255 * scale, want["map"][1:], atol=scale / 255)


def test_a_peak_at_the_prefix_token_is_no_patch():
    analysis = fake_analysis("patches")
    examples = analysis.examples.with_columns(token=pl.lit(0, pl.UInt32))
    shown = cut_cards(FakeAnalysis(**{**vars(analysis), "examples": examples}), [3], Limits(1, 0)).tables["examples"]
    assert shown["at"].to_list() == [-1]
    assert len(shown["map"][0]) == 64


def test_text_keeps_exact_values_and_windows_keep_the_peak():
    analysis = fake_analysis("text")
    for window in (None, (3, 2)):
        tables = cut_cards(analysis, [3], Limits(6, 0, window=window)).tables
        for row in tables["examples"].iter_rows(named=True):
            context = tables["contexts"].row(row["context"], named=True)
            position = context["start"] + row["at"]
            whole = analysis.contexts["tokens"][tables["inputs"]["input_id"][row["input"]]].to_list()
            assert position == row["token"]
            assert context["tokens"][row["at"]] == whole[position]
            assert dict(zip(row["map_at"], row["map"], strict=True))[row["at"]] == pytest.approx(row["act"])
            if window:
                assert len(context["tokens"]) <= 6


def test_tokens_of_a_later_context_are_found_by_their_number():
    analysis = fake_analysis("text", inputs=2)
    second = pl.DataFrame(
        {"input_id": [0], "start": [64], "tokens": [[f"t{n}" for n in range(64)]]}, schema=analysis.contexts.schema
    )
    examples = analysis.examples.filter(pl.col("latent") == 3).head(1)
    examples = examples.with_columns(
        input_id=pl.lit(0, pl.UInt32),
        token=pl.lit(64 + 5, pl.UInt32),
        map_tokens=pl.lit([64 + 5, 64 + 7], pl.List(pl.UInt32)),
        map=pl.lit([2.0, 1.0], pl.List(pl.Float32)),
    )
    changed = {**vars(analysis), "contexts": pl.concat([analysis.contexts, second]), "examples": examples}
    tables = cut_cards(FakeAnalysis(**changed), [3], Limits(4, 0, window=(2, 4))).tables
    row = tables["examples"].row(0, named=True)
    tokens = tables["contexts"]["tokens"][0].to_list()
    assert tokens[row["at"]] == "t5"
    assert [tokens[at] for at in row["map_at"]] == ["t5", "t7"]


def test_pictures_that_several_cards_share_are_stored_once():
    analysis = fake_analysis("patches", inputs=5)
    cards = cut_cards(analysis, list(range(20)), Limits(16, 4))
    assert len(cards.thumbs) == 5
    assert cards.tables["examples"].height == 20 * (16 + 40)


def test_what_does_not_fit_is_dropped_evenly_and_counted():
    analysis = fake_analysis("pooled", inputs=400, d_sae=20)
    cards = cut_cards(analysis, list(range(10)), Limits(16, 4, max_bytes=120_000))
    per_card = cards.tables["examples"].group_by("card").len()["len"]
    assert cards.dropped > 0
    assert per_card.max() - per_card.min() <= 1
    assert sum(map(len, cards.thumbs)) < 120_000
    assert cards.tables["cards"]["top_offered"].to_list() == [16] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_saved_state_of_a_thousand_latents_stays_below_a_megabyte(kind):
    dashboard = FeatureDashboard(fake_analysis(kind, d_sae=1024, inputs=600))
    state = dashboard.get_state()
    sizes = {k: len(v) if isinstance(v, bytes) else len(json.dumps(v).encode()) for k, v in state.items()}
    assert sum(sizes.values()) <= 1_000_000, sizes
    assert len(dashboard.saved_latents) == 64


# Which cards are saved


def test_saved_cards_follow_the_stated_rule():
    latents = pl.DataFrame(
        {
            "latent": [0, 1, 2, 3, 4, 5],
            "density": [0.1, 0.9, 0.1, 0.1, 0.0, 0.1],
            "max": [1.0, 99.0, 5.0, 3.0, 0.0, 2.0],
            "level": [0, 0, 0, 1, 0, 1],
            "dead": [False, False, False, False, True, False],
        }
    )
    assert choose_saved(latents, 10) == [2, 3, 0, 5, 1]
    assert choose_saved(latents, 2) == [2, 3]


def test_saved_can_be_named_and_always_holds_the_chosen_latent():
    analysis = fake_analysis("pooled")
    dashboard = FeatureDashboard(analysis, saved=[5, 9, 5], latent=7)
    assert dashboard.saved_latents == [5, 9, 7]
    assert FeatureDashboard(analysis, saved=3).latent == FeatureDashboard(analysis, saved=3).saved_latents[0]
    for wrong, said in ((0, "keeps no card"), (["a"], "no whole number"), ([64], "outside"), (2.5, "neither")):
        with pytest.raises(WidgetError, match=said):
            FeatureDashboard(analysis, saved=wrong)


# Requests


@pytest.mark.parametrize(
    "content",
    [
        {"id": 7, "kind": "card", "latent": 10**9},
        {"id": 7, "kind": "card", "latent": "<img>"},
        {"id": 7, "kind": "card"},
        {"id": 7, "kind": "unknown"},
        {"id": 7},
        {"id": 7, "kind": 3},
    ],
)
def test_a_wrong_request_is_answered_with_cause_and_number(dashboard, content):
    reply, buffers = ask(dashboard, content)
    assert reply["id"] == 7
    assert reply["ok"] is False
    assert reply["error"]["cause"]
    assert buffers == []


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_message_that_is_no_request_is_answered(dashboard, content):
    assert ask(dashboard, content)[0]["ok"] is False


def test_a_fault_of_ours_is_an_answer_with_details(dashboard, monkeypatch):
    monkeypatch.setattr(dashboard, "_respond", lambda kind, request: 1 / 0)
    error = ask(dashboard, {"id": 1, "kind": "card", "latent": 1})[0]["error"]
    assert "ZeroDivisionError" in error["cause"]
    assert error["fix"]
    assert "Traceback" in error["details"]


def test_ping_is_answered_while_another_thread_holds_a_request(dashboard):
    held, release = threading.Event(), threading.Event()

    def slow(kind, request):
        held.set()
        release.wait(5)
        return {}, []

    dashboard._respond = slow
    sent = []
    dashboard.send = lambda content, buffers=None: sent.append(content["id"])
    thread = threading.Thread(target=dashboard._on_request, args=(dashboard, {"id": 1, "kind": "card"}, []))
    thread.start()
    held.wait(5)
    dashboard._on_request(dashboard, {"id": 2, "kind": "ping"}, [])
    release.set()
    thread.join()
    assert sent == [2, 1]


def test_many_threads_get_their_own_answers(dashboard):
    answers: dict[int, list[int]] = {}
    lock = threading.Lock()

    def send(content, buffers=None):
        found = rows(content["header"], buffers[0], "cards")["latent"].to_list()
        with lock:
            answers[content["id"]] = found

    dashboard.send = send
    threads = [
        threading.Thread(target=dashboard._on_request, args=(dashboard, {"id": n, "kind": "card", "latent": n}, []))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: [n] for n in range(12)}


# Display


def test_mime_bundle_has_the_view_a_picture_and_text_but_no_html(dashboard):
    data, _ = dashboard._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    png = base64.b64decode(data["image/png"])
    assert len(png) < MAX_BYTES
    assert Image.open(io.BytesIO(png)).width == 1800
    assert str(dashboard.latent) in data["text/plain"]


def test_display_puts_the_picture_before_the_live_view(dashboard, monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, **kwargs: outputs.append(data))
    dashboard._ipython_display_()
    twin, live = outputs
    assert twin["text/html"].startswith(f'<div data-nbsae="{dashboard.model_id}"><img alt="FeatureDashboard')
    assert "data:image/png;base64," in twin["text/html"]
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == dashboard.model_id == dashboard.twin
    assert not {"text/html", "image/png"} & set(live)


def test_the_picture_follows_the_latent_and_is_drawn_once(dashboard, monkeypatch):
    first = dashboard.picture()
    monkeypatch.setattr(dashboard, "_draw_picture", lambda: pytest.fail("drawn twice"))
    assert dashboard.picture() is first
    monkeypatch.undo()
    dashboard.latent = 63
    assert dashboard.picture() != first


def test_scripts_that_are_not_built_are_named_with_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "STATIC", tmp_path)
    with pytest.raises(WidgetError, match=r"feature\.js is not built.*make widgets"):
        FeatureDashboard(fake_analysis("pooled"))


def test_messages_are_registered_and_never_overridden():
    """anywidget routes its own commands through `_handle_custom_msg`; ours would hide it."""
    for cls in FeatureDashboard.__mro__[: FeatureDashboard.__mro__.index(anywidget.AnyWidget)]:
        assert "_handle_custom_msg" not in vars(cls)


# Bad and hostile input


def test_what_is_no_analysis_is_refused_with_what_is_missing():
    with pytest.raises(WidgetError, match=r"given dict, which has no latents.*ns\.analyze"):
        FeatureDashboard({})
    broken = fake_analysis("pooled")
    with pytest.raises(WidgetError, match="has 64 rows, the dictionary 65 latents"):
        FeatureDashboard(FakeAnalysis(**{**vars(broken), "d_sae": 65}))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({99: "x"}, "speaks of latent 99"),
        ("glasses", "names is a str"),
        (pl.DataFrame({"a": [1]}), "latent, name is missing"),
    ],
)
def test_names_that_fit_no_latent_are_refused(names, said):
    with pytest.raises(WidgetError, match=said):
        FeatureDashboard(fake_analysis("pooled"), names=names)


@pytest.mark.parametrize("examples", [0, -1, 1000, 2.5])
def test_numbers_of_examples_that_cannot_be_shown_are_refused(examples):
    with pytest.raises(WidgetError, match="examples="):
        FeatureDashboard(fake_analysis("pooled"), examples=examples)


@pytest.mark.parametrize("kind", ["patches", "text"])
def test_hostile_strings_stay_text_in_state_display_and_picture(kind, monkeypatch):
    names = dict(enumerate([*HOSTILE, LONE_SURROGATE]))
    dashboard = FeatureDashboard(fake_analysis(kind, d_sae=20, hostile=True), names=names, latent=0)
    state = dashboard.get_state()
    json.dumps(state["about"]).encode("utf-8")
    listed = rows(state["latents_header"], state["latents"], "latents")
    assert listed["name"].to_list()[: len(HOSTILE)] == list(HOSTILE)
    assert listed["name"][len(HOSTILE)] == "lone \ufffd surrogate"
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, **kwargs: outputs.append(data))
    dashboard._ipython_display_()
    assert outputs[0]["text/html"].count("<") == 3  # div, img and the end of div: nothing of the name
    assert html.escape("onerror=\"document.title='owned'\"") in outputs[0]["text/html"]
    assert len(base64.b64decode(outputs[0]["text/html"].split("base64,")[1].split('"')[0])) < MAX_BYTES


def test_the_picture_draws_strange_inputs():
    base_case = fake_analysis("patches", inputs=3)
    assert draw_feature(fake_analysis("patches", pictures=False), 0)[:4] == b"\x89PNG"
    wide = pl.DataFrame(
        {"input_id": [0, 1, 2], "width": [64, 64, 1], "height": [8, 64, 64], "webp": base_case.pictures["webp"]},
        schema=base_case.pictures.schema,
    )
    assert draw_feature(FakeAnalysis(**{**vars(base_case), "pictures": wide}), 1)[:4] == b"\x89PNG"
    assert draw_feature(base_case, 63, "dead " + wire.clean_text(LONE_SURROGATE))[:4] == b"\x89PNG"
    text = fake_analysis("text")
    assert draw_feature(FakeAnalysis(**{**vars(text), "contexts": None}), 2)[:4] == b"\x89PNG"
