"""Collections of images: a folder, a list of paths, pictures in memory, a Hugging Face data set, an array.

Owns reading a picture as RGB and naming it; labels are `celeba`'s. Nothing is read before it is asked for.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, overload

import numpy as np
from PIL import Image, ImageOps

from nb_sae.errors import InputError, InputNotFoundError
from nb_sae.types import Modality

EXTENSIONS = frozenset({
    ".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Files with these endings (any case) are images; every other file of a folder is ignored and counted."""

ACCEPTED = "a folder, a list of paths, a list of PIL images, a Hugging Face data set or a uint8 array (n, h, w, 3)"

# How Pillow's messages name the file: an object's address or a path of this machine, which tells the user nothing.
_PLACE = re.compile(r"<_io[^>]*>|'[^']*[\\/][^']*'")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Reader(Protocol):
    """Where pictures come from. Picklable, so that worker processes can read."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Image.Image:
        """Picture `number` in RGB. May raise anything that says what is wrong with it."""
        ...


class Images:
    """A numbered collection of images; `images()` makes it.

    `photos[3]` is a PIL image in RGB, turned upright as its EXIF data says and on white where it is see-through.
    `photos[:100]`, `photos[[4, 2]]` are collections again, numbered anew, with the same keys.
    """

    modality: Modality = "image"

    def __init__(self, reader: Reader, keys: Sequence[str], *, name: str, ignored: int = 0) -> None:
        self.name = name
        self.ignored = ignored
        """Files of the folder that are no images, by their ending or because they are hidden."""
        self._reader = reader
        self._keys = unique_keys(keys)
        self._ids = np.arange(len(reader))

    @property
    def keys(self) -> Sequence[str]:
        """One per image, unique, valid for UTF-8: file name relative to its folder, or number in the data set."""
        return self._keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, input_id: int) -> Image.Image: ...
    @overload
    def __getitem__(self, input_id: slice | Sequence[int] | np.ndarray) -> Self: ...
    def __getitem__(self, input_id: int | slice | Sequence[int] | np.ndarray) -> Image.Image | Self:
        if isinstance(input_id, int | np.integer):
            return self._read(int(input_id))
        return self._take(self._positions(input_id))

    def preview(self, count: int = 24, *, side: int = 80, columns: int = 12) -> Image.Image:
        """The first `count` images on one sheet, each fitted into a square of `side` pixels.

        An image that cannot be read is left grey; collecting activations skips and lists it.
        """
        count = min(count, len(self))
        sheet = Image.new("RGB", (min(count, columns) * side, -(-count // columns) * side), "white")
        for number in range(count):
            try:
                picture = ImageOps.pad(self[number], (side, side), Image.Resampling.LANCZOS, color="white")
            except InputError:
                picture = Image.new("RGB", (side, side), "lightgrey")
            sheet.paste(picture, (number % columns * side, number // columns * side))
        return sheet

    def __repr__(self) -> str:
        ignored = f", {self.ignored:,} other files ignored" if self.ignored else ""
        return f"{type(self).__name__}({self.name!r}, {len(self):,} images{ignored})"

    def _read(self, input_id: int) -> Image.Image:
        if not -len(self) <= input_id < len(self):
            raise IndexError(f"{self.name!r} has {len(self)} images; there is no number {input_id}.")
        try:
            return self._reader.read(int(self._ids[input_id]))
        except Exception as error:  # a broken picture makes a decoder raise whatever it likes
            reason = _PLACE.sub("", str(error)).strip() or type(error).__name__
            raise InputError(
                f"image {self._keys[input_id]!r} of {self.name!r} cannot be read: {reason}. "
                "Repair or remove it; collecting activations skips and lists such images."
            ) from error

    def _positions(self, wanted: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(wanted, slice):
            return np.arange(len(self))[wanted]
        try:
            positions = np.asarray(wanted)
        except ValueError:
            positions = np.empty(0, object)
        if positions.size == 0 and positions.dtype != object:
            return np.empty(0, np.int64)
        if positions.dtype == bool and positions.shape == (len(self),):
            return np.flatnonzero(positions)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise InputError(
                f"images are chosen by number, slice, list of numbers or mask of length {len(self)}, "
                f"not by {type(wanted).__name__} {wanted!r:.60}."
            )
        outside = positions[(positions < -len(self)) | (positions >= len(self))]
        if outside.size:
            raise IndexError(f"{self.name!r} has {len(self)} images; there is no number {outside[0]}.")
        return positions % len(self)

    def _take(self, positions: np.ndarray) -> Self:
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._ids = self._ids[positions]
        part._keys = unique_keys([self._keys[i] for i in positions])
        return part


def images(source: Any, *, name: str | None = None) -> Images:
    """A collection of images.

    Args:
        source: A folder (read with its subfolders, sorted by path), a list of paths, a list of PIL images, a Hugging
            Face data set with an image column, or a uint8 array or tensor `(n, h, w, 3)`, `(n, 3, h, w)`, `(n, h, w)`.
        name: What to call it; by default the folder's name.

    Raises:
        InputNotFoundError: the folder, or a path of the list, does not exist.
        InputError: it holds no image, or is of another kind.
    """
    if isinstance(source, Images):
        same = source[:]
        same.name = name or source.name
        return same
    if isinstance(source, str | os.PathLike):
        return _from_folder(Path(source).expanduser(), name)
    if is_hugging_face(source):
        return _from_hugging_face(source, name)
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        reader = ArrayReader(source)
        return Images(reader, _numbers(len(reader)), name=name or "array")
    if isinstance(source, Sequence) and not isinstance(source, bytes | bytearray):
        return _from_list(list(source), name)
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes | bytearray | Image.Image):
        raise InputError(f"images() got a {type(source).__name__}; its length must be known. Give list(…) of it.")
    hint = "Put the image into a list. " if isinstance(source, Image.Image) else ""
    raise InputError(f"images() got a {type(source).__name__}. {hint}Give {ACCEPTED}.")


def to_rgb(value: Any) -> Image.Image:
    """A picture from what a data set may hold: a PIL image, a path, `{"bytes", "path"}`, or a uint8 array."""
    if isinstance(value, Image.Image):
        return _upright_rgb(value)
    if isinstance(value, str | os.PathLike):
        with Image.open(value) as opened:
            return _upright_rgb(opened)
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]) as opened:
            return _upright_rgb(opened)
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value)) as opened:
            return _upright_rgb(opened)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return ArrayReader(value[None]).read(0)
    raise InputError(f"a {type(value).__name__} is no picture; expected a PIL image, a path or a uint8 array")


class ValueReader:
    """Pictures or paths in a list."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def read(self, number: int) -> Image.Image:
        """Open and decode it."""
        return to_rgb(self.values[number])


class FolderReader:
    """Files below one folder. Holds their names, which the keys share, and no path of its own for each."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> Image.Image:
        """Open and decode it."""
        return to_rgb(self.folder / self.names[number])


class ColumnReader:
    """One column of a Hugging Face data set."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset.select_columns([column]).with_format(None), column

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, number: int) -> Image.Image:
        """Fetch the row and decode its picture."""
        return to_rgb(self.dataset[number][self.column])


class ArrayReader:
    """A stack of pictures in memory."""

    def __init__(self, array: Any) -> None:
        if hasattr(array, "detach"):
            array = array.detach().cpu().numpy()
        array = np.asarray(array)
        shape = tuple(array.shape)
        if array.ndim == 4 and shape[-1] not in (1, 3, 4) and shape[1] in (1, 3, 4):
            array = array.transpose(0, 2, 3, 1)
        if array.ndim == 3:
            array = array[..., None]
        if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape[1:]:
            raise InputError(
                f"an array of shape {shape} is no stack of images. Give (n, h, w, 3), (n, 3, h, w) or (n, h, w)."
            )
        if array.dtype != np.uint8:
            raise InputError(
                f"the array's values are {array.dtype}; give uint8 from 0 to 255, "
                "such as (x * 255).round().astype('uint8')."
            )
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def read(self, number: int) -> Image.Image:
        """A copy of one slice."""
        picture = self.array[number]
        return _upright_rgb(
            Image.fromarray(np.ascontiguousarray(picture[..., 0] if picture.shape[-1] == 1 else picture))
        )


def is_hugging_face(source: Any) -> bool:
    """Whether this is a data set (or a dictionary of them) of the `datasets` library, without importing it."""
    return any(base.__module__.split(".")[0] == "datasets" for base in type(source).__mro__)


def image_column(dataset: Any) -> str:
    """The column of a Hugging Face data set that holds the images.

    Raises:
        InputError: several splits, a stream, no image column, or more than one.
    """
    if isinstance(dataset, Mapping):
        raise InputError(
            f"this data set has several splits; choose one, such as data[{next(iter(dataset), 'train')!r}]."
        )
    if not hasattr(dataset, "__len__"):
        raise InputError("this data set is streamed, its length is unknown. Load it with streaming=False.")
    features = dict(dataset.features)
    found = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if not found:
        found = [column for column in ("image", "img", "picture") if column in features]
    if len(found) != 1:
        what = f"{len(found)} image columns ({', '.join(found)})" if found else "no image column"
        raise InputError(
            f"this data set has {what}; its columns are {', '.join(features) or 'none'}. "
            "Keep exactly one with data.select_columns([…]), or data.cast_column('image', datasets.Image())."
        )
    return found[0]


def unique_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """The keys with what UTF-8 cannot hold replaced, and numbered where two are the same."""
    clean = [_SURROGATES.sub("�", key) for key in keys]
    if len(set(clean)) == len(clean):
        return tuple(clean)
    taken, out = set(clean), []
    seen: Counter[str] = Counter()
    for key in clean:
        seen[key] += 1
        fresh, number = key, seen[key]
        while number > 1 and (fresh == key or fresh in taken):
            fresh = f"{key} ({number})"
            number += 1
        taken.add(fresh)
        out.append(fresh)
    return tuple(out)


def list_images(folder: Path) -> tuple[list[str], Counter[str]]:
    """Image files below a folder, relative to it with `/`, sorted; and the other files counted by their ending.

    Raises:
        InputNotFoundError: there is no such folder.
    """
    if not folder.exists():
        raise InputNotFoundError(
            f"there is no folder {str(folder)!r}. Check the path; it is looked up from {str(Path.cwd())!r}."
        )
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file. Give its folder, or a list of paths: images([path]).")
    found, others, visited = [], Counter[str](), set[str]()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(where).relative_to(folder).as_posix()
        for name in names:
            ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - names may hold surrogates; no Path needed
            if ending in EXTENSIONS and not name.startswith("."):
                found.append(name if prefix == "." else f"{prefix}/{name}")
            else:
                others[ending or "no ending"] += 1
    return sorted(found), others


def _from_folder(folder: Path, name: str | None) -> Images:
    found, others = list_images(folder)
    if not found:
        counted = ", ".join(f"{count} × {ending}" for ending, count in others.most_common(5))
        what = f"holds no image but {sum(others.values())} other files ({counted})" if others else "is empty"
        raise InputError(f"the folder {str(folder)!r} {what}. Images end in {', '.join(sorted(EXTENSIONS))}.")
    return Images(FolderReader(folder, found), found, name=name or clean_name(folder), ignored=sum(others.values()))


def clean_name(folder: Path) -> str:
    """The folder's own name, fit for UTF-8."""
    return _SURROGATES.sub("�", folder.resolve().name) or "images"


def _from_list(values: list[Any], name: str | None) -> Images:
    if not values:
        raise InputError(f"images() got an empty list. Give {ACCEPTED}.")
    if all(isinstance(value, str | os.PathLike) for value in values):
        paths = [Path(value).expanduser() for value in values]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputNotFoundError(
                f"{len(missing)} of {len(paths)} paths are no files; the first is {str(missing[0])!r}. "
                "Relative paths are looked up from the working folder."
            )
        # Only what tells the files apart: a key never shows where on this machine they lie.
        root = os.path.commonpath([path.resolve().parent for path in paths])
        keys = [path.resolve().relative_to(root).as_posix() for path in paths]
        return Images(ValueReader(paths), keys, name=name or "paths")
    kinds = Counter("path" if isinstance(v, str | os.PathLike) else type(v).__name__ for v in values)
    if not all(isinstance(value, Image.Image) for value in values):
        listed = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common(4))
        raise InputError(f"images() got a list of {listed}. All must be paths, or all PIL images; or give {ACCEPTED}.")
    return Images(ValueReader(values), _numbers(len(values)), name=name or "pictures")


def _from_hugging_face(dataset: Any, name: str | None) -> Images:
    reader = ColumnReader(dataset, image_column(dataset))
    if not len(reader):
        raise InputError("this data set has no rows. Check the split and the filters that were applied to it.")
    own = getattr(getattr(dataset, "info", None), "dataset_name", None)
    return Images(reader, _numbers(len(reader)), name=name or own or "dataset")


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, upright).convert("RGB")
    return upright.convert("RGB")
