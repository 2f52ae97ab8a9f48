"""The notebook beside a report stays small enough for GitHub, and says what was cut for that."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from nbformat.v4 import new_output
from PIL import Image
from report_pages import b64, code, markdown, notebook, picture, saved, shown, stream, valid

import nb_sae as ns
from nb_sae.reporting import fitting
from nb_sae.reporting.fitting import fitted, smaller, written_bytes
from nb_sae.reporting.pictures import decode_base64
from nb_sae.reporting.report import make_report

LIMIT = 60_000


def noise(side: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """A picture that no format makes much smaller; 3 bytes a pixel as PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format=kind, **({"quality": 95} if kind == "JPEG" else {}))
    return sink.getvalue()


def size_of(encoded: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(decode_base64(encoded) or b"")).size


def test_a_small_notebook_is_left_as_it_is():
    made = notebook(markdown("# One"), code("1", shown(png=b64(picture())), stream("two")))
    before = made.copy()
    assert fitted(made, LIMIT) == []
    assert made == before
    assert written_bytes(made) < LIMIT


def test_pictures_become_smaller_and_the_first_cell_says_so():
    made = notebook(
        markdown("# Many"),
        *(code(str(seed), shown(png=b64(noise(300, seed)), plain="a plot")) for seed in range(3)),
    )
    made.cells[1].outputs[0].metadata["image/png"] = {"width": 450}
    assert written_bytes(made) > 10 * LIMIT
    said = fitted(made, 150_000)
    assert written_bytes(made) <= 150_000
    assert said[0].startswith("3 pictures were made smaller, to ")
    assert said[-1] == "The HTML report shows everything."
    assert made.cells[0].source.startswith("> **This copy was made small")
    assert said[0] in made.cells[0].source
    bundles = [cell.outputs[0].data for cell in made.cells[2:]]
    for bundle in bundles:
        (kind,) = set(bundle) & set(fitting.RASTER)
        assert max(size_of(bundle[kind])) <= 300
        assert bundle["text/plain"] == "a plot"
    assert set(made.cells[2].outputs[0].metadata) == set(bundles[0]) & set(fitting.RASTER)


def test_only_as_much_is_cut_as_is_needed_and_the_largest_first():
    made = notebook(code("a", shown(png=b64(noise(90)))), code("b", shown(png=b64(noise(200, 1)))))
    fitted(made, 100_000)
    first, second = (cell.outputs[0].data for cell in made.cells[1:])
    assert decode_base64(first["image/png"]) == noise(90)
    assert "image/png" not in second or decode_base64(second["image/png"]) != noise(200, 1)


def test_long_texts_keep_their_beginning_and_their_end():
    lines = "\n".join(f"line {number}" for number in range(30_000))
    made = notebook(
        code("print", stream(lines)),
        code("html", shown(html="<table>" + "<tr><td>1</td></tr>" * 20_000 + "</table>", plain="a table")),
        code("short", stream("kept")),
    )
    made.cells[0].outputs.append(new_output("error", ename="E", evalue="e", traceback=["first", "x" * 90_000, "last"]))
    said = fitted(made, 120_000)
    assert written_bytes(made) <= 120_000
    assert "3 long outputs were cut." in said
    text = made.cells[1].outputs[0].text
    assert text.startswith("line 0\n")
    assert text.endswith("line 29999")
    assert "characters are left out here" in text
    (traceback,) = made.cells[1].outputs[1]["traceback"]
    assert traceback.startswith("first")
    assert traceback.endswith("last")
    assert made.cells[2].outputs[0].data == {"text/plain": "a table"}
    assert made.cells[3].outputs[0].text == "kept"


def test_pictures_that_cannot_become_small_enough_are_left_out():
    made = notebook(*(code(str(seed), shown(png=b64(noise(64, seed)))) for seed in range(12)))
    said = fitted(made, 20_000)
    assert written_bytes(made) <= 20_000
    gone = [cell for cell in made.cells[1:] if cell.outputs[0].data.get("text/plain") == "[picture left out]"]
    assert 0 < len(gone) < 12
    assert any("left out" in one for one in said)


def test_text_of_cells_is_never_cut_and_the_size_is_told():
    made = notebook(markdown("x" * 90_000), code("y = 1"))
    said = fitted(made, LIMIT)
    assert made.cells[1].source == "x" * 90_000
    assert "It is still 0.1 MB by the text of its cells." in said


def test_pictures_inside_html_and_attachments_become_smaller_too():
    inside = f'<p>before <img src="data:image/png;base64,{b64(noise(200))}"> after</p>'
    attached = markdown("![x](attachment:a.png)")
    attached["attachments"] = {"a.png": {"image/png": b64(noise(200, 1))}}
    made = notebook(attached, code("html", shown(html=inside)), markdown(inside))
    assert fitted(made, 100_000)
    assert written_bytes(made) <= 100_000
    for text in (made.cells[2].outputs[0].data["text/html"], made.cells[3].source):
        assert text.startswith('<p>before <img src="data:image/')
        assert text.endswith(" after</p>")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_smaller_gives_a_picture_that_every_viewer_knows(kind: str):
    made = smaller(noise(240, kind=kind), 100, 60)
    assert made is not None
    assert made[0] in ("image/png", "image/jpeg")
    assert Image.open(io.BytesIO(made[1])).size == (100, 100)
    assert smaller(made[1], 100, 60) is None  # nothing is won twice
    assert smaller(b"no picture", 100, 60) is None


def test_a_report_of_large_pictures_has_a_notebook_within_the_limit(tmp_path: Path, capsys):
    big = notebook(*(code(str(seed), shown(png=b64(noise(900, seed)))) for seed in range(2)))
    made = make_report(saved(tmp_path, big))
    assert valid(made.notebook)
    assert made.notebook.stat().st_size <= 3_000_000
    assert made.html.stat().st_size > 6_000_000  # the page keeps them
    assert made.cut[0].startswith("2 pictures were made smaller")
    from nb_sae.cli import main

    assert main(["report", str(tmp_path / "made.ipynb")]) == 0
    assert "2 pictures were made smaller" in capsys.readouterr().out
    again = ns.report(made.notebook, tmp_path / "again.html")
    assert "2 pictures were made smaller" in again.read_text()
