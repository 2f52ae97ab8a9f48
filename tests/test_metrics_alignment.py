"""One-to-one matching of dictionaries: against sorting all pairs, planted permutations, both nulls."""

from __future__ import annotations

import builtins

import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import dictionary_of, gaussian
from torch.nn import functional as F

from nb_sae.errors import ConfigError, MissingDependencyError, ShapeError
from nb_sae.sae import metrics


def slow_greedy(similarity: torch.Tensor) -> list[tuple[int, int]]:
    """All pairs, the largest first."""
    order = similarity.flatten().argsort(descending=True).tolist()
    rows, columns, pairs = set(), set(), []
    for flat in order:
        row, column = divmod(flat, similarity.shape[1])
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            pairs.append((row, column))
    return sorted(pairs)


@settings(deadline=None, max_examples=25)
@given(n_a=st.integers(1, 90), n_b=st.integers(1, 90), d=st.integers(2, 6), seed=st.integers(0, 1000))
def test_greedy_matching_equals_sorting_all_pairs(n_a, n_b, d, seed):
    a, b = (F.normalize(gaussian(n, d, seed=seed + i), dim=-1) for i, n in enumerate((n_a, n_b)))
    found = metrics.align(a, b, method="greedy")
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == slow_greedy(a @ b.T)


def test_a_permuted_noisy_copy_is_found_again_by_both_methods():
    a = planted.atoms(120, 32)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    b = F.normalize(a[order] + 0.05 * planted.atoms(120, 32, seed=5), dim=-1)
    for method in ("hungarian", "greedy"):
        found = metrics.align(a, b, method=method)
        assert torch.equal(found.second, order.argsort())
        assert found.shared == 1
        assert found.value > 0.99
        assert found.null < 0.5
        assert found.shared_null < 0.05


def test_hungarian_is_at_least_as_good_as_greedy_and_random_rows_are_at_their_null():
    a, b = planted.atoms(150, 24), planted.atoms(150, 24, seed=4)
    exact, greedy = metrics.align(a, b), metrics.align(a, b, method="greedy")
    assert exact.value >= greedy.value
    assert exact.value == pytest.approx(exact.null, abs=0.02)
    assert greedy.value == pytest.approx(greedy.null, abs=0.02)


def test_directions_in_few_dimensions_need_the_null_with_their_covariance():
    frame = torch.linalg.qr(gaussian(64, 4)).Q.T.float()
    a, b = (planted.atoms(100, 4, seed=s) @ frame for s in (1, 2))
    loose, hard = metrics.align(a, b), metrics.align(a, b, null="covariance")
    assert loose.null < 0.5 < loose.value, "they look alike against directions from everywhere"
    assert hard.value == pytest.approx(hard.null, abs=0.03), "and no more alike than chance in their four dimensions"


def test_alignment_says_when_both_dictionaries_started_alike():
    one, same, other = (dictionary_of(planted.atoms(9, 4), provenance={"train": {"seed": n}}) for n in (0, 0, 1))
    assert "both were trained from seed 0" in metrics.align(one, same).note
    assert metrics.align(one, other).note == ""
    assert metrics.align(one, dictionary_of(planted.atoms(9, 4))).note == ""


def test_alignment_reads_encoders_and_refuses_other_widths():
    atoms = planted.atoms(20, 8)
    d = dictionary_of(atoms)
    assert metrics.align(d, d, side="encoder").value == pytest.approx(1)
    with pytest.raises(ShapeError, match="width 8 and 7"):
        metrics.align(d, planted.atoms(20, 7))
    with pytest.raises(ConfigError, match="'hungarian' or 'greedy'"):
        metrics.align(d, d, method="both")


def test_hungarian_without_scipy_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r'pip install "nb_sae\[baselines\]"'):
        metrics.align(planted.atoms(4, 3), planted.atoms(4, 3))
