"""A JupyterLab server on a free port, and a notebook in it driven as a person drives it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nbformat
from nbformat import NotebookNode
from nbformat.sign import NotebookNotary
from playwright.sync_api import Locator, Page, expect

START_TIMEOUT_S = 90
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # Cells outside the window would have no output in the page.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/completer-extension/manager": {"autoCompletion": False},
}

App = Literal["lab/tree", "notebooks"]
"""Where the two front ends show a notebook: JupyterLab and Notebook 7."""

# The notebook is read.
_READ = "() => window.jupyterapp?.shell.currentWidget?.context?.isReady"
# The notebook is read and its kernel answers; keys pressed earlier may be lost.
_READY = """() => {
    const notebook = window.jupyterapp?.shell.currentWidget;
    return notebook?.context?.isReady && notebook.sessionContext?.session?.kernel?.status === 'idle';
}"""


@dataclass(frozen=True)
class Lab:
    """A running server."""

    folder: Path
    """What the server shows; notebooks are written here."""
    url: str
    token: str

    @classmethod
    @contextmanager
    def start(cls, home: Path, *, python_path: Sequence[Path] = (), jupyter_path: Sequence[Path] = ()) -> Iterator[Lab]:
        """Serve `home/files`; settings, runtime files and IPython's folder stay in `home` too.

        Args:
            home: An empty folder.
            python_path: What kernels import from first.
            jupyter_path: Where extensions of the front end are looked for first.

        Raises:
            RuntimeError: The server ended or did not answer in time; the message holds its log.
        """
        folder = home / "files"
        folder.mkdir()
        lab = cls(folder=folder, url=f"http://127.0.0.1:{free_port()}", token=secrets.token_hex(16))
        log = home / "server.log"
        environment = _environment(home, python_path)
        if jupyter_path:
            environment["JUPYTER_PATH"] = os.pathsep.join(map(str, jupyter_path))
        with log.open("wb") as sink:
            server = subprocess.Popen(
                lab._command(), env=environment, cwd=folder, stdout=sink, stderr=subprocess.STDOUT
            )
        try:
            lab._wait(server, log)
            yield lab
        finally:
            lab._shut_down(server)

    def _command(self) -> list[str]:
        port = self.url.rpartition(":")[2]
        return [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
            *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
            "--JupyterNotebookApp.expose_app_in_browser=True",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.folder}",
            *("--ServerApp.terminals_enabled=False", "--LabApp.extension_manager=readonly"),
            *("--LabApp.collaborative=False", "--LanguageServerManager.autodetect=False"),
        ]

    def _wait(self, server: subprocess.Popen[bytes], log: Path) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and server.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start (status {server.poll()}):\n{log.read_text()[-3000:]}")

    def _shut_down(self, server: subprocess.Popen[bytes]) -> None:
        """Ask first: a killed server leaves its kernels running."""
        request = urllib.request.Request(f"{self.url}/api/shutdown?token={self.token}", method="POST")
        try:
            urllib.request.urlopen(request, timeout=5).close()
            server.wait(timeout=15)
        except (OSError, subprocess.TimeoutExpired):
            server.terminate()
            server.wait(timeout=10)

    def write(self, name: str, cells: Sequence[str]) -> None:
        """A new notebook of code cells."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.folder / name)

    def put(self, name: str, notebook: NotebookNode, *, trusted: bool) -> None:
        """A notebook as it came from elsewhere; `trusted` signs it as `jupyter trust` does."""
        notebook.metadata["title"] = name  # signatures are of contents: the same notebook elsewhere may be signed
        nbformat.write(notebook, self.folder / name)
        if trusted:
            signer = NotebookNotary(data_dir=str(self.folder.parent / "data"))
            signer.sign(nbformat.read(self.folder / name, as_version=4))
            signer.store.close()

    def open(self, page: Page, name: str, *, app: App = "lab/tree", kernel: bool = True) -> LabNotebook:
        """Open a notebook in a fresh workspace and wait for its cells, and for its kernel where it has one.

        Args:
            page: Where to.
            name: File name of the notebook.
            app: JupyterLab, or Notebook 7, which the same server serves.
            kernel: False opens with "Notebook (No Kernel)".
        """
        factory = "" if kernel else "&factory=Notebook (No Kernel)"
        page.goto(f"{self.url}/{app}/{name}?reset&token={self.token}{factory}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
        page.wait_for_function(_READY if kernel else _READ, timeout=60_000)
        return LabNotebook(page)


@dataclass(frozen=True)
class LabNotebook:
    """The notebook that is open in the page."""

    page: Page

    def cell(self, number: int) -> Locator:
        """Cell by number from 0."""
        return self.page.locator(".jp-NotebookPanel:visible .jp-Cell").nth(number)

    def run(self, number: int, *, timeout_s: float = 90) -> Locator:
        """Run a cell with Shift+Enter, wait for its number, and return its outputs."""
        cell = self.cell(number)
        before = cell.locator(".jp-InputPrompt").inner_text()
        cell.locator(".jp-Editor").click()
        self.page.keyboard.press("Shift+Enter")
        self.page.wait_for_function(
            """([number, before]) => {
                const cells = [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell')];
                const now = cells[number]?.querySelector('.jp-InputPrompt')?.innerText ?? '';
                return /\\[\\d+\\]/.test(now) && now !== before;
            }""",
            arg=[number, before],
            timeout=timeout_s * 1000,
        )
        return cell.locator(".jp-Cell-outputArea")

    def text(self, number: int) -> str:
        """What the cell printed."""
        return "\n".join(self.cell(number).locator(".jp-OutputArea-output").all_inner_texts()).strip()

    def expect_text(self, number: int, text: str) -> None:
        """Wait until the cell's output holds `text`."""
        expect(self.cell(number).locator(".jp-Cell-outputArea")).to_contain_text(text)

    def theme(self, name: str) -> None:
        """Switch to a theme by its name, such as "JupyterLab Dark"."""
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
        light = "true" if "Light" in name else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")

    def save(self) -> None:
        """Save and wait until it is on disk."""
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
        self.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")

    def shut_down_kernel(self) -> None:
        """End the kernel behind the notebook."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(home: Path, python_path: Sequence[Path]) -> dict[str, str]:
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    for name, folder in folders.items():
        (home / folder).mkdir()
        environment[name] = str(home / folder)
    for name, settings in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    inherited = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, python_path), *inherited])
    environment.setdefault("OMP_NUM_THREADS", "1")
    return environment
