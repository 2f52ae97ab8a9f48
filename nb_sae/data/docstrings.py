"""English prose that every Python installation carries: its docstrings.

Owns how documents are found and cleaned, and the one rule that tells held-out documents from training documents. The
demo language model (`scripts/train_demo_lm.py`) and `demo_texts` both read from here, so that they cannot disagree.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nb_sae.errors import InputNotFoundError

HELD_OUT_ONE_IN = 20
"""One document in this many is kept out of the demo language model's training."""

MIN_WORDS = 12
"""A shorter document says too little to be a text of its own."""

_SKIPPED_FOLDERS = frozenset(
    re.findall(r"\w+", "test tests idlelib turtledemo lib2to3 pydoc_data __pycache__ __phello__")
) | {"site-packages", "dist-packages"}
# Words that nearly every English sentence needs and that code, tables and other languages lack.
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "the of a an and to in is that for it as with be are this by on or not if when which from can will was has",
    )
)
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_ROLE = re.compile(r":[a-zA-Z:]+:`[~!]?([^`]*)`")
_LIST_ITEM = re.compile(r"([-*+•]|\d+[.)])\s|[:@][a-z]+|\S+\s*(\([^)]*\))?\s*:(\s|$)")
_WRAPPED_CHARS = 50  # a line at least this long was broken by the margin, not by its author


@dataclass(frozen=True)
class Document:
    """One piece of documentation."""

    key: str
    """Where it stands, as Python names it: `json.dumps`."""
    text: str
    """Cleaned prose, one paragraph or list item per line."""


def is_held_out(text: str) -> bool:
    """Whether the demo language model was kept from seeing this document.

    Depends on the words alone (not on case, spacing or punctuation), so the same docstring falls on the same side in
    every Python version.
    """
    words = " ".join(_WORD.findall(text)).lower()
    digest = hashlib.sha256(words.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def clean_prose(text: str) -> str:
    """Keep what reads as English: no code, tables, doctests or rulers; wrapped lines joined.

    Returns an empty string when fewer than `MIN_WORDS` words are left.
    """
    text = _ROLE.sub(r"\1", inspect.cleandoc(text.replace("\r", "")))
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        kept.extend(line for line in _unwrap(paragraph) if _is_english(line))
    prose = "\n".join(kept)
    return prose if len(_WORD.findall(prose)) >= MIN_WORDS else ""


@lru_cache(maxsize=1)
def standard_library() -> tuple[Document, ...]:
    """The docstrings of the running Python's standard library, in the order of their files; no text twice.

    Takes a few seconds the first time. Files are parsed, never imported.

    Raises:
        InputNotFoundError: This Python has its standard library without source files.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    documents = unique(_folder_documents(folder))
    if not documents:
        raise InputNotFoundError(
            "This Python carries its standard library without .py files, so there are no docstrings to read. "
            "Use a Python installed with its sources, or your own texts with ns.texts([...])."
        )
    return tuple(documents)


def module_documents(source: str, module: str) -> Iterator[Document]:
    """The docstrings of one module's source; nothing if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for key, text in _docstrings(tree, module):
        prose = clean_prose(text)
        if prose:
            yield Document(key, prose)


def unique(documents: Iterable[Document]) -> list[Document]:
    """The documents whose words did not occur before."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        words = " ".join(_WORD.findall(document.text)).lower()
        if words not in seen:
            seen.add(words)
            kept.append(document)
    return kept


def read_source(path: Path) -> str:
    """A source file as text; bytes that are not UTF-8 become U+FFFD."""
    return path.read_bytes().decode("utf-8", errors="replace")


def _folder_documents(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _SKIPPED_FOLDERS.isdisjoint(parts[:-1]) and not parts[0].startswith("config-"):
            yield from module_documents(read_source(path), module_name(parts))


def module_name(parts: tuple[str, ...]) -> str:
    """`("json", "__init__")` as `json`."""
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _docstrings(node: ast.AST, key: str) -> Iterator[tuple[str, str]]:
    """Docstrings under `node` in the order of the source, with dotted names."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield key, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{key}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _docstrings(child, key)


def _unwrap(paragraph: str) -> list[str]:
    """Lines of a paragraph, with those joined that only the margin had broken."""
    lines: list[str] = []
    previous = ""
    for raw in paragraph.split("\n"):
        line = " ".join(raw.split())
        if not line:
            continue
        wrapped = len(previous) >= _WRAPPED_CHARS and not _LIST_ITEM.match(line) and not line.startswith(">>>")
        if lines and wrapped:
            lines[-1] += " " + line
        else:
            lines.append(line)
        previous = line
    return lines


def _is_english(line: str) -> bool:
    if line.startswith((">>>", "...", "..", "$", "%", "#!", "@", "<", "|", "+-")):
        return False
    letters = sum((char.isalpha() and char.isascii()) or char == " " for char in line)
    if letters < 0.8 * len(line):
        return False
    words = _WORD.findall(line)
    return len(words) >= 4 and any(word.lower() in _COMMON for word in words)
