"""Intervals, tests and corrections on plain arrays. Knows neither latents nor tables.

Ties are everywhere (a sparse latent is 0 on most rows), so every rank is a mid-rank and every variance counts them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution: every interval here is a 95 % interval."""
_MAX_ABS_ARTANH = 1 - 1e-9


@dataclass(frozen=True)
class Estimate:
    """An effect with its 95 % interval and the p-value of "no effect". NaN where the data cannot say."""

    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    n: int = 0
    """Rows of the group that counted (all rows, where there is no group)."""
    n_rest: int = 0


def wilson(
    successes: Float[Array, "*lines"], n: Float[Array, "*lines"]
) -> tuple[Float[Array, "*lines"], Float[Array, "*lines"]]:
    """95 % interval of a proportion; NaN where n is 0. Source: Wilson 1927."""
    successes, n = np.asarray(successes, float), np.asarray(n, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = successes / n
        middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def difference_of_shares(
    successes: Float[Array, "*lines"],
    n: Float[Array, "*lines"],
    successes_rest: Float[Array, "*lines"],
    n_rest: Float[Array, "*lines"],
) -> tuple[Float[Array, "*lines"], Float[Array, "*lines"], Float[Array, "*lines"], Float[Array, "*lines"]]:
    """Difference of two independent proportions, its 95 % interval and the p-value of "they are equal".

    Source:
        Newcombe 1998, Statistics in Medicine 17:873, method 10 (interval); the pooled two-proportion z test (p).
    """
    a, n, b, m = (np.asarray(part, float) for part in (successes, n, successes_rest, n_rest))
    (low_a, high_a), (low_b, high_b) = wilson(a, n), wilson(b, m)
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = a / n, b / m
        gap = p - q
        low = gap - np.sqrt((p - low_a) ** 2 + (high_b - q) ** 2)
        high = gap + np.sqrt((high_a - p) ** 2 + (q - low_b) ** 2)
        pooled = (a + b) / (n + m)
        spread = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        z = np.where(spread > 0, np.abs(gap) / spread, np.where(np.isfinite(gap), 0.0, np.nan))
    return gap, low, high, normal_p(z)


def normal_p(z: Float[Array, "*lines"]) -> Float[Array, "*lines"]:
    """Two-sided p-value of a standard normal deviate."""
    return torch.special.erfc(torch.as_tensor(np.abs(z) / math.sqrt(2), dtype=torch.float64)).numpy()


def benjamini_hochberg(p: Float[Array, " tests"]) -> Float[Array, " tests"]:
    """q-values: the smallest false discovery rate at which each test is a discovery. NaN is no test and stays NaN.

    Source:
        Benjamini and Hochberg 1995, J. R. Statist. Soc. B 57:289.
    """
    p = np.asarray(p, float)
    q = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def mean_interval(x: Float[Array, "rows ..."]) -> tuple[Array, Array, Array]:
    """Mean over the first axis with its 95 % interval, Student's t; NaN below two rows."""
    n = len(x)
    mean = x.mean(0)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = t_quantile(n - 1) * x.std(0, ddof=1) / math.sqrt(n)
    return mean, mean - half, mean + half


def t_quantile(degrees: float) -> float:
    """97.5 % quantile of Student's t, by bisection on `t_p`."""
    low, high = 0.0, 14.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_p(middle, degrees) > 0.05 else (low, middle)
    return (low + high) / 2


def t_p(t: float, degrees: float) -> float:
    """Two-sided p-value of Student's t."""
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # x^a (1 − x)^b / B(a, b)
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 400):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + factor * d or tiny)
            c = 1 + factor / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return min(1.0, front * fraction / a)


def one_among_p(above: Float[Array, " lines"], others: Int[Array, " lines"]) -> float:
    """Two-sided p-value of "in each line one value ranks among its `others` as any of them would".

    Exact: the rank of each line is uniform and the lines are independent, whatever the values are distributed like.
    With ties, which count half, it is too large rather than too small. A line without others says nothing.

    Args:
        above: How many of its others each value lies above, those equal to it counting half.
        others: How many others each line has.

    Source:
        van Elteren 1960 (stratified Wilcoxon test), with one value against several in each stratum.
    """
    others = np.asarray(others, dtype=np.int64)
    found = round(abs(float((2 * np.asarray(above, float) - others).sum())))
    chance = np.ones(1)  # of the sums −n, −n + 2, …, n of the lines so far
    for count in others.tolist():
        chance = np.convolve(chance, np.full(count + 1, 1 / (count + 1)))
    sums = np.abs(2 * np.arange(len(chance)) - (len(chance) - 1))
    return float(min(1.0, chance[sums >= found].sum()))


def permutation_p(statistic: float, variance: float, third: float) -> float:
    """Two-sided p-value of a centred statistic from its exact permutation moments.

    A Pearson type III (shifted gamma) distribution with that skewness: with a rare latent and a small group the normal
    tail would be wrong by orders of magnitude.

    Args:
        statistic: Less its mean under permutation.
        variance: Under permutation.
        third: Third central moment under permutation.

    Source:
        Mielke and Berry 2007, Permutation Methods, section 2.3.
    """
    if not variance > 0:
        return math.nan
    z, skewness = statistic / math.sqrt(variance), third / variance**1.5
    if abs(skewness) < 1e-4:
        return float(normal_p(np.array(z)))
    shape = 4 / skewness**2
    at = shape + math.copysign(1, skewness) * z * math.sqrt(shape)  # gamma of this shape, mirrored if skewed left
    if at <= 0:
        return float(normal_p(np.array(z)))  # beyond where the gamma begins
    below, above = (
        float(tail(torch.tensor(shape, dtype=torch.float64), torch.tensor(at, dtype=torch.float64)))
        for tail in (torch.special.gammainc, torch.special.gammaincc)
    )
    return min(1.0, 2 * min(below, above))


def rank_biserial(
    levels: Int[Array, " rows"], in_group: Bool[Array, " rows"], strata: Int[Array, " rows"] | None = None
) -> Estimate:
    """2·AUC − 1 of a group against the rest, with interval and Mann–Whitney p; inside strata where given.

    The variance is that of DeLong, with one row of the lowest value and one of the median active value thought into
    each group: a group that holds no active row would otherwise seem to know its share exactly. The interval is made on
    the artanh scale around both the effect and the effect with those rows; benchmarks/bias_truth.py measures how often
    it covers. Inside strata the AUCs are averaged with van Elteren's weights n₁n₀/(n₁+n₀+1); strata with fewer
    than two rows on a side say nothing and are left out.

    Args:
        levels: Rank of each row's value among the different values, 0 the smallest (`dense_ranks`).
        in_group: The group.
        strata: 0 … strata − 1, what to compare within.

    Source:
        DeLong et al. 1988, Biometrics 44:837; van Elteren 1960 (stratified Wilcoxon test); Mann and Whitney 1947.
    """
    if strata is None:
        strata = np.zeros(len(levels), dtype=np.int64)
    count = int(levels.max()) + 1 if len(levels) else 0
    tables = []
    for stratum in range(int(strata.max()) + 1 if len(strata) else 0):
        inside = strata == stratum
        first = np.bincount(levels[inside & in_group], minlength=count).astype(float)
        rest = np.bincount(levels[inside & ~in_group], minlength=count).astype(float)
        if first.sum() >= 2 and rest.sum() >= 2:
            tables.append((first, rest))
    n, n_rest = (int(sum(table[side].sum() for table in tables)) for side in (0, 1))
    rows = n + n_rest
    total = sum((first + rest for first, rest in tables), np.zeros(count))
    if not tables or np.count_nonzero(total) < 2:
        return Estimate(n=n, n_rest=n_rest)
    pseudo = _pseudo_rows(total)
    parts = [_auc(first, rest, pseudo * ((first.sum() + rest.sum()) / rows)) for first, rest in tables]
    weights = np.array([first.sum() * rest.sum() / (first.sum() + rest.sum() + 1) for first, rest in tables])
    weights /= weights.sum()
    auc, shrunk, variance = (np.array(part) for part in zip(*parts, strict=True))
    effect = 2 * float(weights @ auc) - 1
    deviation = 2 * math.sqrt(float(weights**2 @ variance))
    low, high = _artanh_interval(effect, 2 * float(weights @ shrunk) - 1, deviation)
    return Estimate(effect, low, high, _rank_sum_p(tables), n, n_rest)


def _pseudo_rows(total: Float[Array, " levels"]) -> Float[Array, " levels"]:
    """One row at the lowest level and one at the median of those above it."""
    held = np.flatnonzero(total)
    above = total.copy()
    above[held[0]] = 0
    middle = int(np.searchsorted(np.cumsum(above), above.sum() / 2))
    pseudo = np.zeros(len(total))
    pseudo[held[0]] = pseudo[middle] = 1
    return pseudo


def _auc(first: Array, rest: Array, pseudo: Array) -> tuple[float, float, float]:
    """AUC of the rows; AUC and DeLong's variance with the pseudo rows in both groups."""
    auc = float(first @ _below(rest)) / (first.sum() * rest.sum())
    first, rest = first + pseudo, rest + pseudo
    n, m = first.sum(), rest.sum()
    placed, placed_rest = _below(rest) / m, 1 - _below(first) / n
    return auc, float(first @ placed) / n, _variance(placed, first) / n + _variance(placed_rest, rest) / m


def _below(counts: Array) -> Array:
    """Rows below each level, those at it counting half."""
    return np.cumsum(counts) - counts / 2


def _variance(values: Array, counts: Array) -> float:
    n = counts.sum()
    mean = counts @ values / n
    return float(counts @ (values - mean) ** 2 / (n - 1))


def _rank_sum_p(tables: list[tuple[Array, Array]]) -> float:
    """Van Elteren's sum of the rank sums over n + 1; with one stratum the Mann–Whitney test."""
    statistic = variance = third = 0.0
    for first, rest in tables:
        both = first + rest
        n = both.sum()
        ranks = (_below(both) - n / 2) / (n + 1)  # centred mid-ranks
        moments = _score_moments(ranks, both)
        share = first.sum() / n
        group = n * share * (1 - share), n * share * (1 - share) * (1 - 2 * share)
        statistic += float(first @ ranks)
        variance += moments[0] * group[0] / (n - 1)
        third += n * moments[1] * group[1] / ((n - 1) * max(n - 2, 1))
    return permutation_p(statistic, variance, third)


def _score_moments(centred: Array, counts: Array | None = None) -> tuple[float, float]:
    counts = np.ones(len(centred)) if counts is None else counts
    return float(counts @ centred**2), float(counts @ centred**3)


def _artanh_interval(effect: float, shrunk: float, deviation: float) -> tuple[float, float]:
    """95 % interval inside [−1, 1] by the delta method at the shrunk effect, around that and the effect itself."""
    half = Z * deviation / (1 - shrunk**2)
    low, high = sorted((effect * _MAX_ABS_ARTANH, shrunk))
    return min(math.tanh(math.atanh(low) - half), effect), max(math.tanh(math.atanh(high) + half), effect)


def rank_correlation(
    levels: Int[Array, " rows"], other: Int[Array, " rows"], strata: Int[Array, " rows"] | None = None
) -> Estimate:
    """Spearman's correlation with interval and permutation p; inside strata averaged with weights n − 1.

    The variance comes from the influence of each row on the correlation of mid-distribution values, which counts ties;
    the interval is made on the artanh scale. Strata of fewer than four rows are left out.

    Args:
        levels: Rank of each row's value among the different values (`dense_ranks`).
        other: The same for the other variable.
        strata: 0 … strata − 1, what to correlate within.
    """
    if strata is None:
        strata = np.zeros(len(levels), dtype=np.int64)
    weights, effects, variances = [], [], []
    statistic = variance = third = 0.0
    for stratum in range(int(strata.max()) + 1 if len(strata) else 0):
        inside = strata == stratum
        n = int(inside.sum())
        if n < 4 or np.ptp(levels[inside]) == 0 or np.ptp(other[inside]) == 0:
            continue
        f, g = _mid_distribution(levels[inside]), _mid_distribution(other[inside])
        effect, influence = _spearman_influence(levels[inside], other[inside], f, g)
        effects.append(effect)
        variances.append(float(influence @ influence) / (n * (n - 3)))
        weights.append(n - 1.0)
        a, b = _score_moments(f - 0.5), _score_moments(g - 0.5)
        statistic += float((f - 0.5) @ (g - 0.5))
        variance += a[0] * b[0] / (n - 1)
        third += n * a[1] * b[1] / ((n - 1) * (n - 2))
    rows = int(sum(weights)) + len(weights)
    if not weights:
        return Estimate(n=rows)
    share = np.array(weights) / sum(weights)
    effect = float(share @ np.array(effects))
    deviation = math.sqrt(float(share**2 @ np.array(variances)))
    low, high = _artanh_interval(effect, effect * (1 - 1 / rows), deviation)
    return Estimate(effect, low, high, permutation_p(statistic, variance, third), rows)


def _mid_distribution(levels: Int[Array, " rows"]) -> Float[Array, " rows"]:
    """Share of rows below each row, those equal to it counting half."""
    counts = np.bincount(levels).astype(float)
    return _below(counts)[levels] / len(levels)


def _spearman_influence(levels: Array, other: Array, f: Array, g: Array) -> tuple[float, Array]:
    """Correlation of mid-distribution values and each row's influence on it."""
    product = f @ g / len(f)
    own = product - 0.25, f @ f / len(f) - 0.25, g @ g / len(g) - 0.25
    covariance = f * g + _mean_above(levels, g) + _mean_above(other, f) - 3 * product
    spread = [
        values**2 + 2 * _mean_above(ranks, values) - 3 * (values @ values / len(values))
        for ranks, values in ((levels, f), (other, g))
    ]
    scale = math.sqrt(own[1] * own[2])
    effect = own[0] / scale
    influence = covariance / scale - effect / 2 * (spread[0] / own[1] + spread[1] / own[2])
    return float(np.clip(effect, -1, 1)), influence


def _mean_above(levels: Array, values: Array) -> Array:
    """For each row: the mean over all rows of `values` where the level lies above its own, half where it is equal."""
    sums = np.bincount(levels, weights=values)
    return (sums.sum() - np.cumsum(sums) + sums / 2)[levels] / len(levels)


def dense_ranks(values: Float[Array, " rows"]) -> Int[Array, " rows"]:
    """0 for the smallest value, 1 for the next different one, and so on."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)
