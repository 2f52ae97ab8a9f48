"""Every dashboard: what a trait cannot be fails where it is set; every message has an answer, and the next one too."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
import traitlets
from bias_fakes import fake_bias
from flow_fakes import fake_flow
from strip_fakes import fake_attribution
from test_widgets import ask
from test_widgets_concept import FakeEditor, fake_names
from widget_fakes import built, fake_analysis, fake_read

import nb_sae as ns
from nb_sae.errors import WidgetError
from nb_sae.widgets import wire
from nb_sae.widgets.base import Dashboard

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")


def _concept() -> Dashboard:
    editor: Any = FakeEditor()
    return ns.ConceptDashboard(fake_analysis("pooled"), fake_names(), editor=editor)


KINDS: dict[str, Callable[[], Dashboard]] = {
    "feature": lambda: ns.FeatureDashboard(fake_analysis("text"), saved=2, read=fake_read),
    "concept": _concept,
    "bias": lambda: ns.BiasDashboard(fake_bias(8, images=2, inputs=20)),
    "attribution": lambda: ns.AttributionStrip(fake_attribution()),
    "flow": lambda: ns.FlowDashboard(fake_flow(2, 20)),
    "atlas": lambda: ns.AtlasDashboard(fake_analysis("text")),
    "monitor": lambda: ns.TrainMonitor(),
}
HUGE = "x" * 10_000_000
MESSAGES = [
    None, [], "text", 3, b"bytes", {}, {"id": 1}, {"id": 1, "kind": 3}, {"id": 1, "kind": "unknown"},
    {"id": 1, "kind": HUGE}, {"id": HUGE, "kind": "ping2"}, {"id": [], "kind": "card"},
    {"id": 1, "kind": "card", "latent": "<img src=x>"}, {"id": 1, "kind": "card", "latent": 10**30},
    {"id": 1, "kind": "cards", "latents": [["nowhere", {}]]}, {"id": 1, "kind": "find", "text": HUGE},
    {"id": 1, "kind": "read", "latent": 1, "text": HUGE}, {"id": 1, "kind": "edit", "row": None, "set": 3},
    {"id": 1, "kind": "page", "site": 3, "latent": None}, {"id": 1, "kind": "input", "input_id": -1},
    {"id": 1, "kind": "pictures", "input_ids": "all"}, {"id": 1, "kind": "table", "name": "../../etc/passwd"},
    {"id": 1, "kind": "fork", "run": 99}, {"id": 1, "kind": "concept", "latent": [1]}, {"id": 1, "kind": "script"},
]  # fmt: skip


@cache
def _made(kind: str) -> Dashboard:
    return KINDS[kind]()


@pytest.fixture(params=KINDS)
def dashboard(request) -> Dashboard:
    return _made(request.param)


def own_traits(dashboard: Dashboard, *kinds: type) -> dict[str, traitlets.TraitType]:
    """The synced traits that are ours, of these classes."""
    ours = {name for cls in type(dashboard).__mro__ if cls.__module__.startswith("nb_sae") for name in vars(cls)}
    return {
        name: trait for name, trait in dashboard.traits(sync=True).items() if name in ours and isinstance(trait, kinds)
    }


# Traits


def test_a_trait_of_another_type_is_refused_where_it_is_set_and_stays(dashboard):
    wrong = {traitlets.Dict: 3, traitlets.Bytes: "text", traitlets.List: 3, traitlets.Unicode: 3, traitlets.Int: "text"}
    before = dashboard.get_state()
    for cls, value in wrong.items():
        for name in own_traits(dashboard, cls):
            with pytest.raises(WidgetError):
                setattr(dashboard, name, value)
    for name in {"latent", "site", "token", "input", "selected", "colour"} & set(dashboard.keys):
        for value in (-1, 2.5, None, object(), "nowhere"):
            with pytest.raises(WidgetError):
                setattr(dashboard, name, value)
    assert dashboard.get_state() == before


def test_tables_that_are_cut_off_or_without_a_header_are_refused(dashboard):
    pairs = [name for name in own_traits(dashboard, traitlets.Bytes) if dashboard.has_trait(f"{name}_header")]
    assert pairs
    for name in pairs:
        block = getattr(dashboard, name)
        if block:
            with pytest.raises(WidgetError, match="do not belong together"):
                setattr(dashboard, name, block[:-1])
            with pytest.raises(WidgetError, match="do not belong together"):
                setattr(dashboard, name, block + b"\0" * 8)
        assert getattr(dashboard, name) == block
        damaged = ({"version": 9, "tables": {}}, {"version": 1, "tables": 3}, {"x": 1}, {"ends": [3, 2]})
        for header in (*damaged, {"version": 1, "tables": {"a": {"rows": 1, "columns": [{"dtype": "f64"}]}}}):
            with pytest.raises(WidgetError):
                setattr(dashboard, f"{name}_header", header)


def test_the_message_names_what_was_given_and_what_was_expected():
    with pytest.raises(WidgetError, match=r"FeatureDashboard\.about was set to 3, a int\. Expected a dict"):
        _made("feature").about = 3
    with pytest.raises(WidgetError, match=r"7 bytes were given, the header speaks of \d"):
        _made("feature").latents = b"1234567"


def test_packed_tables_pass_their_own_check():
    """The null of the check: whatever `pack` writes belongs together."""
    for frames in ({}, {"none": _rows(0)}, {"some": _rows(3), "more": _rows(7)}):
        header, block = wire.pack(frames)
        wire.check_header(header)
        wire.check_block(header, block)


def _rows(count: int) -> pl.DataFrame:
    columns = {"a": range(count), "b": ["ü" * row for row in range(count)], "c": [[1.5] * row for row in range(count)]}
    return pl.DataFrame(columns, schema={"a": pl.UInt32, "b": pl.String, "c": pl.List(pl.Float32)})


def test_a_choice_of_the_browser_that_cannot_be_is_taken_back_there():
    dashboard = KINDS["feature"]()
    sent: list = []
    dashboard.send = lambda content, buffers=None: sent.append(content)
    shown: list = []
    dashboard.send_state = lambda key=None: shown.append(key)
    before = dashboard.latent
    for state in ({"latent": 10**9}, {"latent": "<img>"}, {"about": 3}, {"latents": b""}):
        dashboard._handle_msg(
            {"content": {"data": {"method": "update", "state": state, "buffer_paths": []}}, "buffers": []}
        )
    assert dashboard.latent == before
    assert [set(one) for one in sent] == [{"refused"}] * 4
    assert shown[-4:] == [["latent"], ["latent"], ["about"], ["latents"]]


# Messages


def test_every_message_is_answered_and_the_next_one_too(dashboard):
    for content in MESSAGES:
        reply, buffers = ask(dashboard, content)
        assert reply["ok"] is False, content
        assert reply["error"]["cause"]
        assert len(json.dumps(reply)) < 20_000
        assert buffers == []
    assert ask(dashboard, {"id": 5, "kind": "ping"})[0] == {"id": 5, "ok": True}


def test_an_answer_that_cannot_be_sent_is_an_error_that_is_sent(monkeypatch):
    dashboard = KINDS["feature"]()
    monkeypatch.setattr(dashboard, "_respond", lambda kind, request: ({"value": np.float64(3)}, []))
    sent = []

    def send(content, buffers=None):
        if "value" in content:
            raise TypeError("Object of type float64 is not JSON serializable")
        sent.append(content)

    dashboard.send = send
    dashboard._on_request(dashboard, {"id": 3, "kind": "card"}, [])
    assert sent[0]["ok"] is False
    assert "JSON" in sent[0]["error"]["cause"]


def test_the_stop_button_is_answered_before_it_stops(monkeypatch):
    dashboard = KINDS["feature"]()

    def stopped(kind, request):
        raise KeyboardInterrupt

    monkeypatch.setattr(dashboard, "_respond", stopped)
    sent: list = []
    dashboard.send = lambda content, buffers=None: sent.append(content)
    with pytest.raises(KeyboardInterrupt):
        dashboard._on_request(dashboard, {"id": 3, "kind": "card", "latent": 1}, [])
    assert sent[0]["ok"] is False
    monkeypatch.undo()
    assert ask(dashboard, {"id": 4, "kind": "card", "latent": 1})[0]["ok"] is True


def test_requests_are_answered_on_other_threads_while_a_cell_sets_and_draws(dashboard):
    """As with ipykernel 7: the cell runs on the main thread, the browser's messages arrive on another."""
    answers: list[dict] = []
    dashboard.send = lambda content, buffers=None: answers.append(content)
    done = threading.Event()

    def browser() -> None:
        number = 0
        while not done.is_set() or number < 20:
            number += 1
            for kind in ("ping", "card", "unknown"):
                dashboard._on_request(dashboard, {"id": number, "kind": kind, "latent": number % 8}, [])
            if number > 200:
                break

    thread = threading.Thread(target=browser)
    thread.start()
    for _ in range(3):
        dashboard.get_state()
        dashboard.picture()
        repr(dashboard)
    done.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(answers) >= 60
    assert len(answers) % 3 == 0
    assert all(one["ok"] for one in answers[::3])
    assert not any(one["ok"] for one in answers[2::3])
