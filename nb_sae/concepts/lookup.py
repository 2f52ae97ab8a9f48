"""One latent, however it was asked for."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from nb_sae.concepts.names import ConceptNames, find_name
from nb_sae.errors import ConfigError


def find_latent(which: int | str | Any, names: ConceptNames | None, d_sae: int) -> int:
    """The number of a latent, given by number or by name.

    Args:
        which: A number in [0, d_sae), or a name that `names` finds.
        names: From `name_concepts`; None where only numbers can be given.
        d_sae: Latents of the dictionary.

    Raises:
        ConfigError: neither a number nor a name, a number out of range, or a name without names.
        InputError: a name of several latents, or of none.
    """
    if isinstance(which, str):
        latent = find_name(names, which)
    else:
        if isinstance(which, bool | np.bool_):
            raise ConfigError(f"A latent was given as {which!r}; give its number or its name.")
        try:
            latent = operator.index(which)
        except TypeError:
            raise ConfigError(f"A latent was given as {which!r}; give its number or its name.") from None
    if not 0 <= latent < d_sae:
        raise ConfigError(f"Latent {latent} does not exist; this dictionary has 0 … {d_sae - 1}.")
    return latent
