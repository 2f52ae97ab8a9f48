"""Linked dashboards show one selection, whoever makes it; those of different dictionaries are refused."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from bias_fakes import fake_bias
from flow_fakes import fake_flow
from strip_fakes import fake_attribution
from widget_fakes import built, fake_analysis

import nb_sae as ns
from nb_sae.errors import WidgetError
from nb_sae.types import Site

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")


def features(site: str = "mlp", d_sae: int = 60, **given) -> ns.FeatureDashboard:
    analysis = fake_analysis("pooled", d_sae=d_sae)
    return ns.FeatureDashboard(replace(analysis, site=Site(site, 64, True)), saved=2, **given)


def concepts(latents=(1, 5, 9), site: str = "mlp") -> ns.ConceptDashboard:
    analysis = replace(fake_analysis("pooled", d_sae=60), site=Site(site, 64, True))
    return ns.ConceptDashboard(analysis, pl.DataFrame({"latent": latents, "name": [f"n{one}" for one in latents]}))


def from_browser(dashboard, **state) -> None:
    dashboard._handle_msg(
        {"content": {"data": {"method": "update", "state": state, "buffer_paths": []}}, "buffers": []}
    )


def test_a_choice_in_python_or_in_the_browser_reaches_every_dashboard_of_the_link():
    a, b, c = features(), features(), concepts()
    link = ns.link(a, b, c)
    a.latent = 9
    assert (b.latent, c.latent) == (9, 9)
    from_browser(c, latent=5)
    assert (a.latent, b.latent, link.selection) == (5, 5, ("mlp", 5))


def test_linking_starts_at_the_first_dashboards_selection():
    a, b = features(latent=3), features(latent=8)
    ns.link(a, b)
    assert (a.latent, b.latent) == (3, 3)


def test_a_dashboard_that_does_not_show_the_latent_stays_and_the_others_go_on():
    a, named, b = features(), concepts((1, 5)), features()
    ns.link(a, named, b)
    a.latent = 5
    a.latent = 44
    assert (named.latent, b.latent) == (5, 44)


def test_a_flow_links_dashboards_of_its_sites_each_with_its_own_latents():
    flow = fake_flow(layers=2, modules=False)
    first, second = flow.sites[:2]
    graph, one, two = ns.FlowDashboard(flow), features(first), features(second)
    ns.link(graph, one, two)
    one.latent = 11
    assert (graph.site, graph.latent) == (first, 11)
    before = one.latent
    two.latent = 22
    assert (graph.site, graph.latent, one.latent) == (second, 22, before)
    graph.choose(first, 33)
    assert (one.latent, two.latent) == (33, 22)


def test_the_browser_is_told_the_link_and_its_end():
    a, b = features(), features()
    link = ns.link(a, b)
    assert a.get_state()["linked"] == {"group": b.linked["group"], "sites": {"mlp": 60}}
    link.unlink()
    a.latent, b.latent = 3, 4
    assert (a.latent, a.linked, a.link, b.linked) == (3, {}, None, {})
    with pytest.raises(WidgetError, match="has ended"):
        _ = link.selection


def test_one_dashboard_can_leave_and_a_link_of_one_ends():
    a, b, c = features(), features(), features()
    link = ns.link(a, b, c)
    link.unlink(c)
    a.latent = 7
    assert (b.latent, link.dashboards) == (7, (a, b))
    assert c.latent != 7
    with pytest.raises(WidgetError, match="is not in this link"):
        link.unlink(c)
    link.unlink(b)
    assert (link.dashboards, a.link) == ((), None)


def test_linking_anew_takes_a_dashboard_out_of_the_link_before():
    """A cell that links is run more than once."""
    a, b, c = features(), features(), features()
    before = ns.link(a, b)
    ns.link(a, c)
    a.latent = 12
    assert (c.latent, before.dashboards, b.linked) == (12, (), {})
    assert b.latent != 12


def test_dashboards_that_do_not_know_their_site_take_that_of_the_others():
    strip = ns.AttributionStrip(fake_attribution())
    a = features(strip.about["site"])
    ns.link(a, strip)
    a.latent = 2
    assert strip.latent == 2
    bias = fake_bias(12, images=2, inputs=20)
    report = ns.BiasDashboard(replace(bias, about={**bias.about, "site": None}))
    ns.link(a, report)
    wanted = int(report.concepts["latent"].filter(report.concepts["latent"] < 60)[-1])
    a.latent = wanted
    assert report.latent == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: [features()], "given 1 dashboard,"),
        (list, "given 0 dashboards,"),
        (lambda: [features(), features(d_sae=64)], "shows 60 latents at 'mlp', FeatureDashboard shows 64"),
        (lambda: [features(), features("attn")], "is of mlp, the other dashboards are of attn"),
        (lambda: [features(), "concepts"], "given a str"),
        (lambda: [features(), ns.FlowDashboard(fake_flow(layers=2))], "is of mlp, the other dashboards"),
    ],
)
def test_what_cannot_show_one_selection_is_refused_and_nothing_is_linked(given, said):
    dashboards = given()
    with pytest.raises(WidgetError, match=said):
        ns.link(*dashboards)
    assert all(getattr(one, "link", None) is None for one in dashboards)


def test_the_same_dashboard_twice_is_refused():
    a = features()
    with pytest.raises(WidgetError, match="twice"):
        ns.link(a, a)


def test_choices_of_two_threads_end_in_one_selection():
    """With ipykernel 7 the browser's choice arrives on another thread while a cell chooses."""
    a, b = features(), features()
    ns.link(a, b)
    start = threading.Barrier(2)

    def step(dashboard, seed):
        start.wait(5)
        for latent in np.random.default_rng(seed).integers(0, 60, 40).tolist():
            dashboard.latent = latent

    threads = [threading.Thread(target=step, args=one) for one in ((a, 0), (b, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert a.latent == b.latent
