"""What the neurons of MLPs read and write, in tokens, by the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from nb_sae.analysis.lens import SIDES, TokenLens, check_top, token_lines
from nb_sae.attribution.schema import NEURON_AGREEMENT, NEURONS
from nb_sae.errors import ConfigError, InputError
from nb_sae.models.parts import parts


def neuron_lens(model: Any, layers: int | Sequence[int] | None = None, *, top: int = 5, seed: int = 0) -> pl.DataFrame:
    """The tokens that each MLP neuron writes and reads, `schema.NEURONS`.

    Side "write" is what the neuron adds to the residual stream (a column of the down-projection), side "read" the row
    by which it reads the stream (the up-projection; of a gated MLP the gate, which decides whether it fires). Both go
    through the final norm and the unembedding as the latents of `nb_sae.logit_lens` do, with the same null. The norm
    before the MLP is left out on the reading side, as in the source.

    Args:
        model: A language model with an unembedding.
        layers: Numbers of blocks; None: all of them.
        top: Tokens per neuron, side and sign.
        seed: Of the null.

    Raises:
        ConfigError: a model without an unembedding, no such block, an MLP without rows of its own (experts), or a `top`
            that the table cannot hold.

    Source:
        "Decoding specialised feature neurons in LLMs with the final projection layer", which looks at the reading side.
    """
    check_top(top)
    lens, found = TokenLens(model), parts(model)
    wanted = range(len(found.blocks)) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    null = lens.null(seed=seed)
    frames = []
    for layer in wanted:
        weights = found.mlp(layer)
        if weights is None:
            raise ConfigError(
                f"The MLP of block {layer} of {model.name} has no reading and writing rows that nb_sae knows (a "
                "mixture of experts?). Leave this block out of layers=."
            )
        rows = dict(zip(("read", "write"), weights, strict=True))
        numbers = np.arange(len(rows["write"]))
        for side in SIDES:
            lines = token_lines(lens, rows[side], numbers, "neuron", side, top=top, null=null)
            frames.append(lines.with_columns(layer=pl.lit(layer)))
    if not frames:
        raise ConfigError("layers is empty. Name blocks, such as layers=[0, 1], or leave it out for all of them.")
    frame = pl.concat(frames).sort("layer", "neuron", "side", "sign", "rank")
    return frame.select(NEURONS.names()).cast(dict(NEURONS))  # pyright: ignore[reportArgumentType]


def neuron_agreement(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """How many neurons of two models of one shape promote the same token, by block and side; `NEURON_AGREEMENT`.

    Args:
        one: From `neuron_lens`, of a base model.
        other: The same of another model with the same tokens, such as one that was tuned from it.

    Raises:
        InputError: tables that are not of `neuron_lens`, or that share no neuron.
    """
    columns = [getattr(frame, "columns", []) for frame in (one, other)]
    wrong = [names for names in columns if not set(names) >= set(NEURONS)]
    if wrong:
        raise InputError(f"A table with columns {wrong[0]} was given; expected two of nb_sae.neuron_lens(model).")
    first, second = (
        frame.filter((pl.col("rank") == 0) & (pl.col("sign") == "promoted")).select(
            "layer", "side", "neuron", "token_id"
        )
        for frame in (one, other)
    )
    both = first.join(second, on=["layer", "side", "neuron"], suffix="_other")
    if not both.height:
        raise InputError("The two tables share no neuron. Give neuron_lens of the same blocks of both models.")
    same = both.group_by("layer", "side").agg(
        neurons=pl.len(), same=(pl.col("token_id") == pl.col("token_id_other")).mean()
    )
    counts = [
        both.group_by("layer", "side", pl.col(column).alias("token_id")).len(name)
        for column, name in (("token_id", "here"), ("token_id_other", "there"))
    ]
    pairs = counts[0].join(counts[1], on=["layer", "side", "token_id"])
    chance = pairs.group_by("layer", "side").agg(pairs=(pl.col("here").cast(pl.Float64) * pl.col("there")).sum())
    joined = same.join(chance, on=["layer", "side"], how="left")
    frame = joined.with_columns(null=pl.col("pairs").fill_null(0) / pl.col("neurons").cast(pl.Float64) ** 2)
    ordered = frame.sort("layer", "side").select(NEURON_AGREEMENT.names())
    return ordered.cast(dict(NEURON_AGREEMENT))  # pyright: ignore[reportArgumentType]
