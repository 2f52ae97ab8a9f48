"""Dictionaries on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nb_sae.errors import ConfigError, FormatError, InputError, InputNotFoundError, PathExistsError

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary
    from nb_sae.sae.formats.door import Format

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".pkl")
CARD = "README.md"
_OWN = "dictionary-*.safetensors"


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

    with _clear_errors(repo_id, revision, "read"):
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


def push_to_hub(
    dictionary: Dictionary,
    repo_id: str,
    *,
    format: Format = "nb_sae",  # noqa: A002 (the users' word)
    subfolder: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str | None = None,
    k: int | None = None,
) -> str:
    """Write a dictionary into a repository on the Hub, which is made if it does not exist.

    Args:
        dictionary: What to publish.
        repo_id: `owner/name`; also a folder on this machine (a path with more than one `/`, or an absolute one), which
            gets what the repository would get.
        format: nb_sae's own, or another library's, as in `export_dictionary`.
        subfolder: Folder in the repository, for several dictionaries in one.
        revision: Branch to write to.
        private: Whether a new repository is private; None: the owner's default.
        token: Access token; None: the one of this machine's login.
        message: Of the commit.
        k: As in `export_dictionary`.

    Returns:
        Address of the commit, or the folder.

    Raises:
        ConfigError: not `owner/name`.
        InputNotFoundError: no network, no login, or no right to write there.
    """
    from nb_sae.sae.formats.door import export_dictionary

    local = Path(repo_id).is_absolute() or repo_id.count("/") > 1 or repo_id.startswith(".")
    if not local and not looks_like_a_repository(repo_id):
        raise ConfigError(f"repo_id={repo_id!r} must be owner/name, such as 'me/clip-dictionary'.")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        inside = folder / (subfolder or "")
        is_file = format == "overcomplete"
        export_dictionary(dictionary, inside / "sae.pth" if is_file else inside, format=format, k=k, overwrite=True)
        if local:
            return _copy(folder, Path(repo_id).expanduser())
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with _clear_errors(repo_id, revision, "written"):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if not api.file_exists(repo_id, CARD, revision=revision):
                (folder / CARD).write_text(_card(dictionary, repo_id, format), encoding="utf-8")
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=str(folder),
                revision=revision,
                # Weights are named by their content: those of the dictionary before would stay.
                delete_patterns=[f"{subfolder}/{_OWN}" if subfolder else _OWN] if format == "nb_sae" else None,
                commit_message=message or f"dictionary of {dictionary.d_sae} latents",
            )
    return str(getattr(commit, "commit_url", commit))


def _copy(source: Path, target: Path) -> str:
    if target.exists() and not target.is_dir():
        raise PathExistsError(f"{target} is a file. Choose a folder.")
    for one in sorted(source.rglob("*")):
        if one.is_file():
            place = target / one.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(one.read_bytes())
    return str(target)


def _card(dictionary: Dictionary, repo_id: str, written: str) -> str:
    name = repo_id.rsplit("/", 1)[-1]
    rule = f"{dictionary.sparsity}, budgets {dictionary.budgets}" if dictionary.budgets else dictionary.sparsity
    rows = {
        "latents": f"{dictionary.d_sae:,}",
        "width": str(dictionary.d_in),
        "rule": rule,
        "site": dictionary.site,
        "model": dictionary.model,
        "format": written,
    }
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items() if value is not None)
    return (
        f"---\nlibrary_name: nb_sae\ntags:\n- sparse-autoencoder\n---\n# {name}\n\n"
        f"A sparse autoencoder's dictionary.\n\n| | |\n|---|---|\n{table}\n\n"
        f"```python\nimport nb_sae as ns\n\ndictionary = ns.load_dictionary({repo_id!r})\n```\n"
    )


@contextmanager
def _clear_errors(repo_id: str, revision: str | None, done: str) -> Iterator[None]:
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
