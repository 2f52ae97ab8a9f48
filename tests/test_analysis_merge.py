from __future__ import annotations

import numpy as np
import planted
import polars as pl
import pytest
import torch

import nb_sae as ns
from nb_sae.analysis import scan
from nb_sae.analysis.sums import ChunkSums, ChunkTree
from nb_sae.errors import ConfigError, FormatError, InputNotFoundError, StoreError

TOKENS, INPUTS = 16, 600
SETTINGS = {"top": 5, "per_interval": 3, "seed": 4, "progress": False}
TABLES = ("latents", "examples", "quality", "inputs")


@pytest.fixture(scope="module")
def planted_store():
    """Rows whose strength grows, so that every part finds another maximum and the grids have to grow when merged."""
    directions = planted.atoms(48, 16)
    rows, _ = planted.sparse_rows(directions, INPUTS * TOKENS, active=3)
    rows = rows * torch.linspace(0.05, 40, len(rows))[:, None] + 3
    rows[8000:8128] = rows[-128:] = 3 * rows[-128:]  # strongest of all, in two parts: the earlier row has to win
    ids = pl.DataFrame({"input_id": np.repeat(np.arange(INPUTS), TOKENS), "token": np.tile(np.arange(TOKENS), INPUTS)})
    dictionary = ns.Dictionary.from_weights(
        directions.T.contiguous(), torch.full((48,), -0.2), directions, torch.full((16,), 3.0), budgets=(1, 2, 4)
    )
    return dictionary, ns.ActivationStore.from_tensor(rows, rows=ids, site="planted")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(scan, "BLOCK_BYTES", 0)


def assert_same_tables(one: ns.Analysis, other: ns.Analysis) -> None:
    for name in TABLES:
        assert getattr(one, name).equals(getattr(other, name)), name


def test_seven_parts_merge_into_exactly_the_tables_of_one_pass(planted_store, tmp_path):
    dictionary, store = planted_store
    whole = ns.analyze(dictionary, store, **SETTINGS)
    assert whole.examples.filter(pl.col("kind") == "interval").height > 500
    files = [ns.analyze_part(dictionary, store, part=(i, 7), **SETTINGS).save(tmp_path / f"part-{i}") for i in range(7)]
    for order in (range(7), [3, 6, 0, 5, 1, 4, 2]):
        parts = [ns.PartialAnalysis.load(files[i]) for i in order]
        assert_same_tables(ns.merge_analyses(parts, dictionary, store), whole)
    again = ns.merge_analyses(parts, dictionary, store)  # merging uses no part up
    assert_same_tables(again, whole)


def test_keepers_merge_to_the_same_in_any_order(planted_store):
    dictionary, store = planted_store
    chosen = []
    for order in (range(7), range(6, -1, -1)):
        parts = [ns.analyze_part(dictionary, store, part=(i, 7), **{**SETTINGS, "top": 1}) for i in order]
        parts[0].kept.chosen()  # from here on it knows what it can drop
        for part in parts[1:]:
            parts[0].kept.merge(part.kept)
        chosen.append(parts[0].kept.chosen())
    assert chosen[0].equals(chosen[1])


@pytest.mark.parametrize("count", [2, 3, 40])
def test_any_number_of_parts_gives_the_same_also_when_some_are_empty(planted_store, count):
    dictionary, store = planted_store
    parts = [ns.analyze_part(dictionary, store, part=(i, count), **SETTINGS) for i in range(count)]
    assert (min(len(part.kept.tree.nodes) for part in parts) == 0) == (count == 40)
    assert_same_tables(ns.merge_analyses(parts, dictionary, store), ns.analyze(dictionary, store, **SETTINGS))


def test_the_sample_of_an_interval_goes_by_the_identity_of_rows_not_by_their_number(planted_store):
    """A view that lacks inputs in which nothing is strong draws the same rows from the rest."""
    dictionary, store = planted_store
    half = store.subset(list(range(300, 600)))
    alone = ns.ActivationStore.from_tensor(half[:], rows=half.rows, site="planted")
    settings = {**SETTINGS, "top": 1}
    columns = ["latent", "kind", "interval", "rank", "input_id", "token"]
    seen = [ns.analyze(dictionary, one, **settings).examples.select(columns) for one in (half, alone)]
    assert seen[0].equals(seen[1])
    whole = ns.analyze(dictionary, store, **settings).examples.select(columns)
    strong = pl.col("interval") >= 6  # only rows of the second half reach there
    assert seen[0].filter(strong).equals(whole.filter(strong))


def test_sums_in_a_tree_do_not_depend_on_who_added_them():
    generator = np.random.default_rng(0)
    chunks = [
        ChunkSums(
            int(generator.integers(1, 9)), generator.normal(size=3) * 10.0 ** generator.integers(-8, 8),
            generator.random(), generator.random(2), generator.random(2), generator.random(2), generator.random((4, 2)),
        )
        for _ in range(21)
    ]  # fmt: skip
    whole = ChunkTree()
    for number, sums in enumerate(chunks):
        whole.add(number, sums)
    expected = whole.total()
    naive = chunks[0].error
    for one in chunks[1:]:
        naive = naive + one.error
    np.testing.assert_allclose(expected.error, naive, rtol=1e-14)
    for cuts in ([5, 9, 20], [1], [16], list(range(1, 21))):
        trees = []
        for start, stop in zip([0, *cuts], [*cuts, 21], strict=True):
            trees.append(ChunkTree())
            for number in range(start, stop):
                trees[-1].add(number, chunks[number])
        merged = ChunkTree()
        for tree in reversed(trees):
            merged.merge(tree.nodes.items())
        total = merged.total()
        for name, array in expected.arrays().items():
            np.testing.assert_array_equal(array, total.arrays()[name], err_msg=name)


def test_parts_that_do_not_belong_together_are_refused(planted_store):
    dictionary, store = planted_store
    parts = [ns.analyze_part(dictionary, store, part=(i, 3), **SETTINGS) for i in range(3)]
    with pytest.raises(StoreError, match=r"Of 3 parts, missing: 1\. Give each part once"):
        ns.merge_analyses([parts[0], parts[2]], dictionary, store)
    with pytest.raises(StoreError, match=r"given twice: 2; missing: 0"):
        ns.merge_analyses([parts[2], parts[1], parts[2]], dictionary, store)
    other = ns.analyze_part(dictionary, store, part=(1, 3), **{**SETTINGS, "top": 6})
    with pytest.raises(StoreError, match=r"differ in top \(5 and 6\)"):
        ns.merge_analyses([parts[0], other, parts[2]], dictionary, store)
    with pytest.raises(StoreError, match="No parts"):
        ns.merge_analyses([], dictionary, store)
    shifted = ns.Dictionary.from_weights(
        dictionary.W_enc, dictionary.b_enc + 0.1, dictionary.W_dec, dictionary.b_dec, budgets=(1, 2, 4)
    )
    with pytest.raises(StoreError, match=r"another analysis: dictionary"):
        ns.merge_analyses(parts, shifted, store)
    for wrong in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match="does not exist"):
            ns.analyze_part(dictionary, store, part=wrong, **SETTINGS)


def test_a_damaged_or_foreign_part_is_named(planted_store, tmp_path):
    dictionary, store = planted_store
    file = ns.analyze_part(dictionary, store, part=(0, 2), **SETTINGS).save(tmp_path / "a")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="cannot be read"):
        ns.PartialAnalysis.load(file)
    dictionary.save(tmp_path / "d")
    weights = next((tmp_path / "d").glob("*.safetensors"))
    with pytest.raises(FormatError, match=r"expected 'nb_sae\.analysis_part'"):
        ns.PartialAnalysis.load(weights)
    with pytest.raises(InputNotFoundError, match="does not exist"):
        ns.PartialAnalysis.load(tmp_path / "none")
