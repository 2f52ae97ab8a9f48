"""CKNNA against its formula with the masks, at its null, and where it is undefined."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import gaussian

from nb_sae.errors import ConfigError, NonFiniteError, ShapeError
from nb_sae.sae import metrics


def slow_hsic(K: torch.Tensor, L: torch.Tensor) -> float:
    """Song et al. 2012, equation 5, as it is written."""
    m = len(K)
    K, L = K.clone().fill_diagonal_(0), L.clone().fill_diagonal_(0)
    total = (K * L.T).sum() + K.sum() * L.sum() / ((m - 1) * (m - 2)) - 2 * (K @ L).sum() / (m - 2)
    return float(total / (m * (m - 3)))


def slow_cknna(a: torch.Tensor, b: torch.Tensor, k: int, epsilon: float = 1e-6) -> float:
    """The formula with its n × n masks."""
    K, L = a @ a.T, b @ b.T
    masks = []
    for S in (K, L):
        nearest = S.clone().fill_diagonal_(-math.inf).topk(k, dim=1).indices
        masks.append(torch.zeros_like(S).scatter_(1, nearest, 1.0))
    both = masks[0] * masks[1]
    own = slow_hsic(masks[0] * K, masks[0] * K) * slow_hsic(masks[1] * L, masks[1] * L)
    return slow_hsic(both * K, both * L) / (math.sqrt(own) + epsilon)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(12, 60), k=st.integers(2, 11), noise=st.floats(0, 3), seed=st.integers(0, 10_000))
def test_cknna_equals_the_formula_with_its_masks(n, k, noise, seed):
    a = gaussian(n, 5, seed=seed)
    b = a @ gaussian(5, 7, seed=seed + 1) + noise * gaussian(n, 7, seed=seed + 2)
    fast = metrics.cknna(a, b, k=k)
    if not fast.reason:
        assert fast.value == pytest.approx(slow_cknna(a, b, k), rel=1e-9, abs=1e-12)


def test_cknna_of_a_representation_with_itself_is_one_and_falls_with_noise():
    a = gaussian(400, 16, dtype=torch.float32)
    same = metrics.cknna(a, a)
    assert same.value == pytest.approx(1, abs=1e-4)
    noisy = [metrics.cknna(a, a + noise * gaussian(400, 16, seed=1).float()).value for noise in (0.1, 0.5, 2.0)]
    assert same.value > noisy[0] > noisy[1] > noisy[2]
    assert same.k == 10
    assert same.rows == 400


def test_cknna_of_independent_representations_is_at_its_null():
    found = metrics.cknna(gaussian(800, 16), gaussian(800, 24, seed=1))
    assert abs(found.value) < 0.05
    assert abs(found.value - found.null) < 6 * found.null_std + 0.01
    assert abs(found.null) < 0.05


def test_cknna_null_is_that_of_shuffled_rows():
    a, b = gaussian(60, 5), gaussian(60, 5) + 0.1 * gaussian(60, 5, seed=1)
    generator = torch.Generator().manual_seed(3)
    slow = [slow_cknna(a, b[torch.randperm(60, generator=generator)], 10) for _ in range(8)]
    found = metrics.cknna(a, b, seed=3)
    assert found.null == pytest.approx(sum(slow) / 8, rel=1e-9)
    assert found.null < 0.5 * found.value


def test_cknna_without_epsilon_does_not_depend_on_the_unit_and_with_it_does():
    a, b = gaussian(200, 8), gaussian(200, 8) + 0.3 * gaussian(200, 8, seed=1)
    free, scaled = (metrics.cknna(s * a, s * b, epsilon=0).value for s in (1, 1e-3))
    assert free == pytest.approx(scaled, rel=1e-9)
    assert metrics.cknna(1e-3 * a, 1e-3 * b).value < 0.01


def test_cknna_of_constant_rows_is_undefined_and_says_why():
    found = metrics.cknna(torch.ones(50, 3), gaussian(50, 3).float())
    assert math.isnan(found.value)
    assert "equal" in found.reason


@pytest.mark.parametrize(
    ("a", "k", "error", "message"),
    [
        (gaussian(3, 2), 2, ConfigError, "3 rows were given.*at least 4"),
        (gaussian(10, 2), 10, ConfigError, "k=10 neighbours of 10 rows"),
        (gaussian(10), 2, ShapeError, "expected"),
        (torch.full((20, 2), torch.nan), 2, NonFiniteError, "Row 0 of the first"),
    ],
)
def test_cknna_refuses_what_it_is_not_defined_for(a, k, error, message):
    with pytest.raises(error, match=message):
        metrics.cknna(a, a, k=k)
