"""Widget state of an executed notebook: which models are shown, and each script once."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from nbformat import NotebookNode

from nb_sae.reporting.pictures import Treatment, decode_base64, treat, treat_strings
from nb_sae.reporting.text import Scrubber, joined, map_strings, script_json
from nb_sae.widgets.wire import replace_thumbs

STATE_MIME = "application/vnd.jupyter.widget-state+json"
VIEW_MIME = "application/vnd.jupyter.widget-view+json"
_REFERENCE = re.compile(r"^(?:anywidget:|IPY_MODEL_)([\w-]+)$")
_BOXES = frozenset({"BoxModel", "HBoxModel", "VBoxModel", "GridBoxModel", "TabModel", "AccordionModel"})
# What the Jupyter host needs and our own does not.
_HOST_KEYS = frozenset({"_esm", "_css", "_anywidget_id", "_dom_classes", "layout", "tabbable", "tooltip"})


def compressed(text: str) -> str:
    """Text as gzip in base64, the same bytes on every run."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), compresslevel=9, mtime=0)).decode()


@dataclass
class SavedWidgets:
    """The models saved in a notebook, and what of them a report shows."""

    models: Mapping[str, Any]
    shown: list[str] = field(default_factory=list)
    """Model ids of the views in the page, in order."""

    @classmethod
    def of(cls, notebook: NotebookNode) -> SavedWidgets:
        """The widget state of a notebook; empty where none was saved."""
        saved = notebook.metadata.get("widgets", {})
        state = saved.get(STATE_MIME, {}) if isinstance(saved, Mapping) else {}
        models = state.get("state", {}) if isinstance(state, Mapping) else {}
        return cls(
            {
                str(key): model
                for key, model in (models.items() if isinstance(models, Mapping) else ())
                if isinstance(model, Mapping) and isinstance(model.get("state"), Mapping)
            }
        )

    def is_dashboard(self, model_id: str) -> bool:
        """Whether the report can host this model: an anywidget that carries its own script."""
        state = self.models.get(model_id, {}).get("state", {})
        script = state.get("_esm")
        return isinstance(script, str) and not re.match(r"https?://\S+$", script.strip())

    def views(self, model_id: str, _seen: frozenset[str] = frozenset()) -> list[str]:
        """The dashboards that a view shows: itself, or those in a box, in order."""
        if model_id in _seen:
            return []
        if self.is_dashboard(model_id):
            return [model_id]
        model = self.models.get(model_id, {})
        if model.get("model_name") not in _BOXES:
            return []
        children = _references(model["state"].get("children", []))
        return [view for child in children for view in self.views(child, _seen | {model_id})]

    def reachable(self) -> list[str]:
        """The shown dashboards and every dashboard that they refer to."""
        found: dict[str, None] = {}
        waiting = list(self.shown)
        while waiting:
            model_id = waiting.pop(0)
            if model_id in found or not self.is_dashboard(model_id):
                continue
            found[model_id] = None
            waiting.extend(_references(self.models[model_id]["state"]))
        return list(found)

    def scripts(self, scrub: Scrubber, treatment: Treatment) -> str:
        """The `<script>` elements with modules, styles and state; empty where nothing is shown."""
        sources: dict[str, tuple[str, str]] = {}
        models = {}
        for model_id in self.reachable():
            model = self.models[model_id]
            state = model["state"]
            module = _keep(sources, "module", str(state["_esm"]))
            style = state.get("_css")
            has_style = isinstance(style, str) and style.strip() and not re.match(r"https?://\S+$", style.strip())
            shown = _treated(_for_page(state, scrub), model.get("buffers") or [], scrub, treatment)
            models[model_id] = {
                "module": module,
                "style": _keep(sources, "style", style) if has_style and isinstance(style, str) else None,
                "state": shown[0],
                "buffers": shown[1],
            }
        if not models:
            return ""
        elements = [
            f'<script type="application/octet-stream" data-nbsae-{kind}="{key}" data-encoding="gzip+base64">'
            f"{compressed(source)}</script>"
            for key, (kind, source) in sources.items()
        ]
        state = script_json({"version": 1, "models": models})
        return "\n".join([*elements, f'<script type="application/json" id="nbsae-state">{state}</script>'])


def _keep(sources: dict[str, tuple[str, str]], kind: str, source: str) -> str:
    key = f"{kind[0]}{hashlib.sha256(source.encode('utf-8', 'replace')).hexdigest()[:16]}"
    sources.setdefault(key, (kind, source))
    return key


def _references(value: Any) -> list[str]:
    """Ids of the models that a state refers to."""
    if isinstance(value, str):
        found = _REFERENCE.match(value)
        return [found.group(1)] if found else []
    entries: Iterable[Any] = ()
    if isinstance(value, Mapping):
        entries = value.values()
    elif isinstance(value, list | tuple):
        entries = value
    return [reference for entry in entries for reference in _references(entry)]


def _for_page(state: Mapping[str, Any], scrub: Scrubber) -> dict[str, Any]:
    kept = {
        key: entry
        for key, entry in state.items()
        if key not in _HOST_KEYS and not key.startswith(("_model_", "_view_"))
    }
    return map_strings(kept, scrub.known)


def _treated(
    state: dict[str, Any], buffers: list[Any], scrub: Scrubber, treatment: Treatment
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """State and buffers with every picture in them treated and no local path in their tables.

    A binary trait `x` is described by the trait `x_header`; see `nb_sae.widgets.wire`.
    """
    kept = []
    state = state if treatment == "keep" else treat_strings(state, treatment)
    for buffer in buffers:
        if not isinstance(buffer, Mapping) or buffer.get("encoding") != "base64":
            continue
        path, encoded = list(buffer["path"]), decode_base64(str(buffer["data"])) or b""
        name = f"{path[0]}_header" if len(path) == 1 else ""
        header = state.get(name)
        if isinstance(header, Mapping) and "tables" in header:
            encoded = _without_paths(header, encoded, scrub)
        elif treatment != "keep" and isinstance(header, Mapping) and "ends" in header:  # pictures, one after the other
            state[name], encoded = replace_thumbs(header, encoded, lambda thumb: _changed(thumb, treatment))
        elif treatment != "keep":
            encoded = _changed(encoded, treatment) or encoded  # the whole buffer may be one picture
        kept.append({"path": path, "encoding": "base64", "data": base64.b64encode(encoded).decode()})
    return state, kept


def _without_paths(header: Mapping[str, Any], block: bytes, scrub: Scrubber) -> bytes:
    """A block of tables whose strings hold no local path; every offset stays, spaces fill what becomes shorter."""
    changed = bytearray(block)
    for table in header["tables"].values():
        for column in table["columns"]:
            if column["dtype"] != "json":
                continue
            start, end = column["offset"], column["offset"] + column["length"]
            values = map_strings(json.loads(block[start:end]), scrub.known)
            text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
            if len(text) <= end - start:
                changed[start:end] = text.ljust(end - start)
    return bytes(changed)


def _changed(encoded: bytes, treatment: Treatment) -> bytes:
    picture = treat(encoded, treatment)
    return picture[1] if picture else b""


class _Twin(HTMLParser):
    """Finds `<div data-nbsae="…"><img src="data:…">` in an HTML output."""

    def __init__(self) -> None:
        super().__init__()
        self.model_id, self.source, self.label = "", "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "div" and not self.model_id:
            self.model_id = values.get("data-nbsae", "")
        elif tag == "img" and self.model_id and not self.source:
            self.source, self.label = values.get("src", ""), values.get("alt", "")


@dataclass(frozen=True)
class StaticPicture:
    """The picture that stands for a dashboard where no script runs."""

    model_id: str
    source: str
    """A `data:image/…` address."""
    label: str


def static_picture(output: NotebookNode) -> StaticPicture | None:
    """The static picture that `show` puts before a live view; None for any other output."""
    if output.output_type not in ("display_data", "execute_result"):
        return None
    text = output.data.get("text/html", "")
    text = joined(text) if isinstance(text, str | list) else ""
    if "data-nbsae" not in text:
        return None
    twin = _Twin()
    twin.feed(text)
    if not twin.model_id or not twin.source.startswith("data:image/"):
        return None
    return StaticPicture(twin.model_id, twin.source, twin.label)


def progress_html(widgets: SavedWidgets, model_id: str) -> str | None:
    """A finished or stopped progress bar and its labels as plain HTML; None if the model is no such thing."""
    pieces, bars = _progress_pieces(widgets, model_id, frozenset())
    return f'<p class="progress">{" ".join(pieces)}</p>' if bars else None


def _progress_pieces(widgets: SavedWidgets, model_id: str, seen: frozenset[str]) -> tuple[list[str], int]:
    model = widgets.models.get(model_id)
    if model is None or model_id in seen:
        return [], 0
    state, name = model["state"], model.get("model_name")
    if name in ("FloatProgressModel", "IntProgressModel"):
        try:
            value, top = float(state.get("value", 0)), float(state.get("max", 100)) or 1.0
        except (TypeError, ValueError):
            return [], 0
        return [f'<progress value="{min(value / top, 1.0):.4g}" max="1"></progress>'], 1
    if name in ("HTMLModel", "LabelModel"):
        text = re.sub(r"<[^>]*>", "", str(state.get("value", "")))
        return [f"<span>{html.escape(html.unescape(text), quote=False)}</span>"], 0
    if name not in _BOXES:
        return [], 0
    pieces, bars = [], 0
    for child in _references(state.get("children", [])):
        more, found = _progress_pieces(widgets, child, seen | {model_id})
        pieces, bars = pieces + more, bars + found
    return pieces, bars


def without_widgets(notebook: NotebookNode) -> None:
    """Remove saved widget state and every widget view from a notebook, in place."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type in ("display_data", "execute_result"):
                output.data.pop(VIEW_MIME, None)
        if "outputs" in cell:
            cell.outputs = [
                output
                for output in cell.outputs
                if output.output_type not in ("display_data", "execute_result") or output.data
            ]


def state_bytes(notebook: NotebookNode) -> int:
    """Size of the saved widget state in bytes of JSON."""
    return len(json.dumps(notebook.metadata.get("widgets", {})))
