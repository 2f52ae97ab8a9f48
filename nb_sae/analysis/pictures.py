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


class Thumbnails:
    """Small pictures of images, re-encoded; each is read and made once, however many sites ask for it.

    Args:
        inputs: The images.
        side: Longest side, pixels; a smaller image is not enlarged.
    """

    def __init__(self, inputs: Inputs, side: int) -> None:
        self._inputs, self._side = inputs, side
        self._made: dict[tuple[int, tuple[int, int] | None, str], tuple[int, int, bytes] | None] = {}

    def frame(self, input_ids: Sequence[int], site: Site) -> pl.DataFrame:
        """`PICTURES` of some images. One that can no longer be read has no line.

        Args:
            input_ids: Which.
            site: If its rows lie on a grid, the picture is shaped as the model saw it, so that the grid fits.
        """
        lines = []
        for input_id in input_ids:
            key = (input_id, site.grid, site.fit)
            if key not in self._made:
                self._made[key] = self._make(input_id, site)
            made = self._made[key]
            if made is not None:
                lines.append((input_id, *made))
        return pl.DataFrame(lines, schema=PICTURES, orient="row")

    def _make(self, input_id: int, site: Site) -> tuple[int, int, bytes] | None:
        try:
            image = self._inputs[input_id]
        except InputError:
            return None
        image = image.convert("RGB")
        if site.grid is not None:
            image = _as_seen(image, site)
        image.thumbnail((self._side, self._side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
        return image.width, image.height, buffer.getvalue()


def pictures_frame(inputs: Inputs, input_ids: Sequence[int], side: int, site: Site) -> pl.DataFrame:
    """`Thumbnails` that are asked for once."""
    return Thumbnails(inputs, side).frame(input_ids, site)


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
