"""Colab: ipywidgets 7, an old anywidget, a widget manager that has to be asked for. Also run by `make test-compat`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from IPython.core import display_functions
from widget_fakes import built, fake_analysis

import nb_sae as ns

__all__ = ["built"]
VIEW = "application/vnd.jupyter.widget-view+json"
MANAGER = "https://example.org/manager.js"


@pytest.fixture
def dashboard(built) -> ns.FeatureDashboard:
    return ns.FeatureDashboard(fake_analysis("patches"), latent=3, saved=[1, 3])


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What IPython was asked to display, in order: data and metadata."""
    outputs: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def display(*values, metadata=None, raw=False, **_):
        assert raw  # neither IPython nor ipywidgets is to choose again what to show of it
        outputs.extend((value, metadata or {}) for value in values)

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(display_functions, "display", display)
    return outputs


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`google.colab.output` as a notebook there has it; what it was asked for is noted."""
    asked: list[str] = []
    output = ModuleType("google.colab.output")
    widgets = ModuleType("_widgets")
    widgets._installed_url = None  # type: ignore[attr-defined]

    def enable_custom_widget_manager() -> None:
        asked.append("manager")
        widgets._installed_url = MANAGER  # type: ignore[attr-defined]

    output.enable_custom_widget_manager = enable_custom_widget_manager  # type: ignore[attr-defined]
    output._widgets = widgets  # type: ignore[attr-defined]
    for name, module in (
        ("google", ModuleType("google")),
        ("google.colab", ModuleType("google.colab")),
        ("google.colab.output", output),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    from anywidget import _util

    once = getattr(_util, "enable_custom_widget_manager_once", None)
    if once is not None:
        once.cache_clear()
    return asked


def test_display_gives_the_picture_first_and_then_the_view(dashboard: ns.FeatureDashboard, shown):
    """ipywidgets 7 has an `_ipython_display_` of its own, which would pass over the picture and the words."""
    dashboard._ipython_display_()
    (picture, _), (view, _) = shown
    assert f'data-nbsae="{dashboard.model_id}"' in picture["text/html"]
    assert "data:image/png;base64," in picture["text/html"]
    assert view[VIEW]["model_id"] == dashboard.model_id
    assert view["text/plain"] == picture["text/plain"] == dashboard._summary()
    assert "image/png" not in view  # no host shows the picture twice


def test_bundle_holds_view_picture_and_words(dashboard: ns.FeatureDashboard):
    data, _ = dashboard._repr_mimebundle_()
    assert set(data) == {VIEW, "text/plain", "image/png"}
    assert data[VIEW]["model_id"] == dashboard.model_id


def test_show_displays_each_widget_once(dashboard: ns.FeatureDashboard, monkeypatch: pytest.MonkeyPatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    ns.show(dashboard, dashboard)
    assert displayed == [dashboard, dashboard]


def test_in_colab_the_custom_widget_manager_is_asked_for_and_named(colab: list[str], shown, built):
    dashboard = ns.FeatureDashboard(fake_analysis("patches"), latent=3, saved=[1, 3])
    assert colab  # before the first display: a view without it stays empty
    dashboard._ipython_display_()
    metadata = shown[1][1]
    assert metadata[VIEW]["colab"]["custom_widget_manager"]["url"] == MANAGER
    assert VIEW not in shown[0][1]


def test_outside_colab_no_manager_is_named(dashboard: ns.FeatureDashboard, shown):
    dashboard._ipython_display_()
    assert VIEW not in shown[1][1]


def test_state_is_whole_for_a_front_end_that_asks_later(dashboard: ns.FeatureDashboard):
    """Colab reads a model's state when its output is drawn, not when it was made."""
    state = dashboard.get_state()
    assert {"_esm", "_css", "about", "latents", "latents_header", "latent", "twin"} <= set(state)
    assert (state["_model_module"], state["_view_module"]) == ("anywidget", "anywidget")
    assert isinstance(state["latents"], bytes | memoryview)
