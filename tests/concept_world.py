"""Drawn faces, their embeddings and one dictionary trained on them: what the tests of concepts share.

Made once in a run of the tests, in under a minute on one core, however many files ask for it. Import the fixture by
name (`from concept_world import demo_world`), or call `world()`.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import nb_sae as ns
from nb_sae.data.celeba import LabeledImages
from nb_sae.models.clip import ClipModel

FACES = 3000
SEED = 0
CONFIG = ns.SAEConfig.relu(d_sae=256, widths=(32, 256), l1_weight=0.05)
"""Nested widths: the first 32 latents must explain the faces alone, which keeps an attribute in one latent. Of 29
attributes 25 have a latent of their name with AUC ≥ 0.9 (seeds 1 and 2: 23 and 22; picked among many settings, see
docs/naming.md); with budgets alone 12, as the frequent ones are split."""
TRAIN = ns.TrainConfig(rows=400_000)


@dataclass(frozen=True)
class DemoWorld:
    """The small CLIP, faces whose bias is known (`face_table("biased")`), and a dictionary of their embeddings."""

    clip: ClipModel
    faces: LabeledImages
    store: ns.ActivationStore
    """`image_embed` of every face, in their order: row i is face i."""
    dictionary: ns.Dictionary


@functools.cache
def world() -> DemoWorld:
    """The one world of this process. Nobody may change it."""
    clip = ns.load_clip("demo", device="cpu")
    faces = ns.demo_faces(FACES, seed=SEED, table="biased")
    folder = Path(_FOLDER.name) / "store"
    store = ns.ActivationStore.collect(clip, faces, site="image_embed", path=folder, workers=0, progress=False)
    dictionary = ns.train_sae(store, CONFIG, TRAIN, progress=False)
    return DemoWorld(clip, faces, store, dictionary)


_FOLDER = tempfile.TemporaryDirectory(prefix="concept-world-")
"""Removed when the process ends; the store reads from it until then."""


@pytest.fixture(scope="session")
def demo_world() -> DemoWorld:
    """`world()`, for tests."""
    return world()
