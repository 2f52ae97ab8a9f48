"""Steering curves: the planted concept rises with its latent, matched latents do not lift it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from concept_world import demo_world as demo_world
from metric_fakes import gaussian
from test_search import eyeglasses
from torch.nn import functional as F

import nb_sae as ns
from nb_sae import plots
from nb_sae.concepts.schema import STEERING
from nb_sae.concepts.steering import steering_curve
from nb_sae.data.faces import PROMPTS
from nb_sae.errors import ConfigError, ShapeError, WidgetError
from nb_sae.sae.controls import matched_latents

DOCS = Path(__file__).resolve().parent.parent / "docs" / "search_and_steering.md"


class Directions:
    """Every text is one of the directions, by its number."""

    logit_scale = 8.0

    def __init__(self, directions: torch.Tensor) -> None:
        self.directions = directions

    def encode_text(self, texts, normalize=False):
        return self.directions[[int(text) for text in texts]]


@pytest.fixture
def planted(orthogonal):
    dictionary, rows, _ = orthogonal
    return dictionary, rows + 0.1 * gaussian(3_000, 32, seed=3).float(), Directions(dictionary.W_dec)


def mean_of(curve, kind="latent", prompt=None, measure="probability") -> np.ndarray:
    lines = curve.frame.filter((pl.col("kind") == kind) & (pl.col("measure") == measure))
    return lines.filter(pl.col("prompt").eq_missing(prompt)).sort("latent", "strength")["mean"].to_numpy()


@pytest.mark.parametrize("mode", ["set", "add", "scale"])
def test_a_planted_concept_rises_with_its_latent_and_others_do_not_lift_it(planted, mode):
    dictionary, rows, clip = planted
    curve = steering_curve(dictionary, rows, 5, clip=clip, prompts=["5", "6"], mode=mode, controls=10, seed=1)
    assert curve.monotone
    assert curve.about["effect"] > (0.05 if mode == "scale" else 0.4)
    assert curve.about["p"] == pytest.approx(1 / 11)
    others = curve.controls["effect"].to_numpy()[1:]
    assert len(others) == 10
    assert np.abs(others[curve.controls["latent"].to_numpy()[1:] != 6]).max() < 0.05
    assert curve.frame.schema == STEERING


def test_a_curve_is_what_edit_rows_and_softmax_give(planted):
    dictionary, rows, clip = planted
    rows = rows[:60]
    curve = steering_curve(dictionary, rows, 5, clip=clip, prompts=["5", "6", "9"], strengths=[0.0, 1.5], controls=2)
    for kind, latent in zip(("latent", "control", "control"), curve.controls["latent"], strict=True):
        for strength in (0.0, 1.5):
            unit = F.normalize(dictionary.edit_rows(rows, set={latent: strength}), dim=-1)
            chance = (8 * unit @ dictionary.W_dec[[5, 6, 9]].T).softmax(-1)
            at = curve.frame.filter((pl.col("latent") == latent) & (pl.col("strength") == strength))
            assert set(at["kind"]) == {kind}
            np.testing.assert_allclose(at["mean"][:3], chance.mean(0), atol=1e-5)
            np.testing.assert_allclose(at["low"][:3], chance.quantile(0.025, dim=0), atol=1e-5)
            np.testing.assert_allclose(at["high"][:3], chance.quantile(0.975, dim=0), atol=1e-5)
            cosine = F.cosine_similarity(unit, rows, dim=-1)
            assert at["mean"][3] == pytest.approx(float(cosine.mean()), abs=1e-5)
            assert set(at["rows"]) == {60}


def test_a_strength_that_changes_nothing_leaves_the_rows_alone(planted):
    dictionary, rows, clip = planted
    curve = steering_curve(dictionary, rows, 5, clip=clip, prompts=["5", "6"], strengths=[0.0], mode="add", controls=3)
    assert mean_of(curve, measure="cosine") == pytest.approx(1, abs=1e-6)
    assert curve.about["effect"] == 0
    assert curve.about["p"] == 1


def test_by_chance_a_latent_is_no_better_than_its_controls(orthogonal):
    """The null: prompts that have nothing to do with any latent."""
    dictionary, rows, _ = orthogonal
    ps = []
    for seed in range(10):
        clip = Directions(gaussian(32, 32, seed=100 + seed).float())
        curve = steering_curve(
            dictionary, rows[:100], seed, clip=clip, prompts=["0", "1"], strengths=[0.0, 1.5], controls=9, seed=seed
        )
        ps.append(curve.about["p"])
    assert 0.3 < np.mean(ps) < 0.8


def test_matched_latents_are_alive_and_like_it_in_density_and_mean():
    rng = np.random.default_rng(0)
    density, mean = rng.uniform(0.001, 0.5, 400), rng.uniform(0.5, 8, 400)
    density[:50] = mean[:50] = 0
    density[100] = 0.1
    mean[100] = 2.0
    chosen = matched_latents(density, mean, 100, 8, seed=0)
    assert len(set(chosen)) == 8
    assert 100 not in chosen
    assert min(chosen) >= 50
    away = np.abs(np.log(density[chosen] / 0.1)) + np.abs(np.log(mean[chosen] / 2.0))
    every = np.sort(np.abs(np.log(density[50:] / 0.1)) + np.abs(np.log(mean[50:] / 2.0)))
    assert away.max() <= every[24]  # the best 24 beside itself
    assert matched_latents(density, mean, 100, 8, seed=0) == chosen
    assert matched_latents(density, mean, 100, 8, seed=1) != chosen
    assert matched_latents(density, mean, 100, 0, seed=0) == []


def test_raising_the_eyeglasses_latent_raises_zero_shot_eyeglasses_and_matched_latents_do_not(demo_world):
    latent, _, p99 = eyeglasses(demo_world)
    curve = steering_curve(
        demo_world.dictionary, demo_world.store, latent, clip=demo_world.clip, prompts=PROMPTS["Eyeglasses"]
    )
    assert curve.monotone
    assert curve.about["p99"] == pytest.approx(p99, rel=0.05)
    assert curve.about["effect"] > 0.8
    assert curve.about["p"] == pytest.approx(1 / 21)
    assert float(curve.controls["effect"][1:].abs().max()) < 0.6 * curve.about["effect"]  # pyright: ignore
    assert abs(float(curve.controls["effect"][1:].median())) < 0.15  # pyright: ignore


def test_the_examples_of_the_page_run(demo_world, tmp_path, monkeypatch):
    pytest.importorskip("usearch")
    monkeypatch.chdir(tmp_path)
    latent, _, _ = eyeglasses(demo_world)

    class Named:
        def find(self, name):
            return {"eyeglasses": latent}[name]

        def name_of(self, latent):
            return f"latent {latent}"

    known = {
        "dictionary": demo_world.dictionary, "store": demo_world.store, "clip": demo_world.clip,
        "faces": demo_world.faces, "names": Named(), "picture": demo_world.faces[0],
    }  # fmt: skip
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, known)
    assert known["found"].recall > 0.8  # of the approximate search, the last one


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompts": ["5"]}, ConfigError, "give two or more"),
        ({"prompts": "5"}, ConfigError, "give two or more"),
        ({"strengths": []}, ConfigError, "strengths is empty"),
        ({"strengths": [float("nan")]}, ConfigError, "finite number"),
        ({"mode": "push"}, ConfigError, "Use 'set', 'add' or 'scale'"),
        ({"latent": 99}, ConfigError, "0 … 31"),
        ({"latent": "hat"}, ConfigError, "names"),
        ({"controls": 32}, ConfigError, "31 other live latents"),
        ({"rows": torch.zeros(5, 32)}, ConfigError, "never active on 5 rows"),
        ({"rows": torch.zeros(5, 8)}, ShapeError, r"expected \(rows, 32\)"),
        ({"clip": Directions(torch.eye(16))}, ShapeError, "zero-shot needs one space"),
    ],
)
def test_a_curve_that_cannot_be_is_refused_with_what_to_do(planted, change, error, message):
    dictionary, rows, clip = planted
    asked = {"rows": rows[:50], "latent": 5, "clip": clip, "prompts": ["5", "6"], "controls": 2} | change
    with pytest.raises(error, match=message):
        steering_curve(dictionary, asked.pop("rows"), asked.pop("latent"), **asked)


def test_steering_a_store_takes_rows_by_its_seed(planted):
    dictionary, rows, clip = planted
    store = ns.ActivationStore.from_tensor(rows)
    asked = {"clip": clip, "prompts": ["5", "6"], "controls": 1}
    one = steering_curve(dictionary, store, 5, seed=3, **asked)
    assert one.about["rows"] == 500
    assert one.frame.equals(steering_curve(dictionary, store, 5, seed=3, **asked).frame)
    assert not one.frame.equals(steering_curve(dictionary, store, 5, seed=4, **asked).frame)


def test_the_figure_shows_every_prompt_the_cosine_and_the_controls(planted):
    dictionary, rows, clip = planted
    curve = steering_curve(dictionary, rows, 5, clip=clip, prompts=["5", "6"], controls=4)
    figure = plots.steering(curve.frame)
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["4 controls: 5", "5", "6"]
    line = next(trace for trace in figure.data if trace.name == "5")
    np.testing.assert_allclose(line.y, mean_of(curve, prompt="5"))
    band = next(trace for trace in figure.data if trace.name == "4 controls: 5")
    assert max(band.y) == pytest.approx(mean_of(curve, "control", "5").max())
    with pytest.raises(WidgetError, match="steering_curve"):
        plots.steering(pl.DataFrame({"latent": [1]}))
