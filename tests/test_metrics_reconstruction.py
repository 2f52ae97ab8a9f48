"""FVU, cosine and L0 against their definitions, in one piece and in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from metric_fakes import gaussian
from torch.nn import functional as F

from nb_sae.errors import NonFiniteError, ShapeError
from nb_sae.sae import metrics


def test_other_shapes_are_refused_not_broadcast():
    with pytest.raises(ShapeError, match="Decode the latents of the same rows"):
        metrics.fvu(gaussian(5, 3), gaussian(3))
    with pytest.raises(ShapeError, match=r"\(4, 3\)"):
        metrics.cosine(gaussian(5, 3), gaussian(4, 3))


def test_running_quality_equals_the_definitions_despite_a_large_mean():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator) + 1e3
    x_hat = x + 0.1 * torch.randn(300, 5, generator=generator)
    running = metrics.RunningQuality(1)
    for start in range(0, 300, 70):
        part = slice(start, start + 70)
        running.add(x[part], [x_hat[part]], [torch.full((len(x[part]),), 3)])
    result = running.result()[0]
    assert result["fvu"] == pytest.approx(metrics.fvu(x, x_hat), rel=1e-6)
    assert result["cosine"] == pytest.approx(metrics.cosine(x, x_hat), rel=1e-9)
    assert result["l0"] == 3


def test_fvu_is_one_for_the_mean_and_nan_when_nothing_varies():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert metrics.fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1.0)
    assert metrics.fvu(x, x) == 0
    assert torch.isnan(torch.tensor(metrics.fvu(torch.ones(4, 3), torch.zeros(4, 3))))


@pytest.mark.parametrize("metric", [metrics.fvu, metrics.cosine])
def test_rows_that_are_not_finite_are_named(metric):
    x = gaussian(6, 3)
    for bad in (math.nan, math.inf):
        broken = x.clone()
        broken[4, 1] = bad
        with pytest.raises(NonFiniteError, match="Row 4 of the reconstructions"):
            metric(x, broken)
        with pytest.raises(NonFiniteError, match="Row 4 of the rows"):
            metric(broken, x)


def test_cosine_of_a_row_without_direction_counts_as_0():
    x = torch.eye(4)
    assert metrics.cosine(x, torch.cat([x[:1], torch.zeros(3, 4)])) == pytest.approx(0.25)


def test_cosine_by_chance_is_high_where_rows_share_a_mean_and_fvu_is_not():
    """The null of both: the mean of the rows in place of a reconstruction."""
    x = gaussian(500, 8) + 20
    mean = x.mean(0).expand_as(x)
    assert metrics.cosine(x, mean) > 0.99
    assert metrics.fvu(x, mean) == pytest.approx(1)
    assert abs(metrics.cosine(x - 20, gaussian(500, 8, seed=1))) < 0.1


def test_cosine_of_a_scaled_reconstruction_is_one():
    x = F.normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert metrics.cosine(x, 3 * x) == pytest.approx(1.0)
    assert metrics.dead_fraction(torch.tensor([0, 3, 0, 1])) == 0.5
    assert metrics.l0(torch.tensor([[0.0, 1.0], [2.0, 3.0]])) == 1.5
