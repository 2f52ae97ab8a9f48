"""Pictures in a report: keep them without their metadata, blur them, or put grey boxes in their place."""

from __future__ import annotations

import base64
import binascii
import io
import re
from contextlib import suppress
from typing import Any, Literal

from PIL import Image, ImageFilter, ImageOps

from nb_sae.reporting.stripping import stripped

Treatment = Literal["keep", "blur", "remove"]

# Eight cells on the long side: a face that fills the picture keeps its colours and no feature.
_BLUR_CELLS = 8
_GREY = (0x9A, 0x9A, 0x9A)
_ORIENTATION = 274
"""Number of the EXIF entry that says how a picture is turned."""
_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_DATA_URI = re.compile(r"data:image/[\w.+-]+(?:;[\w=.+-]+)*;base64,([A-Za-z0-9+/=\s]+)")


def treat(encoded: bytes, treatment: Treatment) -> tuple[str, bytes] | None:
    """The picture as `(media type, bytes)` with the size at which it is seen and the same format.

    Returns None if the bytes are not a PNG, JPEG, WebP or GIF that can be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=tuple(_FORMATS)) as picture:
            kind = str(picture.format)
            if treatment == "keep":
                return _FORMATS[kind], _without_metadata(picture, kind, encoded)
            shown = ImageOps.exif_transpose(picture)  # a browser turns the picture as its EXIF part says
            changed = Image.new("RGB", shown.size, _GREY) if treatment == "remove" else blurred(shown)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    sink = io.BytesIO()
    changed.save(sink, format=kind)
    return _FORMATS[kind], sink.getvalue()


def blurred(picture: Image.Image) -> Image.Image:
    """Colours without features: a handful of cells, smoothly enlarged to the old size.

    What is lost cannot be computed back: all that remains is the mean colour of each cell.
    """
    rgb = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture.convert("RGBA")).convert(
        "RGB"
    )
    scale = _BLUR_CELLS / max(rgb.size)
    cells = rgb.resize([max(1, round(side * scale)) for side in rgb.size], Image.Resampling.BOX)
    return cells.filter(ImageFilter.BoxBlur(0.5)).resize(rgb.size, Image.Resampling.BICUBIC)


def _without_metadata(picture: Image.Image, kind: str, encoded: bytes) -> bytes:
    """The bytes without EXIF, XMP, texts and what is appended, which may hold a place, a name or a path.

    A damaged file that can still be decoded is written anew.
    """
    turned = picture.getexif().get(_ORIENTATION, 1) if kind == "JPEG" else 1
    with suppress(ValueError):
        alone = stripped(encoded, kind, turned if turned in range(1, 9) else 1)
        with Image.open(io.BytesIO(alone), formats=(kind,)) as kept:
            if kept.size == picture.size:
                return alone
    sink = io.BytesIO()
    picture.load()
    picture.info = {key: value for key, value in picture.info.items() if key in ("icc_profile", "transparency")}
    if kind == "JPEG":
        picture.save(sink, format="JPEG", quality="keep", exif=b"", comment=b"")
    elif kind == "WEBP":
        picture.save(sink, format="WEBP", quality=92, exif=b"", xmp=b"")
    else:
        picture.save(sink, format=kind)
    return sink.getvalue()


def data_uri(encoded: bytes, treatment: Treatment) -> str | None:
    """The picture as a `data:` address, or None if it cannot be decoded."""
    picture = treat(encoded, treatment)
    if picture is None:
        return None
    media_type, changed = picture
    return f"data:{media_type};base64,{base64.b64encode(changed).decode()}"


def decode_base64(text: str) -> bytes | None:
    """Bytes of base64 text that may hold line breaks; None if it is no base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def treat_data_uri(address: str, treatment: Treatment) -> str | None:
    """A `data:image/…;base64,` address with its picture treated; None for any other address."""
    found = _DATA_URI.fullmatch(address.strip())
    encoded = decode_base64(found.group(1)) if found else None
    return data_uri(encoded, treatment) if encoded else None


def treat_strings(value: Any, treatment: Treatment) -> Any:
    """A JSON value with every `data:image/` address inside its strings treated.

    One that cannot be decoded is cut out, unless pictures are kept.
    """

    def change(found: re.Match[str]) -> str:
        return treat_data_uri(found.group(), treatment) or (found.group() if treatment == "keep" else "data:,")

    if isinstance(value, str):
        return _DATA_URI.sub(change, value) if "data:image/" in value else value
    if isinstance(value, dict):
        return {key: treat_strings(entry, treatment) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [treat_strings(entry, treatment) for entry in value]
    return value
