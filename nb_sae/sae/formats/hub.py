"""Dictionaries on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nb_sae.errors import ConfigError, InputError, InputNotFoundError, PathExistsError

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary
    from nb_sae.sae.formats.door import Format

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.safetensors", "*.pt", "*.pth", "*.pkl")
CARD = "README.md"


def looks_like_a_repository(source: str | os.PathLike[str]) -> bool:
    """Whether a name is `owner/name`."""
    return isinstance(source, str) and _REPOSITORY.fullmatch(source) is not None and ".." not in source


def download(repo_id: str, *, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The folder of a repository on this machine, fetched if it is not in the cache; only settings and weights.

    Raises:
        InputNotFoundError: no such repository, revision or subfolder, or no network.
    """
    from huggingface_hub import snapshot_download

    patterns: list[str] = [f"{subfolder}/{name}" if subfolder else name for name in _FILES]
    with _clear_errors(repo_id, revision, "read"):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))


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
        if not subfolder:
            (folder / CARD).write_text(_card(dictionary, repo_id, format), encoding="utf-8")
        if local:
            return _copy(folder, Path(repo_id).expanduser())
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with _clear_errors(repo_id, revision, "written"):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=str(folder),
                revision=revision,
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
