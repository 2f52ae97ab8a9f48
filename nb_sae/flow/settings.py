"""Numbers that a user gave: refused where the border is, before anything is run."""

from __future__ import annotations

import operator
from typing import Any

from nb_sae.errors import ConfigError


def check_whole(least: int = 0, **given: Any) -> None:
    """Refuse what is no whole number from `least` on. Raises `ConfigError` that names the argument."""
    for name, value in given.items():
        try:
            number = operator.index(value)
        except TypeError:
            number = None
        if number is None or isinstance(value, bool) or number < least:
            raise ConfigError(f"{name}={value!r}: expected a whole number, {least:,} or more.")
