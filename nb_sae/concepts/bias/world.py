"""Rows, labels and classifier of one report, and what can still be asked of them once its tables are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from numpy import ndarray as Array

from nb_sae.concepts.bias.classifier import (
    Classifier,
    LinearClassifier,
    auc,
    decided,
    outputs_of,
    shuffled_probes,
    train_probe,
)
from nb_sae.concepts.bias.error_gaps import Predictions
from nb_sae.concepts.bias.labels import Label
from nb_sae.concepts.bias.mitigation import mitigation_frame, neutral_values
from nb_sae.concepts.bias.retrieval import without
from nb_sae.concepts.bias.rows import Concept, ConceptRows
from nb_sae.errors import ConfigError, closest
from nb_sae.statistics import wilson


@dataclass(frozen=True)
class ReportWorld:
    """Rows, labels and classifier of one report."""

    data: ConceptRows
    judged: Label
    """The target as classes."""
    split: list[Label]
    train: Int[Array, " train"]
    held: Int[Array, " held"]
    classifier: Classifier | None
    is_probe: bool
    seed: int

    def about(self) -> dict[str, Any]:
        """Everything that the tables do not say. Plain values only."""
        data = self.data
        silent = [concept.name for concept, live in zip(data.concepts, data.live, strict=True) if not live]
        found: dict[str, Any] = {
            "classes": list(self.judged.classes),
            "n": len(data.x), "n_train": len(self.train), "n_test": len(self.held),
            "concepts": len(data.concepts), "never_active": silent,
            "model": data.dictionary.model, "site": data.dictionary.site,
            "classifier": None,
        }  # fmt: skip
        if self.classifier is None:
            return found
        found |= self.classifier.about
        predictions = self.predictions(self.held, data.x[self.held])
        right = int((predictions.truth == predictions.said).sum())
        low, high = wilson(np.array(right), np.array(len(self.held)))
        found |= {
            "accuracy_test": right / len(self.held), "accuracy_test_low": float(low), "accuracy_test_high": float(high),
            "accuracy_majority": int(np.bincount(predictions.truth).max()) / len(self.held),
        }  # fmt: skip
        if self.is_probe:
            train = self.predictions(self.train, data.x[self.train])
            found["accuracy_train"] = float((train.truth == train.said).mean())
        if len(self.classifier.outputs) == 1:
            score = auc(predictions.chances[:, 0], predictions.truth == 1)
            found["auc_test"] = None if math.isnan(score) else float(score)
        return found

    def predictions(
        self, at: Int[Array, " some"], x: torch.Tensor, classifier: Classifier | None = None
    ) -> Predictions:
        """What the classifier says of rows `at` when they are `x`."""
        asked = classifier or self.classifier
        assert asked is not None
        chances = asked.probabilities(x)
        outputs = (1,) if len(asked.outputs) == 1 else tuple(range(len(asked.outputs)))
        return Predictions(self.judged.codes[at], decided(chances).numpy(), chances.numpy(), outputs)

    def shuffled(self, count: int) -> LinearClassifier | None:
        """Probes of shuffled labels, where the classifier is a probe."""
        if not self.is_probe or not count:
            return None
        codes, outputs = torch.from_numpy(self.judged.codes[self.train]), outputs_of(self.judged)
        return shuffled_probes(self.data.x[self.train], codes, self.judged, outputs, count=count, seed=self.seed)

    def mitigate(
        self, concepts: Sequence[Any], how: str, *, group: str | None, retrain: bool, resamples: int
    ) -> pl.DataFrame:
        """See `BiasReport.mitigate`."""
        if how not in ("ablate", "neutralise"):
            raise ConfigError(f"how={how!r} is not known. Use 'ablate' or 'neutralise'.")
        if retrain and not self.is_probe:
            raise ConfigError("retrain=True trains the linear probe again; this report asks another classifier.")
        chosen = [self._concept(which) for which in concepts]
        if not chosen:
            raise ConfigError("mitigate was given no concept. Name at least one.")
        groups = self._group(group, chosen[0])
        at, train = (rows[groups.codes[rows] >= 0] for rows in (self.held, self.train))
        present = np.bincount(groups.codes[at], minlength=len(groups.classes)) > 0
        if present.sum() < 2:
            raise ConfigError(f"The held-out rows have one group of {groups.name!r} only. Choose another group=.")
        to = neutral_values(self.data, chosen, groups, train) if how == "neutralise" else None
        before = self.predictions(at, self.data.x[at])
        again = None
        if retrain:
            edited = without(self.data, self.train, chosen, to)
            codes = torch.from_numpy(self.judged.codes[self.train])
            again = train_probe(edited, codes, self.judged, outputs_of(self.judged))
        after = self.predictions(at, without(self.data, at, chosen, to), again)
        kept = Label(groups.name, groups.kind, groups.codes[at], groups.classes)
        how = f"{how}, retrained" if retrain else how
        return mitigation_frame(before, after, kept, chosen, how, resamples=resamples, seed=self.seed)

    def _concept(self, which: Any) -> Concept:
        for concept in self.data.concepts:
            if which in (concept.name, concept.latent) and not isinstance(which, bool):
                return concept
        names = [concept.name for concept in self.data.concepts]
        raise ConfigError(f"{which!r} is no concept of this report. {closest(str(which), names)}See association.")

    def _group(self, name: str | None, concept: Concept) -> Label:
        others = [
            label for label in self.split if name == label.name or (name is None and label.name != self.judged.name)
        ]
        if others:
            return others[0]
        if name is not None:
            known = ", ".join(label.name for label in self.split)
            raise ConfigError(f"group={name!r} is not among the groups of this report: {known}. Add it to groups=.")
        on = self.data.z[:, self.data.concepts.index(concept)] > 0
        return Label(concept.name, "binary", on.astype(np.int64), (f"without {concept.name}", f"with {concept.name}"))
