"""Tables of what the dashboards weigh, measured when the documentation is built."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
STATIC = ROOT / "nb_sae" / "widgets" / "static"

SCRIPT_BYTES = {"monitor.js": 90_000, "report.js": 20_000}
"""Budgets that differ from the common one. The build refuses a file above its own; test_wheel.py holds the sum."""
COMMON_SCRIPT_BYTES, STYLE_BYTES, ALL_SCRIPTS_BYTES = 60_000, 8_000, 300_000


def scripts_table(folder: Path = STATIC) -> str:
    """A Markdown table of the built scripts and styles beside their budgets; empty where none is built."""
    scripts = sorted(folder.glob("*.js"))
    if not scripts:
        return ""
    lines = ["| dashboard | script | of | styles | of |", "| --- | ---: | ---: | ---: | ---: |"]
    for script in scripts:
        size, budget = script.stat().st_size, SCRIPT_BYTES.get(script.name, COMMON_SCRIPT_BYTES)
        style = script.with_suffix(".css")
        style_size = style.stat().st_size if style.is_file() else None
        shown = f"{_kb(style_size)} | {_kb(STYLE_BYTES)}" if style_size is not None else "– | –"
        lines.append(f"| {script.stem} | {_kb(size)} | {_kb(budget)} | {shown} |")
    total = sum(script.stat().st_size for script in scripts)
    lines.append(f"| **all scripts** | **{_kb(total)}** | **{_kb(ALL_SCRIPTS_BYTES)}** | | |")
    return "\n".join(lines)


def views_table(folder: Path) -> str:
    """A Markdown table of the pages of the gallery: everything in one file, script, styles, data and pictures."""
    lines = ["| page of the gallery | one HTML file |", "| --- | ---: |"]
    lines += [
        f"| [{page.stem}](gallery.md#{page.stem}) | {_kb(page.stat().st_size)} |"
        for page in sorted(folder.glob("*.html"))
    ]
    return "\n".join(lines)


def _kb(size: int) -> str:
    return f"{size / 1000:,.1f} kB"
