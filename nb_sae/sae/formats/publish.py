"""A dictionary into a repository on the Hugging Face Hub, with a card that says what it is."""

from __future__ import annotations

import tempfile
from pathlib import Path

from nb_sae.errors import ConfigError, PathExistsError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats.door import Format, export_dictionary
from nb_sae.sae.formats.hub import clear_errors, looks_like_a_repository

CARD = "README.md"
_OWN = "dictionary-*.safetensors"


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
        with clear_errors(repo_id, revision, "written"):
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
