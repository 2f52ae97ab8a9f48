"""For how long, how fast and in which precision to train: one frozen, validated record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from nb_sae.errors import ConfigError
from nb_sae.sae.config import ROWS_PER_LATENT, SAEConfig

MIN_ROWS = 1_000_000
"""A store is repeated until this many rows were seen: with fewer, latents stay unused and FVU is far from its end."""

_NESTED: dict[str, Any] = {"learning_rate": 6e-3, "betas": (0.5, 0.99), "principal_axes": True}
_OTHERS: dict[str, Any] = {"learning_rate": 3e-3, "betas": (0.9, 0.999), "principal_axes": False}
_FULL_RATE_LATENTS = 1536
_CLIP = 0.05
# What was tried and what it gave: docs/quality.md.

THRESHOLD_RATE = 0.01
"""How fast BatchTopK's threshold follows the batches, once 100 of them were seen."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how fast to train. Kept as provenance; not needed to use the result."""

    rows: int | None = None
    """Rows to see in total; a shorter source is repeated. None: one million, or the whole source if longer."""
    epochs: float | None = None
    """The same in passes over the source; give one of the two."""
    batch_rows: int | None = None
    """Rows per step. None: an eighth of the source, between 128 and 1,024, so that a small source gives many steps."""
    learning_rate: float | None = None
    """Peak of Adam's step size. None: 3e-3; for nested budgets 6e-3, less above 1,536 latents as 1 / √d_sae, if the
    source has 16 rows for each latent."""
    betas: tuple[float, float] | None = None
    """Adam's decay rates. None: (0.9, 0.999); where the learning rate is that of nested budgets (0.5, 0.99), as less
    momentum keeps more latents in use."""
    principal_axes: bool | None = None
    """Train along the principal axes of the rows, so that Adam measures its steps per axis; no result changes its
    meaning, the dictionary is turned back. None: where the learning rate is that of nested budgets."""
    eps: float = 1e-8
    """Adam's denominator offset."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises from 0; shortened to a tenth of a short run."""
    decay_fraction: float = 0.2
    """The learning rate falls to 0, linearly, over this last part of the run."""
    looks_from: float = 0.8
    """Several looks per budget (`SAEConfig.looks`) begin after this part of the run; before it each budget is one
    round. From the start on they leave more latents unused."""
    schedule: Literal["step", "epoch"] = "step"
    """"step", or "epoch": the rate changes only between passes over the source, as in the paper's code."""
    grad_clip: float | Literal["auto"] | None = "auto"
    """Largest norm of the gradient over all parameters. "auto": 0.05 for budgets in rounds, where a round that answers
    too strongly is answered too strongly by the next, else None, not clipped."""
    project_gradient: bool = False
    """Remove the part of each decoder row's gradient that lies along the row."""
    unit_decoder: Literal["after", "before"] = "after"
    """Decoder rows are brought to unit norm after the optimiser's step, or before it (the paper's code: the encoder is
    then scaled to match, and the forward pass sees rows that are not quite unit)."""
    ema_decay: float | None = None
    """The dictionary is an exponential moving average of the weights with this decay per step. None: the weights."""
    sparsity_warmup: float = 0.1
    """The L1 or L0 penalty rises from 0 over this first part of the run."""
    dead_after_rows: int = 50_000
    """A latent that stays silent for this many rows counts as dead."""
    aux_weight: float = 1 / 32
    """Weight of the auxiliary loss, in which dead latents explain what the largest budget leaves (AuxK); 0 is off."""
    resample_every: int | None = None
    """After so many rows dead latents start again at rows that are explained badly. None: never."""
    autocast: Literal["auto", "bfloat16"] | None = "auto"
    """Precision of the matrix products: "auto" is bfloat16 where the device computes in it and the sizes make it
    faster, None is the parameters' own."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters, gradients and moments."""
    seed: int = 0
    """Of the initial weights and of the order of the rows."""
    log_points: int = 200
    """Lines in the log of a whole run."""
    log_every: int | None = None
    """The same as a number of steps; it wins over `log_points`."""

    def __post_init__(self) -> None:
        if self.rows is not None and self.epochs is not None:
            raise ConfigError(f"Both rows={self.rows} and epochs={self.epochs} are given. Give one of them.")
        above_zero = ("rows", "epochs", "batch_rows", "learning_rate", "dead_after_rows", "log_points", "eps")
        for name in (*above_zero, "grad_clip", "resample_every", "log_every"):
            value = getattr(self, name)
            if value not in (None, "auto") and not value > 0:
                raise ConfigError(f"{name}={value} must be above 0.")
        if not 0 <= self.decay_fraction <= 1 or self.warmup_steps < 0 or self.aux_weight < 0:
            raise ConfigError(
                f"decay_fraction={self.decay_fraction} must be in [0, 1], warmup_steps={self.warmup_steps} and "
                f"aux_weight={self.aux_weight} at least 0."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay} must be between 0 and 1, for example 0.999.")
        if not 0 <= self.looks_from <= 1:
            raise ConfigError(f"looks_from={self.looks_from} must be in [0, 1], a part of the run.")
        if not 0 <= self.sparsity_warmup <= 1 or not all(0 <= beta < 1 for beta in self.betas or ()):
            raise ConfigError(f"sparsity_warmup={self.sparsity_warmup} and betas={self.betas} must be in [0, 1).")
        for name, allowed in (
            ("schedule", ("step", "epoch")),
            ("unit_decoder", ("after", "before")),
            ("autocast", ("auto", "bfloat16", None)),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: use one of {', '.join(map(repr, allowed))}.")

    @classmethod
    def msae_paper(cls, *, epochs: float = 30, batch_rows: int = 4096, seed: int = 42) -> Self:
        """The settings of the paper's code: AdamW at 1e-4, the rate changed once per epoch, no help for dead latents.

        Source:
            Zaigrajew et al. 2025, arXiv:2502.20578, and its public code.
        """
        return cls(
            epochs=epochs,
            batch_rows=batch_rows,
            learning_rate=1e-4,
            eps=6.25e-10,
            betas=(0.9, 0.999),
            principal_axes=False,
            warmup_steps=0,
            schedule="epoch",
            grad_clip=1.0,
            project_gradient=True,
            unit_decoder="before",
            aux_weight=0.0,
            autocast=None,
            seed=seed,
        )

    def resolve(self, source_rows: int, config: SAEConfig | None = None) -> TrainConfig:
        """The same settings with everything that was left open set, for a source of this length and an autoencoder."""
        batch_rows = self.batch_rows or min(1024, max(128, source_rows // 8))
        batch_rows = min(batch_rows, source_rows)
        if self.epochs is not None:
            rows = max(1, round(self.epochs * source_rows))
        else:
            rows = self.rows or max(MIN_ROWS, source_rows)
        nested = config is not None and config.sparsity == "top_k" and len(config.levels) > 1
        # Large steps learn few rows by heart: unseen ones had FVU .155 at k=32, with the smaller steps .008.
        nested = nested and source_rows >= ROWS_PER_LATENT * ((config.d_sae if config else None) or 1)
        recipe = dict(_NESTED if nested else _OTHERS)
        if nested and config is not None:
            recipe["learning_rate"] *= min(1.0, (_FULL_RATE_LATENTS / (config.d_sae or 1)) ** 0.5)
        open_ones = {name: value for name, value in recipe.items() if getattr(self, name) is None}
        if self.grad_clip == "auto":
            open_ones["grad_clip"] = _CLIP if config is not None and config.residual else None
        return replace(self, rows=rows, epochs=None, batch_rows=batch_rows, **open_ones)

    @property
    def steps(self) -> int:
        """Number of optimiser steps. Needs `resolve` first."""
        if self.rows is None or self.batch_rows is None:
            raise ConfigError("The number of steps depends on the source. Call TrainConfig.resolve(len(source)) first.")
        return math.ceil(self.rows / self.batch_rows)

    def rate_at(self, step: int, *, epoch_steps: int | None = None) -> float:
        """Learning rate of a step: warm-up, constant, linear decay to 0 just after the last step.

        `epoch_steps`, the steps of one pass over the source, is needed for schedule="epoch": decay then goes by whole
        epochs, (E − e) / (decay_fraction · E) from epoch int((1 − decay_fraction) · E) on.
        """
        total = self.steps
        if self.schedule == "epoch" and epoch_steps:
            epochs = max(1, round(total / epoch_steps))
            epoch = min(step // epoch_steps, epochs - 1)
            decays = epoch >= int((1 - self.decay_fraction) * epochs) and self.decay_fraction > 0
            fall = min(1.0, (epochs - epoch) / (self.decay_fraction * epochs)) if decays else 1.0
        else:
            decay_steps = max(1.0, total * self.decay_fraction)
            fall = min(1.0, max(0.0, (total - step) / decay_steps)) if self.decay_fraction else 1.0
        warmup = min(self.warmup_steps, total // 10)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return (self.learning_rate or _OTHERS["learning_rate"]) * rise * fall

    def sparsity_at(self, step: int) -> float:
        """Share of the sparsity penalty at a step: rises linearly from 0 to 1."""
        rising = self.steps * self.sparsity_warmup
        return min(1.0, step / rising) if rising else 1.0

    @property
    def log_steps(self) -> int:
        """Steps between two lines of the log. Needs `resolve` first."""
        return self.log_every or max(1, self.steps // self.log_points)

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
