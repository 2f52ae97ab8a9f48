"""Pictures of a report hold what is seen and nothing else: no EXIF, no comment, no private part, nothing appended."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nb_sae.reporting.pictures import treat
from nb_sae.reporting.stripping import stripped

SECRET = b"anna"
FORMS = {
    "PNG": {}, "JPEG": {}, "WEBP": {}, "GIF": {}, "progressive JPEG": {"progressive": True},
    "lossless WEBP": {"lossless": True},
}  # fmt: skip


def photo(turned: int = 0) -> Image.Image:
    """Wider than high, one corner blue."""
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    drawn.paste((0, 0, 255), (0, 0, 20, 20))
    return drawn.rotate(turned)


def written(form: str, **more: object) -> bytes:
    sink = io.BytesIO()
    photo().save(sink, form.split()[-1], **FORMS.get(form, {}), **more)
    return sink.getvalue()


def exif(orientation: int = 1) -> Image.Exif:
    entries = Image.Exif()
    entries[0x010E], entries[274] = SECRET.decode(), orientation
    return entries


def png_part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def inserted(whole: bytes, part: bytes, at: int) -> bytes:
    return whole[:at] + part + whole[at:]


def texts() -> PngInfo:
    info = PngInfo()
    info.add_text("Author", SECRET.decode())
    return info


def jpeg_part(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(data)) + data


HIDDEN: dict[str, Callable[[], bytes]] = {
    "PNG text": lambda: written("PNG", pnginfo=texts()),
    "PNG EXIF after the pixels": lambda: inserted(written("PNG"), png_part(b"eXIf", exif().tobytes()), -12),
    "PNG private part": lambda: inserted(written("PNG"), png_part(b"prVt", SECRET), 33),
    "PNG appended": lambda: written("PNG") + SECRET,
    "JPEG EXIF": lambda: written("JPEG", exif=exif()),
    "JPEG comment": lambda: written("JPEG", comment=SECRET),
    "JPEG XMP": lambda: inserted(written("JPEG"), jpeg_part(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET), 2),
    "JPEG of an application": lambda: inserted(written("JPEG"), jpeg_part(0xEC, b"Ducky\0" + SECRET), 2),
    "JPEG with a film behind it": lambda: written("progressive JPEG") + b"ftypmp42" + SECRET,
    "GIF comment": lambda: written("GIF", comment=SECRET),
    "GIF appended": lambda: written("GIF") + SECRET,
    "WEBP": lambda: written("WEBP", exif=exif(), xmp=SECRET),
}


def pixels(encoded: bytes) -> bytes:
    return Image.open(io.BytesIO(encoded)).convert("RGB").tobytes()


@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_is_no_picture_is_left_out_and_every_pixel_stays(hidden: str):
    whole = HIDDEN[hidden]()
    assert SECRET in whole
    media_type, kept = treat(whole, "keep") or ("", b"")
    assert media_type == f"image/{hidden.split()[0].lower()}"
    assert SECRET not in kept
    assert pixels(kept) == pixels(whole)


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_that_holds_nothing_else_stays_as_it_is(form: str):
    assert stripped(written(form), form.split()[-1]) == written(form)


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP"])
def test_an_animation_keeps_its_frames(form: str):
    sink = io.BytesIO()
    photo().save(sink, form, save_all=True, append_images=[photo(90), photo(180)], exif=exif(), comment=SECRET)
    kept = (treat(sink.getvalue(), "keep") or ("", b""))[1]
    assert SECRET not in kept
    assert getattr(Image.open(io.BytesIO(kept)), "n_frames", 1) == 3


def test_a_photo_taken_upright_stays_upright():
    sideways = written("JPEG", exif=exif(orientation=6))
    kept = Image.open(io.BytesIO((treat(sideways, "keep") or ("", b""))[1]))
    assert dict(kept.getexif()) == {274: 6}
    for treatment in ("blur", "remove"):
        assert Image.open(io.BytesIO((treat(sideways, treatment) or ("", b""))[1])).size == (40, 60)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_off_anywhere_fails_in_a_known_way(form: str):
    whole = written(form)
    for end in range(30, len(whole), 7):
        try:
            stripped(whole[:end], form.split()[-1])
        except ValueError:
            continue
    treat(whole[: len(whole) // 2], "keep")


def test_of_a_photo_that_is_cut_off_the_rest_is_kept():
    whole = written("JPEG", comment=SECRET)
    kept = (treat(whole[: len(whole) * 3 // 4], "keep") or ("", b""))[1]
    assert kept.startswith(b"\xff\xd8")
    assert SECRET not in kept
    assert whole[: len(whole) * 3 // 4].endswith(kept[-100:])
