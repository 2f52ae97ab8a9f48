"""The flow dashboard on the Python side: chains, pages, traits, answers, budgets, bad input."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flow_fakes import FakeFlow, fake_flow, fake_tree
from PIL import Image
from test_widgets import ask, rows
from test_widgets_wire import read
from widget_fakes import HOSTILE, LONE_SURROGATE, built, fake_analysis, thumb

from nb_sae.errors import WidgetError
from nb_sae.flow import schema as flow_schema
from nb_sae.widgets import base
from nb_sae.widgets.flow import SAVED_BYTES, FlowDashboard
from nb_sae.widgets.flow_steer import read_answer
from nb_sae.widgets.flow_tables import Filter, FlowIndex

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")


@dataclass(frozen=True)
class FakeEffect:
    """What `ns.chain_effect` returns."""

    frame: pl.DataFrame
    generations: pl.DataFrame | None
    about: dict


FIXTURE = Path(__file__).parent / "fixtures" / "flow.json"


@pytest.fixture(scope="module")
def flow() -> FakeFlow:
    return fake_flow()


@pytest.fixture(scope="module")
def index(flow) -> FlowIndex:
    return FlowIndex(flow)


def analyses(flow: FakeFlow, **kinds) -> dict:
    residual = [site for site in flow.sites if "resid" in site or "embed" in site]
    return {
        site: fake_analysis("pooled" if "embed" in site else "patches", seed=number, **kinds)
        for number, site in enumerate(residual)
    }


def steer(site: str, latent: int, strength: float, mode: str) -> dict:
    return {
        "before": "a cat",
        "after": f"{site} {latent} {strength} {mode}",
        "control": ["a dog", "a cow"],
        "metrics": {"loss": {"before": 1.0, "after": 2.0}},
        "note": HOSTILE[0],
    }


@pytest.fixture
def dashboard(flow) -> FlowDashboard:
    site = flow.sites[2]
    return FlowDashboard(
        flow, analyses(flow), names={site: {3: "hat", 5: "striped hat"}}, tree={site: fake_tree()}, steer=steer
    )


# Chains and pages


def test_planted_chains_are_found_whole_and_no_longer_than_planted(flow, index):
    residual = [site for site in flow.sites if "resid" in site or "embed" in site]
    carried = flow.carried  # one column per feature of the first site
    whole = 0
    for feature in range(carried.shape[1]):
        chain = [index.latent_of(node) for node, _ in index.chain(index.node(residual[0], feature))]
        planted = [
            (site, int(latent)) for site, latent in zip(residual, carried[:, feature], strict=True) if latent >= 0
        ]
        assert chain == planted
        whole += len(planted) == len(residual)
    assert 0 < whole < carried.shape[1]


def test_a_newborn_latent_is_led_back_to_the_module_that_wrote_it(flow, index):
    made = flow.latents.filter(pl.col("kind") == "newborn").row(0, named=True)
    (module, cosine), *rest = index.chain(index.node(made["site"], made["latent"]))
    assert index.latent_of(module) == (made["site"].replace("resid_post", "mlp_out"), made["match_mlp"])
    assert cosine == pytest.approx(made["s_mlp"])
    assert index.latent_of(rest[0][0]) == (made["site"], made["latent"])


def test_without_matches_every_chain_is_one_latent(flow):
    high = replace(flow, nulls=flow.nulls.with_columns(threshold=pl.lit(0.999)))
    index = FlowIndex(high)
    assert all(len(index.chain(node)) == 1 for node in range(index.size))
    assert "no latent of another site" in repr(FlowDashboard(high))


def test_a_page_holds_the_chain_and_at_most_so_many_of_every_site(index):
    chosen = index.node(*index.strongest())
    for shown in (1, 7, 40):
        page = index.page([chosen], shown)
        assert np.bincount(index.site_of[page], minlength=len(index.sites)).max() <= shown
        assert set(page) >= {node for node, _ in index.chain(chosen)}
        np.testing.assert_array_equal(page, index.page([chosen], shown))
    # Chains are shown whole: what a shown latent is carried on to is shown too, while there is room.
    page = set(index.page([chosen], 30).tolist())
    strong = [node for node in page if index.span[node] == 5]
    assert strong
    assert np.mean([index.after[node] < 0 or index.after[node] in page for node in strong]) > 0.9


def test_filters_choose_among_all_latents_and_keep_the_chain(index):
    chosen = index.node(*index.strongest())
    chain = {node for node, _ in index.chain(chosen)}
    near = set(index.page([chosen], 1).tolist()) | set(index._near([chosen]))
    page = index.page([chosen], 40, Filter(kind="newborn"))
    others = [node for node in page if node not in near]
    assert others
    assert all(index.kind[node] == 2 for node in others)
    assert chain <= set(page.tolist())
    page = index.page([chosen], 40, Filter(lanes=("residual",), score="s_residual", least=0.9))
    others = [node for node in page if node not in near]
    assert all(index.lane[index.site_of[node]] == "residual" for node in others)
    assert all(index.scores["s_residual"][node] >= 0.9 for node in others)


def test_the_order_of_a_column_does_not_depend_on_what_is_shown_and_uncrosses_chains(flow, index):
    again = FlowIndex(replace(flow, edges=flow.edges.sample(fraction=1.0, shuffle=True, seed=1)))
    np.testing.assert_array_equal(index.y, again.y)
    linked = np.flatnonzero((index.after >= 0) & (np.array(index.lane)[index.site_of] == "residual"))

    def crossings(y: np.ndarray) -> int:
        count = 0
        for place in range(len(index.sites)):
            a = linked[index.site_of[linked] == place]
            here, there = y[a], y[index.after[a]]
            count += int((((here[:, None] - here) * (there[:, None] - there)) < 0).sum() // 2)
        return count

    rng = np.random.default_rng(0)
    assert crossings(index.y) < 0.1 * crossings(rng.random(index.size))


def test_edges_of_a_page_are_those_of_the_flow_with_their_verdict(flow, index):
    page = index.page([index.node(*index.strongest())], 40)
    edges = index.edges_frame(page)
    inside = set(page.tolist())
    expected = [
        row
        for row in flow.edges.iter_rows(named=True)
        if index.node(row["source_site"], row["source_latent"]) in inside
        and index.node(row["target_site"], row["target_latent"]) in inside
    ]
    assert edges.height == len(expected)
    assert int(edges["above"].sum()) == sum(row["above"] for row in expected)
    fewer = index.edges_frame(page, 20)
    assert fewer.height == 20
    assert fewer["cosine"].min() >= edges["cosine"].sort(descending=True)[19]


# Traits


def test_what_is_chosen_is_checked_where_it_is_set(dashboard, flow):
    dashboard.site = flow.sites[5]
    dashboard.latent = np.int64(7)
    assert (dashboard.site, dashboard.latent) == (flow.sites[5], 7)
    with pytest.raises(WidgetError, match="Closest: blocks"):
        dashboard.site = "blocks.3.hook_resid"
    with pytest.raises(WidgetError, match="outside 0 … 59"):
        dashboard.latent = 60
    for wrong in (-1, "3", True, None, 2.5):
        with pytest.raises(WidgetError):
            dashboard.latent = wrong
    dashboard.choose(flow.sites[2], 3)
    assert "latent 3 “hat” at blocks.0.hook_resid_post" in repr(dashboard)
    with pytest.raises(WidgetError, match="outside 0 … 59"):
        dashboard.choose(flow.sites[2], 900)
    assert (dashboard.site, dashboard.latent) == (flow.sites[2], 3)


def test_both_traits_arrive_together_from_the_browser(dashboard, flow):
    dashboard.set_state({"latent": 12, "site": flow.sites[8]})
    assert (dashboard.site, dashboard.latent) == (flow.sites[8], 12)


def test_a_smaller_site_takes_its_strongest_latent(flow):
    small = flow.latents.filter((pl.col("site") != flow.sites[0]) | (pl.col("latent") < 10))
    edges = flow.edges.filter((pl.col("source_site") != flow.sites[0]) | (pl.col("source_latent") < 10))
    dashboard = FlowDashboard(replace(flow, latents=small, edges=edges), start=(flow.sites[2], 40))
    dashboard.site = flow.sites[0]
    assert dashboard.latent < 10


# Answers


def test_the_kernel_pages_what_the_saved_view_does_not_hold(dashboard, flow):
    content, buffers = ask(dashboard, {"id": 1, "kind": "page", "site": flow.sites[5], "latent": 30, "lanes": []})
    assert content["ok"]
    nodes = rows(content["header"], buffers[0], "nodes")
    assert nodes.filter((pl.col("site") == 5) & (pl.col("latent") == 30)).height == 1
    assert nodes.group_by("site").len()["len"].max() == 40
    content, buffers = ask(dashboard, {"id": 2, "kind": "find", "text": " HAT"})
    assert read(content["header"], buffers[0], "nodes", "name") == ["hat", "striped hat"]
    content, buffers = ask(dashboard, {"id": 3, "kind": "find", "text": "#7"})
    assert read(content["header"], buffers[0], "nodes", "latent") == [7] * len(flow.sites)
    content, buffers = ask(dashboard, {"id": 4, "kind": "tree", "site": flow.sites[2], "latent": 20})
    pairs = rows(content["header"], buffers[0], "tree")
    assert pairs["child"][0] == 20 or 20 in pairs["parent"].head(6).to_list() or 20 in pairs["child"].head(6).to_list()


def test_cards_of_several_sites_come_with_their_pictures_once(dashboard, flow):
    latents = [[flow.sites[2], 3], [flow.sites[5], 3], [flow.sites[0], 3], [flow.sites[-1], 9]]
    content, buffers = ask(dashboard, {"id": 1, "kind": "cards", "latents": latents})
    assert {name.split("/")[0] for name in content["header"]["tables"]} == {"2", "5", "12"}
    ends = content["thumbs_header"]["ends"]
    for place in (2, 5, 12):
        places = read(content["header"], buffers[0], f"{place}/inputs", "thumb")
        assert all(-1 <= one < len(ends) for one in places)
    pictures = [buffers[1][start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert len(set(pictures)) == len(pictures)


def test_steering_is_answered_side_by_side_and_its_errors_are_answers(flow):
    dashboard = FlowDashboard(flow, steer=steer)
    wanted = {"id": 1, "kind": "steer", "site": flow.sites[2], "latent": 3, "strength": 2.5, "mode": "cumulative"}
    content, buffers = ask(dashboard, wanted)
    sides = rows(content["header"], buffers[0], "sides")
    assert sides["side"].to_list() == ["before", "after", "control", "control"]
    assert sides["text"][1] == "blocks.0.hook_resid_post 3 2.5 cumulative"
    assert np.isnan(read(content["header"], buffers[0], "metrics", "control")[0])
    for bad in ({"strength": "much"}, {"mode": "twice"}, {"latent": 999}):
        content, _ = ask(dashboard, {**wanted, **bad})
        assert not content["ok"]

    def fails(*_: object) -> dict:
        raise ZeroDivisionError("no such prompt")

    broken = FlowDashboard(flow, steer=fails)
    content, _ = ask(broken, wanted)
    assert "ZeroDivisionError" in content["error"]["cause"]
    content, _ = ask(FlowDashboard(flow), wanted)
    assert not content["ok"]


def test_pictures_of_steering_are_encoded_anew():
    picture = Image.new("RGB", (900, 300), (200, 10, 10))
    tables, thumbs = read_answer({"before": picture, "after": [thumb(1), "and words"]})
    assert tables["sides"]["thumb"].to_list() == [0, 1, -1]
    with Image.open(io.BytesIO(thumbs[0])) as small:
        assert small.format == "WEBP"
        assert max(small.size) == 168
    for bad, said in (
        ("text", "expected a dict"),
        ({"before": "x"}, "after is missing"),
        ({"before": "x", "after": b"no picture"}, "no picture"),
        ({"before": "x", "after": 3}, "expected texts or pictures"),
        ({"before": "x", "after": "y", "metrics": {"loss": 3}}, "expected {'before'"),
    ):
        with pytest.raises(WidgetError, match=said):
            read_answer(bad)


def test_what_chain_effect_returns_is_shown_beside_its_controls():
    lines = [(0, "chain", 3, -4.0, -2.0, 2.0, 0.5), (1, "control", 9, -4.0, -4.2, -0.2, 0.3)]
    effect = FakeEffect(
        pl.DataFrame(lines, schema=flow_schema.CHAIN_EFFECT, orient="row"),
        pl.DataFrame([("The cat", " sat", " ran", None)], schema=flow_schema.GENERATIONS, orient="row"),
        {"measure": "log-probability", "effect": 2.0, "p": 0.5, "toward": [" ran"]},
    )
    tables, _ = read_answer(effect)
    assert tables["sides"].select("side", "text").rows() == [("before", "The cat sat"), ("after", "The cat ran")]
    assert tables["metrics"]["control"].to_list() == [-4.2, 0.3]
    assert "p = 0.5 against 1 control" in tables["note"]["text"][0]
    silent, _ = read_answer(FakeEffect(effect.frame, None, {**effect.about, "p": None}))
    assert silent["sides"].is_empty()
    assert "no controls" in silent["note"]["text"][0]


def test_chains_are_those_of_a_real_feature_flow():
    import torch

    from nb_sae.flow.links.making import feature_flow
    from nb_sae.sae.dictionary import Dictionary

    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(4, 48, 24, generator=generator), dim=-1)
    rows[1, :30] = rows[0, torch.randperm(48, generator=generator)[:30]]
    rows[2, :24] = torch.nn.functional.normalize(
        rows[1, 10:34] + 0.05 * torch.randn(24, 24, generator=generator), dim=-1
    )
    rows[2, 30:40] = rows[3, :10]
    names = [
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_post",
        "blocks.2.hook_mlp_out",
    ]
    dictionaries = {
        site: Dictionary.from_weights(one.T.contiguous(), torch.zeros(48), one, torch.zeros(24), site=site)
        for site, one in zip(names, rows, strict=True)
    }
    flow = feature_flow(dictionaries, draws=1_000, progress=False)
    dashboard = FlowDashboard(flow)
    index, lengths = dashboard.index, set()
    for site in flow.sites:
        for latent in range(48):
            expected = flow.chain(site, latent).select("site", "latent", "cosine")
            chain = index.chain(index.node(site, latent))
            assert [index.latent_of(node) for node, _ in chain] == list(expected.select("site", "latent").iter_rows())
            np.testing.assert_allclose([one for _, one in chain], expected["cosine"].fill_null(np.nan), rtol=1e-6)
            lengths.add(len(chain))
    assert lengths >= {1, 2, 3}


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": "page", "site": "nowhere", "latent": 0},
        {"kind": "page", "site": "blocks.0.hook_resid_post", "latent": "0"},
        {"kind": "page", "site": "blocks.0.hook_resid_post", "latent": 0, "lanes": ["sideways"]},
        {"kind": "page", "site": "blocks.0.hook_resid_post", "latent": 0, "least": "high"},
        {"kind": "cards", "latents": 3},
        {"kind": "cards", "latents": [[1, 2, 3]]},
        {"kind": "unheard of"},
    ],
)
def test_what_cannot_be_answered_is_answered_with_an_error(dashboard, request_):
    content, _ = ask(dashboard, {"id": 1, **request_})
    assert content["ok"] is False
    assert content["error"]["cause"]


# What is saved, and shown without scripts


def saved_bytes(dashboard: FlowDashboard) -> int:
    """As a saved notebook holds it: bytes as base64, texts and headers as JSON, the picture once."""
    state = {name: getattr(dashboard, name) for name in dashboard.trait_names(sync=True) if name not in ("layout",)}
    raw = [value for value in state.values() if isinstance(value, bytes)]
    texts = [value for value in state.values() if isinstance(value, str | dict | int)]
    scripts = sum(len(base.read_static(f"flow.{kind}")) for kind in ("js", "css"))
    encoded = sum(len(base64.b64encode(one)) for one in [*raw, dashboard.picture()])
    return encoded + scripts + sum(len(json.dumps(one)) for one in texts if one not in (dashboard._esm, dashboard._css))


def test_a_saved_view_of_a_large_flow_stays_within_500_kb():
    flow = fake_flow(12, 256, top=6)
    names = {site: {latent: f"a concept with a long name {latent}" for latent in range(256)} for site in flow.sites}
    held = dict.fromkeys(flow.sites, fake_analysis("patches", d_sae=256, top=6, interval=1))
    dashboard = FlowDashboard(flow, held, names=names, tree=fake_tree(256), start=(flow.sites[8], 4))
    assert saved_bytes(dashboard) <= SAVED_BYTES
    assert len(flow.sites) == 37
    assert dashboard.about["saved"]["shown"] >= 10
    assert dashboard.about["saved"]["cards"] >= 12
    assert dashboard.about["latents"] == 37 * 256
    chain = [
        dashboard.index.latent_of(node) for node, _ in dashboard.index.chain(dashboard.index.node(dashboard.site, 4))
    ]
    tables = dashboard.cards_header["tables"]
    for site, latent in chain:  # the cards of the start's chain come first
        place = flow.sites.index(site)
        assert latent in read(dashboard.cards_header, dashboard.cards, f"{place}/cards", "latent"), tables.keys()


def test_named_latents_are_saved_with_their_chains(flow):
    wanted = (flow.sites[2], 58)
    dashboard = FlowDashboard(flow, analyses(flow), saved=[wanted])
    nodes = rows(dashboard.graph_header, dashboard.graph, "nodes")
    for node, _ in dashboard.index.chain(dashboard.index.node(*wanted)):
        site, latent = dashboard.index.latent_of(node)
        assert nodes.filter((pl.col("site") == flow.sites.index(site)) & (pl.col("latent") == latent)).height == 1


@pytest.mark.parametrize("kind", ["patches", "text", "none"])
def test_the_picture_is_small_and_drawn_for_every_kind_of_input(flow, kind):
    held = {} if kind == "none" else {site: fake_analysis(kind) for site in flow.sites if "resid" in site}
    dashboard = FlowDashboard(flow, held, names={flow.sites[2]: {3: HOSTILE[2]}}, start=(flow.sites[2], 3))
    with Image.open(io.BytesIO(dashboard.picture())) as picture:
        assert picture.width in (900, 1800)
    assert len(dashboard.picture()) <= 80_000


def test_hostile_names_and_lone_surrogates_are_stored_as_text(flow):
    names = {flow.sites[2]: dict(enumerate([*HOSTILE, LONE_SURROGATE]))}
    dashboard = FlowDashboard(flow, names=names, start=(flow.sites[2], 10))
    assert "\ufffd" in dashboard.names.of[dashboard.index.node(flow.sites[2], 10)]
    assert dashboard.picture()
    assert repr(dashboard)


# Bad input


def test_bad_frames_are_refused(flow):
    with pytest.raises(WidgetError, match="no frame 'latents'"):
        FlowDashboard({"edges": flow.edges})
    with pytest.raises(WidgetError, match="lacks the columns cosine"):
        FlowDashboard(replace(flow, edges=flow.edges.drop("cosine")))
    with pytest.raises(WidgetError, match=r"flow\.sites does not"):
        FlowDashboard(replace(flow, sites=flow.sites[:-1]))
    with pytest.raises(WidgetError, match="no sites"):
        FlowDashboard(replace(flow, sites=[]))
    with pytest.raises(WidgetError, match="no line about"):
        FlowDashboard(replace(flow, sites=[*flow.sites, "blocks.9"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"analyses": [1]}, "analyses is a list"),
        ({"analyses": {"blocks.0.hook_resid": 1}}, "Closest: blocks.0.hook_resid_post"),
        ({"analyses": {"blocks.0.hook_resid_post": 1}}, "is a int without latents"),
        ({"analyses": {"blocks.0.hook_resid_post": fake_analysis("pooled", d_sae=12)}}, "of 12 latents"),
        ({"names": 3}, "names is a int"),
        ({"names": {"blocks.0.hook_resid_post": {60: "x"}}}, "which has 0 … 59"),
        ({"names": pl.DataFrame({"latent": [1]})}, "site, name is missing"),
        ({"tree": pl.DataFrame({"parent": [1]})}, "without child"),
        ({"tree": {"nowhere": fake_tree()}}, "tree speaks of the site"),
        ({"steer": "do it"}, "Give a callable"),
        ({"start": "blocks.0.hook_resid_post"}, "no pair"),
        ({"start": ("blocks.0.hook_resid_post", 60)}, "outside 0 … 59"),
        ({"saved": [3]}, "no pair"),
    ],
)
def test_bad_arguments_name_what_was_given_and_what_to_do(flow, arguments, said):
    with pytest.raises(WidgetError, match=said):
        FlowDashboard(flow, **arguments)


# The contract with the browser side


_OF_THE_DAY = ("layout", "kernel_side")  # of this version or this session, not of the contract


def fixture() -> dict:
    flow = fake_flow(3, 20, top=3, seed=2)
    flow.about["left_out"] = [HOSTILE[1]]
    site = flow.sites[2]
    held = {
        site: fake_analysis("patches", d_sae=20, inputs=6, top=3, interval=1, hostile=True, pictures=False),
        flow.sites[5]: fake_analysis("text", d_sae=20, inputs=6, top=3, interval=1, hostile=True),
    }
    names = {site: {1: HOSTILE[0], 2: "hat", 3: "striped hat"}}
    dashboard = FlowDashboard(flow, held, names=names, tree={site: fake_tree(20)}, steer=steer, start=(site, 1))
    chosen = {"site": site, "latent": 1}
    asked = {
        "page": dashboard._answer({"id": 1, "kind": "page", **chosen, "lanes": ["residual"]}),
        "find": dashboard._answer({"id": 2, "kind": "find", "text": "hat"}),
        "cards": dashboard._answer({"id": 3, "kind": "cards", "latents": [[flow.sites[5], 7], [site, 2]]}),
        "tree": dashboard._answer({"id": 4, "kind": "tree", **chosen}),
        "steer": dashboard._answer({"id": 5, "kind": "steer", **chosen, "strength": 2.0, "mode": "single"}),
    }
    state = {name: getattr(dashboard, name) for name in dashboard.trait_names(sync=True) if not name.startswith("_")}
    state = {name: value for name, value in state.items() if isinstance(value, bytes | dict | int | str)}
    encode = {name: base64.b64encode(value).decode() for name, value in state.items() if isinstance(value, bytes)}
    return {
        "state": {
            **{name: value for name, value in state.items() if name not in _OF_THE_DAY},
            **encode,
            "twin": "twin-4",
        },
        "binary": list(encode),
        "asked": {
            kind: {"content": content, "buffers": [base64.b64encode(one).decode() for one in buffers]}
            for kind, (content, buffers) in asked.items()
        },
    }


def test_the_committed_fixture_is_what_python_writes(built):
    said = "python tests/test_widgets_flow.py writes it anew; vitest must then pass as well"
    assert json.loads(FIXTURE.read_text(encoding="utf-8")) == json.loads(json.dumps(fixture())), said


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(fixture(), indent=1) + "\n", encoding="utf-8")
