"""Matching by one partner each and by correlation of activations, for comparison with the cosine."""

from __future__ import annotations

import sys

import numpy as np
import polars as pl
import pytest
import torch
from flow_chains import dictionary, residual, unit

import nb_sae as ns
from nb_sae.errors import ConfigError, MissingDependencyError, StoreError
from nb_sae.flow.links import correlation, permutation
from nb_sae.flow.links.making import feature_flow
from nb_sae.flow.links.permutation import mean_activations

A, B = residual(0), residual(1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of(a: torch.Tensor, b: torch.Tensor, **about) -> dict[str, ns.Dictionary]:
    return {A: dictionary(a, A, **about), B: dictionary(b, B, **about)}


def matches(flow) -> list[int | None]:
    return flow.latents.filter(pl.col("site") == B)["match_residual"].to_list()


# ── one partner each ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("exact", [4096, 1])
def test_partners_of_a_shuffled_copy_are_its_rows(exact, monkeypatch):
    monkeypatch.setattr(permutation, "EXACT_LATENTS", exact)
    rows, order = unit(80, 24, rng()), torch.randperm(80, generator=rng(1))
    flow = feature_flow(of(rows, rows[order]), rule="permutation", progress=False)
    assert matches(flow) == order.tolist()
    assert flow.about["paired_by"] == ["hungarian" if exact > 80 else "greedy"]
    assert flow.edges["rank"].unique().to_list() == [0]


def test_partners_cost_least_and_are_one_to_one():
    """Where cosine alone sends both targets to one source, one of them has to take the other."""
    from scipy.optimize import linear_sum_assignment

    a, b = unit(60, 6, rng()), unit(60, 6, rng(1))
    found = matches(feature_flow(of(a, b), rule="permutation", progress=False))
    best = linear_sum_assignment(torch.cdist(b.double(), a.double()).square().numpy())[1]
    assert found == best.tolist()
    nearest = matches(feature_flow(of(a, b), progress=False))
    assert len(set(nearest)) < 60 == len(set(found))


def test_thresholds_of_every_dictionary_are_folded_into_the_rows():
    from scipy.optimize import linear_sum_assignment

    a, b = unit(40, 6, rng()), unit(40, 6, rng(1))
    lengths = [torch.rand(40, generator=rng(2 + n)) * 5 + 0.1 for n in range(2)]
    sites = {
        site: ns.Dictionary.from_weights(
            rows.T.contiguous(), torch.zeros(40), rows, torch.zeros(6), threshold=length, site=site
        )
        for site, rows, length in zip((A, B), (a, b), lengths, strict=True)
    }
    flow = feature_flow(sites, rule="permutation", progress=False)
    folded = [(rows * length[:, None]).double() for rows, length in zip((a, b), lengths, strict=True)]
    cost = torch.cdist(folded[1], folded[0]).square().numpy()
    assert flow.about["folded"] == "threshold"
    best = linear_sum_assignment(cost)[1].tolist()
    # A short row may be left with one that points away from it, and that is no match.
    near = [float(b[target] @ a[source]) > 0 for target, source in enumerate(best)]
    assert matches(flow) == [source if close else None for source, close in zip(best, near, strict=True)]
    assert matches(flow) != matches(feature_flow(of(a, b), rule="permutation", progress=False))


def test_mean_activations_are_over_active_rows():
    sae = dictionary(torch.eye(3), A, budgets=(2,))
    x = torch.tensor([[2.0, 1.0, 0.0], [4.0, 0.0, 1.0], [-1.0, -1.0, -1.0]])
    store = ns.ActivationStore.from_tensor(x, site=A)
    assert mean_activations(sae, store).tolist() == [3.0, 1.0, 1.0]
    sites = {A: sae, B: dictionary(torch.eye(3), B, budgets=(2,))}
    stores = {A: store, B: ns.ActivationStore.from_tensor(x, site=B)}
    flow = feature_flow(sites, rule="permutation", stores=stores, progress=False)
    assert flow.about["folded"] == "mean activation"


def test_latents_without_a_partner_have_no_match():
    rows = unit(30, 40, rng())
    flow = feature_flow(of(rows[:20], rows), rule="permutation", progress=False)
    assert matches(flow) == [*range(20), *[None] * 10]
    assert flow.edges.height == 20


def test_partners_without_scipy_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match="use rule='cosine'"):
        feature_flow(of(torch.eye(4), torch.eye(4)), rule="permutation", progress=False)


# ── correlation of activations ────────────────────────────────────────────────────────────────────────────────────────


def active_rows(rows: int, latents: int, seed: int, density: float = 0.15) -> torch.Tensor:
    """Sparse positive activations; with unit vectors as decoder they are their own rows."""
    generator = rng(seed)
    on = torch.rand(rows, latents, generator=generator) < density
    return on * (0.2 + torch.rand(rows, latents, generator=generator))


def rows_and_dictionaries(z_a: torch.Tensor, z_b: torch.Tensor):
    """Dictionaries whose latents are the columns of the rows, every one of them kept."""
    sites = {A: dictionary(torch.eye(z_a.shape[1]), A), B: dictionary(torch.eye(z_b.shape[1]), B)}
    sites = {
        site: ns.Dictionary.from_weights(one.W_enc, one.b_enc, one.W_dec, one.b_dec, site=site)
        for site, one in sites.items()
    }
    return sites, {A: ns.ActivationStore.from_tensor(z_a, site=A), B: ns.ActivationStore.from_tensor(z_b, site=B)}


@pytest.mark.parametrize("block", [None, 5])
def test_correlations_are_pearsons_whatever_the_block(block, monkeypatch):
    if block:  # several passes over the rows
        monkeypatch.setattr(correlation, "MEMORY_BYTES", 16 * 5 * 20)
        monkeypatch.setattr(correlation, "PAIRS_AT_A_TIME", 50)
    z_a = active_rows(700, 20, 0)
    z_b = z_a + active_rows(700, 20, 1)
    sites, stores = rows_and_dictionaries(z_a, z_b)
    flow = feature_flow(sites, rule="correlation", stores=stores, top=20, block=block, progress=False)
    true = np.corrcoef(z_b.double().T, z_a.double().T)[:20, 20:]
    edges = flow.edges
    given = true[edges["target_latent"].to_numpy(), edges["source_latent"].to_numpy()]
    np.testing.assert_allclose(edges["cosine"].to_numpy(), given, atol=1e-6)
    assert edges.height == (true > 0).sum()
    assert matches(flow) == true.argmax(1).tolist()
    carried = flow.latents.filter(pl.col("site") == A)
    assert carried["carried_to"].to_list() == true.argmax(0).tolist()


def test_latents_that_fire_together_are_found_though_their_directions_differ():
    z_a = active_rows(2000, 30, 0)
    order = torch.randperm(30, generator=rng(3))
    sites, stores = rows_and_dictionaries(z_a, 3 * z_a[:, order] + 0.1 * active_rows(2000, 30, 1))
    flow = feature_flow(sites, rule="correlation", stores=stores, progress=False)
    assert matches(flow) == order.tolist()
    best = flow.edges.filter(pl.col("rank") == 0)
    assert best["above"].all()
    assert best["p"].max() <= 1 / 30
    assert matches(feature_flow(sites, progress=False)) == list(range(30))


def test_unrelated_latents_do_not_exceed_shuffled_rows():
    sites, stores = rows_and_dictionaries(active_rows(1500, 200, 0), active_rows(1500, 200, 1))
    flow = feature_flow(sites, rule="correlation", stores=stores, progress=False)
    row = flow.nulls.row(0, named=True)
    assert (row["rule"], row["paper"], row["expected"], row["draws"]) == ("null", None, None, 200)
    assert row["targets_above"] <= 4  # 200 targets above the largest of 200 shuffled ones: 1 on average
    p = flow.edges.filter(pl.col("rank") == 0)["p"].to_numpy()
    assert 0.35 < p.mean() < 0.65
    assert flow.about["null"] == "shuffled rows"


def test_a_latent_that_is_never_active_has_no_edge():
    z_a, z_b = active_rows(300, 8, 0), active_rows(300, 8, 1)
    z_a[:, 2] = 0
    z_b[:, 5] = 0
    sites, stores = rows_and_dictionaries(z_a, z_b)
    flow = feature_flow(sites, rule="correlation", stores=stores, top=8, progress=False)
    assert 2 not in flow.edges["source_latent"]
    assert 5 not in flow.edges["target_latent"]
    assert matches(flow)[5] is None


def test_correlation_refuses_what_it_cannot_compare():
    sites, stores = rows_and_dictionaries(active_rows(50, 6, 0), active_rows(50, 6, 1))
    with pytest.raises(ConfigError, match="no stores were given"):
        feature_flow(sites, rule="correlation", progress=False)
    with pytest.raises(StoreError, match=f"no store for '{B}'"):
        feature_flow(sites, rule="correlation", stores={A: stores[A]}, progress=False)
    shorter = {**stores, B: ns.ActivationStore.from_tensor(active_rows(49, 6, 1), site=B)}
    with pytest.raises(StoreError, match=r"50 rows.*49"):
        feature_flow(sites, rule="correlation", stores=shorter, progress=False)
    tokens = pl.DataFrame(
        {"input_id": [0] * 50, "token": range(50)}, schema={"input_id": pl.UInt32, "token": pl.UInt32}
    )
    others = {**stores, B: ns.ActivationStore.from_tensor(active_rows(50, 6, 1), rows=tokens, site=B)}
    with pytest.raises(StoreError, match="Row 1 is token 0 of input 1"):
        feature_flow(sites, rule="correlation", stores=others, progress=False)


def test_correlation_leaves_out_an_embedding_of_other_rows():
    z = active_rows(60, 6, 0)
    one, other = (f"visual.transformer.resblocks.{layer}" for layer in (0, 1))
    sites = {site: dictionary(torch.eye(6), site) for site in (one, other, "image_embed")}
    tokens = pl.DataFrame({"input_id": np.repeat(range(20), 3), "token": np.tile(range(3), 20)}).cast(pl.UInt32)
    stores = {site: ns.ActivationStore.from_tensor(z, rows=tokens, site=site) for site in (one, other)}
    stores["image_embed"] = ns.ActivationStore.from_tensor(z[:20], site="image_embed")
    flow = feature_flow(sites, rule="correlation", stores=stores, progress=False)
    assert "60 rows" in flow.about["left_out"][0]
    assert flow.nulls.height == 1
