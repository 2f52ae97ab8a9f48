"""Picture files without what is not the picture: EXIF, XMP, comments, private parts, what is appended.

Parts that a picture is drawn from are known by name and copied as they are; everything else is left out. Nothing is
decoded, so nothing is lost. Sources: PNG, W3C 2003 and APNG; JPEG, ITU T.81 annex B; GIF89a; WebP container, RFC 9649.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PARTS = frozenset(b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP sBIT bKGD hIST pHYs acTL fcTL fdAT".split())
_WEBP_PARTS = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"))
_WEBP_EXIF_XMP = 0x0C
"""Flags of the VP8X part that promise what is left out."""
_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
# JPEG: markers without a length; the parts of applications that decide about colour.
_EOI, _SOS, _COM = 0xD9, 0xDA, 0xFE
_APPS = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}


def stripped(encoded: bytes, kind: str, orientation: int = 1) -> bytes:
    """The picture alone; the same bytes where there was nothing else.

    Args:
        encoded: The file.
        kind: "PNG", "JPEG", "WEBP" or "GIF".
        orientation: What the EXIF part of a JPEG says about turning it, 1 … 8; all that is kept of it.

    Raises:
        ValueError: The file is damaged, or ends too early.
    """
    try:
        if kind == "PNG":
            return _PNG + b"".join(_png_parts(encoded))
        if kind == "JPEG":
            return b"".join(_jpeg_parts(encoded, orientation))
        return b"".join(_gif_parts(encoded)) if kind == "GIF" else _webp(encoded)
    except (IndexError, struct.error) as error:
        raise ValueError(f"The {kind} ends too early.") from error


def _png_parts(encoded: bytes) -> Iterator[bytes]:
    at, name = len(_PNG), b""
    while name != b"IEND":
        (length,) = struct.unpack_from(">I", encoded, at)
        name, end = encoded[at + 4 : at + 8], at + 12 + length
        if end > len(encoded):
            raise ValueError("A part of the PNG is longer than the file.")
        if name in _PNG_PARTS:
            yield encoded[at:end]
        at = end


def _jpeg_parts(encoded: bytes, orientation: int) -> Iterator[bytes]:
    yield encoded[:2]
    if orientation != 1:
        # One TIFF directory with one entry: tag 274, a short.
        tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
        yield b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff
    at = 2
    while True:
        if encoded[at] != 0xFF:
            raise ValueError("The JPEG has no marker where one is due.")
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _EOI:
            yield encoded[at : at + 2]
            return
        end = at + 2 + struct.unpack_from(">H", encoded, at + 2)[0]
        if marker == _SOS:
            end = _scan_end(encoded, end)
            if end < 0:  # cut off: a browser shows what is there
                yield encoded[at:]
                return
        app = 0xE0 <= marker <= 0xEF
        if marker != _COM and (not app or encoded[at + 4 : end].startswith(_APPS.get(marker, b"\0none"))):
            yield encoded[at:end]
        at = end


def _scan_end(encoded: bytes, at: int) -> int:
    """Where the next marker stands: in a scan, 0xFF is followed by 0 or by a restart. -1 if the file ends before."""
    while (at := encoded.find(b"\xff", at)) >= 0:
        if at + 1 == len(encoded):
            return -1
        if encoded[at + 1] not in (0, *range(0xD0, 0xD8)):
            return at
        at += 2
    return -1


def _gif_parts(encoded: bytes) -> Iterator[bytes]:
    at = 13 + _colours(encoded[10])
    yield encoded[:at]
    while encoded[at] != 0x3B:
        start, kind = at, encoded[at]
        label = encoded[at + 1] if kind == 0x21 else 0
        if kind not in (0x21, 0x2C):
            raise ValueError("The GIF holds an unknown part.")
        at += 2 if kind == 0x21 else 11 + _colours(encoded[at + 9])
        first = encoded[at + 1 : at + 1 + encoded[at]]
        while encoded[at]:  # blocks, each behind its length
            at += 1 + encoded[at]
        at += 1
        if kind == 0x2C or label == 0xF9 or (label == 0xFF and first in _LOOPS):
            yield encoded[start:at]
    yield b"\x3b"


def _colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(encoded: bytes) -> bytes:
    end, at, parts = 8 + struct.unpack_from("<I", encoded, 4)[0], 12, []
    while at < end:
        name, (length,) = encoded[at : at + 4], struct.unpack_from("<I", encoded, at + 4)
        part, at = encoded[at : at + 8 + length + length % 2], at + 8 + length + length % 2
        if len(part) < 8 + length:
            raise ValueError("A part of the WebP is longer than the file.")
        if name == b"VP8X":
            part = part[:8] + bytes([part[8] & ~_WEBP_EXIF_XMP]) + part[9:]
        if name in _WEBP_PARTS:
            parts.append(part)
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body
