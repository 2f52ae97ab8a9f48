"""The inputs behind the rows that a training monitor looks at: key, text and a small picture of each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import polars as pl
from PIL import Image

from nb_sae.errors import WidgetError
from nb_sae.widgets.wire import clean_text

PICTURE_SIDE = 96
PICTURES_BYTES = 250_000
"""What all pictures of one look may hold."""
TEXT_CHARS = 160


class MonitorInputs:
    """Small pictures or the beginnings of texts; each is made once."""

    def __init__(self, inputs: Any) -> None:
        if inputs is not None and not (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")):
            raise WidgetError(
                f"inputs is a {type(inputs).__name__}. Give the images or texts that the rows were collected from."
            )
        self._inputs = inputs
        self._is_text = getattr(inputs, "modality", "image") == "text"
        self._made: dict[int, tuple[str, bytes]] = {}

    def cut(self, rows: Sequence[tuple[int, int]]) -> tuple[pl.DataFrame, list[bytes]]:
        """`input_id, token, key, text, thumb` of each `(input_id, token)`, and the pictures that fit."""
        thumbs: list[bytes] = []
        places: dict[int, int] = {}
        lines, held = [], 0
        for input_id, token in rows:
            if input_id not in self._made:
                self._made[input_id] = self._make(input_id)
            text, webp = self._made[input_id]
            if webp and input_id not in places and held + len(webp) <= PICTURES_BYTES:
                places[input_id] = len(thumbs)
                thumbs.append(webp)
                held += len(webp)
            lines.append((input_id, token, self._key(input_id), text, places.get(input_id, -1)))
        schema = {
            "input_id": pl.UInt32, "token": pl.UInt32, "key": pl.String, "text": pl.String, "thumb": pl.Int32
        }  # fmt: skip
        return pl.DataFrame(lines, schema=schema, orient="row"), thumbs

    def _key(self, input_id: int) -> str:
        keys: Any = getattr(self._inputs, "keys", ())
        keys = () if callable(keys) else keys
        return clean_text(keys[input_id]) if input_id < len(keys) else f"input {input_id}"

    def _make(self, input_id: int) -> tuple[str, bytes]:
        """Both empty where there is nothing, or it cannot be read."""
        if self._inputs is None or input_id >= len(self._inputs):
            return "", b""
        try:
            given = self._inputs[input_id]
            if self._is_text:
                text = clean_text(given)
                return (text if len(text) <= TEXT_CHARS else f"{text[:TEXT_CHARS]}…"), b""
            picture = given.convert("RGB")
            picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            picture.save(out, "WEBP", quality=64, method=2)
        except Exception:  # whatever the user's inputs raise: one of them is worth no more than its place
            return "", b""
        return "", out.getvalue()
