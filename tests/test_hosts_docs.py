"""The table of hosts in the documentation names tests that there are, and every one of the hosts' tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def functions_of(file: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_proof_that_the_table_names_exists():
    assert len(NAMED) > 12
    missing = [f"{file}::{name}" for file, name in NAMED if name not in functions_of(ROOT / file)]
    assert missing == []


def test_every_test_of_a_host_in_a_browser_is_named_in_the_table():
    browser = ROOT / "tests" / "browser"
    files = [*sorted(browser.glob("test_hosts_*.py")), *sorted(browser.glob("check_*.py"))]
    assert len(files) >= 6
    there = {name for file in files for name in functions_of(file)}
    assert there - {name for _, name in NAMED} == set()


def test_every_row_of_the_table_has_a_level_and_a_proof():
    rows = [line.split("|")[1:-1] for line in PAGE.partition("## Support")[2].splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    assert [row[0].strip() for row in rows if len(row) != 3 or not all(cell.strip() for cell in row)] == []
