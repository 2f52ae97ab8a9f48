from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from store_fakes import FakeInputs, FakeModel, colours

from nb_sae.errors import (
    ConfigError,
    CorruptShardError,
    FormatError,
    NotEnoughMemoryError,
    StoreError,
)
from nb_sae.store import ActivationStore, order, reading
from nb_sae.store.files import merge_statistics, statistics_of
from nb_sae.store.order import ShuffledOrder
from nb_sae.store.reading import Selection
from nb_sae.types import ActivationSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s"
    ActivationStore.collect(
        FakeModel(), FakeInputs(colours(40)), site="tokens", path=path, batch_inputs=4, inputs_per_shard=8, workers=0,
        progress=False,
    )  # fmt: skip
    return path


@pytest.fixture
def numbered() -> ActivationStore:
    """Row i holds i."""
    return ActivationStore.from_tensor(torch.arange(1000.0)[:, None].repeat(1, 4))


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# ── opening and checking ────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_is_an_activation_source(folder):
    assert isinstance(ActivationStore.open(folder), ActivationSource)


def test_shards_are_safetensors_that_others_can_read(folder):
    shards = [load_file(path)["x"] for path in sorted(folder.glob("shard-*.safetensors"))]
    store = ActivationStore.open(folder)
    assert torch.equal(torch.cat(shards).float(), store[:])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert [shard["rows"] for shard in manifest["shards"]] == [40] * 5


def test_opening_what_is_no_store_says_so(tmp_path):
    with pytest.raises(StoreError, match="no activation store"):
        ActivationStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FormatError, match=r"nb_sae\.activations"):
        ActivationStore.open(tmp_path)


def test_another_version_is_refused(folder, tmp_path):
    copy = copy_of(folder, tmp_path / "c")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(FormatError, match="version 99"):
        ActivationStore.open(copy)


@pytest.mark.parametrize("field", ["site", "dtype", "shards", "mean", "tables"])
def test_a_manifest_without_a_field_is_named_as_damaged(folder, tmp_path, field):
    copy = copy_of(folder, tmp_path / "c")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest[field]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        ActivationStore.open(copy)


def test_a_shard_path_that_leaves_the_folder_is_refused(folder, tmp_path):
    copy = copy_of(folder, tmp_path / "c")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../s/shard-00000.safetensors"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="shard file name"):
        ActivationStore.open(copy)


def test_a_truncated_shard_is_named_when_the_store_is_opened(folder, tmp_path):
    copy = copy_of(folder, tmp_path / "c")
    shard = copy / "shard-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptShardError, match=r"shard-00003.safetensors is truncated"):
        ActivationStore.open(copy)
    shard.unlink()
    with pytest.raises(CorruptShardError, match=r"shard-00003.safetensors is missing"):
        ActivationStore.open(copy)


def test_an_altered_shard_is_named_when_it_is_first_read(folder, tmp_path):
    copy = copy_of(folder, tmp_path / "c")
    shard = copy / "shard-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    store = ActivationStore.open(copy)
    assert store[:120].shape == (120, 8)
    for touch in (lambda: store[125], lambda: list(store.chunks(50)), lambda: next(store.batches(8, seed=0))):
        with pytest.raises(CorruptShardError, match=r"shard-00003.safetensors was altered"):
            touch()


def test_an_altered_table_is_named(folder, tmp_path):
    copy = copy_of(folder, tmp_path / "c")
    content = bytearray((copy / "rows.parquet").read_bytes())
    content[len(content) // 2] ^= 255
    (copy / "rows.parquet").write_bytes(content)
    with pytest.raises(CorruptShardError, match=r"rows.parquet was altered"):
        _ = ActivationStore.open(copy).rows


def test_a_store_of_another_model_is_refused_with_both_names(folder):
    assert len(ActivationStore.open(folder, model=FakeModel())) == 200
    with pytest.raises(StoreError, match=r"'fake' .* 'other'"):
        ActivationStore.open(folder, model=FakeModel(name="other"))
    with pytest.raises(StoreError, match=r"'tokens', asked for is 'pooled'"):
        ActivationStore.open(folder).check(FakeModel(), site="pooled")


# ── rows by number ──────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_given_by_number_slice_list_and_mask(numbered):
    assert numbered[3].tolist() == [3.0] * 4
    assert numbered[-1].tolist() == [999.0] * 4
    assert numbered[np.int64(5)][0] == 5
    assert numbered[5:8][:, 0].tolist() == [5, 6, 7]
    assert numbered[::-400][:, 0].tolist() == [999, 599, 199]
    assert numbered[8:5].shape == (0, 4)
    assert numbered[[7, 2, -1]][:, 0].tolist() == [7, 2, 999]
    assert numbered[torch.tensor([4, 4])][:, 0].tolist() == [4, 4]
    assert numbered[np.arange(1000) % 500 == 1][:, 0].tolist() == [1, 501]
    assert numbered[[]].shape == (0, 4)
    for wrong in (1000, -1001, [0, 1000]):
        with pytest.raises(IndexError, match="rows 0 … 999"):
            numbered[wrong]
    with pytest.raises(IndexError, match="1-D integer"):
        numbered[[0.5]]


def test_rows_across_shards_equal_the_concatenation(folder):
    store = ActivationStore.open(folder)
    everything = torch.cat([load_file(path)["x"] for path in sorted(folder.glob("shard-*"))]).float()
    random = np.random.default_rng(0).integers(0, 200, 300)
    assert torch.equal(store[random], everything[torch.from_numpy(random)])
    assert torch.equal(store[35:165], everything[35:165])


def test_writing_to_rows_never_changes_the_store():
    store = ActivationStore.from_tensor(torch.ones(10, 2))
    store[0:5].zero_()
    store[3].zero_()
    next(store.chunks(4))[1].zero_()
    next(store.batches(10, seed=0)).zero_()
    assert torch.equal(store[:], torch.ones(10, 2))


def test_more_rows_than_memory_holds_are_refused(numbered, monkeypatch):
    monkeypatch.setattr(reading, "memory_bytes", lambda: 1000)
    with pytest.raises(NotEnoughMemoryError, match=r"1,000 rows of 4 .*chunks"):
        _ = numbered[:]


# ── shuffled batches ────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 700), block=st.integers(1, 60), blocks=st.integers(1, 6), seed=st.integers(0, 3),
    epoch=st.integers(0, 2),
)  # fmt: skip
def test_an_epoch_visits_every_row_once_whatever_the_sizes(rows, block, blocks, seed, epoch):
    shuffled = ShuffledOrder(rows, seed=seed, epoch=epoch, block_rows=block, buffer_rows=block * blocks)
    seen = np.concatenate([shuffled.row_numbers(number) for number in range(shuffled.buffers)])
    assert sorted(seen.tolist()) == list(range(rows))
    assert shuffled.starts.tolist() == np.cumsum(
        [0, *(len(shuffled.row_numbers(number)) for number in range(shuffled.buffers))]
    ).tolist()  # fmt: skip


def tiny_buffers(monkeypatch) -> None:
    monkeypatch.setattr(order, "BLOCK_BYTES", 16 * 16)
    monkeypatch.setattr(order, "BUFFER_BYTES", 100 * 16)


def test_resident_and_streamed_batches_are_the_same(numbered, monkeypatch):
    tiny_buffers(monkeypatch)
    streamed = ActivationStore.from_tensor(numbered[:].double())
    view, _ = streamed.split(test=0.3, seed=1)
    view.resident_bytes = 0
    resident, _ = streamed.split(test=0.3, seed=1)
    first = [batch.clone() for batch in view.batches(64, seed=3, epoch=2)]
    second = list(resident.batches(64, seed=3, epoch=2))
    assert len(first) == len(second) == 10
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(batch.dtype == torch.float32 and batch.shape == (64, 4) for batch in first)


@pytest.mark.parametrize("resident_bytes", [0, None])
def test_batches_give_every_row_once_but_the_last_partial_batch(folder, monkeypatch, resident_bytes):
    tiny_buffers(monkeypatch)
    store = ActivationStore.open(folder)
    store.resident_bytes = resident_bytes
    batches = list(store.batches(33, seed=0))
    assert [len(batch) for batch in batches] == [33] * 6
    everything = [tuple(row) for row in store[:].tolist()]
    seen = [tuple(row) for row in torch.cat(batches).tolist()]
    for row in set(seen):
        assert seen.count(row) <= everything.count(row)
    whole = torch.cat(list(store.batches(200, seed=0)))
    assert sorted(map(tuple, whole.tolist())) == sorted(everything)


def test_order_depends_on_seed_and_epoch_alone(numbered):
    def seen(seed: int, epoch: int) -> list[float]:
        return torch.cat(list(numbered.batches(100, seed=seed, epoch=epoch)))[:, 0].tolist()

    assert seen(0, 0) == seen(0, 0)
    assert len({tuple(seen(seed, epoch)) for seed in (0, 1, -1) for epoch in (0, 1)}) == 6
    correlation = np.corrcoef(seen(0, 0), np.arange(1000))[0, 1]
    assert abs(correlation) < 0.15


def test_batch_size_does_not_change_the_order(numbered):
    one = torch.cat(list(numbered.batches(100, seed=0)))
    other = torch.cat(list(numbered.batches(250, seed=0)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("resident_bytes", [0, None])
def test_skip_goes_on_in_mid_epoch(folder, monkeypatch, resident_bytes):
    tiny_buffers(monkeypatch)
    store = ActivationStore.open(folder)
    store.resident_bytes = resident_bytes
    everything = list(store.batches(24, seed=5))
    for skip in range(len(everything) + 2):
        rest = list(store.batches(24, seed=5, skip=skip))
        assert len(rest) == max(len(everything) - skip, 0)
        assert all(torch.equal(one, other) for one, other in zip(rest, everything[skip:], strict=True))


def test_a_store_shorter_than_a_batch_gives_one_batch_of_all(numbered):
    (batch,) = numbered.batches(4096, seed=0)
    assert sorted(batch[:, 0].tolist()) == list(range(1000))
    with pytest.raises(ConfigError, match="batch_rows=0"):
        numbered.batches(0, seed=0)


def test_streaming_reads_ahead_one_buffer_and_never_holds_the_store(folder, monkeypatch):
    monkeypatch.setattr(order, "BLOCK_BYTES", 16 * 16)
    monkeypatch.setattr(order, "BUFFER_BYTES", 48 * 16)
    store = ActivationStore.open(folder)
    store.resident_bytes = 0
    read = store._reader.read_range
    bytes_read = 0

    def counted(start: int, stop: int) -> torch.Tensor:
        nonlocal bytes_read
        bytes_read += (stop - start) * 16
        return read(start, stop)

    monkeypatch.setattr(store._reader, "read_range", counted)
    batches = store.batches(20, seed=0)
    next(batches)
    batches.close()
    assert 0 < bytes_read <= 2 * 48 * 16 < store.nbytes


def test_peak_memory_of_streaming_does_not_grow_with_the_store(tmp_path, monkeypatch):
    import tracemalloc

    # torch's own memory is not traced, so the buffers are counted where they are made.
    monkeypatch.setattr(order, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(order, "BUFFER_BYTES", 64 * 1024)
    peaks = []
    made: list[int] = []
    empty = torch.empty
    monkeypatch.setattr(
        reading.torch, "empty", lambda *size, **more: made.append(int(np.prod(size))) or empty(*size, **more)
    )
    for rows in (8_000, 32_000):
        np.save(tmp_path / f"{rows}.npy", np.ones((rows, 16), dtype=np.float16))
        store = ActivationStore.from_file(tmp_path / f"{rows}.npy")
        store.resident_bytes = 0
        made.clear()
        tracemalloc.start()
        for _ in store.batches(256, seed=0):
            pass
        peaks.append((tracemalloc.get_traced_memory()[1], max(made)))
        tracemalloc.stop()
        assert max(made) * 2 <= 64 * 1024
    assert peaks[1][0] < peaks[0][0] + 100_000


# ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("chunk_rows", [1, 5, 7, 12, 199, 1000])
def test_chunks_cover_the_rows_in_order_and_end_where_a_context_ends(folder, chunk_rows):
    store = ActivationStore.open(folder)
    chunks = list(store.chunks(chunk_rows))
    assert torch.equal(torch.cat([rows for _, rows in chunks]), store[:])
    assert [first for first, _ in chunks] == np.cumsum([0, *(len(rows) for _, rows in chunks[:-1])]).tolist()
    assert all(len(rows) % 5 == 0 for _, rows in chunks)
    assert all(len(rows) <= max(chunk_rows, 5) for _, rows in chunks)


def test_chunks_split_a_text_between_contexts(tmp_path):
    texts = FakeInputs(["abcdefgh", "xy", "pqrst"], "text")
    store = ActivationStore.collect(
        FakeModel(positions=5), texts, site="tokens", path=tmp_path / "s", workers=0, progress=False
    )
    assert [len(rows) for _, rows in store.chunks(1)] == [4, 4, 2, 4, 1]
    assert [len(rows) for _, rows in store.chunks(6)] == [4, 6, 5]


def test_chunks_of_pooled_rows_are_full(numbered):
    assert [len(rows) for _, rows in numbered.chunks(300)] == [300, 300, 300, 100]


# ── split and subset ────────────────────────────────────────────────────────────────────────────────────────────


def test_split_shares_no_input_and_loses_no_row(folder):
    store = ActivationStore.open(folder)
    train, test = store.split(test=0.25, seed=0)
    assert (len(train), len(test)) == (150, 50)
    a, b = set(train.rows["input_id"]), set(test.rows["input_id"])
    assert not a & b
    assert a | b == set(range(40))
    assert set(train.inputs["input_id"]) == a
    for view in (train, test):
        expected = torch.cat([store[number * 5 : number * 5 + 5] for number in view.rows["input_id"].unique().sort()])
        assert torch.equal(view[:], expected)
        rows = view[:].double().numpy()
        np.testing.assert_allclose(view.statistics().mean, rows.mean(0), atol=1e-12)
        assert view.statistics().rows == len(view)
    again, _ = store.split(test=0.25, seed=0)
    other, _ = store.split(test=0.25, seed=1)
    assert again.rows.equals(train.rows)
    assert not other.rows.equals(train.rows)


def test_a_view_can_be_split_again_and_read_like_a_store(folder):
    store = ActivationStore.open(folder)
    train, _ = store.split(test=0.5, seed=0)
    inner, held = train.split(test=0.5, seed=0)
    assert set(inner.rows["input_id"]) | set(held.rows["input_id"]) == set(train.rows["input_id"])
    assert torch.equal(torch.cat([rows for _, rows in inner.chunks(7)]), inner[:])
    ids = inner.rows["input_id"].to_numpy()
    assert torch.equal(inner[[0, 5]], store[[int(ids[0]) * 5, int(ids[5]) * 5]])
    assert sum(len(batch) for batch in inner.batches(10, seed=0)) == len(inner)


@pytest.mark.parametrize("test", [0.0, 1.0, 2, -0.1])
def test_a_split_outside_its_range_is_refused(numbered, test):
    with pytest.raises(ConfigError, match="outside"):
        numbered.split(test=test)


def test_one_input_cannot_be_split():
    one = ActivationStore.from_tensor(torch.ones(1, 2))
    with pytest.raises(StoreError, match="needs two"):
        one.split()


def test_subset_takes_inputs_by_number_or_key(folder):
    store = ActivationStore.open(folder)
    assert torch.equal(store.subset([7, 3])[:], torch.cat([store[15:20], store[35:40]]))
    assert store.subset(["0003.png"]).rows["input_id"].unique().to_list() == [3]
    with pytest.raises(StoreError, match=r"'0003.pgn'. Closest: 0003.png"):
        store.subset(["0003.pgn"])
    with pytest.raises(StoreError, match="'99'"):
        store.subset([99])


# ── statistics and selections ───────────────────────────────────────────────────────────────────────────────────


def test_statistics_keep_their_digits_far_from_zero():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e7
    whole = statistics_of([x], 3)
    parts = merge_statistics([statistics_of([piece], 3) for piece in x.split(130)], 3)
    expected = x.var(0, correction=0).sum().item()
    for found in (whole, parts):
        assert found.mean_square_distance == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(found.mean, x.mean(0).numpy(), rtol=1e-14)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_a_selection_numbers_the_rows_of_its_mask(mask):
    selection = Selection.of_mask(np.array(mask))
    expected = np.flatnonzero(mask)
    assert len(selection) == len(expected)
    assert selection.base(np.arange(len(selection))).tolist() == expected.tolist()


def test_repr_says_what_it_is(folder):
    store = ActivationStore.open(folder)
    text = repr(store)
    assert "'tokens' of 'fake': 200 rows × 8, float16, 3.2 kB" in text
    assert "10 of 40 inputs (test)" in repr(store.split(test=0.25)[1])
