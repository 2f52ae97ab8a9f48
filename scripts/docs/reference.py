"""Pages of the API reference: every public name once, on the page of the part of the package that it lives in."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path

import nb_sae
from nb_sae.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent

# Page, title, what it is about, and the modules of nb_sae whose names stand there.
_SECTIONS = (
    ("models", "Models and hooks", "Load a model, name a place in it, read and change what passes.",
     ("models", "hooks", "types")),
    ("inputs", "Inputs", "Images, texts, labels and words.", ("data",)),
    ("store", "Activations", "Rows of a model, on disk or passing by.", ("store",)),
    ("training", "Training and dictionaries", "Configure, train, load, compare.", ("sae",)),
    ("analysis", "Analysis", "Tables of what latents do.", ("analysis",)),
    ("concepts", "Concepts and bias", "Names, search, steering, bias reports.", ("concepts",)),
    ("flow", "Across layers", "Feature flow, and what it does to data.", ("flow",)),
    ("attribution", "Attribution", "What an output owes to latents, heads and sources.", ("attribution",)),
    ("dashboards", "Dashboards", "What is shown in a notebook.", ("widgets",)),
    ("figures", "Figures", "Plotly figures of the tables.", ("plots",)),
    ("sharing", "Sharing and repair", "Reports, and what is wrong with an installation.",
     ("reporting", "diagnosis", "facts")),
    ("errors", "Errors", "Every error that nb_sae raises on purpose.", ("errors",)),
)  # fmt: skip


def module_of(name: str) -> str | None:
    """The module that a public name lives in, below `nb_sae`; None if there is no such name."""
    home = nb_sae._HOME.get(name)
    return home.split(":")[0] if home else None


def page_of(name: str) -> str:
    """The page of the reference on which a public name stands.

    Raises:
        KeyError: No page is about the module it lives in; add the module to a section.
    """
    module = module_of(name)
    part = module.split(".")[1] if module else ""
    for page, _, _, parts in _SECTIONS:
        if part in parts:
            return page
    raise KeyError(f"No page of the reference is about nb_sae.{part}, where {name!r} lives. Add it to _SECTIONS.")


def sections() -> dict[str, list[str]]:
    """Public names of every page, in the order in which the package lists them."""
    found: dict[str, list[str]] = {page: [] for page, *_ in _SECTIONS}
    for name in nb_sae._HOME:
        found[page_of(name)].append(name)
    return found


def pages() -> dict[str, str]:
    """Markdown of every page, for mkdocstrings to fill."""
    made = {}
    lines = [
        "# Reference",
        "",
        "All public names, as `import nb_sae as ns` gives them. Everything is made from the docstrings.",
        "",
    ]
    for page, title, about, _ in _SECTIONS:
        names = sections()[page]
        listed = ", ".join(f"[`{name}`][nb_sae.{name}]" for name in names)
        lines += [f"**[{title}]({page}.md)**", "", f":   {about} {listed}", ""]
        blocks = [f"# {title}", "", about, ""]
        for name in names:
            blocks += [f"::: nb_sae.{name}", *_options(name), ""]
        made[page] = "\n".join(blocks)
    lines += ["**[Command line](command_line.md)**", "", ":   `nb-sae` and what it can do.", ""]
    made["index"] = "\n".join(lines)
    return made


def _options(name: str) -> list[str]:
    """A module is shown with its public members."""
    if ":" in nb_sae._HOME[name]:
        return []
    return ["    options:", "      members:", *(f"        - {one}" for one in _members(nb_sae._HOME[name]))]


def _members(module: str) -> list[str]:
    """What a module lists in `__all__`, else the public classes and functions written in it. Nothing is imported."""
    path = ROOT / module.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value), key=str.lower)
    written = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [name for name in written if not name.startswith("_")]


def command_line() -> str:
    """The help of `nb-sae` and of each of its commands, as a terminal shows it."""
    whole = _help()
    commands = re.search(r"(\w+(?: \| \w+)+) \.\.\.", whole)
    text = ["# Command line", "", "```text", whole, "```", ""]
    for name in commands[1].split(" | ") if commands else ():
        text += [f"## nb-sae {name} {{ #{name} }}", "", "```text", _help(name), "```", ""]
    return "\n".join(text)


def _help(*command: str) -> str:
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        main([*command, "--help"])
    return said.getvalue().strip()
