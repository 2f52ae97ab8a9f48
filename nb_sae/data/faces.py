"""Drawn faces as a labelled data set whose bias is known exactly.

Owns `demo_faces`: which face has which number, and writing them in CelebA's own layout. What the attributes look like
is in `drawing`, how probable they are in `face_table`, what a caption says in `captions`; their public names are here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from nb_sae.data.captions import ANTONYMS, PROMPTS, SYNONYMS, caption
from nb_sae.data.celeba import celeba
from nb_sae.data.celeba_files import IMAGES, write_lists
from nb_sae.data.drawing import draw_face
from nb_sae.data.face_table import (
    ATTRIBUTES,
    BALANCED,
    BIASED,
    DRAWN,
    GROUPS,
    P_MALE,
    REMAINDERS,
    Table,
    face_table,
    resolve_table,
    sample_attributes,
)
from nb_sae.data.labeled import PARTITIONS, LabeledImages
from nb_sae.errors import ConfigError, PathExistsError

__all__ = [
    "ANTONYMS", "ATTRIBUTES", "BALANCED", "BIASED", "DRAWN", "GROUPS", "PROMPTS", "P_MALE", "REMAINDERS", "SYNONYMS",
    "demo_faces", "face_table",
]  # fmt: skip

NAME = "drawn faces"
RECIPE = "demo_faces.json"
"""Inside a written layout: what it was made from. It is written last, so a layout without it is not ours."""
JPEG_QUALITY = 95


def demo_faces(
    n: int,
    seed: int = 0,
    *,
    path: str | Path | None = None,
    table: str | Table = "biased",
    size: int = 64,
) -> LabeledImages:
    """Draw `n` faces with CelebA's attributes, a partition and captions.

    Face `i` depends on `(seed, i)`, `table` and `size` alone, not on `n`. `Male` is a label that is not drawn: it
    acts only through P(attribute | Male), which `face_table(table)` states exactly.

    Args:
        n: How many.
        seed: Another seed gives other faces.
        path: A folder to write them to in CelebA's layout, as JPEG; what is returned then reads from there. Where the
            same faces have been written before, they are read. None: a face is drawn when it is asked for.
        table: `"biased"`, `"balanced"` (nothing depends on Male), or `{attribute: (p_if_not_male, p_if_male)}`; what
            it leaves out is as in `"balanced"`.
        size: Side of a picture in pixels, at least 64.

    Returns:
        What `celeba()` returns, with `.captions` for every face.

    Raises:
        ConfigError: a number out of range, or a table that cannot hold.
        PathExistsError: `path` holds something else.
    """
    _check(n, seed, size)
    rules, n, seed, size = resolve_table(table), int(n), int(seed), int(size)
    if path is None:
        return _drawn(n, seed, rules, size)
    folder = Path(path).expanduser()
    recipe = {"n": n, "seed": seed, "size": size, "table": {name: list(pair) for name, pair in rules.items()}}
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not _same_recipe(folder, recipe):
            raise PathExistsError(
                f"{str(folder)!r} exists and does not hold these {n:,} faces (seed {seed}). Give another path, remove "
                "it, or read what is there with celeba(path)."
            )
    else:
        _write_layout(_drawn(n, seed, rules, size), folder, recipe)
    faces = celeba(folder)
    faces.name = NAME
    return faces


class FaceReader:
    """Draws a face when it is asked for. Holds no picture."""

    def __init__(self, held: list[frozenset[str]], seed: int, size: int) -> None:
        self.held, self.seed, self.size = held, seed, size

    def __len__(self) -> int:
        return len(self.held)

    def read(self, number: int) -> Image.Image:
        """Face `number`; the same pixels at every call."""
        return draw_face(self.held[number], _chance(self.seed, number, "drawing"), self.size)


_STREAMS = {"attributes": 0, "drawing": 1, "caption": 2, "partition": 3}


def _chance(seed: int, number: int, stream: str) -> np.random.Generator:
    return np.random.default_rng((seed, number, _STREAMS[stream]))


def _drawn(n: int, seed: int, rules: Table, size: int) -> LabeledImages:
    held = [sample_attributes(_chance(seed, i, "attributes"), rules) for i in range(n)]
    parts = [int(np.searchsorted((0.8, 0.9), _chance(seed, i, "partition").random(), side="right")) for i in range(n)]
    return LabeledImages(
        FaceReader(held, seed, size),
        [f"{i + 1:06d}.jpg" for i in range(n)],
        name=NAME,
        labels=pl.DataFrame({name: [name in has for has in held] for name in ATTRIBUTES}),
        partition=pl.Series("partition", ["train", "valid", "test"], dtype=PARTITIONS).gather(parts),
        captions=[caption(has, _chance(seed, i, "caption")) for i, has in enumerate(held)],
    )


def _write_layout(faces: LabeledImages, folder: Path, recipe: dict[str, object]) -> None:
    """Write beside the folder under another name and rename at the end: no half of it is ever at `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))
    try:
        (building / IMAGES).mkdir()
        for number, key in enumerate(faces.keys):
            faces[number].save(building / IMAGES / key, quality=JPEG_QUALITY, subsampling=0)
        labels = {name: faces.attributes[name].to_list() for name in ATTRIBUTES}
        partition = [] if faces.partition is None else faces.partition.to_physical().to_list()
        write_lists(building, list(faces.keys), labels, partition, faces.captions or [])
        (building / RECIPE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
        building.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _same_recipe(folder: Path, recipe: dict[str, object]) -> bool:
    try:
        return json.loads((folder / RECIPE).read_text(encoding="utf-8")) == recipe
    except (OSError, ValueError):
        return False


def _check(n: int, seed: int, size: int) -> None:
    for name, value, low in (("n", n, 1), ("seed", seed, 0), ("size", size, 64)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ConfigError(f"{name}={value!r} is a {type(value).__name__}; give a whole number of at least {low}.")
        if value < low:
            raise ConfigError(f"{name}={value} is too small; give at least {low}.")
    if n > 999_999:
        raise ConfigError(f"n={n} is more than 999999, the highest number in CelebA's file names. Use several seeds.")
    if size > 2048:
        raise ConfigError(f"size={size} is more than 2048 pixels. Lower it.")
