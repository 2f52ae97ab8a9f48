"""Texts as numbered inputs: strings, files, folders, table columns, and the docstrings of the running Python.

Knows nothing of tokenizers: the model cuts a text into contexts when activations are collected.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex, cast, overload

import numpy as np

from nb_sae.data.docstrings import is_held_out, standard_library
from nb_sae.data.text_sources import RawTexts, read_source_texts
from nb_sae.errors import ConfigError, InputError
from nb_sae.types import Modality

DEFAULT_CONTEXT_TOKENS = 128
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Texts(Sequence[str]):
    """Numbered texts with keys; satisfies `types.Inputs`. Picklable, read-only.

    `texts[3]` is a string, `texts[:100]` and `texts[[5, 1]]` are `Texts` with a numbering of their own and the same
    keys. A text that cannot be used (blank, an undecodable file) keeps its number: asking for it raises `InputError`,
    and a store lists it as skipped. `texts.problems` names them.
    """

    modality: Modality = "text"

    def __init__(
        self,
        values: Sequence[str],
        keys: Sequence[str],
        *,
        name: str,
        context_tokens: int = DEFAULT_CONTEXT_TOKENS,
        problems: dict[int, str] | None = None,
        replaced_characters: int = 0,
    ) -> None:
        self.name = name
        self.context_tokens = context_tokens
        """Tokens of one context, BOS included where the model has one."""
        self.problems = dict(problems or {})
        """Number of a text that cannot be used, and why."""
        self.replaced_characters = replaced_characters
        """Lone surrogates and undecodable bytes that became U+FFFD, in texts and keys together."""
        self._values = tuple(values)
        self._keys = tuple(keys)

    @property
    def keys(self) -> tuple[str, ...]:
        """One key per text, no two equal."""
        return self._keys

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Texts: ...

    def __getitem__(self, index: SupportsIndex | slice | Sequence[int] | np.ndarray) -> str | Texts:
        if isinstance(index, slice):
            return self._select(range(len(self))[index])
        if isinstance(index, np.ndarray) and index.ndim:
            return self._select(np.flatnonzero(index) if index.dtype == bool else index)
        if isinstance(index, list | tuple | range):
            return self._select(index)
        number = self._number(cast(SupportsIndex, index))
        if number in self.problems:
            raise InputError(
                f"Text {number} of {self.name!r} (key {self._keys[number]!r}) {self.problems[number]}. "
                "Leave it out, or let ActivationStore.collect skip and list it."
            )
        return self._values[number]

    def __repr__(self) -> str:
        unusable = f", {len(self.problems)} unusable" if self.problems else ""
        return f"Texts({self.name!r}, {len(self):,} texts, context_tokens={self.context_tokens}{unusable})"

    def _select(self, numbers: Iterable[int]) -> Texts:
        chosen = [self._number(number) for number in numbers]
        return Texts(
            [self._values[number] for number in chosen],
            _distinct([self._keys[number] for number in chosen]),
            name=self.name,
            context_tokens=self.context_tokens,
            problems={new: self.problems[old] for new, old in enumerate(chosen) if old in self.problems},
        )

    def _number(self, index: SupportsIndex) -> int:
        number = index.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(f"There is no text {number}: {self.name!r} has {len(self)}, numbered from 0.")
        return number % len(self)


def texts(
    source: Any,
    *,
    context_tokens: int | None = None,
    name: str | None = None,
    keys: Sequence[str] | str | None = None,
    field: str | None = None,
) -> Texts:
    """Texts from wherever they are.

    Args:
        source: One of
            - a list (or other iterable) of strings; keys "0", "1", …;
            - a folder: every `.txt` and `.md` file below it is one text; keys are the paths relative to the folder;
            - a `.txt` or `.md` file: one text per paragraph (paragraphs are divided by blank lines); keys are the file
              name and the line where the paragraph starts, "notes.txt:41";
            - a `.jsonl` file: one text per line, a JSON string or an object with `field`; keys "notes.jsonl:41";
            - a polars or pandas column or frame, a Hugging Face dataset or a column of one.
        context_tokens: Length of a context in tokens; 128 if not given. Longer texts fill several contexts.
        name: What to call this collection; the file's name or "texts" if not given.
        keys: Ids of your own, one per text; or the name of the field or column that holds them. A key that occurs again
            gets a number: "a", "a (2)".
        field: The field or column to read; "text" if there is one, else the only column of strings.

    Raises:
        InputNotFoundError: The path does not exist.
        InputError: Nothing to read, something that is not a string (named by position), or as many keys as texts are
            needed.
        ConfigError: `context_tokens` is not a whole number of at least 1.
    """
    if isinstance(source, Texts) and field is None and not isinstance(keys, str):
        raw = RawTexts(list(source._values), list(source.keys), source.name, dict(source.problems))
        raw.replaced_characters = source.replaced_characters
        context_tokens = source.context_tokens if context_tokens is None else context_tokens
    else:
        raw = read_source_texts(source, field=field, keys=keys if isinstance(keys, str) else None)
    if not raw.values:
        raise InputError(
            f"{raw.described} holds no text. Give at least one string, or a folder with .txt or .md files."
        )
    if keys is not None and not isinstance(keys, str):
        raw.keys = _own_keys(keys, len(raw.values))
    values, replaced_in_texts = _displayable(raw.values)
    shown_keys, replaced_in_keys = _displayable(raw.keys)
    for number, value in enumerate(values):
        if number not in raw.problems and not value.strip():
            raw.problems[number] = "is blank"
    if len(raw.problems) == len(values):
        raise InputError(f"{raw.described} holds no usable text: the first {raw.problems[0]}. Give texts with words.")
    return Texts(
        values,
        _distinct(shown_keys),
        name=name or _displayable([raw.name])[0][0],
        context_tokens=_checked_context_tokens(context_tokens),
        problems=raw.problems,
        replaced_characters=raw.replaced_characters + replaced_in_texts + replaced_in_keys,
    )


def demo_texts(
    n: int = 2000,
    seed: int = 0,
    *,
    part: Literal["all", "train", "held-out"] = "all",
    context_tokens: int | None = None,
) -> Texts:
    """Real English without a download: docstrings of the running Python's standard library, cleaned to prose.

    Keys are Python's own names, such as "json.dumps". The docstrings of another Python version differ a little.

    Args:
        n: How many texts; a larger `n` with the same seed adds to the smaller.
        seed: Which texts, and in which order.
        part: `"held-out"` are those that the demo language model was not trained on (about one in twenty), `"train"`
            the others.
        context_tokens: As in `texts`.

    Raises:
        ConfigError: `n` is below 1 or more than there are (the message says how many), or `part` is unknown.
        InputNotFoundError: This Python has its standard library without source files.
    """
    if part not in ("all", "train", "held-out"):
        raise ConfigError(f"part={part!r} is unknown. Give 'all', 'train' or 'held-out'.")
    documents = [d for d in standard_library() if part == "all" or is_held_out(d.text) == (part == "held-out")]
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(documents):
        of_part = "" if part == "all" else f" in part {part!r}"
        raise ConfigError(
            f"n={n!r}, but the standard library of this Python has {len(documents):,} docstrings{of_part} long enough "
            f"to read. Give n from 1 to {len(documents)}."
        )
    documents.sort(key=lambda d: hashlib.sha256(f"{seed} {d.key} {d.text}".encode()).digest())
    chosen = documents[:n]
    return texts(
        [document.text for document in chosen],
        keys=[document.key for document in chosen],
        name="standard-library docstrings",
        context_tokens=context_tokens,
    )


def _checked_context_tokens(context_tokens: int | None) -> int:
    if context_tokens is None:
        return DEFAULT_CONTEXT_TOKENS
    if isinstance(context_tokens, bool) or not isinstance(context_tokens, int | np.integer) or context_tokens < 1:
        raise ConfigError(f"context_tokens={context_tokens!r} is not a whole number of at least 1. Try 128.")
    return int(context_tokens)


def _own_keys(keys: Sequence[str], count: int) -> list[str]:
    given = list(keys)
    if len(given) != count:
        raise InputError(f"There are {len(given)} keys for {count} texts. Give one key per text, or leave keys out.")
    for number, key in enumerate(given):
        if isinstance(key, bool) or not isinstance(key, str | int | np.integer):
            raise InputError(
                f"Key {number} is {key!r}, of type {type(key).__name__}. Keys are strings or whole numbers."
            )
    return [str(key) for key in given]


def _distinct(keys: Sequence[str]) -> list[str]:
    """Keys in their order, the second "a" as "a (2)", passing over names that are taken."""
    taken, seen, result, repeats = set(keys), set[str](), list[str](), dict[str, int]()
    for key in keys:
        unique = key
        while unique in seen or (unique != key and unique in taken):
            repeats[key] = repeats.get(key, 1) + 1
            unique = f"{key} ({repeats[key]})"
        seen.add(unique)
        result.append(unique)
    return result


def _displayable(strings: Sequence[str]) -> tuple[list[str], int]:
    """Lone surrogates as U+FFFD, and how many there were: no file, browser or tokenizer can hold them."""
    shown, replaced = [], 0
    for string in strings:
        displayable, count = _LONE_SURROGATE.subn("\ufffd", string)
        shown.append(displayable)
        replaced += count
    return shown, replaced
