"""Cuts the cards of some latents out of an analysis: the frames and pictures that a dashboard sends to the browser.

A card is a latent's histogram and its examples. Pictures and contexts that several cards share are sent once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from nb_sae.widgets import wire

INTERVALS = 10
PROMOTED = 10
_TOKEN_CHARS = 48
NOT_A_PATCH = -1
"""`at` of an example whose row is no patch (CLS, a pooled embedding) or whose context is not stored."""


@dataclass(frozen=True)
class Limits:
    """How much of the analysis a card shows."""

    top: int
    """Top examples of a latent."""
    interval: int
    """Examples of each of the ten intervals."""
    max_bytes: int | None = None
    """For all cards together, pictures included; None: no limit."""
    window: tuple[int, int] | None = None
    """Tokens kept before and after the peak of a text; None: the whole context."""
    promoted: int = PROMOTED
    """Promoted and suppressed tokens of each side; fewer where a sixth of `max_bytes` does not hold them."""


@dataclass
class Cards:
    """The cards of some latents, ready for `wire.pack`."""

    tables: dict[str, pl.DataFrame]
    thumbs: list[bytes]
    dropped: int = 0
    """Examples that did not fit into `Limits.max_bytes`."""

    def pack(self) -> tuple[dict[str, Any], bytes, dict[str, Any], bytes]:
        """Header and bytes of the tables, then of the pictures."""
        return *wire.pack(self.tables), *wire.pack_thumbs(self.thumbs)


def cut_cards(analysis: Any, latents: Sequence[int], limits: Limits) -> Cards:
    """The cards of `latents`, in that order.

    Where `max_bytes` does not hold all examples, every card gives up its last ones first: the first top examples and
    the first of each interval are kept longest.
    """
    chosen = pl.DataFrame({"latent": latents}, schema={"latent": pl.UInt32}).with_row_index("card")
    examples = _ranked(analysis.examples, chosen, limits)
    stats = chosen.join(analysis.latents, on="latent", how="left", maintain_order="left")
    scale = np.maximum(
        stats["max"].to_numpy(), _largest(examples["card"].to_numpy(), examples["act"].to_numpy(), len(latents))
    )
    promoted, spent = _promoted(analysis, chosen, limits)
    cut = _Cut(analysis, examples, scale, limits, spent=spent)
    kept = cut.run()
    cards = stats.select(
        "latent",
        "histogram",
        "histogram_max",
        pl.Series("scale", scale, pl.Float32),
        **_offered(examples, len(latents)),
    )
    tables = {"cards": cards, "examples": kept, "inputs": cut.inputs()}
    if analysis.modality == "text":
        tables["contexts"] = cut.contexts()
    if promoted is not None:
        tables["promoted"] = promoted
    return Cards(tables, cut.thumbs, examples.height - kept.height)


def _promoted(analysis: Any, chosen: pl.DataFrame, limits: Limits) -> tuple[pl.DataFrame | None, int]:
    """Promoted and suppressed tokens of the chosen latents with their bytes; None for an analysis without a lens."""
    frame = getattr(analysis, "promoted", None)
    if frame is None:
        return None, 0
    clean = pl.col("token").map_elements(lambda token: _shortened(wire.clean_text(token)), return_dtype=pl.String)
    lines = (
        frame.filter(pl.col("latent").is_in(chosen["latent"].implode()) & (pl.col("rank") < limits.promoted))
        .join(chosen, on="latent")
        .select(
            pl.col("card").cast(pl.UInt16),
            (pl.col("side").cast(pl.String) == "read").alias("reads"),
            (pl.col("sign").cast(pl.String) == "suppressed").alias("suppressed"),
            "rank",
            clean.fill_null(pl.format("<id {}>", "token_id")).alias("token"),
            "token_id",
            "logit",
            pl.col("p").cast(pl.Float32),
        )
        .sort("card", "reads", "suppressed", "rank")
    )
    for ranks in range(limits.promoted, 0, -1):
        kept = lines.filter(pl.col("rank") < ranks)
        size = len(wire.pack({"promoted": kept})[1])
        if limits.max_bytes is None or size <= limits.max_bytes // 6:
            return kept, size
    return lines.head(0), 0


def _shortened(token: str) -> str:
    return token if len(token) <= _TOKEN_CHARS else f"{token[:_TOKEN_CHARS]}…"


def _ranked(examples: pl.DataFrame, chosen: pl.DataFrame, limits: Limits) -> pl.DataFrame:
    """The examples of the chosen latents within the limits, the most important of every card first."""
    top = pl.col("kind").cast(pl.String) == "top"
    found = (
        examples.filter(pl.col("latent").is_in(chosen["latent"].implode()))
        .filter(pl.col("rank") < pl.when(top).then(limits.top).otherwise(limits.interval))
        .join(chosen, on="latent")
    )
    # Six top examples come before the first of each interval, and eight more before the second ones.
    order = pl.when(top).then(pl.col("rank").cast(pl.Float64)).otherwise(pl.col("rank") * 8.0 + 5.5)
    return found.with_columns(order.alias("order")).sort(
        "order", "card", pl.col("interval").cast(pl.Int8), descending=[False, False, True], maintain_order=True
    )


def _largest(card: np.ndarray, act: np.ndarray, cards: int) -> np.ndarray:
    found = np.zeros(cards)
    np.maximum.at(found, card, act)
    return found


def _offered(examples: pl.DataFrame, cards: int) -> dict[str, pl.Series]:
    """How many examples of both kinds the kernel could show for each card."""
    kind = (examples["kind"].cast(pl.String) == "top").to_numpy()
    card = examples["card"].to_numpy()
    return {
        "top_offered": pl.Series(np.bincount(card[kind], minlength=cards)).cast(pl.UInt32),
        "interval_offered": pl.Series(np.bincount(card[~kind], minlength=cards)).cast(pl.UInt32),
    }


@dataclass
class _Cut:
    """One walk over the examples that keeps what fits."""

    analysis: Any
    examples: pl.DataFrame
    scale: np.ndarray
    limits: Limits
    spent: int = 0
    """Bytes of `max_bytes` that are taken already."""
    thumbs: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        ids = self.examples["input_id"].unique()
        self._keys = _by_id(self.analysis.inputs, ids, "key")
        pictures = getattr(self.analysis, "pictures", None)
        self._pictures = {} if pictures is None else _by_id(pictures, ids, "webp", "width", "height")
        self._contexts = self._read_contexts(ids)
        self._input_rows: dict[int, dict[str, Any]] = {}
        self._context_rows: dict[tuple[int, int, int, int], dict[str, Any]] = {}
        self._bytes = self.spent

    def run(self) -> pl.DataFrame:
        """The examples that fit, one line each, as the browser reads them."""
        frame = self.examples
        values, places = frame["map"], frame["map_tokens"]
        lines = []
        columns = ("card", "interval", "rank", "input_id", "token", "act")
        for number, row in enumerate(frame.select(columns).iter_rows(named=True)):
            line = self._line(row, values[number], places[number])
            if line is None:
                break
            lines.append(line)
        schema = {
            "card": pl.UInt16, "interval": pl.Int8, "rank": pl.UInt16, "input": pl.UInt32, "token": pl.UInt32,
            "act": pl.Float32, "at": pl.Int32, "context": pl.Int32, "map_at": pl.List(pl.UInt16),
            "map": pl.List(pl.UInt8) if self.analysis.modality == "image" else pl.List(pl.Float32),
        }  # fmt: skip
        return pl.DataFrame(lines, schema=schema, orient="row").sort("card", "interval", "rank")

    def inputs(self) -> pl.DataFrame:
        """Key and picture of every input that is shown. `thumb` is -1 where there is no picture."""
        schema = {"input_id": pl.UInt32, "key": pl.String, "thumb": pl.Int32, "width": pl.UInt16, "height": pl.UInt16}
        return pl.DataFrame(list(self._input_rows.values()), schema=schema, orient="row")

    def contexts(self) -> pl.DataFrame:
        """The tokens of every context that is shown: `start` is the position of the first one in its context."""
        schema = {
            "start": pl.UInt32, "before": pl.Boolean, "after": pl.Boolean, "number": pl.UInt32,
            "tokens": pl.List(pl.String),
        }  # fmt: skip
        return pl.DataFrame(list(self._context_rows.values()), schema=schema, orient="row")

    def _line(self, row: dict[str, Any], values: pl.Series, places: pl.Series) -> tuple[Any, ...] | None:
        """One example, or None where it would not fit."""
        if self.analysis.modality == "image":
            at, where, shown, context = *self._heat(row, values, places), -1
            cost = 24 + len(shown)
            new_context = None
        else:
            at, where, shown, new_context = self._text(row, values, places)
            cost = 24 + 6 * len(shown)
            context = -1
            if new_context is not None:
                key, entry = new_context
                if key not in self._context_rows:
                    cost += sum(len(token.encode()) + 3 for token in entry["tokens"]) + 12
                context = entry["index"]
        picture = self._pictures.get(row["input_id"])
        is_new = row["input_id"] not in self._input_rows
        if is_new:
            cost += 64 + (len(picture["webp"]) if picture else 0)
        if self.limits.max_bytes is not None and self._bytes + cost > self.limits.max_bytes:
            return None
        self._bytes += cost
        if is_new:
            self._add_input(row["input_id"], picture)
        if new_context is not None:
            self._context_rows.setdefault(new_context[0], new_context[1])
        number = self._input_rows[row["input_id"]]["index"]
        return (
            row["card"], row["interval"], row["rank"], number, row["token"], row["act"], at, context, where, shown,
        )  # fmt: skip

    def _add_input(self, input_id: int, picture: dict[str, Any] | None) -> None:
        thumb = -1
        if picture is not None:
            thumb = len(self.thumbs)
            self.thumbs.append(picture["webp"])
        key = self._keys.get(input_id, {}).get("key")
        self._input_rows[input_id] = {
            "input_id": input_id,
            "key": wire.clean_text(key if key is not None else f"input {input_id}"),
            "thumb": thumb,
            "width": picture["width"] if picture else 0,
            "height": picture["height"] if picture else 0,
            "index": len(self._input_rows),
        }

    def _heat(self, row: dict[str, Any], values: pl.Series, places: pl.Series) -> tuple[int, list[int], list[int]]:
        """Patch of the peak, and the map as uint8 over the whole grid between 0 and the card's scale."""
        site = self.analysis.site
        if site.grid is None or site.pooled:
            return NOT_A_PATCH, [], []
        patches = site.grid[0] * site.grid[1]
        heat = np.zeros(patches, np.uint8)
        at = places.to_numpy().astype(np.int64) - site.prefix_tokens
        inside = (at >= 0) & (at < patches)
        heat[at[inside]] = wire.quantise(values.to_numpy()[inside], 0.0, float(self.scale[row["card"]]))
        peak = row["token"] - site.prefix_tokens
        if not inside.any():
            return NOT_A_PATCH, [], []
        return (peak if 0 <= peak < patches else NOT_A_PATCH), [], heat.tolist()

    def _text(self, row: dict[str, Any], values: pl.Series, places: pl.Series) -> tuple[Any, ...]:
        """Position of the peak among the shown tokens, and the active ones as positions and exact values."""
        positions = max(1, self.analysis.site.positions)
        number = 0 if self.analysis.site.pooled else row["token"] // positions
        tokens = self._contexts.get((row["input_id"], number))
        if tokens is None:
            return NOT_A_PATCH, [], [], None
        if self.analysis.site.pooled:
            low, high, peak = 0, len(tokens), NOT_A_PATCH
        else:
            peak = row["token"] - number * positions
            low, high = self._window(peak, len(tokens))
        key = (row["input_id"], number, low, high)
        entry = self._context_rows.get(key) or {
            "start": low, "before": low > 0, "after": high < len(tokens), "number": number,
            "tokens": [wire.clean_text(token) for token in tokens[low:high]], "index": len(self._context_rows),
        }  # fmt: skip
        if peak == NOT_A_PATCH:
            return peak, [], [], (key, entry)
        at = places.to_numpy().astype(np.int64) - number * positions - low
        acts = values.to_numpy()
        active = (acts > 0) & (at >= 0) & (at < high - low)
        return peak - low, at[active].tolist(), acts[active].tolist(), (key, entry)

    def _window(self, peak: int, tokens: int) -> tuple[int, int]:
        if self.limits.window is None:
            return 0, tokens
        before, after = self.limits.window
        return max(0, peak - before), min(tokens, peak + after + 1)

    def _read_contexts(self, ids: pl.Series) -> dict[tuple[int, int], list[str]]:
        contexts = getattr(self.analysis, "contexts", None)
        if contexts is None or self.analysis.modality != "text":
            return {}
        positions = max(1, self.analysis.site.positions)
        found = contexts.filter(pl.col("input_id").is_in(ids.implode()))
        pooled = self.analysis.site.pooled
        return {
            (input_id, 0 if pooled else start // positions): tokens
            for input_id, start, tokens in found.select("input_id", "start", "tokens").iter_rows()
        }


def _by_id(frame: pl.DataFrame, ids: pl.Series, *columns: str) -> dict[int, dict[str, Any]]:
    found = frame.filter(pl.col("input_id").is_in(ids.implode())).select("input_id", *columns)
    return {row["input_id"]: row for row in found.iter_rows(named=True)}


def choose_saved(latents: pl.DataFrame, count: int) -> list[int]:
    """The latents whose cards a saved view holds when the user names none.

    Levels take turns, each giving its latent with the largest maximum that is left; latents active on more than half
    of the rows come after all others, and dead ones are never chosen.
    """
    alive = latents.filter(~pl.col("dead")).with_columns(common=pl.col("density") > 0.5)
    turns = alive.sort("max", "latent", descending=[True, False]).with_columns(
        turn=pl.int_range(pl.len()).over("common", "level")
    )
    return turns.sort("common", "turn", "level")["latent"].head(count).to_list()
