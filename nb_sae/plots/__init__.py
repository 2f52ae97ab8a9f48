"""plotly figures of the tables. They take frames and give `go.Figure`; nothing here knows torch."""

from __future__ import annotations

from nb_sae.plots.bias import association, error_gaps, reliance, retrieval
from nb_sae.plots.concepts import naming, steering
from nb_sae.plots.dictionaries import density, pareto, quality, training
from nb_sae.plots.layers import layer_quality

__all__ = [
    "association",
    "density",
    "error_gaps",
    "layer_quality",
    "naming",
    "pareto",
    "quality",
    "reliance",
    "retrieval",
    "steering",
    "training",
]
