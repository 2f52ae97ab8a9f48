"""What a notebook says about how it was made: the facts of its objects, the seeds in its code, and when it ran."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from nbformat import NotebookNode

from nb_sae.facts import KEY, MIME, lines_of, merged
from nb_sae.reporting.text import Scrubber, joined, map_strings, printable

_SEED_NAME = re.compile(r"(?:.*_)?(?:seed|random_state)", re.IGNORECASE)
_SEEDING = frozenset({"manual_seed", "manual_seed_all", "seed", "default_rng", "set_seed", "PRNGKey"})
_MOST_SEEDS = 12


def facts_in(notebook: NotebookNode, scrub: Scrubber) -> dict[str, Any]:
    """What the notebook's metadata and outputs say, as one; local paths are taken out.

    Left by an execution for a report (whole), by a dashboard's display, or by a cell that ends with `provenance()`.
    """
    parts = [part for part in (notebook.metadata.get(KEY), *_from_outputs(notebook)) if isinstance(part, Mapping)]
    return map_strings(merged(parts), lambda text: scrub(printable(text)))


def _from_outputs(notebook: NotebookNode) -> Iterator[Any]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type in ("display_data", "execute_result"):
                yield output.get("metadata", {}).get(KEY)
                yield output.data.get(MIME)


def seeds_in(notebook: NotebookNode) -> list[str]:
    """Every seed that the code names, as `function(seed=0)`, each once, in order.

    A name is followed to the number that the code gives it: `SEED = 0 … demo_faces(100, seed=SEED)`.
    """
    numbers: dict[str, Any] = {}
    found: dict[str, None] = {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        try:
            tree = ast.parse(_python(joined(cell.source)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                numbers.update({one.id: node.value.value for one in node.targets if isinstance(one, ast.Name)})
            elif isinstance(node, ast.Call):
                found.update(dict.fromkeys(_seeds_of(node, numbers)))
    return list(found)


def origin_html(notebook: NotebookNode, scrub: Scrubber) -> str:
    """The facts as a description list; empty where the notebook says nothing."""
    facts = facts_in(notebook, scrub)
    seeds = seeds_in(notebook)
    lines = lines_of(facts)
    if "versions" not in facts:
        language = notebook.metadata.get("language_info", {})
        version = language.get("version") if isinstance(language, Mapping) else None
        lines += [("Versions", f"Python {version}")] if isinstance(version, str) else []
    if seeds:
        more = f" and {len(seeds) - _MOST_SEEDS} more" if len(seeds) > _MOST_SEEDS else ""
        lines.append(("Seeds", ", ".join(seeds[:_MOST_SEEDS]) + more))
    ran = _time(facts) or _time(_timed(notebook))
    lines += [("Executed", ran)] if ran else []
    items = "".join(f"<div><dt>{name}</dt><dd>{_escaped(scrub(text))}</dd></div>" for name, text in lines)
    return f'<dl class="origin">{items}</dl>' if items else ""


def _python(source: str) -> str:
    """A cell's source without IPython's own lines."""
    return "\n".join("" if line.lstrip()[:1] in ("%", "!", "?") else line for line in source.splitlines())


def _seeds_of(call: ast.Call, numbers: Mapping[str, Any]) -> Iterator[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    for keyword in call.keywords:
        value = _number(keyword.value, numbers)
        if keyword.arg and _SEED_NAME.fullmatch(keyword.arg) and value is not None:
            yield f"{name}({keyword.arg}={value})"
    if name in _SEEDING and call.args and (value := _number(call.args[0], numbers)) is not None:
        yield f"{name}({value})"


def _number(node: ast.expr, numbers: Mapping[str, Any]) -> int | None:
    value = (
        node.value if isinstance(node, ast.Constant) else numbers.get(node.id) if isinstance(node, ast.Name) else None
    )
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _timed(notebook: NotebookNode) -> dict[str, Any]:
    """Begin and length by the times that JupyterLab records beside the cells, where it is told to."""
    times = []
    for cell in notebook.cells:
        recorded = cell.metadata.get("execution", {})
        for name, value in recorded.items() if isinstance(recorded, Mapping) else ():
            if name in ("iopub.execute_input", "shell.execute_reply") and (when := _moment(value)) is not None:
                times.append(when)
    if not times:
        return {}
    return {"started": min(times).isoformat(), "seconds": (max(times) - min(times)).total_seconds()}


def _time(facts: Mapping[str, Any]) -> str:
    began, seconds = _moment(facts.get("started")), facts.get("seconds")
    if began is None:
        return ""
    took = f", in {_length(seconds)}" if isinstance(seconds, int | float) and 0 <= seconds < 1e8 else ""
    return f"{began.day} {began:%B %Y %H:%M} UTC{took}"


def _moment(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _length(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=False)
