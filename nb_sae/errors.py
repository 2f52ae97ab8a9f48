"""What can go wrong, as one family of exceptions.

Every message says what was given, what was expected and what to do next. Each class is also the builtin
that a Python user would catch, so `except ValueError` keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NbSaeError(Exception):
    """Base of every error that nb_sae raises on purpose."""


class ConfigError(NbSaeError, ValueError):
    """A setting is outside what the method allows."""


class HookError(NbSaeError, LookupError):
    """A site does not exist in the model, or does not give rows."""


class ShapeError(NbSaeError, ValueError):
    """A tensor or an activation has a shape that cannot be read as rows."""


class InputError(NbSaeError, ValueError):
    """Images, texts or attributes cannot be used as given."""


class InputNotFoundError(NbSaeError, FileNotFoundError):
    """A folder or file of inputs is missing."""


class StoreError(NbSaeError, ValueError):
    """An activation store is not what was asked for."""


class CorruptShardError(StoreError, OSError):
    """A file of a store is truncated or altered."""


class PathExistsError(NbSaeError, FileExistsError):
    """Refusing to write over something that is already there."""


class NonFiniteError(NbSaeError, ValueError):
    """Activations hold NaN or infinity."""


class NotEnoughMemoryError(NbSaeError, MemoryError):
    """A step needs more memory than there is."""


class FormatError(NbSaeError, ValueError):
    """A saved file has another format or version."""


class MissingDependencyError(NbSaeError, ImportError):
    """An optional package is needed and not installed."""


class ReportError(NbSaeError, RuntimeError):
    """A notebook cannot be turned into a report."""


class WidgetError(NbSaeError, ValueError):
    """A dashboard was given something it cannot show."""


def closest(name: str, names: Iterable[str]) -> str:
    """A sentence that offers the names nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(str(name), [str(one) for one in names], n=3, cutoff=0.4)
    return f"Closest: {', '.join(near)}. " if near else ""
