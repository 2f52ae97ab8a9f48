"""Pairs of dictionaries as transcoders: planted continuations, the null, and the ceiling."""

from __future__ import annotations

import planted
import polars as pl
import pytest
import torch
from flow_planted import flow_of, plain_dictionary, store_of

import nb_sae as ns
from nb_sae.errors import ConfigError, ShapeError, StoreError
from nb_sae.flow.effects.transcoding import transcode
from nb_sae.flow.schema import TRANSCODED

D = 32
SITES = ("layers.0", "layers.1")


def rotation(degrees: float = 5.0) -> torch.Tensor:
    """Turns each of D / 2 planes by an angle."""
    angle = torch.tensor(degrees).deg2rad()
    plane = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    return torch.block_diag(*[plane] * (D // 2))


def world(*, growth: float = 1.0, rows: int = 2_000):
    """Feature i of the first site goes on as feature π(i) of the second, 5° away and `growth` times as strong."""
    basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0))).Q
    order = torch.randperm(D, generator=torch.Generator().manual_seed(1))
    after = torch.empty_like(basis)
    after[order] = basis @ rotation()
    x, z = planted.sparse_rows(basis, rows)
    y = torch.zeros_like(z)
    y[:, order] = growth * z
    stores = {"layers.0": store_of(x, "layers.0"), "layers.1": store_of(y @ after, "layers.1")}
    dictionaries = {
        site: plain_dictionary(one, site, threshold=1e-3) for site, one in zip(SITES, (basis, after), strict=True)
    }
    inverse = torch.argsort(order)
    flow = flow_of(dict.fromkeys(SITES, D), {"layers.1": {"residual": ("layers.0", [[int(i)] for i in inverse])}})
    return flow, dictionaries, stores


def explained(*given, **options) -> dict[str, float]:
    frame = transcode(*given, progress=False, **options)
    return dict(frame.select("rule", "explained").iter_rows())


def test_a_planted_continuation_is_explained_by_its_match_and_by_no_other():
    frame = transcode(*world(), progress=False)
    assert frame.schema == TRANSCODED
    found = dict(frame.select("rule", "explained").iter_rows())
    assert found["top1"] == pytest.approx(1, abs=1e-4)
    assert found["permutation"] == pytest.approx(1, abs=1e-4)
    assert 0.9 < found["topk"] < 1, "a part goes to the next nearest, 5° apart"
    assert found["random"] < 0.05
    assert frame["explained_own"].to_list() == [pytest.approx(1, abs=1e-4)] * 4
    assert frame["rows"].to_list() == [2_000] * 4


def test_identical_dictionaries_on_identical_rows_explain_what_their_own_does():
    flow, dictionaries, stores = world()
    site = "layers.0"
    same = {one: plain_dictionary(dictionaries[site].W_dec, one, threshold=1e-3) for one in SITES}
    rows = {one: store_of(stores[site][:], one) for one in SITES}
    frame = transcode(flow, same, rows, progress=False)
    line = frame.filter(pl.col("rule") == "top1").row(0, named=True)
    assert line["explained"] == line["explained_own"]
    assert line["explained"] == pytest.approx(1, abs=1e-5)
    assert explained(flow, same, rows, fold=True)["top1"] == pytest.approx(1, abs=1e-5)


def test_growth_of_the_stream_is_error_unless_it_is_folded():
    """Without folding a third of the row is rebuilt: what is left is two thirds of it, about the origin."""
    flow, dictionaries, stores = world(growth=3.0)
    y = stores["layers.1"][:].double()
    variance = (y - y.mean(0)).square().sum()
    expected = 1 - float((y * 2 / 3).square().sum() / variance)
    assert explained(flow, dictionaries, stores)["top1"] == pytest.approx(expected, abs=1e-4)
    folded = explained(flow, dictionaries, stores, fold=True)
    assert folded["top1"] == pytest.approx(1, abs=1e-4)
    assert folded["random"] < 0.05


def test_flows_by_other_rules_bring_their_own_matches():
    flow, dictionaries, stores = world()
    order = flow.edges.sort("target_latent")["source_latent"].to_list()
    for rule, shift, good in (("correlation", 0, True), ("permutation", 1, False)):
        turned = [[order[(j + shift) % D]] for j in range(D)]
        other = flow_of(dict.fromkeys(SITES, D), {"layers.1": {"residual": ("layers.0", turned)}})
        other.about["rule"] = rule
        found = explained(flow, dictionaries, stores, others=[other])
        assert (found[rule] > 0.99) == good
        assert set(found) == {"top1", "topk", "permutation", "random"} | {rule}
    assert "correlation" not in explained(flow, dictionaries, stores)


def test_the_answer_does_not_depend_on_how_the_rows_are_cut():
    given = world(rows=300)
    whole, cut = (transcode(*given, progress=False, chunk_rows=rows) for rows in (300, 7))
    assert float((whole["explained"] - cut["explained"]).abs().max()) < 1e-6


def test_rows_that_do_not_vary_have_nothing_to_explain():
    flow, dictionaries, _ = world()
    rows = {site: store_of(torch.ones(20, D), site) for site in SITES}
    assert transcode(flow, dictionaries, rows, progress=False)["explained"].to_list() == [None] * 4


def test_pairs_that_cannot_be_made_are_refused():
    flow, dictionaries, stores = world(rows=50)
    with pytest.raises(StoreError, match="has 20"):
        transcode(flow, dictionaries, {**stores, "layers.1": store_of(torch.rand(20, D), "layers.1")}, progress=False)
    with pytest.raises(StoreError, match=r"no store for 'layers\.1'"):
        transcode(flow, dictionaries, {"layers.0": stores["layers.0"]}, progress=False)
    with pytest.raises(ConfigError, match="Closest"):
        transcode(flow, dictionaries, stores, pairs=[("layers.0", "layer.1")], progress=False)
    with pytest.raises(ConfigError, match="Give pairs="):
        transcode(flow_of({"layers.0": D}, {}), dictionaries, stores, progress=False)
    narrow = {**dictionaries, "layers.1": plain_dictionary(torch.randn(D, 8), "layers.1")}
    with pytest.raises(ShapeError, match="width 32"):
        transcode(flow, narrow, stores, progress=False)
    fewer = {**dictionaries, "layers.1": plain_dictionary(torch.eye(D)[:8], "layers.1")}
    with pytest.raises(ConfigError, match="that the flow was made of"):
        transcode(flow, fewer, stores, progress=False)
    for pairs in ([("layers.0",)], "ab"):
        with pytest.raises(ConfigError, match="source site, target site"):
            transcode(flow, dictionaries, stores, pairs=pairs, progress=False)
    normed = ns.Dictionary(dictionaries["layers.1"]._tensors(), site="layers.1", row_norm="layer_norm")
    with pytest.raises(ConfigError, match="row_norm"):
        transcode(flow, {**dictionaries, "layers.1": normed}, stores, progress=False)
