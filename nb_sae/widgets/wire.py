"""From polars frames to one block of little-endian bytes with a JSON header, as the browser reads it.

A column becomes `{name, dtype, offset, length}`: `length` values of `dtype` from byte `offset`. What has no fixed
size adds `ends`, the offset of one uint32 per row that says where the row's values stop. Strings, and lists of
strings, are UTF-8 JSON (`dtype` "json", `length` in bytes). float64 becomes float32; 64-bit integers become 32-bit
ones and are refused where they do not fit. `widgets_js/src/core/wire.ts` is the reader; `tests/fixtures/wire.json`
holds both to one contract.
"""

from __future__ import annotations

import json
import operator
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from nb_sae.errors import WidgetError

WIRE_VERSION = 1
_ALIGN = 8  # a typed array in the browser needs its offset to be a multiple of the size of a value

_FIXED: dict[type[pl.DataType], tuple[str, str]] = {
    pl.Float32: ("f32", "<f4"),
    pl.Float64: ("f32", "<f4"),
    pl.Int8: ("i8", "<i1"),
    pl.Int16: ("i32", "<i4"),
    pl.Int32: ("i32", "<i4"),
    pl.Int64: ("i32", "<i4"),
    pl.UInt8: ("u8", "<u1"),
    pl.UInt16: ("u16", "<u2"),
    pl.UInt32: ("u32", "<u4"),
    pl.UInt64: ("u32", "<u4"),
    pl.Boolean: ("u8", "<u1"),
}


def pack(tables: Mapping[str, pl.DataFrame]) -> tuple[dict[str, Any], bytes]:
    """Put frames into one block.

    Returns:
        The header, `{"version", "tables": {name: {"rows", "columns": […]}}}`, and the bytes it speaks of.

    Raises:
        WidgetError: A column has a type the browser side does not read, a missing number, or an integer beyond 32 bits.
    """
    block = _Block()
    header: dict[str, Any] = {"version": WIRE_VERSION, "tables": {}}
    for name, frame in tables.items():
        columns = [_column(block, f"{name}.{series.name}", series) for series in frame.get_columns()]
        header["tables"][name] = {"rows": frame.height, "columns": columns}
    return header, block.bytes()


def check_header(header: Any) -> None:
    """Refuse what is no header of tables or of pictures; an empty one speaks of nothing.

    Raises:
        WidgetError: it is of another version, or a table or a column in it lacks a part.
    """
    try:
        if not header:
            return
        if "ends" in header and "tables" not in header:
            ends = [operator.index(end) for end in header["ends"]]
            if ends != sorted(ends) or (ends and ends[0] < 0):
                raise WidgetError(f"The ends of the pictures do not ascend: {ends[:6]} …. Use wire.pack_thumbs.")
            return
        if header["version"] != WIRE_VERSION:
            raise WidgetError(f"The header has version {header['version']!r}, expected {WIRE_VERSION}. Use wire.pack.")
        _reach(header)
    except (KeyError, TypeError, AttributeError) as error:
        raise WidgetError(f"This is no header of tables: {_short(error)}. Use wire.pack(tables).") from None


def check_block(header: Mapping[str, Any], block: bytes) -> None:
    """Refuse bytes that are not as long as their header says.

    Raises:
        WidgetError: they are shorter or longer.
    """
    if not header:
        return
    wanted = _reach(header) if "tables" in header else int((header["ends"] or [0])[-1])
    if len(block) != wanted:
        raise WidgetError(
            f"{len(block):,} bytes were given, the header speaks of {wanted:,}: they do not belong together. Set both "
            "from one wire.pack(tables), the header first."
        )


def _reach(header: Mapping[str, Any]) -> int:
    """Bytes that the tables of a header take, the padding of the last column included."""
    sizes = {code: np.dtype(target).itemsize for code, target in _FIXED.values()} | {"json": 1}
    ends = [0]
    for table in header["tables"].values():
        for column in table["columns"]:
            ends.append(column["offset"] + column["length"] * sizes[column["dtype"]])
            if "ends" in column:
                ends.append(column["ends"] + table["rows"] * 4)
    return -(-max(ends) // _ALIGN) * _ALIGN


def _short(value: object) -> str:
    said = str(value)
    return said if len(said) <= 80 else f"{said[:80]}…"


def quantise(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values between `low` and `high` as uint8. What lies above `low` is never 0, so that active stays visible."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    scaled = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0.0, 1.0)
    return np.where(scaled > 0, np.maximum(np.rint(scaled * 255), 1), 0).astype(np.uint8)


def pack_thumbs(thumbs: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
    """Encoded pictures one after the other, and where each ends. A picture that was left out has no bytes."""
    ends = np.cumsum([len(thumb) for thumb in thumbs], dtype=np.int64) if thumbs else np.zeros(0, np.int64)
    return {"ends": ends.tolist()}, b"".join(thumbs)


def replace_thumbs(
    header: Mapping[str, Any], block: bytes, change: Callable[[bytes], bytes]
) -> tuple[dict[str, Any], bytes]:
    """The same pictures after `change`, for a report that leaves out (`b""`) or blurs them."""
    thumbs, start = [], 0
    for end in header.get("ends", []):
        thumb = bytes(block[start:end])
        thumbs.append(change(thumb) if thumb else b"")
        start = end
    return pack_thumbs(thumbs)


def clean_text(text: object) -> str:
    """Text that can be stored as UTF-8: lone surrogates become U+FFFD."""
    return str(text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def sig3(value: float) -> str:
    """Three significant digits: 0, 4.10, 0.0321, 12,300. The same as `sig3` of the browser side."""
    size = abs(value)
    if value == 0 or not np.isfinite(value):
        return "0" if value == 0 else "–"
    if size >= 1e6 or size < 1e-4:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{float(f'{value:.3g}'):,.0f}" if size >= 999.5 else f"{value:#.3g}".rstrip(".")


_SHOWN = {"\n": "↵", "\r": "␍", "\t": "⇥"}


def visible_text(text: object) -> str:
    """Text as a reader should see it: line ends, tabs, control and direction characters become visible signs."""
    return "".join(_visible(char) for char in clean_text(text))


def _visible(char: str) -> str:
    if char in _SHOWN:
        return _SHOWN[char]
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    # Joiners hold emoji and some scripts together; every other format character is invisible or turns the line.
    if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") and char not in "\u200c\u200d":
        return f"⟨U+{ord(char):04X}⟩"
    return char


class _Block:
    """Bytes that grow, every part aligned."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> int:
        """Append, and say at which byte it starts."""
        offset = self._size
        padding = -len(part) % _ALIGN
        self._parts.append(part + b"\0" * padding)
        self._size += len(part) + padding
        return offset

    def bytes(self) -> bytes:
        return b"".join(self._parts)


def _column(block: _Block, label: str, series: pl.Series) -> dict[str, Any]:
    name, dtype = series.name, series.dtype
    if isinstance(dtype, pl.String | pl.Enum | pl.Categorical) or dtype == pl.List(pl.String):
        part = json.dumps(series.to_list(), ensure_ascii=False, separators=(",", ":")).encode()
        return {"name": name, "dtype": "json", "offset": block.add(part), "length": len(part)}
    if isinstance(dtype, pl.List):
        lengths = series.list.len().fill_null(0).to_numpy()
        values = series.filter(series.list.len() > 0).explode()
        code, part = _fixed(label, values)
        entry = {"name": name, "dtype": code, "offset": block.add(part), "length": len(values)}
        ends = np.cumsum(lengths, dtype=np.int64)
        return {**entry, "ends": block.add(_checked(label, ends, "<u4").tobytes())}
    code, part = _fixed(label, series)
    return {"name": name, "dtype": code, "offset": block.add(part), "length": len(series)}


def _fixed(label: str, series: pl.Series) -> tuple[str, bytes]:
    found = _FIXED.get(series.dtype.base_type())
    if found is None:
        raise WidgetError(
            f"Column {label} has type {series.dtype}, which a dashboard cannot read. "
            "Cast it to a number, a string or a list of numbers."
        )
    code, target = found
    if series.dtype.is_float():
        series = series.fill_null(float("nan"))
    elif series.null_count():
        raise WidgetError(f"Column {label} misses {series.null_count()} numbers. Fill them before it is shown.")
    return code, _checked(label, series.to_numpy(), target).tobytes()


def _checked(label: str, values: np.ndarray, target: str) -> np.ndarray:
    dtype = np.dtype(target)
    if dtype.kind in "iu" and values.size and values.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            raise WidgetError(
                f"Column {label} holds {low if low < limits.min else high}; a dashboard reads whole numbers between "
                f"{limits.min} and {limits.max}. Show counts in thousands, or as floats."
            )
    return np.ascontiguousarray(values, dtype=dtype)
