"""Repositories on the Hugging Face Hub: which files of one are fetched, and its errors in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nb_sae.errors import FormatError, InputError, InputNotFoundError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".pkl")


def looks_like_a_repository(source: str | os.PathLike[str]) -> bool:
    """Whether a name is `owner/name`."""
    return isinstance(source, str) and _REPOSITORY.fullmatch(source) is not None and ".." not in source


def download(repo_id: str, *, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The folder of a repository on this machine, with the settings and weights of one dictionary.

    Only the files of `subfolder`, or of the repository's first level, are fetched: some repositories hold hundreds of
    dictionaries.

    Raises:
        InputNotFoundError: no such repository, revision or subfolder, or no network.
        FormatError: no subfolder was given and there are several.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    with clear_errors(repo_id, revision, "read"):
        try:
            names = HfApi().list_repo_files(repo_id, revision=revision)
        except OfflineModeIsEnabled:
            return Path(snapshot_download(repo_id, revision=revision))  # what the cache has
        wanted = _choose(repo_id, [name for name in names if name.endswith(_SUFFIXES)], subfolder)
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted))


def _choose(repo_id: str, names: list[str], subfolder: str | None) -> list[str]:
    """Files of one dictionary among those of a repository."""
    folders = sorted({name.rpartition("/")[0] for name in names if "/" in name and name.endswith(".json")})
    shown = ", ".join(map(repr, folders[:8])) + (f" and {len(folders) - 8} more" if len(folders) > 8 else "")
    if subfolder is not None:
        wanted = [name for name in names if name.startswith(subfolder.rstrip("/") + "/")]
        if not wanted:
            raise InputNotFoundError(f"{repo_id} holds no {subfolder!r}. It holds {shown or ', '.join(names)}.")
        return wanted
    first = [name for name in names if "/" not in name]
    if any(not name.endswith(".json") for name in first) or not folders:
        return first
    if len(folders) > 1:
        raise FormatError(f"{repo_id} holds several dictionaries: {shown}. Choose one with subfolder=.")
    return [name for name in names if name.startswith(folders[0] + "/")]


@contextmanager
def clear_errors(repo_id: str, revision: str | None, done: str) -> Iterator[None]:
    """What huggingface_hub raises, as errors that say what to do."""
    from huggingface_hub import errors

    where = f"{repo_id}{'@' + revision if revision else ''}"
    try:
        yield
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError) as error:
        raise InputNotFoundError(_offline(where, done)) from error
    except errors.RevisionNotFoundError as error:
        raise InputNotFoundError(f"{repo_id} has no revision {revision!r}. Check the branch, tag or commit.") from error
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise InputNotFoundError(
            f"{where} does not exist on the Hugging Face Hub, or is not yours to see. Check the name; for a private or "
            "gated one log in: hf auth login."
        ) from error
    except errors.HfHubHTTPError as error:
        raise InputError(f"{where} could not be {done}: the Hugging Face Hub answered {error}.") from error
    except Exception as error:
        # The client's transport has its own errors for a host that cannot be reached.
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "requests", "urllib3"):
            raise
        raise InputNotFoundError(_offline(where, done)) from error


def _offline(where: str, done: str) -> str:
    return (
        f"{where} cannot be {done}: there is no connection to the Hugging Face Hub (or HF_HUB_OFFLINE is set) and it "
        "is not in the cache. Go online, or give a folder on this machine."
    )
