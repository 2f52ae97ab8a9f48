"""What MkDocs asks of us while it builds: generated pages, saved views, formulas, links from names to the reference.

MkDocs calls the `on_…` functions; mkdocs.yml names this file. Every problem is a warning, and warnings end the build.
"""

from __future__ import annotations

import html
import importlib
import logging
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # MkDocs takes its own entry away again

from reference import command_line, module_of, page_of, pages, sections
from sizes import scripts_table, views_table

from nb_sae.reporting.mathml import mathml

ROOT = Path(__file__).resolve().parent.parent.parent
MADE = ROOT / "build" / "docs"
"""What scripts/docs/pages.py wrote."""

log = logging.getLogger("mkdocs.hooks.nb_sae")

_VIEW = re.compile(r"^<!-- view: (?P<name>[\w-]+) (?P<height>\d+) -->$", flags=re.MULTILINE)
_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', flags=re.DOTALL)
_UNTOUCHED = re.compile(r"(<pre\b.*?</pre>|<a\b.*?</a>|<h[1-6]\b.*?</h[1-6]>)", flags=re.DOTALL)
_PUBLIC = re.compile(r"<code>(?P<said>ns\.(?P<name>[A-Za-z_]\w*)[^<]*)</code>")


def on_config(config: Any) -> Any:
    """Fill in the parts of the navigation that are written down elsewhere: the public names, the repository."""
    for entry in config.nav:
        if "Project" in entry:
            # Not `repo_url`: the theme would ask the host of the repository for its number of stars.
            entry["Project"].append({"Repository": repository()})
        if "Reference" in entry:
            entry["Reference"] = ["reference/index.md", *(f"reference/{name}.md" for name in sections())]
            entry["Reference"].append("reference/command_line.md")
    return config


def repository() -> str:
    """Address of the repository, which pyproject.toml alone says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def on_files(files: Any, config: Any) -> Any:
    """Add the reference, the project's own pages, and what pages.py made."""
    structure = importlib.import_module("mkdocs.structure.files")

    def add(uri: str, content: str | bytes) -> None:
        files.append(structure.File.generated(config, uri, content=content))

    for name, text in pages().items():
        add(f"reference/{name}.md", text)
    add("reference/command_line.md", command_line())
    add("changelog.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    add("contributing.md", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    made = sorted(MADE.glob("*/*.html"))
    if not made:
        log.warning(f"{MADE.relative_to(ROOT)} is empty: the gallery and the tutorials are missing. Run: make docs")
    for path in made:
        add(path.relative_to(MADE).as_posix(), path.read_bytes())
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put saved views and measured sizes where a page asks for them."""
    del config, files
    markdown = markdown.replace("<this repository>", repository())
    if "<!-- sizes -->" in markdown:
        if not (table := scripts_table()):
            log.warning("The scripts of the dashboards are not built. Run: make widgets")
        markdown = markdown.replace("<!-- sizes -->", table)
    if "<!-- views -->" in markdown:
        markdown = markdown.replace("<!-- views -->", views_table(MADE / "gallery"))
    return _VIEW.sub(lambda found: _frame(found["name"], found["height"], page), markdown)


def _frame(name: str, height: str, page: Any) -> str:
    """A saved view inside the page."""
    if not (MADE / "gallery" / f"{name}.html").is_file():
        log.warning(f"{page.file.src_uri} shows the view {name!r}, which is not in {MADE.relative_to(ROOT)}/gallery.")
    where = f"gallery/{name}.html"
    return (
        f'<figure class="saved-view"><iframe src="{where}" title="Saved view: {name}" loading="lazy" height="{height}">'
        f'</iframe><figcaption><a href="{where}">Open this view alone</a></figcaption></figure>'
    )


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Formulas as MathML, and every `ns.name` as a link into the reference."""
    del config, files
    content = _FORMULA.sub(lambda found: _formula(found, page), content)
    pieces = _UNTOUCHED.split(content)
    for number in range(0, len(pieces), 2):
        pieces[number] = _PUBLIC.sub(lambda found: _linked(found, page), pieces[number])
    return "".join(pieces)


def _formula(found: re.Match[str], page: Any) -> str:
    latex = html.unescape(found["latex"])
    made = mathml(latex, block=found["tag"] == "div")
    if made is None:
        log.warning(f"{page.file.src_uri} has a formula that nb_sae.reporting.mathml does not understand: {latex}")
        return found.group()
    return made


def _linked(found: re.Match[str], page: Any) -> str:
    if module_of(found["name"]) is None:
        log.warning(f"{page.file.src_uri} names ns.{found['name']}, which is no public name of nb_sae.")
        return found.group()
    up = "../" * page.url.count("/")
    return f'<a href="{up}reference/{page_of(found["name"])}.html#nb_sae.{found["name"]}">{found.group()}</a>'
