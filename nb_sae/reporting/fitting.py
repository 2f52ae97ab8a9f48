"""A notebook made small enough for viewers that refuse large ones, and what was cut to get there.

GitHub fails on notebooks of a few megabytes. Pictures become smaller first, the largest of them first; then long texts
are cut; then pictures go.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import nbformat
from nbformat import NotebookNode
from PIL import Image

from nb_sae.reporting.pictures import decode_base64
from nb_sae.reporting.text import joined

LIMIT_BYTES = 3_000_000
RASTER = ("image/png", "image/jpeg", "image/webp", "image/gif")
_ROUNDS = ((1_800, 85), (1_350, 80), (1_000, 75), (800, 65), (560, 55), (360, 45))
"""Pixels of the longer side and JPEG quality, one after the other."""
_WORTH = 0.9
_PLOT_COLOURS = 30_000
"""A picture of more colours is a photograph, for which 256 are too few."""
_LONG = 20_000
"""Characters of one output that are kept of a longer one."""
_NOTE_BYTES = 2_000
_IN_HTML = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,([A-Za-z0-9+/=]+)")


@dataclass
class _Fit:
    """The notebook while it becomes smaller."""

    notebook: NotebookNode
    limit: int
    size: int
    smaller: dict[int, int] = field(default_factory=dict)
    """By place of the picture: its longer side now."""
    gone: int = 0
    cut: int = 0
    """Outputs whose text was cut."""

    @property
    def fits(self) -> bool:
        return self.size <= self.limit - _NOTE_BYTES

    def change(self, holder: Any, key: str, value: str | None) -> None:
        """Put a value into a bundle (None: take it out) and count what that saves."""
        self.size -= len(joined(holder[key]).encode()) - len((value or "").encode())
        if value is None:
            del holder[key]
        else:
            holder[key] = value


def fitted(notebook: NotebookNode, limit: int = LIMIT_BYTES) -> list[str]:
    """Make a notebook smaller than `limit` bytes, in place; what was done, as sentences. Empty if it was small enough.

    The first cell then says so too.
    """
    fit = _Fit(notebook, limit, written_bytes(notebook))
    if fit.size <= limit:
        return []
    for step in (_shrink, _cut_texts, _remove_pictures):
        if not fit.fits:
            step(fit)
    fit.size = written_bytes(notebook)
    said = _said(fit)
    text = f"> **This copy was made small for viewers that show no large notebooks.** {' '.join(said)}"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(text, id="what-was-cut"))
    return said


def written_bytes(notebook: NotebookNode) -> int:
    """Size of the notebook as a file."""
    return len(nbformat.writes(notebook).encode("utf-8", "replace"))


def _said(fit: _Fit) -> list[str]:
    said = []
    if fit.smaller:
        side, number = min(fit.smaller.values()), len(fit.smaller)
        said.append(f"{_count(number, 'picture')} made smaller, to {side} pixels at most on the longer side.")
    if fit.cut:
        said.append(f"{_count(fit.cut, 'long output')} cut.")
    if fit.gone:
        said.append(f"{_count(fit.gone, 'picture')} left out.")
    if fit.size > fit.limit:
        said.append(f"It is still {fit.size / 1e6:.1f} MB by the text of its cells.")
    return [*said, "The HTML report shows everything."]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{' was' if number == 1 else 's were'}"


# Pictures


def _shrink(fit: _Fit) -> None:
    """Round by round smaller, within a round the largest first, until it fits."""
    for side, quality in _ROUNDS:
        for place, (holder, key, metadata) in sorted(
            enumerate(_pictures(fit.notebook)), key=lambda one: -len(joined(one[1][0][one[1][1]]))
        ):
            if fit.fits:
                return
            if key in RASTER:
                found = smaller(decode_base64(joined(holder[key])) or b"", side, quality)
                if found is None:
                    continue
                fit.change(holder, key, base64.b64encode(found[1]).decode())
                if found[0] != key:
                    holder[found[0]] = holder.pop(key)
                    if metadata and key in metadata:
                        metadata[found[0]] = metadata.pop(key)
            else:
                before = joined(holder[key])
                after = _IN_HTML.sub(_smaller_address(side, quality), before)
                if after == before:
                    continue
                fit.change(holder, key, after)
            fit.smaller[place] = side


def _smaller_address(side: int, quality: int) -> Callable[[re.Match[str]], str]:
    def change(found: re.Match[str]) -> str:
        made = smaller(decode_base64(found.group(1)) or b"", side, quality)
        return f"data:{made[0]};base64,{base64.b64encode(made[1]).decode()}" if made else found.group()

    return change


def smaller(encoded: bytes, side: int, quality: int) -> tuple[str, bytes] | None:
    """The picture with `side` pixels at most, as (media type, bytes): a PNG of 256 colours or a JPEG.

    None where that saves less than a tenth, or the bytes are no picture.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG", "WEBP", "GIF")) as picture:
            rgba = picture.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    rgba.thumbnail((side, side), Image.Resampling.LANCZOS)
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    forms = {"image/jpeg": io.BytesIO()}
    flat.save(forms["image/jpeg"], format="JPEG", quality=quality, optimize=True)
    if flat.getcolors(_PLOT_COLOURS) is not None:
        forms["image/png"] = io.BytesIO()
        few = flat.quantize(256, Image.Quantize.FASTOCTREE)
        few.save(forms["image/png"], format="PNG", optimize=True)
    kind, sink = min(forms.items(), key=lambda one: len(one[1].getvalue()))
    made = sink.getvalue()
    return (kind, made) if len(made) < _WORTH * len(encoded) else None


def _remove_pictures(fit: _Fit) -> None:
    for holder, key, _ in sorted(_pictures(fit.notebook), key=lambda one: -len(joined(one[0][one[1]]))):
        if fit.fits:
            return
        if key in RASTER:
            fit.change(holder, key, None)
            holder.setdefault("text/plain", "[picture left out]")
        else:
            fit.change(holder, key, _IN_HTML.sub("data:,", joined(holder[key])))
        fit.gone += 1


def _pictures(notebook: NotebookNode) -> Iterator[tuple[Any, str, Any]]:
    """(bundle, key, metadata of the output) of everything that holds pictures, in order."""
    for cell in notebook.cells:
        for bundle in (cell.get("attachments") or {}).values():
            yield from ((bundle, key, None) for key in list(bundle) if key in RASTER)
        if cell.cell_type == "markdown" and _IN_HTML.search(joined(cell.source)):
            yield cell, "source", None
        for output in cell.get("outputs", []):
            data = output.get("data") or {}
            for key in list(data):
                if key in RASTER or (key in ("text/html", "text/markdown") and _IN_HTML.search(joined(data[key]))):
                    yield data, key, output.get("metadata")


# Texts


def _cut_texts(fit: _Fit) -> None:
    """The longest outputs first; of each, its beginning and its end are kept."""
    for holder, key in sorted(_texts(fit.notebook), key=lambda one: -len(_text(one[0], one[1]))):
        if fit.fits:
            return
        text = _text(holder, key)
        if len(text) <= _LONG:
            return
        note = f"\n… {len(text) - _LONG:,} characters are left out here; the HTML report shows them …\n"
        if key == "traceback":
            fit.size -= len(text.encode()) - _LONG
            holder["traceback"] = [text[: _LONG // 2] + note + text[-_LONG // 2 :]]
        elif key in ("text", "text/plain", "text/markdown", "text/latex"):
            fit.change(holder, key, text[: _LONG // 2] + note + text[-_LONG // 2 :])
        else:  # a piece of HTML, SVG or JSON is none any more
            fit.size -= len(text.encode())
            del holder[key]
            holder.setdefault("text/plain", note.strip())
        fit.cut += 1


def _texts(notebook: NotebookNode) -> Iterator[tuple[Any, str]]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for key in ("text", "traceback"):
                if key in output:
                    yield output, key
            data = output.get("data") or {}
            yield from ((data, key) for key in data if key not in RASTER)


def _text(holder: Any, key: str) -> str:
    value = holder[key]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return ("\n" if key == "traceback" else "").join(value)
    return json.dumps(value)
