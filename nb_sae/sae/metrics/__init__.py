"""The numbers that judge a dictionary, each defined once, with its source and what chance would give.

| question | functions |
|---|---|
| how near is x̂ to x? | `fvu`, `cosine`, `l0`, `RunningQuality`, `recovery_curve` |
| which latents are used? | `count_active`, `dead`, `dead_fraction`, `density_histogram` |
| are neighbours kept? | `cknna` |
| are labels and answers kept? | `linear_probe`, `train_probe`, `probe_fidelity`, `zero_shot` |
| what does the model lose? | `loss_recovered`, `next_token_loss`, `prediction_kl` |
| are the directions right? | `orthogonality`, `mmcs`, `align` |
| does it hold elsewhere? | `cross_modal` |
| what stands above what? | `co_activity`, `parent_child` |
"""

from __future__ import annotations

from nb_sae.sae.metrics.alignment import Alignment, align
from nb_sae.sae.metrics.directions import MMCS, Orthogonality, mmcs, orthogonality
from nb_sae.sae.metrics.downstream import (
    LossRecovered,
    ZeroShot,
    loss_recovered,
    next_token_loss,
    prediction_kl,
    zero_shot,
)
from nb_sae.sae.metrics.hierarchy import CoActivity, Hierarchy, co_activity, parent_child
from nb_sae.sae.metrics.modality import cross_modal
from nb_sae.sae.metrics.neighbours import CKNNA, cknna
from nb_sae.sae.metrics.probe import Probe, ProbeFidelity, linear_probe, probe_fidelity, train_probe
from nb_sae.sae.metrics.reconstruction import RunningQuality, cosine, fvu, l0
from nb_sae.sae.metrics.recovery import recovery_curve
from nb_sae.sae.metrics.usage import (
    Dead,
    DensityHistogram,
    count_active,
    dead,
    dead_fraction,
    density_histogram,
)

__all__ = [
    "CKNNA",
    "MMCS",
    "Alignment",
    "CoActivity",
    "Dead",
    "DensityHistogram",
    "Hierarchy",
    "LossRecovered",
    "Orthogonality",
    "Probe",
    "ProbeFidelity",
    "RunningQuality",
    "ZeroShot",
    "align",
    "cknna",
    "co_activity",
    "cosine",
    "count_active",
    "cross_modal",
    "dead",
    "dead_fraction",
    "density_histogram",
    "fvu",
    "l0",
    "linear_probe",
    "loss_recovered",
    "mmcs",
    "next_token_loss",
    "orthogonality",
    "parent_child",
    "prediction_kl",
    "probe_fidelity",
    "recovery_curve",
    "train_probe",
    "zero_shot",
]
