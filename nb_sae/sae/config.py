"""What to train and for how long: two frozen, validated records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from nb_sae.errors import ConfigError

LevelWeights = Literal["uniform", "reverse"] | tuple[float, ...]

MIN_ROWS = 1_000_000
"""A store is repeated until this many rows were seen: with fewer, latents stay unused and FVU is far from its end."""


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """The autoencoder: its size, its nested budgets and how much each of them counts."""

    expansion: int | None = 8
    """Latents per input dimension; ignored if `d_sae` is given."""
    d_sae: int | None = None
    """Number of latents."""
    budgets: tuple[int, ...] | None = None
    """Nested k's, ascending: active latents per row. None: from `d_in`, see `default_budgets`. One budget: TopK."""
    level_weights: LevelWeights = "uniform"
    """Weight of each budget's loss: "uniform" (UW), "reverse" (RW: the sparsest counts most), or one number each."""
    encoder_scale: float = 0.2
    """The encoder starts as this multiple of the transposed unit decoder; 1.0 leaves far more latents unused."""

    def __post_init__(self) -> None:
        if self.d_sae is None and (self.expansion is None or self.expansion < 1):
            raise ConfigError(f"expansion={self.expansion} gives no latents. Give expansion ≥ 1 or d_sae.")
        if self.d_sae is not None and self.d_sae < 1:
            raise ConfigError(f"d_sae={self.d_sae} is not a number of latents. Give d_sae ≥ 1.")
        if not self.encoder_scale > 0:
            raise ConfigError(f"encoder_scale={self.encoder_scale} must be above 0.")
        if self.budgets is not None:
            _check_budgets(self.budgets, self.d_sae)
        _check_weights(self.level_weights, self.budgets)

    @classmethod
    def msae(
        cls,
        *,
        expansion: int | None = 8,
        d_sae: int | None = None,
        budgets: Sequence[int] | None = None,
        level_weights: Literal["uniform", "reverse"] | Sequence[float] = "uniform",
    ) -> Self:
        """Matryoshka SAE: one dictionary, nested top-k budgets.

        Source:
            Zaigrajew et al. 2025, Interpreting CLIP with Hierarchical Sparse Autoencoders, arXiv:2502.20578.
        """
        weights = level_weights if isinstance(level_weights, str) else tuple(map(float, level_weights))
        chosen = None if budgets is None else tuple(map(int, budgets))
        return cls(expansion=expansion, d_sae=d_sae, budgets=chosen, level_weights=weights)

    @classmethod
    def topk(cls, k: int, *, expansion: int | None = 8, d_sae: int | None = None) -> Self:
        """TopK SAE: the one-budget case.

        Source:
            Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093.
        """
        return cls(expansion=expansion, d_sae=d_sae, budgets=(int(k),))

    def resolve(self, d_in: int) -> SAEConfig:
        """The same settings with `d_sae` and `budgets` as numbers for rows of width `d_in`.

        Raises:
            ConfigError: a budget is larger than the number of latents.
        """
        d_sae = self.d_sae if self.d_sae is not None else (self.expansion or 0) * d_in
        budgets = self.budgets if self.budgets is not None else default_budgets(d_in, d_sae)
        return replace(self, d_sae=d_sae, budgets=budgets)

    @property
    def normalised_weights(self) -> tuple[float, ...]:
        """One weight per budget, summing to 1. Needs `resolve` first.

        Reverse weights are h, h−1, …, 1 over ascending budgets (the paper's RW).
        """
        levels = len(self.budgets or ())
        if self.level_weights == "uniform":
            raw: Sequence[float] = [1.0] * levels
        elif self.level_weights == "reverse":
            raw = [float(levels - i) for i in range(levels)]
        else:
            raw = self.level_weights
        return tuple(weight / sum(raw) for weight in raw)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()
        }
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how fast to train. Kept as provenance; not needed to use the result."""

    rows: int | None = None
    """Rows to see in total; a shorter source is repeated. None: one million, or the whole source if longer."""
    epochs: float | None = None
    """The same in passes over the source; give one of the two."""
    batch_rows: int | None = None
    """Rows per step. None: an eighth of the source, between 128 and 1,024, so that a small source gives many steps."""
    learning_rate: float = 3e-3
    """Peak of Adam's step size."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises from 0; shortened to a tenth of a short run."""
    decay_fraction: float = 0.2
    """The learning rate falls to 0, linearly, over this last part of the run."""
    dead_after_rows: int = 50_000
    """A latent that stays silent for this many rows counts as dead."""
    aux_weight: float = 1 / 32
    """Weight of the auxiliary loss, in which dead latents explain what the largest budget leaves (AuxK); 0 is off."""
    seed: int = 0
    """Of the initial weights and of the order of the rows."""
    log_points: int = 200
    """Lines in the log of a whole run."""

    def __post_init__(self) -> None:
        if self.rows is not None and self.epochs is not None:
            raise ConfigError(f"Both rows={self.rows} and epochs={self.epochs} are given. Give one of them.")
        for name in ("rows", "epochs", "batch_rows", "learning_rate", "dead_after_rows", "log_points"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value} must be above 0.")
        if not 0 <= self.decay_fraction <= 1 or self.warmup_steps < 0 or self.aux_weight < 0:
            raise ConfigError(
                f"decay_fraction={self.decay_fraction} must be in [0, 1], warmup_steps={self.warmup_steps} and "
                f"aux_weight={self.aux_weight} at least 0."
            )

    def resolve(self, source_rows: int) -> TrainConfig:
        """The same settings with `rows` and `batch_rows` as numbers for a source of this length."""
        batch_rows = self.batch_rows or min(1024, max(128, source_rows // 8))
        batch_rows = min(batch_rows, source_rows)
        if self.epochs is not None:
            rows = max(1, round(self.epochs * source_rows))
        else:
            rows = self.rows or max(MIN_ROWS, source_rows)
        return replace(self, rows=rows, epochs=None, batch_rows=batch_rows)

    @property
    def steps(self) -> int:
        """Number of optimiser steps. Needs `resolve` first."""
        if self.rows is None or self.batch_rows is None:
            raise ConfigError("The number of steps depends on the source. Call TrainConfig.resolve(len(source)) first.")
        return math.ceil(self.rows / self.batch_rows)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: warm-up, constant, linear decay to 0 just after the last step."""
        total = self.steps
        warmup = min(self.warmup_steps, total // 10)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        decay_steps = max(1.0, total * self.decay_fraction)
        fall = min(1.0, max(0.0, (total - step) / decay_steps)) if self.decay_fraction else 1.0
        return self.learning_rate * rise * fall

    def to_json(self) -> dict[str, Any]:
        """Plain values; `TrainConfig(**saved)` reads them."""
        return asdict(self)


def default_budgets(d_in: int, d_sae: int) -> tuple[int, ...]:
    """Powers of two from about d_in/24 to at most 2·d_in/3.

    Below d/24 a budget is a small part of the signal; far above it a dictionary becomes a basis, where PCA is better.
    """
    first = max(1, 2 ** round(math.log2(max(1.0, d_in / 24))))
    last = max(first, min(2 * d_in // 3, d_sae))
    budgets = []
    k = first
    while k <= last:
        budgets.append(min(k, d_sae))
        k *= 2
    return tuple(dict.fromkeys(budgets))


def _check_budgets(budgets: tuple[int, ...], d_sae: int | None) -> None:
    if not budgets or any(k < 1 for k in budgets) or list(budgets) != sorted(set(budgets)):
        raise ConfigError(f"budgets={budgets} must be ascending numbers ≥ 1, for example (16, 32, 64).")
    if d_sae is not None and budgets[-1] > d_sae:
        raise ConfigError(f"k={budgets[-1]} is larger than d_sae={d_sae}. Lower the budget or raise d_sae.")


def _check_weights(weights: LevelWeights, budgets: tuple[int, ...] | None) -> None:
    if isinstance(weights, str):
        if weights not in ("uniform", "reverse"):
            raise ConfigError(f"level_weights={weights!r}: use 'uniform', 'reverse' or one number per budget.")
        return
    if budgets is None or len(weights) != len(budgets):
        raise ConfigError(f"{len(weights)} level_weights for budgets={budgets}. Give budgets and one weight for each.")
    if any(weight < 0 for weight in weights) or not sum(weights) > 0:
        raise ConfigError(f"level_weights={weights} must not be negative and not all 0.")
