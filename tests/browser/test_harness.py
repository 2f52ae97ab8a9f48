"""The instruments of the browser tests, tried on things whose answer is known."""

from __future__ import annotations

from pathlib import Path

from lab import Lab
from page_log import PageLog
from playwright.sync_api import Page

COUNTER = '''
import anywidget, traitlets

class Counter(anywidget.AnyWidget):
    count = traitlets.Int(0).tag(sync=True)
    _esm = """
    export default { render({ model, el }) {
        const button = document.createElement("button");
        button.className = "counter";
        const draw = () => { button.textContent = `count ${model.get("count")}`; };
        button.onclick = () => { model.set("count", model.get("count") + 1); model.save_changes(); };
        model.on("change:count", draw); draw(); el.append(button);
    } };
    """

counter = Counter()
counter
'''


def test_page_log_sees_a_request_an_error_and_a_dialog(page: Page, log: PageLog, tmp_path: Path):
    noisy = tmp_path / "noisy.html"
    noisy.write_text(
        "<!doctype html><img src='https://pixel.invalid/x.png'><script src='beside.js'></script>"
        "<script>alert('hello'); setTimeout(() => { throw new Error('late') }); new WebSocket('ws://127.0.0.1:9')</script>"
    )
    log.cut_off(noisy.as_uri())
    page.goto(noisy.as_uri())
    page.wait_for_timeout(300)
    assert "https://pixel.invalid/x.png" in log.requests
    assert any(address.endswith("beside.js") for address in log.requests)
    assert any(address.startswith("ws://") for address in log.requests)
    assert any("late" in error for error in log.errors)
    assert log.dialogs == ["hello"]


def test_page_log_is_empty_for_a_quiet_page(page: Page, log: PageLog, tmp_path: Path):
    quiet = tmp_path / "quiet.html"
    quiet.write_text(
        "<!doctype html><link rel=icon href='data:,'><script type=module>"
        "await import(URL.createObjectURL(new Blob(['document.title = \"ran\"'], {type: 'text/javascript'})))</script>"
    )
    log.cut_off(quiet.as_uri())
    page.goto(quiet.as_uri())
    page.wait_for_function("document.title === 'ran'")
    assert (log.requests, log.errors, log.dialogs) == ([], [], [])


def test_lab_runs_a_widget_that_talks_to_python(page: Page, lab: Lab):
    lab.write("counter.ipynb", [COUNTER, "counter.count", "counter.count = 41"])
    notebook = lab.open(page, "counter.ipynb")
    notebook.run(0)
    button = notebook.cell(0).locator("button.counter")
    button.click()
    notebook.run(1)
    notebook.expect_text(1, "1")
    notebook.run(2)
    page.wait_for_function("document.querySelector('button.counter').textContent === 'count 41'")
    notebook.theme("JupyterLab Dark")
