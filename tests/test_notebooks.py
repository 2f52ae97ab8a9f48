"""The tutorials, executed in an empty folder into reports, at sizes smaller than those they are committed with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

import nb_sae as ns

pytestmark = pytest.mark.notebook

ROOT = Path(__file__).resolve().parent.parent
REPORT_LIMIT_BYTES = 6_000_000
SMALLER = {"N_INPUTS": 1500, "TRAIN_ROWS": 300_000}
"""What the tests set in the notebooks' parameters cell; `make demo` runs the first one at its full size."""
SMALLEST = {
    "03_concepts_and_steering": {"N_INPUTS": 1500, "TRAIN_ROWS": 200_000},
    "04_concept_bias_celeba": {"N_INPUTS": 1500, "TRAIN_ROWS": 200_000},
    "05_feature_flow_clip": {"N_INPUTS": 600, "TRAIN_ROWS": 40_000},  # thirteen dictionaries
    "06_feature_flow_language_model": {"N_INPUTS": 300, "TRAIN_ROWS": 40_000},  # twelve
    "07_train_and_compare": {"N_INPUTS": 600, "TRAIN_ROWS": 40_000},  # it trains a dozen dictionaries
}
TUTORIALS = ("01_interpret_clip", "02_interpret_language_model", *SMALLEST)


@dataclass(frozen=True)
class Executed:
    page: Path
    folder: Path

    @property
    def notebook(self) -> nbformat.NotebookNode:
        return nbformat.read(self.page.with_suffix(".ipynb"), as_version=4)


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_executes_into_a_report(name: str, tmp_path: Path):
    """One test for all promises of a notebook, so that tests side by side execute it once."""
    started = time.perf_counter()
    page = ns.report(
        ROOT / "notebooks" / f"{name}.ipynb",
        tmp_path / f"{name}.html",
        execute=True,
        parameters=SMALLEST.get(name, SMALLER),
        folder=tmp_path,
    )
    seconds = time.perf_counter() - started
    print(f"\n{name}: {seconds:.0f} s, report {page.stat().st_size / 1e6:.2f} MB")
    executed = Executed(page, tmp_path)
    runs_from_top_to_bottom(executed)
    report_holds_dashboards_and_figures_within_its_size(executed)
    names_no_local_path(executed)
    notebook_beside_the_report_shows_on_github(executed)


def runs_from_top_to_bottom(executed: Executed):
    cells = [cell for cell in executed.notebook.cells if cell.cell_type == "code"]
    assert cells
    assert [cell.source.splitlines()[0] for cell in cells if cell.execution_count is None] == []
    assert [output.ename for cell in cells for output in cell.outputs if output.output_type == "error"] == []


def report_holds_dashboards_and_figures_within_its_size(executed: Executed):
    text = executed.page.read_text(encoding="utf-8")
    assert 'class="nbsae-view"' in text
    assert 'class="nbsae-plotly"' in text
    assert executed.page.stat().st_size < REPORT_LIMIT_BYTES


def names_no_local_path(executed: Executed):
    for path in (executed.page, executed.page.with_suffix(".ipynb")):
        text = path.read_text(encoding="utf-8")
        assert str(executed.folder) not in text
        assert str(ROOT) not in text
        assert str(Path.home()) + "/" not in text


def notebook_beside_the_report_shows_on_github(executed: Executed):
    nbformat.validate(executed.notebook)
    assert "widgets" not in executed.notebook.metadata
    pictures = [
        output
        for cell in executed.notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {}) or "data:image/" in str(output.get("data", {}).get("text/html", ""))
    ]
    assert pictures
