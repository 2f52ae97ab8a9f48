"""The map of latents: planted groups, planted neighbours, what chance keeps, and what has no place."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

import nb_sae as ns
from nb_sae.analysis.layout import LAYOUT, neighbours_kept
from nb_sae.errors import ConfigError, MissingDependencyError, NonFiniteError, ShapeError

GROUPS, PER_GROUP, WIDTH = 4, 30, 24


def random_directions(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def grouped() -> torch.Tensor:
    """Four groups of directions around orthogonal centres, in turns: latent n is in group n % 4."""
    centres = 6 * torch.eye(WIDTH)[:GROUPS]
    return centres.repeat(PER_GROUP, 1) + random_directions(GROUPS * PER_GROUP, WIDTH)


@pytest.fixture(scope="module")
def flat() -> tuple[torch.Tensor, torch.Tensor]:
    """Directions that lie near one another on a small piece of the sphere: a plane, but for its curvature."""
    places = torch.rand(400, 2, generator=torch.Generator().manual_seed(1)) - 0.5
    turned, _ = torch.linalg.qr(random_directions(WIDTH, WIDTH, seed=2))
    rows = torch.cat([torch.ones(400, 1), 0.05 * places, torch.zeros(400, WIDTH - 3)], 1) @ turned
    lengths = 1 + 9 * torch.rand(400, 1, generator=torch.Generator().manual_seed(3))
    return rows * lengths, places


def test_pca_finds_the_planted_plane_and_keeps_every_neighbour(flat):
    rows, places = flat
    found = ns.layout(rows)
    assert found.frame.schema == LAYOUT
    assert found.frame["latent"].to_list() == list(range(400))
    # Lengths do not count: only the cosine does. Up to turning and size the places are the planted ones.
    xy = torch.from_numpy(found.frame.select("x", "y").to_numpy())
    planted = (places - places.mean(0)).double()
    turned = torch.linalg.lstsq(xy, planted).solution
    assert (xy @ turned - planted).norm() / planted.norm() < 0.01
    assert found.kept.value > 0.97
    assert found.settings["explained"] > 0.99


def test_planted_groups_stay_together_and_a_random_dictionary_keeps_hardly_more_than_chance(grouped):
    found = ns.layout(grouped)
    xy = found.frame.select("x", "y").to_numpy()
    group = np.arange(len(xy)) % GROUPS
    centres = np.stack([xy[group == one].mean(0) for one in range(GROUPS)])
    nearest = np.linalg.norm(xy[:, None] - centres, axis=-1).argmin(1)
    # Four centres in the plane of three independent differences: two of the groups may overlap, no more.
    assert (nearest == group).mean() > 0.7
    assert found.kept.value > 4 * found.kept.null
    random = ns.layout(random_directions(300, 256)).kept
    assert random.value < 3 * random.null


def test_the_null_is_what_shuffled_places_keep_in_expectation(flat):
    rows, places = flat
    kept = neighbours_kept(rows, places, k=20)
    assert kept.null == pytest.approx(20 / 399, rel=0.15)
    assert kept.null_std < 0.01
    shuffled = neighbours_kept(rows, places[torch.randperm(400, generator=torch.Generator().manual_seed(5))], k=20)
    assert shuffled.value == pytest.approx(shuffled.null, abs=0.02)


@pytest.mark.parametrize("rows", [random_directions(200, 1), random_directions(5, 16).repeat(40, 1)])
def test_the_null_is_that_of_chance_where_many_places_are_the_same(rows):
    # One axis: all of one sign are one point; five directions: forty on each point.
    nulls = [ns.layout(rows, seed=seed).kept.null for seed in range(40)]
    assert np.mean(nulls) == pytest.approx(10 / 199, abs=0.012)


def test_places_that_are_no_numbers_have_no_neighbours():
    rows, places = random_directions(20, 3), random_directions(20, 2)
    places[4, 1] = math.nan
    with pytest.raises(NonFiniteError, match="Leave it out"):
        neighbours_kept(rows, places)
    with pytest.raises(NonFiniteError):
        neighbours_kept(rows / 0, random_directions(20, 2))


def test_neighbours_kept_equals_the_loop_over_all_pairs(grouped):
    rows, places = grouped[:40], random_directions(40, 2, seed=7)
    unit = rows / rows.norm(dim=1, keepdim=True)
    shares = []
    for one in range(40):
        others = [other for other in range(40) if other != one]
        by_cosine = sorted(others, key=lambda other: -float(unit[one] @ unit[other]))[:6]
        on_map = sorted(others, key=lambda other: float((places[one] - places[other]).norm()))[:6]
        shares.append(len({*by_cosine} & {*on_map}) / 6)
    assert neighbours_kept(rows, places, k=6).value == pytest.approx(np.mean(shares))
    part = neighbours_kept(rows, places, k=6, sample=10, seed=3)
    assert part.sample == 10
    assert part.value == neighbours_kept(rows, places, k=6, sample=10, seed=3).value


def test_pca_is_the_same_for_turned_directions_but_for_the_signs(grouped):
    turned, _ = torch.linalg.qr(random_directions(WIDTH, WIDTH, seed=4))
    one, other = (ns.layout(rows).frame.select("x", "y").to_numpy() for rows in (grouped, grouped @ turned))
    np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-4)
    np.testing.assert_array_equal(one, ns.layout(grouped).frame.select("x", "y").to_numpy())


def test_a_dictionary_is_laid_out_by_its_decoder_and_a_row_without_direction_has_no_place(grouped):
    rows = grouped.clone()
    rows[[3, 7]] = 0
    dictionary = SimpleNamespace(W_dec=rows)
    found = ns.layout(dictionary)
    assert found.frame.height == len(rows) - 2
    assert {3, 7}.isdisjoint(found.frame["latent"])
    chosen = ns.layout(dictionary, latents=range(0, 60))
    assert chosen.frame["latent"].to_list() == [one for one in range(60) if one not in (3, 7)]
    assert "of the 10 nearest stay near" in repr(chosen)


def test_equal_directions_have_a_map_without_a_share_and_the_reason():
    found = ns.layout(torch.ones(20, 6))
    assert math.isnan(found.kept.value)
    assert "all directions are equal" in found.kept.reason
    assert found.kept.reason in repr(found)
    assert found.frame.select(pl.col("x", "y").abs().max()).row(0) == pytest.approx((0, 0), abs=1e-6)
    one_axis = ns.layout(torch.tensor([[1.0], [-1.0], [2.0], [-3.0], [1.0]]), k=1)
    assert one_axis.frame["y"].abs().max() == 0


@pytest.mark.parametrize(
    ("given", "settings", "error", "match"),
    [
        (torch.ones(20), {}, ShapeError, r"\(20,\); expected a Dictionary or directions"),
        ("clip", {}, ShapeError, "str; expected a Dictionary"),
        (random_directions(3, 8), {}, ConfigError, "at least 4"),
        (random_directions(20, 8), {"method": "tsne"}, ConfigError, 'Choose "pca" or "umap"'),
        (random_directions(20, 8), {"k": 20}, ConfigError, "expected 1 ≤ k < 20"),
        (random_directions(20, 8), {"sample": 0}, ConfigError, "sample ≥ 1"),
        (random_directions(20, 8), {"latents": [0, 1, 2, 20]}, ConfigError, "this dictionary has 0 … 19"),
        (random_directions(20, 8), {"latents": [-1, 1, 2, 3]}, ConfigError, "latents holds -1"),
        (random_directions(20, 8), {"latents": [0.5, 1, 2, 3]}, ConfigError, "expected the numbers of latents"),
        (random_directions(20, 8), {"latents": []}, ConfigError, "0 latents have a direction"),
        (random_directions(20, 8), {"method": "umap", "neighbours": 20}, ConfigError, "2 ≤ neighbours < 20"),
        (random_directions(20, 8), {"method": "umap", "min_dist": 2}, ConfigError, "outside 0 … 1"),
        (torch.full((20, 8), math.nan), {}, NonFiniteError, "latent 0 holds NaN or infinity"),
    ],
)
def test_bad_input_is_named_with_what_to_do(given, settings, error, match):
    with pytest.raises(error, match=match):
        ns.layout(given, **settings)


def test_umap_that_is_not_installed_is_named_with_the_command(monkeypatch, grouped):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nb-sae\[umap\]'"):
        ns.layout(grouped, method="umap")


class FakeUMAP:
    """In place of the library, which compiles for half a minute: gives the first two coordinates."""

    asked: dict

    def __init__(self, **settings) -> None:
        FakeUMAP.asked = settings

    def fit_transform(self, rows: np.ndarray) -> np.ndarray:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        return rows[:, :2]


def test_umap_is_given_unit_rows_the_seed_and_one_thread(monkeypatch, grouped):
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=FakeUMAP))
    found = ns.layout(grouped, method="umap", neighbours=7, min_dist=0.3, seed=11)
    wanted = {"n_neighbors": 7, "min_dist": 0.3, "metric": "cosine", "random_state": 11, "n_jobs": 1}
    assert FakeUMAP.asked == wanted
    assert found.method == "umap"
    unit = grouped / grouped.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(found.frame.select("x", "y").to_numpy(), unit[:, :2], rtol=1e-5)
    assert found.seed == 11
