"""Give every tutorial the same frame: a badge, its place in the set, and the cell that installs on Colab.

The repository is named once, under `project.urls` in pyproject.toml.

    python scripts/frame_notebooks.py            write the frames
    python scripts/frame_notebooks.py --check    say which are out of date; exit status 1 if any is
"""

from __future__ import annotations

import argparse
import copy
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
TOP, INSTALL = "frame-top", "frame-install"
"""Ids of the two cells."""


@dataclass(frozen=True)
class Tutorial:
    """One notebook of the set, as the others call it."""

    stem: str
    """File name without its ending."""
    name: str
    """What a link to it says, after its number."""
    minutes: int
    """How long it runs on two CPU cores, rounded up."""
    extra: str = ""
    """Optional dependencies that it needs beside the package."""


TUTORIALS = (
    Tutorial("01_interpret_clip", "a CLIP", 4),
    Tutorial("02_interpret_language_model", "a language model", 6),
    Tutorial("03_concepts_and_steering", "concepts and steering", 2),
    Tutorial("04_concept_bias_celeba", "concept bias", 2),
    Tutorial("05_feature_flow_clip", "feature flow in a CLIP", 3),
    Tutorial("06_feature_flow_language_model", "feature flow in a language model", 4),
    Tutorial("07_train_and_compare", "training and comparing", 4, extra="baselines"),
)


def repository(root: Path = ROOT) -> str:
    """Address of the repository, from pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def top(place: int, address: str) -> str:
    """Markdown of the first cell: badge, place in the set, neighbours.

    Args:
        place: Index into `TUTORIALS`.
        address: `https://github.com/OWNER/NAME`.
    """
    here = TUTORIALS[place]
    slug = address.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{here.stem}.ipynb"
    words = [
        f"Tutorial {place + 1} of {len(TUTORIALS)}",
        f"about {here.minutes} minutes on two CPU cores, no GPU needed",
    ]
    for word, other in (("before", place - 1), ("next", place + 1)):
        if 0 <= other < len(TUTORIALS):
            stem, name = TUTORIALS[other].stem, TUTORIALS[other].name
            words.append(f"{word}: [{stem[:2]} {name}]({stem}.ipynb)")
    return f"[![Open in Colab]({BADGE})]({colab})\n\n{' · '.join(words)}"


def install(place: int) -> str:
    """Source of the cell that installs the package on Colab, and only there."""
    extra = TUTORIALS[place].extra
    what = f'"nb-sae[{extra}]"' if extra else "nb-sae"
    return (
        "# On Colab this installs nb_sae; anywhere else it does nothing.\n"
        "import sys\n\n"
        f'if "google.colab" in sys.modules:\n    %pip install --quiet {what}'
    )


def framed(notebook: nbformat.NotebookNode, place: int, address: str) -> nbformat.NotebookNode:
    """A copy in its frame: the two cells in place, executed cells numbered from 1."""
    made = copy.deepcopy(notebook)
    inner = [cell for cell in made.cells if cell.id not in (TOP, INSTALL)]
    code = nbformat.v4.new_code_cell(install(place), id=INSTALL, execution_count=1)
    made.cells = [nbformat.v4.new_markdown_cell(top(place, address), id=TOP), inner[0], code, *inner[1:]]
    number = 0
    for cell in made.cells:
        if cell.cell_type == "code" and cell.execution_count is not None:
            number += 1
            cell.execution_count = number
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = number
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the shell; returns the exit status."""
    parser = argparse.ArgumentParser(description="Give every tutorial the same frame.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a frame is out of date")
    check = parser.parse_args(arguments).check
    address, stale = repository(), []
    for place, tutorial in enumerate(TUTORIALS):
        path = ROOT / "notebooks" / f"{tutorial.stem}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        made = framed(notebook, place, address)
        if made != notebook:
            stale.append(path.name)
            if not check:
                nbformat.write(made, path)
    print(f"{'out of date' if check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
