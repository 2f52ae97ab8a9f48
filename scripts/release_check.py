"""What must agree before a release: the version wherever it stands, and, for a tag, the day of the release.

    python scripts/release_check.py                 the version is the same everywhere
    python scripts/release_check.py --tag v1.2.3    and this tag is its release

`make release-check` runs it before it builds what would be published.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEMANTIC = re.compile(r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)(?:rc\d+)?")
"""MAJOR.MINOR.PATCH, and release candidates as Python writes them."""
UNRELEASED = "unreleased"


@dataclass(frozen=True)
class Stated:
    """What the files say about the release that is due."""

    package: str
    """`nb_sae.__version__`."""
    changelog: str
    """Version of the first heading in CHANGELOG.md."""
    day: str
    """What stands in brackets after it: a day, or `unreleased`."""
    citation: str
    """`version` of CITATION.cff."""
    citation_day: str
    """`date-released` of CITATION.cff; empty before a release."""


def stated(root: Path = ROOT) -> Stated:
    """Read the files; what a file does not state is an empty string."""

    def first(pattern: str, name: str) -> tuple[str, ...]:
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        return tuple(group or "" for group in found.groups()) if found else ("", "")

    changelog, day = first(r"^## (\S+)(?: \(([^)]*)\))?$", "CHANGELOG.md")
    return Stated(
        package=first(r'^__version__ = "([^"]*)"$', "nb_sae/__init__.py")[0],
        changelog=changelog,
        day=day,
        citation=first(r'^version: "?([^"\n]*)"?$', "CITATION.cff")[0],
        citation_day=first(r'^date-released: "?([^"\n]*)"?$', "CITATION.cff")[0],
    )


def problems(found: Stated, tag: str = "") -> list[str]:
    """What stands in the way of a release, each with what to do; empty when nothing does."""
    wrong: list[str] = []
    if not SEMANTIC.fullmatch(found.package):
        wrong.append(f"nb_sae.__version__ is {found.package!r}; a release is MAJOR.MINOR.PATCH. Set it in __init__.py.")
    if found.changelog != found.package:
        wrong.append(
            f"CHANGELOG.md begins with {found.changelog!r}, the package is {found.package}. Write what changed first."
        )
    if found.citation != found.package:
        wrong.append(f"CITATION.cff says version {found.citation!r}, the package is {found.package}. Make them equal.")
    if not tag:
        return wrong
    if tag != f"v{found.package}":
        wrong.append(f"The tag is {tag!r}, the package is {found.package}. Tag its commit as v{found.package}.")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", found.day):
        wrong.append(
            f"CHANGELOG.md says ({found.day or 'nothing'}) beside {found.changelog}. "
            "Put the day of the release there, as 2030-01-31."
        )
    if found.citation_day != found.day:
        wrong.append(
            f"CITATION.cff was released on {found.citation_day or 'no day'}, CHANGELOG.md says {found.day or 'none'}. "
            f"Write `date-released: {found.day}`."
        )
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the shell; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check that the version is the same wherever it stands.")
    parser.add_argument("--tag", default="", help="the tag that releases it, as v1.2.3; empty for a dry run")
    tag = parser.parse_args(arguments).tag
    found = stated()
    wrong = problems(found, tag)
    for line in wrong:
        print(f"release_check: {line}", file=sys.stderr)
    if not wrong:
        print(f"version {found.package} ({found.day}){f', tag {tag}' if tag else ': a dry run, no tag'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
