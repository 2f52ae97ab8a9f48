"""Scripts that dashboards share: a notebook with many carries each once, and every one of them is found."""

from __future__ import annotations

from collections.abc import Iterator

import ipywidgets
import pytest
from nbformat import NotebookNode
from test_widgets import ask
from widget_fakes import built, fake_analysis

import nb_sae as ns
from nb_sae.reporting.widgets import SavedWidgets
from nb_sae.widgets import runtime
from nb_sae.widgets.base import read_static

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")


@pytest.fixture(autouse=True)
def sharing() -> Iterator[None]:
    ns.share_scripts()
    yield
    ns.share_scripts(False)
    runtime._scripts.clear()


def features() -> ns.FeatureDashboard:
    return ns.FeatureDashboard(fake_analysis("text"), saved=2)


def test_dashboards_of_a_kind_carry_their_script_once():
    one, two = features(), features()
    assert one.runtime == two.runtime != ""
    script = runtime._scripts["feature"]
    assert script.get_state()["_esm"] == read_static("feature.js")
    assert script.get_state()["sheet"] == read_static("feature.css")
    for dashboard in (one, two):
        state = dashboard.get_state()
        assert len(state["_esm"]) < 3_000
        assert state["_css"] == ""
        assert state["runtime"] == f"anywidget:{script.model_id}"


def test_kinds_have_a_script_each():
    other = ns.ConceptDashboard(fake_analysis("text"), _names())
    assert features().runtime != other.runtime


def test_without_sharing_a_dashboard_carries_its_own():
    ns.share_scripts(False)
    state = features().get_state()
    assert state["_esm"] == read_static("feature.js")
    assert state["runtime"] == ""


def test_dashboards_made_before_stay_as_they_are():
    ns.share_scripts(False)
    before = features()
    ns.share_scripts()
    features()
    assert before.get_state()["_esm"] == read_static("feature.js")
    assert ask(before, {"id": 1, "kind": "script"})[0]["ok"] is False


def test_a_hidden_widget_that_was_closed_is_made_again():
    first = features().runtime
    ipywidgets.Widget.close_all()
    again = features()
    assert again.runtime != first
    assert runtime._scripts["feature"].comm is not None


def test_the_kernel_gives_the_script_to_a_page_that_has_none():
    reply, buffers = ask(features(), {"id": 4, "kind": "script"})
    assert reply == {"id": 4, "ok": True, "script": read_static("feature.js"), "sheet": read_static("feature.css")}
    assert buffers == []


def test_a_report_keeps_the_hidden_widget_of_what_it_shows():
    dashboards = [features(), features()]
    script = runtime._scripts["feature"]
    state = {
        one.model_id: {"model_name": "AnyModel", "state": one.get_state(), "buffers": []}
        for one in (*dashboards, script)
    }
    shown = SavedWidgets.of(
        NotebookNode(metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": state}}})
    )
    shown.shown = [one.model_id for one in dashboards]
    assert set(shown.reachable()) == set(state)


def _names():
    import polars as pl

    return pl.DataFrame({"latent": [1, 2], "name": ["a", "b"]})
