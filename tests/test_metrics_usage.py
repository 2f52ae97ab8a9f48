"""Which latents are used: counts, dead latents with the rows that say so, the density histogram."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nb_sae as ns
from nb_sae.errors import ConfigError
from nb_sae.sae import metrics


def test_active_rows_are_counted_over_chunks(orthogonal):
    dictionary, rows, coefficients = orthogonal
    counts, total = metrics.count_active(dictionary, rows, chunk_rows=701)
    assert total == 3_000
    assert torch.equal(counts, (coefficients > 0).sum(0))
    one, _ = metrics.count_active(dictionary, ns.ActivationStore.from_tensor(rows), k=1)
    assert one.sum() == 3_000


def test_dead_latents_come_with_the_rows_that_say_so():
    found = metrics.dead(torch.tensor([0, 0, 5, 1]), 300)
    assert (found.count, found.d_sae, found.rows, found.fraction) == (2, 4, 300, 0.5)
    assert found.density_below == 0.01
    with pytest.raises(ConfigError, match="5 of 4 rows"):
        metrics.dead(torch.tensor([0, 5]), 4)


def test_density_histogram_keeps_the_never_active_apart_and_its_edges_hold_round_numbers():
    counts = torch.tensor([0, 0, 1, 10, 10, 100, 999, 1000])
    found = metrics.density_histogram(counts, 1000, bins_per_decade=1)
    assert found.edges == (-3.0, -2.0, -1.0, 0.0)
    assert found.never == 2
    assert found.latents == (1, 2, 3)
    assert found.uniform == pytest.approx(math.log10(counts.double().mean() / 1000))
    frame = found.frame
    assert frame["latents"].to_list() == [2, 1, 2, 3]
    assert frame["low"][0] is None


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 5000), bins=st.integers(1, 7), data=st.data())
def test_density_histogram_counts_every_latent_once(rows, bins, data):
    counts = torch.tensor(data.draw(st.lists(st.integers(0, rows), min_size=1, max_size=30)))
    found = metrics.density_histogram(counts, rows, bins_per_decade=bins)
    assert found.never + sum(found.latents) == len(counts)
    assert 10 ** found.edges[0] <= 1 / rows * (1 + 1e-9)


def test_density_histogram_when_every_latent_is_dead():
    found = metrics.density_histogram(torch.zeros(4, dtype=torch.long), 100)
    assert found.never == 4
    assert found.uniform == -math.inf
