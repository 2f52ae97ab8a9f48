"""The frames of an attribution as an AttributionStrip sends them: tokens, the latents behind them, heads by sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from nb_sae.attribution import schema
from nb_sae.errors import WidgetError
from nb_sae.widgets import wire

TOKEN_CHARS = 80
RANKED = 300
"""Latents of the whole input that are listed."""
_ATTENTION = 65_535  # steps of an attention weight between 0 and 1


@dataclass(frozen=True)
class StripFrames:
    """Checked frames; nothing of them is a tensor.

    Attributes:
        latents: `ATTRIBUTED`, strongest first; empty where only heads and sources are given.
        tokens: `ATTRIBUTED_TOKENS`.
        direct: `DIRECT`; empty without.
        pre: `DIRECT_PRE`; empty where it is not known.
        faithfulness: `FAITHFULNESS`; empty without.
        texts: Token strings of every input.
        positions: Positions of every input.
        grid: Rows and columns of patches; None for text.
        names: Latent → name.
    """

    latents: pl.DataFrame
    tokens: pl.DataFrame
    direct: pl.DataFrame
    pre: pl.DataFrame
    faithfulness: pl.DataFrame
    texts: Mapping[int, Sequence[str]]
    positions: Mapping[int, int]
    grid: tuple[int, int] | None
    names: Mapping[int, str]

    @property
    def inputs(self) -> list[int]:
        """Every input, ascending."""
        return sorted(self.positions)

    @property
    def prefix_tokens(self) -> int:
        """Positions before the patches."""
        if self.grid is None:
            return 0
        return max(0, max(self.positions.values()) - self.grid[0] * self.grid[1])

    def shared(self) -> dict[str, pl.DataFrame]:
        """What does not depend on the input: the ranking of latents, faithfulness, and which heads are there."""
        listed = self.latents.head(RANKED)
        ranking = listed.select("latent", "attribution", "activation", "rows").with_columns(
            self._name(listed["latent"])
        )
        curve = self.faithfulness.select(
            (pl.col("order").cast(pl.String) == "random").alias("random"), "latents", "recovered", "low", "high"
        )
        return {"ranking": ranking, "faithfulness": curve, "pairs": self.pairs()}

    def of_inputs(self, inputs: Sequence[int], per_token: int) -> dict[str, pl.DataFrame]:
        """One line per position of these inputs, and the `per_token` strongest latents behind each."""
        places = pl.DataFrame(
            [(one, token) for one in inputs for token in range(self.positions[one])],
            schema={"input_id": pl.UInt32, "token": pl.UInt32},
            orient="row",
        ).with_row_index("line")
        found = self.tokens.join(places, on=["input_id", "token"], how="inner")
        of_latents = found.filter(pl.col("latent").is_not_null()).with_columns(
            size=pl.col("attribution").abs(),
            rank=pl.col("attribution").abs().rank("ordinal", descending=True).over("line"),
        )
        kept = pl.col("rank") <= per_token
        sums = of_latents.group_by("line").agg(
            total=pl.col("attribution").sum(),
            rest=pl.col("attribution").filter(~kept).sum(),
            rest_count=(~kept).sum().cast(pl.UInt32),
        )
        errors = found.filter(pl.col("latent").is_null()).group_by("line").agg(error=pl.col("attribution").sum())
        texts = [self._text(one, token) for one, token in places.select("input_id", "token").iter_rows()]
        tokens = (
            places.join(sums, on="line", how="left")
            .join(errors, on="line", how="left")
            .sort("line")
            .select(
                "input_id",
                "token",
                pl.col("total").fill_null(0.0),
                pl.col("rest").fill_null(0.0),
                pl.col("rest_count").fill_null(0),
                "error",
                text=pl.Series(texts, dtype=pl.String),
            )
        )
        lines = of_latents.filter(kept).sort("line", "rank")
        shares = lines.select("line", "latent", "attribution", "activation").with_columns(self._name(lines["latent"]))
        return {"tokens": tokens, "shares": shares}

    def pairs(self) -> pl.DataFrame:
        """`latent, target, sum, pre, bias, name` of every pre-activation that is taken apart, in the frame's order."""
        found = self.direct.group_by("latent", "target", maintain_order=True).agg(sum=pl.col("contribution").sum())
        known = self.pre.select("latent", "target", "pre", "bias")
        found = found.join(known, on=["latent", "target"], how="left", maintain_order="left")
        return found.with_columns(self._name(found["latent"]))

    def cells(self, latent: int, target: int) -> pl.DataFrame:
        """One line: contributions and attention weights of one pre-activation, heads × sources row by row."""
        found = self.direct.filter((pl.col("latent") == latent) & (pl.col("target") == target))
        if not found.height:
            raise WidgetError(f"Nothing is known of latent {latent} at token {target} by head. Choose one of the list.")
        head, source = found["head"].to_numpy(), found["source"].to_numpy()
        heads, sources = int(head.max()) + 1, int(source.max()) + 1
        contribution, attention = np.zeros((2, heads * sources))
        place = head.astype(np.int64) * sources + source
        # A pair that stands in several lines is their sum.
        np.add.at(contribution, place, found["contribution"].to_numpy())
        np.add.at(attention, place, found["attention"].to_numpy())
        steps = np.rint(np.clip(attention, 0, 1) * _ATTENTION)
        row = {"latent": [latent], "target": [target], "heads": [heads], "sources": [sources]}
        lists = {"contribution": [contribution.tolist()], "attention": [steps.astype(int).tolist()]}
        types = {"latent": pl.UInt32, "target": pl.UInt32, "heads": pl.UInt16, "sources": pl.UInt32}
        lists_types = {"contribution": pl.List(pl.Float32), "attention": pl.List(pl.UInt16)}
        return pl.DataFrame({**row, **lists}, schema={**types, **lists_types})

    def _text(self, input_id: int, token: int) -> str:
        if self.grid is not None:
            return ""
        texts = self.texts.get(input_id, ())
        text = wire.clean_text(texts[token]) if token < len(texts) else ""
        return text if len(text) <= TOKEN_CHARS else f"{text[:TOKEN_CHARS]}…"

    def _name(self, latents: pl.Series) -> pl.Series:
        return pl.Series("name", [self.names.get(latent) for latent in latents], pl.String)


def read_frames(
    attribution: Any, *, tokens: Any, names: Any, direct: Any, faithfulness: Any, grid: tuple[int, int] | None
) -> StripFrames:
    """Bring what the user gave to one form.

    Raises:
        WidgetError: a frame misses columns, or tokens and frames do not fit each other.
    """
    if attribution is not None and not hasattr(attribution, "tokens") and hasattr(attribution, "frame"):
        attribution, direct = None, attribution if direct is None else direct
    if attribution is None and direct is None:
        raise WidgetError("Nothing to show. Give what ns.attribute or ns.direct_attribution returns.")
    latents = _frame(getattr(attribution, "latents", None), schema.ATTRIBUTED, "attribution.latents", attribution)
    lines = _frame(getattr(attribution, "tokens", None), schema.ATTRIBUTED_TOKENS, "attribution.tokens", attribution)
    heads = _frame(getattr(direct, "frame", direct), schema.DIRECT, "direct", direct)
    pre = getattr(direct, "pre", None)
    before = _frame(pre, schema.DIRECT_PRE, "direct.pre", pre)
    curve = _frame(faithfulness, schema.FAITHFULNESS, "faithfulness", faithfulness)
    seen = dict(lines.group_by("input_id").agg(pl.col("token").max() + 1).iter_rows())
    if heads.height:
        last = int(heads.select(pl.max_horizontal("source", "target").max()).item()) + 1
        seen = {**(seen or {0: 0})}
        first = min(seen)
        seen[first] = max(seen[first], last)
    if tokens is None:
        tokens = (getattr(direct, "about", None) or {}).get("tokens")
    texts = _read_tokens(tokens, list(seen) or [0])
    if grid is not None and (len(grid) != 2 or min(grid) < 1):
        raise WidgetError(f"grid={grid!r} is not (rows, columns) of patches, such as (8, 8).")
    for input_id, strings in texts.items():
        if len(strings) < seen.get(input_id, 0):
            raise WidgetError(
                f"tokens has {len(strings)} strings for input {input_id}, the attribution speaks of token "
                f"{seen[input_id] - 1}. Give the strings of the same prompt: lm.token_strings(ids)."
            )
    positions = {one: max(count, len(texts.get(one, ()))) for one, count in (seen or dict.fromkeys(texts, 0)).items()}
    return StripFrames(
        latents.sort("rank") if latents.height else latents,
        lines,
        heads,
        before,
        curve.filter(pl.col("recovered").is_finite()),
        texts,
        positions or {0: 0},
        grid,
        _read_names(names),
    )


def square_grid(positions: int) -> tuple[int, int] | None:
    """The square of patches that this many positions hold, with or without one CLS token before them."""
    for patches in (positions - 1, positions):
        side = math.isqrt(max(patches, 0))
        if side > 1 and side * side == patches:
            return side, side
    return None


def _frame(found: Any, columns: pl.Schema, what: str, given: Any) -> pl.DataFrame:
    if found is None and given is None:
        return columns.to_frame()
    if not isinstance(found, pl.DataFrame):
        raise WidgetError(
            f"AttributionStrip was given {type(given).__name__}, whose {what} is no frame. "
            "Give what ns.attribute, ns.direct_attribution and Attribution.faithfulness return."
        )
    missing = [name for name in columns if name not in found.columns]
    if missing:
        raise WidgetError(f"{what} has no column {', '.join(missing)}; it has {', '.join(found.columns)}.")
    return found.select(pl.col(name).cast(dtype) for name, dtype in columns.items())


def _read_tokens(tokens: Any, inputs: Sequence[int]) -> dict[int, list[str]]:
    if tokens is None:
        return {}
    if isinstance(tokens, str) or not isinstance(tokens, Mapping | Sequence):
        raise WidgetError("tokens is one string per position, or a list of them per input: lm.token_strings(ids).")
    if isinstance(tokens, Mapping):
        listed = {int(input_id): list(strings) for input_id, strings in tokens.items()}
    elif tokens and not isinstance(tokens[0], str):
        listed = {input_id: list(strings) for input_id, strings in enumerate(tokens)}
    else:
        listed = {inputs[0]: list(tokens)}
    return {input_id: [str(one) for one in strings] for input_id, strings in listed.items()}


def _read_names(names: Any) -> dict[int, str]:
    if names is None:
        return {}
    if isinstance(names, pl.DataFrame):
        if missing := {"latent", "name"} - set(names.columns):
            raise WidgetError(f"names has no column {', '.join(sorted(missing))}; it has {', '.join(names.columns)}.")
        names = dict(names.select("latent", "name").iter_rows())
    if not isinstance(names, Mapping):
        raise WidgetError(f"names is a {type(names).__name__}. Give {{latent: name}} or a frame with latent and name.")
    return {int(latent): wire.clean_text(name) for latent, name in names.items() if name is not None}
