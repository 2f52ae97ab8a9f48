"""Small attributions with planted contents, as `nb_sae.attribution` would make them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from widget_fakes import HOSTILE

from nb_sae.attribution import schema

WORDS = "The doctor said that the nurse was late because she had missed the first train of the morning ."
PROMPT = tuple(f" {word}" for word in WORDS.split())


@dataclass(frozen=True)
class FakeAttribution:
    """The tables of an attribution."""

    latents: pl.DataFrame
    tokens: pl.DataFrame
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FakeDirect:
    """The tables of a direct attribution."""

    frame: pl.DataFrame
    pre: pl.DataFrame
    about: dict[str, Any] = field(default_factory=dict)


def fake_attribution(
    *,
    positions: int = len(PROMPT),
    inputs: int = 1,
    active: int = 12,
    d_sae: int = 64,
    seed: int = 0,
    hostile: bool = False,
) -> FakeAttribution:
    """`active` latents of every token; every token has its line of the reconstruction error."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=d_sae)
    lines = []
    for input_id in range(inputs):
        for token in range(positions):
            loud = np.exp(rng.normal(-0.5, 1))
            for latent in rng.choice(d_sae, active, replace=False):
                act = rng.gamma(2.0, 1.0)
                lines.append((input_id, token, int(latent), act, float(act * weight[latent] * loud)))
            lines.append((input_id, token, None, None, float(rng.normal() * 0.2)))
    tokens = pl.DataFrame(lines, schema=schema.ATTRIBUTED_TOKENS, orient="row")
    latents = (
        tokens.drop_nulls("latent")
        .group_by("latent")
        .agg(pl.col("attribution").sum(), pl.col("activation").sum(), rows=pl.len())
        .with_columns(rank=pl.col("attribution").abs().rank("ordinal", descending=True) - 1)
        .sort("rank")
        .select(pl.col(name).cast(dtype) for name, dtype in schema.ATTRIBUTED.items())
    )
    about = {
        "method": "gradient",
        "metric": HOSTILE[0] if hostile else "logit ' she' − ' he'",
        "site": "gpt_neox.layers.2",
        "model": "demo-lm",
        "inputs": inputs,
        "value": 2.5,
        "error": 0.31,
        "bias": -0.12,
        "note": HOSTILE[2] if hostile else "",
    }
    return FakeAttribution(latents, tokens, about)


def fake_direct(
    *,
    latents: tuple[int, ...] = (3, 17, 40),
    heads: int = 4,
    positions: int = len(PROMPT),
    seed: int = 1,
    tokens: list[str] | None = None,
) -> FakeDirect:
    """Causal: sources up to the target, the last position."""
    rng = np.random.default_rng(seed)
    lines = []
    for latent in latents:
        target = positions - 1
        for head in range(heads):
            attention = rng.dirichlet(np.full(target + 1, 0.3))
            for source in range(target + 1):
                share = float(attention[source])
                lines.append((latent, target, head, source, share, share * float(rng.normal(0.2, 2))))
    frame = pl.DataFrame(lines, schema=schema.DIRECT, orient="row")
    sums = frame.group_by("latent", "target", maintain_order=True).agg(pl.col("contribution").cast(pl.Float64).sum())
    pre = sums.with_columns(bias=pl.lit(0.25), activation=pl.lit(1.0)).with_columns(pre=pl.col("contribution") + 0.25)
    about = {"site": "gpt_neox.layers.2.attention", "model": "demo-lm", "tokens": tokens}
    return FakeDirect(frame, pre.select(pl.col(one).cast(kind) for one, kind in schema.DIRECT_PRE.items()), about)


def fake_faithfulness(most: int = 64, seed: int = 2) -> pl.DataFrame:
    """The order of attribution above a band of random orders; both end at 1."""
    counts = [0, *[2**step for step in range(int(np.log2(most)) + 1)]]
    lines: list[tuple[Any, ...]] = []
    for n in counts:
        share = n / most
        lines.append(("attribution", n, 1 - (1 - share) ** 6, None, None))
        lines.append(
            ("random", n, share, max(0.0, share - 0.15 * (1 - share) * bool(n)), share + 0.2 * share * (1 - share))
        )
    return pl.DataFrame(lines, schema=schema.FAITHFULNESS, orient="row")
