"""Training from a TOML file: what the file says becomes the objects that a notebook would make, and nothing else.

[store]
path = "acts"             # folder of an ActivationStore, or an address such as s3://bucket/acts
test = 0.05               # inputs that are held out; FVU on them is printed at the end

[sae]
kind = "msae"             # a constructor of SAEConfig, with its arguments and any field
expansion = 16

[train]                   # fields of TrainConfig
rows = 50_000_000
batch_rows = 4096

[output]
path = "runs/a"           # the session is saved here, the dictionary in runs/a/dictionary
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nb_sae.errors import ConfigError, InputNotFoundError, closest

if TYPE_CHECKING:
    from nb_sae.sae.config import SAEConfig
    from nb_sae.sae.dictionary import Dictionary
    from nb_sae.sae.session import Session
    from nb_sae.sae.training import TrainConfig
    from nb_sae.store import ActivationStore

KINDS = ("msae", "topk", "batch_topk", "relu", "jump_relu", "gated", "k_sparse")
DICTIONARY = "dictionary"
SESSION = "session.json"
_EVALUATION_ROWS = 8192


@dataclass(frozen=True)
class TrainFile:
    """What a file asks for. Paths are absolute, or addresses."""

    store: str
    test: float | None
    seed: int
    config: SAEConfig
    train: TrainConfig
    output: Path
    save_every_rows: int | None

    @classmethod
    def read(cls, path: str | Path) -> TrainFile:
        """Read and check a file; relative paths are relative to it.

        Raises:
            InputNotFoundError: no such file.
            ConfigError: it is not TOML, a section or key is missing or unknown, or a value is not allowed.
        """
        from nb_sae.sae.training import TrainConfig

        file = Path(path).expanduser()
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputNotFoundError(f"{file} does not exist. Give the TOML file of a training.") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file} is not a readable TOML file: {error}.") from error
        _check_keys(file, "", content, ("store", "sae", "train", "output"))
        store, sae, train, output = (_section(file, content, name) for name in ("store", "sae", "train", "output"))
        _check_keys(file, "store", store, ("path", "test", "seed"), needed=("path",))
        _check_keys(file, "output", output, ("path", "save_every_rows"), needed=("path",))
        _check_keys(file, "train", train, [field.name for field in fields(TrainConfig)])
        return cls(
            store=_place(file, store["path"]),
            test=store.get("test"),
            seed=store.get("seed", 0),
            config=_built(file, "sae", lambda: _sae_config(file, sae)),
            train=_built(file, "train", lambda: TrainConfig(**_tuples(train))),
            output=Path(_place(file, output["path"])),
            save_every_rows=output.get("save_every_rows"),
        )

    def stores(self) -> tuple[ActivationStore, ActivationStore | None]:
        """The rows to train on, and those that are held out."""
        from nb_sae.store import ActivationStore

        store = ActivationStore.open(self.store)
        return (store, None) if self.test is None else store.split(self.test, seed=self.seed)


def train_from_file(
    path: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    latent_shares: int = 1,
    progress: bool = True,
) -> Session:
    """Train as a file says, in this process or, started by torchrun, in several; save session and dictionary.

    Args:
        path: The TOML file.
        resume: Go on from what is saved in the output folder; begin if nothing is there yet.
        device: As for `Session`.
        latent_shares: As for `distributed.join`.
        progress: Show the progress and, at the end, how well the dictionary does.

    Returns:
        The session; `stopped_early` says that it was interrupted, and saved.

    Raises:
        ConfigError: the file is wrong, or a setting does not fit the store.
        PathExistsError: the output folder holds a session and `resume` is False.
    """
    from nb_sae.sae.distributed import join
    from nb_sae.sae.session import Session

    asked = TrainFile.read(path)
    group = join(latent_shares)
    train, test = asked.stores()
    if resume and (asked.output / SESSION).exists():
        session = Session.load(
            asked.output, train, config=asked.config, train=asked.train, device=device, group=group, progress=progress
        )
    else:
        session = Session(
            train, asked.config, asked.train, device=device, group=group, progress=progress,
            save_to=asked.output, save_every_rows=asked.save_every_rows,
        )  # fmt: skip
    if not session.finished:
        session.run(progress=progress)
    dictionary = session.dictionary
    if group.is_main:
        dictionary.save(asked.output / DICTIONARY, overwrite=True)
        if progress:
            _tell(session, dictionary, asked, test)
    group.wait()
    return session


def _tell(session: Session, dictionary: Dictionary, asked: TrainFile, test: ActivationStore | None) -> None:
    print(session)
    if test is not None and not session.stopped_early:
        from nb_sae.sae.metrics import fvu

        rows = test[: min(len(test), _EVALUATION_ROWS)]
        for k in dictionary.budgets or (None,):
            found = fvu(rows, dictionary.reconstruct(rows, k=k).cpu())
            print(f"FVU on {len(rows):,} rows held out{'' if k is None else f', k={k}'}: {float(found):.4f}")
    print(f"Session     {asked.output}\nDictionary  {asked.output / DICTIONARY}", flush=True)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _section(file: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: {name} should be a section, [{name}], it is {found!r}.")
    return found


def _check_keys(
    file: Path, section: str, given: Mapping[str, Any], known: Any, *, needed: tuple[str, ...] = ()
) -> None:
    where, what = (f"[{section}] ", "key") if section else ("it ", "section")
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{file}: {where}has no {what} {name!r}. {closest(name, known)}Known: {', '.join(known)}."
            )
    for name in needed:
        if not isinstance(given.get(name), str):
            raise ConfigError(f'{file}: [{section}] needs {name} = "…".')


def _sae_config(file: Path, given: Mapping[str, Any]) -> SAEConfig:
    from nb_sae.sae.config import SAEConfig

    settings = _tuples(given)
    kind = settings.pop("kind", "msae")
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r} is not one of {', '.join(KINDS)}. {closest(str(kind), KINDS)}")
    make: Callable[..., SAEConfig] = getattr(SAEConfig, kind)
    parameters = inspect.signature(make).parameters.items()
    own = [name for name, one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]
    known = list(dict.fromkeys(["kind", *own, *(field.name for field in fields(SAEConfig))]))
    _check_keys(file, "sae", given, known)
    try:
        config = make(**{name: value for name, value in settings.items() if name in own})
    except TypeError as error:
        raise ConfigError(f"{error}. Give it below [sae].") from error
    return replace(config, **{name: value for name, value in settings.items() if name not in own})


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples, as the configurations keep them; "none" as None, which TOML lacks."""
    return {
        name: tuple(value) if isinstance(value, list) else None if value == "none" else value
        for name, value in given.items()
    }


def _built(file: Path, section: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ConfigError as error:
        told = str(error)
        raise ConfigError(told if told.startswith(str(file)) else f"{file}, [{section}]: {told}") from error
    except TypeError as error:
        raise ConfigError(f"{file}, [{section}]: a value is of the wrong kind ({error}).") from error


def _place(file: Path, text: str) -> str:
    if "://" in text:
        return text
    path = Path(text).expanduser()
    return str(path if path.is_absolute() else file.resolve().parent / path)
