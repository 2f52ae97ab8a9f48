"""The page and the shareable notebook of `report`, from notebooks that were executed before."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
from PIL import Image
from report_pages import (
    HOSTILE,
    STATE,
    b64,
    buffer,
    code,
    contrast,
    markdown,
    notebook,
    picture,
    read_page,
    saved,
    shown,
    stream,
    valid,
    widget_model,
    with_widgets,
)

import nb_sae as ns
from nb_sae.errors import ConfigError, FormatError, InputNotFoundError, PathExistsError
from nb_sae.reporting import drawing
from nb_sae.reporting.pictures import decode_base64
from nb_sae.widgets import wire

FIGURE = {
    "data": [{"type": "scatter", "name": "MSAE", "x": [8, 16], "y": [0.5, float("nan")]}],
    "layout": {"title": {"text": "Error </script> by budget"}, "xaxis": {"title": {"text": "k"}}},
}


@pytest.fixture(autouse=True)
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether figures become pictures depends on what is installed; here they do not."""
    monkeypatch.setattr(drawing, "find_browser", lambda: None)


def twin(model_id: str) -> str:
    return f'<div data-nbsae="{model_id}"><img alt="the dashboard" src="data:image/png;base64,{b64(picture())}"></div>'


def test_report_is_one_file_that_asks_for_nothing(tmp_path: Path):
    made = with_widgets(
        notebook(
            markdown("# Title\n\n![out](https://example.org/x.png) ![here](here.png) [a link](https://example.org)"),
            code("w", shown(view={"model_id": "m1"}, plain="w")),
            code("f", shown(plotly=FIGURE)),
            code(
                "h", shown(html='<img src="https://example.org/y.png"><link rel="stylesheet" href="//cdn.org/x.css">')
            ),
        ),
        m1=widget_model(),
    )
    (tmp_path / "here.png").write_bytes(picture())
    page = read_page(ns.report(saved(tmp_path, made)))
    asked = [
        (tag, name, value[:60])
        for tag, values in page.elements
        for name, value in values.items()
        if (name in ("src", "srcset", "data", "action", "poster") or (name == "href" and tag != "a"))
        and not value.startswith(("data:", "#"))
    ]
    assert asked == []
    style = "".join(re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    policy = next(values["content"] for values in page.with_attribute("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert page.with_attribute("data-nbsae-theme")
    assert [values["href"] for tag, values in page.elements if tag == "a" and "example" in values["href"]] == [
        "https://example.org"
    ]


def test_hostile_strings_are_text_everywhere(tmp_path: Path):
    hostile_cells = notebook(
        markdown(f"# {HOSTILE}\n\n{HOSTILE}\n\n<a href='javascript:alert(3)' onclick='alert(4)'>x</a>\n\n`{HOSTILE}`"),
        code(f"# {HOSTILE}\nx = {HOSTILE!r}", stream(HOSTILE), stream(HOSTILE, "stderr")),
        code(
            "html",
            shown(html=f"<table onclick='alert(5)' class='nbsae-view' data-model='m1' id='nbsae-state'>{HOSTILE}"),
        ),
        code("plain", shown(plain=HOSTILE)),
        code(
            "svg",
            shown(svg="<svg xmlns='http://www.w3.org/2000/svg' onload='alert(6)'><script>alert(7)</script></svg>"),
        ),
        code("view", shown(view={"model_id": "m1"}, plain=HOSTILE)),
        code("figure", shown(plotly={"data": [{"type": "bar", "name": HOSTILE, "x": [HOSTILE], "y": [1]}]})),
    )
    hostile_cells.cells[-1].outputs.append(
        {"output_type": "error", "ename": HOSTILE, "evalue": HOSTILE, "traceback": [HOSTILE]}
    )
    made = with_widgets(hostile_cells, m1=widget_model(esm=f"// {HOSTILE}\nexport default {{}}", caption=HOSTILE))
    page = read_page(ns.report(saved(tmp_path, made), title=HOSTILE))

    handlers = {name for _, values in page.elements for name in values if name.startswith("on")}
    assert handlers == set()
    assert "javascript:" not in {values.get("href", "")[:11] for _, values in page.elements}
    assert [
        values for tag, values in page.elements if tag == "img" and not values["src"].startswith("data:image/")
    ] == []
    executable = [data for values, data in page.scripts if values.get("type") is None]
    assert not [data for data in executable if "alert(" in data]
    assert [values["data-model"] for values in page.with_attribute("data-model")] == ["m1"]
    assert len([values for values in page.with_attribute("id") if values["id"] == "nbsae-state"]) == 1
    assert page.state()["models"]["m1"]["state"]["caption"] == HOSTILE.replace("\ud800", "\ufffd")
    assert page.text.count("<img src=x onerror=alert(1)>") >= 7
    assert "\u202e" not in page.text
    page.source.encode()  # no lone surrogate is left
    valid(tmp_path / "made.shared.ipynb")


def test_script_that_is_shared_is_stored_once_and_unseen_models_are_left_out(tmp_path: Path):
    script = "export default { render() {} }"
    made = with_widgets(
        notebook(
            code("a", shown(view={"model_id": "m1"})),
            code("b", shown(view={"model_id": "m2"}), shown(view={"model_id": "m1"})),
        ),
        m1=widget_model(esm=script, helper="anywidget:m3"),
        m2=widget_model(esm=script),
        m3=widget_model(esm="export default { initialize() {} }"),
        stale=widget_model(esm="export default { stale: 1 }"),
    )
    page = read_page(ns.report(saved(tmp_path, made)))
    assert sorted(page.state()["models"]) == ["m1", "m2", "m3"]
    assert sorted(page.modules().values()) == sorted([script, "export default { initialize() {} }"])
    assert [values["data-model"] for values in page.with_attribute("data-model")] == ["m1", "m2", "m1"]
    assert "_esm" not in page.state()["models"]["m1"]["state"]


def test_static_picture_moves_into_the_view_and_into_the_shareable_notebook(tmp_path: Path):
    made = with_widgets(
        notebook(code("show", shown(html=twin("m1"), plain="words"), shown(view={"model_id": "m1"}, plain="words"))),
        m1=widget_model(),
    )
    page = read_page(ns.report(saved(tmp_path, made)))
    assert page.with_attribute("data-nbsae") == []
    assert [values["alt"] for tag, values in page.elements if tag == "img"] == ["the dashboard"]
    shared = valid(tmp_path / "made.shared.ipynb")
    assert "widgets" not in shared.metadata
    (output,) = shared.cells[0].outputs
    assert contrast(decode_base64(output.data["image/png"]) or b"") > 200
    assert list(output.data) == ["image/png", "text/plain"]


def test_dashboard_without_a_picture_leaves_its_words_in_the_shareable_notebook(tmp_path: Path):
    made = with_widgets(notebook(code("show", shown(view={"model_id": "m1"}, plain="words"))), m1=widget_model())
    page = read_page(ns.report(saved(tmp_path, made)))
    assert "words" in page.text  # until the script has drawn the dashboard
    (output,) = valid(tmp_path / "made.shared.ipynb").cells[0].outputs
    assert output.data == {"text/plain": "words"}


def test_static_picture_stays_where_no_state_was_saved(tmp_path: Path):
    made = notebook(code("show", shown(html=twin("m1")), shown(view={"model_id": "m1"}, plain="words")))
    page = read_page(ns.report(saved(tmp_path, made)))
    assert [values["alt"] for tag, values in page.elements if tag == "img"] == ["the dashboard"]
    assert page.with_attribute("data-model") == []
    assert "words" in page.text


def test_dashboards_inside_a_box_are_shown_and_other_widgets_become_text(tmp_path: Path):
    box = {"model_name": "VBoxModel", "state": {"children": ["IPY_MODEL_m1", "IPY_MODEL_bar", "IPY_MODEL_box"]}}
    bar = {"model_name": "FloatProgressModel", "state": {"value": 5.0, "max": 10.0}}
    made = with_widgets(
        notebook(
            code("box", shown(view={"model_id": "box"}, plain="VBox()")),
            code("bar", shown(view={"model_id": "bars"}, plain="HBox()")),
            code("slider", shown(view={"model_id": "slider"}, plain="IntSlider(value=3)")),
        ),
        m1=widget_model(), box=box, bar=bar, bars={"model_name": "HBoxModel", "state": {"children": ["IPY_MODEL_bar"]}},
        slider={"model_name": "IntSliderModel", "state": {"value": 3}},
    )  # fmt: skip
    page = read_page(ns.report(saved(tmp_path, made)))
    assert [values["data-model"] for values in page.with_attribute("data-model")] == ["m1"]
    assert [values["value"] for tag, values in page.elements if tag == "progress"] == ["0.5"]
    assert "IntSlider(value=3)" in page.text


def test_figures_carry_plotly_once_and_become_tables_for_github(tmp_path: Path):
    made = notebook(code("f", shown(plotly=FIGURE, html="<script>never</script>")), code("g", shown(plotly=FIGURE)))
    page = read_page(ns.report(saved(tmp_path, made)))
    assert len(page.with_attribute("data-nbsae-plotly")) == 1
    drawn = {values["id"]: json.loads(data) for values, data in page.scripts if "nbsae-figure" in values.get("id", "")}
    assert {values["data-figure"] for values in page.with_attribute("data-figure")} == set(drawn)
    assert drawn["nbsae-figure-1"]["data"][0]["y"] == [0.5, None]
    assert drawn["nbsae-figure-1"]["layout"]["title"]["text"] == "Error </script> by budget"
    shared = valid(tmp_path / "made.shared.ipynb")
    assert "<td>0.5, nan</td>" in shared.cells[0].outputs[0].data["text/html"]
    assert "application/vnd.plotly.v1+json" not in shared.cells[0].outputs[0].data


def test_figures_become_pictures_for_github_where_a_browser_draws_them(tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(drawing, "drawn", lambda figures: asked.extend(figures) or [picture(), None])
    made = notebook(
        code("f", shown(plotly=FIGURE), shown(plotly=FIGURE, png=b64(picture("PNG", (9, 9)))), shown(plotly=FIGURE)),
        code("map", shown(plotly={"data": [{"type": "choropleth", "z": [1, 2]}]})),
    )
    ns.report(saved(tmp_path, made))
    first, own, third, *_ = valid(tmp_path / "made.shared.ipynb").cells[0].outputs
    assert len(asked) == 2  # not the one that has a picture, not the one that would fetch a map
    assert decode_base64(first.data["image/png"]) == picture()
    assert decode_base64(own.data["image/png"]) == picture("PNG", (9, 9))
    assert "<td>0.5, nan</td>" in third.data["text/html"]
    assert "Error </script> by budget" in first.data["text/plain"]


def test_figure_that_would_fetch_a_map_is_a_table(tmp_path: Path):
    made = notebook(code("f", shown(plotly={"data": [{"type": "choropleth", "z": [1, 2]}]})))
    page = read_page(ns.report(saved(tmp_path, made)))
    assert page.with_attribute("data-figure") == []
    assert "needs map data" in page.text


def test_notebook_without_widgets_and_figures_carries_no_runtime(tmp_path: Path):
    page = read_page(ns.report(saved(tmp_path, notebook(markdown("# Plain"), code("1", stream("one"))))))
    assert page.with_attribute("data-encoding") == []
    assert len(page.source) < 40_000


@pytest.mark.parametrize(("images", "low", "high"), [("keep", 200, 256), ("blur", 0, 60), ("remove", 0, 1)])
def test_every_picture_is_kept_blurred_or_removed(tmp_path: Path, images, low, high):
    (tmp_path / "beside.png").write_bytes(picture())
    header, thumbs = wire.pack_thumbs([picture("WEBP"), b"", picture("WEBP")])
    made = with_widgets(
        notebook(
            markdown("![beside](beside.png)"),
            code("png", shown(png=b64(picture()))),
            code("html", shown(html=f'<img src="data:image/png;base64,{b64(picture())}">')),
            code("show", shown(html=twin("m1")), shown(view={"model_id": "m1"})),
            code("f", shown(plotly={"layout": {"images": [{"source": f"data:image/png;base64,{b64(picture())}"}]}})),
        ),
        m1=widget_model(
            buffers=[buffer("thumbs", thumbs), buffer("photo", picture("JPEG"))],
            thumbs_header=header, poster=f"data:image/png;base64,{b64(picture())}",
        ),
    )  # fmt: skip
    page = read_page(ns.report(saved(tmp_path, made), images=images))
    addresses = [values["src"] for tag, values in page.elements if tag == "img"]
    model = page.state()["models"]["m1"]
    addresses.append(model["state"]["poster"])
    figure = next(json.loads(data) for values, data in page.scripts if values.get("id") == "nbsae-figure-1")
    addresses.append(figure["layout"]["images"][0]["source"])
    found = [decode_base64(address.partition(",")[2]) for address in addresses]
    blocks = {entry["path"][0]: decode_base64(entry["data"]) for entry in model["buffers"]}
    found.append(blocks["photo"])
    ends = model["state"]["thumbs_header"]["ends"]
    assert ends[0] == ends[1]  # the picture that was left out stays left out
    found += [blocks["thumbs"][: ends[0]], blocks["thumbs"][ends[1] :]]
    found += [
        decode_base64(output.data["image/png"])
        for cell in valid(tmp_path / "made.shared.ipynb").cells[1:]
        for output in cell.get("outputs", [])
        if "image/png" in output.data
    ]
    assert len(found) == 4 + 2 + 3 + 2
    assert [contrast(encoded) for encoded in found if not low <= contrast(encoded) < high] == []


def test_local_paths_are_in_neither_file(tmp_path: Path):
    home, here = str(Path.home() / "secret" / "faces.png"), str(tmp_path / "runs" / "acts")
    paths = f"{home} {here} /data/anna/celeba/000001.jpg C:\\Users\\anna\\celeba\\x.png file:///home/anna/a.png"
    header, block = wire.pack({"inputs": pl.DataFrame({"key": [here, "b.png"], "n": [1, 2]})})
    made = with_widgets(
        notebook(
            markdown(f"Data from {paths}"),
            code(f"x = '/data/anna/x'  # {paths}", stream(paths), shown(plain=paths), shown(html=f"<b>{paths}</b>")),
            code("w", shown(view={"model_id": "m1"}, plain=paths)),
        ),
        m1=widget_model(key=here, table_header=header, buffers=[buffer("table", block)]),
    )
    made.cells[1].outputs.append({"output_type": "error", "ename": "E", "evalue": paths, "traceback": [paths]})
    made.metadata["papermill"] = {"input_path": paths}
    made.cells[1].metadata["executionInfo"] = {"user": {"displayName": "anna"}}  # as Colab writes it
    made.cells[1].outputs[1].metadata["text/plain"] = {"saved": paths}
    page = ns.report(saved(tmp_path, made))
    shown_page = read_page(page)
    for text in (shown_page.source, (tmp_path / "made.shared.ipynb").read_text()):
        for secret in ("anna", "/secret", str(tmp_path), "/data/"):
            assert secret not in text
    assert "runs/acts" in shown_page.text
    assert "…/000001.jpg" in shown_page.text
    model = shown_page.state()["models"]["m1"]
    changed = decode_base64(model["buffers"][0]["data"]) or b""
    key = header["tables"]["inputs"]["columns"][0]
    assert json.loads(changed[key["offset"] : key["offset"] + key["length"]]) == ["runs/acts", "b.png"]
    assert len(changed) == len(block)


@pytest.mark.parametrize("images", ["keep", "blur"])
def test_pictures_in_words_are_treated_in_the_notebook_too(tmp_path: Path, images: Literal["keep", "blur"]):
    sink = io.BytesIO()
    Image.open(io.BytesIO(picture("JPEG"))).save(sink, "JPEG", comment=b"anna")
    inside = f"data:image/jpeg;base64,{b64(sink.getvalue())}"
    words = markdown(f"![face]({inside}) ![face](attachment:face.jpg)")
    words["attachments"] = {"face.jpg": {"image/jpeg": b64(sink.getvalue())}}
    drawing = f"data:image/svg+xml;base64,{b64(b'<svg/>')}"
    ns.report(
        saved(tmp_path, notebook(words, code("x", shown(html=f'<img src="{inside}"><img src="{drawing}">')))),
        images=images,
    )
    shared = valid(tmp_path / "made.shared.ipynb")
    html = shared.cells[1].outputs[0].data["text/html"]
    texts = [shared.cells[0].source, html]
    found = [one for text in texts for one in re.findall(r"image/jpeg;base64,([\w+/=]+)", text)]
    found.append(shared.cells[0].attachments["face.jpg"]["image/jpeg"])
    pictures = [decode_base64(one) or b"" for one in found]
    assert len(pictures) == 3
    assert not any(b"anna" in one for one in pictures)
    assert {contrast(one) > 150 for one in pictures} == {images == "keep"}
    assert (drawing in html) == (images == "keep")


def test_code_is_shown_folded_or_left_out(tmp_path: Path):
    path = saved(tmp_path, notebook(code("# Train\nx = 1", stream("done"))))
    opened = {how: read_page(ns.report(path, code=how)) for how in ("show", "fold", "hide")}
    details = {how: [values for tag, values in page.elements if tag == "details"] for how, page in opened.items()}
    assert "open" in details["show"][0]
    assert "open" not in details["fold"][0]
    assert details["hide"] == []
    assert all("done" in page.text for page in opened.values())


def test_title_and_contents_come_from_the_headings(tmp_path: Path):
    made = notebook(markdown("# The *title*\n\nwords"), markdown("## One & two"), markdown("## One & two\n### Deeper"))
    page = read_page(ns.report(saved(tmp_path, made)))
    assert page.source.count("<h1") == 1
    assert "<title>The title</title>" in page.source
    links = [values["href"] for tag, values in page.elements if tag == "a" and values["href"].startswith("#s-")]
    assert links == ["#s-one-two", "#s-one-two-2", "#s-deeper"]
    assert {link[1:] for link in links} <= {values["id"] for values in page.with_attribute("id")}


def test_footer_names_no_machine_and_no_user(tmp_path: Path):
    text = read_page(ns.report(saved(tmp_path, notebook(code("1"))))).text
    assert "Report of an executed notebook" in text
    assert "/" not in text.split("Report of an executed notebook")[1]


def test_report_refuses_what_is_no_notebook(tmp_path: Path):
    with pytest.raises(InputNotFoundError, match=r"nowhere\.ipynb is not a file"):
        ns.report(tmp_path / "nowhere.ipynb")
    for name, content in {"text": "hello", "json": "[1, 2]", "cells": '{"nbformat": 4, "cells": [3]}'}.items():
        (tmp_path / f"{name}.ipynb").write_text(content)
        with pytest.raises(FormatError, match="is not a Jupyter notebook"):
            ns.report(tmp_path / f"{name}.ipynb")


def test_report_does_not_write_over_a_file_unless_told(tmp_path: Path):
    path = saved(tmp_path, notebook(code("1")))
    (tmp_path / "made.html").write_text("mine")
    with pytest.raises(PathExistsError, match="exists already"):
        ns.report(path, overwrite=False)
    assert (tmp_path / "made.html").read_text() == "mine"
    with pytest.raises(ConfigError, match="does not end in"):
        ns.report(path, tmp_path / "made.pdf")
    with pytest.raises(ConfigError, match=r"'keep', 'blur', 'remove'"):
        ns.report(path, images="hide")
    with pytest.raises(ConfigError, match="execute=True"):
        ns.report(path, parameters={"N": 1})


def test_widget_metadata_without_state_is_read(tmp_path: Path):
    made = notebook(code("w", shown(view={"model_id": "m1"}, plain="words")))
    for widgets in ({}, {STATE: {}}, {"m1": {"model_name": "x"}}, {STATE: {"state": {"m1": {"state": None}}}}):
        made.metadata["widgets"] = widgets
        assert "words" in read_page(ns.report(saved(tmp_path, made))).text
        assert "widgets" not in valid(tmp_path / "made.shared.ipynb").metadata


MALFORMED = {
    "no data": {"output_type": "display_data"},
    "no text": {"output_type": "stream", "name": "stdout"},
    "no kind": {"output_type": "of the future", "data": {}},
    "no traceback": {"output_type": "error"},
    "numbers": {"output_type": "display_data", "data": {"text/html": 5, "image/png": 7}, "metadata": {}},
    "no metadata": {"output_type": "display_data", "data": {"text/plain": "shown all the same"}},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_an_output_that_the_format_does_not_know_takes_no_other_with_it(tmp_path: Path, name: str):
    made = notebook(code("x", stream("before")), code("y", stream("after")))
    made.cells[0].outputs.append(MALFORMED[name])
    made.cells[1].metadata["tags"] = 5
    made.metadata |= {"title": ["no text"], "authors": "no list", "kernelspec": "no dict", "language_info": 3}
    text = read_page(ns.report(saved(tmp_path, made))).text
    assert "before" in text
    assert "after" in text
    assert ("shown all the same" in text) is (name == "no metadata")
    shared = valid(tmp_path / "made.shared.ipynb")
    assert not {"title", "authors"} & set(shared.metadata)


def test_a_cell_that_the_format_does_not_know_is_refused_by_its_place(tmp_path: Path):
    made = notebook(code("x"), markdown("y"))
    made.cells[1]["cell_type"] = "of the future"
    with pytest.raises(FormatError, match="not valid at cells/1"):
        ns.report(saved(tmp_path, made))


def test_models_are_followed_through_lists_mappings_and_circles(tmp_path: Path):
    """What a shown dashboard refers to is kept, wherever the reference stands; a large stale model costs nothing."""
    models = {
        "m1": widget_model(deep={"list": [1, {"a": "anywidget:m2"}]}),
        "m2": widget_model(esm="export default { a: 2 }", back="IPY_MODEL_m1", next=["IPY_MODEL_m3"]),
        "m3": widget_model(esm="export default { a: 3 }", itself="anywidget:m3", gone="anywidget:never-there"),
        "stale": widget_model(esm="export default { a: 4 }", refers="anywidget:m1", bulk="x" * 3_000_000),
    }
    made = with_widgets(notebook(code("a", shown(view={"model_id": "m1"}))), **models)
    page = read_page(ns.report(saved(tmp_path, made)))
    assert sorted(page.state()["models"]) == ["m1", "m2", "m3"]
    assert len(page.modules()) == 3
    assert len(page.source) < 300_000


@pytest.mark.parametrize("config", [5, [1, 2], "x", None])
def test_a_figure_whose_settings_are_none_is_shown_with_ours(tmp_path: Path, config: object):
    figure = {"data": [{"x": [1], "y": [2]}], "layout": {}, "config": config}
    page = read_page(ns.report(saved(tmp_path, notebook(code("x", shown(plotly=figure))))))
    assert '"config":{"plotlyServerURL":"","showSendToCloud":false,"topojsonURL":""}' in page.source
