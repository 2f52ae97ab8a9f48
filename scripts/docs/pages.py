"""The slow half of the documentation: saved views for the gallery and the tutorials as reports.

    python scripts/docs/pages.py build/docs            # both
    python scripts/docs/pages.py build/docs --execute  # run the tutorials first (minutes each): live views in them, too

Each page is one that `nb-sae report` makes; `mkdocs build` takes them from there (see hooks.py).
"""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

import nb_sae as ns
from nb_sae.reporting.run import Step, execute
from nb_sae.reporting.widgets import VIEW_MIME, static_picture

ROOT = Path(__file__).resolve().parent.parent.parent
GALLERY = ROOT / "docs" / "gallery.md"
NOTEBOOKS = ROOT / "notebooks"

_PIECE = re.compile(
    r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```$|^<!-- view: (?P<view>[\w-]+) (?P<height>\d+) -->$",
    flags=re.MULTILINE | re.DOTALL,
)
# A saved view stands inside a page that has a title, a theme button and a foot already.
_BARE = "<style>aside, .skip, article > header, main > footer { display: none !important } .page, main { padding: 0 } \
.page { display: block; max-width: none } .cell, .output { margin: 0 } .nbsae-view { margin: 0 0 .7rem }</style></head>"
_NEAR = re.compile(r"\]\((?:(?P<folder>\.\./docs/)(?=\w+\.md)|(?=\w+\.ipynb))(?P<name>\w+)\.(?:md|ipynb)\)")
_MARK = re.compile(r'href="#nbsae-(?P<kind>page|tutorial)-(?P<name>\w+)"')
_HOME_LINK = '<a class="docs-home" href="../tutorials.html">← Documentation</a>'
_HOME_STYLE = "<style>.docs-home { flex-basis: 100%; color: var(--link) }</style></head>"


class DocsError(RuntimeError):
    """A page of the documentation cannot be made; the message says which and why."""


@dataclass(frozen=True)
class Example:
    """One block of code of a page."""

    source: str
    view: str | None = None
    """Name of the saved view that its last line gives, if the page shows it."""


def examples(text: str) -> list[Example]:
    """The Python blocks of a Markdown page, in order; `<!-- view: NAME HEIGHT -->` after one says that it is shown.

    Raises:
        DocsError: A view has no code before it, or its name is taken.
    """
    found: list[Example] = []
    for piece in _PIECE.finditer(text):
        if piece["view"] is None:
            found.append(Example(textwrap.dedent(piece["code"]).strip()))
        elif not found or found[-1].view or any(one.view == piece["view"] for one in found):
            raise DocsError(f"The view {piece['view']!r} has no block of its own before it, or its name is taken.")
        else:
            found[-1] = Example(found[-1].source, piece["view"])
    return found


def make_gallery(page: Path, out: Path, *, progress: bool = True) -> dict[str, Path]:
    """Run the code of `page` in one kernel and write each saved view as a page of its own.

    Raises:
        DocsError: A block failed, or the last line of one gives no dashboard.
    """
    shown = examples(page.read_text(encoding="utf-8"))
    notebook = new_notebook(cells=[new_code_cell(example.source) for example in shown])
    with tempfile.TemporaryDirectory(prefix="nb-sae-docs-") as folder:
        done, stop = execute(notebook, folder=Path(folder), on_step=_say if progress else None)
        if stop is not None:
            raise DocsError(f"{page.name}, block {stop.cell + 1}: {stop.reason}\n{shown[stop.cell].source}")
        return {
            example.view: _write_view(done, number, out / f"{example.view}.html", Path(folder))
            for number, example in enumerate(shown)
            if example.view is not None
        }


def _write_view(done: nbformat.NotebookNode, cell: int, out: Path, folder: Path) -> Path:
    """The report of one executed cell, without the frame of a report."""
    one = copy.deepcopy(done)
    one.cells = [one.cells[cell]]
    # What training and collecting said on the way is no part of the view.
    outputs = one.cells[0].outputs
    twins = [twin.model_id for output in outputs if (twin := static_picture(output))]
    one.cells[0].outputs = [
        output
        for output in outputs
        if static_picture(output) or output.get("data", {}).get(VIEW_MIME, {}).get("model_id") in twins
    ]
    source = folder / "view.ipynb"
    nbformat.write(one, source)
    made = ns.report(source, folder / "report" / "view.html", code="hide", title=f"Saved view: {out.stem}")
    text = made.read_text(encoding="utf-8")
    if 'class="nbsae-view"' not in text:
        raise DocsError(f"The block before the view {out.stem!r} ends with no dashboard. Its last line has to be one.")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text.replace("</head>", _BARE, 1), encoding="utf-8")
    return out


def make_tutorials(out: Path, *, run: bool = False) -> list[Path]:
    """Every notebook as a report with a way back to the documentation; with `run`, executed anew."""
    pages = []
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory(prefix="nb-sae-docs-") as folder:
            notebook = nbformat.read(source, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = _NEAR.sub(_marked, cell.source)
            nbformat.write(notebook, Path(folder) / source.name)
            made = ns.report(Path(folder) / source.name, Path(folder) / "report.html", execute=run)
            text = made.read_text(encoding="utf-8")
        if '<div class="tools">' not in text:
            raise DocsError(f"The report of {source.name} has no row of tools, where the way back is put.")
        text = text.replace("</head>", _HOME_STYLE, 1)
        text = text.replace('<div class="tools">', f'<div class="tools">{_HOME_LINK}', 1)
        page = out / f"{source.stem}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_MARK.sub(_unmarked, text), encoding="utf-8")
        pages.append(page)
    return pages


def _marked(found: re.Match[str]) -> str:
    """A report holds links to other sites and into itself; those to our own files travel as the latter."""
    return f"](#nbsae-{'page' if found['folder'] else 'tutorial'}-{found['name']})"


def _unmarked(found: re.Match[str]) -> str:
    return f'href="{"../" if found["kind"] == "page" else ""}{found["name"]}.html"'


def _say(step: Step) -> None:
    if step.seconds is not None:
        print(f"  block {step.number} of {step.total}: {step.seconds:.1f} s", flush=True)


def main() -> int:
    """Write all pages into the folder that is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--execute", action="store_true", help="run the tutorials first")
    parser.add_argument("--only", choices=("gallery", "tutorials"))
    given = parser.parse_args()
    started = time.perf_counter()
    for kind in ("gallery", "tutorials"):
        if given.only in (None, kind):
            shutil.rmtree(given.out / kind, ignore_errors=True)
    try:
        if given.only != "tutorials":
            for page in make_gallery(GALLERY, given.out / "gallery").values():
                print(f"  {page.name:<18} {page.stat().st_size / 1e3:7.0f} kB")
        if given.only != "gallery":
            for page in make_tutorials(given.out / "tutorials", run=given.execute):
                print(f"  {page.name:<40} {page.stat().st_size / 1e3:7.0f} kB")
    except DocsError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"pages made in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
