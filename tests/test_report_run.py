"""Executing a notebook for a report: parameters, failure, interrupt, widgets."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from report_pages import code, markdown, notebook, read_page, saved, valid

import nb_sae as ns
from nb_sae.errors import ConfigError, FormatError, ReportError
from nb_sae.reporting.report import make_report, write_text
from nb_sae.reporting.run import Step, cell_labels, with_parameters

WIDGET = """
import anywidget, traitlets
class Counter(anywidget.AnyWidget):
    _esm = "export default { render({ model, el }) { el.textContent = model.get('label') } }"
    label = traitlets.Unicode("seven").tag(sync=True)
    block = traitlets.Bytes(b"\\x00\\x01").tag(sync=True)
counter = Counter()
hidden = Counter(label="never shown")
counter
"""


def test_executed_widget_that_is_displayed_twice_holds_its_module_once(tmp_path: Path):
    made = notebook(code(WIDGET), code("counter.label = 'eight'\ncounter"))
    made.metadata["kernelspec"] = {"name": "no-such-kernel", "display_name": "Other", "language": "python"}
    page = read_page(ns.report(saved(tmp_path, made), execute=True, progress=False))
    assert len(page.modules()) == 1
    (model_id,) = page.state()["models"]
    assert [values["data-model"] for values in page.with_attribute("data-model")] == [model_id, model_id]
    model = page.state()["models"][model_id]
    assert model["state"]["label"] == "eight"
    assert model["buffers"] == [{"path": ["block"], "encoding": "base64", "data": "AAE="}]
    assert "never shown" not in page.source.split("nbsae-state")[1]
    shared = valid(tmp_path / "made.shared.ipynb")
    assert shared.metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in shared.metadata


def test_failing_notebook_gives_a_report_of_what_came_before(tmp_path: Path):
    made = notebook(
        code("# First\nprint('before')"),
        markdown("## Then it fails"),
        code("values = {}\nvalues['<b>missing</b>']"),
        code("# Last\nprint('unreach' + 'able')"),
    )
    path, steps = saved(tmp_path, made), []

    async def inside_an_event_loop() -> None:  # as in a notebook
        with pytest.raises(ReportError, match=r"Cell 3 .* failed: KeyError: .*made\.html"):
            ns.report(path, execute=True, progress=False)

    asyncio.run(inside_an_event_loop())
    page = read_page(tmp_path / "made.html")
    assert "before" in page.text
    assert "KeyError" in page.text
    assert "'<b>missing</b>'" in page.text
    assert "not run" in page.text
    assert "unreachable" not in page.text
    assert "stopped with an error" in page.text
    assert "#cell-2" in {values.get("href") for _, values in page.elements}

    result = make_report(path, run=True, on_step=steps.append)
    assert result.stop is not None
    assert (result.stop.cell, result.stop.interrupted) == (2, False)
    assert [(step.number, step.total, step.label, step.failed) for step in steps if step.seconds is not None] == [
        (1, 3, "First", False),
        (2, 3, "Then it fails", True),
    ]


def test_dead_kernel_gives_a_report(tmp_path: Path):
    made = notebook(code("print('before', flush=True)\nimport time; time.sleep(0.3)"), code("import os; os._exit(3)"))
    result = make_report(saved(tmp_path, made), run=True)
    assert result.stop is not None
    assert "kernel died" in result.stop.reason
    assert "before" in read_page(result.html).text


def test_interrupt_keeps_what_was_executed_and_skips_the_rest(tmp_path: Path):
    made = notebook(
        code("print('kept')"),
        code("import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('stopped early')"),
        code("print('sk' + 'ipped')"),
    )

    def interrupt(step: Step) -> None:
        if step.number == 2 and step.seconds is None:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    started = time.perf_counter()
    result = make_report(saved(tmp_path, made), run=True, on_step=interrupt)
    assert time.perf_counter() - started < 30
    assert result.stop is not None
    assert result.stop.interrupted
    text = read_page(result.html).text
    assert "kept" in text
    assert "stopped early" in text
    assert "skipped" not in text
    assert "was interrupted" in text


def test_parameters_follow_the_tagged_cell_and_replace_its_values(tmp_path: Path):
    tagged = code("N, M = 1, 2\nNAME: str = 'a'", tags=("parameters",))
    path = saved(tmp_path, notebook(tagged, code("print(NAME * N)")))
    result = make_report(path, run=True, parameters={"N": 3, "NAME": "\"'\n\u202e"})
    assert result.stop is None
    shared = valid(result.notebook)
    assert shared.cells[1].metadata["tags"] == ["injected-parameters"]
    assert shared.cells[2].outputs[0].text.count("\"'") == 3
    again = with_parameters(with_parameters(notebook(tagged), {"N": 2}), {"N": 4})
    assert [cell.source for cell in again.cells] == [tagged.source, "# Parameters of this run\nN = 4"]


def test_parameters_that_the_notebook_does_not_have_are_refused(tmp_path: Path):
    tagged = notebook(code("N_INPUTS = 1", tags=("parameters",)))
    with pytest.raises(ConfigError, match=r"no parameter 'N_INPUT'\. Closest: N_INPUTS"):
        with_parameters(tagged, {"N_INPUT": 3})
    with pytest.raises(ConfigError, match="is a object"):
        with_parameters(tagged, {"N_INPUTS": object()})
    with pytest.raises(ReportError, match="tagged 'parameters'"):
        with_parameters(notebook(code("N = 1")), {"N": 3})


def test_notebook_in_another_language_is_shown_but_not_executed(tmp_path: Path):
    made = notebook(code("println(1)"))
    made.metadata["kernelspec"] = {"name": "julia", "display_name": "Julia", "language": "julia"}
    path = saved(tmp_path, made)
    assert "println(1)" in read_page(ns.report(path)).text
    with pytest.raises(FormatError, match="written in julia"):
        ns.report(path, execute=True)


def test_cells_are_labelled_by_comment_heading_or_first_line():
    cells = [code("x = 1"), markdown("# Top\n## *Deep* `dive`"), code("y = 2"), code("y\ny"), code("# Draw.\nz = 3")]
    assert cell_labels(notebook(*cells)) == ["x = 1", "Top", "Top", "y", "Draw"]


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "page.html"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
