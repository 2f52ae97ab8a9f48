"""The faithfulness curve: how much of a metric the n strongest latents bring back, beside random orders of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from nb_sae.attribution.readout import Code, Readout
from nb_sae.attribution.schema import FAITHFULNESS
from nb_sae.errors import ConfigError

Fill = Literal["zero", "mean"]


def faithfulness(
    readout: Readout,
    order: NDArray[np.unsignedinteger],
    counts: int | Sequence[int] | None,
    *,
    fill: Fill,
    orders: int,
    seed: int,
) -> pl.DataFrame:
    """See `Attribution.faithfulness`; `order` holds the latents, the strongest first."""
    if fill not in ("zero", "mean"):
        raise ConfigError(f"fill={fill!r} is not known. Use 'zero' or 'mean'.")
    if orders < 1:
        raise ConfigError(f"orders={orders}: the random orders are the null; expected at least 1.")
    if not len(order):
        raise ConfigError("No latent is active in these inputs, so there is none to keep. Give other inputs.")
    kept = _counts(counts, len(order))
    means = _means(readout) if fill == "mean" else torch.zeros(readout.dictionary.d_sae)
    everything = _metric(readout, [], means)
    nothing = _metric(readout, order, means)
    if abs(everything - nothing) <= 1e-6 * max(abs(everything), abs(nothing)):
        raise ConfigError(
            f"{readout.label} is {everything:.6g} with all {len(order)} latents and {nothing:.6g} with none: there is "
            "nothing to recover. Choose a metric or a site on which it depends."
        )

    def recovered(latents: NDArray[np.unsignedinteger], count: int) -> float:
        return (_metric(readout, latents[count:], means) - nothing) / (everything - nothing) + 0.0  # no −0

    draw = np.random.default_rng(seed)
    random = [draw.permutation(order) for _ in range(orders)]
    by_chance = np.array([[recovered(one, count) for one in random] for count in kept])
    low, high = np.quantile(by_chance, (0.025, 0.975), axis=1)
    return pl.DataFrame(
        {
            "order": ["attribution"] * len(kept) + ["random"] * len(kept),
            "latents": [*kept, *kept],
            "recovered": [*(recovered(order, count) for count in kept), *by_chance.mean(1)],
            "low": [*[None] * len(kept), *low],
            "high": [*[None] * len(kept), *high],
        },
        schema=FAITHFULNESS,
    )


def _counts(counts: int | Sequence[int] | None, most: int) -> list[int]:
    if counts is None:
        return sorted({0, most, *(2**power for power in range(most.bit_length()))})
    asked = [counts] if isinstance(counts, int) else list(counts)
    wrong = [count for count in asked if not 0 <= count <= most]
    if wrong or not asked:
        raise ConfigError(f"counts={asked}: expected numbers from 0 to {most}, the latents that are active.")
    return sorted({int(count) for count in asked})


def _metric(readout: Readout, off: Sequence[int] | NDArray[np.unsignedinteger], means: Tensor) -> float:
    """Sum of the metric over all inputs with these latents set to their means."""
    device = readout.dictionary.device
    is_off = torch.zeros(readout.dictionary.d_sae, dtype=torch.bool, device=device)
    is_off[torch.as_tensor(np.asarray(off, dtype=np.int64), device=device)] = True
    filling = (means.to(device) * is_off) @ readout.dictionary.W_dec

    def change(code: Code) -> Tensor:
        return readout.base(code) - code.written(code.values * is_off[code.indices]) + filling * code.scale

    return sum(float(readout.values(batch, change).cpu().double().sum()) for batch in readout.tower)


def _means(readout: Readout) -> Tensor:
    """Mean activation of every latent over the rows of the inputs, those where it is 0 included."""
    total, rows = torch.zeros(readout.dictionary.d_sae, dtype=torch.float64), 0
    for batch in readout.tower:
        code = readout.code(batch)[1]
        total.index_add_(0, code.indices.flatten().cpu(), code.values.flatten().cpu().double())
        rows += len(code.x)
    return (total / max(rows, 1)).float()
