"""Bias reports on drawn faces, whose P(attribute | Male) is known, and on texts. The 50 seeds are in benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from concept_world import DemoWorld, demo_world  # noqa: F401 (a fixture)

import nb_sae as ns
from nb_sae.concepts.bias.classifier import auc
from nb_sae.concepts.bias.report import TABLES
from nb_sae.data.faces import BIASED, DRAWN, PROMPTS
from nb_sae.errors import ConfigError, StoreError

DOCS = Path(__file__).resolve().parent.parent / "docs" / "bias.md"
LEAST_AUC, LEAST_DIFFERENCE = 0.9, 0.15


@pytest.fixture(scope="module")
def latents(demo_world: DemoWorld) -> dict[str, int]:  # noqa: F811
    """Attribute → the latent that separates it best, where it does so well."""
    z = demo_world.dictionary.encode(demo_world.store[:]).numpy()
    live, found = np.flatnonzero((z > 0).any(0)), {}
    for name in DRAWN:
        scores = [auc(z[:, latent], demo_world.faces.attributes[name].to_numpy()) for latent in live]
        if max(scores) >= LEAST_AUC and int(live[np.argmax(scores)]) not in found.values():
            found[name] = int(live[np.argmax(scores)])
    return found


@pytest.fixture(scope="module")
def report(demo_world: DemoWorld, latents: dict[str, int]) -> ns.BiasReport:  # noqa: F811
    return ns.bias_report(
        demo_world.dictionary, demo_world.store, demo_world.faces.attributes, "Male", latents, grid=3, images=4
    )


def effects(frame: pl.DataFrame) -> dict[str, float]:
    return dict(frame.select("concept", "effect").iter_rows())


def test_signs_are_those_of_the_table_that_the_faces_were_drawn_from(report):
    shift = {name: BIASED[name][1] - BIASED[name][0] for name in report.association["concept"]}
    counted = {name: value for name, value in shift.items() if abs(value) >= LEAST_DIFFERENCE}
    assert len(counted) >= 8
    found = effects(report.association)
    assert {name: np.sign(found[name]) for name in counted} == {name: np.sign(value) for name, value in counted.items()}


def test_the_probe_leans_the_way_of_the_table_where_it_leans_beyond_shuffled_labels(report):
    flagged = report.reliance.filter(pl.col("q_value") <= 0.05)
    assert flagged.height >= 3
    for name, effect in effects(flagged).items():
        assert np.sign(effect) == np.sign(BIASED[name][1] - BIASED[name][0]), name
    still = effects(report.reliance)
    assert max(abs(still[name]) for name in ("Narrow_Eyes", "Pale_Skin")) < 0.05


def test_an_attribute_that_goes_with_another_through_male_alone_loses_its_effect_inside_male(demo_world, latents):  # noqa: F811
    chosen = {name: latents[name] for name in ("Rosy_Cheeks", "Blond_Hair") if name in latents}
    assert chosen
    found = ns.bias_report(
        demo_world.dictionary, demo_world.store, demo_world.faces.attributes, "Wearing_Earrings", chosen,
        given=["Male"], classifier=None,
    )  # fmt: skip
    assert (found.association["q_value"] <= 0.05).all()
    assert (found.conditional["q_value"] > 0.05).all()


def test_zero_shot_prompts_lean_on_the_latent_of_what_they_ask(demo_world, latents):  # noqa: F811
    chosen = {name: latents[name] for name in ("Eyeglasses", "Wearing_Hat", "Chubby", "Bangs") if name in latents}
    found = ns.bias_report(
        demo_world.dictionary, demo_world.store, demo_world.faces.attributes, "Eyeglasses", chosen, given=["Male"],
        classifier=PROMPTS["Eyeglasses"], clip=demo_world.clip, grid=3, queries=["a face with eyeglasses"], ks=[50],
    )  # fmt: skip
    leaned = effects(found.reliance)
    assert max(leaned, key=lambda name: abs(leaned[name])) == "Eyeglasses"
    assert leaned["Eyeglasses"] > 0.3
    assert found.about["accuracy_test"] > 0.9
    eyeglasses = found.groups["group"].to_list().index("Eyeglasses")
    before = found.retrieval.filter(pl.col("removed").is_null())["shares"][0][eyeglasses]
    after = found.retrieval.filter(pl.col("removed").is_not_null())["shares"][0][eyeglasses]
    assert before >= 0.9
    assert after < before - 0.2


def test_names_with_their_labels_are_taken_as_concepts(demo_world, report, latents):  # noqa: F811
    kept = report.mitigate(list(latents)[:2], "neutralise", resamples=20)
    assert kept["n"][0] == report.about["n_test"]


def test_normalised_embeddings_of_the_demo_are_refused(demo_world):  # noqa: F811
    unit = torch.nn.functional.normalize(demo_world.store[:], dim=-1)
    store = ns.ActivationStore.from_tensor(unit)
    store.site, store.model, store.revision = (
        demo_world.store.site, demo_world.store.model, demo_world.store.revision,
    )  # fmt: skip
    with pytest.raises(StoreError, match="L2-normalised"):
        ns.bias_report(demo_world.dictionary, store, demo_world.faces.attributes, "Male", [0])


def test_the_dashboard_shows_a_real_report(demo_world, report):  # noqa: F811
    dashboard = ns.BiasDashboard(report, inputs=demo_world.faces)
    assert dashboard.concepts.height == report.association["latent"].n_unique()


def test_labelled_texts_are_reported_like_images(demo_world, tmp_path):  # noqa: F811
    captions = list(demo_world.faces.captions[:800])
    texts = ns.texts(captions)
    store = ns.ActivationStore.collect(
        demo_world.clip, texts, site="text_embed", path=tmp_path / "texts", workers=0, progress=False
    )
    x = store[:]
    W = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:16]
    dictionary = ns.Dictionary.from_weights(W.T.contiguous(), torch.zeros(16), W, x.mean(0), site="text_embed")
    labels = pl.DataFrame(
        {"key": list(texts.keys), "glasses": ["glasses" in text or "spectacles" in text for text in captions]}
    )
    found = ns.bias_report(dictionary, store, labels, "glasses", test=0.5, grid=2, controls=3)
    assert found.about["auc_test"] > 0.8
    assert found.association.height == 16
    assert {name: getattr(found, name).schema for name in TABLES} == TABLES


def test_text_concepts_need_a_model_for_their_queries(demo_world, latents):  # noqa: F811
    with pytest.raises(ConfigError, match="give clip"):
        ns.bias_report(
            demo_world.dictionary, demo_world.store, demo_world.faces.attributes, "Male", latents, queries=["a face"]
        )


def test_the_example_of_the_docs_runs(demo_world, latents, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    few = {name: latents[name] for name in ("Wearing_Necktie", "Bangs", "Chubby")}
    known = {
        "dictionary": demo_world.dictionary, "store": demo_world.store, "faces": demo_world.faces, "names": few,
        "clip": demo_world.clip,
    }  # fmt: skip
    exec(example, known)
    assert (tmp_path / "runs" / "tables" / "association.csv").is_file()
    assert known["bias"].retrieval.height
