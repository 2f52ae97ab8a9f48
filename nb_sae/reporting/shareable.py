"""The executed notebook in a form that GitHub and every other viewer shows: static pictures, no widget state."""

from __future__ import annotations

import base64
import copy
from typing import Any

import nbformat
from nbformat import NotebookNode

from nb_sae.reporting import figures
from nb_sae.reporting.pictures import Treatment, data_uri, decode_base64, treat, treat_strings
from nb_sae.reporting.text import Scrubber, joined, map_strings, printable, terminal_lines
from nb_sae.reporting.widgets import VIEW_MIME, SavedWidgets, static_picture, without_widgets

_RASTER = ("image/png", "image/jpeg", "image/webp", "image/gif")
_KEPT_METADATA = frozenset({"kernelspec", "language_info", "title", "authors"})


def shareable(notebook: NotebookNode, scrub: Scrubber, treatment: Treatment) -> NotebookNode:
    """A valid copy without widget state, scripts, local paths or (as asked) recognisable pictures."""
    notebook = copy.deepcopy(notebook)
    widgets = SavedWidgets.of(notebook)
    for cell in notebook.cells:
        cell.source = scrub(_clean(joined(cell.source)))
        if "attachments" in cell and treatment != "keep":
            cell.attachments = {name: _treated(data, treatment) for name, data in cell.attachments.items()}
        if cell.cell_type == "code":
            cell.outputs = [_shared(output, widgets, scrub, treatment) for output in cell.outputs]
            cell.metadata.pop("execution", None)
    without_widgets(notebook)
    notebook.metadata = NotebookNode({key: value for key, value in notebook.metadata.items() if key in _KEPT_METADATA})
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.nbformat, notebook.nbformat_minor = 4, max(5, notebook.nbformat_minor)
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number}")
    nbformat.validate(notebook)
    return notebook


def _shared(output: NotebookNode, widgets: SavedWidgets, scrub: Scrubber, treatment: Treatment) -> NotebookNode:
    if output.output_type == "stream":
        output.text = scrub(_clean(terminal_lines(joined(output.text))))
    elif output.output_type == "error":
        output.ename, output.evalue = scrub(str(output.ename)), scrub(_clean(str(output.evalue)))
        output.traceback = [scrub(str(line)) for line in output.traceback]
    elif output.output_type in ("display_data", "execute_result"):
        twin = static_picture(output)
        if twin is not None:
            return _twin_output(output, twin.source, twin.label, treatment)
        output.data = NotebookNode(_shared_data(dict(output.data), widgets, scrub, treatment))
    return output


def _twin_output(output: NotebookNode, source: str, label: str, treatment: Treatment) -> NotebookNode:
    """A dashboard's static picture as a plain PNG output: GitHub strips `data:` addresses from HTML."""
    encoded = decode_base64(source.partition(",")[2]) or b""
    picture = treat(encoded, treatment)
    if picture is None:
        output.data = NotebookNode({"text/plain": label or "dashboard"})
        return output
    media_type, changed = picture
    output.data = NotebookNode({media_type: base64.b64encode(changed).decode(), "text/plain": label or "dashboard"})
    output.metadata = NotebookNode()
    return output


def _shared_data(data: dict[str, Any], widgets: SavedWidgets, scrub: Scrubber, treatment: Treatment) -> dict[str, Any]:
    view = data.pop(VIEW_MIME, None)
    figure = data.pop(figures.MIME, None)
    if figure is not None:
        png = data.get("image/png") or _encoded(figures.static_png(figures.treated(figure, treatment)))
        data = {"text/plain": "plotly figure", "image/png": png} if png else {"text/html": figures.table(figure)}
        data.setdefault("text/plain", "plotly figure")
    elif view is not None:
        # Without state a viewer would show the repr only; the picture stands in the output before it.
        model_id = str(view.get("model_id", "")) if isinstance(view, dict) else ""
        if any(media_type in data for media_type in _RASTER):
            data.pop("text/html", None)
        elif widgets.views(model_id):
            return {}
    shared: dict[str, Any] = {}
    for media_type, value in _treated(data, treatment).items():
        if media_type in _RASTER:
            shared[media_type] = value
        elif _droppable(media_type, value, treatment):
            continue
        else:
            shared[media_type] = map_strings(value if not isinstance(value, list) else joined(value), scrub)
    return shared


def _droppable(media_type: str, value: Any, treatment: Treatment) -> bool:
    """A script that GitHub would strip, or a drawing that cannot be blurred."""
    has_script = media_type == "text/html" and "<script" in joined(value).lower()
    return has_script or (media_type == "image/svg+xml" and treatment != "keep")


def _treated(data: Any, treatment: Treatment) -> dict[str, Any]:
    """A MIME bundle with its pictures treated; one that cannot be decoded is left out."""
    shared = {}
    for media_type, value in data.items():
        if media_type in _RASTER:
            address = data_uri(decode_base64(joined(value)) or b"", treatment)
            if address is not None:
                shared[media_type] = address.partition(",")[2]
        else:
            shared[media_type] = value if treatment == "keep" else treat_strings(value, treatment)
    return shared


def _encoded(png: bytes | None) -> str | None:
    return base64.b64encode(png).decode() if png else None


def _clean(text: str) -> str:
    """Text without lone surrogates, which UTF-8 cannot hold; escape codes for colours stay."""
    return "\x1b".join(printable(part) for part in text.split("\x1b"))
