"""The executed notebook in a form that GitHub and every other viewer shows: static pictures, no widget state."""

from __future__ import annotations

import base64
import copy
from typing import Any

import nbformat
from nbformat import NotebookNode

from nb_sae.errors import FormatError
from nb_sae.facts import KEY, MIME
from nb_sae.reporting import drawing, figures
from nb_sae.reporting.fitting import LIMIT_BYTES, RASTER, fitted
from nb_sae.reporting.origin import facts_in
from nb_sae.reporting.pictures import Treatment, data_uri, decode_base64, treat, treat_strings
from nb_sae.reporting.text import Scrubber, joined, map_strings, printable, terminal_lines, words
from nb_sae.reporting.widgets import VIEW_MIME, SavedWidgets, StaticPicture, static_picture, without_widgets

_KEPT_METADATA: dict[str, type] = {"language_info": dict, "title": str, "authors": list}
_KEPT_OF_CELLS = words("tags jupyter slideshow collapsed scrolled editable deletable name format raw_mimetype")
"""How a cell is shown. The rest is some tool's own: Colab writes who ran the cell, by name."""


def shareable(
    notebook: NotebookNode, scrub: Scrubber, treatment: Treatment, limit: int = LIMIT_BYTES
) -> tuple[NotebookNode, list[str]]:
    """A valid copy without widget state, scripts, local paths or (as asked) recognisable pictures.

    Returns:
        The copy, and what was cut so that it is within `limit` bytes.

    Raises:
        FormatError: The notebook has a part that no Jupyter format allows; the message says where.
    """
    notebook = copy.deepcopy(notebook)
    facts = facts_in(notebook, scrub)
    outputs = _Outputs(notebook, scrub, treatment)
    for cell in notebook.cells:
        cell.source = outputs.text(joined(cell.source))
        if cell.cell_type == "markdown":
            cell.source = treat_strings(cell.source, treatment)
        if "attachments" in cell:
            cell.attachments = {name: _treated(data, treatment) for name, data in cell.attachments.items()}
        if cell.cell_type == "code":
            cell.outputs = [outputs.shared(output) for output in cell.outputs]
        shown = {key: value for key, value in cell.metadata.items() if key in _KEPT_OF_CELLS}
        cell.metadata = NotebookNode(map_strings(shown, outputs.text))
    without_widgets(notebook)
    kept = {key: notebook.metadata[key] for key in _KEPT_METADATA if key in notebook.metadata}
    kept = {key: value for key, value in kept.items() if isinstance(value, _KEPT_METADATA[key])}
    notebook.metadata = NotebookNode(map_strings(kept, outputs.text))
    if facts:
        notebook.metadata[KEY] = facts
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.nbformat, notebook.nbformat_minor = 4, max(5, notebook.nbformat_minor)
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number}")
    cut = fitted(notebook, limit)
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        where = "/".join(str(part) for part in getattr(error, "absolute_path", ())) or "notebook"
        raise FormatError(
            f"The notebook is not valid at {where}: {str(getattr(error, 'message', error))[:200]}. "
            "Open and save it in JupyterLab, or repair that place."
        ) from error
    return notebook, cut


class _Outputs:
    """Turns the outputs of one notebook into what every viewer shows."""

    def __init__(self, notebook: NotebookNode, scrub: Scrubber, treatment: Treatment) -> None:
        self._scrub = scrub
        self._treatment: Treatment = treatment
        self._widgets = SavedWidgets.of(notebook)
        self._drawn = self._pictures_of_figures(notebook)
        pictures = [static_picture(output) for cell in notebook.cells for output in cell.get("outputs", [])]
        self._pictured = {picture.model_id for picture in pictures if picture is not None}

    def text(self, text: str) -> str:
        """Text without local paths and without what UTF-8 cannot hold; escape codes for colours stay."""
        return self._scrub("\x1b".join(printable(part) for part in text.split("\x1b")))

    def shared(self, output: NotebookNode) -> NotebookNode:
        """The output, changed in place; one that has nothing to show is left without data."""
        if output.output_type == "stream":
            output.text = self.text(terminal_lines(joined(output.text)))
        elif output.output_type == "error":
            output.ename, output.evalue = self.text(str(output.ename)), self.text(str(output.evalue))
            output.traceback = [self.text(str(line)) for line in output.traceback]
        elif output.output_type in ("display_data", "execute_result"):
            twin = static_picture(output)
            if twin is None:
                output.data = NotebookNode(self._data(dict(output.data)))
                output.metadata.pop(KEY, None)
                output.metadata = NotebookNode(map_strings(output.metadata, self.text))
            else:
                output.data, output.metadata = NotebookNode(self._picture(twin)), NotebookNode()
        return output

    def _picture(self, twin: StaticPicture) -> dict[str, str]:
        """A dashboard's static picture as a plain PNG output: GitHub strips `data:` addresses from HTML."""
        said = {"text/plain": self.text(twin.label) or "dashboard"}
        picture = treat(decode_base64(twin.source.partition(",")[2]) or b"", self._treatment)
        return {picture[0]: base64.b64encode(picture[1]).decode(), **said} if picture else said

    def _data(self, data: dict[str, Any]) -> dict[str, Any]:
        view = data.pop(VIEW_MIME, None)
        figure = data.pop(figures.MIME, None)
        data.pop(MIME, None)  # the notebook's metadata holds it
        if isinstance(figure, dict):
            data = self._figure(figure, data)
        elif isinstance(view, dict):
            model_id = str(view.get("model_id", ""))
            if self._pictured.intersection([model_id, *self._widgets.views(model_id)]):
                return {}  # its picture stands in the output before it
            if any(media_type in data for media_type in RASTER):
                data.pop("text/html", None)  # a viewer would prefer it and then strip it
        return {
            media_type: value if media_type in RASTER else map_strings(_whole(value), self.text)
            for media_type, value in _treated(data, self._treatment).items()
            if not _droppable(media_type, value, self._treatment)
        }

    def _figure(self, figure: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """A plotly figure as a picture where one can be had, else as its table."""
        title = figures.title_of(figure)
        said = {"text/plain": f"plotly figure{': ' + title if title else ''} (interactive in the HTML report)"}
        png = self._drawn.get(id(figure))
        drawn = data.get("image/png") or (base64.b64encode(png).decode() if png else None)
        return {"image/png": drawn, **said} if drawn else {"text/html": figures.table(figure), **said}

    def _pictures_of_figures(self, notebook: NotebookNode) -> dict[int, bytes | None]:
        """Pictures of the figures that have none, by the figure's identity; all in one go, for the browser's sake."""
        bundles = [output.get("data") or {} for cell in notebook.cells for output in cell.get("outputs", [])]
        found = [
            data[figures.MIME]
            for data in bundles
            if isinstance(data.get(figures.MIME), dict) and "image/png" not in data
        ]
        can = [figure for figure in found if not figures.fetches(figure)]
        shown = [map_strings(figures.treated(figure, self._treatment), self._scrub.known) for figure in can]
        return dict(zip(map(id, can), drawing.drawn(shown), strict=True))


def _whole(value: Any) -> Any:
    """nbformat's multi-line text as one string; anything else as it is."""
    lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
    return "".join(value) if lines else value


def _droppable(media_type: str, value: Any, treatment: Treatment) -> bool:
    """A script that GitHub would strip, or a drawing that cannot be blurred."""
    has_script = media_type == "text/html" and "<script" in joined(value).lower()
    return has_script or (media_type == "image/svg+xml" and treatment != "keep")


def _treated(data: Any, treatment: Treatment) -> dict[str, Any]:
    """A MIME bundle with its pictures treated; one that cannot be decoded is left out."""
    shared = {}
    for media_type, value in data.items():
        if media_type in RASTER:
            address = data_uri(decode_base64(joined(value)) or b"", treatment)
            if address is not None:
                shared[media_type] = address.partition(",")[2]
        else:
            shared[media_type] = treat_strings(value, treatment)
    return shared
