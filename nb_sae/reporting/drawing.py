"""Pictures of plotly figures for viewers that run no script, drawn by plotly.js in the browser of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nb_sae.errors import MissingDependencyError, ReportError
from nb_sae.reporting.browser import Tab, find_browser, with_page
from nb_sae.reporting.figures import plotly_source
from nb_sae.reporting.pictures import decode_base64, treat_data_uri

_WIDTH, _HEIGHT, _SCALE = 900, 450, 1.5
_LARGEST = 2_000
"""Pixels of the page; a figure may ask for any size."""
_PAGE = '<!DOCTYPE html><meta charset="utf-8"><title>Figures</title><body><script>{library}</script></body>'
_TO_IMAGE = "Plotly.toImage({figure}, {{format: 'png', width: {width}, height: {height}, scale: {scale}}})"


def drawn(figures: Sequence[Mapping[str, Any]]) -> list[bytes | None]:
    """A PNG of each figure; None for one that cannot be drawn, and for all where there is no browser.

    Args:
        figures: As plotly writes them, without anything that is fetched from elsewhere.
    """
    try:
        if not figures or find_browser() is None:
            return [None] * len(figures)
        page = _PAGE.format(library=plotly_source().replace("</script", "<\\/script"))
        return with_page(page, lambda tab: _draw(tab, figures), needed_for="A picture of a figure")
    except (MissingDependencyError, ReportError):  # a table says the same with fewer words
        return [None] * len(figures)


async def _draw(tab: Tab, figures: Sequence[Mapping[str, Any]]) -> list[bytes | None]:
    pictures = []
    for figure in figures:
        try:
            address = await tab.run(_TO_IMAGE.format(**_shown(figure), scale=_SCALE))
        except (ReportError, TypeError, ValueError):
            address = None
        # Through Pillow like any other picture: what the page gives is taken for nothing else.
        safe = treat_data_uri(address, "keep") if isinstance(address, str) else None
        pictures.append(decode_base64(safe.partition(",")[2]) if safe else None)
    return pictures


def _shown(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Figure and size as plotly.js is asked: on white, and without a kind of trace that needs a graphics card."""
    layout = figure.get("layout")
    layout = dict(layout) if isinstance(layout, Mapping) else {}
    traces = figure.get("data")
    traces = (
        [_flat(trace) for trace in traces if isinstance(trace, Mapping)] if isinstance(traces, list | tuple) else []
    )
    width, height = _side(layout.get("width"), _WIDTH), _side(layout.get("height"), _HEIGHT)
    layout["paper_bgcolor"] = _opaque(layout.get("paper_bgcolor"))
    shown = {"data": traces, "layout": layout}
    return {"figure": json.dumps(shown), "width": width, "height": height}


def _flat(trace: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(trace.get("type", "scatter"))
    return {**trace, "type": {"scattergl": "scatter", "heatmapgl": "heatmap"}.get(kind, kind)}


def _side(asked: Any, otherwise: int) -> int:
    return int(min(asked, _LARGEST)) if isinstance(asked, int | float) and asked >= 100 else otherwise


def _opaque(colour: Any) -> str:
    """The figure's own background, white where it is clear: dark text would lie on a dark page."""
    clear = not isinstance(colour, str) or colour.replace(" ", "").endswith((",0)", ",0.0)")) or colour == "transparent"
    return "white" if clear else colour
