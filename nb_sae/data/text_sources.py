"""Reading texts out of files, folders and tables, before they are numbered."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from nb_sae.errors import InputError, InputNotFoundError, closest

_TEXT_ENDINGS = (".txt", ".md")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig"}


@dataclass
class RawTexts:
    """Texts as they were found."""

    values: list[str]
    keys: list[str]
    name: str
    problems: dict[int, str] = field(default_factory=dict)
    """Number of a text that cannot be used, and why (completes the sentence "Text 3 …")."""
    replaced_characters: int = 0

    @property
    def described(self) -> str:
        """The source for an error message."""
        return f"The source {self.name!r}"


def read_source_texts(source: Any, *, field: str | None, keys: str | None) -> RawTexts:
    """Read whatever `texts` accepts. `field` and `keys` name a field or column.

    Raises:
        InputNotFoundError: The path does not exist.
        InputError: The source is of a kind that holds no texts, or something in it is not a string.
    """
    splits = list(source) if isinstance(source, Mapping) and hasattr(source, "column_names") else []
    if splits:
        raise InputError(
            f"This dataset has splits ({', '.join(map(repr, splits))}). Give one of them: dataset[{splits[0]!r}]."
        )
    if source is None or isinstance(source, bytes | Mapping | int | float):
        raise InputError(
            f"Texts cannot be read from {type(source).__name__}. Give a list of strings, a path to a folder or to a "
            ".txt, .md or .jsonl file, a column of a table, or a Hugging Face dataset."
        )
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source), field=field, keys=keys)
    columns = _column_names(source)
    if columns is not None:
        return _read_table(source, columns, field=field, keys=keys)
    if keys is not None or field is not None:
        raise InputError(
            f"{type(source).__name__} has no named fields, so keys={keys!r} and field={field!r} cannot be looked up. "
            "Give keys as a list with one key per text."
        )
    if not isinstance(source, Iterable):
        raise InputError(f"Texts cannot be read from {type(source).__name__}. Give a list of strings or a path.")
    values = _strings(source, "Text")
    name = getattr(source, "name", None)
    return RawTexts(values, [str(n) for n in range(len(values))], name if isinstance(name, str) and name else "texts")


def _read_path(path: Path, *, field: str | None, keys: str | None) -> RawTexts:
    if not path.exists():
        raise InputNotFoundError(
            f"There is no file or folder {str(path)!r}. A single string is read as a path: check its spelling, "
            "or put the string in a list if it is itself the text."
        )
    ending = path.suffix.lower()
    if path.is_file() and ending in (".jsonl", ".ndjson"):
        return _read_jsonl(path, field=field, keys=keys)
    if keys is not None or field is not None:
        raise InputError(f"keys={keys!r} and field={field!r} name fields, which {path.name!r} has not. Leave them out.")
    if path.is_dir():
        return _read_folder(path)
    if ending in _TEXT_ENDINGS:
        return _read_paragraphs(path)
    raise InputError(
        f"{path.name!r} ends in {ending!r}. Files of texts end in .txt, .md or .jsonl; read another kind yourself "
        "and give the list of strings."
    )


def _read_folder(folder: Path) -> RawTexts:
    files = sorted(
        (path for path in folder.rglob("*") if path.suffix.lower() in _TEXT_ENDINGS and path.is_file()),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not files:
        raise InputError(
            f"The folder {folder.name!r} holds no .txt or .md file, also not in its folders. Check the path."
        )
    raw = RawTexts([], [], folder.resolve().name or "texts")
    for number, path in enumerate(files):
        text, replaced, problem = _decode_file(path)
        raw.values.append(text)
        raw.keys.append(path.relative_to(folder).as_posix())
        raw.replaced_characters += replaced
        if problem:
            raw.problems[number] = problem
    return raw


def _read_paragraphs(path: Path) -> RawTexts:
    text, replaced, problem = _decode_file(path)
    if problem:
        raise InputError(f"{path.name!r} {problem}. Save it as UTF-8 text.")
    raw = RawTexts([], [], path.name, replaced_characters=replaced)
    paragraph: list[str] = []
    start = 1
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line.rstrip())
        elif paragraph:
            raw.values.append("\n".join(paragraph))
            raw.keys.append(f"{path.name}:{start}")
            paragraph = []
    return raw


def _read_jsonl(path: Path, *, field: str | None, keys: str | None) -> RawTexts:
    text, replaced, problem = _decode_file(path)
    if problem:
        raise InputError(f"{path.name!r} {problem}. Save it as UTF-8 text.")
    raw = RawTexts([], [], path.name, replaced_characters=replaced)
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"Line {number} of {path.name!r}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is not JSON ({error}). Every line must be one JSON value.") from error
        value = row
        key: Any = f"{path.name}:{number}"
        if isinstance(row, dict):
            value = _field_of(row, field or "text", place)
            key = _field_of(row, keys, place) if keys is not None else key
        elif keys is not None or field is not None:
            raise InputError(f"{place} is no object, so it has no field {field or keys!r}. Leave field and keys out.")
        if not isinstance(value, str):
            raise InputError(f"{place} holds {_shown(value)} where a string is expected.")
        raw.values.append(value)
        raw.keys.append(_key(key, place))
    return raw


def _field_of(row: dict[str, Any], name: str, place: str) -> Any:
    if name not in row:
        fields = ", ".join(map(repr, row)) or "none"
        raise InputError(
            f"{place} has no field {name!r}; its fields: {fields}. {closest(name, row)}Give field= or keys=."
        )
    return row[name]


def _column_names(source: Any) -> list[str] | None:
    """Names of the columns of a polars or pandas frame or a Hugging Face dataset; None for anything else."""
    names = getattr(source, "column_names", None)
    if isinstance(names, Sequence) and not isinstance(names, str):  # a Hugging Face dataset
        return [str(name) for name in names]
    if isinstance(source, pl.DataFrame) or (hasattr(source, "iloc") and hasattr(source, "columns")):
        return [str(name) for name in source.columns]
    return None


def _read_table(table: Any, columns: list[str], *, field: str | None, keys: str | None) -> RawTexts:
    name = field or ("text" if "text" in columns else _only_string_column(table, columns))
    for wanted in (name, *([keys] if keys is not None else [])):
        if wanted not in columns:
            raise InputError(
                f"The table has no column {wanted!r}. {closest(wanted, columns)}"
                f"Its columns: {', '.join(map(repr, columns))}."
            )
    values = _strings(table[name], f"Column {name!r}, row")
    found = [str(number) for number in range(len(values))]
    if keys is not None:
        found = [_key(key, f"Column {keys!r}, row {number}") for number, key in enumerate(table[keys])]
    return RawTexts(values, found, name)


def _only_string_column(table: Any, columns: list[str]) -> str:
    holding = [name for name in columns if isinstance(next(iter(table[name]), None), str)]
    if len(holding) == 1:
        return holding[0]
    shown = ", ".join(map(repr, holding or columns)) or "none"
    raise InputError(
        f"Which column holds the texts? Give field=…; {'columns of strings' if holding else 'columns'}: {shown}."
    )


def _strings(values: Iterable[Any], place: str) -> list[str]:
    found: list[str] = []
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{place} {number} is {_shown(value)}. Every text must be a string.")
        found.append(value)
    return found


def _key(key: Any, place: str) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise InputError(f"{place} has the key {_shown(key)}. Keys are strings or whole numbers.")
    return str(key)


def _shown(value: Any) -> str:
    if value is None:
        return "missing (None)"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:40] + '…'}, of type {type(value).__name__}"


def _decode_file(path: Path) -> tuple[str, int, str]:
    """A file's text with `\\n` line ends, how many bad bytes became U+FFFD, and why it cannot be used (or "")."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return "", 0, f"cannot be read ({error.strerror or error})"
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding != "utf-16" and b"\0" in content:
        return "", 0, "is no text file (it holds zero bytes)"
    try:
        text, replaced = content.decode(encoding), 0
    except UnicodeDecodeError:
        text = content.decode(encoding, errors="replace")
        replaced = text.count("\ufffd")
    return re.sub(r"\r\n?", "\n", text), replaced, ""
