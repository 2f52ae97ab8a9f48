"""The columns of every table of attribution and projection."""

from __future__ import annotations

import polars as pl

HEAD_WEIGHTS = pl.Schema(
    {
        "latent": pl.UInt32,
        "head": pl.UInt16,
        "share": pl.Float64,  # h_k(i): norm of what the head writes along the latent, over the sum of all heads
        "null": pl.Float64,  # the same of a random direction; 1 / heads where all heads write equally much
    }
)

HEAD_SCORES = pl.Schema(
    {
        "site": pl.String,  # of the attention
        "layer": pl.Int16,
        "head": pl.UInt16,
        "induction": pl.Float64,  # mean attention from a repeated token to the one after its first copy
        "previous": pl.Float64,  # mean attention to the token before
        "first": pl.Float64,  # mean attention to the first token, where heads rest
        "induction_null": pl.Float64,  # of a head that attends evenly to all before
        "previous_null": pl.Float64,
    }
)

INDUCTION = pl.Schema(
    {
        "site": pl.String,  # of the attention
        "layer": pl.Int16,
        "head": pl.UInt16,
        "prefix": pl.UInt16,  # tokens that are repeated before the one whose attention is measured, it included
        "induction": pl.Float64,  # mean attention from the last of them to the token after the first copy
        "null": pl.Float64,  # of a head that attends evenly
    }
)

DIRECT = pl.Schema(
    {
        "latent": pl.UInt32,
        "target": pl.UInt32,  # position whose pre-activation is explained
        "head": pl.UInt16,
        "source": pl.UInt32,  # position that is attended to
        "attention": pl.Float32,  # weight of the attention
        "contribution": pl.Float32,  # to the pre-activation
    }
)

DIRECT_PRE = pl.Schema(
    {
        "latent": pl.UInt32,
        "target": pl.UInt32,
        "pre": pl.Float64,  # (x − b_dec)·W_enc + b_enc of the row as the model gave it
        "bias": pl.Float64,  # the part of it that no head gives: b_enc − b_dec·W_enc and the attention's own bias
        "activation": pl.Float32,  # by the trained rule; 0 where it is not selected
    }
)

ATTRIBUTED = pl.Schema(
    {
        "latent": pl.UInt32,
        "attribution": pl.Float64,  # Σ over rows of z_i · D_i·∂m/∂x̂, in units of the metric
        "activation": pl.Float64,  # Σ over rows of z_i
        "rows": pl.UInt32,  # rows on which it is active
        "rank": pl.UInt32,  # by |attribution|
    }
)

ATTRIBUTED_TOKENS = pl.Schema(
    {
        "input_id": pl.UInt32,
        "token": pl.UInt32,
        "latent": pl.UInt32,  # null: the reconstruction error
        "activation": pl.Float32,
        "attribution": pl.Float64,
    }
)

FAITHFULNESS = pl.Schema(
    {
        "order": pl.Enum(["attribution", "random"]),
        "latents": pl.UInt32,  # how many are kept, the strongest first
        "recovered": pl.Float64,  # (m_n − m_none) / (m_all − m_none)
        "low": pl.Float64,  # 2.5th percentile over random orders; null for the order of attribution
        "high": pl.Float64,
    }
)

IDENTIFIABILITY = pl.Schema(
    {
        "layer": pl.Int16,
        "site": pl.String,
        "tokens": pl.Enum(["cls", "patches"]),
        "identifiability": pl.Float64,  # mean of 1 − rank(own class) / (classes − 1), rank from 0
        "null": pl.Float64,  # the same with random texts in place of the classes': 0.5
        "null_low": pl.Float64,  # 2.5th percentile over draws of random texts
        "null_high": pl.Float64,
        # share of tokens whose own-class logit, about the mean over the texts, grows from the block before; null at the
        # first
        "change": pl.Float64,
        "rows": pl.UInt64,
    }
)

NEURONS = pl.Schema(
    {
        "layer": pl.Int16,
        "neuron": pl.UInt32,
        # "write": what the neuron adds to the residual stream; "read": the row by which it reads the stream
        "side": pl.Enum(["write", "read"]),
        "sign": pl.Enum(["promoted", "suppressed"]),
        "rank": pl.UInt8,  # 0-based
        "token_id": pl.UInt32,
        "token": pl.String,  # null without a tokenizer
        "logit": pl.Float32,  # per unit of the neuron, about the mean over the vocabulary
        "z": pl.Float32,  # the logit in standard deviations of this neuron's logits over the vocabulary
        "p": pl.Float64,  # chance that the best token of a random direction has as large a |z|
    }
)

NEURON_AGREEMENT = pl.Schema(
    {
        "layer": pl.Int16,
        "side": pl.Enum(["write", "read"]),
        "neurons": pl.UInt64,
        "same": pl.Float64,  # share of neurons with the same most promoted token in both models
        "null": pl.Float64,  # the same if neurons of one model were paired with those of the other by chance
    }
)

LENS_TOP = pl.Schema(
    {
        "input_id": pl.UInt32,
        "layer": pl.Int16,
        "site": pl.String,
        "rank": pl.UInt16,  # 0-based
        "text": pl.String,
        "logit": pl.Float32,  # logit scale · cosine, as in zero-shot
        "probability": pl.Float32,  # softmax over the texts
    }
)

LENS_PATCHES = pl.Schema(
    {
        "input_id": pl.UInt32,
        "layer": pl.Int16,
        "site": pl.String,
        "text": pl.String,
        "rows": pl.UInt16,  # of patches
        "columns": pl.UInt16,
        "map": pl.List(pl.Float32),  # logit of every patch, row by row from the top left
        "cls": pl.Float32,  # logit of what the tower would answer after this block
    }
)
