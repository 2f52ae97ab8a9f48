"""What a bias report refuses, and that its files give back what it held."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from bias_world import LATENTS, BiasWorld, bias_world

import nb_sae as ns
from nb_sae.concepts.bias import BiasReport, bias_report
from nb_sae.concepts.bias.report import TABLES
from nb_sae.errors import ConfigError, FormatError, InputError, PathExistsError, StoreError

NAMES = {f"c{latent}": latent for latent in range(LATENTS)}


@pytest.fixture(scope="module")
def world() -> BiasWorld:
    return bias_world()


@pytest.fixture(scope="module")
def report(world: BiasWorld) -> BiasReport:
    return bias_report(
        world.dictionary, world.store, world.attributes, "Male", {"c0": 0, "c1": 1}, given=["Young"], grid=2, images=2,
        queries={"c0": world.dictionary.W_dec[0]},
    )  # fmt: skip


def test_report_is_the_same_after_its_files(report, tmp_path):
    report.save(tmp_path / "bias")
    again = BiasReport.load(tmp_path / "bias")
    assert all(getattr(again, name).equals(getattr(report, name)) for name in TABLES)
    assert again.about == report.about
    with pytest.raises(PathExistsError):
        report.save(tmp_path / "bias")
    with pytest.raises(ConfigError, match="read from a file"):
        again.mitigate("c0")
    (tmp_path / "bias" / "gaps.parquet").unlink()
    with pytest.raises(FormatError, match="Run bias_report again"):
        BiasReport.load(tmp_path / "bias")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_every_table_is_exported(report, tmp_path, form):
    folder = report.export(tmp_path / "out", format=form)
    read = pl.read_csv if form == "csv" else pl.read_parquet
    for name in TABLES:
        frame = read(folder / f"{name}.{form}")
        assert frame.height == getattr(report, name).height
    assert json.loads((folder / "about.json").read_text())["target"] == "Male"
    with pytest.raises(ConfigError, match="csv"):
        report.export(tmp_path / "other", format="xlsx")


def test_normalised_rows_are_refused_though_they_lie_near_the_training_mean(world):
    unit = ns.ActivationStore.from_tensor(torch.nn.functional.normalize(world.x, dim=-1))
    # The check by distance alone would let them pass: the rows all point nearly one way.
    distance = float((unit[:] - world.x.mean(0)).square().sum(1).mean())
    near = ns.Dictionary.from_weights(
        world.dictionary.W_enc, world.dictionary.b_enc, world.dictionary.W_dec, world.dictionary.b_dec,
        mean=world.x.mean(0), mean_square_distance=distance / 3,
    )  # fmt: skip
    for dictionary in (world.dictionary, near):
        with pytest.raises(StoreError, match="L2-normalised"):
            bias_report(dictionary, unit, world.attributes, "Male", [0])


def test_rows_of_tokens_are_refused(world):
    rows = pl.DataFrame({"input_id": np.repeat(np.arange(50), 2), "token": np.tile([0, 1], 50)})
    store = ns.ActivationStore.from_tensor(world.x[:100], rows=rows)
    with pytest.raises(StoreError, match="pooled site"):
        bias_report(world.dictionary, store, world.attributes, "Male", [0])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"target": "Mal"}, InputError, "Closest: Male"),
        ({"target": "One"}, InputError, "one value"),
        ({"target": "Empty"}, InputError, "no value"),
        ({"target": "Odd"}, InputError, "−1, 0 and 1"),
        ({"target": "key"}, InputError, "no column"),
        ({"target": "Text"}, InputError, "different values"),
        ({"given": ["Male"]}, ConfigError, "holds the target"),
        ({"given": "Young"}, ConfigError, "give a list"),
        ({"given": ["Yong"]}, InputError, "Closest: Young"),
        ({"concepts": []}, ConfigError, "no concepts"),
        ({"concepts": [0, 0]}, ConfigError, "named twice"),
        ({"concepts": [LATENTS]}, ConfigError, "does not exist"),
        ({"concepts": ["hat"]}, ConfigError, "give numbers"),
        ({"test": 1.5}, ConfigError, "outside"),
        ({"test": "nowhere"}, InputError, "no column"),
        ({"test": "race"}, InputError, "leaves 0 rows"),
        ({"min_n": 1}, ConfigError, "min_n"),
        ({"grid": 1}, ConfigError, "grid"),
        ({"classifier": "probe"}, ConfigError, "linear-probe"),
        ({"classifier": ("a", "b")}, ConfigError, "give clip"),
        ({"queries": ["a face"]}, ConfigError, "give clip"),
        ({"queries": {"q": torch.zeros(3)}}, ConfigError, "width"),
        ({"attributes": {"Male": [True]}}, InputError, "polars frame"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(world, change, error, match):
    odd = np.tile([-1, 0, 1], 500)
    attributes = world.attributes.with_columns(
        One=pl.lit(1), Empty=pl.lit(None, pl.Boolean), Odd=odd, Text=pl.col("key") + "x"
    )
    settings = {"target": "Male", "concepts": [0], "attributes": attributes, **change}
    with pytest.raises(error, match=match):
        bias_report(world.dictionary, world.store, **settings)


def test_labels_of_other_inputs_are_refused(world):
    other = world.attributes.with_columns(key=pl.col("key") + ".jpg")
    with pytest.raises(InputError, match=r"'0.jpg' there, '0' here"):
        bias_report(world.dictionary, world.store, other, "Male", [0])
    twice = pl.concat([world.attributes, world.attributes.head(1)])
    with pytest.raises(InputError, match="more than once"):
        bias_report(world.dictionary, world.store, twice, "Male", [0])
    short = world.attributes.drop("key").head(10)
    with pytest.raises(InputError, match="10 lines"):
        bias_report(world.dictionary, world.store, short, "Male", [0])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ({"concepts": "c00"}, "Closest: c0"),
        ({"concepts": []}, "no concept"),
        ({"concepts": "c0", "how": "erase"}, "ablate"),
        ({"concepts": "c0", "group": "race"}, "Add it to groups"),
    ],
)
def test_mitigation_refuses_what_it_cannot_do(report, call, match):
    with pytest.raises(ConfigError, match=match):
        report.mitigate(**call)


def test_a_report_without_a_classifier_has_no_numbers_of_one(world):
    found = bias_report(world.dictionary, world.store, world.attributes, "Male", NAMES, classifier=None)
    assert found.association.height == LATENTS
    assert not any(getattr(found, name).height for name in ("reliance", "errors", "gaps", "curves"))
    with pytest.raises(ConfigError, match="classifier=None"):
        found.mitigate("c0")
