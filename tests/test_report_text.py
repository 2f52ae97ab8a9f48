"""Text, pictures, markdown and formulas on their way into a report."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from PIL import Image
from report_pages import Page, b64, contrast, picture

from nb_sae.reporting.markup import Markup, highlight
from nb_sae.reporting.mathml import mathml
from nb_sae.reporting.pictures import treat, treat_data_uri
from nb_sae.reporting.text import Scrubber, ansi_html, printable, script_json, terminal_lines


@pytest.fixture
def scrub(tmp_path: Path) -> Scrubber:
    return Scrubber(tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("saved /data/me/celeba/000001.jpg, done", "saved …/000001.jpg, done"),
        ("'/srv/anna/x.py'", "'…/x.py'"),
        ("C:\\Users\\anna\\x.py", "…/x.py"),
        ("C:\\\\Users\\\\anna\\\\x.py", "…/x.py"),
        ("file:///mnt/disk/a/b.png", "…/b.png"),
        ('File \x1b[32m/scratch/me/x.py:3\x1b[39m', 'File \x1b[32m…/x.py:3\x1b[39m'),
        ("/var/ipykernel_12/345.py:1: UserWarning", "cell:1: UserWarning"),
        ("https://example.org/home/anna/x and/or 1/2/3 a/b", "https://example.org/home/anna/x and/or 1/2/3 a/b"),
        ("~/clients/acme/x.pt", "…/x.pt"),
        ("blocks.3/hook </td></tr>", "blocks.3/hook </td></tr>"),
    ],
)  # fmt: skip
def test_scrubber_leaves_the_last_part_of_a_path_and_nothing_else(scrub: Scrubber, given: str, expected: str):
    assert scrub(given) == expected


@pytest.mark.parametrize(
    "where",
    ["/data1/anna/", "/home2/anna/", "/lab9/home/anna/", "/cluster/work/anna/", "/users/anna/", "/g/x/Users/anna/",
     "~anna/", "\\\\server\\share\\anna\\", "\\\\\\\\server\\\\share\\\\anna\\\\"],
)  # fmt: skip
def test_scrubber_knows_how_clusters_and_shares_call_their_folders(scrub: Scrubber, where: str):
    assert scrub(f"saved at '{where}x.pt', done") == "saved at '…/x.pt', done"


@pytest.mark.parametrize(
    "text",
    [
        "and/or",
        "~5/10 of them",
        "https://example.org/home/page",
        r"1 \\ 2 \\\hline\frac12",
        "a/users/b",
        r"\\alpha\beta",
    ],
)
def test_scrubber_leaves_what_only_looks_a_little_like_a_path(scrub: Scrubber, text: str):
    assert scrub(text) == text


def test_scrubber_makes_the_working_folder_relative_and_names_packages(tmp_path: Path, scrub: Scrubber):
    assert scrub(f"{tmp_path}/runs/acts and {tmp_path}") == "runs/acts and ."
    where = json.__file__
    assert scrub(where).endswith("/json/__init__.py")
    assert scrub(where).startswith("…")
    assert scrub.known("/usr") == "/usr"  # a token of a text, not a path


def test_scrubber_takes_time_in_proportion_and_leaves_pictures_alone(scrub: Scrubber):
    """A picture in HTML once took a minute for each 60 kB: the pattern was tried at every letter of its base64."""
    for long in ("abc/def+" * 40_000, "abc+/def" * 40_000, "+/" * 40_000):
        started = time.perf_counter()
        assert scrub(long) == long
        assert time.perf_counter() - started < 1
    picture = "data:image/png;base64,AAAA+/data/anna/x+/scratch/abc/d=="
    assert scrub(f'<img src="{picture}"> /data/anna/x') == f'<img src="{picture}"> …/x'


def test_text_shows_what_could_reorder_or_break_it():
    assert printable("a\u202eb\ud800c\x00d\te\n") == "a⟨U+202E⟩b\ufffdcd\te\n"


def test_script_json_can_stand_in_a_script_element():
    value = {"a": "</script><!--", "b": [float("nan"), 1.5, float("-inf")], "c\ud800": "\u2028"}
    text = script_json(value)
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--", "b": [None, 1.5, None], "c\ufffd": "\u2028"}
    text.encode("ascii")


def test_terminal_text_ends_as_a_terminal_would_leave_it():
    assert terminal_lines("10%\r50%\r100%\ndone") == "100%\ndone"
    assert terminal_lines("long line\rab") == "abng line"
    assert terminal_lines("\x1b]0;title\x07x\x1b[2K\x1b[1Ay") == "xy"


def test_terminal_colours_become_classes_and_markup_is_escaped():
    assert ansi_html("\x1b[1;31m<b>\x1b[0m & \x1b[38;5;28mgreen\x1b[39m") == (
        '<span class="ansi-bold ansi-red">&lt;b&gt;</span> &amp; <span class="ansi-green">green</span>'
    )
    assert (
        ansi_html("\x1b[38;2;250;20;20mx\x1b[48;5;3my")
        == '<span class="ansi-red">x</span><span class="ansi-red">y</span>'
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_blurred_picture_keeps_size_and_format_and_loses_its_detail(kind: str):
    media_type, changed = treat(picture(kind, (60, 44)), "blur") or ("", b"")
    assert media_type == f"image/{kind.lower()}"
    assert Image.open(io.BytesIO(changed)).size == (60, 44)
    assert contrast(picture(kind, (60, 44))) > 150
    assert contrast(changed) < 60


def test_kept_picture_loses_its_metadata_and_nothing_else():
    photo = Image.open(io.BytesIO(picture("JPEG")))
    exif = Image.Exif()
    exif[0x010E] = "taken by anna"
    sink = io.BytesIO()
    photo.save(sink, format="JPEG", exif=exif, quality=90)
    assert b"anna" in sink.getvalue()
    _, kept = treat(sink.getvalue(), "keep") or ("", b"")
    assert b"anna" not in kept
    difference = [
        abs(a - b)
        for a, b in zip(
            Image.open(sink).convert("L").tobytes(), Image.open(io.BytesIO(kept)).convert("L").tobytes(), strict=True
        )
    ]
    assert max(difference) <= 3
    assert treat(picture(), "keep") == ("image/png", picture())


def test_what_is_no_picture_is_refused():
    assert treat(b"<svg onload=alert(1)>", "keep") is None
    assert treat(picture()[:40], "blur") is None
    assert treat_data_uri("https://example.org/x.png", "keep") is None
    assert treat_data_uri("data:text/html;base64,PGI+", "keep") is None


def test_markdown_keeps_its_forms_and_shows_foreign_markup_as_text(tmp_path: Path, scrub: Scrubber):
    markup = Markup(tmp_path, scrub)
    source = "| a | b |\n|---|--:|\n| 1 | ~~2~~ |\n\n- [x] done\n\n"
    source += "<details><summary>more</summary>x</details>\n\n<iframe src=x></iframe>"
    page = Page(markup.markdown(source))
    tags = [tag for tag, _ in page.elements]
    assert {"table", "th", "td", "del", "details", "summary"} <= set(tags)
    assert "iframe" not in tags
    assert "<iframe src=" in page.text


def test_markdown_reads_pictures_below_its_folder_only(tmp_path: Path, scrub: Scrubber):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (folder / "x.png").write_bytes(picture())
    (folder / "text.png").write_text("no picture")
    markup = Markup(folder, scrub)
    assert "data:image/png" in markup.markdown("![x](x.png)")
    for address in (
        "../secret.png",
        "text.png",
        str(tmp_path / "secret.png"),
        "http://example.org/x.png",
        "missing.png",
    ):
        assert "<img" not in markup.markdown(f"![label]({address})")
        assert "label" in markup.markdown(f"![label]({address})")
    attached = {"a.png": {"image/png": b64(picture())}}
    assert "data:image/png" in markup.markdown("![x](attachment:a.png)", attached)


def test_a_picture_with_spaces_is_found_and_one_that_cannot_be_read_is_none(tmp_path: Path, scrub: Scrubber):
    (tmp_path / "my pic.png").write_bytes(picture())
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    markup = Markup(tmp_path / ".", scrub)
    for address in ("my%20pic.png", "<my pic.png>"):
        assert "data:image/png" in markup.markdown(f"![x]({address})")
    for address in (f"{'a' * 400}.png", "circle.png", "a%00b.png", "%2e%2e/my%20pic.png"):
        assert "[picture: x]" in markup.markdown(f"![x]({address})")


def test_markdown_code_is_highlighted_and_escaped():
    page = Page(highlight("def f(): return '<b>'", "python"))
    assert {"k", "nf", "s1"} <= {values.get("class") for _, values in page.elements}
    assert page.text == "def f(): return '<b>'"
    assert Page(highlight("x", "no-such-language")).text == "x"


def test_formulas_become_mathml_and_what_is_not_understood_stays_text(tmp_path: Path, scrub: Scrubber):
    formula = mathml(r"\frac{\sum_i \lVert x_i - \hat{x}_i \rVert^2}{n}", block=True) or ""
    assert formula.startswith('<math display="block">')
    assert "<mfrac>" in formula
    assert "<munder><mo>∑</mo><mi>i</mi></munder>" in formula
    assert mathml(r"\text{two words} \le k") is not None
    assert "two words" in (mathml(r"\text{two words}") or "")
    for unknown in (r"\begin{matrix}", r"\href{x}{y}", "{", "a_", r"\text{", r"\mathrm{\alpha}"):
        assert mathml(unknown) is None
    page = Page(Markup(tmp_path, scrub).markdown(r"$\begin{x}<b>$ and $a < b$ and it costs $5 or $6"))
    assert r"\begin{x}<b>" in page.text
    assert "b" not in [tag for tag, _ in page.elements]
    assert "it costs $5 or $6" in page.text
