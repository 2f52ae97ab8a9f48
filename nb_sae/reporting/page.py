"""One HTML page of a notebook: article, dashboards, figures and everything they need, and nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Literal

from nbformat import NotebookNode

from nb_sae.errors import ReportError
from nb_sae.reporting.markup import Markup
from nb_sae.reporting.origin import origin_html
from nb_sae.reporting.outputs import Outputs
from nb_sae.reporting.outputs import code as code_html
from nb_sae.reporting.run import INJECTED, Stop, cell_labels
from nb_sae.reporting.text import joined, printable

CodeShown = Literal["show", "fold", "hide"]

_TITLE = re.compile(r'<h1 id="[^"]*">(.*?)</h1>', re.DOTALL)


@dataclass(frozen=True)
class PageOptions:
    """What a report is told about itself."""

    name: str
    """Shown as the title where the notebook has none."""
    title: str | None = None
    code: CodeShown = "show"
    stop: Stop | None = None
    when: datetime | None = None


def build_page(notebook: NotebookNode, markup: Markup, options: PageOptions) -> str:
    """The page as text.

    Raises:
        ReportError: The scripts of the widgets are not built.
    """
    outputs = Outputs.of(notebook, markup)
    body = _Body(outputs, options)
    article = "\n".join(body.cells(notebook))
    title, article = _take_title(article, markup, options)
    parts = [outputs.widgets.scripts(markup.scrub, markup.treatment), outputs.figures.scripts()]
    needs_runtime = any(parts)
    scripts = [*([runtime()] if needs_runtime else []), _asset("page.js")]
    theme = _asset("theme.js")
    plain = html.unescape(re.sub(r"<[^>]*>", "", title))
    head = _HEAD.format(
        policy=_policy([theme, *scripts], evaluates=outputs.figures.evaluates),
        title=html.escape(plain),
        style=_asset("page.css"),
        theme=theme,
    )
    shown = [
        _BAR.format(contents=_contents(markup), code_button=_CODE_BUTTON if options.code != "hide" else ""),
        f'<main><article><header><h1 id="top">{title}</h1></header>{_stopped(options.stop)}',
        article,
        f"</article>{_footer(notebook, markup, options)}</main></div>",
        *filter(None, parts),
        *(f"<script>{script}</script>" for script in scripts),
        "</body></html>\n",
    ]
    return head + "\n".join(shown)


def title_of(page: str) -> str:
    """The title of a page that `build_page` made, as text."""
    found = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    return html.unescape(found.group(1)) if found else ""


def runtime() -> str:
    """The script that hosts dashboards and figures, safe to stand inside a `<script>` element."""
    path = files("nb_sae") / "widgets" / "static" / "report.js"
    if not path.is_file():
        raise ReportError(
            "The notebook shows dashboards or figures, but nb_sae/widgets/static/report.js is not built. "
            "Run: make widgets (needs Node 20 or later), or install the wheel, which carries it."
        )
    return _inline(path.read_text(encoding="utf-8"))


class _Body:
    """The cells as HTML."""

    def __init__(self, outputs: Outputs, options: PageOptions) -> None:
        self._outputs, self._options = outputs, options

    def cells(self, notebook: NotebookNode) -> list[str]:
        labels, stop = cell_labels(notebook), self._options.stop
        pieces = []
        for number, (cell, label) in enumerate(zip(notebook.cells, labels, strict=True)):
            tags = set(cell.metadata.get("tags", []))
            if "remove-cell" in tags:
                continue
            if cell.cell_type == "markdown":
                text = self._outputs.markup.markdown(joined(cell.source), cell.get("attachments"))
                pieces.append(f'<section class="prose">{text}</section>')
            elif cell.cell_type == "code":
                pieces.append(self._code_cell(number, cell, label, unrun=stop is not None and number > stop.cell))
        return pieces

    def _code_cell(self, number: int, cell: NotebookNode, label: str, *, unrun: bool) -> str:
        tags = set(cell.metadata.get("tags", []))
        source, shown = joined(cell.source), self._options.code
        pieces = []
        if source.strip() and shown != "hide" and not tags & {"remove-input", "remove_input"}:
            folded = shown == "fold" or bool(tags & {"hide-input", "hide_input", INJECTED})
            note = '<span class="unrun">not run</span>' if unrun else ""
            caption = html.escape(printable(self._outputs.scrub(label)), quote=False)
            pieces.append(
                f'<details class="source"{"" if folded else " open"}><summary><span class="label">{caption}</span>'
                f"{note}</summary>{code_html(source, self._outputs.scrub)}</details>"
            )
        if not tags & {"remove-output", "remove_output"}:
            shown_outputs = "".join(f'<div class="output">{piece}</div>' for piece in self._outputs.cell(cell))
            if shown_outputs and tags & {"hide-output", "hide_output"}:
                shown_outputs = f"<details><summary>Output</summary>{shown_outputs}</details>"
            pieces.append(shown_outputs)
        return f'<section class="cell" id="cell-{number}">{"".join(pieces)}</section>' if any(pieces) else ""


def _take_title(article: str, markup: Markup, options: PageOptions) -> tuple[str, str]:
    """The title as HTML, and the article without the heading that gave it."""
    found = _TITLE.search(article)
    given = html.escape(printable(options.title), quote=False) if options.title else None
    if found is None:
        return given or html.escape(printable(options.name), quote=False), article
    anchor = re.search(r'id="([^"]*)"', found.group())
    if anchor:
        markup.headings[:] = [
            heading for heading in markup.headings if heading.anchor != html.unescape(anchor.group(1))
        ]
    return given or found.group(1), article[: found.start()] + article[found.end() :]


def _contents(markup: Markup) -> str:
    """The table of contents: two levels, if there is more than one entry."""
    listed = [heading for heading in markup.headings if heading.level <= 3]
    if len(listed) < 2:
        return ""
    top = min(heading.level for heading in listed)
    items = "".join(
        f'<li class="level-{heading.level - top}"><a href="#{html.escape(heading.anchor)}">{heading.label}</a></li>'
        for heading in listed
        if heading.level <= top + 1
    )
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>'


def _stopped(stop: Stop | None) -> str:
    if stop is None:
        return ""
    what = "was interrupted" if stop.interrupted else "stopped with an error"
    reason = "" if stop.interrupted else f": {html.escape(printable(stop.reason.rstrip('.')), quote=False)}"
    return (
        f'<p class="stopped" role="alert">This notebook <a href="#cell-{stop.cell}">{what}</a>{reason}. '
        "What ran before is shown; the cells after it did not run.</p>"
    )


def _footer(notebook: NotebookNode, markup: Markup, options: PageOptions) -> str:
    """How it was made, and when; never a path, a user or a host."""
    when = options.when or datetime.now(UTC)
    said = (
        f"Report of an executed notebook, {when.day} {when:%B %Y}. It holds all it shows and asks the network for "
        "nothing."
    )
    return f"<footer>{origin_html(notebook, markup.scrub)}<p>{said}</p></footer>"


def _policy(scripts: list[str], *, evaluates: bool) -> str:
    """A content policy under which only our own scripts run and nothing is fetched."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    extra = " 'unsafe-eval'" if evaluates else ""
    return (
        f"default-src 'none'; script-src {hashes} blob:{extra}; style-src 'unsafe-inline' blob:; img-src data: blob:; "
        "font-src data:; media-src data: blob:; connect-src data: blob:; worker-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    text = (files("nb_sae") / "assets" / "report" / name).read_text(encoding="utf-8").strip()
    return _inline(text) if name.endswith(".js") else text


def _inline(script: str) -> str:
    """A script in which nothing ends or comments out the element around it."""
    script = re.sub(r"</(script)", r"<\\/\1", script, flags=re.IGNORECASE)
    return script.replace("<!--", "<\\!--").replace("\r\n", "\n")


_HEAD = """<!DOCTYPE html>
<html lang="en" data-nbsae-theme="auto">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="nb_sae">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
<script>{theme}</script>
</head>
<body>
"""

_CODE_BUTTON = '<button type="button" id="toggle-code" aria-pressed="false">Fold code</button>'

_BAR = """<a class="skip" href="#top">Skip to the report</a>
<div class="page">
<aside>
<div class="tools">
<button type="button" id="toggle-theme" title="Light, dark, or as the system">Theme: auto</button>
{code_button}
</div>
{contents}
</aside>"""
