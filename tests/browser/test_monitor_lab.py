"""The training monitor in a live JupyterLab: buttons are heard while a cell trains, the end outlives the kernel."""

from __future__ import annotations

from pathlib import Path

from lab import Lab, LabNotebook
from page_log import PageLog
from playwright.sync_api import Locator, Page, expect

SETUP = """
import tempfile, time
import nb_sae as ns
import sessions as small

class Slow(small.Rows):
    def spoil(self, epoch, number, batch):
        time.sleep(0.01)
        return batch

folder = tempfile.mkdtemp() + "/saved"
train = ns.TrainConfig(rows=32 * 20_000, batch_rows=32, dead_after_rows=200, log_every=1)
monitor = ns.TrainMonitor(save_to=folder)
session = small.start(Slow.from_tensor(small.rows()), train=train, on_log=monitor)
"""
RUN = "session.run(progress=False)"
ASK = """
[saved], [fork] = monitor.saved, monitor.forks.values()
print("stopped", session.stopped_early, fork.stopped_early, ns.Session.load(saved, device="cpu").step > 0,
      fork.train.learning_rate, max(len(run.points) for run in monitor._runs) > 10)
"""


def press(notebook: LabNotebook, number: int) -> Locator:
    """Run a cell without waiting for its end."""
    cell = notebook.cell(number)
    cell.locator(".jp-Editor").click()
    notebook.page.keyboard.press("Shift+Enter")
    return cell


def step(root: Locator) -> int:
    return int(root.locator(".nbs-facts b").first.inner_text().replace(",", ""))


def test_buttons_are_heard_while_the_cell_trains(page: Page, lab: Lab, log: PageLog, screens: Path):
    lab.write("monitor.ipynb", [SETUP, RUN, ASK])
    notebook = lab.open(page, "monitor.ipynb")
    notebook.run(0)
    cell = press(notebook, 1)
    root = cell.locator(".nbs-monitor")
    pause = root.get_by_role("button", name="Pause")
    expect(pause).to_be_enabled(timeout=15_000)
    expect(root.locator(".nbs-run")).to_contain_text("running")
    pause.click()
    expect(root.locator(".nbs-run")).to_contain_text("paused")
    held = step(root)
    page.wait_for_timeout(600)
    assert step(root) == held
    assert "[*]" in cell.locator(".jp-InputPrompt").inner_text()  # the cell still runs

    root.get_by_role("button", name="Save…").click()
    root.get_by_role("button", name="Save here").click()
    expect(root.locator(".nbs-notes")).to_contain_text(f"saved at step {held:,} into")
    root.get_by_role("button", name="Fork…").click()
    value = root.get_by_label("Value in the fork")
    expect(value).not_to_have_value("")
    value.fill("-1")
    root.get_by_role("button", name="Fork now").click()
    expect(root.locator(".nbs-failed")).to_contain_text("learning_rate=-1")
    if not value.is_visible():
        root.get_by_role("button", name="Fork…").click()
        expect(value).not_to_have_value("-1")
    value.fill("0.0001")
    root.get_by_role("button", name="Fork now").click()
    expect(root.locator(".nbs-notes")).to_contain_text("forked at step")

    root.get_by_role("button", name="Continue").click()
    expect(root.locator(".nbs-run")).to_have_count(2)
    expect(root.locator(".nbs-run").nth(1)).to_contain_text("running")
    page.wait_for_function("held => [...document.querySelectorAll('.nbs-monitor .nbs-facts b')].some("
                           "one => Number(one.textContent.replaceAll(',', '')) > held + 5)", arg=held)  # fmt: skip
    root.screenshot(path=screens / "lab-monitor.png")
    for number in (0, 1):
        root.locator(".nbs-run").nth(number).click()
        root.get_by_role("button", name="Stop").click()
        expect(root.locator(".nbs-run").nth(number)).to_contain_text("stopped early")
    notebook.run(2)
    notebook.expect_text(2, "stopped True True True 0.0001 True")
    assert not log.errors

    # What was drawn stays when the kernel is gone, and a notebook that is opened later has the end, not the start.
    picture = cell.locator("[data-nbsae] img")
    assert "stopped at step" in (picture.get_attribute("alt") or "")
    notebook.shut_down_kernel()
    expect(root.locator(".nbs-run").first).to_contain_text("stopped early")
    notebook.theme("JupyterLab Dark")
    root.screenshot(path=screens / "lab-monitor-dark.png")


def test_the_notebooks_stop_button_ends_a_pause(page: Page, lab: Lab, log: PageLog):
    lab.write("interrupt.ipynb", [SETUP, RUN, "print('at', session.stopped_early, session.control.state)"])
    notebook = lab.open(page, "interrupt.ipynb")
    notebook.run(0)
    cell = press(notebook, 1)
    root = cell.locator(".nbs-monitor")
    expect(root.get_by_role("button", name="Pause")).to_be_enabled(timeout=15_000)
    root.get_by_role("button", name="Pause").click()
    expect(root.locator(".nbs-run")).to_contain_text("paused")
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()")
    expect(root.locator(".nbs-run")).to_contain_text("stopped early")
    notebook.run(2)
    notebook.expect_text(2, "at True idle")
