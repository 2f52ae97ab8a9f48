"""Plotly figures in the notebook beside a report: pictures, drawn by the browser of this machine."""

from __future__ import annotations

import io
from pathlib import Path

import plotly.graph_objects as go
import pytest
from PIL import Image, ImageStat
from plotly.subplots import make_subplots
from report_pages import HOSTILE, b64, code, notebook, saved, shown, valid

import nb_sae as ns
from nb_sae.reporting.drawing import drawn
from nb_sae.reporting.pictures import decode_base64


def opened(png: bytes | None) -> Image.Image:
    assert png is not None
    return Image.open(io.BytesIO(png)).convert("RGB")


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes | None]:
    """Every kind of figure drawn once, by one browser."""
    two = make_subplots(rows=1, cols=2)
    two.add_trace(go.Scatter(y=[1, 3, 2], mode="lines+markers"), row=1, col=1)
    two.add_trace(go.Histogram(x=[1, 1, 2, 5]), row=1, col=2)
    kinds = {
        "bars": go.Figure(go.Bar(y=[3, 1, 2], marker_color="#ff0000"), layout_paper_bgcolor="rgba(0,0,0,0)"),
        "tall": go.Figure(go.Heatmap(z=[[1, 2], [3, 4]]), layout={"width": 300, "height": 600}),
        "many": go.Figure(go.Scattergl(y=list(range(500)), mode="markers")),
        "two": two,
        "hostile": go.Figure(go.Bar(x=[HOSTILE], y=[1]), layout_title_text=HOSTILE),
        "vast": go.Figure(layout={"width": 10**9, "height": 10**9}),
    }
    given = [figure.to_plotly_json() for figure in kinds.values()]
    broken = {"data": [{"type": "no such kind", "x": 3}, 7], "layout": {"xaxis": "x"}}
    found = drawn([*given, broken])
    return dict(zip([*kinds, "broken"], found, strict=True))


def test_figures_are_drawn_in_their_size_on_white(pictures, screens: Path):
    for name, size in (("bars", (1350, 675)), ("tall", (450, 900)), ("many", (1350, 675)), ("two", (1350, 675))):
        picture = opened(pictures[name])
        picture.save(screens / f"figure-{name}.png")
        assert picture.size == size
        assert picture.getpixel((2, 2)) == (255, 255, 255)
        assert ImageStat.Stat(picture.convert("L")).stddev[0] > 4
    assert (255, 0, 0) in {colour for _, colour in opened(pictures["bars"]).getcolors(1 << 24)}


def test_what_is_hostile_broken_or_vast_is_a_picture_or_nothing(pictures):
    assert opened(pictures["hostile"]).size == (1350, 675)
    assert max(opened(pictures["vast"]).size) <= 3_000
    assert pictures["broken"] is None or opened(pictures["broken"])


def test_the_shared_notebook_shows_the_figure_as_a_picture(tmp_path: Path):
    figure = go.Figure(go.Bar(y=[3, 1, 2]), layout_title_text="Bars").to_plotly_json()
    own = b64(b"\x89PNG no picture")
    ns.report(saved(tmp_path, notebook(code("f", shown(plotly=figure)), code("g", shown(plotly=figure, png=own)))))
    shared = valid(tmp_path / "made.shared.ipynb")
    data = shared.cells[0].outputs[0].data
    assert set(data) == {"image/png", "text/plain"}
    assert opened(decode_base64(data["image/png"])).size == (1350, 675)
    assert data["text/plain"] == "plotly figure: Bars (interactive in the HTML report)"
