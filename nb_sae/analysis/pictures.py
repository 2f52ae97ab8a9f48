"""What a reader sees of an example: a thumbnail of the image, or the tokens of the context."""

from __future__ import annotations

import io
from collections.abc import Sequence

import polars as pl
from PIL import Image

from nb_sae.analysis.schema import CONTEXTS, PICTURES
from nb_sae.errors import InputError
from nb_sae.types import HookedModel, Inputs, Site

WEBP_QUALITY = 72


def pictures_frame(inputs: Inputs, input_ids: Sequence[int], side: int, site: Site) -> pl.DataFrame:
    """Thumbnails of the given images, re-encoded. An image that can no longer be read has no line.

    Args:
        side: Longest side, pixels; a smaller image is not enlarged.
        site: If its rows lie on a grid, the picture is shaped as the model saw it, so that the grid fits.
    """
    lines = []
    for input_id in input_ids:
        try:
            image = inputs[input_id]
        except InputError:
            continue
        image = image.convert("RGB")
        if site.grid is not None:
            image = _as_seen(image, site)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
        lines.append((input_id, image.width, image.height, buffer.getvalue()))
    return pl.DataFrame(lines, schema=PICTURES, orient="row")


def _as_seen(image: Image.Image, site: Site) -> Image.Image:
    """The picture in the shape of the grid, by the way the model's preprocessing takes."""
    rows, columns = site.grid or (1, 1)
    if site.fit == "squash":
        edge = min(image.size)
        return image.resize((max(1, edge * columns // max(rows, columns)), max(1, edge * rows // max(rows, columns))))
    cut = min if site.fit == "crop" else max
    unit = cut(image.width / columns, image.height / rows)
    width, height = max(1, round(unit * columns)), max(1, round(unit * rows))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


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
        prepared = prepare(inputs[int(str(input_id))])
        for context in group["context"]:
            ids = prepared.tensor[context]
            if prepared.keep is not None:
                ids = ids[: int(prepared.keep[context].nonzero().max()) + 1]
            strings = model.token_strings(ids.tolist())
            lines.append((input_id, context * site.positions, [_displayable(text) for text in strings]))
    return pl.DataFrame(lines, schema=CONTEXTS, orient="row")


def _displayable(text: str) -> str:
    """Lone surrogates cannot be written as UTF-8; they are shown as the replacement character."""
    return "".join("�" if "\ud800" <= char <= "\udfff" else char for char in text)
