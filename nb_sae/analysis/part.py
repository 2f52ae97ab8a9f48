"""What `analyze` found in some of the chunks of a store: saved by one process, merged by another."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from nb_sae.analysis.kept import Kept, Rule
from nb_sae.atomic import write_atomically
from nb_sae.errors import FormatError, InputNotFoundError, PathExistsError, StoreError

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary
    from nb_sae.types import ActivationSource

FORMAT = "nb_sae.analysis_part"
VERSION = 2
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag", "level_scale")


@dataclass(frozen=True)
class PartialAnalysis:
    """Made by `analyze_part`; `merge_analyses` makes the tables of all parts of a store."""

    about: dict[str, Any]
    """What all parts have to agree on: dictionary, store and settings."""
    part: tuple[int, int]
    """Which of how many parts this is."""
    kept: Kept

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write one file. It appears under its name in one step, when it is complete.

        Raises:
            PathExistsError: something is there and `overwrite` is False.
        """
        file = Path(path)
        if file.exists() and not overwrite:
            raise PathExistsError(f"{file} exists. Choose another path or pass overwrite=True.")
        file.parent.mkdir(parents=True, exist_ok=True)
        header = {"format": FORMAT, "version": VERSION, "about": self.about, "part": self.part}
        write_atomically(file, [safetensors_bytes(self.kept.arrays(), {"nb_sae": json.dumps(header)})])
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PartialAnalysis:
        """Read what `save` wrote.

        Raises:
            InputNotFoundError: no such file.
            FormatError: another format, a newer version, or a damaged file.
        """
        file = Path(path)
        if not file.is_file():
            raise InputNotFoundError(f"{file} does not exist. Run analyze_part for that part and save it there.")
        try:
            with safe_open(file, framework="numpy") as opened:
                header = json.loads((opened.metadata() or {}).get("nb_sae", "{}"))
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, ValueError, OSError) as error:
            raise FormatError(f"{file} cannot be read ({error}). Run analyze_part again.") from error
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise FormatError(
                f"{file} has format {header.get('format')!r}, version {header.get('version')!r}; expected {FORMAT!r}, "
                f"version {VERSION}. Run analyze_part again."
            )
        about = header["about"]
        kept = empty_of(about)
        try:
            kept.restore(arrays)
        except (KeyError, ValueError, IndexError) as error:
            raise FormatError(f"{file} is damaged ({error!r}). Run analyze_part again.") from error
        index, count = header["part"]
        return cls(about, (index, count), kept)

    def __repr__(self) -> str:
        rows = sum(sums.rows for sums in self.kept.tree.nodes.values())
        index, count = self.part
        return f"PartialAnalysis(part {index} of {count}: {rows:,} rows, {self.kept.rule.d_sae:,} latents)"


def description(
    dictionary: Dictionary,
    store: ActivationSource,
    targets: ActivationSource,
    *,
    chunk_rows: int,
    top: int,
    per_interval: int,
    seed: int,
) -> dict[str, Any]:
    """What parts have to agree on before they may be merged."""
    rule = (dictionary.sparsity, dictionary.pre_bias, dictionary.residual, dictionary.looks, dictionary.row_norm)
    digest = sha256(repr(rule).encode())
    for name in _WEIGHTS:
        weights = getattr(dictionary, name)
        if weights is not None:
            digest.update(weights.detach().cpu().contiguous().numpy().data)
    return {
        "dictionary": digest.hexdigest(),
        "d_sae": dictionary.d_sae,
        "sets_k": dictionary.sets_k,
        "budgets": list(dictionary.budgets or ()),
        "widths": list(dictionary.widths or ()) if len(dictionary.widths or ()) > 1 else [],
        "target": None if targets is store else targets.site.name,
        "model": store.model,
        "revision": store.revision,
        "site": store.site.name,
        "positions": store.site.positions,
        "rows": len(store),
        "chunk_rows": chunk_rows,
        "top": top,
        "per_interval": per_interval,
        "seed": seed,
    }


def empty_of(about: dict[str, Any]) -> Kept:
    """An empty keeper for a description."""
    settings = {name: about[name] for name in ("top", "per_interval", "seed")}
    rule = Rule(about["d_sae"], about["sets_k"], tuple(about["budgets"]), tuple(about["widths"]))
    return Kept(rule, about["positions"], **settings)


def check_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse parts of another dictionary, store or setting.

    Raises:
        StoreError: names what differs.
    """
    differing = [name for name in there if there[name] != here.get(name)]
    if differing:
        shown = ", ".join(f"{name} ({there[name]!r} of the parts, {here.get(name)!r} here)" for name in differing)
        raise StoreError(f"The parts are of another analysis: {shown}. Give the dictionary and store they are of.")


def check_parts(parts: Sequence[PartialAnalysis]) -> None:
    """Refuse parts that are not all parts, each once, of one analysis.

    Raises:
        StoreError: names what differs or is missing.
    """
    if not parts:
        raise StoreError("No parts were given. Give what analyze_part made, one per part.")
    first = parts[0]
    for one in parts[1:]:
        differing = [
            f"{name} ({first.about[name]!r} and {one.about[name]!r})"
            for name in first.about
            if first.about[name] != one.about.get(name)
        ]
        if first.part[1] != one.part[1]:
            differing.append(f"the number of parts ({first.part[1]} and {one.part[1]})")
        if differing:
            raise StoreError(
                f"Parts {first.part[0]} and {one.part[0]} are not of one analysis; they differ in "
                f"{', '.join(differing)}. Make all parts with the same dictionary, store and settings."
            )
    numbers = [one.part[0] for one in parts]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    missing = sorted(set(range(first.part[1])) - set(numbers))
    if twice or missing:
        said = [f"given twice: {_listed(twice)}"] if twice else []
        said += [f"missing: {_listed(missing)}"] if missing else []
        raise StoreError(f"Of {first.part[1]} parts, {'; '.join(said)}. Give each part once.")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
