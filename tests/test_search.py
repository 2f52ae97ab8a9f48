"""Concept search: exact neighbours, edited queries, parts that sum to the score, a graph whose recall is known."""

from __future__ import annotations

import importlib

import numpy as np
import polars as pl
import pytest
import torch
from concept_world import demo_world as demo_world
from metric_fakes import dictionary_of, gaussian
from PIL import Image
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.concepts.index import SearchIndex
from nb_sae.concepts.schema import CONTRIBUTIONS, HITS
from nb_sae.concepts.search import search
from nb_sae.errors import ConfigError, MissingDependencyError, NonFiniteError, ShapeError, StoreError
from nb_sae.store import view


@pytest.fixture(scope="module")
def noisy(orthogonal):
    """A dictionary, and rows of 4 known atoms each with a common mean and noise that it does not explain."""
    directions = orthogonal[0].W_dec
    rows = orthogonal[1] + 0.2 * gaussian(3_000, 32, seed=3).float()
    one = dictionary_of(directions, budgets=(2, 4))
    one.b_dec = 0.3 * gaussian(32, seed=4).float()
    rows = rows + one.b_dec
    return one, ns.ActivationStore.from_tensor(rows), rows


def cosines(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows.double(), dim=-1) @ F.normalize(query.double(), dim=-1)


class TestExact:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("budget", [None, 0], ids=["held", "read again"])
    def test_scores_are_the_cosines_whatever_the_blocks(self, monkeypatch, dtype, budget):
        from nb_sae.concepts import index as module

        monkeypatch.setattr(module, "SPAN_ROWS", 384)
        monkeypatch.setattr(module, "BLOCK_BYTES", 100 * 24 * 4)
        if budget is not None:
            monkeypatch.setattr(module, "resident_budget", lambda device: budget)
        x = (5 * gaussian(1_000, 24) + 2).to(dtype)
        x[[3, 999]] = 0
        index = SearchIndex(ns.ActivationStore.from_tensor(x))
        assert index.resident == (budget is None)
        assert index.zero_rows == 2
        queries = gaussian(3, 24, seed=1).float()
        scores = index.scores(queries)
        assert (scores[:, [3, 999]] == -torch.inf).all()
        live = [row for row in range(1_000) if row not in (3, 999)]
        expected = torch.stack([cosines(query, x[live]) for query in queries])
        torch.testing.assert_close(scores[:, live].double(), expected, atol=2e-6, rtol=0)
        values, rows = index.nearest(queries, 7)
        assert torch.equal(rows, scores.topk(7).indices)
        torch.testing.assert_close(values, scores.topk(7).values, atol=1e-6, rtol=0)

    def test_a_second_query_does_not_read_the_store_again(self, noisy, monkeypatch):
        dictionary, store, _ = noisy
        index = SearchIndex(store)
        reads = []
        own = view.StoredRows._read_range
        monkeypatch.setattr(view.StoredRows, "_read_range", lambda *a: reads.append(a) or own(*a))
        first = search(dictionary, index, 0, k=5)
        second = search(dictionary, index, 0, k=5, set={3: 2.0})
        assert reads == []
        assert first.hits["row"].to_list() != second.hits["row"].to_list()

    def test_hits_are_those_of_a_brute_force_search(self, noisy):
        dictionary, store, rows = noisy
        result = search(dictionary, store, 17, k=25, set={5: 3.0}, scale={2: 0.5}, remove=[9])
        edited = dictionary.edit_rows(rows[17], set={5: 3.0}, scale={2: 0.5}, remove=[9])
        torch.testing.assert_close(result.query, edited)
        after, before = cosines(edited, rows), cosines(rows[17], rows)
        after[17] = before[17] = -torch.inf
        order, first = after.argsort(descending=True), before.argsort(descending=True)
        assert result.hits["row"].to_list() == order[:25].tolist()
        assert result.hits["rank"].to_list() == list(range(25))
        np.testing.assert_allclose(result.hits["score"], after[order[:25]], atol=1e-6)
        np.testing.assert_allclose(result.hits["score_before"], before[order[:25]], atol=1e-6)
        rank_before = {int(row): rank for rank, row in enumerate(first)}
        assert result.hits["rank_before"].to_list() == [rank_before[row] for row in result.hits["row"]]
        assert (result.hits["shift"] == result.hits["rank_before"].cast(pl.Int64) - result.hits["rank"]).all()
        assert result.hits["gained"].to_list() == [rank_before[row] >= 25 for row in result.hits["row"]]
        lost = [row for row in first[:25].tolist() if row not in order[:25].tolist()]
        assert lost
        assert result.lost["row"].to_list() == lost
        rank_after = {int(row): rank for rank, row in enumerate(order)}
        assert result.lost["rank"].to_list() == [rank_after[row] for row in lost]
        assert result.hits.schema == result.lost.schema == HITS
        assert result.recall is None
        assert repr(result).endswith(f"25 of 3,000 rows, {len(lost)} gained and {len(lost)} lost; exact)")

    def test_an_edit_that_changes_nothing_moves_nothing(self, noisy):
        dictionary, store, rows = noisy
        own = dictionary.encode(rows[40:41])[0]
        result = search(dictionary, store, 40, set={4: float(own[4])}, scale={5: 1.0})
        assert torch.equal(result.query, rows[40])
        assert result.hits["shift"].to_list() == [0] * 20
        assert not result.hits["gained"].any()
        assert result.lost.is_empty()
        assert result.about["cosine"] == pytest.approx(1)

    def test_equal_rows_come_in_their_order(self):
        rows = torch.cat([torch.eye(4), torch.eye(4), torch.eye(4)])
        dictionary = dictionary_of(torch.eye(4), budgets=(2,))
        result = search(dictionary, ns.ActivationStore.from_tensor(rows), torch.tensor([1.0, 0.1, 0, 0]), k=5)
        assert result.hits["row"].to_list() == [0, 4, 8, 1, 5]
        assert result.hits["rank_before"].to_list() == [0, 1, 2, 3, 4]

    def test_tokens_and_keys_of_a_part_of_a_store_are_its_own(self, noisy):
        dictionary, _, rows = noisy
        table = pl.DataFrame({"input_id": np.repeat(np.arange(300), 10), "token": np.tile(np.arange(10), 300)})
        keys = [f"{number:03d}.jpg" for number in range(300)]
        part = ns.ActivationStore.from_tensor(rows, rows=table, keys=keys).subset(keys[100:200])
        result = search(dictionary, part, 5, k=10)
        for row, input_id, token, key in result.hits.select("row", "input_id", "token", "key").iter_rows():
            assert (input_id, token) == (100 + row // 10, row % 10)
            assert key == keys[input_id]


class TestContributions:
    @pytest.mark.parametrize(
        "about", [{}, {"residual": True}, {"row_norm": "layer_norm"}, {"row_norm": "constant_norm"}], ids=str
    )
    def test_the_parts_of_a_hit_sum_to_its_score(self, noisy, about):
        plain, store, rows = noisy
        dictionary = dictionary_of(plain.W_dec, budgets=(2, 4), **about)
        result = search(dictionary, store, rows[5] * 3, set={1: 4.0})
        sums = result.contributions.group_by("row", maintain_order=True).agg(pl.col("contribution").sum())
        assert sums["row"].to_list() == result.hits["row"].to_list()
        assert np.abs(sums["contribution"].to_numpy() - result.hits["score"].to_numpy()).max() < 1e-5
        assert result.contributions.schema == CONTRIBUTIONS

    def test_every_part_is_what_it_says(self, noisy):
        dictionary, store, rows = noisy
        result = search(dictionary, store, 8, k=3)
        row = int(result.hits["row"][1])
        lines = result.contributions.filter(pl.col("row") == row)
        z = dictionary.encode(rows[row : row + 1])[0].double()
        unit = F.normalize(rows[8].double(), dim=-1) / rows[row].double().norm()
        active = z.nonzero()[:, 0].tolist()
        expected = {j: float(z[j] * (dictionary.W_dec[j].double() @ unit)) for j in active}
        got = dict(lines.filter(pl.col("part") == "latent").select("latent", "contribution").iter_rows())
        assert got == pytest.approx(expected, abs=1e-7)
        bias = lines.filter(pl.col("part") == "bias")["contribution"].item()
        assert bias == pytest.approx(float(dictionary.b_dec.double() @ unit), abs=1e-6)
        error = rows[row].double() - dictionary.reconstruct(rows[row : row + 1])[0].double()
        assert lines.filter(pl.col("part") == "error")["contribution"].item() == pytest.approx(
            float(error @ unit), abs=1e-6
        )
        why = result.why(row, 2)
        assert why["contribution"].abs().to_list() == sorted(lines["contribution"].abs(), reverse=True)[:2]
        with pytest.raises(ConfigError, match="Row 8 is not a hit"):
            result.why(8)

    def test_the_planted_atom_explains_the_match(self, noisy):
        dictionary, store, _ = noisy
        result = search(dictionary, store, 6, kind="latent", k=10)
        best = result.contributions.sort("contribution", descending=True).group_by("row").first()
        assert (best["latent"] == 6).all()


class Words:
    """Names of two latents."""

    def find(self, name: str) -> int:
        return {"eyeglasses": 4, "hat": 7}[name]

    def name_of(self, latent: int) -> str:
        return {4: "eyeglasses", 7: "hat"}.get(latent, f"latent {latent}")


class FakeClip:
    """Texts lie apart from images by a constant, and are twice as spread."""

    name, revision, embed_dim, logit_scale = "fake", "r", 32, 10.0

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images
        self.offset = 5 * gaussian(32, seed=9).float()

    def encode_text(self, texts, normalize=False):
        x = torch.stack([2 * self.images[int(text.split()[-1])] + self.offset for text in texts])
        return F.normalize(x, dim=-1) if normalize else x

    def encode_image(self, images, normalize=False):
        x = self.images[[images.width]]
        return F.normalize(x, dim=-1) if normalize else x


class TestQueries:
    def test_a_row_an_embedding_a_picture_and_a_text_are_read_for_what_they_are(self, noisy):
        dictionary, store, rows = noisy
        clip = FakeClip(rows)
        kinds = {
            "row": (12, rows[12]),
            "embedding": (rows[12].numpy(), rows[12]),
            "image": (Image.new("RGB", (12, 3)), rows[12]),
            "text": ("face 12", 2 * rows[12] + clip.offset),
        }
        for kind, (query, x) in kinds.items():
            result = search(dictionary, store, query, clip=clip, k=3)
            assert result.about["kind"] == kind
            torch.testing.assert_close(result.query, x)
            assert (12 in result.hits["row"]) == (kind != "row" and kind != "text")

    def test_a_latent_is_its_direction_by_number_or_by_name(self, noisy):
        dictionary, store, _ = noisy
        result = search(dictionary, store, 4, kind="latent", set={7: 2.0}, scale={4: 3.0})
        torch.testing.assert_close(result.query, 3 * dictionary.W_dec[4] + 2 * dictionary.W_dec[7])
        named = search(dictionary, store, "eyeglasses", names=Words(), set={"hat": 2.0}, scale={"eyeglasses": 3.0})
        assert named.hits.equals(result.hits)
        assert named.about["edit"] == "set hat 2; scale eyeglasses 3"
        assert "eyeglasses" in named.contributions["name"]
        assert search(dictionary, store, 4, kind="latent", set={4: 1.0}).lost.is_empty()
        with pytest.raises(ConfigError, match="leaves nothing of latent 4"):
            search(dictionary, store, 4, kind="latent", remove=4)

    def test_a_text_among_images_has_no_latents_and_that_is_said(self, noisy):
        dictionary, store, rows = noisy
        clip = FakeClip(rows)
        text = clip.encode_text(["face 3"])[0]
        result = search(dictionary, store, "face 3", clip=clip, set={4: 2.0})
        assert (result.about["latents"], result.about["gap"]) == ("none", "raw")
        torch.testing.assert_close(result.query, text + 2 * dictionary.W_dec[4])
        for edit in ({"scale": {4: 2.0}}, {"remove": [4]}):
            with pytest.raises(ConfigError, match="they cannot be scaled or removed"):
                search(dictionary, store, "face 3", clip=clip, **edit)

    def test_a_text_can_be_moved_to_where_the_images_are(self, noisy):
        dictionary, store, rows = noisy
        clip = FakeClip(rows)
        texts = clip.encode_text([f"face {number}" for number in range(3_000)])
        result = search(dictionary, store, "face 3", clip=clip, gap="mean", texts=texts, scale={4: 0.5}, k=1)
        assert result.about["latents"] == "encoded"
        torch.testing.assert_close(result.query, dictionary.edit_rows(rows[3], scale={4: 0.5}), atol=1e-4, rtol=0)
        assert search(dictionary, store, "face 3", clip=clip, gap="mean", texts=texts, k=1).hits["row"].item() == 3
        with pytest.raises(ConfigError, match="gap='mean' needs texts="):
            search(dictionary, store, "face 3", clip=clip, gap="mean")

    def test_a_text_among_texts_is_encoded(self, noisy):
        dictionary, _, rows = noisy
        store = ns.ActivationStore.from_tensor(rows, site="text_embed")
        clip = FakeClip(rows)
        clip.offset = torch.zeros(32)
        result = search(dictionary, store, "face 3", clip=clip, remove=[4])
        assert result.about["latents"] == "encoded"
        torch.testing.assert_close(result.query, dictionary.edit_rows(2 * rows[3], remove=[4]))

    def test_percentiles_come_from_the_analysis(self, noisy):
        dictionary, store, rows = noisy
        analysis = ns.analyze(dictionary, store, progress=False)
        z = dictionary.encode(rows)[:, 4]
        result = search(dictionary, store, 0, set={4: 1.0}, unit="p99", analysis=analysis)
        got = z[0] + (result.query - rows[0]) @ dictionary.W_dec[4]
        assert float(got) == pytest.approx(float(z[z > 0].quantile(0.99)), rel=0.05)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            ({"query": 9_999}, StoreError, "no row 9999; the store has rows 0 … 2999"),
            ({"query": True}, ConfigError, "give a row number"),
            ({"query": ["a"]}, ConfigError, "given as list; expected"),
            ({"query": 0, "k": 3_000}, ConfigError, r"k=3000 is outside 1 … 2999"),
            ({"query": 0, "k": 0}, ConfigError, "k=0 is outside"),
            ({"query": torch.zeros(32)}, NonFiniteError, "is zero"),
            ({"query": torch.full((32,), torch.nan)}, NonFiniteError, "NaN"),
            ({"query": torch.ones(31)}, ShapeError, "the rows have width 32"),
            ({"query": "a hat", "kind": "text"}, ConfigError, "give clip=, the model whose encode_text"),
            ({"query": "a hat"}, ConfigError, "no names were given"),
            ({"query": 0, "kind": "song"}, ConfigError, "kind='song' is not known"),
            ({"query": 0, "gap": "none"}, ConfigError, "gap='none' is not known"),
            ({"query": 0, "set": {77: 1.0}}, ConfigError, "no latent 77"),
            ({"query": Image.new("RGB", (4, 4))}, ConfigError, "give clip=, the model whose encode_image"),
        ],
    )
    def test_a_query_that_cannot_be_is_refused_with_what_to_do(self, noisy, call, error, message):
        dictionary, store, _ = noisy
        with pytest.raises(error, match=message):
            search(dictionary, store, **call)

    def test_normalised_embeddings_and_normalised_stores_are_refused(self, noisy):
        dictionary, _, rows = noisy
        big = ns.ActivationStore.from_tensor(10 * rows)
        unit = F.normalize(rows[0], dim=-1)
        assert search(dictionary, big, unit, k=2).hits.height == 2  # without an edit the norm says nothing
        with pytest.raises(StoreError, match="The embedding is L2-normalised; the rows have norms of about"):
            search(dictionary, big, unit, set={3: 1.0})
        spread = float((10 * rows).var(0).sum())
        trained = dictionary_of(dictionary.W_dec, budgets=(4,), mean=10 * rows.mean(0), mean_square_distance=spread)
        assert search(trained, big, 0, k=2).hits.height == 2
        with pytest.raises(StoreError, match="L2-normalised"):
            search(trained, ns.ActivationStore.from_tensor(F.normalize(rows, dim=-1)), 0)

    def test_the_model_of_the_query_must_be_that_of_the_rows(self, demo_world):
        other = FakeClip(torch.zeros(1, 128))
        with pytest.raises(StoreError, match="clip= is 'fake'"):
            search(demo_world.dictionary, demo_world.store, "a hat", clip=other)


@pytest.fixture(scope="module")
def graph(noisy) -> SearchIndex:
    pytest.importorskip("usearch")
    return SearchIndex(noisy[1], approximate=True)


class TestApproximate:
    def test_its_recall_is_measured_and_shown(self, noisy, graph):
        dictionary, store, _ = noisy
        result = search(dictionary, graph, 3, k=10, set={5: 2.0})
        true = search(dictionary, store, 3, k=10, set={5: 2.0})
        assert result.recall is not None
        assert 0.9 <= result.recall <= 1
        assert "approximate, recall@10 " in repr(result)
        both = result.hits.join(true.hits, on="row")
        assert both.height >= 7
        np.testing.assert_allclose(both["score"], both["score_right"], atol=1e-6)  # what it finds is scored exactly
        assert result.hits["score"].is_sorted(descending=True)

    def test_the_recall_is_that_of_its_hits(self, noisy, graph):
        _, store, rows = noisy
        queries = gaussian(40, 32, seed=8).float()
        true = torch.stack([cosines(query, rows).topk(10).indices for query in queries])
        found = [graph.candidates(query, 10)[1][:10].tolist() for query in queries]
        expected = np.mean([len(set(a.tolist()) & set(b)) / 10 for a, b in zip(true, found, strict=True)])
        assert graph.recall(10, queries) == pytest.approx(expected)
        assert SearchIndex(store).recall(10) == 1

    def test_a_poor_graph_shows_a_poor_recall(self, noisy, monkeypatch):
        """The null: a graph that proposes rows by chance finds about the share of rows that it proposes."""
        pytest.importorskip("usearch")
        index = SearchIndex(noisy[1], approximate=True)
        rng = np.random.default_rng(0)
        monkeypatch.setattr(index._graph, "propose", lambda unit, count: rng.choice(3_000, count, replace=False))
        assert index.recall(10) < 0.15

    def test_a_graph_is_kept_and_belongs_to_its_rows(self, noisy, tmp_path):
        pytest.importorskip("usearch")
        dictionary, store, rows = noisy
        first = SearchIndex(store, approximate=True, path=tmp_path / "graph")
        again = SearchIndex(store, approximate=True, path=tmp_path / "graph")
        assert search(dictionary, first, 3).hits.equals(search(dictionary, again, 3).hits)
        with pytest.raises(StoreError, match="holds the graph of other rows"):
            SearchIndex(ns.ActivationStore.from_tensor(rows + 1), approximate=True, path=tmp_path / "graph")

    def test_without_the_package_the_install_line_is_given(self, noisy, monkeypatch):
        def missing(name):
            raise ImportError(name)

        monkeypatch.setattr(importlib.import_module("nb_sae.concepts.graph"), "import_module", missing)
        with pytest.raises(MissingDependencyError, match=r"pip install 'nb-sae\[ann\]'"):
            search(noisy[0], noisy[1], 0, exact=False)

    def test_an_exact_index_has_no_graph(self, noisy):
        index = SearchIndex(noisy[1])
        with pytest.raises(ConfigError, match="approximate=True"):
            search(noisy[0], index, 0, exact=False)
        with pytest.raises(ConfigError, match="Give approximate=True"):
            SearchIndex(noisy[1], path="x")


def eyeglasses(world) -> tuple[int, np.ndarray, float]:
    """The latent that separates the labelled eyeglasses best, who wears them, and its 99th percentile."""
    worn = world.faces.attributes["Eyeglasses"].to_numpy().astype(bool)
    z = world.dictionary.encode(world.store[:]).numpy()
    ranks = z.argsort(0).argsort(0) + 1.0
    auc = (ranks[worn].sum(0) - worn.sum() * (worn.sum() + 1) / 2) / (worn.sum() * (~worn).sum())
    latent = int(auc.argmax())
    assert auc[latent] > 0.9
    values = z[:, latent]
    return latent, worn, float(np.quantile(values[values > 0], 0.99))


def test_raising_the_eyeglasses_latent_finds_faces_with_eyeglasses_and_matched_latents_do_not(demo_world):
    from nb_sae.sae.controls import matched_latents

    latent, worn, p99 = eyeglasses(demo_world)
    rng = np.random.default_rng(0)
    bare = np.flatnonzero(~worn)
    kept = np.sort(np.concatenate([bare, rng.choice(np.flatnonzero(worn), len(bare) // 3, replace=False)]))
    store = demo_world.store.subset([int(one) for one in kept])
    worn = worn[kept]
    assert worn.mean() <= 0.3
    index = SearchIndex(store)
    z = demo_world.dictionary.encode(store[:]).double().numpy()
    density, total = (z > 0).mean(0), z.sum(0)
    mean = np.divide(total, (z > 0).sum(0), out=np.zeros_like(total), where=density > 0)
    controls = matched_latents(density, mean, latent, 5, seed=0)

    def precision(which: int) -> float:
        found = [search(demo_world.dictionary, index, int(row), set={which: 2 * p99}) for row in queries]
        return float(np.mean([worn[one.hits["row"].to_numpy()].mean() for one in found]))

    queries = rng.choice(np.flatnonzero(~worn), 20, replace=False)
    assert precision(latent) >= 0.8
    queries = queries[:8]
    assert max(precision(control) for control in controls) <= 0.45


def test_pictures_of_the_hits_come_from_the_inputs(demo_world):
    result = search(demo_world.dictionary, demo_world.store, 0, k=3, inputs=demo_world.faces, set={5: 9.0})
    assert result.pictures is not None
    assert set(result.pictures["input_id"]) == {*result.hits["input_id"], *result.lost["input_id"]}
