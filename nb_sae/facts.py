"""What made a notebook's results, told by its own objects: models, data, dictionaries, seeds and versions.

Names, counts and hashes only: no path, no user, no machine. Objects are known by what they have, so that this imports
neither torch nor any other part of nb_sae.
"""

from __future__ import annotations

import html
import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

MIME = "application/vnd.nb-sae.provenance+json"
KEY = "nb_sae"
"""Where facts lie in the metadata of an output or of a notebook."""
_VERSIONED = {
    "torch": "torch",
    "open_clip": "open_clip_torch",
    "transformer_lens": "transformer_lens",
    "transformers": "transformers",
    "polars": "polars",
    "plotly": "plotly",
    "anywidget": "anywidget",
    "ipywidgets": "ipywidgets",
}
"""Imported name → distribution."""
_LISTS = ("models", "data", "stores", "dictionaries", "analyses")
_SINGLE: dict[str, Any] = {"device": str, "started": str, "seconds": (int, float)}
"""What is said once: its type."""
_HOLDERS = (dict, list, tuple)
_DEPTH = 3
_MOST_OBJECTS = 5_000
_MOST_FACTS = 40
"""Of one kind; a notebook of a hundred dictionaries is told by its first."""


@dataclass(frozen=True)
class Provenance:
    """What was found; shown as a table, and read by `report` from the executed notebook."""

    facts: dict[str, Any]
    """JSON: `versions`, `device`, and lists of `models`, `data`, `stores`, `dictionaries`, `analyses`."""

    def lines(self) -> list[tuple[str, str]]:
        """What it says, as (subject, text)."""
        return lines_of(self.facts)

    def __repr__(self) -> str:
        width = max((len(name) for name, _ in self.lines()), default=0)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.lines())

    def _repr_mimebundle_(self, **_kwargs: Any) -> dict[str, Any]:
        rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self.lines())
        table = f"<table><tbody>{rows}</tbody></table>"
        return {"text/plain": repr(self), "text/html": table, MIME: self.facts}


def provenance(*objects: Any) -> Provenance:
    """What made the given objects, or everything in this notebook if none is given.

    A report puts it into its footer by itself when it executes the notebook (`nb-sae report --execute`), and where
    the notebook shows a dashboard. For a notebook that you run by hand and that shows none, let a cell end with this.
    """
    return Provenance(facts_of(objects) if objects else facts_of_notebook())


def facts_of_notebook() -> dict[str, Any]:
    """The facts of all that this notebook has a name for."""
    return facts_of(_namespace().values())


def as_json() -> str:
    """The same as JSON, for a kernel that is asked from outside."""
    return json.dumps(facts_of_notebook())


def facts_of(objects: Iterable[Any]) -> dict[str, Any]:
    """The facts of objects, and of what lies inside them, as JSON."""
    facts: dict[str, Any] = {"versions": versions(), "device": _device(), **{name: [] for name in _LISTS}}
    for found in _walk(objects):
        try:
            kind, fact = _fact(found)
        except Exception:  # an object that cannot say what it is must not keep the others from being told
            continue
        if kind and fact not in facts[kind] and len(facts[kind]) < _MOST_FACTS:
            facts[kind].append(fact)
    return {name: value for name, value in facts.items() if value}


def versions() -> dict[str, str]:
    """Version of Python, of nb_sae, and of what it uses and is imported here."""
    from nb_sae import __version__

    found = {"nb_sae": __version__, "Python": platform.python_version()}
    for module, distribution in _VERSIONED.items():
        if module in sys.modules:
            try:
                found[distribution] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several facts as one; of what cannot be listed, the last word counts. Anything that is no fact is left out."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name == "versions" and isinstance(value, Mapping):
                known = {str(one): text for one, text in value.items() if isinstance(text, str)}
                whole[name] = {**whole.get(name, {}), **known}
            elif name in _LISTS and isinstance(value, list):
                kept = whole.setdefault(name, [])
                kept += [one for one in value if isinstance(one, Mapping) and one not in kept]
                del kept[_MOST_FACTS:]
            elif isinstance(value, _SINGLE.get(name, ())):
                whole[name] = value
    return whole


def lines_of(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts as (subject, text), in the order a reader asks: model, data, rows, dictionaries, versions, device."""
    said = [
        ("Model", _listed(_model(one) for one in facts.get("models", ()))),
        ("Data", _listed(_inputs(one) for one in facts.get("data", ()))),
        ("Rows", _listed(_store(one) for one in facts.get("stores", ()))),
        ("Dictionary", _listed(_dictionary(one) for one in facts.get("dictionaries", ()))),
        ("Analysis", _listed(_analysis(one) for one in facts.get("analyses", ()))),
        ("Versions", _listed(_versioned(facts.get("versions", {})), " · ")),
        ("Device", str(facts.get("device", ""))),
    ]
    return [(name, text) for name, text in said if text]


# What an object says


def _fact(found: Any) -> tuple[str, dict[str, Any]]:
    """Kind and facts of one object of nb_sae; an empty kind where there is nothing to say."""
    held, kind = vars(found), type(found)
    if hasattr(kind, "hook_names") and "revision" in held:
        return "models", {"name": _name(found.name), "revision": _hash(found.revision)}
    if "provenance" in held and "W_dec" in held:
        return "dictionaries", _dictionary_facts(found)
    if hasattr(kind, "batches") and "site" in held and "revision" in held:
        site = {"site": str(found.site.name), "width": int(found.site.width)}
        return "stores", {**site, "model": _name(found.model), "rows": len(found)}
    if "latents" in held and "examples" in held and "rows" in held:
        return "analyses", {"site": str(found.site.name), "model": _name(found.model), "rows": int(found.rows)}
    if "_origin" in held and "rows_seen" in dir(kind) and "train" in held:
        return "dictionaries", _session_facts(found)
    if hasattr(found, "modality") and hasattr(kind, "keys") and hasattr(kind, "__getitem__"):
        return "data", {"name": _name(found.name), "inputs": len(found), "modality": str(found.modality)}
    return "", {}


def _dictionary_facts(found: Any) -> dict[str, Any]:
    about = found.provenance
    train = about.get("train") or {}
    origin = about.get("imported_from")
    facts = {
        "site": None if found.site is None else str(getattr(found.site, "name", found.site)),
        "model": None if found.model is None else _name(found.model),
        "latents": int(found.W_dec.shape[0]),
        "sparsity": str(getattr(found, "sparsity", "")) or None,
        "budgets": [int(k) for k in found.budgets or ()],
        "seed": train.get("seed"),
        "rows_seen": about.get("rows_seen"),
        "read_from": None if origin is None else _name(origin if isinstance(origin, str) else "another library"),
    }
    return {name: value for name, value in facts.items() if value not in (None, [])}


def _session_facts(found: Any) -> dict[str, Any]:
    """A session as its dictionary would say it, without making one."""
    origin, config = found._origin, found.config
    facts = {
        "site": str(origin.site.name),
        "model": _name(origin.model),
        "latents": int(config.d_sae),
        "sparsity": str(config.sparsity),
        "budgets": [int(k) for k in config.budgets or ()],
        "seed": found.train.seed,
        "rows_seen": int(found.rows_seen),
    }
    return {name: value for name, value in facts.items() if value not in (None, [])}


def _walk(objects: Iterable[Any]) -> Iterator[Any]:
    """Objects of nb_sae among these, inside lists and mappings, and inside each other; each once."""
    seen: set[int] = set()
    waiting = [(one, 0) for one in objects]
    for place, (found, depth) in enumerate(waiting):
        if place >= _MOST_OBJECTS:
            return
        if id(found) in seen:
            continue
        seen.add(id(found))
        if _is_ours(found):
            yield found
        if depth < _DEPTH:
            waiting.extend((one, depth + 1) for one in _inside(found) if _is_ours(one) or type(one) in _HOLDERS)


def _is_ours(found: Any) -> bool:
    return str(getattr(type(found), "__module__", "")).startswith("nb_sae.") and hasattr(found, "__dict__")


def _inside(found: Any) -> Iterable[Any]:
    if _is_ours(found):
        return list(vars(found).copy().values())
    if type(found) is dict:
        return list(islice(found.values(), _MOST_OBJECTS))
    return found[:_MOST_OBJECTS] if type(found) in (list, tuple) else ()


def _namespace() -> Mapping[str, Any]:
    """The user's variables where this is a notebook, else those of the script."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    held = shell.user_ns if shell is not None else vars(sys.modules["__main__"])
    return {name: value for name, value in dict(held).items() if not name.startswith("_")}


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):
        return ""
    if torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name(0))
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def _name(text: Any) -> str:
    """A name without the folders before it: a model or a data set may be called by where it lies."""
    text = str(text)
    path = text.startswith(("/", "~", ".", "file:")) or "\\" in text or re.match(r"[A-Za-z]:/", text)
    return re.split(r"[\\/]+", text.rstrip("\\/"))[-1] if path else text


def _hash(text: Any) -> str:
    return str(text)[:16]


# Facts as words. They may come from anybody's notebook: every value is only turned into text.


def _model(fact: Mapping[str, Any]) -> str:
    revision = fact.get("revision")
    return f"{fact.get('name')}{f' (weights {revision})' if revision else ''}"


def _inputs(fact: Mapping[str, Any]) -> str:
    return f"{fact.get('name')} ({_count(fact.get('inputs'))} {fact.get('modality', 'input')}s)"


def _store(fact: Mapping[str, Any]) -> str:
    return f"{fact.get('site')} of {fact.get('model')}: {_count(fact.get('rows'))} × {fact.get('width')}"


def _dictionary(fact: Mapping[str, Any]) -> str:
    budgets = fact.get("budgets")
    parts = [f"{_count(fact.get('latents'))} latents", str(fact.get("sparsity") or "")]
    parts += [f"budgets {', '.join(map(str, budgets))}"] if isinstance(budgets, list) and budgets else []
    parts += [f"{_count(fact['rows_seen'])} rows seen"] if "rows_seen" in fact else []
    parts += [f"seed {fact['seed']}"] if "seed" in fact else []
    parts += [f"read from {fact['read_from']}"] if "read_from" in fact else []
    where = f"{fact['site']}: " if "site" in fact else ""
    return where + ", ".join(filter(None, parts))


def _analysis(fact: Mapping[str, Any]) -> str:
    return f"{fact.get('site')} on {_count(fact.get('rows'))} rows"


def _versioned(found: Mapping[str, Any]) -> Iterator[str]:
    """In our order: a file may have sorted them."""
    known = ["nb_sae", "Python", *_VERSIONED.values()]
    for name in [*(one for one in known if one in found), *(one for one in found if one not in known)]:
        yield f"{name} {found[name]}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _listed(texts: Iterable[str], separator: str = "; ") -> str:
    """The texts, each once; the first dozen of them."""
    different = list(dict.fromkeys(texts))
    more = f"{separator}and {len(different) - 12} more" if len(different) > 12 else ""
    return separator.join(different[:12]) + more
