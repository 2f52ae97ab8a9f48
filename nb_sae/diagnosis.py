"""What this environment is made of, what is wrong with it, and one line that repairs each problem.

A widget has two sides: the kernel's Python packages, and the extensions that the Jupyter server hands to the browser.
Where their versions do not fit, the browser shows "No version of module … is registered"; so both are listed.
"""

from __future__ import annotations

import contextlib
import html
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Literal

from nb_sae import __version__
from nb_sae.front_end import Server, extension_version, installed_after, own_host

Level = Literal["ok", "note", "problem"]

_MARKS: dict[Level, str] = {"ok": "✓", "note": "·", "problem": "✗"}
_DASHBOARDS = ("feature", "concept", "bias", "attribution", "flow", "atlas", "monitor")
_SCRIPTS = (*(f"{name}.{kind}" for name in _DASHBOARDS for kind in ("js", "css")), "shared.js", "report.js")
_OLDEST_ANYWIDGET = [0, 9, 21]
_LITTLE_DISK_GB, _NO_DISK_GB = 5.0, 1.0
_SHOWN_PACKAGES = ("numpy", "polars", "transformers", "safetensors", "nbclient", "ipykernel")


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    topic: str
    found: str
    level: Level = "ok"
    fix: str = ""
    """What to type or do; empty where nothing is wrong."""


@dataclass(frozen=True)
class Diagnosis:
    """Every check; printed as text, shown as a table in a notebook."""

    checks: tuple[Check, ...]

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that found something wrong."""
        return tuple(check for check in self.checks if check.level == "problem")

    @property
    def verdict(self) -> str:
        """One sentence about the whole."""
        count = len(self.problems)
        return "Nothing is wrong." if not count else f"{count} problem{'s' if count > 1 else ''} found."

    def __str__(self) -> str:
        width = max((len(check.topic) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            lines.append(f"{_MARKS[check.level]} {check.topic:<{width}}  {check.found}")
            if check.fix:
                lines.append(f"  {'':<{width}}  → {check.fix}")
        return "\n".join([*lines, "", self.verdict])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = []
        for check in self.checks:
            fix = f"<br><strong>→ {html.escape(check.fix)}</strong>" if check.fix else ""
            rows.append(
                f"<tr><td>{_MARKS[check.level]}</td><th style='text-align:left'>{html.escape(check.topic)}</th>"
                f"<td style='text-align:left'>{html.escape(check.found)}{fix}</td></tr>"
            )
        return f"<table><tbody>{''.join(rows)}</tbody></table><p>{self.verdict}</p>"


def doctor() -> Diagnosis:
    """Look at packages, devices, both sides of the widget bridge, built files and disk.

    Nothing is changed, and nothing is fetched from the network; the Jupyter server on this machine is asked what it
    hands to the browser.
    """
    found = (_python(), _packages(), _devices(), _widget_bridge(), _built_files(), _jupyter(), _disk())
    return Diagnosis(tuple(check for checks in found for check in checks))


def version_of(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Check]:
    yield Check("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Check("nb_sae", __version__)


def _packages() -> Iterator[Check]:
    """The packages that do the work, then whatever else is missing or too old."""
    for package, module in (
        ("torch", "torch"),
        ("open_clip_torch", "open_clip"),
        ("transformer_lens", "transformer_lens"),
        ("plotly", "plotly"),
    ):
        version = version_of(package)
        if version is None:
            yield Check(module, "not installed", "problem", f"pip install {package}")
        else:
            yield Check(module, version)
    yield Check("others", ", ".join(f"{name} {version_of(name) or 'missing'}" for name in _SHOWN_PACKAGES))
    yield from _requirements()


def _requirements() -> Iterator[Check]:
    """What nb_sae's own metadata asks for and this environment does not have."""
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("nb-sae") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("installation", "nb_sae is imported from a folder, not installed", "note", "pip install -e .")
        return
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if version is None:
            yield Check(requirement.name, "not installed", "problem", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            found = f"{version}, but nb_sae needs {requirement.specifier}"
            yield Check(requirement.name, found, "problem", f"pip install '{requirement}'")


def _devices() -> Iterator[Check]:
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        yield Check("devices", f"torch cannot be imported: {error}", "problem", "pip install --force-reinstall torch")
        return
    cores, memory = os.cpu_count() or 1, _memory_gb()
    yield Check(
        "CPU", f"{cores} cores, torch uses {torch.get_num_threads()} threads" + (f", {memory}" if memory else "")
    )
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(number)
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info(number))
            yield Check(f"CUDA {number}", f"{name}, {free:.0f} of {total:.0f} GiB free")
    elif torch.backends.mps.is_available():
        yield Check("GPU", "Apple MPS")
    elif shutil.which("nvidia-smi"):
        fix = "Install a torch build with CUDA; the selector on pytorch.org names the command for your driver."
        built = torch.version.cuda or "none"
        yield Check(
            "GPU", f"there is an NVIDIA driver, but torch sees no device (built for CUDA: {built})", "problem", fix
        )
    else:
        yield Check("GPU", "none; everything runs on the CPU", "note")


def _memory_gb() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    except (AttributeError, ValueError, OSError):  # not on Windows
        return ""


def _widget_bridge() -> Iterator[Check]:
    """Kernel side and browser side of the widgets, whether they fit, and what a saved notebook will show."""
    host, server = own_host(), Server.of_this_kernel()
    for package, extension in (("anywidget", "anywidget"), ("ipywidgets", "@jupyter-widgets/jupyterlab-manager")):
        kernel = version_of(package)
        if kernel is None:
            yield Check(f"{package} (kernel)", "not installed in the kernel", "problem", f"pip install {package}")
        elif host is not None:
            yield Check(f"{package} (kernel)", f"{kernel}; {host} brings its own side for the browser")
        else:
            yield _bridge(package, extension, kernel, server)
    if host is None and server is not None:
        yield from _saved_state(server)
        yield from _stale_tab(server)
    yield from _hearing()


def _bridge(package: str, extension: str, kernel: str, server: Server | None) -> Check:
    """One package on both sides: the server is asked what it hands out, else this environment is looked at."""
    topic = f"{package} (kernel ↔ JupyterLab)"
    browser, asked = _handed_out(extension, server)
    where = "the running server" if asked else "this environment"
    if browser is None:
        certain = asked or version_of("jupyterlab") is not None
        found = f"{kernel} ↔ {where} has no extension {extension}"
        return Check(topic, found, "problem" if certain else "note", _on_the_server(package, kernel))
    found = f"{kernel} ↔ {browser}" + (f" ({where})" if asked else "")
    if package == "anywidget" and not _same_minor(kernel, browser):
        return Check(topic, found + " do not fit", "problem", _for_anywidget(kernel, browser))
    if package == "ipywidgets" and not _same_generation(kernel, browser):
        return Check(topic, found + " do not fit", "problem", _for_ipywidgets(kernel))
    return Check(topic, found)


def _handed_out(extension: str, server: Server | None) -> tuple[str | None, bool]:
    """Version of the browser's side, and whether the running server said it; silence is no answer."""
    if server is not None:
        with contextlib.suppress(OSError):
            return server.extension_version(extension), True
    return extension_version(extension), False


def _on_the_server(package: str, kernel: str) -> str:
    return f"Where the Jupyter server runs: pip install {package}=={kernel}, restart it, and reload the browser tab."


def _for_anywidget(kernel: str, browser: str) -> str:
    """The server's side first; who cannot change it changes the kernel's, where that is new enough for us."""
    fix = f"Where the Jupyter server runs: pip install anywidget=={kernel}, then reload the browser tab."
    if _numbers(browser) < _OLDEST_ANYWIDGET:
        return fix
    return f"{fix} Where you cannot: pip install anywidget=={browser} for the kernel, and restart it."


def _for_ipywidgets(kernel: str) -> str:
    if _numbers(kernel)[0] < 8:
        return "ipywidgets 7 does not reach this JupyterLab: pip install -U 'ipywidgets>=8', and restart the kernel."
    return "Where the Jupyter server runs: pip install -U 'jupyterlab_widgets>=3', then reload the browser tab."


def _saved_state(server: Server) -> Iterator[Check]:
    saves = server.saves_state()
    if saves:
        yield Check("widget state", "JupyterLab saves it in the notebook: reopened, dashboards live without a kernel")
    elif saves is not None:
        fix = "Settings → Save Widget State Automatically; or share with: nb-sae report NOTEBOOK"
        found = "JupyterLab does not save it (its default): reopened without a kernel, dashboards are pictures"
        yield Check("widget state", found, "note", fix)


def _stale_tab(server: Server) -> Iterator[Check]:
    if installed_after("anywidget", server):
        found = (
            "anywidget was installed after the Jupyter server had started; tabs opened before that have an older one"
        )
        yield Check("browser tab", found, "note", "Reload the browser tab; if it stays, restart the Jupyter server.")


def _hearing() -> Iterator[Check]:
    """Whether a dashboard's buttons are heard while a cell runs."""
    version = version_of("ipykernel")
    if version is not None and _numbers(version)[0] < 7:
        found = f"ipykernel {version}: what a dashboard asks is answered when the running cell has ended"
        yield Check("while a cell runs", found, "note", "pip install -U 'ipykernel>=7', and restart the kernel.")


def _same_minor(kernel: str, browser: str) -> bool:
    """anywidget asks the browser for `~<its own minor>`."""
    return _numbers(kernel)[:2] == _numbers(browser)[:2]


def _same_generation(kernel: str, browser: str) -> bool:
    """ipywidgets 7 goes with manager 3, ipywidgets 8 with manager 5 and later."""
    return (_numbers(kernel)[0] >= 8) == (_numbers(browser)[0] >= 5)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)] or [0]


def _built_files() -> Iterator[Check]:
    package = files("nb_sae")
    missing = [name for name in _SCRIPTS if not (package / "widgets" / "static" / name).is_file()]
    if missing:
        fix = "make widgets (needs Node 20 or later), or install the wheel, which carries them"
        yield Check("dashboards", f"not built: {', '.join(missing)}", "problem", fix)
    else:
        size = sum(len((package / "widgets" / "static" / name).read_bytes()) for name in _SCRIPTS)
        yield Check("dashboards", f"built: {', '.join(_DASHBOARDS)}; {len(_SCRIPTS)} files, {size / 1000:.0f} KB")
    for topic, part in (
        ("demo CLIP", "demo_clip/open_clip_model.safetensors"),
        ("demo LM", "demo_lm/model.safetensors"),
    ):
        there = (package / "assets" / part).is_file()
        fix = "" if there else "Reinstall nb_sae; the models are part of the wheel and of the repository."
        yield Check(topic, "shipped inside" if there else "missing", "ok" if there else "problem", fix)


def _jupyter() -> Iterator[Check]:
    lab = version_of("jupyterlab")
    if lab is None:
        yield Check(
            "JupyterLab", "not installed here (only needed to open notebooks)", "note", "pip install jupyterlab"
        )
        return
    running = 0
    with contextlib.suppress(ImportError, OSError, ValueError):
        running = len(list(import_module("jupyter_server.serverapp").list_running_servers()))
    servers = f", {running} server{'s' if running > 1 else ''} running" if running else ", no server running"
    yield Check("JupyterLab", lab + servers)


def _disk() -> Iterator[Check]:
    try:
        free = shutil.disk_usage(Path.cwd()).free / 1e9
    except OSError as error:
        yield Check(
            "disk", f"the working folder cannot be read: {error.strerror}", "problem", "Change to another folder."
        )
        return
    fix = "Activations are stored on disk: free some, or give path= on another disk."
    if free < _NO_DISK_GB:
        yield Check("disk", f"{free:.1f} GB free in the working folder", "problem", fix)
    elif free < _LITTLE_DISK_GB:
        yield Check("disk", f"{free:.1f} GB free in the working folder", "note", fix)
    else:
        yield Check("disk", f"{free:.0f} GB free in the working folder")
