"""The columns of every table that `analyze` makes: the border between the SAE world and the table world."""

from __future__ import annotations

import polars as pl

LATENTS = pl.Schema(
    {
        "latent": pl.UInt32,  # number of the latent, 0 … d_sae-1
        "density": pl.Float64,  # fraction of rows on which it is active, 0–1
        "active_rows": pl.UInt64,  # how many rows that is
        "mean": pl.Float64,  # mean activation over the rows on which it is active; 0 if none
        "max": pl.Float64,  # largest activation; 0 if none
        # 0-based: the first of nested widths that holds it; without them the activation-weighted median of the first
        # budget that selects it
        "level": pl.UInt8,
        "dead": pl.Boolean,  # never active on the rows that were read
        "histogram": pl.List(pl.UInt64),  # counts of active rows in equal bins from 0 to `histogram_max`
        "histogram_max": pl.Float64,  # right edge of the last bin
    }
)

EXAMPLES = pl.Schema(
    {
        "latent": pl.UInt32,
        "kind": pl.Enum(["top", "interval"]),
        "interval": pl.Int8,  # 0 … 9 from weak to strong for kind "interval", -1 for "top"
        "rank": pl.UInt16,  # 0-based order inside (latent, kind, interval)
        "input_id": pl.UInt32,
        "token": pl.UInt32,  # the position with the activation `act`
        "act": pl.Float32,  # activation in model units
        "map_start": pl.UInt32,  # token number of the first entry of `map`
        "map": pl.List(pl.Float32),  # activation of this latent at every stored token of the same context
        "map_tokens": pl.List(pl.UInt32),  # token number of each entry of `map`
    }
)

QUALITY = pl.Schema(
    {
        "k": pl.UInt32,  # active latents per row allowed (a budget); null for a rule that sets no number, see l0
        "fvu": pl.Float64,  # Σ‖x−x̂‖² / Σ‖x−x̄‖²; for a transcoder x is the row that it should write
        "cosine": pl.Float64,  # mean over rows of cos(x, x̂), model units
        "l0": pl.Float64,  # measured: mean number of active latents per row
        "rows": pl.UInt64,
        "unused": pl.Float64,  # fraction of latents never selected within this budget
    }
)

PICTURES = pl.Schema(
    {
        "input_id": pl.UInt32,
        "width": pl.UInt16,  # of the thumbnail, pixels
        "height": pl.UInt16,
        "webp": pl.Binary,  # the thumbnail, re-encoded by us
    }
)

CONTEXTS = pl.Schema(
    {
        "input_id": pl.UInt32,
        "start": pl.UInt32,  # token number of the first position
        "tokens": pl.List(pl.String),  # one string per position; lone surrogates replaced by U+FFFD
    }
)

INPUTS = pl.Schema(
    {
        "input_id": pl.UInt32,
        "key": pl.String,  # file name, data set index or the user's id
    }
)

NOTES = pl.Schema(
    {
        "latent": pl.UInt32,
        "label": pl.String,  # what the user calls it; wins over every automatic name
        "rating": pl.Int8,  # 1 … 5, null where it was not rated
        "comment": pl.String,
    }
)

PROMOTED = pl.Schema(
    {
        "latent": pl.UInt32,
        # "write": the decoder row through the unembedding; "read": the encoder column against the same tokens
        "side": pl.Enum(["write", "read"]),
        "sign": pl.Enum(["promoted", "suppressed"]),
        "rank": pl.UInt8,  # 0-based
        "token_id": pl.UInt32,
        "token": pl.String,  # null without a tokenizer
        "logit": pl.Float32,  # per unit of activation, about the mean over the vocabulary
        "z": pl.Float32,  # the logit in standard deviations of this latent's logits over the vocabulary
        "p": pl.Float64,  # chance that the best token of a random direction has as large a |z|
    }
)
