"""The cards of the atlas: of each latent its exact numbers and its strongest examples, one line per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from nb_sae.widgets import wire
from nb_sae.widgets.cards import Limits, cut_cards

TOP = {"image": 6, "text": 5}
"""Strongest examples of a card."""
WINDOW = (14, 8)
"""Tokens kept before and after the peak of a text."""
Packed = tuple[dict[str, Any], bytes, dict[str, Any], bytes]
"""Header and bytes of the tables, then of the pictures."""


def pack_cards(analysis: Any, latents: Sequence[int], max_bytes: int | None = None) -> Packed:
    """The tables `facts` and `examples` of some latents, and their pictures.

    Where `max_bytes` does not hold all examples, every card gives up its weakest ones first.
    """
    cards = cut_cards(analysis, latents, Limits(TOP[analysis.modality], 0, max_bytes, WINDOW, 0))
    own, inputs = cards.tables["cards"], cards.tables["inputs"]
    numbers = ("latent", "density", "active_rows", "mean", "max", "dead")
    facts = own.select("latent", "scale").join(
        analysis.latents.select(numbers), on="latent", how="left", maintain_order="left"
    )
    examples = cards.tables["examples"]
    lines = examples.select(
        own["latent"].gather(examples["card"]),
        "act",
        "at",
        "map",
        "map_at",
        inputs["key"].gather(examples["input"]),
        inputs["thumb"].gather(examples["input"]),
    )
    if "contexts" in cards.tables:
        lines = pl.concat([lines, _passages(cards.tables["contexts"], examples["context"])], how="horizontal")
    return *wire.pack({"facts": facts, "examples": lines}), *wire.pack_thumbs(cards.thumbs)


def _passages(contexts: pl.DataFrame, rows: pl.Series) -> pl.DataFrame:
    """The tokens of each example and whether the text goes on around them; none where it is not stored."""
    stored = rows.to_list()
    texts = [contexts["tokens"][row].to_list() if row >= 0 else [] for row in stored]
    ends = {name: [int(row >= 0 and contexts[name][row]) for row in stored] for name in ("before", "after")}
    schema = {"tokens": pl.List(pl.String), "before": pl.UInt8, "after": pl.UInt8}
    return pl.DataFrame({"tokens": texts, **ends}, schema=schema)
