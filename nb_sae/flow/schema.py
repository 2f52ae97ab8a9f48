"""The columns of every table about features across layers: the border between the SAE world and the table world."""

from __future__ import annotations

import polars as pl

LANES = ["residual", "attention", "mlp", "embedding"]
"""What a site holds: the residual stream after a block, what attention or MLP adds to it, the final embedding."""
KINDS = ["translated", "processed", "newborn", "unexplained"]

EDGES = pl.Schema(
    {
        "source_site": pl.String,
        "source_latent": pl.UInt32,
        "target_site": pl.String,
        "target_latent": pl.UInt32,
        "cosine": pl.Float32,  # of the decoder rows; of an alternative rule, its own score (`about["rule"]` says which)
        "rank": pl.UInt16,  # 0-based among the sources of this target latent in this source site
        "p": pl.Float64,  # chance that the best of as many random rows is at least so near
        "above": pl.Boolean,  # whether the cosine reaches the threshold of this pair of sites
        "kind": pl.Enum(LANES),  # lane of the source: the route by which the feature comes
    }
)

FLOW_LATENTS = pl.Schema(
    {
        "site": pl.String,
        "latent": pl.UInt32,
        "layer": pl.Int16,  # number of the block, 0-based; of the embedding, the number of blocks
        "lane": pl.Enum(LANES),
        "kind": pl.Enum(KINDS),  # null outside the residual lane and where nothing lies before the site
        "s_residual": pl.Float32,  # s(R): largest cosine with the residual site before; null: no such dictionary
        "s_attention": pl.Float32,  # s(A): with the attention output of the same block
        "s_mlp": pl.Float32,  # s(M): with the MLP output of the same block
        "match_residual": pl.UInt32,  # the latent there; null where no cosine is above 0
        "match_attention": pl.UInt32,
        "match_mlp": pl.UInt32,
        "p_residual": pl.Float64,
        "p_attention": pl.Float64,
        "p_mlp": pl.Float64,
        "carried_to": pl.UInt32,  # latent of the next residual site (or the embedding) that it matches best; null: none
        "carried": pl.Float32,  # its cosine
        "p_carried": pl.Float64,  # chance that the best of as many random rows as that site has is at least so near
    }
)

FLOW_NULLS = pl.Schema(
    {
        "source_site": pl.String,
        "target_site": pl.String,
        "d_in": pl.UInt32,
        "sources": pl.UInt32,  # latents of the source dictionary
        "draws": pl.UInt32,  # random target rows that were simulated
        "mean": pl.Float64,  # mean largest cosine of a random row with as many random rows, simulated
        "expected": pl.Float64,  # the same by the formula of extreme values
        "q999": pl.Float64,  # 99.9th percentile, simulated
        "paper": pl.Float64,  # what the paper fixes: 0.5 for the residual lane, 0.15 for modules
        "threshold": pl.Float64,  # what is used
        "rule": pl.String,  # "null", "paper" or "given": which of them it is
        "targets_above": pl.UInt32,  # latents of the target site that reach it
        "targets": pl.UInt32,
    }
)

CHAIN = pl.Schema(
    {
        "step": pl.Int16,  # 0 for the latent asked for, negative towards the input
        "site": pl.String,
        "latent": pl.UInt32,
        "layer": pl.Int16,
        "lane": pl.Enum(LANES),
        "cosine": pl.Float32,  # with its neighbour that is nearer to step 0; null at step 0
        "p": pl.Float64,
        "above": pl.Boolean,  # null at step 0
    }
)

GROUPS = ["nowhere", "residual", "mlp", "attention", "residual+mlp", "residual+attention", "mlp+attention", "all"]
"""Which of the matched predecessors are active together with a latent (Laptev et al. 2025, section 4)."""

ACTIVATION_GROUPS = pl.Schema(
    {
        "site": pl.String,
        "latent": pl.UInt32,
        "group": pl.Enum(GROUPS),
        "rows": pl.UInt64,  # rows on which the latent is active and exactly these predecessors are
        "share": pl.Float64,  # of the rows on which the latent is active
        "expected": pl.Float64,  # the share if predecessors were active independently of the latent
    }
)

GROUP_TESTS = pl.Schema(
    {
        "site": pl.String,
        "score": pl.Enum(["s_residual", "s_attention", "s_mlp"]),
        "with_it": pl.UInt64,  # latents mostly active together with this predecessor
        "without_it": pl.UInt64,
        "effect": pl.Float64,  # rank-biserial: P(score of one with > score of one without) − P(<)
        "p": pl.Float64,  # Mann–Whitney U, two-sided
        "q_value": pl.Float64,
    }
)

DEACTIVATION = pl.Schema(
    {
        "site": pl.String,  # of the latent that is watched
        "latent": pl.UInt32,
        "source_site": pl.String,
        "source_latent": pl.UInt32,
        "how": pl.String,  # "top1", "top5", "random5", "permutation", "control"
        "factor": pl.Float64,  # r: what the predecessor's activation is multiplied with; 0 turns it off
        "rows": pl.UInt64,  # rows on which the latent is active and its predecessor is
        "change": pl.Float64,  # AC = 1 − z_new / z_old, mean over those rows
        "success": pl.Float64,  # share of those rows on which the latent is off afterwards
        "loss": pl.Float64,  # relative change of the model's loss; null without one
    }
)

TRANSCODED = pl.Schema(
    {
        "source_site": pl.String,
        "target_site": pl.String,
        "rule": pl.String,  # "top1", "topk", "permutation", "correlation", "random"
        "explained": pl.Float64,  # 1 − Σ‖x_B − x̂_B‖² / Σ‖x_B − x̄_B‖²
        "explained_own": pl.Float64,  # by the target's own dictionary: what could be reached at most
        "rows": pl.UInt64,
    }
)

TREE = pl.Schema(
    {
        "parent": pl.UInt32,
        "child": pl.UInt32,
        "parent_level": pl.UInt8,
        "child_level": pl.UInt8,
        "both_rows": pl.UInt64,
        "conditional": pl.Float64,  # P(parent active | child active)
        "base_rate": pl.Float64,  # P(parent active)
        "lift": pl.Float64,
        "p_value": pl.Float64,
        "q_value": pl.Float64,
    }
)

LAYER_QUALITY = pl.Schema(
    {
        "site": pl.String,
        "layer": pl.Int16,
        "lane": pl.Enum(LANES),
        "k": pl.UInt32,  # budget; null for a rule that sets no number
        "fvu": pl.Float64,
        "l0": pl.Float64,
        "dead": pl.Float64,  # share of latents never selected within this budget
        "loss_recovered": pl.Float64,  # of cross-entropy (language models) or cosine (CLIP); null: not measured
        "rows": pl.UInt64,
    }
)
