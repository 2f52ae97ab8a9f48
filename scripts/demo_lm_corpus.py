"""What the demo language model reads: documentation in the running Python's installation."""

from __future__ import annotations

import ast
import re
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from nb_sae.data.docstrings import (
    Document,
    clean_prose,
    is_held_out,
    module_documents,
    module_name,
    read_source,
    standard_library,
    unique,
)

STANDARD_LIBRARY = "Python standard library"
_REPEATED_CHARS = 30  # a shorter line ("Returns the sum of both.") may recur in several documents
_SKIPPED = re.compile(r"(^|/)(tests?|testing|_?vendor(ed)?|licenses?)/|\.\./", re.IGNORECASE)
_NOT_PROSE = re.compile(
    r"licen[cs]e|copying|authors|contributors|notice|third.?party|requirements|SOURCES", re.IGNORECASE
)
_MAIL = re.compile(r"\S+@\S+\.\w+")


@dataclass
class Source:
    """One package and how much of it was read."""

    name: str
    version: str
    license: str
    documents: int = 0
    bytes: int = 0


@dataclass
class Corpus:
    """Documents to train on and documents kept out, with where they come from."""

    train: list[Document] = field(default_factory=list)
    held_out: list[Document] = field(default_factory=list)
    held_out_standard_library: list[Document] = field(default_factory=list)
    """The held-out documents of the standard library, whole: what `demo_texts(part="held-out")` gives."""
    sources: list[Source] = field(default_factory=list)

    @property
    def train_bytes(self) -> int:
        return sum(len(document.text.encode()) for document in self.train)

    def held_out_parts(self) -> dict[str, list[Document]]:
        return {"all": self.held_out, "standard library": self.held_out_standard_library}


def collect_corpus(pyproject: Path) -> Corpus:
    """Read every source; deterministic for one installation.

    A line of at least 30 characters is kept in the first document that has it, held-out documents first: no such line
    of a held-out document is trained on.
    """
    corpus = Corpus()
    found: list[tuple[Source, list[Document]]] = []
    standard = list(standard_library())
    found.append((Source(STANDARD_LIBRARY, _python_version(), "PSF-2.0"), [*standard, *_language_reference()]))
    found.extend((_source(name), list(_distribution_documents(name))) for name in dependency_closure(pyproject))
    pairs = [(source, document) for source, documents in found for document in documents]
    kept = {id(document) for document in unique(document for _, document in pairs)}
    pairs = [pair for pair in pairs if id(pair[1]) in kept]
    pairs.sort(key=lambda pair: not is_held_out(pair[1].text))  # stable: held-out first
    seen: set[str] = set()
    for source, document in pairs:
        held_out = is_held_out(document.text)
        text = _fresh_lines(document.text, seen)
        if not text:
            continue
        (corpus.held_out if held_out else corpus.train).append(Document(document.key, text))
        source.documents += 1
        source.bytes += len(text.encode())
    corpus.sources = [source for source, _ in found if source.documents]
    corpus.held_out_standard_library = [document for document in standard if is_held_out(document.text)]
    return corpus


def dependency_closure(pyproject: Path) -> list[str]:
    """Installed distributions that nb_sae needs, directly or through another one, sorted; the `dev` extra included."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    seen: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip())[0]).lower()
        if name in seen or name == "nb-sae" or "extra ==" in requirement or name.startswith(("nvidia-", "cuda-")):
            continue
        try:
            wanted.extend(metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            continue
        seen.add(name)
    return sorted(seen)


def _distribution_documents(name: str) -> Iterator[Document]:
    distribution = metadata.distribution(name)
    yield from _text_documents(f"{name} README", str(distribution.metadata.json.get("description", "")))
    for file in sorted(distribution.files or [], key=str):
        place, path = str(file), Path(str(file.locate()))
        if _SKIPPED.search(place) or not path.is_file():
            continue
        if file.suffix == ".py":
            source = read_source(path)
            module = module_name(Path(place).with_suffix("").parts)
            yield from module_documents(source, module)
            yield from _added_docs(source, module)
        elif file.suffix in {".rst", ".md", ".txt"} and not _NOT_PROSE.search(place):
            yield from _text_documents(place, read_source(path))


def _text_documents(key: str, text: str) -> Iterator[Document]:
    prose = clean_prose(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    if prose:
        yield Document(key, prose)


def _added_docs(source: str, module: str) -> Iterator[Document]:
    """Strings handed to `add_docstr(…)` and `add_newdoc(…)`, where torch and numpy document compiled functions."""
    if not re.search(r"add_(new)?doc", source):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if re.search(r"add_(new)?doc", called):
            for constant in ast.walk(node):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    yield from _text_documents(f"{module}:{constant.lineno}", constant.value)


def _language_reference() -> Iterator[Document]:
    """The chapters of the language reference that `help("for")` shows."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from _text_documents(f"help({name!r})", topics[name])


def _fresh_lines(text: str, seen: set[str]) -> str:
    kept = []
    for line in text.split("\n"):
        line = _MAIL.sub("", line)
        if len(line) < _REPEATED_CHARS or line.lower() not in seen:
            kept.append(line)
            seen.add(line.lower())
    return clean_prose("\n\n".join(kept))


def _source(name: str) -> Source:
    about = metadata.metadata(name).json
    stated = str(about.get("license_expression") or about.get("license") or "")
    if stated in ("", "UNKNOWN") or len(stated) > 60 or "\n" in stated:
        classifiers = about.get("classifier", [])
        stated = ", ".join(c.rsplit(" :: ", 1)[-1] for c in classifiers if c.startswith("License ::")) or "see package"
    return Source(name, metadata.version(name), stated)


def _python_version() -> str:
    import platform

    return platform.python_version()
