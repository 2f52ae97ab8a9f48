from __future__ import annotations

import re
import sys

import pytest

from nb_sae import progress as module
from nb_sae.progress import progress


class FakeDisplay:
    """Stands in for IPython's `display`."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def __call__(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> FakeDisplay:
        assert raw
        assert display_id
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(bundle)


@pytest.fixture
def notebook(monkeypatch) -> FakeDisplay:
    display = FakeDisplay()
    monkeypatch.setattr(module, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    return display


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_the_last_line_stays_with_time_and_rate(notebook, clock):
    with progress(4000, "images", "Collecting image_embed") as bar:
        clock[0] = 12.3
        bar.update(4000)
    assert notebook.shown[-1]["text/plain"] == "Collecting image_embed: 4,000 images in 12.3 s (325/s)"
    assert "<progress" not in notebook.shown[-1]["text/html"]


def test_the_line_says_how_long_is_left(notebook, clock):
    with progress(1000, "rows", "Training") as bar:
        clock[0] = 10.0
        bar.update(250)
        assert notebook.shown[-1]["text/plain"] == "Training: 250 of 1,000 rows, 25/s, 30.0 s left"
        assert 'value="250" max="1000"' in notebook.shown[-1]["text/html"]


def test_a_notebook_is_updated_at_most_four_times_a_second(notebook, clock):
    with progress(1000, "rows", "Training") as bar:
        for _ in range(1000):
            clock[0] += 0.01
            bar.update()
    assert 30 <= len(notebook.shown) <= 42
    assert bar.done == 1000


def test_resumed_units_do_not_count_for_the_rate(notebook, clock):
    with progress(100, "images", "Collecting", initial=60) as bar:
        clock[0] = 2.0
        bar.update(40)
    assert notebook.shown[-1]["text/plain"] == "Collecting: 40 images in 2.0 s (20/s) after 60 of an earlier run"


def test_a_failure_leaves_a_line_that_says_where(notebook, clock):
    def interrupted() -> None:
        with progress(100, "images", "Collecting") as bar:
            clock[0] = 4.0
            bar.update(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert notebook.shown[-1]["text/plain"] == "Collecting: stopped after 20 of 100 images in 4.0 s (5/s)"


def test_an_unknown_total_shows_no_time_left(notebook, clock):
    with progress(None, "rows", "Reading") as bar:
        clock[0] = 100.0
        bar.update(5)
        assert notebook.shown[-1]["text/plain"] == "Reading: 5 rows, 0.05/s"


def test_hostile_labels_are_shown_as_text(notebook):
    with progress(1, "images", "<img src=x onerror=alert(1)>\udce9") as bar:
        bar.update()
    for bundle in notebook.shown:
        assert "<img" not in bundle["text/html"]
        assert "&lt;img" in bundle["text/html"]
        bundle["text/html"].encode("utf-8")


def test_disabled_shows_nothing_and_counts(notebook, capsys):
    with progress(10, "images", "Collecting", enabled=False) as bar:
        bar.update(7)
    assert bar.done == 7
    assert not notebook.shown
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_the_last_line_only(capsys):
    with progress(10, "images", "Collecting") as bar:
        bar.update(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"Collecting: 10 images in [\d.]+ s \([\d,.e+]+/s\)\n", err)


def test_a_terminal_gets_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(10, "images", "Collecting") as bar:
        bar.update(5)
        bar._show()
        assert "5/10" in capsys.readouterr().err
        bar.update(5)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Collecting: 10 images in" in err.splitlines()[-1]


def test_outside_a_kernel_nothing_is_taken_for_a_notebook():
    assert not module.in_notebook()
