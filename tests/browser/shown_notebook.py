"""A notebook that shows dashboards, as if it had been executed and saved: no kernel is started for it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, cast

from ipywidgets.widgets.widget import _remove_buffers
from nbformat import NotebookNode
from report_pages import code, notebook, shown, with_widgets

from nb_sae.widgets.base import Dashboard


def saved_model(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard's model as it lies in the metadata of a saved notebook."""
    state, paths, buffers = cast("tuple[dict, list, list]", _remove_buffers(dashboard.get_state()))
    encoded = [base64.b64encode(one).decode() for one in buffers]
    return {
        "model_name": "AnyModel",
        "model_module": "anywidget",
        "model_module_version": "~0.11.*",
        "state": state,
        "buffers": [
            {"path": path, "encoding": "base64", "data": data} for path, data in zip(paths, encoded, strict=True)
        ],
    }


def shown_cell(dashboard: Dashboard, source: str = "dashboard") -> NotebookNode:
    """A cell that displayed the dashboard: its picture, then its live view."""
    twin = shown(html=dashboard._twin_bundle(base64.b64encode(dashboard.picture()).decode())[0]["text/html"])
    return code(source, twin, shown(view={"model_id": dashboard.model_id}, plain=repr(dashboard)))


def notebook_of(dashboards: Iterable[Dashboard], *cells: NotebookNode) -> NotebookNode:
    """A notebook of these cells and then one for each dashboard, with everything saved."""
    held = list(dashboards)
    made = notebook(*cells, *(shown_cell(one, type(one).__name__) for one in held))
    return with_widgets(made, **{str(one.model_id): saved_model(one) for one in held})
