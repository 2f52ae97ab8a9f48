"""Execute a notebook in this Python: parameters, progress, failure and interrupt."""

from __future__ import annotations

import ast
import asyncio
import copy
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nbformat
import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from traitlets import default
from traitlets.config import Config

from nb_sae.errors import ConfigError, FormatError, ReportError, closest
from nb_sae.facts import KEY
from nb_sae.reporting.text import joined

INJECTED = "injected-parameters"
_KERNEL_STARTS_CELL_S = 0.1
"""Between the echo of a cell and its first line; an interrupt in this gap would hit the kernel, not the cell."""
_FACTS = """(__import__("nb_sae.facts", fromlist=["_"]).as_json() if "nb_sae" in __import__("sys").modules else "{}")"""
_FACTS_WITHIN_S = 5.0


@dataclass(frozen=True)
class Step:
    """A code cell that is about to run (`seconds` is None) or has run."""

    number: int
    """1-based among the code cells."""
    total: int
    label: str
    """The cell's first comment, else its nearest heading, else its first line."""
    seconds: float | None = None
    failed: bool = False


@dataclass(frozen=True)
class Stop:
    """Why a run ended before the last cell."""

    cell: int
    """0-based number of the cell, among all cells."""
    reason: str
    """One line."""
    interrupted: bool = False


def with_parameters(notebook: NotebookNode, parameters: Mapping[str, Any]) -> NotebookNode:
    """A copy in which a cell after the one tagged `parameters` sets the given names.

    Raises:
        ReportError: No cell is tagged `parameters`.
        ConfigError: That cell does not assign one of the names, or a value has no literal form.
    """
    notebook = copy.deepcopy(notebook)
    cells = [cell for cell in notebook.cells if INJECTED not in _tags(cell)]
    places = [number for number, cell in enumerate(cells) if "parameters" in _tags(cell)]
    if not places:
        raise ReportError(
            f"Parameters {', '.join(parameters)} were given, but no cell of the notebook is tagged 'parameters'. "
            "Tag the cell that assigns them (in JupyterLab: property inspector, Cell Tags)."
        )
    names = _assigned_names(joined(cells[places[0]].source))
    for name in parameters:
        if name not in names:
            raise ConfigError(
                f"The notebook has no parameter {name!r}. {closest(name, names)}"
                f"Its parameters are {', '.join(sorted(names))}."
            )
    lines = [f"{name} = {_literal(name, value)}" for name, value in parameters.items()]
    cell = nbformat.v4.new_code_cell("\n".join(["# Parameters of this run", *lines]))
    cell.metadata["tags"] = [INJECTED]
    notebook.cells = [*cells[: places[0] + 1], cell, *cells[places[0] + 1 :]]
    if notebook.nbformat_minor < 5:
        cell.pop("id", None)
    return notebook


def execute(
    notebook: NotebookNode, *, folder: Path, on_step: Callable[[Step], None] | None = None
) -> tuple[NotebookNode, Stop | None]:
    """Run every code cell in this Python, whatever kernel the notebook names.

    The first interrupt (Ctrl-C) interrupts the running cell and skips those after it; a second one kills the
    kernel. What was executed is kept in every case.

    Args:
        notebook: Left as it is.
        folder: Working directory of the kernel.
        on_step: Called before and after each code cell.

    Returns:
        The executed notebook with its widget state, and why it stopped early (None if it did not).

    Raises:
        FormatError: The notebook is not in Python.
    """
    language = notebook.metadata.get("kernelspec", {}).get("language") or notebook.metadata.get(
        "language_info", {}
    ).get("name", "python")
    if str(language).lower() not in ("python", "python3", "ipython"):
        raise FormatError(f"The notebook is written in {language}; only Python notebooks can be executed.")
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    run = _Run(notebook, folder, on_step)
    return notebook, run.to_the_end()


class _ThisPython(KernelSpecManager):
    """Knows one kernel: the interpreter that runs now."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        del kernel_name
        spec = get_kernel_dict()
        argv = [sys.executable, *spec["argv"][1:]]
        # The metadata says that this kernel can encrypt its sockets.
        return KernelSpec(
            argv=argv, display_name="Python 3", language="python", metadata=dict(spec.get("metadata") or {})
        )


class ThisPythonManager(AsyncKernelManager):
    """Starts the interpreter that runs now. Not private: a section of a traitlets config has no leading underscore."""

    @default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return _ThisPython(parent=self)


def _manager_config() -> Config:
    """Encrypted sockets where this Jupyter knows them: ipykernel warns about plain ones."""
    known = "transport_encryption" in AsyncKernelManager.class_trait_names() and zmq.has("curve")
    return Config({"ThisPythonManager": {"transport_encryption": "auto"}} if known else {})


class _StoppedError(Exception):
    """Raised between two cells after an interrupt."""


class _Client(NotebookClient):
    """nbclient, which also says when the kernel has begun with a cell, and asks it at the end what made the results."""

    began: Callable[[], None]
    facts: Mapping[str, Any] = MappingProxyType({})
    """What the notebook's objects say; empty where it does not use nb_sae."""

    async def async_execute_cell(self, cell: NotebookNode, cell_index: int, *args: Any, **options: Any) -> NotebookNode:
        """Run a cell; after the last one, or the one that ends the run, ask before the kernel is shut down."""
        try:
            done = await super().async_execute_cell(cell, cell_index, *args, **options)
        except DeadKernelError:
            raise
        except BaseException:
            self.facts = await self._asked()
            raise
        if cell_index == len(self.nb.cells) - 1:
            self.facts = await self._asked()
        return done

    async def _asked(self) -> dict[str, Any]:
        """The facts, or nothing where the kernel does not answer: a report does without them."""
        if self.kc is None:
            return {}
        try:
            number = self.kc.execute("", silent=True, store_history=False, user_expressions={"facts": _FACTS})
            reply = await asyncio.wait_for(self.async_wait_for_reply(number), _FACTS_WITHIN_S)
            text = reply["content"]["user_expressions"]["facts"]["data"]["text/plain"] if reply else "'{}'"
            facts = json.loads(ast.literal_eval(text))
        except (TimeoutError, DeadKernelError, KeyError, TypeError, ValueError, SyntaxError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """Note the echo of the cell's source: the kernel sends it when it starts to run the cell."""
        if msg["msg_type"] == "execute_input":
            self.began()
        return super().process_message(msg, cell, cell_index)


class _Run:
    """One execution, in a thread of its own so that it works inside a running event loop, too."""

    def __init__(self, notebook: NotebookNode, folder: Path, on_step: Callable[[Step], None] | None) -> None:
        self._notebook, self._folder, self._on_step = notebook, folder, on_step
        self._code = [number for number, cell in enumerate(notebook.cells) if _runs(cell)]
        self._labels = cell_labels(notebook)
        self._current, self._started = 0, 0.0
        self._interrupts = 0
        self._done = threading.Event()
        self._stop: Stop | None = None
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = False
        self._client = _Client(
            notebook,
            timeout=None,
            kernel_name="python3",
            kernel_manager_class=ThisPythonManager,
            config=_manager_config(),
            store_widget_state=True,
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
            on_cell_execute=self._before,
            on_cell_executed=self._after,
        )
        self._client.began = self._begin

    def to_the_end(self) -> Stop | None:
        began, started = datetime.now(UTC).isoformat(timespec="minutes"), time.perf_counter()
        thread = threading.Thread(target=self._work, name="nb-sae-report", daemon=True)
        thread.start()
        # Not thread.join: in Python 3.11 an interrupt inside it marks a thread that runs as stopped.
        while not self._done.is_set():
            try:
                self._done.wait(0.2)
            except KeyboardInterrupt:
                self._interrupt()
        took_s = round(time.perf_counter() - started, 1)
        self._client.set_widgets_metadata()
        self._notebook.metadata[KEY] = {**self._client.facts, "started": began, "seconds": took_s}
        if self._error is not None:
            raise self._error
        return self._stop

    def _work(self) -> None:
        # Plotly's default renderer would put 4.8 MB of script into the notebook.
        environment = {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"}
        try:
            asyncio.run(self._execute(environment))
        except CellExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".strip().splitlines()
            self._stop = Stop(self._current, reason[0] if reason else "error", interrupted=self._interrupts > 0)
        except _StoppedError:
            self._stop = Stop(self._current, "interrupted", interrupted=True)
        except (DeadKernelError, RuntimeError) as error:
            reason = "interrupted" if self._interrupts else f"the kernel died ({error})"
            self._stop = Stop(self._current, reason, interrupted=self._interrupts > 0)
        except BaseException as error:  # handed to the thread that waits
            self._error = error
        finally:
            self._done.set()

    async def _execute(self, environment: dict[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        await self._client.async_execute(env=environment)

    def _interrupt(self) -> None:
        """Stop the running cell; the second time, the kernel."""
        self._interrupts += 1
        if self._loop is not None and (self._begun or self._interrupts > 1):
            asyncio.run_coroutine_threadsafe(self._ask_to_stop(), self._loop)

    def _begin(self) -> None:
        """The kernel begins with a cell. An interrupt that came before would have been lost: ask now."""
        self._begun = True
        if self._interrupts == 1 and self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._ask_to_stop(), self._loop)

    async def _ask_to_stop(self) -> None:
        manager = self._client.km
        if not isinstance(manager, AsyncKernelManager):
            return
        if self._interrupts > 1:
            await manager.shutdown_kernel(now=True)
            return
        await asyncio.sleep(_KERNEL_STARTS_CELL_S)
        await manager.interrupt_kernel()

    def _before(self, cell: NotebookNode, cell_index: int) -> None:
        del cell
        if self._interrupts:
            raise _StoppedError
        self._current, self._started, self._begun = cell_index, time.perf_counter(), False
        self._tell(cell_index)

    def _after(self, cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        del cell
        failed = execute_reply["content"]["status"] == "error"
        self._tell(cell_index, time.perf_counter() - self._started, failed)

    def _tell(self, cell: int, seconds: float | None = None, failed: bool = False) -> None:
        if self._on_step is not None and cell in self._code:
            number = self._code.index(cell) + 1
            self._on_step(Step(number, len(self._code), self._labels[cell], seconds, failed))


def cell_labels(notebook: NotebookNode) -> list[str]:
    """One line for each cell: its first comment, else the heading it is the first under, else its first line."""
    labels, heading, taken = [], "", False
    for cell in notebook.cells:
        source = joined(cell.source).strip()
        first = source.splitlines()[0].strip() if source else ""
        if cell.cell_type == "markdown":
            found = re.search(r"^#{1,6}\s+(.+?)\s*#*$", source, flags=re.MULTILINE)
            if found:
                heading, taken = re.sub(r"[*_`]", "", found.group(1)), False
            labels.append(heading)
        elif first.startswith("#") and first.strip("#% "):
            labels.append(first.strip("#% ").rstrip("."))
        else:
            labels.append(first[:80] if taken or not heading else heading)
            taken = True
    return labels


def print_steps(step: Step) -> None:
    """Progress as lines on standard output, rewritten in place on a terminal."""
    width = len(str(step.total))
    line = f"  [{step.number:>{width}}/{step.total}] {step.label[:64]:<64}"
    live = sys.stdout.isatty()
    if step.seconds is None:
        if live:
            print(line, end="", flush=True)
        return
    print(f"{chr(13) if live else ''}{line} {step.seconds:6.1f} s{'  FAILED' if step.failed else ''}", flush=True)


def _runs(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(joined(cell.source).strip())


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _assigned_names(source: str) -> set[str]:
    """Names assigned at the top level of a cell."""
    targets: list[ast.expr] = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            targets += statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets.append(statement.target)
    parts = [part for target in targets for part in getattr(target, "elts", [target])]
    return {part.id for part in parts if isinstance(part, ast.Name)}


def _literal(name: str, value: Any) -> str:
    value = str(value) if isinstance(value, Path) else value
    text = repr(value)
    try:
        same = ast.literal_eval(text) == value
    except (ValueError, SyntaxError):
        same = False
    if not same:
        given = json.dumps(type(value).__name__)
        raise ConfigError(
            f"Parameter {name} is a {given[1:-1]}; a notebook can be given numbers, strings, lists and dicts of them."
        )
    return text
