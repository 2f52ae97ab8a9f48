"""What the tables say of each kind of dictionary: rules without a k, nested widths, normalised rows, transcoders."""

from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest
import torch

import nb_sae as ns
from nb_sae.analysis.latents import width_level
from nb_sae.errors import ConfigError, FormatError, StoreError, WidgetError
from nb_sae.sae import metrics
from nb_sae.widgets.picture import level_of

D, LATENTS = 16, 48


def dictionary(**about) -> ns.Dictionary:
    """Reads planted atoms by their inner products, less 0.2."""
    W_dec = planted.atoms(LATENTS, D)
    weights = {
        "W_enc": W_dec.T.clone(),
        "b_enc": torch.full((len(W_dec),), -0.2),
        "W_dec": W_dec,
        "b_dec": torch.zeros(D),
    }
    if about.get("sparsity") in ("jump_relu", "batch_top_k"):
        weights["threshold"] = torch.full((len(W_dec),), 0.4)
    if about.get("sparsity") == "gated":
        weights |= {"r_mag": torch.full((len(W_dec),), 0.3), "b_mag": torch.zeros(len(W_dec))}
    return ns.Dictionary(weights, **about)


@pytest.fixture(scope="module")
def store() -> ns.ActivationStore:
    rows, _ = planted.sparse_rows(planted.atoms(LATENTS, D), 2_000, active=3)
    return ns.ActivationStore.from_tensor(rows, site="planted")


OWN_RULES = [
    {"sparsity": "relu"},
    {"sparsity": "jump_relu"},
    {"sparsity": "gated"},
    {"sparsity": "batch_top_k", "budgets": (3,)},
    {"sparsity": "batch_top_k", "budgets": (1, 3)},
]


@pytest.mark.parametrize("about", OWN_RULES, ids=lambda about: f"{about['sparsity']}{about.get('budgets', '')}")
def test_a_rule_that_sets_no_k_has_one_line_with_k_null_and_the_measured_l0(store, about):
    one = dictionary(**about)
    frame = ns.analyze(one, store, progress=False).quality
    x = store[:]
    latents = one.encode(x)
    assert frame["k"].to_list() == [None]
    assert frame["l0"][0] == pytest.approx(metrics.l0(latents))
    assert len(set((latents != 0).sum(-1).tolist())) > 1, "rows differ in their number of active latents"
    assert frame["fvu"][0] == pytest.approx(metrics.fvu(x, one.decode(latents)), rel=1e-5)
    assert frame["unused"][0] == pytest.approx(float((latents == 0).all(0).double().mean()))


def test_budgets_of_a_batch_top_k_give_levels_by_the_rank_in_the_row(store):
    one = dictionary(sparsity="batch_top_k", budgets=(1, 2))
    one.W_enc[:, :3] *= 6  # so some latents are mostly the strongest of their row
    analysis = ns.analyze(one, store, progress=False)
    latents = one.encode(store[:]).double()
    rank = latents.argsort(dim=-1, descending=True).argsort(dim=-1)
    first = (latents * (rank == 0)).sum(0)
    expected = (first < latents.sum(0) / 2).long()
    assert int((latents > 0).sum(-1).max()) > 2, "latents beyond the largest budget count to the last level"
    assert 0 < int(expected.sum()) < LATENTS
    np.testing.assert_array_equal(analysis.latents["level"], expected)
    assert analysis.budgets == (1, 2)


def test_a_dictionary_that_is_not_nested_has_one_level_and_no_budgets(store):
    analysis = ns.analyze(dictionary(sparsity="relu"), store, progress=False)
    assert analysis.budgets == analysis.widths == ()
    assert set(analysis.latents["level"]) == {0}
    assert level_of(analysis, {"level": 0}) == ("–", "not nested")


@pytest.mark.parametrize("about", [{"budgets": (4,)}, {"budgets": (1, 2, 4)}, {"sparsity": "relu"}])
def test_level_with_nested_widths_is_the_first_width_that_holds_the_latent(store, about, tmp_path):
    one = dictionary(widths=(6, 12, LATENTS), **about)
    analysis = ns.analyze(one, store, progress=False)
    expected = [0] * 6 + [1] * 6 + [2] * (LATENTS - 12)
    assert analysis.latents["level"].to_list() == expected
    again = ns.Analysis.load(analysis.save(tmp_path / "a"))
    assert again.widths == (6, 12, LATENTS)
    assert level_of(again, {"level": 1}) == ("1", "first 12 latents")


def test_one_width_nests_nothing_so_budgets_give_the_level(store):
    plain, one = (
        ns.analyze(dictionary(budgets=(1, 2, 4), **w), store, progress=False) for w in ({}, {"widths": (48,)})
    )
    assert plain.latents["level"].n_unique() > 1
    assert plain.latents.equals(one.latents)
    assert level_of(one, {"level": 2}) == ("2", "budget k = 4")


def test_width_level_of_a_width_of_one_latent_and_of_every_latent():
    assert width_level((1, 2, 3)).tolist() == [0, 1, 2]
    assert width_level((4,)).tolist() == [0, 0, 0, 0]


def test_dead_latents_have_the_level_of_their_width(store):
    silent = dictionary(widths=(6, LATENTS), budgets=(2,))
    silent.b_enc = torch.full((LATENTS,), -1e6)
    latents = ns.analyze(silent, store, progress=False).latents
    assert latents["dead"].all()
    assert latents["level"].to_list() == [0] * 6 + [1] * (LATENTS - 6)


@pytest.mark.parametrize("row_norm", ["layer_norm", "constant_norm"])
def test_quality_undoes_the_normalisation_of_rows(store, row_norm):
    one = dictionary(budgets=(2, 4), row_norm=row_norm)
    frame = ns.analyze(one, store, progress=False).quality
    x = store[:]
    for k, fvu in zip((2, 4), frame["fvu"], strict=True):
        assert fvu == pytest.approx(metrics.fvu(x, one.reconstruct(x, k)), rel=1e-5)
    assert frame["fvu"][1] < 0.8 * metrics.fvu(x, one.decode(one.encode(x))), "rows of norm √d are other rows"


def test_quality_without_a_k_is_drawn_at_its_l0(store):
    frame = ns.analyze(dictionary(sparsity="jump_relu"), store, progress=False).quality
    pca = ns.pca_quality(store, store, [2, 4])
    own, baseline = ns.plots.quality(frame, pca=pca).data
    assert list(own.x) == frame["l0"].to_list()
    assert own.marker.symbol == "star-open"
    assert list(baseline.x) == [2, 4]
    with pytest.raises(WidgetError, match="without l0"):
        ns.plots.quality(frame.drop("l0"))
    with pytest.raises(ConfigError, match="near that l0"):
        ns.pca_quality(store, store, frame["k"].to_list())


def test_parts_of_a_rule_without_k_merge_to_the_tables_of_one_pass(store, tmp_path, monkeypatch):
    monkeypatch.setattr("nb_sae.analysis.scan.BLOCK_BYTES", 0)
    one = dictionary(sparsity="jump_relu", widths=(6, LATENTS))
    whole = ns.analyze(one, store, progress=False)
    files = [ns.analyze_part(one, store, part=(i, 2), progress=False).save(tmp_path / f"{i}") for i in range(2)]
    merged = ns.merge_analyses([ns.PartialAnalysis.load(file) for file in files], one, store)
    for name in ("latents", "examples", "quality"):
        assert getattr(merged, name).equals(getattr(whole, name)), name
    other = dictionary(sparsity="jump_relu", widths=(12, LATENTS))
    with pytest.raises(StoreError, match="widths"):
        ns.merge_analyses([ns.PartialAnalysis.load(file) for file in files], other, store)


def test_a_part_of_another_version_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr("nb_sae.analysis.part.VERSION", 1)
    file = ns.analyze_part(dictionary(budgets=(2,)), store, part=(0, 1), progress=False).save(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(FormatError, match=r"version 1; expected .* version 2"):
        ns.PartialAnalysis.load(file)


# --- transcoders -------------------------------------------------------------------------------------------------


def transcoder(A: torch.Tensor, k: int = 4, **about) -> tuple[ns.Dictionary, torch.Tensor]:
    """The exact transcoder of y = x A for rows that are sums of planted atoms, and its rows."""
    atoms = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3))).Q
    rows, _ = planted.sparse_rows(atoms, 1_000, active=4)
    writes = atoms @ A
    weights = {"W_enc": atoms.T, "b_enc": torch.zeros(D), "W_dec": writes, "b_dec": torch.zeros(A.shape[1])}
    about = {"budgets": (2, k), "pre_bias": False, "site": "in", "target": "out", **about}
    return ns.Dictionary(weights, **about), rows


def paired(x: torch.Tensor, y: torch.Tensor) -> ns.store.paired.PairedRows:
    return ns.pair(ns.ActivationStore.from_tensor(x, site="in"), ns.ActivationStore.from_tensor(y, site="out"))


@pytest.mark.parametrize("d_out", [D, 9])
def test_quality_of_a_transcoder_is_that_of_the_rows_it_should_write(d_out):
    A = torch.randn(D, d_out, generator=torch.Generator().manual_seed(1))
    one, x = transcoder(A)
    y = x @ A + 0.1 * torch.randn(len(x), d_out, generator=torch.Generator().manual_seed(2))
    floor = metrics.fvu(y, x @ A)  # the planted map itself: what the noise leaves
    analysis = ns.analyze(one, paired(x, y), progress=False)
    assert analysis.quality["k"].to_list() == [2, 4]
    assert analysis.quality["fvu"][1] == pytest.approx(floor, rel=1e-3)
    assert analysis.quality["fvu"][0] > 10 * floor
    assert analysis.title == "in → out of tensor"
    np.testing.assert_array_equal(analysis.latents["active_rows"], (one.encode(x) > 0).sum(0))

    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(4))]
    null = ns.analyze(one, paired(x, shuffled), progress=False).quality["fvu"][1]
    assert null > 0.95, "rows of other inputs are explained no better than by their mean"
    assert ns.metrics.recovery_curve(one, paired(x, y), (2, 4))["fvu"].to_list() == pytest.approx(
        analysis.quality["fvu"].to_list(), rel=1e-6
    )


def test_a_trained_transcoder_reaches_its_optimum_and_parts_of_it_merge(tmp_path, monkeypatch):
    monkeypatch.setattr("nb_sae.analysis.scan.BLOCK_BYTES", 0)
    A = torch.randn(D, 8, generator=torch.Generator().manual_seed(1))
    exact, x = transcoder(A)
    source = paired(x, x @ A)
    config, plan = ns.SAEConfig.topk(4, d_sae=32), ns.TrainConfig(rows=20_000, batch_rows=128)
    trained = ns.train_sae(source, config, plan, device="cpu", progress=False)
    whole = ns.analyze(trained, source, progress=False)
    assert ns.analyze(exact, source, progress=False).quality["fvu"][1] < 1e-9
    assert whole.quality["fvu"][0] < 0.2, "the mean of the rows has 1"
    # chunks end at multiples of 1,024 rows: one part is empty
    parts = [ns.analyze_part(trained, source, part=(i, 2), progress=False) for i in range(2)]
    assert ns.merge_analyses(parts, trained, source).quality.equals(whole.quality)
    other = ns.pair(source.x, ns.ActivationStore.from_tensor(x @ A, site="elsewhere"))
    with pytest.raises(StoreError, match="'elsewhere' of width 8"):
        ns.merge_analyses(parts, trained, other)


def test_a_transcoder_without_the_rows_it_writes_is_refused_with_what_to_give():
    one, x = transcoder(torch.eye(D))
    alone = ns.ActivationStore.from_tensor(x, site="in")
    for call in (
        lambda rows: ns.analyze(one, rows, progress=False),
        lambda rows: ns.analyze_part(one, rows, part=(0, 1), progress=False),
        lambda rows: ns.compare([one], rows, progress=False),
        lambda rows: metrics.recovery_curve(one, rows, (1,)),
    ):
        with pytest.raises(StoreError, match=r"reads 'in', width 16; writes 'out', width 16.*ns\.pair\(x, y\)"):
            call(alone)
        with pytest.raises(StoreError, match="the pair's second side is 'out' of width 3"):
            call(paired(x, x[:, :3].contiguous()))


def test_a_plain_dictionary_reads_the_first_side_of_a_pair(store):
    one = dictionary(budgets=(2, 4))
    both = ns.pair(store, ns.ActivationStore.from_tensor(-store[:], site="other"))
    assert ns.analyze(one, both, progress=False).quality.equals(ns.analyze(one, store, progress=False).quality)


def test_targets_that_are_all_equal_have_no_variance_to_explain():
    one, x = transcoder(torch.eye(D))
    frame = ns.analyze(one, paired(x, torch.ones(len(x), D)), progress=False).quality
    assert frame["fvu"].is_nan().all()
    with pytest.raises(StoreError, match="All rows of one side are equal"):
        ns.compare([one], paired(x, torch.ones(len(x), D)), progress=False)


def test_transcoders_are_compared_on_their_target_beside_linear_maps():
    A = torch.randn(D, 9, generator=torch.Generator().manual_seed(1))
    one, x = transcoder(A)
    train, test = paired(x[:700], x[:700] @ A), paired(x[700:], x[700:] @ A)
    frame = ns.compare([one], test, train=train, progress=False)
    assert frame["name"].unique(maintain_order=True).to_list() == ["MSAE 2…4 transcoder, 16 latents", "linear map"]
    mine, linear = (frame.filter(pl.col("name").str.starts_with(name)) for name in ("MSAE", "linear"))
    assert mine["fvu"].to_list() == pytest.approx(ns.analyze(one, test, progress=False).quality["fvu"].to_list())
    assert mine["fvu"][1] < 1e-9 < linear["fvu"][1] < linear["fvu"][0] < 1
    ns.plots.pareto(frame)

    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = ns.compare([one], paired(test.x[:], test.target[:][order]), train=train, progress=False)
    assert shuffled["fvu"].min() > 0.9
    with pytest.raises(ConfigError, match="is a transcoder and 'plain' is not"):
        ns.compare({"mine": one, "plain": dictionary(budgets=(2,))}, test, progress=False)
