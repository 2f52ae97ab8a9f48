"""plotly figures of the tables. They take frames and give `go.Figure`; nothing here knows torch."""

from __future__ import annotations

from nb_sae.plots.attribution import faithfulness
from nb_sae.plots.bias import association, error_gaps, reliance, retrieval
from nb_sae.plots.concepts import naming, steering
from nb_sae.plots.dictionaries import density, pareto, quality, training
from nb_sae.plots.flow import activation_groups, deactivation, flow_kinds, flow_scores
from nb_sae.plots.heads import head_scores, head_weights, induction_curve
from nb_sae.plots.layers import layer_quality
from nb_sae.plots.lens import identifiability, patch_maps

__all__ = [
    "activation_groups",
    "association",
    "deactivation",
    "density",
    "error_gaps",
    "faithfulness",
    "flow_kinds",
    "flow_scores",
    "head_scores",
    "head_weights",
    "identifiability",
    "induction_curve",
    "layer_quality",
    "naming",
    "pareto",
    "patch_maps",
    "quality",
    "reliance",
    "retrieval",
    "steering",
    "training",
]
