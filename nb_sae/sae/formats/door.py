"""The door of all formats: read what somebody gave, whichever it is, and write for somebody else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from nb_sae.errors import ConfigError, FormatError, InputNotFoundError, closest
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats import dictionary_learning, hub, msae, overcomplete, prisma, saelens, sparsify
from nb_sae.sae.formats.common import Told, at_budget, read_torch, with_unit_rows

Format = Literal["nb_sae", "saelens", "dictionary_learning", "sparsify", "msae", "overcomplete", "prisma"]
FORMATS: tuple[Format, ...] = get_args(Format)
_FOLDERS = {module.NAME: module for module in (saelens, sparsify, prisma, dictionary_learning)}
_FILES = {module.NAME: module for module in (msae, prisma, overcomplete, dictionary_learning)}
_PICKLES = (".pt", ".pth", ".pkl")
_SEARCH_DEPTH = 3


class Found(NamedTuple):
    """Where a dictionary lies and in which format."""

    path: Path
    format: Format


def load_dictionary(
    source: str | os.PathLike[str],
    *,
    format: Format | None = None,  # noqa: A002 (the users' word)
    subfolder: str | None = None,
    revision: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    unit_rows: bool = False,
    site: str | None = None,
    model: str | None = None,
    trust_pickle: bool = False,
    device: torch.device | str = "cpu",
    verbose: bool = True,
) -> Dictionary:
    """Read a dictionary of nb_sae or of another library, from a folder, a file or the Hugging Face Hub.

    The format is recognised from the files: SAELens, dictionary_learning, sparsify, ViT-Prisma, overcomplete, the MSAE
    authors' checkpoints, and our own. `encode` of the result gives the latents that the library itself gives, with its
    thresholds, gates, biases and normalisation of rows; `provenance["imported_from"]` says where they came from.

    Args:
        source: A folder, a file, or `owner/name` on the Hub.
        format: Which format it is, where the files do not tell.
        subfolder: Folder below `source` that holds the dictionary, where there are several.
        revision: Branch, tag or commit, on the Hub.
        k: Active latents per row, where the file does not state it (overcomplete).
        threshold: Of BatchTopK, where the file does not hold it (overcomplete, MSAE, an unfinished training).
        unit_rows: Bring the decoder's rows to norm 1, so that a latent is a length in the model's units. The latents
            then differ from the library's by the norms; not possible for a top-k rule over rows of unequal norm.
        site: Where the rows come from, in the names of `model.hook_names()`; None: what the file says.
        model: Of which model, to be checked against a store; None: what the file says if nb_sae wrote it. Libraries
            name the same model differently.
        trust_pickle: Read Python objects from the file, which can run any code that its author put there. Only for
            files whose origin you trust.
        device: Where the weights go.
        verbose: Print which format was recognised.

    Raises:
        InputNotFoundError: nothing there.
        FormatError: no format is recognised, several are, the files are damaged or newer, or they hold Python objects.
        ConfigError: an option that does not fit.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format={format!r} is unknown. {closest(format, FORMATS)}Known: {', '.join(FORMATS)}.")
    path = Path(source).expanduser()
    if not path.exists():
        if not hub.looks_like_a_repository(source):
            raise InputNotFoundError(f"{path} does not exist. Give a folder, a file, or owner/name on the Hub.")
        path = hub.download(str(source), revision=revision, subfolder=subfolder)
    elif revision is not None:
        raise ConfigError(f"revision={revision!r} was given for {path}, which is on this machine. Leave it out.")
    if subfolder is not None:
        path = path / subfolder
        if not path.exists():
            raise InputNotFoundError(f"{path.parent} holds no {path.name}. Check subfolder={subfolder!r}.")
    told = Told(k=k, threshold=threshold, trust_pickle=trust_pickle)
    found = Found(_entry(path, format), format) if format is not None else recognise(path, told)
    dictionary = _read(found, told)
    _check_told(dictionary, told, found)
    dictionary.site = site if site is not None else dictionary.site
    dictionary.model = model if model is not None else dictionary.model
    if unit_rows:
        dictionary = with_unit_rows(dictionary)
    if verbose:
        print(f"{source}: read as {found.format}: {dictionary}")
    return dictionary if str(device) == "cpu" else dictionary.to(device)


def export_dictionary(
    dictionary: Dictionary,
    path: str | os.PathLike[str],
    *,
    format: Format,  # noqa: A002 (the users' word)
    k: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a dictionary for another library; there it gives the latents that it gives here.

    Budgets, widths, thresholds and provenance that the format has no place for are kept beside, and `load_dictionary`
    brings them back.

    Args:
        dictionary: What to write.
        path: A folder; for "overcomplete" a file ending in `.pt` or `.pth`; for "msae" either.
        format: "saelens", "dictionary_learning", "sparsify", "msae", "overcomplete", "prisma" or "nb_sae".
        k: Write it as a top-k dictionary with this k. None: the rule it was trained with, of an MSAE the largest
            budget.
        overwrite: Write over what is there.

    Returns:
        The folder or file.

    Raises:
        ConfigError: the format cannot hold this dictionary; the message names one that can.
        PathExistsError: something is there and `overwrite` is False.
    """
    target = Path(path)
    writers: dict[str, Callable[..., Path]] = {
        name: module.write for name, module in {**_FOLDERS, **_FILES}.items()
    }  # fmt: skip
    if format == "nb_sae":
        if k is not None:
            raise ConfigError(f"k={k} was given for nb_sae's own format, which keeps every budget. Leave it out.")
        return dictionary.save(target, overwrite=overwrite)
    if format not in writers:
        raise ConfigError(f"format={format!r} is unknown. {closest(format, FORMATS)}Known: {', '.join(FORMATS)}.")
    return writers[format](at_budget(dictionary, k), target, k=k, overwrite=overwrite)


def recognise(path: Path, told: Told) -> Found:
    """Which format a folder or file is of, by the names of the files and, for a single file, by what it holds.

    Raises:
        FormatError: none, or a folder with several dictionaries.
    """
    if path.is_dir():
        found = _in_folder(path)
        if found is not None:
            return found
        below = _below(path)
        if len(below) == 1:
            return below[0]
        if below:
            shown = ", ".join(repr(str(one.path.relative_to(path))) for one in below[:8])
            more = f" and {len(below) - 8} more" if len(below) > 8 else ""
            raise FormatError(f"{path} holds several dictionaries: {shown}{more}. Choose one with subfolder=.")
        files = sorted(one for one in path.iterdir() if one.suffix in _PICKLES and one.is_file())
        if len(files) == 1:
            return recognise(files[0], told)
        held = ", ".join(sorted(one.name for one in path.iterdir())[:8]) or "nothing"
        raise FormatError(f"{path} holds no dictionary in a known format ({', '.join(FORMATS)}); it holds {held}.")
    if path.suffix in (".json", ".safetensors"):
        found = _in_folder(path.parent)
        if found is not None:
            return found
        raise FormatError(f"{path} alone is no dictionary: its settings or weights are missing beside it.")
    content = read_torch(path, told)
    for name, module in _FILES.items():
        if module.owns_content(content):
            return Found(path, name)
    if (path.parent / prisma.CONFIG).is_file() and path.name == prisma.WEIGHTS:
        return Found(path, "prisma")
    held = ", ".join(map(str, content))[:200] if isinstance(content, dict) else type(content).__name__
    raise FormatError(f"{path} is of no known format ({', '.join(FORMATS)}); it holds {held}. Name it with format=.")


def _read(found: Found, told: Told) -> Dictionary:
    if found.format == "nb_sae":
        return Dictionary.load(found.path)
    return {**_FOLDERS, **_FILES}[found.format].read(found.path, told)


def _check_told(dictionary: Dictionary, told: Told, found: Found) -> None:
    """Refuse a k or threshold that the file contradicts: it would be left out without a word."""
    if told.k is not None and told.k != (dictionary.budgets or (None,))[-1]:
        states = f"states k={dictionary.budgets[-1]}" if dictionary.budgets else f"is {dictionary.sparsity!r}"
        raise ConfigError(f"k={told.k} was given; {found.path} {states}. Leave it out, and choose k in encode(x, k=…).")
    if told.threshold is not None and dictionary.sparsity != "batch_top_k":
        raise ConfigError(
            f"threshold={told.threshold} was given; {found.path} is {dictionary.sparsity!r}, not a BatchTopK without "
            "one. Leave it out."
        )
    held = dictionary.threshold
    if (
        told.threshold is not None
        and held is not None
        and not torch.isclose(held, held.new_tensor(told.threshold)).all()
    ):
        raise ConfigError(f"threshold={told.threshold} was given; {found.path} holds its own. Leave it out.")


def _entry(path: Path, format: Format) -> Path:  # noqa: A002
    """The path that a format's reader takes: its folder where a file of it was named, the file in a folder of one."""
    if path.is_file() and (format in ("nb_sae", "saelens", "sparsify")):
        return path.parent
    if path.is_dir() and format in ("msae", "overcomplete"):
        files = sorted(one for one in path.iterdir() if one.suffix in _PICKLES)
        if len(files) != 1:
            raise FormatError(f"{path} holds {len(files)} files that may be of {format}. Name the file.")
        return files[0]
    return path


def _in_folder(path: Path) -> Found | None:
    if (path / "dictionary.json").is_file():
        return Found(path, "nb_sae")
    return next((Found(path, name) for name, module in _FOLDERS.items() if module.owns(path)), None)


def _below(path: Path) -> list[Found]:
    """Dictionaries in the folders below."""
    found, folders = [], [path]
    for _ in range(_SEARCH_DEPTH):
        folders = sorted(one for folder in folders for one in folder.iterdir() if one.is_dir())
        here = [one for one in map(_in_folder, folders) if one is not None]
        found += here
        taken = {one.path for one in here}
        folders = [folder for folder in folders if folder not in taken]
    return found
