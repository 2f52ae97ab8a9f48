"""Intervals that cover, tests that hold their level, and p-values equal to what counting gives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nb_sae.statistics import (
    benjamini_hochberg,
    dense_ranks,
    difference_of_shares,
    mean_interval,
    permutation_p,
    rank_biserial,
    rank_correlation,
    t_p,
    t_quantile,
    wilson,
)


def sparse(random, n, density, scale=1.0):
    """Activations as a latent has them: mostly 0."""
    return random.gamma(2.0, 1.0, n) * scale * (random.random(n) < density)


def test_rank_biserial_equals_counting_of_pairs():
    random = np.random.default_rng(0)
    z, group = sparse(random, 60, 0.4).round(0), random.random(60) < 0.4
    pairs = [np.sign(a - b) for a, b in itertools.product(z[group], z[~group])]
    assert rank_biserial(dense_ranks(z), group).effect == pytest.approx(np.mean(pairs))


def test_rank_biserial_inside_strata_weighs_them_as_van_elteren_does():
    random = np.random.default_rng(1)
    z, group, strata = sparse(random, 90, 0.5), random.random(90) < 0.5, random.integers(0, 3, 90)
    effects, weights = [], []
    for one in range(3):
        inside = strata == one
        n, m = (group & inside).sum(), (~group & inside).sum()
        effects.append(rank_biserial(dense_ranks(z[inside]), group[inside]).effect)
        weights.append(n * m / (n + m + 1))
    found = rank_biserial(dense_ranks(z), group, strata)
    assert found.effect == pytest.approx(np.average(effects, weights=weights))


def test_mann_whitney_p_agrees_with_scipy_where_groups_are_large():
    random = np.random.default_rng(2)
    for shift in (0.0, 0.15):
        z = sparse(random, 2000, 0.4)
        group = random.random(2000) < 0.5
        z[group] *= 1 + shift
        expected = stats.mannwhitneyu(z[group], z[~group], use_continuity=False, method="asymptotic").pvalue
        assert rank_biserial(dense_ranks(z), group).p == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("n", "share", "density"), [(400, 0.1, 0.03), (300, 0.5, 0.05), (200, 0.3, 0.6)])
def test_rank_test_of_a_rare_latent_holds_its_level_without_any_effect(n, share, density):
    random = np.random.default_rng(3)
    p = []
    for _ in range(1500):
        group = random.permutation(n) < share * n
        p.append(rank_biserial(dense_ranks(sparse(random, n, density)), group).p)
    # 2,000 draws of a rate of 1 % have a standard deviation of 0.26 %.
    assert np.mean(np.array(p) <= 0.05) <= 0.065
    assert np.mean(np.array(p) <= 0.01) <= 0.018


def test_permutation_p_equals_that_of_all_permutations_in_a_skewed_case():
    # 6 active rows of 60, a group of 10 that holds 4 of them: the normal tail is 10 times too small.
    exact = stats.hypergeom(60, 6, 10).sf(3)
    z = np.r_[np.ones(6), np.zeros(54)]
    group = np.zeros(60, dtype=bool)
    group[[0, 1, 2, 3, 10, 11, 12, 13, 14, 15]] = True
    found = rank_biserial(dense_ranks(z), group).p / 2
    normal = stats.norm.sf((4 - 1) / math.sqrt(6 * (10 / 60) * (50 / 60) * (54 / 59)))
    assert normal < exact / 8
    assert exact / 3 < found < exact * 3


@pytest.mark.parametrize("strata", [1, 3])
def test_intervals_of_rank_biserial_cover_the_truth(strata):
    random = np.random.default_rng(4 + strata)
    hits = []
    for _ in range(500):
        n, p, q = 400, random.choice([0.05, 0.2, 0.6]), random.choice([0.05, 0.2, 0.6])
        within = random.integers(0, strata, n)
        group = random.random(n) < 0.3 + 0.2 * within
        z = sparse(random, n, np.where(group, p, q))
        found = rank_biserial(dense_ranks(z), group, within)
        hits.append(found.low <= p - q <= found.high)  # equal where active: the effect is the difference of densities
    assert 0.93 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize("density", [0.15, 1.0])
def test_intervals_of_rank_correlation_cover_the_truth(density):
    random = np.random.default_rng(6)

    def draw(n):
        y = random.normal(size=n)
        return np.exp(0.6 * y + random.normal(size=n)) * (random.random(n) < density * stats.norm.cdf(y + 1)), y

    truth = stats.spearmanr(*draw(400_000))[0]
    found = [rank_correlation(*(dense_ranks(part) for part in draw(200))) for _ in range(500)]
    assert 0.925 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.975


def test_rank_correlation_is_spearmans_and_its_p_agrees():
    random = np.random.default_rng(7)
    z, y = sparse(random, 500, 0.3), random.normal(size=500).round(1)
    found, expected = rank_correlation(dense_ranks(z), dense_ranks(y)), stats.spearmanr(z, y)
    assert found.effect == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue, rel=0.02)


def test_an_interval_is_wide_and_not_empty_where_a_group_holds_no_active_row():
    z = np.r_[np.zeros(20), np.ones(6), np.zeros(174)]
    found = rank_biserial(dense_ranks(z), np.arange(200) < 20)
    assert found.low < -0.03
    assert found.high > 0.03


def test_perfect_separation_keeps_room_for_doubt_that_shrinks_with_n():
    rooms = []
    for n in (10, 1000):
        found = rank_biserial(np.r_[np.zeros(n, int), np.ones(n, int)], np.arange(2 * n) >= n)
        assert (found.effect, found.high) == (1.0, 1.0)
        rooms.append(1 - found.low)
    assert 0 < rooms[1] < rooms[0] / 10


def test_what_cannot_be_compared_has_no_number():
    silent = rank_biserial(np.zeros(50, int), np.arange(50) < 20)
    one_sided = rank_biserial(np.arange(50), np.ones(50, bool))
    constant = rank_correlation(np.zeros(50, int), np.arange(50))
    assert all(math.isnan(one.effect) and math.isnan(one.p) for one in (silent, one_sided, constant))
    assert math.isnan(permutation_p(0.0, 0.0, 0.0))


def test_student_t_agrees_with_scipy():
    for t, degrees in ((0.3, 3), (2.3, 7), (30.0, 19), (1.9, 4000)):
        assert t_p(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-8)
    assert t_quantile(9) == pytest.approx(stats.t.ppf(0.975, 9), abs=1e-9)


def test_mean_interval_is_students():
    x = np.random.default_rng(8).normal(2, 3, (40, 2))
    expected = stats.t.interval(0.95, 39, x.mean(0), stats.sem(x))
    np.testing.assert_allclose(mean_interval(x), [x.mean(0), *expected])
    assert np.isnan(mean_interval(x[:1])[1]).all()


def test_benjamini_hochberg_agrees_with_scipy_and_leaves_out_what_was_not_tested():
    p = np.array([0.001, np.nan, 0.04, 0.03, 0.9, 0.008])
    q = benjamini_hochberg(p)
    tested = np.isfinite(p)
    np.testing.assert_allclose(q[tested], stats.false_discovery_control(p[tested]))
    assert np.isnan(q[1])


def test_wilson_and_newcombe_agree_with_published_examples():
    # Newcombe 1998, Statistics in Medicine 17:857 (81 of 263) and 17:873 (56 of 70 against 48 of 80).
    low, high = wilson(np.array(81), np.array(263))
    assert (round(float(low), 4), round(float(high), 4)) == (0.2553, 0.3662)
    gap, low, high, p = (float(part) for part in difference_of_shares(*map(np.array, (56, 70, 48, 80))))
    assert (round(gap, 2), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)
    assert p == pytest.approx(0.0081, abs=3e-4)


def test_a_share_of_nothing_has_no_interval():
    assert np.isnan(wilson(np.array(0.0), np.array(0.0))).all()
    assert np.isnan(difference_of_shares(*map(np.array, (0.0, 0.0, 3.0, 5.0)))[0])
