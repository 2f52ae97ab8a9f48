"""Dictionaries on the same rows at the same k, PCA always beside them, and the figure of the table."""

from __future__ import annotations

import planted
import polars as pl
import pytest
import torch

import nb_sae as ns
from nb_sae.errors import ConfigError, StoreError, WidgetError
from nb_sae.sae import metrics
from nb_sae.sae.compare import COMPARISON, describe


@pytest.fixture(scope="module")
def stores() -> tuple[ns.ActivationStore, ns.ActivationStore]:
    rows, _ = planted.sparse_rows(planted.atoms(64, 24), 4_000)
    return tuple(ns.ActivationStore.from_tensor(part) for part in (rows[:3_000], rows[3_000:]))


def dictionary(seed: int = 0, *, d_sae: int = 64, **about) -> ns.Dictionary:
    """Untrained: its directions are the planted atoms for seed 0, and others for other seeds."""
    W_dec = planted.atoms(d_sae, 24, seed=seed)
    weights = {"W_enc": W_dec.T, "b_enc": torch.zeros(d_sae), "W_dec": W_dec, "b_dec": torch.zeros(24)}
    if about.get("sparsity") in ("jump_relu", "batch_top_k"):
        weights["threshold"] = torch.full((d_sae,), 0.5)
    return ns.Dictionary(weights, **about)


def test_every_line_is_the_metric_of_that_dictionary_at_that_k(stores):
    _, test = stores
    named = {"right": dictionary(budgets=(2, 4)), "wrong": dictionary(5, budgets=(4, 8))}
    frame = ns.compare(named, test, train=stores[0], chunk_rows=300, progress=False)
    assert frame.schema == COMPARISON
    assert frame["name"].unique(maintain_order=True).to_list() == ["right", "wrong", "PCA"]
    assert frame["k"].unique().sort().to_list() == [2, 4, 8]
    x = test[:]
    for line in frame.filter(pl.col("name") != "PCA").iter_rows(named=True):
        latents = named[line["name"]].encode(x, k=line["k"])
        x_hat = named[line["name"]].decode(latents)
        assert line["fvu"] == pytest.approx(metrics.fvu(x, x_hat), rel=1e-5)
        assert line["cosine"] == pytest.approx(metrics.cosine(x, x_hat), rel=1e-5)
        assert line["l0"] == pytest.approx(metrics.l0(latents))
        assert line["unused"] == pytest.approx(float((latents == 0).all(0).float().mean()))
        assert line["rows"] == 1_000
    right, wrong = (frame.filter((pl.col("name") == name) & (pl.col("k") == 4))["fvu"][0] for name in named)
    assert right < wrong


def test_pca_is_fitted_where_it_is_said_to_be(stores):
    train, test = stores
    held = ns.compare([dictionary(budgets=(4,))], test, train=train, progress=False)
    same = ns.compare([dictionary(budgets=(4,))], test, progress=False)
    fair = held.filter(pl.col("name") == "PCA")["fvu"][0]
    assert fair == pytest.approx(ns.pca_quality(train, test, [4])["fvu"][0], rel=1e-5)
    assert same.filter(pl.col("name") == "PCA (these rows)")["fvu"][0] <= fair


def test_rules_of_their_own_stand_beside_the_matched_k(stores):
    relu, jump = dictionary(sparsity="relu"), dictionary(sparsity="jump_relu")
    batch = dictionary(sparsity="batch_top_k", budgets=(4,))
    frame = ns.compare([relu, jump, batch, dictionary(budgets=(4,))], stores[1], progress=False)
    own = frame.filter(pl.col("rule") == "own")
    assert own["name"].to_list() == ["ReLU, 64 latents", "JumpReLU, 64 latents", "BatchTopK 4, 64 latents"]
    assert own["k"].null_count() == 3
    x = stores[1][:]
    for one, l0, fvu in zip((relu, jump, batch), own["l0"], own["fvu"], strict=True):
        assert l0 == pytest.approx(metrics.l0(one.encode(x)))
        assert fvu == pytest.approx(metrics.fvu(x, one.decode(one.encode(x))), rel=1e-5)
    matched = frame.filter((pl.col("k") == 4) & (pl.col("name") != "PCA (these rows)"))
    assert matched.height == 4
    assert matched["fvu"].n_unique() == 1, "with the same weights the top 4 are the same"


def test_every_rule_of_its_own_has_all_others_beside_it_at_the_k_of_its_measured_l0(stores):
    ruled = {"relu": dictionary(sparsity="relu"), "jump": dictionary(sparsity="jump_relu")}
    named = {**ruled, "msae": dictionary(budgets=(2, 4)), "wrong": dictionary(5, budgets=(4,))}
    frame = ns.compare(named, stores[1], train=stores[0], progress=False)
    for name in ruled:
        own = frame.filter((pl.col("name") == name) & (pl.col("rule") == "own")).row(0, named=True)
        beside = frame.filter((pl.col("rule") == "top k") & ((pl.col("k") - own["l0"]).abs() <= 0.5))
        in_reach = {*named, "PCA"} if own["l0"] <= 24 else set(named)
        assert set(beside["name"]) == in_reach, own
        for line in beside.filter(pl.col("name") != "PCA").iter_rows(named=True):
            x_hat = named[line["name"]].reconstruct(stores[1][:], k=round(own["l0"]))
            assert line["fvu"] == pytest.approx(metrics.fvu(stores[1][:], x_hat), rel=1e-5)
    l0s = frame.filter(pl.col("rule") == "own")["l0"].to_list()
    assert frame["k"].drop_nulls().unique().sort().to_list() == sorted({2, 4, *(round(l0) for l0 in l0s)})


def test_an_l0_near_a_trained_budget_adds_no_k_and_one_below_1_none(stores):
    batch = dictionary(sparsity="batch_top_k", budgets=(4,))
    near = float(batch.encode(stores[1][:]).ne(0).sum(-1).double().mean())
    twin = dictionary(budgets=(round(near),))
    silent = dictionary(sparsity="jump_relu")
    silent.threshold = torch.full((64,), 1e6)
    frame = ns.compare([batch, twin, silent], stores[1], progress=False)
    assert frame["k"].drop_nulls().unique().sort().to_list() == sorted({4, round(near)})
    none = frame.filter(pl.col("name").str.starts_with("JumpReLU") & (pl.col("rule") == "own"))
    assert none["l0"].to_list() == [0]
    assert none["unused"].to_list() == [1]
    assert frame.filter(pl.col("name").str.starts_with("JumpReLU"))["k"].to_list()[-1] is None


def test_ks_that_are_given_are_the_only_ones(stores):
    frame = ns.compare([dictionary(sparsity="relu")], stores[1], [2], progress=False)
    assert frame["k"].to_list() == [2, None, 2]


def test_classical_dictionaries_stand_in_the_same_table(stores):
    train, test = stores
    others = [ns.classical.ica(train, 12), ns.classical.random(train, 64)]
    frame = ns.compare([dictionary(budgets=(2, 4)), *others], test, train=train, progress=False)
    assert set(frame["name"]) == {"MSAE 2…4, 64 latents", "ICA", "random", "PCA"}
    assert frame.height == 8
    at_4 = dict(frame.filter(pl.col("k") == 4).select("name", "fvu").iter_rows())
    assert at_4["PCA"] < 1
    assert at_4["random"] < at_4["PCA"], "64 directions to choose 4 from, in 24 dimensions"


def test_names_are_unique(stores):
    twins = [dictionary(seed, budgets=(4,)) for seed in (0, 1, 2)]
    frame = ns.compare(twins, stores[1], progress=False)
    assert frame["name"].n_unique() == 4
    assert "TopK 4, 64 latents (3)" in frame["name"].to_list()
    with pytest.raises(ConfigError, match="name of the line that compare adds"):
        ns.compare({"PCA": twins[0]}, stores[1], train=stores[0], progress=False)


def test_k_beyond_the_width_has_no_pca_line(stores):
    frame = ns.compare([dictionary(budgets=(4,))], stores[1], [4, 40], progress=False)
    assert frame.filter(pl.col("k") == 40)["name"].to_list() == ["TopK 4, 64 latents"]


def test_default_ks_are_trained_budgets_that_all_can_take(stores):
    small = dictionary(d_sae=6, budgets=(3,))
    frame = ns.compare([dictionary(budgets=(2, 8)), small], stores[1], progress=False)
    assert frame["k"].unique().sort().to_list() == [2, 3]
    relu = ns.compare([dictionary(sparsity="relu")], stores[1], progress=False)
    assert relu["k"].drop_nulls().min() == 1


@pytest.mark.parametrize(
    ("dictionaries", "ks", "error", "message"),
    [
        ([], None, ConfigError, "Nothing to compare"),
        ([dictionary(budgets=(4,))], [4, 2], ConfigError, "ascending"),
        ([dictionary(budgets=(4,))], [], ConfigError, "ascending"),
        ([dictionary(budgets=(4,)), dictionary(d_sae=6, budgets=(4,))], [4, 8], ConfigError, "6 latents of 'TopK 4, 6"),
        (
            {"other": dictionary(budgets=(4,), site="elsewhere")},
            None,
            StoreError,
            "'other'.*on site 'elsewhere'",
        ),
        ([torch.ones(3)], None, ConfigError, "a Tensor; expected a Dictionary"),
        ({"it": "d"}, None, ConfigError, "'it' is a str; expected a Dictionary"),
    ],
)
def test_what_cannot_be_compared_is_refused(stores, dictionaries, ks, error, message):
    with pytest.raises(error, match=message):
        ns.compare(dictionaries, stores[1], ks, progress=False)


def test_another_width_is_refused_by_name(stores):
    narrow = ns.ActivationStore.from_tensor(torch.randn(50, 12))
    with pytest.raises(StoreError, match=r"'TopK 4, 64 latents': The rows have width 12"):
        ns.compare([dictionary(budgets=(4,))], narrow, progress=False)
    with pytest.raises(StoreError, match="PCA was fitted to width 12"):
        ns.compare([dictionary(budgets=(4,))], stores[1], train=narrow, progress=False)


def test_pareto_draws_every_dictionary_pca_dashed_and_own_rules_at_their_l0(stores):
    frame = ns.compare([dictionary(budgets=(2, 4)), dictionary(sparsity="relu")], stores[1], progress=False)
    figure = ns.plots.pareto(frame)
    traces = {trace.name: trace for trace in figure.data}
    assert set(traces) == {"MSAE 2…4, 64 latents", "ReLU, 64 latents", "ReLU, 64 latents, own rule", "PCA (these rows)"}
    own = frame.filter(pl.col("rule") == "own")
    ks = [2, 4, round(own["l0"][0])]
    assert list(traces["MSAE 2…4, 64 latents"].x) == ks
    assert traces["PCA (these rows)"].line.dash == "dash"
    assert list(traces["ReLU, 64 latents, own rule"].x) == own["l0"].to_list()
    assert list(figure.layout.xaxis.tickvals) == ks
    with pytest.raises(WidgetError, match="without name"):
        ns.plots.pareto(frame.drop("name"))


def test_pareto_still_takes_frames_by_name(stores):
    curve = metrics.recovery_curve(dictionary(budgets=(4,)), stores[1], (1, 4))
    figure = ns.plots.pareto({"a": curve}, pca=curve)
    assert [trace.name for trace in figure.data] == ["a", "PCA, k components"]


def test_names_say_rule_and_size():
    assert describe(dictionary(budgets=(2, 4))) == "MSAE 2…4, 64 latents"
    assert describe(dictionary(budgets=(2, 4), sparsity="batch_top_k")) == "Batch MSAE 2…4, 64 latents"
