"""The columns of every table about features across layers: the border between the SAE world and the table world."""

from __future__ import annotations

import polars as pl

from nb_sae import layers

LANES: list[str] = list(layers.LANES)
"""What a site holds: `layers.Lane`."""
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
        "how": pl.String,  # "top1", "top5", "random5", "permutation", "control", "control of top5" or "… of random5"
        "factor": pl.Float64,  # r: what the predecessor's activation is multiplied with; 0 turns it off
        "rows": pl.UInt64,  # rows on which the latent is active and its predecessor is
        "change": pl.Float64,  # AC = 1 − z_new / z_old, mean over those rows
        "success": pl.Float64,  # share of those rows on which the latent is off afterwards
        "loss": pl.Float64,  # relative change of the model's loss; null without one
    }
)

CHAIN_EFFECT = pl.Schema(
    {
        "chain": pl.UInt16,  # 0: the chain that was asked for; from 1 on controls
        "kind": pl.Enum(["chain", "control"]),
        "latent": pl.UInt32,  # where it ends, at the site that was asked for
        "before": pl.Float64,  # mean log-probability of the tokens, or mean cosine with the texts, without an edit
        "after": pl.Float64,  # with it
        "effect": pl.Float64,  # after − before
        "cost": pl.Float64,  # what else changed: KL(before ‖ after) in nats per token, or 1 − cosine of the embeddings
    }
)

GENERATIONS = pl.Schema(
    {
        "prompt": pl.String,
        "before": pl.String,
        "after": pl.String,
        "control": pl.String,  # with the first control chain; null without controls
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

NAME_KINDS = ["label", "name", "lens"]
"""The user's own label; an accepted name of the embedding's latent; a word of the vision lens, which is weaker."""

CONCEPT_CHAIN = pl.Schema(
    {
        **CHAIN,
        "name": pl.String,  # null where it has none that chance would not give
        "name_kind": pl.Enum(NAME_KINDS),
        "nearest": pl.String,  # of the lens: the nearest text, whether or not chance would give it
        "name_cosine": pl.Float64,  # of the name with the latent's direction, texts about their mean
        "name_p": pl.Float64,  # chance that a meaningless direction comes as near
    }
)

CONCEPT_FLOW = pl.Schema(
    {
        "step": pl.Int16,  # as in CHAIN: 0 for the latent asked for, negative towards the input
        "site": pl.String,
        "layer": pl.Int16,
        "lane": pl.Enum(LANES),
        "latent": pl.UInt32,
        "name": pl.String,
        "name_kind": pl.Enum(NAME_KINDS),
        "cosine": pl.Float32,  # with the neighbour that is nearer to step 0; null at step 0
        "input_id": pl.UInt32,
        "rows": pl.UInt16,  # of patches; null at the embedding
        "columns": pl.UInt16,
        "map": pl.List(pl.Float32),  # activation at every patch, row by row from the top left; null at the embedding
        "cls": pl.Float32,  # activation on the CLS token, or of the embedding; null without either
    }
)

MAP_AGREEMENT = pl.Schema(
    {
        "step": pl.Int16,  # of the target
        "source_site": pl.String,
        "source_latent": pl.UInt32,
        "target_site": pl.String,
        "target_latent": pl.UInt32,
        # "patches": rank correlation of the two maps, mean over pictures; "inputs": of the activations over pictures
        "over": pl.Enum(["patches", "inputs"]),
        "agreement": pl.Float64,  # null where the target is never active, or alike everywhere
        "inputs": pl.UInt32,  # pictures that count: those whose target map is not the same everywhere
        "null_mean": pl.Float64,  # the same of other latents of the source site, matched in density and activation
        "null_low": pl.Float64,  # 2.5th percentile
        "null_high": pl.Float64,
        "p": pl.Float64,  # (1 + controls that agree as well) / (1 + controls)
        "controls": pl.UInt32,
    }
)

RECOVERED = pl.Schema(
    {
        "site": pl.String,
        "k": pl.UInt32,  # active latents per row; null for a rule that sets no number
        "measure": pl.String,  # "cross_entropy" and "kl" (nats per token), "cosine" and "zero_shot" (share of inputs)
        "recovered": pl.Float64,  # 1: nothing is lost; 0: as bad as the ablation; null: undefined, see `reason`
        "clean": pl.Float64,  # of the model as it is
        "spliced": pl.Float64,  # with the rows of the site replaced by their reconstructions
        "ablated": pl.Float64,  # with the rows of the site replaced by 0 or by their mean
        "count": pl.UInt64,  # tokens predicted, or inputs
        "reason": pl.String,  # why `recovered` is null
    }
)
