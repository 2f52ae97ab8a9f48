"""One output of a cell as HTML that runs nothing of its own."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nbformat import NotebookNode

from nb_sae.reporting import figures
from nb_sae.reporting.figures import Figures
from nb_sae.reporting.markup import Markup, highlight, svg_picture
from nb_sae.reporting.pictures import Treatment, data_uri, decode_base64, treat_data_uri
from nb_sae.reporting.text import Scrubber, ansi_html, joined, printable
from nb_sae.reporting.widgets import VIEW_MIME, SavedWidgets, StaticPicture, progress_html, static_picture

_RASTER = ("image/png", "image/jpeg", "image/webp", "image/gif")
_GREY_BOX = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="480" height="320">'
    '<rect width="100%" height="100%" fill="#9a9a9a"/></svg>'
)


@dataclass
class Outputs:
    """Renders the outputs of one notebook and remembers which dashboards and figures they show."""

    scrub: Scrubber
    markup: Markup
    widgets: SavedWidgets
    figures: Figures
    treatment: Treatment = "keep"
    twins: dict[str, StaticPicture] = field(default_factory=dict)
    """Static pictures by model id."""

    @classmethod
    def of(cls, notebook: NotebookNode, markup: Markup) -> Outputs:
        """Everything that is needed to render the outputs of this notebook."""
        scrub, treatment = markup.scrub, markup.treatment
        twins = {}
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                twin = static_picture(output)
                if twin is not None:
                    twins[twin.model_id] = twin
        widgets, drawn = SavedWidgets.of(notebook), Figures(scrub, treatment)
        return cls(scrub, markup, widgets, drawn, treatment, twins)

    def cell(self, cell: NotebookNode) -> list[str]:
        """The outputs of a code cell, consecutive streams of one kind joined."""
        shown, live = [], self._live_views(cell)
        for output in _joined_streams(cell.get("outputs", [])):
            twin = static_picture(output)
            if twin is not None and twin.model_id in live:
                continue  # the live view carries it
            piece = self.output(output)
            if piece:
                shown.append(piece)
        return shown

    def _live_views(self, cell: NotebookNode) -> set[str]:
        ids = [
            _model_id(output.data[VIEW_MIME])
            for output in cell.get("outputs", [])
            if output.output_type in ("display_data", "execute_result") and VIEW_MIME in output.data
        ]
        return {view for model_id in ids for view in self.widgets.views(model_id)}

    def output(self, output: NotebookNode) -> str:
        """One output; an empty string if there is nothing to see."""
        if output.output_type == "stream":
            text = joined(output.text)
            return (
                f'<pre class="stream {_stream_name(output)}">{ansi_html(self.scrub(text))}</pre>'
                if text.strip()
                else ""
            )
        if output.output_type == "error":
            return self._error(output)
        if output.output_type in ("display_data", "execute_result"):
            return self._data(output.data, output.get("metadata", {}))
        return ""

    def _error(self, output: NotebookNode) -> str:
        name, value = str(output.get("ename", "Error")), str(output.get("evalue", ""))
        lines = output.get("traceback", [])
        text = "\n".join(str(line) for line in lines) if isinstance(lines, list) else str(lines)
        head = f"{name}: {value}" if value else name
        shown = ansi_html(self.scrub(text)) or html.escape(printable(self.scrub(head)), quote=False)
        return (
            '<div class="error" role="group" aria-label="error">'
            f"<p><strong>{_escape(name)}</strong> {_escape(self.scrub(value))}</p>"
            f"<details><summary>Traceback</summary><pre>{shown}</pre></details></div>"
        )

    def _data(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
        """The richest form of an output that needs nothing from outside."""
        if VIEW_MIME in data:
            view = self._view(data)
            if view:
                return view
        figure = data.get(figures.MIME)
        if isinstance(figure, Mapping):
            return self.figures.add(figure, self._raster(data, metadata, "figure"))
        text = joined(data["text/html"]).strip() if "text/html" in data else ""
        markup = self.markup.html(text) if text else ""
        if markup.strip():
            return f'<div class="html">{markup}</div>'
        if "text/markdown" in data:
            return f'<div class="html">{self.markup.markdown(joined(data["text/markdown"]))}</div>'
        picture = self._raster(data, metadata, joined(data.get("text/plain", ""))) or self._svg(data)
        if picture:
            return f"<figure>{picture}</figure>"
        if "text/latex" in data:
            return f'<div class="html">{self.markup.markdown(joined(data["text/latex"]))}</div>'
        if "text/plain" in data:
            return self._plain(joined(data["text/plain"]))
        if "application/json" in data:
            return self._plain(json.dumps(data["application/json"], indent=1))
        return ""

    def _plain(self, text: str) -> str:
        return f'<pre class="stream">{ansi_html(self.scrub(text))}</pre>' if text.strip() else ""

    def _view(self, data: Mapping[str, Any]) -> str:
        """The places of the dashboards that a widget view shows, each with its static picture."""
        model_id = _model_id(data[VIEW_MIME])
        views = self.widgets.views(model_id)
        if not views:
            return progress_html(self.widgets, model_id) or ""
        places = []
        for view in views:
            self.widgets.shown.append(view)
            twin = self.twins.get(view)
            source = treat_data_uri(twin.source, self.treatment) if twin else None
            if twin and source:
                still = f'<img alt="{_escape(self.scrub.known(twin.label))}" src="{source}">'
            else:
                still = self._raster(data, {}, "dashboard") or self._plain(joined(data.get("text/plain", "dashboard")))
            places.append(f'<div class="nbsae-view" data-model="{_escape(view)}">{still}</div>')
        return "".join(places)

    def _raster(self, data: Mapping[str, Any], metadata: Mapping[str, Any], label: str) -> str:
        for media_type in _RASTER:
            if media_type in data:
                address = data_uri(decode_base64(joined(data[media_type])) or b"", self.treatment)
                if address is not None:
                    size = metadata.get(media_type, {}) if isinstance(metadata, Mapping) else {}
                    width = size.get("width") if isinstance(size, Mapping) else None
                    sized = f' width="{int(width)}"' if isinstance(width, int | float) and 0 < width < 10_000 else ""
                    return f'<img alt="{_escape(self.scrub(label)[:200])}"{sized} src="{address}">'
        return ""

    def _svg(self, data: Mapping[str, Any]) -> str:
        if "image/svg+xml" not in data:
            return ""
        source = joined(data["image/svg+xml"]) if self.treatment == "keep" else _GREY_BOX
        return svg_picture(self.scrub(source), "figure")


def code(source: str, scrub: Scrubber) -> str:
    """A code cell's source, highlighted."""
    return highlight(scrub(source), "ipython" if source.lstrip().startswith(("%", "!")) else "python")


def _model_id(view: Any) -> str:
    return str(view.get("model_id", "")) if isinstance(view, Mapping) else ""


def _stream_name(output: NotebookNode) -> str:
    return "stderr" if output.get("name") == "stderr" else "stdout"


def _joined_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if output.output_type == "stream" and last and last.output_type == "stream" and last.name == output.name:
            merged[-1] = NotebookNode({**last, "text": joined(last.text) + joined(output.text)})
        else:
            merged.append(output)
    return merged


def _escape(text: str) -> str:
    return html.escape(printable(text), quote=True)
