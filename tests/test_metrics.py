"""The metrics against slow literal oracles, planted truths, chance, and rows that define nothing."""

from __future__ import annotations

import builtins
import math

import planted
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.errors import ConfigError, MissingDependencyError, NonFiniteError, ShapeError
from nb_sae.sae import metrics
from nb_sae.sae.metrics.hierarchy import benjamini_hochberg, hypergeometric_tail
from nb_sae.sae.metrics.probe import split_rows
from nb_sae.sae.metrics.rows import rows_at_a_time


def gaussian(*shape: int, seed: int = 0, dtype=torch.double) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dictionary_of(directions: torch.Tensor, *, budgets=(4,), **about) -> ns.Dictionary:
    """An encoder that reads the directions by their inner products."""
    weights = {
        "W_enc": directions.T.float().contiguous(),
        "b_enc": torch.zeros(len(directions)),
        "W_dec": directions.float(),
        "b_dec": torch.zeros(directions.shape[1]),
    }
    return ns.Dictionary(weights, budgets=budgets, **about)


@pytest.fixture(scope="module")
def orthogonal() -> tuple[ns.Dictionary, torch.Tensor, torch.Tensor]:
    """A dictionary of 32 orthonormal atoms, rows of 4 of them each, and what is truly active."""
    directions = torch.linalg.qr(gaussian(32, 32)).Q
    rows, coefficients = planted.sparse_rows(directions.float(), 3_000)
    return dictionary_of(directions, budgets=(1, 2, 4)), rows, coefficients


# --- CKNNA -------------------------------------------------------------------------------------------------------


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


# --- usage -------------------------------------------------------------------------------------------------------


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


# --- reconstruction and recovery ---------------------------------------------------------------------------------


def test_other_shapes_are_refused_not_broadcast():
    with pytest.raises(ShapeError, match="Decode the latents of the same rows"):
        metrics.fvu(gaussian(5, 3), gaussian(3))
    with pytest.raises(ShapeError, match=r"\(4, 3\)"):
        metrics.cosine(gaussian(5, 3), gaussian(4, 3))


def test_recovery_curve_equals_one_encode_per_k(orthogonal):
    dictionary, rows, _ = orthogonal
    curve = metrics.recovery_curve(dictionary, rows, (1, 2, 3, 8), chunk_rows=999)
    for line in curve.iter_rows(named=True):
        latents = dictionary.encode(rows, k=line["k"])
        x_hat = dictionary.decode(latents)
        assert line["fvu"] == pytest.approx(metrics.fvu(rows, x_hat), rel=1e-5, abs=1e-9)
        assert line["cosine"] == pytest.approx(metrics.cosine(rows, x_hat), rel=1e-6)
        assert line["l0"] == pytest.approx(metrics.l0(latents))
        assert line["dead"] == pytest.approx(float((latents == 0).all(0).float().mean()))
        assert line["rows"] == 3_000


def test_recovery_ends_at_the_number_of_atoms_in_a_row(orthogonal):
    dictionary, rows, _ = orthogonal
    curve = metrics.recovery_curve(dictionary, ns.ActivationStore.from_tensor(rows))
    assert curve["k"].to_list() == [1, 2, 4, 8, 16, 32]
    assert curve["fvu"][:3].is_sorted(descending=True)
    assert curve.filter(pl.col("k") == 2)["fvu"][0] > 0.1
    assert curve.filter(pl.col("k") == 4)["fvu"][0] < 1e-9
    assert curve.filter(pl.col("k") == 32)["dead"][0] == 0


def test_recovery_of_normalised_rows_undoes_the_norm(orthogonal):
    plain, rows, _ = orthogonal
    weights = {name: getattr(plain, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    normed = ns.Dictionary(weights, budgets=(4,), row_norm="constant_norm")
    curve = metrics.recovery_curve(normed, 5 * rows, (4,))
    assert curve["fvu"][0] < 1e-9


def test_recovery_of_three_equal_rows_has_no_variance_to_explain(orthogonal):
    curve = metrics.recovery_curve(orthogonal[0], torch.ones(3, 32), (1,))
    assert math.isnan(curve["fvu"][0])


@pytest.mark.parametrize(
    ("rows", "ks", "error", "message"),
    [
        (torch.ones(5, 32), (4, 2), ConfigError, "ascending numbers from 1 to d_sae=32"),
        (torch.ones(5, 32), (0,), ConfigError, "ascending"),
        (torch.ones(5, 32), (33,), ConfigError, "d_sae=32"),
        (torch.ones(5, 31), (4,), ShapeError, "width 31"),
        (torch.ones(0, 32), (4,), ShapeError, "at least one"),
        (torch.full((5, 32), torch.inf), (4,), NonFiniteError, "Row 0"),
    ],
)
def test_recovery_refuses_bad_rows_and_ks(orthogonal, rows, ks, error, message):
    with pytest.raises(error, match=message):
        metrics.recovery_curve(orthogonal[0], rows, ks)


def test_a_large_dictionary_takes_fewer_rows_at_a_time():
    large, small = dictionary_of(planted.atoms(2**14, 4)), dictionary_of(planted.atoms(8, 4))
    assert rows_at_a_time(None, small) == 4096
    assert rows_at_a_time(None, small, large) == 512
    assert rows_at_a_time(7, large) == 7
    with pytest.raises(ConfigError, match="chunk_rows=0"):
        metrics.recovery_curve(small, torch.ones(3, 4), (1,), chunk_rows=0)


def test_a_transcoder_is_refused_where_x_hat_would_be_compared_with_x():
    weights = {"W_enc": torch.ones(4, 6), "b_enc": torch.zeros(6), "W_dec": torch.ones(6, 5), "b_dec": torch.zeros(5)}
    transcoder = ns.Dictionary(weights, target="mlp_out", pre_bias=False)
    with pytest.raises(ConfigError, match="transcoder"):
        metrics.recovery_curve(transcoder, torch.ones(3, 4), (1,))


# --- directions --------------------------------------------------------------------------------------------------


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


# --- alignment ---------------------------------------------------------------------------------------------------


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


# --- linear probe ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows about four centres far from the origin, in units of a thousand."""
    labels = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(0))
    rows = 3 * planted.atoms(4, 16)[labels] + 0.5 * gaussian(400, 16).float()
    return 1000 * rows + 50, labels


@pytest.mark.parametrize("optimiser", ["lbfgs", "adamw"])
def test_probe_learns_and_keeps_a_copy_of_its_best_weights(labelled, optimiser):
    x, labels = labelled
    probe = metrics.train_probe(x, labels, optimiser=optimiser, weight_decay=0, iterations=80, patience=80)
    held = probe.validation_rows
    loss = F.nll_loss(probe.log_probabilities(x[held]), labels[held])
    assert float(loss) == pytest.approx(min(probe.history), rel=1e-5)
    assert (probe.log_probabilities(x).argmax(-1) == labels).float().mean() > 0.95


def test_best_weights_are_not_those_that_overfit_last():
    x = gaussian(60, 40).float()
    labels = (x[:, 0] + gaussian(60, seed=3).float() > 0).long()
    probe = metrics.train_probe(x, labels, weight_decay=0, iterations=100, patience=100)
    assert probe.history[-1] > 1.1 * probe.validation_loss
    held = probe.validation_rows
    assert float(F.nll_loss(probe.log_probabilities(x[held]), labels[held])) == pytest.approx(probe.validation_loss)


def test_probe_on_perfect_reconstructions_agrees_and_on_noise_is_at_its_null(labelled):
    x, labels = labelled
    same = metrics.linear_probe(x, x, labels)
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert same.agreement == 1
    assert same.accuracy == same.accuracy_reconstructed > 0.95
    assert same.accuracy_null < 0.4
    assert same.kl_null > 1
    noise = metrics.linear_probe(x, 1000 * gaussian(400, 16, seed=8).float() + 50, labels)
    assert noise.agreement == pytest.approx(noise.agreement_null, abs=0.12)
    assert noise.kl > 10 * max(same.kl, 1e-3)
    assert noise.rows == 120


def test_probe_fidelity_equals_its_definition(labelled):
    x, labels = labelled
    x_hat = x + 300 * gaussian(400, 16, seed=8).float()
    probe = metrics.train_probe(x[:300], labels[:300])
    found = metrics.probe_fidelity(probe, x[300:], x_hat[300:], labels[300:])
    p, q = (probe.log_probabilities(rows[300:]).double().exp() for rows in (x, x_hat))
    kl = (p * (p / q).log()).sum(-1)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.kl_std == pytest.approx(float(kl.std(correction=0)), rel=1e-4)
    assert found.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.accuracy_reconstructed == pytest.approx(float((q.argmax(-1) == labels[300:]).double().mean()))


def test_probe_keeps_the_rows_of_an_input_on_one_side():
    groups = torch.arange(40).repeat_interleave(5)
    train, held = split_rows(200, 0.3, groups=groups, seed=1)
    assert not set(groups[train].tolist()) & set(groups[held].tolist())
    assert len(held) == 60
    assert not torch.equal(held, split_rows(200, 0.3, groups=groups, seed=2)[1])


@pytest.mark.parametrize(
    ("x", "labels", "error", "message"),
    [
        (torch.ones(10, 2), torch.zeros(10, dtype=torch.long), ConfigError, "at least two"),
        (torch.ones(10, 2), torch.zeros(9, dtype=torch.long), ShapeError, "one whole number per row"),
        (torch.ones(10, 2), torch.zeros(10), ShapeError, "whole number"),
        (torch.ones(2, 2), torch.tensor([0, 1]), ConfigError, "leaves one side empty"),
        (torch.full((10, 2), torch.nan), torch.arange(10), NonFiniteError, "Row 0"),
    ],
)
def test_probe_refuses_bad_labels(x, labels, error, message):
    with pytest.raises(error, match=message):
        metrics.linear_probe(x, x, labels, test=0.1)


def test_probe_on_constant_rows_answers_the_most_frequent_label():
    labels = torch.tensor([0, 1, 1] * 20)
    found = metrics.linear_probe(torch.ones(60, 3), torch.ones(60, 3), labels)
    assert found.accuracy == found.accuracy_null
    assert found.kl == pytest.approx(0, abs=1e-9)


# --- parents and children ----------------------------------------------------------------------------------------


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


# --- the model's loss --------------------------------------------------------------------------------------------


def test_loss_recovered_is_one_at_the_clean_loss_and_zero_at_the_ablation():
    assert metrics.loss_recovered(2.0, 2.0, 5.0).value == 1
    assert metrics.loss_recovered(2.0, 5.0, 5.0).value == 0
    half = metrics.loss_recovered(lambda: torch.tensor(2.0), lambda: 3.5, lambda: 5.0)
    assert half.value == 0.5
    assert half.increase == 1.5
    assert metrics.loss_recovered(2.0, 8.0, 5.0).value == -1


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ((2.0, 2.5, 2.0), "does not change the loss"),
        ((2.0, 2.5, 1.0), "lowers the loss"),
        ((2.0, math.nan, 5.0), "not finite: spliced"),
    ],
)
def test_loss_recovered_is_undefined_with_a_reason(losses, reason):
    found = metrics.loss_recovered(*losses)
    assert math.isnan(found.value)
    assert reason in found.reason
    with pytest.raises(ConfigError, match="clean loss has shape"):
        metrics.loss_recovered(torch.ones(2), 1.0, 2.0)


def test_next_token_loss_leaves_out_padding_and_the_last_position():
    logits, ids = gaussian(2, 4, 7), torch.randint(0, 7, (2, 4), generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True, True, True, True], [True, True, False, False]])
    log_p = logits.log_softmax(-1)
    terms = [-log_p[i, t, ids[i, t + 1]] for i, t in ((0, 0), (0, 1), (0, 2), (1, 0))]
    assert metrics.next_token_loss(logits, ids, keep=keep) == pytest.approx(float(sum(terms) / 4))
    assert metrics.prediction_kl(logits, logits) == 0
    assert metrics.prediction_kl(logits, gaussian(2, 4, 7, seed=1)) > 0
    with pytest.raises(ConfigError, match="No token"):
        metrics.next_token_loss(logits[:, :1], ids[:, :1])
    with pytest.raises(ShapeError, match="expected"):
        metrics.next_token_loss(logits, ids[:, :3])


def test_loss_recovered_in_the_demo_language_model():
    """The user's glue: `intervene` puts x̂ in the place of the rows; `sae` knows no model."""
    lm, site = ns.load_lm("demo"), "gpt_neox.layers.1"
    prepare = lm.preprocessor("text", context_tokens=32)
    ids = torch.cat([prepare(text).tensor[:1] for text in ns.demo_texts(16, seed=0) if len(text) > 500])
    rows = lm.capture_rows(ids, [site], "text")[site].flatten(0, 1)
    axes, mean = ns.classical.pca(rows), rows.mean(0)
    both_ways = torch.cat([axes.W_dec, -axes.W_dec])
    weights = {"W_enc": both_ways.T, "b_enc": torch.zeros(len(both_ways)), "W_dec": both_ways, "b_dec": axes.b_dec}
    dictionary = ns.Dictionary(weights, budgets=(4, 32, axes.d_sae), site=site)

    def loss(edit=None) -> float:
        with torch.no_grad(), ns.intervene(lm, {site: edit} if edit else {}):
            return metrics.next_token_loss(lm.module(input_ids=ids).logits, ids)

    def spliced(k: int):
        return lambda x: dictionary.reconstruct(x.flatten(0, -2), k).view_as(x)

    clean, ablated = loss(), loss(lambda x: mean.expand_as(x).clone())
    assert clean + 0.5 < ablated
    recovered = [metrics.loss_recovered(clean, loss(spliced(k)), ablated).value for k in dictionary.budgets]
    assert recovered[0] < recovered[1] < recovered[2]
    assert recovered[2] == pytest.approx(1, abs=1e-3)


def test_zero_shot_with_perfect_and_with_useless_reconstructions():
    texts = planted.atoms(5, 32)
    labels = torch.arange(5).repeat(40)
    images = 10 * texts[labels] + gaussian(200, 32).float()
    same = metrics.zero_shot(images, images, texts, labels)
    assert same.accuracy == same.accuracy_reconstructed > 0.95
    assert same.kl == 0
    assert same.agreement == 1
    assert same.accuracy_null == pytest.approx(0.2)
    useless = metrics.zero_shot(images, gaussian(200, 32, seed=4).float(), texts, labels)
    assert useless.accuracy_reconstructed < 0.4
    assert useless.agreement == pytest.approx(useless.agreement_null, abs=0.15)
    with pytest.raises(ConfigError, match="from 0 to 4"):
        metrics.zero_shot(images, images, texts, labels + 1)
    with pytest.raises(ShapeError, match="expected"):
        metrics.zero_shot(images, images[:, :31], texts, labels)


# --- across modalities -------------------------------------------------------------------------------------------


def test_cross_modal_says_how_rows_were_centred_and_their_own_mean_repairs_a_shift():
    directions = torch.linalg.qr(gaussian(32, 32)).Q.float()
    images, _ = planted.sparse_rows(directions, 2_000)
    mean = images.mean(0)
    texts = 3 * (planted.sparse_rows(directions, 1_000, seed=5)[0] - mean) + mean + 2
    distance = float((images - mean).square().sum(-1).mean())
    dictionary = dictionary_of(directions, mean=mean, mean_square_distance=distance)
    frame = metrics.cross_modal({"image": dictionary}, {"image": images, "text": texts}, (2, 4))
    assert frame.height == 2 * 3 * 2

    def fvu(read_on: str, centring: str) -> float:
        chosen = (pl.col("read_on") == read_on) & (pl.col("centring") == centring) & (pl.col("k") == 4)
        return frame.filter(chosen)["fvu"][0]

    assert fvu("image", "dictionary") < 1e-6
    assert fvu("image", "own mean") == pytest.approx(fvu("image", "dictionary"), abs=1e-6)
    assert fvu("text", "dictionary") > 0.2
    assert fvu("text", "own mean and scale") < 0.05 < fvu("text", "own mean")
    one = frame.filter((pl.col("read_on") == "text") & (pl.col("centring") == "dictionary") & (pl.col("k") == 2))
    x_hat = dictionary.decode(dictionary.encode(texts, k=2))
    assert one["fvu"][0] == pytest.approx(metrics.fvu(texts, x_hat), rel=1e-4)
    assert one["cosine"][0] == pytest.approx(metrics.cosine(texts, x_hat), rel=1e-5)


def test_cross_modal_measures_in_the_units_of_the_rows_it_reads():
    directions = torch.linalg.qr(gaussian(16, 16)).Q.float()
    images, _ = planted.sparse_rows(directions, 500)
    dictionary = dictionary_of(directions, mean=images.mean(0), mean_square_distance=1.3)
    texts = 5 * images.flip(0) + 1
    frame = metrics.cross_modal({"image": dictionary}, {"text": ns.ActivationStore.from_tensor(texts)}, (3,))
    scale = math.sqrt(1.3 / float((texts - texts.mean(0)).square().sum(-1).mean()))
    for centring, s in (("own mean", 1.0), ("own mean and scale", scale)):
        moved = (texts - texts.mean(0)) * s + dictionary.mean
        x_hat = (dictionary.decode(dictionary.encode(moved, k=3)) - dictionary.mean) / s + texts.mean(0)
        line = frame.filter(pl.col("centring") == centring)
        assert line["fvu"][0] == pytest.approx(metrics.fvu(texts, x_hat), rel=1e-4)
        assert line["cosine"][0] == pytest.approx(metrics.cosine(texts, x_hat), rel=1e-5)


def test_cross_modal_needs_the_training_mean():
    with pytest.raises(ConfigError, match="'image' does not know the mean"):
        metrics.cross_modal({"image": dictionary_of(planted.atoms(4, 3))}, {"text": torch.ones(3, 3)}, (1,))
    with pytest.raises(ConfigError, match="Nothing to compare"):
        metrics.cross_modal({}, {"text": torch.ones(3, 3)}, (1,))
