"""Parents and children: planted pairs, independent latents, the statistics against SciPy."""

from __future__ import annotations

import planted
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import dictionary_of

import nb_sae as ns
from nb_sae.errors import ConfigError
from nb_sae.sae import metrics
from nb_sae.sae.metrics.hierarchy import benjamini_hochberg, hypergeometric_tail


def activity(rows: int = 4_000, *, seed: int = 0) -> torch.Tensor:
    """Latent 0 (30 %) is the parent of 1 and 2; 3 is like them but for a tenth of its rows; 4 … 23 are independent."""
    draw = torch.rand(rows, 24, generator=torch.Generator().manual_seed(seed))
    active = draw < torch.linspace(0.02, 0.3, 24)
    active[:, 0] = draw[:, 0] < 0.3
    for child in (1, 2, 3):
        active[:, child] = active[:, 0] & (draw[:, child] < 0.2)
    active[:, 3] |= draw[:, 3] > 0.994
    return active


def test_planted_parents_are_found_with_their_numbers():
    active = activity()
    found = metrics.parent_child(metrics.co_activity(active, chunk_rows=333))
    pairs = set(found.pairs.select("parent", "child").iter_rows())
    assert pairs == {(0, 1), (0, 2), (0, 3)}
    assert found.found_null == 0
    line = found.pairs.filter(pl.col("child") == 3).row(0, named=True)
    parent, child = active[:, 0], active[:, 3]
    assert line["conditional"] == pytest.approx(float(parent[child].double().mean()))
    assert 0.8 < line["conditional"] < 1
    assert line["base_rate"] == pytest.approx(float(parent.double().mean()))
    assert line["lift"] == pytest.approx(line["conditional"] / line["base_rate"])
    assert line["q_value"] < 1e-10


def test_independent_latents_give_no_pairs_whatever_the_conditional_asked_for():
    active = torch.rand(3_000, 60, generator=torch.Generator().manual_seed(1)) < torch.linspace(0.02, 0.7, 60)
    found = metrics.parent_child(metrics.co_activity(active), at_least=1e-9, fdr=0.01)
    assert found.tested > 1_000
    assert found.pairs.height <= 2
    assert found.found_null <= 2


def test_relations_between_levels_take_parents_from_one_and_children_from_another():
    """The planted parent is on level 0: it has children on level 1; in the other direction there is nothing."""
    active = activity()
    level = torch.tensor([0, 1, 1] + [0, 1] * 10 + [1])
    counts = metrics.co_activity(active)
    coarse, fine = ((level == one).nonzero()[:, 0].tolist() for one in (0, 1))
    down = metrics.parent_child(counts, parents=coarse, children=fine)
    assert set(down.pairs.select("parent", "child").iter_rows()) == {(0, 1), (0, 2)}
    assert down.tested < metrics.parent_child(counts).tested
    assert metrics.parent_child(counts, parents=fine, children=coarse).pairs.is_empty()


def test_hierarchy_of_a_dictionary_is_that_of_its_activity(orthogonal):
    dictionary, rows, coefficients = orthogonal
    counts = metrics.co_activity(dictionary, ns.ActivationStore.from_tensor(rows), chunk_rows=512)
    active = (coefficients > 0).double()
    assert torch.equal(counts.both.double(), active.T @ active)
    some = metrics.co_activity(dictionary, rows, latents=[7, 3])
    assert some.latents.tolist() == [3, 7]
    assert some.both[0, 1] == counts.both[3, 7]
    assert metrics.parent_child(counts).pairs.is_empty(), "atoms drawn independently have no parents"


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(2, 300), data=st.data())
def test_tail_of_common_rows_equals_scipy(rows, data):
    from scipy.stats import hypergeom

    a, b = (data.draw(st.integers(1, rows)) for _ in range(2))
    both = data.draw(st.integers(max(0, a + b - rows), min(a, b)))
    p = float(hypergeometric_tail(torch.tensor([both]), rows, torch.tensor([a]), torch.tensor([b]))[0])
    if both > a * b / rows:
        assert p == pytest.approx(hypergeom.sf(both - 1, rows, a, b), rel=1e-7, abs=1e-300)
    else:
        assert p == 1


@settings(deadline=None, max_examples=50)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_false_discovery_rates_equal_scipy(p):
    from scipy.stats import false_discovery_control

    found = benjamini_hochberg(torch.tensor(p, dtype=torch.double))
    assert found.numpy() == pytest.approx(false_discovery_control(p), rel=1e-9, abs=1e-12)


def test_hierarchy_refuses_unknown_latents_and_survives_three_rows():
    counts = metrics.co_activity(torch.tensor([[1, 0], [1, 1], [0, 0]]) > 0)
    assert metrics.parent_child(counts, min_child_rows=1).pairs.is_empty()
    assert metrics.parent_child(counts).tested == 0
    with pytest.raises(ConfigError, match="latent 9 was not counted"):
        metrics.parent_child(counts, parents=[9])
    with pytest.raises(ConfigError, match="fdr=0"):
        metrics.parent_child(counts, fdr=0)
    with pytest.raises(ConfigError, match="without rows"):
        metrics.co_activity(dictionary_of(planted.atoms(4, 3)))
