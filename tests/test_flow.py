"""A flow finds planted chains, tells where features are born, and is kept."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from flow_chains import attention, chains, dictionary, mlp, residual, unit

import nb_sae as ns
from nb_sae.errors import ConfigError, FormatError, InputNotFoundError, PathExistsError
from nb_sae.flow.flow import FeatureFlow
from nb_sae.flow.links.making import feature_flow
from nb_sae.flow.schema import CHAIN, EDGES, FLOW_LATENTS, FLOW_NULLS


@pytest.fixture(scope="module")
def world():
    return chains()


@pytest.fixture(scope="module")
def flow(world) -> FeatureFlow:
    return feature_flow(world.dictionaries, progress=False)


def lines(flow: FeatureFlow, site: str) -> pl.DataFrame:
    return flow.latents.filter(pl.col("site") == site)


def precision_and_recall(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    return (found & true).sum() / found.sum(), (found & true).sum() / true.sum()


# ── planted truth ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_every_carried_row_is_matched_with_the_row_it_continues(flow, world, layer):
    before = world.before[residual(layer)]
    table, kept = lines(flow, residual(layer)), before >= 0
    assert (table["match_residual"].to_numpy()[kept] == before[kept]).all()
    np.testing.assert_allclose(table["s_residual"].to_numpy()[kept], np.cos(np.deg2rad(5)), atol=1e-5)
    assert table["p_residual"].to_numpy()[kept].max() < 1e-12
    threshold = flow.nulls.filter(target_site=residual(layer), source_site=residual(layer - 1))["threshold"][0]
    assert table["s_residual"].to_numpy()[~kept].max() < threshold


def test_kinds_are_those_that_were_planted(flow, world):
    """Of 150 new rows, each with two modules, the null itself lets 0.3 pass for newborn."""
    sites = [residual(layer) for layer in (1, 2, 3)]
    kind = np.concatenate([lines(flow, site)["kind"].cast(pl.String).to_numpy() for site in sites])
    carried = np.concatenate([world.before[site] for site in sites]) >= 0
    copied = np.concatenate([world.from_mlp[site] for site in sites]) >= 0
    for name, true in (
        ("translated", carried & ~copied),
        ("processed", carried & copied),
        ("newborn", ~carried & copied),
        ("unexplained", ~carried & ~copied),
    ):
        precision, recall = precision_and_recall(kind == name, true)
        assert precision >= 0.99, name
        assert recall >= 0.99, name


def test_copied_mlp_rows_are_born_of_that_mlp_latent(flow, world):
    site = residual(2)
    newborn = np.flatnonzero((world.before[site] < 0) & (world.from_mlp[site] >= 0))
    for latent in newborn.tolist():
        birth = flow.born(site, latent)
        assert (birth.site, birth.latent, birth.layer, birth.kind) == (site, latent, 2, "newborn")
        source = birth.modules.row(0, named=True)
        assert (source["source_site"], source["source_latent"]) == (mlp(2), world.from_mlp[site][latent])
        assert source["above"]


def test_the_whole_chain_is_recovered_in_both_directions(flow, world):
    full = [
        latent
        for latent in range(500)
        if world.before[residual(3)][latent] >= 0
        and world.before[residual(2)][world.before[residual(3)][latent]] >= 0
        and world.before[residual(1)][world.before[residual(2)][world.before[residual(3)][latent]]] >= 0
    ]
    assert len(full) > 100
    for end in full:
        true = [end]
        for layer in (3, 2, 1):
            true.append(int(world.before[residual(layer)][true[-1]]))
        chain = flow.chain(residual(3), end)
        assert chain.schema == CHAIN
        assert chain["latent"].to_list() == true[::-1]
        assert chain["step"].to_list() == [-3, -2, -1, 0]
        middle = flow.chain(residual(1), true[2])
        assert middle["latent"].to_list() == true[::-1]
        assert middle["step"].to_list() == [-1, 0, 1, 2]
        assert middle["site"].to_list() == [residual(layer) for layer in range(4)]
        assert flow.born(residual(3), end).site == residual(0)


def test_a_chain_ends_where_the_threshold_is_missed_and_follows_on_when_told(flow, world):
    site = residual(2)
    kind = lines(flow, site)["kind"].cast(pl.String).to_numpy()
    unexplained = int(np.flatnonzero((world.before[site] < 0) & (kind == "unexplained"))[0])
    ended = flow.chain(site, unexplained)
    assert ended["step"][0] == 0
    assert ended.row(0, named=True)["above"] is None
    whole = flow.chain(site, unexplained, cut=False)
    assert whole["step"][0] < 0
    assert not whole.filter(step=-1)["above"][0]
    assert whole.filter(step=-1)["p"][0] > 0.001


def test_a_chain_passes_through_the_module_that_wrote_it():
    """residual 0 → MLP 1 → residual 1: the MLP reads direction a and writes b, near to both dictionaries."""
    generator = torch.Generator().manual_seed(0)
    rows = unit(40, 64, generator)
    written = rows.flip(0)
    sites = {
        residual(0): dictionary(rows, residual(0)),
        mlp(1): dictionary(torch.cat([rows[:20], unit(20, 64, generator)]), mlp(1)),
        residual(1): dictionary(torch.cat([unit(20, 64, generator), written[20:]]), residual(1)),
    }
    sites[residual(0)] = dictionary(torch.cat([rows[:20], unit(20, 64, generator)]), residual(0))
    flow = feature_flow(sites, thresholds={"residual": 0.6, "mlp": 0.6}, progress=False)
    born = feature_flow({**sites, residual(0): dictionary(unit(40, 64, generator), residual(0))}, progress=False)
    assert flow.chain(mlp(1), 3)["site"].to_list() == [residual(0), mlp(1), residual(1)]
    assert flow.chain(mlp(1), 3)["latent"].to_list() == [3, 3, 36]
    assert born.chain(residual(1), 36)["site"].to_list() == [mlp(1), residual(1)]
    assert born.chain(residual(1), 36)["lane"].to_list() == ["mlp", "residual"]


def test_identical_dictionaries_give_the_identity():
    rows = unit(300, 24, torch.Generator().manual_seed(0))
    flow = feature_flow({residual(layer): dictionary(rows, residual(layer)) for layer in range(3)}, progress=False)
    for site in (residual(1), residual(2)):
        table = lines(flow, site)
        assert table["match_residual"].to_list() == list(range(300))
        np.testing.assert_allclose(table["s_residual"].to_numpy(), 1.0, atol=1e-6)
        assert set(table["kind"]) == {"translated"}
    assert lines(flow, residual(0))["carried_to"].to_list() == list(range(300))


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tables_have_their_columns_and_every_latent_a_line(flow, world):
    assert (flow.edges.schema, flow.latents.schema, flow.nulls.schema) == (EDGES, FLOW_LATENTS, FLOW_NULLS)
    assert flow.sites == [residual(0), *(name(n) for n in (1, 2, 3) for name in (attention, mlp, residual))]
    assert flow.latents["site"].unique(maintain_order=True).to_list() == list(flow.sites)
    assert flow.latents.height == 500 * len(flow.sites)
    # of each block: residual and two modules into the residual site, the residual site before into both modules
    assert flow.nulls.height == 3 * 5
    assert lines(flow, residual(0))["kind"].null_count() == 500
    assert lines(flow, mlp(1))["kind"].null_count() == 500
    assert lines(flow, mlp(1))["s_residual"].null_count() == 0
    assert lines(flow, residual(3))["carried_to"].null_count() == 500
    assert lines(flow, residual(1))["layer"].unique().to_list() == [1]


def test_edges_agree_with_latents_and_thresholds(flow):
    best = flow.edges.filter((pl.col("rank") == 0) & (pl.col("kind") == "residual"))
    joined = best.join(flow.latents, left_on=["target_site", "target_latent"], right_on=["site", "latent"])
    assert (joined["source_latent"] == joined["match_residual"]).all()
    assert (joined["cosine"] == joined["s_residual"]).all()
    assert (joined["p"] == joined["p_residual"]).all()
    held = flow.edges.join(flow.nulls, on=["source_site", "target_site"])
    assert (held["above"] == (held["cosine"] >= held["threshold"].cast(pl.Float32))).all()
    counts = flow.edges.filter((pl.col("rank") == 0) & pl.col("above")).group_by("source_site", "target_site").len()
    counts = flow.nulls.join(counts, on=["source_site", "target_site"], how="left")
    assert (counts["targets_above"] == counts["len"].fill_null(0)).all()


def test_edges_keep_the_nearest_sources_by_rank_and_only_those_above_0(world):
    flow = feature_flow(world.dictionaries, top=3, progress=False)
    per_target = flow.edges.group_by("source_site", "target_site", "target_latent").agg(
        pl.col("rank"), (pl.col("cosine").diff().drop_nulls() <= 0).all().alias("ordered")
    )
    assert all(ranks == [0, 1, 2] for ranks in per_target["rank"].to_list())
    assert per_target["ordered"].all()
    opposite = {residual(0): dictionary(torch.eye(3), residual(0)), residual(1): dictionary(-torch.eye(3), residual(1))}
    none = feature_flow(opposite, progress=False)
    assert none.edges.height == 0
    assert none.latents["match_residual"].null_count() == 6
    assert none.latents["carried_to"].null_count() == 6


def test_sites_are_put_in_the_order_of_the_forward_pass(world):
    shuffled = dict(reversed(world.dictionaries.items()))
    one, other = feature_flow(shuffled, progress=False), feature_flow(world.dictionaries, progress=False)
    assert one.sites == other.sites
    assert one.edges.equals(other.edges)


def test_a_residual_site_is_matched_with_the_one_given_before_it():
    rows = torch.eye(6)
    sites = [residual(0), mlp(2), residual(4), mlp(4)]
    flow = feature_flow({site: dictionary(rows, site) for site in sites}, progress=False)
    pairs = list(flow.nulls.select("source_site", "target_site").iter_rows())
    assert pairs == [(residual(0), mlp(2)), (residual(0), mlp(4)), (residual(0), residual(4)), (mlp(4), residual(4))]


def test_what_enters_a_block_is_what_the_block_before_gave():
    rows = torch.eye(6)
    sites = ["blocks.0.hook_resid_pre", attention(0), residual(0)]
    flow = feature_flow({site: dictionary(rows, site) for site in reversed(sites)}, progress=False)
    assert flow.sites == sites
    assert flow.latents["layer"].unique(maintain_order=True).to_list() == [-1, 0]
    with pytest.raises(ConfigError, match="are one place of the model"):
        feature_flow({s: dictionary(rows, s) for s in ("blocks.1.hook_resid_pre", residual(0))}, progress=False)


def test_neighbourhood_holds_the_edges_within_reach(flow, world):
    site = residual(2)
    latent = int(np.flatnonzero((world.before[site] >= 0) & (world.from_mlp[site] >= 0))[0])
    near = flow.neighbourhood(site, latent, 1)
    assert near.schema == EDGES
    sources = set(near.filter(target_site=site).select("source_site", "source_latent").iter_rows())
    assert {(residual(1), world.before[site][latent]), (mlp(2), world.from_mlp[site][latent])} <= sources
    assert near["above"].all()
    touches = ((pl.col("target_site") == site) & (pl.col("target_latent") == latent)) | (
        (pl.col("source_site") == site) & (pl.col("source_latent") == latent)
    )
    assert near.equals(flow.edges.filter(touches & pl.col("above")))
    assert flow.neighbourhood(site, latent, 1, above=False).equals(flow.edges.filter(touches))
    wider = flow.neighbourhood(site, latent, 3)
    assert wider.height > near.height
    assert near.join(wider, on=near.columns, how="anti").height == 0


def test_thresholds_by_lane_or_pair_are_used(world):
    flow = feature_flow(
        world.dictionaries,
        thresholds={"residual": 0.9, (mlp(1), residual(1)): 0.99},
        progress=False,
    )
    told = {(s, t): (value, rule) for s, t, value, rule in flow.nulls.select(
        "source_site", "target_site", "threshold", "rule").iter_rows()}  # fmt: skip
    assert told[residual(0), residual(1)] == (0.9, "given")
    assert told[mlp(1), residual(1)] == (0.99, "given")
    assert told[mlp(2), residual(2)][1] == "null"
    assert flow.about["thresholds"] == "given"


def test_a_latent_without_direction_is_unexplained_and_counted():
    rows = unit(20, 64, torch.Generator().manual_seed(0))
    empty = rows.clone()
    empty[7] = 0
    weights = {"W_enc": rows.T, "b_enc": torch.zeros(20), "W_dec": empty, "b_dec": torch.zeros(64)}
    sites = {residual(0): dictionary(rows, residual(0)), residual(1): ns.Dictionary(weights, site=residual(1))}
    flow = feature_flow(sites, progress=False)
    row = lines(flow, residual(1)).row(7, named=True)
    assert (row["kind"], row["s_residual"], row["match_residual"]) == ("unexplained", 0.0, None)
    assert flow.about["places"][residual(1)]["without_direction"] == 1


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_flow_is_the_same_after_a_folder(flow, tmp_path):
    folder = flow.save(tmp_path / "flow")
    again = FeatureFlow.load(folder)
    assert again.sites == flow.sites
    assert again.about == flow.about
    for name in ("edges", "latents", "nulls"):
        assert getattr(again, name).equals(getattr(flow, name))
    assert again.chain(residual(2), 5).equals(flow.chain(residual(2), 5))
    with pytest.raises(PathExistsError):
        flow.save(folder)
    assert flow.save(folder, overwrite=True) == folder


def test_a_damaged_folder_is_named(flow, tmp_path):
    with pytest.raises(InputNotFoundError):
        FeatureFlow.load(tmp_path / "nothing")
    folder = flow.save(tmp_path / "flow")
    flow.nulls.drop("paper").write_parquet(folder / "nulls.parquet")
    with pytest.raises(FormatError, match="Run feature_flow again"):
        FeatureFlow.load(folder)
    flow.save(folder, overwrite=True)
    (folder / "flow.json").write_text(json.dumps({"format": "nb_sae.flow", "version": 1, "sites": ["a"], "about": {}}))
    with pytest.raises(FormatError, match="does not name the sites of its tables"):
        FeatureFlow.load(folder)
    (folder / "flow.json").write_text(json.dumps({"format": "nb_sae.names", "version": 1}))
    with pytest.raises(FormatError, match=r"expected 'nb_sae.flow'"):
        FeatureFlow.load(folder)


def test_repr_says_how_many_of_each_kind(flow):
    assert "10 sites, 5,000 latents" in repr(flow)
    assert "translated" in repr(flow)


def test_paths_from_what_is_not_there_are_refused(flow):
    with pytest.raises(ConfigError, match=r"Closest: blocks.1.hook_resid_post"):
        flow.chain("blocks.1.hook_resid", 0)
    with pytest.raises(ConfigError, match="outside 0 … 499"):
        flow.born(residual(1), 500)
    with pytest.raises(ConfigError, match="steps=0"):
        flow.neighbourhood(residual(1), 0, 0)
