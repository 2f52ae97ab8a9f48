"""Which autoencoder to train: one frozen, validated record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

from nb_sae.errors import ConfigError

Sparsity = Literal["top_k", "batch_top_k", "relu", "jump_relu", "gated"]
BiasInit = Literal["mean", "geometric_median", "zeros"]
Loss = Literal["mse", "nmse"]
NamedWeights = Literal["auto", "uniform", "reverse", "first"]
LevelWeights = NamedWeights | tuple[float, ...]

ROWS_PER_LATENT = 16
"""Rows of the source for each latent from which `SAEConfig.msae()` encodes in rounds: with 3.5 of them the last round
of unseen rows made the reconstruction worse (FVU .118 to .431), with 35 it does not."""

LOOKS_PER_BUDGET = 4
"""Rounds in which `SAEConfig.msae()` fills each of its own budgets."""

BUDGETED: tuple[Sparsity, ...] = ("top_k", "batch_top_k")
"""The rules that keep a stated number of latents, and so can nest budgets."""


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """The autoencoder: its size, what keeps it sparse, what is nested and how much each level counts.

    The classmethods are the architectures; every field can also be set on top, `SAEConfig.topk(32, tied=True)`.
    """

    expansion: int | None = 8
    """Latents per input dimension; ignored if `d_sae` is given."""
    d_sae: int | None = None
    """Number of latents."""
    sparsity: Sparsity = "top_k"
    """What decides which latents are active."""
    budgets: tuple[int, ...] | None = None
    """Nested k's, ascending: active latents per row (the batch's mean with "batch_top_k"). None: `default_budgets`."""
    widths: tuple[int, ...] | None = None
    """Nested prefixes of the dictionary, ascending, the last is `d_sae`. None: one width. They compose with budgets."""
    level_weights: LevelWeights = "uniform"
    """Weight of each level's loss, always normalised: "uniform" (UW), "reverse" (RW: the sparsest counts most), "first"
    (the sparsest counts double), or one number per budget (per width if only widths are nested), or per pair, budgets
    outer and widths inner."""
    residual: bool | None = False
    """Each budget encodes what the budgets before it left, with the same encoder (`residual.py`): one product more per
    budget, and far less left. False: all budgets share one look at the row, as in the paper and for transcoders. None:
    rounds where the source has `ROWS_PER_LATENT` rows for each latent; with fewer they learn the rows by heart."""
    looks: int | None = None
    """Rounds in which each budget is filled, with residual=True: between budgets the encoder looks again at what is
    left. None: `LOOKS_PER_BUDGET` for the default budgets, 1 for budgets that are given."""
    scale_levels: bool | None = None
    """Every nested level learns one factor for its latents: few of them have to stand for what many say together. None:
    where the source has `ROWS_PER_LATENT` rows for each latent."""
    tied: bool = False
    """The encoder is the transposed decoder."""
    encoder_scale: float = 0.2
    """The encoder starts as this multiple of the transposed unit decoder; 1.0 leaves far more latents unused."""
    bias_init: BiasInit = "mean"
    """Where `b_dec` starts: the mean of the rows, their geometric median, or zero in the units of the model."""
    loss: Loss = "mse"
    """"mse", or "nmse": each row's error over its own square distance from the mean, as in the paper's code."""
    l1_weight: float = 0.1
    """"relu" and "gated": weight of mean_n Σ_j latent_j ‖W_dec_j‖ / √d, in normalised units."""
    target_l0: float | None = None
    """"jump_relu": active latents per row that the penalty aims at."""
    l0_weight: float = 1.0
    """"jump_relu": weight of (L0 / target_l0 − 1)²."""
    bandwidth: float = 0.1
    """"jump_relu": width, in normalised units, of the straight-through estimator's window around a threshold."""

    def __post_init__(self) -> None:
        if self.d_sae is None and (self.expansion is None or self.expansion < 1):
            raise ConfigError(f"expansion={self.expansion} gives no latents. Give expansion ≥ 1 or d_sae.")
        if self.d_sae is not None and self.d_sae < 1:
            raise ConfigError(f"d_sae={self.d_sae} is not a number of latents. Give d_sae ≥ 1.")
        for name, allowed in (("sparsity", Sparsity), ("bias_init", BiasInit), ("loss", Loss)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(f"{name}={getattr(self, name)!r}: use one of {', '.join(get_args(allowed))}.")
        for name in ("encoder_scale", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0.")
        for name in ("l1_weight", "l0_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative.")
        if self.budgets is not None:
            if self.sparsity not in BUDGETED:
                raise ConfigError(f"sparsity={self.sparsity!r} has no budgets; leave out budgets={self.budgets}.")
            _check_ascending("budgets", self.budgets, "(16, 32, 64)")
            if self.d_sae is not None and self.budgets[-1] > self.d_sae:
                raise ConfigError(
                    f"k={self.budgets[-1]} is larger than d_sae={self.d_sae}. Lower the budget or raise d_sae."
                )
        if self.widths is not None:
            _check_ascending("widths", self.widths, "(256, 512, 1024)")
            _check_last_width(self.widths, self.d_sae)
        if self.residual and (self.sparsity != "top_k" or self.widths is not None):
            raise ConfigError(
                f"residual=True goes with nested top-k budgets alone; sparsity={self.sparsity!r}, widths={self.widths} "
                "were given. Leave it out."
            )
        if self.looks is not None and self.looks < 1:
            raise ConfigError(f"looks={self.looks} rounds fill no budget. Give 1 or more.")
        if self.sparsity == "jump_relu" and not (self.target_l0 or 0) > 0:
            raise ConfigError(f"target_l0={self.target_l0}: JumpReLU needs the number of active latents to aim at.")
        _check_weights(self)

    @classmethod
    def msae(
        cls,
        *,
        expansion: int | None = 8,
        d_sae: int | None = None,
        budgets: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        level_weights: NamedWeights | Sequence[float] | None = None,
        residual: bool | None = None,
        **others: Any,
    ) -> Self:
        """Matryoshka SAE, our best settings: one dictionary, nested top-k budgets (and nested widths if given).

        `residual=None` is True for a source with enough rows (16 per latent) unless widths are given; the default
        budgets are then filled in four rounds each (`looks`). `level_weights=None` is "first" in rounds, else
        "uniform".
        Other libraries encode a row once: for them train with `residual=False`, or export the first round (with the
        default looks a quarter of the first budget).

        Source:
            Zaigrajew et al. 2025, Interpreting CLIP with Hierarchical Sparse Autoencoders, arXiv:2502.20578; nested
            widths: Bussmann et al. 2025, Learning Multi-Level Features with Matryoshka SAEs, arXiv:2503.17547.
        """
        if residual is None and widths is not None:
            residual = False
        if level_weights is None:
            level_weights = "auto"
        return cls(
            expansion=expansion,
            d_sae=d_sae,
            budgets=_integers(budgets),
            widths=_integers(widths),
            level_weights=level_weights if isinstance(level_weights, str) else tuple(map(float, level_weights)),
            residual=residual,
            **others,
        )

    @classmethod
    def msae_paper(
        cls,
        d_in: int,
        *,
        expansion: int = 8,
        level_weights: Literal["uniform", "reverse"] = "reverse",
        loss: Loss = "nmse",
    ) -> Self:
        """The paper's MSAE as it was coded, for reproduction and comparison; train it with `TrainConfig.msae_paper`.

        Budgets 64, 128, … d_sae, so the last level is a plain ReLU; the encoder starts at 0.01 of the decoder. The
        authors' later code uses loss="mse".

        Raises:
            ConfigError: fewer than 64 latents.
        """
        d_sae = expansion * d_in
        if d_sae < 64:
            raise ConfigError(
                f"d_in={d_in}, expansion={expansion} gives {d_sae} latents; the paper's budgets start at 64."
            )
        budgets = [64]
        while budgets[-1] * 2 <= d_sae:
            budgets.append(budgets[-1] * 2)
        if budgets[-1] != d_sae:
            budgets.append(d_sae)
        return cls(
            d_sae=d_sae,
            budgets=tuple(budgets),
            level_weights=level_weights,
            encoder_scale=0.01,
            scale_levels=False,
            loss=loss,
        )

    @classmethod
    def topk(cls, k: int, *, expansion: int | None = 8, d_sae: int | None = None, **others: Any) -> Self:
        """TopK SAE: the one-budget case.

        Source:
            Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093.
        """
        return cls(expansion=expansion, d_sae=d_sae, budgets=(int(k),), **others)

    @classmethod
    def batch_topk(
        cls, k: int | Sequence[int], *, expansion: int | None = 8, d_sae: int | None = None, **others: Any
    ) -> Self:
        """BatchTopK SAE: k active latents per row on average over a batch; at inference a threshold, estimated.

        Several k's are nested budgets; with `widths=` and one k it is the Matryoshka SAE of Bussmann et al.

        Source:
            Bussmann et al. 2024, BatchTopK Sparse Autoencoders, arXiv:2412.06410.
        """
        budgets = (int(k),) if isinstance(k, int) else _integers(k)
        return cls(expansion=expansion, d_sae=d_sae, sparsity="batch_top_k", budgets=budgets, **others)

    @classmethod
    def relu(
        cls, *, l1_weight: float = 0.1, expansion: int | None = 8, d_sae: int | None = None, **others: Any
    ) -> Self:
        """ReLU SAE with an L1 penalty weighted by the decoder's norms.

        Source:
            Conerly et al. 2024, Circuits Updates April 2024 (Anthropic), "Update on how we train SAEs".
        """
        return cls(expansion=expansion, d_sae=d_sae, sparsity="relu", l1_weight=l1_weight, **others)

    @classmethod
    def jump_relu(cls, target_l0: float, *, expansion: int | None = 8, d_sae: int | None = None, **others: Any) -> Self:
        """JumpReLU SAE: one learned threshold per latent, straight-through gradients, L0 driven to `target_l0`.

        Source:
            Rajamanoharan et al. 2024, Jumping Ahead, arXiv:2407.14435, sections 3 and appendix I (target L0).
        """
        return cls(expansion=expansion, d_sae=d_sae, sparsity="jump_relu", target_l0=float(target_l0), **others)

    @classmethod
    def gated(
        cls, *, l1_weight: float = 0.5, expansion: int | None = 8, d_sae: int | None = None, **others: Any
    ) -> Self:
        """Gated SAE: one bias decides whether a latent is active, another how strongly.

        Source:
            Rajamanoharan et al. 2024, Improving Dictionary Learning with Gated Sparse Autoencoders, arXiv:2404.16014.
        """
        return cls(expansion=expansion, d_sae=d_sae, sparsity="gated", l1_weight=l1_weight, **others)

    @classmethod
    def k_sparse(cls, k: int, *, expansion: int | None = 8, d_sae: int | None = None, **others: Any) -> Self:
        """k-sparse autoencoder: TopK with tied weights.

        Source:
            Makhzani and Frey 2013, k-Sparse Autoencoders, arXiv:1312.5663.
        """
        return cls(expansion=expansion, d_sae=d_sae, budgets=(int(k),), tied=True, **others)

    def resolve(self, d_in: int, d_out: int | None = None, *, rows: int | None = None) -> SAEConfig:
        """The same settings with what was left open set, for so many rows of width `d_in` (None: enough of them).

        Raises:
            ConfigError: a budget is larger than the number of latents, or the widths do not end at it.
        """
        d_sae = self.d_sae if self.d_sae is not None else (self.expansion or 0) * d_in
        budgets = self.budgets
        if budgets is None and self.sparsity in BUDGETED:
            budgets = default_budgets(d_in, d_sae)
        if self.widths is not None:
            _check_last_width(self.widths, d_sae)
        if self.tied and d_out not in (None, d_in):
            raise ConfigError(f"tied=True needs rows in and out of one width; they are {d_in} and {d_out}.")
        # One budget leaves nothing to a next one, and what a transcoder leaves is not of the rows that it reads.
        enough = rows is None or rows >= ROWS_PER_LATENT * d_sae
        wanted = enough if self.residual is None else self.residual
        residual = wanted and len(budgets or ()) > 1 and d_out is None
        scale_levels = enough if self.scale_levels is None else self.scale_levels
        looks = self.looks or (LOOKS_PER_BUDGET if residual and self.budgets is None else 1)
        weights = self.level_weights
        if weights == "auto":
            weights = "first" if residual else "uniform"
        found = {"d_sae": d_sae, "budgets": budgets, "residual": residual, "looks": looks if residual else 1}
        return replace(self, **found, level_weights=weights, scale_levels=scale_levels)

    @property
    def learns_scale(self) -> bool:
        """Whether there are factors of levels to learn: several nested levels of a rule with budgets."""
        nested = self.sparsity in BUDGETED and len(self.levels) > 1
        return nested and self.scale_levels is not False and not self.residual

    @property
    def levels(self) -> list[tuple[int | None, int | None]]:
        """`(budget, width)` of every level, sparsest first: budgets outer, widths inner; None where not nested."""
        return [(budget, width) for budget in self.budgets or (None,) for width in self.widths or (None,)]

    @property
    def normalised_weights(self) -> tuple[float, ...]:
        """One weight per level, summing to 1. Needs `resolve` first.

        Reverse weights are h, h−1, …, 1 over ascending budgets (the paper's RW), uniform over widths.
        """
        budgets, widths = len(self.budgets or (None,)), len(self.widths or (None,))
        outer, inner = (budgets, widths) if budgets > 1 or widths == 1 else (widths, 1)
        if self.level_weights in ("uniform", "auto"):
            raw: list[float] = [1.0] * (budgets * widths)
        elif self.level_weights == "first":
            raw = [1.0 + (i == 0) for i in range(outer) for _ in range(inner)]
        elif self.level_weights == "reverse":
            raw = [float(outer - i) for i in range(outer) for _ in range(inner)]
        elif len(self.level_weights) == budgets * widths:
            raw = list(self.level_weights)
        else:
            raw = [weight for weight in self.level_weights for _ in range(inner)]
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


def default_budgets(d_in: int, d_sae: int) -> tuple[int, ...]:
    """Powers of two from about d_in/24 to about d_in/3.

    Below d/24 a budget is a small part of the signal; far above it a dictionary becomes a basis, where PCA is better.
    """
    first = max(1, 2 ** round(math.log2(max(1.0, d_in / 24))))
    last = max(first, min(2 ** round(math.log2(max(1.0, d_in / 3))), d_sae))
    budgets = []
    k = first
    while k <= last:
        budgets.append(min(k, d_sae))
        k *= 2
    return tuple(dict.fromkeys(budgets))


def titled(sparsity: Sparsity, budgets: Sequence[int] | None, d_sae: int, transcoder: bool = False) -> str:
    """A name from rule and size: "MSAE 16…256, 3,072 latents"."""
    rules = {"relu": "ReLU", "jump_relu": "JumpReLU", "gated": "Gated", "top_k": "TopK", "batch_top_k": "BatchTopK"}
    rule = rules[sparsity]
    if budgets and len(budgets) > 1:
        rule = f"{'Batch ' if sparsity == 'batch_top_k' else ''}MSAE {budgets[0]}…{budgets[-1]}"
    elif budgets:
        rule = f"{rule} {budgets[0]}"
    return f"{rule}{' transcoder' if transcoder else ''}, {d_sae:,} latents"


def _integers(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(map(int, numbers))


def _check_ascending(name: str, numbers: tuple[int, ...], example: str) -> None:
    if not numbers or any(number < 1 for number in numbers) or list(numbers) != sorted(set(numbers)):
        raise ConfigError(f"{name}={numbers} must be ascending numbers ≥ 1, for example {example}.")


def _check_last_width(widths: tuple[int, ...], d_sae: int | None) -> None:
    if d_sae is not None and widths[-1] != d_sae:
        raise ConfigError(f"widths={widths} must end at d_sae={d_sae}: the widest prefix is the whole dictionary.")


def _check_weights(config: SAEConfig) -> None:
    weights = config.level_weights
    if isinstance(weights, str):
        if weights not in get_args(NamedWeights):
            raise ConfigError(f"level_weights={weights!r}: use 'uniform', 'reverse', 'first' or one number per level.")
        return
    budgets, widths = config.budgets, config.widths
    if budgets is None and widths is None:
        raise ConfigError(
            f"{len(weights)} level_weights but no levels. Give budgets (or widths) and one weight for each."
        )
    pairs = len(budgets or (None,)) * len(widths or (None,))
    allowed = {pairs, len(budgets) if budgets is not None and len(budgets) > 1 else pairs}
    if len(weights) not in allowed:
        raise ConfigError(
            f"{len(weights)} level_weights for budgets={budgets}, widths={widths}. "
            f"Give one weight for each: {' or '.join(map(str, sorted(allowed)))}."
        )
    if any(weight < 0 for weight in weights) or not sum(weights) > 0:
        raise ConfigError(f"level_weights={weights} must not be negative and not all 0.")
