"""Which settings may change while a session is under way, and why the others may not."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from nb_sae.errors import ConfigError, closest
from nb_sae.sae.config import SAEConfig
from nb_sae.sae.training import TrainConfig

_SHAPE = "the weights and the optimiser's moments have its shape"
_START = "it only says where training starts"
FIXED = {
    "expansion": _SHAPE,
    "d_sae": _SHAPE,
    "tied": _SHAPE,
    "sparsity": "its parameters and counters are others",
    "dtype": "weights and moments are kept in it",
    "encoder_scale": _START,
    "bias_init": _START,
    "principal_axes": "the weights are written along them",
    "residual": "the encoder learned for one or for the other",
    "scale_levels": "its factors belong to the weights",
    "seed": "the weights started from it and the order of the rows follows it",
    "batch_rows": "the schedule and the position in the source count batches of it",
    "epochs": "the plan is kept in rows; change rows=, or call extend(rows=…)",
}
"""Settings that stay as they are, and why."""


def changed(
    config: SAEConfig, train: TrainConfig, settings: dict[str, Any], *, d_in: int, d_out: int | None, rows_seen: int
) -> tuple[SAEConfig, TrainConfig]:
    """Both records with some settings replaced.

    Raises:
        ConfigError: a setting does not exist, may not change, or has a value outside the method.
    """
    ours = {one.name for one in fields(SAEConfig)}
    theirs = {one.name for one in fields(TrainConfig)}
    for name in settings:
        if name in FIXED:
            raise ConfigError(
                f"{name} cannot change while a session is under way: {FIXED[name]}. "
                "Start a new session with it to compare."
            )
        if name not in ours | theirs:
            raise ConfigError(f"{name!r} is no setting. {closest(name, (ours | theirs) - set(FIXED))}")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    new_config = replace(config, **{name: value for name, value in plain.items() if name in ours})
    new_train = replace(train, **{name: value for name, value in plain.items() if name in theirs})
    if new_train.rows is None or new_train.rows <= rows_seen < (train.rows or 0):
        raise ConfigError(f"rows={new_train.rows}: {rows_seen:,} rows were seen already. Give a larger total.")
    new_config = new_config.resolve(d_in, d_out)
    if (new_config.learns_scale, new_config.residual) != (config.learns_scale, config.residual):
        raise ConfigError(
            f"{len(config.levels)} and {len(new_config.levels)} levels: only several levels have scales that are "
            "learned, or leave something to the next. Keep to several or to one, or start a new session."
        )
    return new_config, new_train


def changeable(config: SAEConfig, train: TrainConfig) -> dict[str, Any]:
    """The settings that may change while a session is under way, with their values now; tuples as lists."""
    found = {one.name: getattr(record, one.name) for record in (train, config) for one in fields(record)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    return {name: value for name, value in plain.items() if name not in FIXED}


def differences(saved: Any, given: Any) -> str:
    """The fields in which two settings differ, for a reader; empty if they are equal."""
    names = [one.name for one in fields(saved) if getattr(saved, one.name) != getattr(given, one.name)]
    return ", ".join(f"{name}={getattr(given, name)!r} (saved: {getattr(saved, name)!r})" for name in names)
