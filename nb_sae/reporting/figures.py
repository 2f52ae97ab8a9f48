"""Plotly figures in a report: JSON that asks for nothing, plotly.js once, and a table where no script runs."""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nb_sae.errors import MissingDependencyError
from nb_sae.reporting.pictures import Treatment, treat_data_uri, treat_strings
from nb_sae.reporting.text import Scrubber, map_strings, printable, script_json
from nb_sae.reporting.widgets import compressed

MIME = "application/vnd.plotly.v1+json"
# These draw on outlines or tiles that plotly.js fetches.
_FETCHING = frozenset({
    "choropleth", "choroplethmap", "choroplethmapbox", "densitymap", "densitymapbox", "scattergeo", "scattermap",
    "scattermapbox",
})  # fmt: skip
# These compile their shaders with `new Function`.
_EVALUATING = frozenset({"scattergl", "scatterpolargl", "splom", "parcoords", "heatmapgl", "pointcloud"})
_NEEDS_MAP = '<p class="note">This figure needs map data from the network, which a report never asks for.</p>'
_TABLE_POINTS = 12
_TYPED = {"f8": "d", "f4": "f", "i4": "i", "u4": "I", "i2": "h", "u2": "H", "i1": "b", "u1": "B", "i8": "q", "u8": "Q"}


@dataclass
class Figures:
    """The plotly figures of one page."""

    scrub: Scrubber
    treatment: Treatment = "keep"
    count: int = 0
    evaluates: bool = False
    """Whether a figure needs `new Function` to draw itself."""
    _data: list[str] = field(default_factory=list)

    def add(self, figure: Mapping[str, Any], fallback: str = "") -> str:
        """The place of a figure in the page, with what is shown while there is no script.

        A figure that would fetch a map is shown as its table.
        """
        fallback = fallback or table(figure)
        if fetches(figure):
            return f"{fallback}{_NEEDS_MAP}"
        self.count += 1
        self.evaluates |= any(trace.get("type") in _EVALUATING for trace in _traces(figure))
        name = f"nbsae-figure-{self.count}"
        shown = map_strings(treated(figure, self.treatment), self.scrub.known)
        given = shown.get("config")
        config = dict(given) if isinstance(given, Mapping) else {}
        config |= {"plotlyServerURL": "", "showSendToCloud": False, "topojsonURL": ""}
        value = {"data": shown.get("data") or [], "layout": shown.get("layout") or {}, "config": config}
        self._data.append(f'<script type="application/json" id="{name}">{script_json(value)}</script>')
        return f'<div class="nbsae-plotly" data-figure="{name}"><div class="static">{fallback}</div></div>'

    def scripts(self) -> str:
        """The figures' data, and plotly.js once; empty where there is no figure."""
        if not self._data:
            return ""
        library = (
            '<script type="application/octet-stream" data-nbsae-plotly data-encoding="gzip+base64">'
            f"{_plotly_js()}</script>"
        )
        return "\n".join([*self._data, library])


@cache
def _plotly_js() -> str:
    """plotly.js as it is stored in a page; compressing it takes a second."""
    return compressed(plotly_source())


def plotly_source() -> str:
    """The plotly.js that the plotly package brings.

    Raises:
        MissingDependencyError: There is no such package.
    """
    spec = find_spec("plotly")
    path = Path(spec.origin).parent / "package_data" / "plotly.min.js" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise MissingDependencyError(
            "The notebook holds plotly figures, but this Python has no plotly package with plotly.min.js. "
            "Run: pip install plotly"
        )
    return path.read_text(encoding="utf-8")


def _traces(figure: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    data = figure.get("data")
    for trace in data if isinstance(data, list | tuple) else ():
        if isinstance(trace, Mapping):
            yield trace


def fetches(figure: Mapping[str, Any]) -> bool:
    """Whether plotly.js would ask the network for something to draw this figure."""
    kinds = [str(trace.get("type", "scatter")) for trace in _traces(figure)]
    return any(kind in _FETCHING for kind in kinds)


def treated(figure: Mapping[str, Any], treatment: Treatment) -> dict[str, Any]:
    """A figure without addresses of pictures elsewhere, and with the pictures inside it treated."""
    shown = dict(figure)
    layout = figure.get("layout")
    images = layout.get("images") if isinstance(layout, Mapping) else None
    if isinstance(layout, Mapping) and isinstance(images, list):
        kept = []
        for image in images:
            source = treat_data_uri(str(image.get("source", "")), treatment) if isinstance(image, Mapping) else None
            if source is not None:
                kept.append({**image, "source": source})
        shown["layout"] = {**layout, "images": kept}
    traces = []
    for trace in _traces(figure):
        if trace.get("type") == "image":
            source = treat_data_uri(str(trace.get("source", "")), treatment)
            pixels = {"z": trace["z"]} if "z" in trace and treatment == "keep" else {}
            rest = {key: value for key, value in trace.items() if key not in ("source", "z", "customdata")}
            traces.append({**rest, **pixels, **({"source": source} if source else {})})
        else:
            traces.append(trace)
    shown["data"] = traces
    return shown if treatment == "keep" else treat_strings(shown, treatment)


def table(figure: Mapping[str, Any]) -> str:
    """The first points of every trace as an HTML table: what a reader gets where no script runs."""
    layout = figure.get("layout")
    layout = layout if isinstance(layout, Mapping) else {}
    rows = []
    for number, trace in enumerate(_traces(figure)):
        name = str(trace.get("name") or trace.get("type") or f"trace {number + 1}")
        columns = [(key, _values(trace.get(key))) for key in ("labels", "x", "y", "z", "values", "text")]
        columns = [(key, values) for key, values in columns if values]
        for key, values in columns:
            more = f" … ({len(values)} in all)" if len(values) > _TABLE_POINTS else ""
            shown = ", ".join(_number(value) for value in values[:_TABLE_POINTS])
            rows.append(
                f"<tr><th>{_text(name)}</th><td>{_text(_axis(layout, key))}</td><td>{_text(shown + more)}</td></tr>"
            )
    caption = title_of(figure) or "Figure"
    head = f"<caption>{_text(caption)} (interactive in the HTML report)</caption>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def title_of(figure: Mapping[str, Any]) -> str:
    """The title of a figure; empty if it has none."""
    layout = figure.get("layout")
    return _title(layout) if isinstance(layout, Mapping) else ""


def _values(value: Any) -> list[Any]:
    """A trace's column as a flat list; typed arrays (`{"dtype", "bdata"}`) are decoded."""
    if isinstance(value, Mapping) and "bdata" in value:
        code = _TYPED.get(str(value.get("dtype", "")).lstrip("<|"))
        if code is None or "," in str(value.get("shape", "")):
            return []
        try:
            encoded = base64.b64decode(str(value["bdata"]))
        except ValueError:
            return []
        size = struct.calcsize(code)
        return list(struct.unpack(f"<{len(encoded) // size}{code}", encoded[: len(encoded) // size * size]))
    if isinstance(value, list | tuple) and value and not isinstance(value[0], list | tuple | Mapping):
        return list(value)
    return []


def _axis(layout: Mapping[str, Any], key: str) -> str:
    axis = layout.get(f"{key}axis")
    title = _title(axis) if isinstance(axis, Mapping) else ""
    return title or key


def _title(holder: Mapping[str, Any]) -> str:
    title = holder.get("title")
    return str(title.get("text") or "") if isinstance(title, Mapping) else str(title or "")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: str) -> str:
    return html.escape(printable(value), quote=True)
