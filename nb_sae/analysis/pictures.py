"""What a reader sees of an example: a thumbnail of the image, or the tokens of the context."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl
from PIL import Image

from nb_sae.analysis.schema import CONTEXTS, PICTURES
from nb_sae.errors import InputError
from nb_sae.types import HookedModel, Inputs, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

WEBP_QUALITY = 82


def pictures_frame(inputs: Inputs, input_ids: Sequence[int], side: int, *, square: bool) -> pl.DataFrame:
    """Thumbnails of the given images, re-encoded. An image that can no longer be read has no line.

    Args:
        side: Longest side, pixels; a smaller image is not enlarged.
        square: Cut to the central square, which is what a CLIP preprocessing shows the model, so that the grid of
            patches lies where the model saw it.
    """
    lines = []
    for input_id in input_ids:
        try:
            image = inputs[input_id]
        except InputError:
            continue
        if square:
            edge = min(image.size)
            left, top = (image.width - edge) // 2, (image.height - edge) // 2
            image = image.crop((left, top, left + edge, top + edge))
        image = image.convert("RGB")
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
        lines.append((input_id, image.width, image.height, buffer.getvalue()))
    return pl.DataFrame(lines, schema=PICTURES, orient="row")


def contexts_frame(inputs: Inputs, examples: pl.DataFrame, site: Site, model: HookedModel) -> pl.DataFrame:
    """The tokens, as text, of every context that holds an example."""
    prepare = model.preprocessor("text", context_tokens=site.positions)
    wanted = (
        examples.select("input_id", context=pl.col("token") // max(1, site.positions))
        .unique()
        .sort("input_id", "context")
    )
    lines = []
    for (input_id,), group in wanted.group_by("input_id", maintain_order=True):
        ids = _token_ids(prepare(inputs[int(str(input_id))]).tensor)
        for context in group["context"]:
            strings = model.token_strings(ids[context])
            lines.append((input_id, context * site.positions, [_displayable(text) for text in strings]))
    return pl.DataFrame(lines, schema=CONTEXTS, orient="row")


def _token_ids(tensor: object) -> list[list[int]]:
    rows: Iterator[list[int]] = iter(tensor.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    return list(rows)


def _displayable(text: str) -> str:
    """Lone surrogates cannot be written as UTF-8; they are shown as the replacement character."""
    return text.encode("utf-8", "replace").decode("utf-8") if text.isascii() else _without_surrogates(text)


def _without_surrogates(text: str) -> str:
    return "".join("�" if "\ud800" <= char <= "\udfff" else char for char in text)
