"""Text that came out of a notebook, made safe to show to somebody else: no local paths, no control characters."""

from __future__ import annotations

import getpass
import html
import json
import math
import re
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_ANSI = re.compile(r"\x1b\[([0-9;:]*)m")
_OTHER_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-LN-Za-ln-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][AB012]|[=>])")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_BIDI = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
_PATH_CHARACTERS = r"[^\s\"'`<>|:;,(){}\[\]\\/\x00-\x1f…]"
_UNIX_ROOTS = (
    "home|Users|root|tmp|var|private|opt|mnt|media|data|datasets?|work|workspaces?|scratch|srv|content|kaggle|Volumes|"
    "usr|etc|gpfs|nfs|lustre|net|projects?|storage|proc|dev/shm|run|app|builds?|repo|code|src|vol\\w*|s3|efs|fsx|export|"
    "users?|cluster|labs?|groups?|shared?|hpc|ceph|beegfs|raid|nas|ssd|disk"
)
# Roots are numbered on clusters (/data2), and homes lie below others (/lab9/home/anna): few and short parts, so that
# looking for them stays cheap in a text that is one long path.
_ROOT = rf"(?:{_UNIX_ROOTS}|{_PATH_CHARACTERS}{{1,40}}(?:/{_PATH_CHARACTERS}{{1,40}}){{0,3}}?/(?:home|[Uu]sers))\d*"
_UNIX_PATH = re.compile(rf"(?<![\w.~…/-])(?:(?:file://)?/{_ROOT}|~(?:[a-z_][\w-]*)?)(?:/{_PATH_CHARACTERS}+)+/?")
# Of three parts and more: with two, it may be a formula's line break.
_SHARE_PATH = re.compile(rf"(?<![\w\\])(?:\\{{4}}|\\{{2}})[\w.$-]+(?:\\{{1,2}}{_PATH_CHARACTERS}+){{2,}}")
_WINDOWS_PATH = re.compile(
    rf"(?<!\w)[A-Za-z]:(?:\\{{1,2}}|/)(?:{_PATH_CHARACTERS}+(?:\\{{1,2}}|/))+{_PATH_CHARACTERS}*"
)
# The look-behind keeps this linear: a path is tried where a word begins, not at each of its letters.
_CELL_PATH = re.compile(r"(?:(?<![^\s\"'():])[^\s\"'():]*[\\/])?ipykernel_\d+[\\/]\d+\.py")
_DATA = re.compile(r"(data:[\w.+-]+/[\w.+-]+;base64,[A-Za-z0-9+/=]+)")
_COMMON_NAMES = frozenset(
    {"localhost", "root", "user", "admin", "runner", "ubuntu", "debian", "jovyan", "main", "test"}
)


def printable(text: str) -> str:
    """The text with what could break or reorder a page made visible.

    Lone surrogates become U+FFFD, control characters are dropped, and the bidirectional controls that could
    turn the text around them are written out as `⟨U+202E⟩`.
    """
    text = _CONTROL.sub("", _SURROGATES.sub("\ufffd", text))
    return _BIDI.sub(lambda mark: f"⟨U+{ord(mark.group()):04X}⟩", text)


class Scrubber:
    """Takes paths and names of this machine out of text.

    Args:
        folder: Where the notebook ran; paths below it become relative.
    """

    def __init__(self, folder: Path) -> None:
        self._known = _known_places(folder, deep=True)
        self._shallow = _known_places(folder, deep=False)
        names = {socket.gethostname(), socket.gethostname().split(".")[0]}
        try:
            names.add(getpass.getuser() + "@")
        except (OSError, KeyError, ImportError):  # a container may have no name for the user
            names.discard("")
        long = [re.escape(name) for name in names if len(name) > 4 and name.lower() not in _COMMON_NAMES]
        self._names = re.compile(rf"(?<!\w)(?:{'|'.join(long)})(?!\w)") if long else None

    def known(self, text: str) -> str:
        """Replace only the places that are known to be local (home, working folder, this Python).

        For data, where `/usr` is a token and no path: a place with a single part is left alone.
        """
        return self._replace(text, self._known)

    @staticmethod
    def _replace(text: str, places: list[tuple[re.Pattern[str], str]]) -> str:
        if "/" in text or "\\" in text:
            for pattern, shown in places:
                text = pattern.sub(lambda _, shown=shown: shown, text)
        return text

    def __call__(self, text: str) -> str:
        """Replace every absolute path by `…/last part`, and the names of machine and user.

        What looks like a path inside the base64 of a `data:` address is none.
        """
        parts = _DATA.split(text)
        parts[::2] = [self._scrubbed(part) for part in parts[::2]]
        return "".join(parts)

    def _scrubbed(self, text: str) -> str:
        parts = _ANSI.split(text)
        parts[::2] = [self._scrub(part) for part in parts[::2]]
        return "".join(part if index % 2 == 0 else f"\x1b[{part}m" for index, part in enumerate(parts))

    def _scrub(self, text: str) -> str:
        text = self._replace(self.known(_CELL_PATH.sub("cell", text)), self._shallow)
        if "/" in text:
            text = _UNIX_PATH.sub(lambda found: "…/" + found.group().rstrip("/").rsplit("/", 1)[-1], text)
        if ":" in text and ("\\" in text or "/" in text):
            text = _WINDOWS_PATH.sub(lambda found: "…/" + re.split(r"[\\/]+", found.group().rstrip("\\/"))[-1], text)
        if "\\\\" in text:
            text = _SHARE_PATH.sub(lambda found: "…/" + found.group().rsplit("\\", 1)[-1], text)
        return self._names.sub("…", text) if self._names else text


def _known_places(folder: Path, *, deep: bool) -> list[tuple[re.Pattern[str], str]]:
    """Patterns of local folders and what is shown instead, longest folder first.

    Args:
        folder: Where the notebook ran.
        deep: Folders of two parts and more, or those of a single one.
    """
    places: dict[str, str] = dict.fromkeys((sys.base_prefix, sys.prefix), "…")
    for name, path in sysconfig.get_paths().items():
        if name in {"purelib", "platlib", "stdlib", "platstdlib"}:
            places[path] = "…/" + Path(path).name
    places[str(Path.home())] = "~"
    for base in (Path.cwd(), folder):
        places.update({str(base.absolute()): "", str(base.resolve()): ""})
    patterns = []
    for place, shown in sorted(places.items(), key=lambda item: -len(item[0])):
        parts = re.split(r"[\\/]", place.strip("\\/"))
        if not parts[0] or (len(parts) > 1) != deep:
            continue
        # One part alone may be the end of something else: https://example.org/app.
        start = "(?:file://)?" if deep else r"(?<![\w.~…/-])(?:file://)?"
        separator = r"[\\/]{1,2}"
        escaped = start + ("" if place[0] not in "\\/" else separator) + separator.join(map(re.escape, parts))
        if shown:
            patterns.append((re.compile(rf"{escaped}(?![\w.-])"), shown))
        else:
            patterns.append((re.compile(rf"{escaped}{separator}(?=[\w.])"), ""))
            patterns.append((re.compile(rf"{escaped}(?![\w.-])"), "."))
    return patterns


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The same JSON value with every string in it, keys included, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): map_strings(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(entry, change) for entry in value]
    return value


def script_json(value: Any) -> str:
    """JSON that may stand inside a `<script>` element and that every browser parses.

    `<` is written as an escape, lone surrogates become U+FFFD, NaN and infinities become null.
    """
    text = json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_finite(str(key)): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def terminal_lines(text: str) -> str:
    """Text as a terminal would leave it: a carriage return overwrites its line, other escapes are dropped."""
    text = _OTHER_ESCAPES.sub("", text.replace("\r\n", "\n"))
    if "\r" not in text and "\b" not in text:
        return text
    lines = []
    for line in text.split("\n"):
        kept = ""
        for piece in line.split("\r"):
            kept = piece if len(piece) >= len(kept) or "\x1b" in kept else piece + kept[len(piece) :]
        lines.append(re.sub("[^\x08]\x08", "", kept))
    return "\n".join(lines)


_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


def ansi_html(text: str) -> str:
    """Escaped HTML of terminal text; colours become classes that follow the theme."""
    parts = _ANSI.split(terminal_lines(text))
    out: list[str] = []
    style: dict[str, str] = {}
    for index, part in enumerate(parts):
        if index % 2:
            _apply_codes(style, part)
        elif part:
            escaped = html.escape(printable(part), quote=False)
            classes = " ".join(style.values())
            out.append(f'<span class="{classes}">{escaped}</span>' if classes else escaped)
    return "".join(out)


def _apply_codes(style: dict[str, str], codes: str) -> None:
    """Update the running style with one `ESC[…m` sequence."""
    numbers = [int(code) if code else 0 for code in re.split("[;:]", codes)] if codes else [0]
    while numbers:
        code = numbers.pop(0)
        if code == 0:
            style.clear()
        elif code == 1:
            style["weight"] = "ansi-bold"
        elif code in (22, 39, 24):
            style.pop({22: "weight", 39: "colour", 24: "line"}[code], None)
        elif code == 4:
            style["line"] = "ansi-underline"
        elif 30 <= code <= 37 or 90 <= code <= 97:
            style["colour"] = f"ansi-{_COLOURS[code % 10]}"
        elif code in (38, 48):
            colour = _extended_colour(numbers)
            if code == 38 and colour:
                style["colour"] = f"ansi-{colour}"


def _extended_colour(numbers: list[int]) -> str | None:
    """Take a 256-colour or true-colour code off the list and name the nearest of the eight colours."""
    kind = numbers.pop(0) if numbers else 0
    if kind == 5 and numbers:
        number = numbers.pop(0)
        if number < 16:
            return _COLOURS[number % 8]
        if number >= 232:
            return None
        rgb = [(number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6]
    elif kind == 2 and len(numbers) >= 3:
        rgb = [numbers.pop(0) for _ in range(3)]
    else:
        return None
    top = max(rgb)
    if top == 0 or min(rgb) == top:
        return None
    return _COLOURS[sum(bit for bit, part in zip((1, 2, 4), rgb, strict=True) if part * 2 > top)]


def joined(value: str | Iterable[str]) -> str:
    """nbformat's multi-line string: a string, or a list of lines."""
    return value if isinstance(value, str) else "".join(str(line) for line in value)


def words(text: str) -> frozenset[str]:
    """The words of a space-separated list."""
    return frozenset(text.split())
