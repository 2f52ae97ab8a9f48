"""An executed notebook as one HTML file that needs no kernel and no network, and as a notebook that GitHub shows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import nbformat

from nb_sae.atomic import write_atomically
from nb_sae.errors import ConfigError, PathExistsError, ReportError
from nb_sae.reporting import pdf as pdf_printing
from nb_sae.reporting.browser import require_browser
from nb_sae.reporting.markup import Markup
from nb_sae.reporting.page import CodeShown, PageOptions, build_page, title_of
from nb_sae.reporting.pictures import Treatment
from nb_sae.reporting.reading import read_notebook
from nb_sae.reporting.run import Step, Stop, execute, print_steps, with_parameters
from nb_sae.reporting.shareable import shareable
from nb_sae.reporting.text import Scrubber


@dataclass(frozen=True)
class Report:
    """What was written."""

    html: Path
    notebook: Path
    """The notebook beside it, without widget state."""
    pdf: Path | None
    """The printed page; None where it was not asked for."""
    cut: tuple[str, ...]
    """What was cut from the notebook so that GitHub shows it; empty if nothing was."""
    stop: Stop | None
    """Why the execution ended early; None if it did not."""
    seconds: float


def report(
    notebook: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    execute: bool = False,
    parameters: Mapping[str, Any] | None = None,
    images: Treatment = "keep",
    code: CodeShown = "show",
    title: str | None = None,
    pdf: bool = False,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = True,
    progress: bool = True,
) -> Path:
    """Write a notebook as one self-contained HTML file, and beside it an `.ipynb` that GitHub shows.

    The notebook beside it has 3 MB at most, which GitHub still shows: pictures become smaller where it would be larger,
    and its first cell says so. Plotly figures in it are pictures where this machine has a browser, else tables.

    The page makes no network request; dashboards work in it without a kernel, each script is stored once.
    Local paths, user and host names are taken out of both files.

    Args:
        notebook: An `.ipynb` file. It is left as it is.
        out: Where the HTML goes; the notebook's name with `.html` beside it if not given. The shareable notebook
            gets the same name with `.ipynb`, or `.shared.ipynb` where that would be the input itself.
        execute: Run it first, in this Python. Widget state is stored; what it holds already is discarded.
        parameters: Values for names assigned in the cell tagged `parameters`. Needs `execute=True`.
        images: "keep", "blur", or "remove" (grey boxes of the same size): every picture, those inside dashboards too.
        code: "show", "fold" (each cell opens on a click) or "hide".
        title: Instead of the notebook's first heading.
        pdf: Print the page to a `.pdf` beside it, too, by the Chromium, Chrome or Edge of this machine.
        folder: Working directory of the execution; the notebook's own folder if not given.
        overwrite: Whether existing files may be replaced.
        progress: Print one line per executed cell.

    Returns:
        The path of the HTML file.

    Raises:
        InputNotFoundError: There is no such notebook.
        FormatError: The file is not a notebook, or not in Python.
        PathExistsError: `out` exists and `overwrite` is False.
        ConfigError: An option or a parameter is not one of the known ones.
        MissingDependencyError: `pdf=True`, and there is no browser. Said before anything is executed.
        ReportError: The notebook failed while it was executed. The report was written and shows the failure and
            what came before; the message says where it lies. Or the browser could not print the page; it was written.
        KeyboardInterrupt: The execution was interrupted. The report of what was executed was written.
    """
    made = make_report(
        notebook,
        out,
        run=execute,
        parameters=parameters,
        images=images,
        code=code,
        title=title,
        pdf=pdf,
        folder=folder,
        overwrite=overwrite,
        on_step=print_steps if progress else None,
    )
    if made.stop is not None and made.stop.interrupted:
        raise KeyboardInterrupt(f"The execution was interrupted. What was executed is in {made.html}.")
    if made.stop is not None:
        raise ReportError(
            f"Cell {made.stop.cell + 1} of {notebook} failed: {made.stop.reason}. "
            f"The report shows the failure and what came before: {made.html}"
        )
    return made.html


def make_report(
    notebook: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    run: bool = False,
    parameters: Mapping[str, Any] | None = None,
    images: Treatment = "keep",
    code: CodeShown = "show",
    title: str | None = None,
    pdf: bool = False,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = True,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Like `report`, but a failed or interrupted execution is part of the result and raises nothing."""
    started = time.perf_counter()
    source = Path(notebook)
    _check_option("images", images, get_args(Treatment))
    _check_option("code", code, get_args(CodeShown))
    if parameters and not run:
        raise ConfigError("parameters= needs execute=True: they change what is computed, not how it is shown.")
    read = read_notebook(source)
    page_path, shared_path, pdf_path = _targets(source, out, overwrite, pdf)
    if pdf:
        require_browser(pdf_printing.NEEDED_FOR)
    where = Path(folder) if folder is not None else source.resolve().parent
    stop: Stop | None = None
    if run:
        if parameters:
            read = with_parameters(read, parameters)
        read, stop = execute(read, folder=where, on_step=on_step)
    scrub = Scrubber(where)
    if stop is not None:
        stop = Stop(stop.cell, scrub(stop.reason), stop.interrupted)
    markup = Markup(source.resolve().parent, scrub, images)
    options = PageOptions(name=source.stem, title=title, code=code, stop=stop)
    page = build_page(read, markup, options)
    copy, cut = shareable(read, scrub, images)
    shared = nbformat.writes(copy)
    write_text(page_path, page)
    write_text(shared_path, shared if shared.endswith("\n") else shared + "\n")
    if pdf_path:
        _print(page, pdf_path, page_path)
    return Report(page_path, shared_path, pdf_path, tuple(cut), stop, time.perf_counter() - started)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or leave what was there. Characters that UTF-8 cannot hold become U+FFFD."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    write_atomically(path, [encoded])


def _print(page: str, pdf: Path, html: Path) -> None:
    """Print what was written; a browser that fails takes nothing of it away."""
    try:
        write_atomically(pdf, pdf_printing.printed(page, title_of(page)))
    except ReportError as error:
        raise ReportError(f"{error} The page itself was written: {html}") from error


def _targets(
    source: Path, out: str | os.PathLike[str] | None, overwrite: bool, pdf: bool
) -> tuple[Path, Path, Path | None]:
    """Paths of the page, of the notebook beside it, and of the PDF."""
    page = Path(out) if out is not None else source.with_suffix(".html")
    if page.is_dir():
        page = page / f"{source.stem}.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"out={str(page)!r} does not end in .html. Give a path such as {page.name}.html.")
    shared = page.with_suffix(".ipynb")
    if shared.resolve() == source.resolve():
        shared = page.with_suffix(".shared.ipynb")
    printed = page.with_suffix(".pdf") if pdf else None
    for path in (page, shared, printed):
        if path is not None and path.exists() and not overwrite:
            raise PathExistsError(f"{path} exists already. Give another out=, or overwrite=True.")
    return page, shared, printed


def _check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}.")
