"""Read a notebook file as it lies there, whatever wrote it: refused where it is none, mended where a part is off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from nb_sae.errors import FormatError, InputNotFoundError
from nb_sae.reporting.text import joined

_OUTPUTS = {
    "stream": {"name": str, "text": (str, list)},
    "error": {"ename": str, "evalue": str, "traceback": list},
    "display_data": {"data": dict},
    "execute_result": {"data": dict},
}
"""What each kind of output must hold to be shown."""


def read_notebook(path: Path) -> NotebookNode:
    """Read an `.ipynb` of format 4, upgrading an older one. An output that the format does not know is left out.

    Raises:
        InputNotFoundError: There is no such file.
        FormatError: It is not a notebook.
    """
    if not path.is_file():
        raise InputNotFoundError(f"{path} is not a file. Give the path of an .ipynb notebook.")
    try:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            joined(cell.source)
            _mend(cell)
    except (
        ValueError, AttributeError, KeyError, TypeError, RecursionError, nbformat.reader.NotJSONError,
        nbformat.ValidationError,
    ) as error:  # fmt: skip
        raise FormatError(
            f"{path} is not a Jupyter notebook ({type(error).__name__}). Expected an .ipynb file of nbformat 4."
        ) from error
    return notebook


def _mend(cell: NotebookNode) -> None:
    """Bring a cell into the form that everything after this relies on."""
    tags = cell.metadata.get("tags")
    if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        del cell.metadata["tags"]
    attached = cell.get("attachments")
    if attached is not None and not (isinstance(attached, Mapping) and all(map(_is_bundle, attached.values()))):
        del cell["attachments"]
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if _is_output(output)]
        for output in cell.outputs:
            if output.output_type in ("display_data", "execute_result") and not isinstance(
                output.get("metadata"), dict
            ):
                output["metadata"] = NotebookNode()


def _is_output(output: Any) -> bool:
    needed = _OUTPUTS.get(str(output.get("output_type"))) if isinstance(output, Mapping) else None
    if needed is None or not all(isinstance(output.get(name), kind) for name, kind in needed.items()):
        return False
    return _is_bundle(output["data"]) if "data" in needed else True


def _is_bundle(bundle: Any) -> bool:
    """Whether every text is a string or a list of lines; JSON types may hold anything."""
    if not isinstance(bundle, Mapping):
        return False
    return all(kind.endswith("json") or _is_text(value) for kind, value in bundle.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(line, str) for line in value))
