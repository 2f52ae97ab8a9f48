"""The columns of every table of names, search, steering and bias. Missing means null, never a magic number."""

from __future__ import annotations

import polars as pl

NAMES = pl.Schema(
    {
        "latent": pl.UInt32,
        "name": pl.String,  # the word whose embedding is nearest to the latent's direction
        "cosine": pl.Float64,  # of that word
        "margin": pl.Float64,  # cosine less that of the second word
        "ratio": pl.Float64,  # cosine over that of the second word; null where the second is not above 0
        "runner_ups": pl.List(pl.String),  # the next words, best first
        "runner_up_cosines": pl.List(pl.Float64),
        "mean": pl.Float64,  # mean activation where active; null without an analysis
        "density": pl.Float64,  # fraction of rows on which it is active; null without an analysis
        "p": pl.Float64,  # chance that a direction of the null has a score as high
        "accepted": pl.Boolean,
        "data_name": pl.String,  # the attribute of labelled data that it separates best; null where not checked
        "data_auc": pl.Float64,  # its AUC, 0.5 is chance
        "data_p": pl.Float64,  # under permuted labels, corrected for the number of attributes
        "agrees": pl.Boolean,  # whether the word and the attribute say the same; null where either is missing
    }
)

HUBS = pl.Schema(
    {
        "word": pl.String,
        "mean_cosine": pl.Float64,  # to random directions of the null
        "null_share": pl.Float64,  # share of null directions that it names
        "latent_share": pl.Float64,  # share of the latents that it names
        "hub": pl.Boolean,
    }
)

NULL = pl.Schema({"quantile": pl.Float64, "cosine": pl.Float64, "margin": pl.Float64, "score": pl.Float64})

COUNTS = pl.Schema(
    {
        "dictionary": pl.String,
        "latents": pl.UInt32,  # live ones that were named
        "concepts": pl.UInt32,  # latents with an accepted name
        "words": pl.UInt32,  # different accepted words
        "expected_by_chance": pl.Float64,  # concepts of as many directions of the null
    }
)

HITS = pl.Schema(
    {
        "rank": pl.UInt32,  # 0-based, after the edit
        "row": pl.UInt32,  # row of the store
        "input_id": pl.UInt32,
        "token": pl.UInt32,
        "key": pl.String,
        "score": pl.Float64,  # cosine to the edited query
        "score_before": pl.Float64,  # cosine to the query as it was
        "rank_before": pl.UInt32,  # among all rows, 0-based
        "shift": pl.Int64,  # rank_before − rank: above 0 it rose
        "gained": pl.Boolean,  # not among the k hits of the unedited query
    }
)

CONTRIBUTIONS = pl.Schema(
    {
        "row": pl.UInt32,
        "part": pl.Enum(["latent", "bias", "error"]),  # the error term is what the dictionary does not explain
        "latent": pl.UInt32,  # null for bias and error
        "name": pl.String,
        "contribution": pl.Float64,  # those of a row add up to its score
    }
)

STEERING = pl.Schema(
    {
        "latent": pl.UInt32,
        "kind": pl.Enum(["latent", "control"]),
        "strength": pl.Float64,  # in the unit that the curve's `about` names
        "prompt": pl.String,  # null in lines that are about the embedding, not about a prompt
        "measure": pl.Enum(["probability", "cosine"]),  # of the prompt; to the original
        "mean": pl.Float64,
        "low": pl.Float64,  # 2.5 % quantile over rows
        "high": pl.Float64,
        "rows": pl.UInt32,
    }
)

ASSOCIATION = pl.Schema(
    {
        "concept": pl.String,
        "latent": pl.UInt32,
        "group": pl.String,  # "Male", "race=Black", or "age" for a continuous target
        "given": pl.String,  # what it is conditional on; null: nothing
        "effect": pl.Float64,  # rank-biserial = 2 AUC − 1 (continuous target: Spearman's rank correlation)
        "ci_low": pl.Float64,
        "ci_high": pl.Float64,
        "difference": pl.Float64,  # standardised difference of means (continuous: per standard deviation, Pearson's r)
        "n": pl.UInt32,  # in the group
        "n_rest": pl.UInt32,
        "missing": pl.UInt32,  # rows dropped because a label was missing
        "base_rate": pl.Float64,  # share of the group
        "density": pl.Float64,  # share of the group in which the concept is active
        "density_rest": pl.Float64,
        "p_value": pl.Float64,
        "q_value": pl.Float64,  # Benjamini–Hochberg over this table, times the number of tables that test
        "masked": pl.Boolean,  # a side is below the minimum n: numbers are null
    }
)

RELIANCE = pl.Schema(
    {
        "concept": pl.String,
        "latent": pl.UInt32,
        "output": pl.String,  # the class whose probability is meant
        "effect": pl.Float64,  # mean over rows of p(concept at high) − p(concept at low)
        "ci_low": pl.Float64,
        "ci_high": pl.Float64,
        "low": pl.Float64,  # activation it is set to: 0, or the smallest observed
        "high": pl.Float64,  # 99th percentile over rows on which it is active
        "reconstruction": pl.Float64,  # p(x̂) − p(x) alone, mean over rows; the effect does not contain it
        "n": pl.UInt32,
        "controls": pl.UInt32,  # live latents matched in density and activation
        "control_low": pl.Float64,  # 2.5 % and 97.5 % of their effects
        "control_high": pl.Float64,
        "p_value": pl.Float64,  # against probes of shuffled labels; of a classifier that was given, as p_controls
        "q_value": pl.Float64,
        "p_controls": pl.Float64,  # against the controls
    }
)

CURVES = pl.Schema(
    {
        "concept": pl.String,
        "latent": pl.UInt32,
        "output": pl.String,
        "value": pl.Float64,  # activation the concept is set to
        "mean": pl.Float64,  # probability of the output, less that at value 0
        "ci_low": pl.Float64,
        "ci_high": pl.Float64,
        "control_low": pl.Float64,
        "control_high": pl.Float64,
    }
)

IMAGE_CURVES = pl.Schema(
    {
        "concept": pl.String,
        "latent": pl.UInt32,
        "output": pl.String,
        "row": pl.UInt32,
        "input_id": pl.UInt32,
        "value": pl.Float64,
        "probability": pl.Float64,
    }
)

ERRORS = pl.Schema(
    {
        "group": pl.String,  # "Male", "not Male", "Male × Young"
        "concept": pl.String,  # null: the group as a whole
        "level": pl.String,  # "on", "off"; null where there is no concept
        "n": pl.UInt32,
        "n_positive": pl.UInt32,
        "base_rate": pl.Float64,
        "accuracy": pl.Float64,
        "accuracy_low": pl.Float64,
        "accuracy_high": pl.Float64,
        "tpr": pl.Float64,
        "tpr_low": pl.Float64,
        "tpr_high": pl.Float64,
        "fpr": pl.Float64,
        "fpr_low": pl.Float64,
        "fpr_high": pl.Float64,
        "calibration": pl.Float64,  # mean predicted probability − base rate
        "ece": pl.Float64,  # expected calibration error, ten equal bins
        "masked": pl.Boolean,
    }
)

RETRIEVAL = pl.Schema(
    {
        "query": pl.String,
        "k": pl.UInt32,
        "removed": pl.String,  # concepts that were removed, joined by ", "; null: none
        "max_skew": pl.Float64,  # max over groups of log(share among the k / share overall)
        "parity_gap": pl.Float64,  # largest − smallest selection rate of the groups
        "chance_skew": pl.Float64,  # 97.5 % quantile of max_skew of k random rows
        "shares": pl.List(pl.Float64),  # of each group among the k, in the order of `groups`
        "chance_parity": pl.Float64,  # 97.5 % quantile of parity_gap of k random rows
        "p_value": pl.Float64,  # chance that k random rows have a max_skew as high
        "q_value": pl.Float64,  # as in ASSOCIATION
    }
)

CONTROLS = pl.Schema(
    {
        "concept": pl.String,
        "latent": pl.UInt32,
        "output": pl.String,
        "control": pl.UInt32,  # the live latent that it is compared with; null: itself, in a probe of shuffled labels
        "density": pl.Float64,  # of the control
        "mean": pl.Float64,  # activation of the control where it is active
        "effect": pl.Float64,  # of the control, over its own observed range
    }
)

CLASS_ERRORS = pl.Schema({"output": pl.String, **ERRORS})  # one class against all others, where there are several

GAPS = pl.Schema(
    {
        "group": pl.String,
        "versus": pl.String,  # what it is compared with: "the rest", or "off" for the level "on" of a concept
        "concept": pl.String,  # null: the groups as a whole
        "measure": pl.Enum(["accuracy", "tpr", "fpr", "positive rate"]),
        "gap": pl.Float64,  # of the group less that of the others
        "ci_low": pl.Float64,
        "ci_high": pl.Float64,
        "n": pl.UInt32,  # rows that the measure counts: of the positive ones for tpr
        "n_rest": pl.UInt32,
        "p_value": pl.Float64,
        "q_value": pl.Float64,  # as in ASSOCIATION
        "masked": pl.Boolean,
    }
)

HISTOGRAMS = pl.Schema(
    {
        "concept": pl.String,
        "latent": pl.UInt32,
        "group": pl.String,
        "counts": pl.List(pl.UInt32),  # rows of the group on which it is active, in equal bins from 0 to `max`
        "max": pl.Float64,
    }
)

GROUPS = pl.Schema({"group": pl.String, "n": pl.UInt32, "base_rate": pl.Float64, "masked": pl.Boolean})

BIAS_EXAMPLES = pl.Schema(
    {
        "concept": pl.String,
        "latent": pl.UInt32,
        "group": pl.String,
        "rank": pl.UInt16,
        "row": pl.UInt32,
        "input_id": pl.UInt32,
        "act": pl.Float64,
    }
)

MITIGATION = pl.Schema(
    {
        "how": pl.String,  # "none", "ablate", "neutralise"
        "concepts": pl.String,
        "accuracy": pl.Float64,  # on held-out rows
        "accuracy_low": pl.Float64,
        "accuracy_high": pl.Float64,
        "gap": pl.Float64,  # of the named measure between the groups
        "gap_low": pl.Float64,
        "gap_high": pl.Float64,
        "measure": pl.String,  # "accuracy", "tpr", "fpr", "positive rate"
        "n": pl.UInt32,
        "group": pl.String,  # the groups that the gap is between: the first less the others
        "accuracy_change": pl.Float64,  # less that of "none", on the same rows; intervals over resampled rows, paired
        "accuracy_change_low": pl.Float64,
        "accuracy_change_high": pl.Float64,
        "gap_change": pl.Float64,  # of |gap|: below 0 it shrank
        "gap_change_low": pl.Float64,
        "gap_change_high": pl.Float64,
    }
)
