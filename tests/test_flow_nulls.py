"""What chance gives: the simulation, the formula of extreme values and the exact p agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flow_chains import dictionary, residual, unit

from nb_sae.errors import ConfigError
from nb_sae.flow.links.making import feature_flow
from nb_sae.flow.links.nulls import (
    chance_in,
    chance_of_largest,
    covariance_null,
    expected_largest,
    isotropic_null,
    upper_quantile,
)


@pytest.mark.parametrize(("d_in", "count", "value"), [(2304, 16384, 0.083), (768, 24576, 0.148), (512, 8192, 0.169)])
def test_formula_gives_the_known_values(d_in, count, value):
    assert expected_largest(d_in, count) == pytest.approx(value, rel=0.03)


@pytest.mark.parametrize(("d_in", "count"), [(2304, 16384), (768, 24576), (512, 8192)])
def test_simulated_mean_is_that_of_the_formula(d_in, count):
    drawn = isotropic_null(d_in, count, draws=64, seed=0)
    assert float(drawn.mean()) == pytest.approx(expected_largest(d_in, count), rel=0.03)


def test_the_largest_of_one_row_has_mean_0():
    assert expected_largest(64, 1) == 0.0


@pytest.mark.parametrize(("d_in", "count"), [(8, 50), (64, 512), (192, 1024)])
def test_p_of_random_rows_is_uniform(d_in, count):
    """Kolmogorov–Smirnov: 1.95 / √n is exceeded by chance once in a thousand."""
    p = np.sort(chance_of_largest(isotropic_null(d_in, count, draws=4000, seed=3).numpy(), d_in, count))
    distance = np.abs(p - (np.arange(len(p)) + 0.5) / len(p)).max()
    assert distance < 1.95 / math.sqrt(len(p))


def test_p_is_exact_in_three_dimensions():
    """There a cosine is uniform on [−1, 1] (Archimedes)."""
    c = np.linspace(-0.999, 0.999, 41)
    np.testing.assert_allclose(chance_of_largest(c, 3, 1), (1 - c) / 2, rtol=1e-4)
    np.testing.assert_allclose(chance_of_largest(c, 3, 7), 1 - ((1 + c) / 2) ** 7, rtol=1e-4, atol=1e-12)


def test_p_of_equal_rows_is_0_and_of_opposite_ones_1():
    assert chance_of_largest(np.array([1.0, -1.0]), 768, 4096).tolist() == [0.0, 1.0]


def test_quantile_is_exceeded_by_no_more_than_one_in_a_thousand():
    drawn = torch.arange(10_000.0)
    assert int((drawn > upper_quantile(drawn)).sum()) == 10
    assert chance_in(drawn, np.array([9999.0, 1e9, -1.0])).tolist() == [2 / 10_001, 1 / 10_001, 1.0]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_random_dictionaries_give_edges_at_the_rate_of_the_null(seed):
    """A flow of random rows in a narrow model, where the null lies above the paper's 0.5."""
    generator = torch.Generator().manual_seed(100 + seed)
    sites = {residual(layer): dictionary(unit(2000, 32, generator), residual(layer)) for layer in range(3)}
    flow = feature_flow(sites, top=1, seed=seed, progress=False)
    assert flow.nulls["rule"].to_list() == ["null", "null"]
    rate = flow.nulls["targets_above"].sum() / flow.nulls["targets"].sum()
    # 4,000 latents at a rate of 0.001 (itself known to 0.0003 from 10,000 draws): 4 ± 2.4.
    assert rate <= 0.0035
    assert abs(float((flow.edges["p"] < 0.05).mean()) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 4000)


def test_papers_module_threshold_is_reached_by_chance_in_a_narrow_model():
    generator = torch.Generator().manual_seed(0)
    sites = {
        "transformer.h.0.mlp": dictionary(unit(1024, 128, generator)),
        "transformer.h.0": dictionary(unit(1024, 128, generator)),
    }
    paper = feature_flow(sites, thresholds="paper", progress=False).nulls.row(0, named=True)
    assert (paper["threshold"], paper["rule"], paper["targets_above"]) == (0.15, "paper", 1024)
    held = feature_flow(sites, progress=False).nulls.row(0, named=True)
    assert held["rule"] == "null"
    assert held["threshold"] == held["q999"] > 0.3
    assert held["targets_above"] <= 5


def test_directions_in_a_few_dimensions_are_nearer_by_chance():
    """Rows that fill 8 of 64 dimensions: the isotropic null calls all of them matched, the other none."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0][:8]
    sites = {residual(layer): dictionary(unit(400, 8, generator) @ basis, residual(layer)) for layer in range(2)}
    easy = feature_flow(sites, progress=False).nulls.row(0, named=True)
    hard = feature_flow(sites, null="covariance", progress=False)
    row = hard.nulls.row(0, named=True)
    assert easy["targets_above"] == 400
    assert row["targets_above"] <= 4
    assert row["mean"] > 0.8 > easy["q999"]
    assert row["expected"] is None
    assert hard.about["null"] == "covariance"
    assert float(hard.edges["p"].min()) >= 1 / 10_001


def test_covariance_null_of_isotropic_rows_is_the_isotropic_one():
    generator = torch.Generator().manual_seed(0)
    a, b = unit(4000, 24, generator), unit(300, 24, generator)
    one, other = covariance_null(a, b, draws=4000, seed=1), isotropic_null(24, 300, draws=4000, seed=2)
    assert float(one.mean()) == pytest.approx(float(other.mean()), rel=0.01)
    lengths = torch.rand(300, 1, generator=generator) * 20
    torch.testing.assert_close(covariance_null(a * 7, b * lengths, draws=4000, seed=1), one)


def test_the_null_is_a_function_of_its_seed():
    assert torch.equal(isotropic_null(16, 100, draws=1000, seed=5), isotropic_null(16, 100, draws=1000, seed=5))
    assert not torch.equal(isotropic_null(16, 100, draws=1000, seed=5), isotropic_null(16, 100, draws=1000, seed=6))


def test_too_few_draws_are_refused():
    sites = {residual(layer): dictionary(torch.eye(4), residual(layer)) for layer in range(2)}
    with pytest.raises(ConfigError, match="at least 1,000"):
        feature_flow(sites, draws=999, progress=False)


@pytest.mark.parametrize("null", ["isotropic", "covariance"])
def test_p_onwards_counts_the_latents_of_the_site_it_leads_to(null):
    """The best of 800 is nearer than the best of 40: with the null of the latter all of these would look like finds."""
    generator = torch.Generator().manual_seed(0)
    sites = {
        residual(0): dictionary(unit(40, 16, generator), residual(0)),
        residual(1): dictionary(unit(800, 16, generator), residual(1)),
    }
    flow = feature_flow(sites, null=null, draws=4000, progress=False)
    p = flow.latents.filter(site=residual(0))["p_carried"].to_numpy()
    assert 0.3 < p.mean() < 0.7
    assert (p < 0.05).mean() < 0.2


def test_a_row_without_a_direction_reaches_no_threshold():
    generator = torch.Generator().manual_seed(0)
    rows = unit(30, 8, generator)
    rows[3] = 0
    sites = {residual(0): dictionary(unit(30, 8, generator), residual(0)), residual(1): dictionary(rows, residual(1))}
    flow = feature_flow(sites, thresholds={"residual": 0}, draws=1000, progress=False)
    line = flow.latents.filter(site=residual(1), latent=3).row(0, named=True)
    assert (line["kind"], line["match_residual"]) == ("unexplained", None)
    assert flow.nulls["targets_above"][0] == 29
