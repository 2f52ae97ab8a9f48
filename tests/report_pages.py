"""Notebooks to report on, and a reader of the page that comes out."""

from __future__ import annotations

import base64
import gzip
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script><!--\u202egnp.exe\ud800"


class Page(HTMLParser):
    """Elements of a page, their attributes, the text that a reader sees and the data inside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str], str]] = []
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.scripts.append((values, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            values, before = self.scripts[-1]
            self.scripts[-1] = (values, before + data)
        elif self._inside is None:
            self.text += data

    def with_attribute(self, name: str) -> list[dict[str, str]]:
        return [values for _, values in self.elements if name in values]

    def state(self) -> dict[str, Any]:
        return json.loads(next(data for values, data in self.scripts if values.get("id") == "nbsae-state"))

    def modules(self) -> dict[str, str]:
        return {
            values["data-nbsae-module"]: gzip.decompress(base64.b64decode(data)).decode()
            for values, data in self.scripts
            if "data-nbsae-module" in values
        }


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def notebook(*cells: NotebookNode) -> NotebookNode:
    return new_notebook(cells=list(cells))


def code(source: str, *outputs: NotebookNode, tags: tuple[str, ...] = ()) -> NotebookNode:
    cell = new_code_cell(source, outputs=list(outputs))
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def shown(**data: Any) -> NotebookNode:
    """A display output; `html=` and the like are short for the media types."""
    kinds = {"html": "text/html", "plain": "text/plain", "png": "image/png", "svg": "image/svg+xml", "view": VIEW}
    kinds["plotly"] = "application/vnd.plotly.v1+json"
    return new_output("display_data", data={kinds[name]: value for name, value in data.items()})


def stream(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def markdown(source: str) -> NotebookNode:
    return new_markdown_cell(source)


def saved(folder: Path, made: NotebookNode, name: str = "made.ipynb") -> Path:
    """Write without validation, with lone surrogates as JSON escapes: as hostile as a file can be."""
    path = folder / name
    path.write_text(json.dumps(made, ensure_ascii=True), encoding="utf-8")
    return path


def widget_model(esm: str = "export default {}", buffers: list[Any] | None = None, **state: Any) -> dict[str, Any]:
    """One model as it lies in a notebook's metadata."""
    return {
        "model_name": "AnyModel",
        "model_module": "anywidget",
        "model_module_version": "~0.11.*",
        "state": {"_esm": esm, "_model_name": "AnyModel", "_view_name": "AnyView", "layout": "IPY_MODEL_x", **state},
        "buffers": buffers or [],
    }


def with_widgets(made: NotebookNode, **models: Any) -> NotebookNode:
    made.metadata["widgets"] = {STATE: {"state": models, "version_major": 2, "version_minor": 0}}
    return made


def buffer(name: str, content: bytes) -> dict[str, Any]:
    return {"path": [name], "encoding": "base64", "data": base64.b64encode(content).decode()}


def picture(kind: str = "PNG", size: tuple[int, int] = (48, 32)) -> bytes:
    """A chessboard: all its content is in fine detail."""
    board = Image.new("RGB", size)
    board.putdata(
        [(255, 255, 255) if (x // 2 + y // 2) % 2 else (10, 20, 90) for y in range(size[1]) for x in range(size[0])]
    )
    sink = io.BytesIO()
    board.save(sink, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    return sink.getvalue()


def contrast(encoded: bytes) -> float:
    """Largest minus smallest grey value: 200 and more on the chessboard."""
    low, high = Image.open(io.BytesIO(encoded)).convert("L").getextrema()
    return float(high) - float(low)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def valid(path: Path) -> NotebookNode:
    found = nbformat.read(path, as_version=4)
    nbformat.validate(found)
    return found
