"""The manifest of a store: what was asked for, what is there, and which shards are finished.

A folder holds `manifest.json`, `shard-00000.safetensors` … (one tensor "x", `(rows, d_in)`), `rows.parquet`
and `inputs.parquet`. While it is collected, `partial/` holds one pair of files per finished shard; the JSON of
the pair is written last and is what makes the shard count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nb_sae.atomic import TEMPORARY, FileMark
from nb_sae.errors import FormatError, StoreError
from nb_sae.store.files import DTYPES, is_unaltered, read_table, write_json, write_table
from nb_sae.types import RowStatistics, Site

FORMAT = "nb_sae.activations"
VERSION = 1
MANIFEST = "manifest.json"
ROWS_TABLE = "rows.parquet"
INPUTS_TABLE = "inputs.parquet"
PARTIAL = "partial"

ROWS_SCHEMA = pl.Schema({"input_id": pl.UInt32, "token": pl.UInt32})
INPUTS_SCHEMA = pl.Schema({"input_id": pl.UInt32, "key": pl.String, "status": pl.String, "reason": pl.String})

_SHARD_NAME = re.compile(r"shard-\d{5,}\.safetensors")
_NUMBERED = re.compile(r"(?:shard|part)-(\d{5,})\.")
_BEFORE_MANIFEST = re.compile(rf"partial|\.lock|{re.escape(TEMPORARY)}.*")
_STORE_ENTRY = re.compile(rf"{_SHARD_NAME.pattern}|manifest\.json|(rows|inputs)\.parquet|{_BEFORE_MANIFEST.pattern}")


@dataclass(frozen=True)
class Shard:
    """One file of rows: those of inputs `first_input` … `stop_input - 1`."""

    file: str
    rows: int
    first_input: int
    stop_input: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """What is known about a finished shard before the store is complete."""

    shard: Shard
    positions: int
    """Positions of one context as seen; 0 if every input of the shard was skipped."""
    skipped: dict[int, str]
    statistics: RowStatistics


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `collect` was asked for. Two requests that are equal give the same rows."""

    model: str
    revision: str
    modality: str
    site: Site
    tokens: str
    special_tokens: bool
    dtype: str
    inputs: int
    keys_sha256: str
    sample_sha256: str
    """Of the contents of a few inputs: other pictures under the same file names are another request."""
    context_tokens: int | None

    def differences(self, other: Request) -> list[str]:
        """Name what differs, this one's value first."""
        found = []
        for name in ("model", "revision", "modality", "tokens", "special_tokens", "dtype", "inputs", "context_tokens"):
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                found.append(f"{name} ({here!r} there, {there!r} asked for)")
        if self.site.name != other.site.name:
            found.append(f"site ({self.site.name!r} there, {other.site.name!r} asked for)")
        elif self.site.width != other.site.width:
            found.append(f"width of the site ({self.site.width} there, {other.site.width} asked for)")
        if self.inputs == other.inputs and self.keys_sha256 != other.keys_sha256:
            found.append("the inputs (other keys, or another order)")
        elif self.inputs == other.inputs and self.sample_sha256 != other.sample_sha256:
            found.append("the inputs (the same keys, other contents)")
        return found


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a store but its rows."""

    request: Request
    inputs_per_shard: int
    complete: bool = False
    rows: int = 0
    skipped: int = 0
    statistics: RowStatistics | None = None
    shards: tuple[Shard, ...] = ()
    tables: dict[str, FileMark] = field(default_factory=dict)

    @property
    def shard_count(self) -> int:
        """How many shards the store has when it is complete."""
        return -(-self.request.inputs // self.inputs_per_shard)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`."""
    request = asdict(manifest.request)
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "complete": manifest.complete, **request}
    content["d_in"] = manifest.request.site.width
    content["inputs_per_shard"] = manifest.inputs_per_shard
    if manifest.complete and manifest.statistics is not None:
        content["rows"] = manifest.rows
        content["skipped"] = manifest.skipped
        content["mean"] = manifest.statistics.mean.tolist()
        content["mean_square_distance"] = manifest.statistics.mean_square_distance
        content["tables"] = {name: asdict(mark) for name, mark in manifest.tables.items()}
        content["shards"] = [asdict(shard) for shard in manifest.shards]
    write_json(folder / MANIFEST, content)


def is_store(folder: Path) -> bool:
    """Whether the folder holds a manifest of this format, of any version, or a damaged one beside a store's files."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except OSError:
        return False
    except ValueError:
        return all(_STORE_ENTRY.fullmatch(entry.name) for entry in folder.iterdir())
    return isinstance(content, dict) and content.get("format") == FORMAT


def is_free(folder: Path) -> bool:
    """Whether a folder is empty but for what a collection leaves that was killed before its first manifest."""
    return all(_BEFORE_MANIFEST.fullmatch(entry.name) for entry in folder.iterdir())


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`.

    Raises:
        StoreError: There is none, or it cannot be read.
        FormatError: It is of another format or version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"{folder} is no activation store: it has no {MANIFEST}. Make one with ActivationStore.collect(…)."
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}). Collect again with overwrite=True.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FormatError(f"{path} is not the manifest of an activation store; its format should be {FORMAT!r}.")
    if content.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {content.get('version')!r}; this nb_sae reads version {VERSION}. "
            "Install the nb_sae that wrote it, or collect again with overwrite=True."
        )
    try:
        return _parse_manifest(content)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}: {error}). Collect again with overwrite=True."
        ) from error


def _parse_manifest(content: dict[str, Any]) -> Manifest:
    site = dict(content["site"])
    site["grid"] = tuple(site["grid"]) if site["grid"] is not None else None
    names = [name for name in Request.__dataclass_fields__ if name != "site"]
    request = Request(site=Site(**site), **{name: content[name] for name in names})
    if request.dtype not in DTYPES or request.site.width < 1 or request.inputs < 0:
        raise ValueError("dtype, width or inputs out of range")
    if int(content["inputs_per_shard"]) < 1:
        raise ValueError("inputs_per_shard below 1")
    if content["complete"] is not True:
        return Manifest(request=request, inputs_per_shard=int(content["inputs_per_shard"]))
    mean = np.asarray(content["mean"], dtype=np.float64)
    if mean.shape != (request.site.width,):
        raise ValueError(f"mean has shape {mean.shape}")
    shards = tuple(Shard(**shard) for shard in content["shards"])
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard.file):
            raise ValueError(f"shard file name {shard.file!r}")
    rows = int(content["rows"])
    if sum(shard.rows for shard in shards) != rows:
        raise ValueError("the shards' rows do not add up to rows")
    return Manifest(
        request=request,
        inputs_per_shard=int(content["inputs_per_shard"]),
        complete=True,
        rows=rows,
        skipped=int(content["skipped"]),
        statistics=RowStatistics(rows, mean, float(content["mean_square_distance"])),
        shards=shards,
        tables={name: FileMark(**mark) for name, mark in content["tables"].items()},
    )


def shard_file(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def part_file(number: int) -> str:
    """File name of the note that a shard is finished."""
    return f"part-{number:05d}.json"


def write_part(folder: Path, number: int, part: Part, rows: pl.DataFrame) -> None:
    """Note that a shard is finished. The JSON goes last: without it the shard does not count."""
    place = folder / PARTIAL
    place.mkdir(exist_ok=True)
    write_table(place / f"part-{number:05d}.parquet", rows)
    write_json(
        place / part_file(number),
        {
            "shard": asdict(part.shard),
            "positions": part.positions,
            "skipped": {str(input_id): reason for input_id, reason in part.skipped.items()},
            "mean": part.statistics.mean.tolist(),
            "mean_square_distance": part.statistics.mean_square_distance,
        },
    )


def read_parts(folder: Path) -> dict[int, Part]:
    """The shards that an unfinished collection has finished, by number; damaged ones are left out."""
    found = {}
    for path in sorted((folder / PARTIAL).glob("part-*.json")):
        with suppress(OSError, KeyError, TypeError, ValueError):
            number = int(path.stem.removeprefix("part-"))
            content = json.loads(path.read_bytes())
            shard = Shard(**content["shard"])
            if shard.file != shard_file(number) or not path.with_suffix(".parquet").exists():
                continue
            if not is_unaltered(folder / shard.file, FileMark(shard.bytes, shard.sha256)):
                continue
            statistics = RowStatistics(
                shard.rows, np.asarray(content["mean"], dtype=np.float64), float(content["mean_square_distance"])
            )
            skipped = {int(input_id): str(reason) for input_id, reason in content["skipped"].items()}
            found[number] = Part(shard, int(content["positions"]), skipped, statistics)
    return found


def forget_parts(folder: Path, numbers: Iterable[int]) -> None:
    """Make room for notes of shards that are to be collected, and remove those of shards that were damaged."""
    place = folder / PARTIAL
    place.mkdir(exist_ok=True)
    for number in numbers:
        (place / part_file(number)).unlink(missing_ok=True)


def read_part_rows(folder: Path, number: int) -> pl.DataFrame:
    """`input_id, token` of a finished shard."""
    return read_table(folder / PARTIAL / f"part-{number:05d}.parquet")


def remove_temporaries(folder: Path, owns: Callable[[int], bool] | None = None) -> None:
    """Remove what a killed run left half-written; with `owns`, of the shards for which it says so alone."""
    for place in (folder, folder / PARTIAL):
        for path in place.glob(f"{TEMPORARY}*"):
            shard = _NUMBERED.search(path.name)
            if owns is None or (shard is not None and owns(int(shard[1]))):
                path.unlink(missing_ok=True)


def remove_store(folder: Path) -> None:
    """Remove the files of a store, and nothing else that lies in its folder."""
    remove_partial(folder)
    remove_temporaries(folder)
    for name in (ROWS_TABLE, INPUTS_TABLE):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("shard-*.safetensors"):
        if _SHARD_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # last: a kill before it leaves a store that can be overwritten


def remove_partial(folder: Path) -> None:
    """Remove the notes of finished shards, once the manifest holds what they say."""
    for path in (folder / PARTIAL).glob("part-*"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (folder / PARTIAL).rmdir()
