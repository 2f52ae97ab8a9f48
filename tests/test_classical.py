"""PCA, ICA, NMF and random directions: what they find, what they refuse, and that they read like a dictionary."""

from __future__ import annotations

import importlib
import math

import planted
import pytest
import torch
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.errors import ConfigError, MissingDependencyError, NonFiniteError, ShapeError, StoreError
from nb_sae.sae import classical, metrics


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return planted.sparse_rows(planted.atoms(64, 24), 3_000)[0] + 5


@pytest.fixture(scope="module")
def non_negative() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight non-negative atoms without overlap, and rows of two of them each."""
    atoms = torch.eye(8).repeat_interleave(3, dim=1) * (
        0.5 + torch.rand(24, generator=torch.Generator().manual_seed(0))
    )
    return planted.sparse_rows(atoms, 1_000, active=2)[0], F.normalize(atoms, dim=-1)


def test_pca_at_k_is_the_singular_value_decomposition(rows):
    found = classical.pca(ns.ActivationStore.from_tensor(rows))
    centred = rows.double() - rows.double().mean(0)
    U, S, V = torch.linalg.svd(centred, full_matrices=False)
    for k in (1, 7, 24):
        expected = (U[:, :k] * S[:k]) @ V[:k] + rows.double().mean(0)
        torch.testing.assert_close(found.decode(found.encode(rows, k)).double(), expected, atol=1e-4, rtol=1e-4)
        left = float(S[k:].square().sum() / S.square().sum())
        assert metrics.fvu(rows, found.decode(found.encode(rows, k))) == pytest.approx(left, rel=1e-4, abs=1e-9)


def test_pca_takes_the_first_components_whatever_the_row(rows):
    values, indices = classical.pca(rows).encode(rows, 3, sparse=True)
    assert torch.equal(indices, torch.arange(3).expand(3_000, 3))
    assert (values < 0).any()


def test_pca_of_rows_far_from_the_origin_keeps_its_digits():
    x = torch.randn(2_000, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2, 1, 0.5, 0.2, 0.1])
    near, far = (classical.pca(x + offset).about["explained_variance"] for offset in (0, 1_000))
    assert far == pytest.approx(near, rel=1e-3)


@pytest.mark.parametrize(("contrast", "skewed"), [("logcosh", False), ("cube", True)])
def test_ica_finds_planted_independent_directions(contrast, skewed):
    draw = torch.rand(5_000, 6, generator=torch.Generator().manual_seed(0))
    sources = draw**4 if skewed else (2 * draw - 1) ** 5  # far from Gaussian
    mixing = planted.atoms(6, 10, seed=3)
    x = sources @ mixing
    found = classical.ica(x, 6, contrast=contrast)
    assert found.about["converged"]
    assert (mixing @ found.W_dec.T).abs().max(-1).values.min() > 0.98
    assert (mixing @ classical.pca(x).W_dec[:6].T).abs().max(-1).values.mean() < 0.95, "PCA does not"
    assert metrics.fvu(x, found.decode(found.encode(x))) < 1e-6


def test_nmf_finds_planted_parts(non_negative):
    rows, atoms = non_negative
    found = classical.nmf(rows, 8)
    assert (atoms @ found.W_dec.T).max(-1).values.min() > 0.99
    assert metrics.fvu(rows, found.decode(found.encode(rows, 2))) < 0.01
    assert (found.encode(rows) >= 0).all()


def test_nmf_refuses_negative_rows_and_states_its_shift(rows):
    centred = rows - rows.mean(0)
    with pytest.raises(ConfigError, match="shift='minimum'"):
        classical.nmf(centred, 8)
    found = classical.nmf(centred, 8, shift="minimum", iterations=50)
    assert found.about["shift"] == "minimum"
    torch.testing.assert_close(found.b_dec, centred.min(0).values)
    fvu = metrics.fvu(centred, found.decode(found.encode(centred)))
    assert fvu == pytest.approx(found.about["fit_fvu"], rel=0.05)
    svd = metrics.fvu(centred, classical.pca(centred).decode(classical.pca(centred).encode(centred, 8)))
    assert svd < fvu < 1.5 * svd, "the fit ran to its end"
    assert (found.encode(centred - 100) == 0).all(), "rows below the shift count as zero"


def slow_pursuit(x: torch.Tensor, W: torch.Tensor, k: int) -> torch.Tensor:
    """One row at a time: the direction nearest to what is left, each once."""
    left, free = x.clone(), list(range(len(W)))
    for _ in range(k):
        best = max(free, key=lambda j: abs(float(left @ W[j])))
        left = left - (left @ W[best]) * W[best]
        free.remove(best)
    return x - left


@pytest.mark.parametrize("gram", [True, False])
def test_random_directions_are_read_by_matching_pursuit(rows, gram, monkeypatch):
    if not gram:
        monkeypatch.setattr(classical, "GRAM_LATENTS", 0)
    found = classical.random(rows, 50, seed=1)
    x_hat = found.decode(found.encode(rows[:10], 6))
    for row, reconstructed in zip(rows[:10], x_hat, strict=True):
        expected = slow_pursuit(row - found.b_dec, found.W_dec, 6) + found.b_dec
        torch.testing.assert_close(reconstructed, expected, atol=1e-4, rtol=1e-4)
    values, indices = found.encode(rows, 6, sparse=True)
    assert all(len(set(row)) == 6 for row in indices.tolist())
    assert values.shape == (3_000, 6)


def test_more_random_directions_explain_more_but_not_what_the_truth_does(rows):
    errors = [metrics.recovery_curve(classical.random(rows, n), rows, (4,))["fvu"][0] for n in (24, 256)]
    assert 1 > errors[0] > errors[1]
    atoms = planted.atoms(64, 24)
    codes = lambda z, k: classical._pursuit(z, atoms, None, k)  # noqa: E731
    truth = classical.Baseline("truth", atoms, torch.full((24,), 5.0), codes)
    learned, chance = (metrics.recovery_curve(one, rows, (4,))["fvu"][0] for one in (truth, classical.random(rows, 64)))
    assert learned < 0.6 * chance


@pytest.mark.parametrize("make", ["pca", "ica", "nmf", "random"])
def test_every_baseline_reads_like_a_dictionary(make, non_negative):
    x, _ = non_negative
    found = {
        "pca": lambda: classical.pca(x),
        "ica": lambda: classical.ica(x, 6),
        "nmf": lambda: classical.nmf(x, 6),
        "random": lambda: classical.random(x, 40),
    }[make]()
    torch.testing.assert_close(found.W_dec.norm(dim=-1), torch.ones(found.d_sae))
    values, indices = found.encode(x, 4, sparse=True)
    torch.testing.assert_close(found.decode((values, indices)), found.decode(found.encode(x, 4)), atol=1e-5, rtol=1e-5)
    fewer = found.encode(x, 2, sparse=True)
    torch.testing.assert_close(fewer[0], values[:, :2])
    if make not in ("pca", "random"):
        assert (values.abs().diff(dim=-1) <= 0).all()
    assert metrics.orthogonality(found).value >= 0
    with pytest.raises(ShapeError, match=r"takes \(rows, 24\)"):
        found.encode(x[:, :5])
    with pytest.raises(ConfigError, match="k=99 is outside"):
        found.encode(x, 99)
    with pytest.raises(StoreError, match="width 5"):
        found.check(ns.ActivationStore.from_tensor(x[:, :5]))


@pytest.mark.parametrize("make", [classical.pca, classical.ica, classical.nmf])
def test_equal_rows_and_nan_are_refused(make):
    with pytest.raises(StoreError, match="All rows are equal"):
        make(torch.ones(20, 4))
    with pytest.raises(NonFiniteError, match="Row 3"):
        make(torch.rand(20, 4).index_fill(0, torch.tensor(3), math.nan))
    with pytest.raises(ShapeError, match="at least one"):
        make(torch.ones(0, 4))


def test_three_rows_have_two_components():
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    found = classical.pca(x)
    assert metrics.fvu(x, found.decode(found.encode(x, 2))) < 1e-9
    with pytest.raises(ConfigError, match="expected 1 to 3"):
        classical.ica(x, 4)


def test_fits_are_those_of_the_seed(rows):
    one, same, other = (classical.ica(rows, 8, fit_rows=500, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.W_dec, same.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)
    assert one.about["fit_rows"] == 500


@pytest.mark.parametrize("make", [classical.ica, classical.nmf])
def test_without_scikit_learn_the_error_says_what_to_install(make, rows, monkeypatch):
    real = importlib.import_module
    blocked = lambda name: (_ for _ in ()).throw(ImportError(name)) if name.startswith("sklearn") else real(name)  # noqa: E731
    monkeypatch.setattr(classical, "import_module", blocked)
    with pytest.raises(MissingDependencyError, match=r'pip install "nb_sae\[baselines\]"'):
        make(rows)
    assert classical.pca(rows).d_sae == 24, "PCA needs nothing"


# --- linear maps -------------------------------------------------------------------------------------------------


def pairs_of(x: torch.Tensor, y: torch.Tensor):
    return ns.pair(ns.ActivationStore.from_tensor(x, site="in"), ns.ActivationStore.from_tensor(y, site="out"))


def test_linear_maps_of_every_rank_are_the_best_there_are():
    """Against least squares followed by a singular value decomposition of what it fits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 7, generator=generator) + 3
    y = x @ torch.randn(7, 5, generator=generator) + torch.randn(400, 5, generator=generator) - 2
    found = ns.classical.linear_map(pairs_of(x, y))
    assert (found.d_in, found.d_out, found.d_sae, found.site, found.target) == (7, 5, 5, "in", "out")
    centred, wanted = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    fitted = centred @ torch.linalg.lstsq(centred, wanted).solution
    U, S, V = torch.linalg.svd(fitted, full_matrices=False)
    for k in range(1, 6):
        best = (U[:, :k] * S[:k]) @ V[:k]
        expected = metrics.fvu(y.double(), best + y.double().mean(0))
        assert metrics.fvu(y, found.decode(found.encode(x, k, sparse=True))) == pytest.approx(expected, rel=1e-5)
    curve = metrics.recovery_curve(found, pairs_of(x, y), (5,))
    assert curve["fvu"][0] == pytest.approx(expected, rel=1e-5)


def test_a_planted_linear_map_is_found_exactly_and_a_shuffled_one_not_at_all():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2_000, 6, generator=generator)
    y = x @ torch.randn(6, 9, generator=generator)
    train, test = pairs_of(x[:1_500], y[:1_500]), (x[1_500:], y[1_500:])
    exact = ns.classical.linear_map(train)
    assert metrics.fvu(test[1], exact.decode(exact.encode(test[0]))) < 1e-9
    order = torch.randperm(1_500, generator=generator)
    null = ns.classical.linear_map(pairs_of(x[:1_500], y[:1_500][order]))
    assert metrics.fvu(test[1], null.decode(null.encode(test[0]))) > 0.97


def test_linear_maps_need_pairs_and_live_with_rows_in_few_dimensions():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) @ torch.randn(2, 30) + 100
    flat = ns.classical.linear_map(pairs_of(x, 2 * x + 1))
    assert metrics.fvu(2 * x + 1, flat.decode(flat.encode(x, 2))) < 1e-6
    with pytest.raises(StoreError, match=r"ns\.pair\(x, y\)"):
        ns.classical.linear_map(ns.ActivationStore.from_tensor(x))
