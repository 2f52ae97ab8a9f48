"""P(attribute | Male) of the drawn faces, exactly: the tables, their rules, and sampling from them.

Owns the numbers. An entry of a table is the probability the samples really have, exclusivity rules included: within
a group at most one attribute holds (the entries are a categorical distribution, what is left is the group's
remainder), and what needs hair holds only where `Bald` does not (the entry is still the overall probability).
Given Male, the groups and the remaining attributes are independent of each other, but for Bald and what needs hair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import polars as pl

from nb_sae.errors import ConfigError, closest

Table = Mapping[str, tuple[float, float]]
"""Attribute → (P if not Male, P if Male)."""

P_MALE = 0.5
"""P(Male), in every table."""

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hair": ("Bald", "Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"),
        "texture": ("Straight_Hair", "Wavy_Hair"),
        "beard": ("No_Beard", "5_o_Clock_Shadow", "Goatee", "Mustache"),
        "neck": ("Wearing_Necklace", "Wearing_Necktie"),
    }
)
"""At most one of each group holds."""

REMAINDERS: Mapping[str, str] = MappingProxyType(
    {
        "hair": "hair of another colour",
        "texture": "no hair, or hair neither straight nor wavy",
        "beard": "a full beard",
        "neck": "nothing at the neck",
    }
)
"""What is drawn where no attribute of the group holds."""

NEEDS_HAIR = ("Straight_Hair", "Wavy_Hair", "Bangs")
"""Never together with Bald."""

BALANCED: Table = MappingProxyType(
    {
        "Eyeglasses": (0.35, 0.35),
        "Smiling": (0.5, 0.5),
        "Wearing_Hat": (0.25, 0.25),
        "Bald": (0.12, 0.12),
        "Black_Hair": (0.2, 0.2),
        "Blond_Hair": (0.2, 0.2),
        "Brown_Hair": (0.2, 0.2),
        "Gray_Hair": (0.15, 0.15),
        "Straight_Hair": (0.3, 0.3),
        "Wavy_Hair": (0.35, 0.35),
        "Bangs": (0.35, 0.35),
        "No_Beard": (0.5, 0.5),
        "5_o_Clock_Shadow": (0.12, 0.12),
        "Goatee": (0.14, 0.14),
        "Mustache": (0.14, 0.14),
        "Bushy_Eyebrows": (0.4, 0.4),
        "Arched_Eyebrows": (0.35, 0.35),
        "Wearing_Lipstick": (0.4, 0.4),
        "Heavy_Makeup": (0.35, 0.35),
        "Wearing_Earrings": (0.35, 0.35),
        "Wearing_Necklace": (0.3, 0.3),
        "Wearing_Necktie": (0.25, 0.25),
        "Rosy_Cheeks": (0.35, 0.35),
        "Mouth_Slightly_Open": (0.45, 0.45),
        "Narrow_Eyes": (0.35, 0.35),
        "Big_Nose": (0.4, 0.4),
        "Pale_Skin": (0.25, 0.25),
        "Young": (0.6, 0.6),
        "Chubby": (0.3, 0.3),
    }
)
"""Nothing depends on Male."""

BIASED: Table = MappingProxyType(
    {
        "Eyeglasses": (0.25, 0.45),
        "Smiling": (0.6, 0.4),
        "Wearing_Hat": (0.2, 0.3),
        "Bald": (0.02, 0.22),
        "Black_Hair": (0.18, 0.22),
        "Blond_Hair": (0.35, 0.08),
        "Brown_Hair": (0.2, 0.2),
        "Gray_Hair": (0.1, 0.2),
        "Straight_Hair": (0.25, 0.3),
        "Wavy_Hair": (0.5, 0.15),
        "Bangs": (0.45, 0.15),
        "No_Beard": (0.9, 0.35),
        "5_o_Clock_Shadow": (0.02, 0.18),
        "Goatee": (0.02, 0.16),
        "Mustache": (0.04, 0.18),
        "Bushy_Eyebrows": (0.2, 0.6),
        "Arched_Eyebrows": (0.5, 0.2),
        "Wearing_Lipstick": (0.7, 0.08),
        "Heavy_Makeup": (0.6, 0.05),
        "Wearing_Earrings": (0.55, 0.1),
        "Wearing_Necklace": (0.5, 0.08),
        "Wearing_Necktie": (0.05, 0.45),
        "Rosy_Cheeks": (0.45, 0.2),
        "Mouth_Slightly_Open": (0.45, 0.45),
        "Narrow_Eyes": (0.3, 0.3),
        "Big_Nose": (0.25, 0.5),
        "Pale_Skin": (0.25, 0.25),
        "Young": (0.65, 0.5),
        "Chubby": (0.25, 0.35),
    }
)
"""Most attributes depend on Male; Brown_Hair, Mouth_Slightly_Open, Narrow_Eyes and Pale_Skin do not."""

TABLES: Mapping[str, Table] = MappingProxyType({"biased": BIASED, "balanced": BALANCED})
DRAWN: tuple[str, ...] = tuple(BALANCED)
"""The attributes that can be seen, by their CelebA names."""
ATTRIBUTES: tuple[str, ...] = tuple(sorted((*DRAWN, "Male"), key=str.lower))
"""The columns of the attribute file: the drawn ones and Male."""


def resolve_table(table: str | Table = "biased") -> Table:
    """The table by its name, or the user's own: what it leaves out is taken from `BALANCED`.

    Raises:
        ConfigError: an unknown name or attribute, something that is not a pair of probabilities, or a group
            whose entries cannot all hold.
    """
    if isinstance(table, str):
        if table not in TABLES:
            raise ConfigError(
                f"table={table!r} is not known. {closest(table, TABLES)}Use 'biased', 'balanced' or a mapping "
                "{attribute: (p_if_not_male, p_if_male)}."
            )
        return TABLES[table]
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"table is a {type(table).__name__}; give 'biased', 'balanced' or a mapping "
            "{attribute: (p_if_not_male, p_if_male)}."
        )
    full = dict(BALANCED)
    for name, pair in table.items():
        full[name] = _checked(name, pair)
    _check_groups(full)
    return MappingProxyType(full)


def face_table(table: str | Table = "biased") -> pl.DataFrame:
    """P(attribute | Male) as the faces of this table really have it.

    Returns:
        `attribute, group, p_if_not_male, p_if_male, p` in the order of `DRAWN`; `group` is null where the attribute
        excludes no other, and `p` is the probability over both. A group's entries are a categorical distribution:
        its rest to 1 is what `REMAINDERS` says.
    """
    full = resolve_table(table)
    group = {name: key for key, names in GROUPS.items() for name in names}
    return pl.DataFrame(
        {
            "attribute": list(DRAWN),
            "group": [group.get(name) for name in DRAWN],
            "p_if_not_male": [float(full[name][0]) for name in DRAWN],
            "p_if_male": [float(full[name][1]) for name in DRAWN],
            "p": [(1 - P_MALE) * full[name][0] + P_MALE * full[name][1] for name in DRAWN],
        },
        schema_overrides={"group": pl.String},
    )


def sample_attributes(rng: np.random.Generator, table: Table) -> frozenset[str]:
    """The attributes (Male included) of one face; `table` as `resolve_table` gives it."""
    male = int(rng.random() < P_MALE)
    p = {name: pair[male] for name, pair in table.items()}
    held = {"Male"} if male else set()
    # One draw per decision, taken in any case: what one attribute does never shifts the chance of another.
    chance = dict(zip((*GROUPS, *DRAWN), rng.random(len(GROUPS) + len(DRAWN)), strict=True))
    held |= _one_of(GROUPS["hair"], p, chance["hair"])
    haired = 1.0 - p["Bald"]
    if "Bald" not in held:
        given_hair = {name: p[name] / haired for name in NEEDS_HAIR}
        held |= _one_of(GROUPS["texture"], given_hair, chance["texture"])
        held |= {"Bangs"} if chance["Bangs"] < given_hair["Bangs"] else set()
    held |= _one_of(GROUPS["beard"], p, chance["beard"]) | _one_of(GROUPS["neck"], p, chance["neck"])
    held |= {name for name in _SINGLE if chance[name] < p[name]}
    return frozenset(held)


_GROUPED = {name for names in GROUPS.values() for name in names}
_SINGLE = tuple(name for name in DRAWN if name not in _GROUPED and name not in NEEDS_HAIR)


def _one_of(names: tuple[str, ...], p: Mapping[str, float], chance: float) -> set[str]:
    edge = 0.0
    for name in names:
        edge += p[name]
        if chance < edge:
            return {name}
    return set()


def _checked(name: object, pair: object) -> tuple[float, float]:
    if name == "Male":
        raise ConfigError("table has an entry for 'Male'; the table is P(attribute | Male). Leave it out.")
    if name not in BALANCED:
        raise ConfigError(f"table has no drawn attribute {name!r}. {closest(str(name), DRAWN)}All: {', '.join(DRAWN)}.")
    try:
        low, high = pair  # pyright: ignore[reportGeneralTypeIssues]
        values = (float(low), float(high))
    except (TypeError, ValueError):
        raise ConfigError(f"table[{name!r}] is {pair!r}; give (p_if_not_male, p_if_male), two numbers.") from None
    if not all(math.isfinite(value) and 0.0 <= value <= 1.0 for value in values):
        raise ConfigError(f"table[{name!r}] is {pair!r}; both probabilities must lie in [0, 1].")
    return values


def _check_groups(table: Table) -> None:
    slack = 1e-9  # sums such as 0.7 + 0.2 + 0.1 must pass
    for male, label in enumerate(("not Male", "Male")):
        p = {name: pair[male] for name, pair in table.items()}
        haired = 1.0 - p["Bald"]
        limits = [(GROUPS["hair"], 1.0), (GROUPS["beard"], 1.0), (GROUPS["neck"], 1.0)]
        limits += [(GROUPS["texture"], haired), (("Bangs",), haired)]
        for names, limit in limits:
            total = sum(p[name] for name in names)
            if total > limit + slack:
                why = "they exclude each other" if limit == 1.0 else f"they need hair and P(Bald) is {p['Bald']:g}"
                raise ConfigError(
                    f"table, if {label}: {' + '.join(names)} = {total:g} is more than {limit:g}, but {why}. "
                    "Lower these entries; what the table leaves out is taken from BALANCED."
                )
