"""Activation groups: planted predecessors, the null by shuffling, and rows that do not fit together."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from flow_planted import flow_of, plain_dictionary, store_of

from nb_sae.errors import ConfigError, StoreError
from nb_sae.flow.effects.groups import activation_groups
from nb_sae.flow.schema import ACTIVATION_GROUPS, GROUP_TESTS, GROUPS

SUBSETS = [(), ("residual",), ("mlp",), ("attention",), ("residual", "mlp"), ("residual", "attention")]
SUBSETS += [("mlp", "attention"), ("residual", "mlp", "attention")]
LANES = ("residual", "mlp", "attention")
F = 10
"""Eight latents with one group each, one that follows its residual predecessor alone, one that is never active."""


def world(rows: int = 3_000, *, shuffled: bool = False):
    """Predecessor j of every lane belongs to latent j, which is active exactly where group j is; noise strengths."""
    generator = torch.Generator().manual_seed(0)
    before = {lane: torch.rand(rows, F, generator=generator) < 0.3 + 0.05 * n for n, lane in enumerate(LANES)}
    target = torch.zeros(rows, F, dtype=torch.bool)
    for latent, subset in enumerate(SUBSETS):
        target[:, latent] = torch.stack([before[lane][:, latent] == (lane in subset) for lane in LANES]).all(0)
    target[:, 8] = before["residual"][:, 8]
    if shuffled:
        target = target[torch.randperm(rows, generator=generator)]
    # Latent j is matched with predecessor 9 − j: numbers must be looked up, not assumed.
    active = {"out": target} | {lane: one.flip(1) for lane, one in before.items()}
    strength = {site: 0.5 + torch.rand(one.shape, generator=generator) for site, one in active.items()}
    stores = {site: store_of(one * strength[site], site) for site, one in active.items()}
    dictionaries = {site: plain_dictionary(torch.eye(F), site) for site in stores}
    matches = {"out": {lane: (lane, [[F - 1 - j] for j in range(F)]) for lane in LANES}}
    flow = flow_of({"residual": F, "mlp": F, "attention": F, "out": F}, matches)
    return flow, dictionaries, stores, active


def test_groups_of_a_planted_process_are_recovered_exactly():
    flow, dictionaries, stores, active = world()
    groups = activation_groups(flow, dictionaries, stores, chunk_rows=700, progress=False)
    assert groups.frame.schema == ACTIVATION_GROUPS
    assert groups.frame.height == 8 * F
    for latent, group in enumerate(GROUPS):
        lines = groups.frame.filter(pl.col("latent") == latent)
        share = dict(lines.select("group", "share").iter_rows())
        assert share == {one: float(one == group) for one in GROUPS}
        assert lines["rows"].sum() == int(active["out"][:, latent].sum())
    follower = dict(groups.frame.filter(pl.col("latent") == 8).select("group", "share").iter_rows())
    assert sum(share for group, share in follower.items() if "residual" in group or group == "all") == 1.0
    assert groups.about["rows"] == 3_000


def test_counts_do_not_depend_on_how_the_rows_are_cut():
    flow, dictionaries, stores, _ = world(500)
    whole = activation_groups(flow, dictionaries, stores, progress=False)
    for chunk_rows in (1, 7, 499):
        cut = activation_groups(flow, dictionaries, stores, chunk_rows=chunk_rows, progress=False)
        assert cut.frame.equals(whole.frame)


def test_rows_are_read_a_chunk_at_a_time(monkeypatch):
    from nb_sae.store.view import StoredRows

    flow, dictionaries, stores, _ = world(2_000)
    read, whole = [], StoredRows.__getitem__
    monkeypatch.setattr(StoredRows, "__getitem__", lambda self, rows: read.append(whole(self, rows)) or read[-1])
    activation_groups(flow, dictionaries, stores, chunk_rows=128, progress=False)
    assert max(len(rows) for rows in read) == 128
    assert sum(len(rows) for rows in read) == 4 * 2_000, "every site is read once"


def test_expected_shares_are_what_a_shuffled_latent_shows():
    flow, dictionaries, stores, _ = world(20_000, shuffled=True)
    frame = activation_groups(flow, dictionaries, stores, progress=False).frame.drop_nulls("share")
    spread = (
        frame["expected"] * (1 - frame["expected"]) / frame.group_by("latent").agg(pl.col("rows").sum())["rows"].min()
    ).sqrt()
    assert float(((frame["share"] - frame["expected"]).abs() / spread).max()) < 4.5
    planted = activation_groups(*world(20_000)[:3], progress=False).frame.drop_nulls("share")
    assert float((planted["share"] - planted["expected"]).abs().max()) > 0.5, "the same test sees a planted process"


def test_expected_shares_keep_predecessors_that_go_together():
    """Both predecessors are always active at once: the product of their shares would put rows where there are none."""
    generator = torch.Generator().manual_seed(1)
    both = (torch.rand(4_000, 1, generator=generator) < 0.4).float()
    target = (torch.rand(4_000, 1, generator=generator) < 0.2).float()
    stores = {"a": store_of(both, "a"), "m": store_of(both, "m"), "out": store_of(target, "out")}
    dictionaries = {site: plain_dictionary(torch.eye(1), site) for site in stores}
    flow = flow_of({"a": 1, "m": 1, "out": 1}, {"out": {"residual": ("a", [[0]]), "mlp": ("m", [[0]])}})
    lines = {
        line["group"]: line
        for line in activation_groups(flow, dictionaries, stores, progress=False).frame.iter_rows(named=True)
    }
    assert lines["residual"]["expected"] == lines["mlp"]["expected"] == 0
    assert lines["residual+mlp"]["expected"] == pytest.approx(float(both.mean()))
    assert lines["all"]["share"] is None, "there is no dictionary of the attention output"
    assert lines["all"]["expected"] is None


def test_a_latent_that_is_never_active_has_no_shares():
    lines = activation_groups(*world(300)[:3], progress=False).frame.filter(pl.col("latent") == 9)
    assert lines["rows"].to_list() == [0] * 8
    assert lines["share"].to_list() == [None] * 8
    assert lines["expected"].null_count() == 0


def test_latents_that_come_with_a_predecessor_are_compared_with_the_others():
    """The nearer a latent is to its residual predecessor, the more it goes with it; of the MLP nothing is planted."""
    rows, latents = 2_000, 60
    generator = torch.Generator().manual_seed(2)
    residual, mlp = (torch.rand(rows, latents, generator=generator) < 0.2 for _ in range(2))
    nearness = torch.rand(latents, generator=generator)
    target = torch.where(torch.rand(rows, latents, generator=generator) < nearness, residual, residual.roll(3, 0))
    active = {"r": residual, "m": mlp, "out": target}
    stores = {site: store_of(one.float(), site) for site, one in active.items()}
    dictionaries = {site: plain_dictionary(torch.eye(latents), site) for site in active}
    own = [[j] for j in range(latents)]
    flow = flow_of(dict.fromkeys(active, latents), {"out": {"residual": ("r", own), "mlp": ("m", own)}})
    score = pl.Series("s_residual", [None] * 2 * latents + nearness.tolist(), dtype=pl.Float32)
    noise = pl.Series(
        "s_mlp", [None] * 2 * latents + torch.rand(latents, generator=generator).tolist(), dtype=pl.Float32
    )
    flow.latents = flow.latents.with_columns(score, noise)
    tests = activation_groups(flow, dictionaries, stores, progress=False).tests
    assert tests.schema == GROUP_TESTS
    found = {line["score"]: line for line in tests.iter_rows(named=True)}
    assert found["s_residual"]["effect"] > 0.95
    assert found["s_residual"]["q_value"] < 1e-6
    assert found["s_residual"]["with_it"] + found["s_residual"]["without_it"] == latents
    assert found["s_mlp"]["p"] is None or found["s_mlp"]["p"] > 0.01


def test_shares_of_a_site_add_up_over_its_latents():
    by_site = activation_groups(*world(1_000)[:3], progress=False).by_site()
    assert by_site["share"].sum() == pytest.approx(1)
    assert by_site["expected"].sum() == pytest.approx(1)


def test_stores_with_other_rows_are_refused():
    flow, dictionaries, stores, _ = world(300)
    fewer = {**stores, "mlp": store_of(torch.rand(200, F), "mlp")}
    with pytest.raises(StoreError, match="'mlp' has 200"):
        activation_groups(flow, dictionaries, fewer, sites=["out"], progress=False)
    tokens = pl.DataFrame({"input_id": range(300), "token": [1] * 300})
    other = {**stores, "mlp": store_of(torch.rand(300, F), "mlp", rows=tokens)}
    with pytest.raises(StoreError, match="Row 0 is token"):
        activation_groups(flow, dictionaries, other, progress=False)


def test_missing_sites_are_named():
    flow, dictionaries, stores, _ = world(300)
    with pytest.raises(StoreError, match="no store for 'mlp'"):
        activation_groups(flow, dictionaries, {**{s: x for s, x in stores.items() if s != "mlp"}}, progress=False)
    with pytest.raises(ConfigError, match="no dictionary for 'attention'"):
        activation_groups(flow, {s: d for s, d in dictionaries.items() if s != "attention"}, stores, progress=False)
    with pytest.raises(ConfigError, match="Closest: out"):
        activation_groups(flow, dictionaries, stores, sites=["outt"], progress=False)
    with pytest.raises(ConfigError, match="Nothing lies before"):
        activation_groups(flow, dictionaries, stores, sites=["residual"], progress=False)


def test_rows_of_another_revision_are_refused():
    flow, dictionaries, stores, _ = world(300)
    dictionaries["out"].revision = "r2"
    with pytest.raises(StoreError, match="revision"):
        activation_groups(flow, dictionaries, stores, progress=False)


def test_pooled_sites_are_left_out_and_said_so():
    flow, dictionaries, stores, _ = world(300)
    flow = flow_of(
        {**dict.fromkeys(("residual", "out"), F), "embed": F},
        {
            site: {"residual": (source, [[j] for j in range(F)])}
            for site, source in (("out", "residual"), ("embed", "out"))
        },
    )
    stores["embed"] = store_of(torch.rand(10, F), "embed")
    dictionaries["embed"] = plain_dictionary(torch.eye(F), "embed")
    groups = activation_groups(flow, dictionaries, stores, progress=False)
    assert list(groups.about["left_out"]) == ["embed"]
    assert groups.frame["site"].unique().to_list() == ["out"]
