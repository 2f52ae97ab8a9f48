"""Decoder directions: orthogonality against all pairs, MMCS against the truth, each beside its null."""

from __future__ import annotations

import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import dictionary_of, gaussian
from torch.nn import functional as F

from nb_sae.errors import ShapeError
from nb_sae.sae import metrics


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 40), d=st.integers(2, 20), seed=st.integers(0, 1000))
def test_orthogonality_equals_the_matrix_of_all_pairs(n, d, seed):
    W = gaussian(n, d, seed=seed)
    cosines = F.normalize(W, dim=-1) @ F.normalize(W, dim=-1).T
    pairs = cosines[~torch.eye(n, dtype=torch.bool)]
    found = metrics.orthogonality(W)
    assert found.value == pytest.approx(float(pairs.square().mean()), rel=1e-9, abs=1e-12)
    assert found.value >= found.welch - 1e-9


def test_orthogonality_of_random_rows_is_one_over_d_and_of_a_basis_zero():
    found = metrics.orthogonality(gaussian(2000, 64))
    assert found.random == 1 / 64
    assert found.value == pytest.approx(1 / 64, rel=0.02)
    assert 0.9 / 64 < found.welch < found.value
    basis = metrics.orthogonality(torch.eye(8))
    assert basis.value == 0
    assert basis.welch == 0
    assert metrics.orthogonality(torch.ones(5, 3)).value == pytest.approx(1)


def test_a_row_without_direction_is_named():
    with pytest.raises(ShapeError, match="Row 1 of the decoder has norm 0"):
        metrics.orthogonality(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ShapeError, match="pair needs two"):
        metrics.orthogonality(torch.ones(1, 4))


def test_mmcs_of_the_truth_is_one_and_of_random_rows_its_null():
    atoms = planted.atoms(100, 32)
    found = metrics.mmcs(dictionary_of(atoms.flip(0)), 7 * atoms)
    assert found.value == pytest.approx(1, abs=1e-6)
    assert torch.equal(found.nearest, torch.arange(100).flip(0))
    other = metrics.mmcs(planted.atoms(100, 32, seed=9), atoms)
    assert other.value == pytest.approx(other.null, abs=0.02)
    assert metrics.mmcs(-atoms, atoms).value < 0.6, "a direction that points the other way is another latent"
    assert metrics.mmcs(planted.atoms(2000, 32, seed=9), atoms).null > other.null, "chance grows with the size"
    with pytest.raises(ShapeError, match="width 32"):
        metrics.mmcs(atoms[:, :16], atoms)
