from __future__ import annotations

import fsspec
import pytest
import torch
from store_fakes import SMALL, FakeInputs, FakeModel, colours

from nb_sae.errors import ConfigError, CorruptShardError, StoreError
from nb_sae.store import ActivationStore, order
from nb_sae.store.remote import place_of

ITEMS = [*colours(30), None, *colours(10)]


@pytest.fixture
def both(tmp_path):
    """A store on disk and its copy in fsspec's memory."""
    local = ActivationStore.collect(FakeModel(), FakeInputs(ITEMS), site="tokens", path=tmp_path / "s", **SMALL)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.put(str(tmp_path / "s") + "/", "/acts", recursive=True)
    return local, memory


def test_a_store_in_memory_reads_like_the_one_on_disk(both):
    local, _ = both
    remote = ActivationStore.open("memory://acts", model=FakeModel())
    assert torch.equal(remote[:], local[:])
    picked = [7, 199, 3, 3, -1, 40, 80]
    assert torch.equal(remote[picked], local[picked])
    assert torch.equal(remote[38:83], local[38:83])
    assert len(remote[5:5]) == len(remote[[]]) == 0
    assert remote.rows.equals(local.rows)
    assert remote.skipped.equals(local.skipped)
    assert [first for first, _ in remote.chunks(33)] == [first for first, _ in local.chunks(33)]
    assert "memory://acts" in repr(remote)


@pytest.mark.parametrize("resident_bytes", [0, None])
@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_batches_and_views_of_it_are_the_same(both, monkeypatch, resident_bytes, share):
    monkeypatch.setattr(order, "BLOCK_BYTES", 16 * 16)
    monkeypatch.setattr(order, "BUFFER_BYTES", 100 * 16)
    local, _ = both
    remote = ActivationStore.open("memory://acts")
    pairs = [(local, remote), *zip(local.split(0.4, seed=1), remote.split(0.4, seed=1), strict=True)]
    for one, other in pairs:
        other.resident_bytes = resident_bytes
        first, second = (list(source.batches(20, seed=2, share=share)) for source in (one, other))
        assert len(first) == len(second) > 0
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert one.statistics().mean_square_distance == other.statistics().mean_square_distance


def test_a_buffer_is_fetched_in_one_call_that_joins_near_ranges(both, monkeypatch):
    _, memory = both
    remote = ActivationStore.open("memory://acts")
    remote[:1]  # reads the header of the first shard
    calls = []
    fetch = type(memory).cat_ranges

    def counted(system, paths, *more, **settings):
        calls.append(len(paths))
        return fetch(system, paths, *more, **settings)

    monkeypatch.setattr(type(memory), "cat_ranges", counted)
    rows = remote._reader.read_runs([(0, 3), (5, 9), (20, 22)])
    assert calls == [1]
    assert torch.equal(rows.float(), remote[[0, 1, 2, 5, 6, 7, 8, 20, 21]])


def test_file_addresses_are_plain_folders(both, tmp_path):
    local, _ = both
    store = ActivationStore.open(f"file://{tmp_path}/s")
    assert store.path == tmp_path / "s"
    assert torch.equal(store[:], local[:])


def test_collecting_to_an_address_gives_the_same_files_and_goes_on_after_an_interrupt(both, tmp_path):
    model = FakeModel()
    model.on_call = lambda number: (_ for _ in ()).throw(KeyboardInterrupt) if number == 6 else None
    arguments = {"site": "tokens", "path": "memory://made", **SMALL}
    with pytest.raises(KeyboardInterrupt):
        ActivationStore.collect(model, FakeInputs(ITEMS), **arguments)
    with pytest.raises(StoreError, match="2 of 6 shards"):
        ActivationStore.open("memory://made")
    again = FakeModel()
    store = ActivationStore.collect(again, FakeInputs(ITEMS), **arguments)
    assert sum(size for size, _ in again.calls) == 24
    memory = fsspec.filesystem("memory")
    written = {file.rsplit("/", 1)[-1]: memory.cat_file(file) for file in memory.find("/made")}
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()}
    assert torch.equal(store[:], ActivationStore.open(tmp_path / "s")[:])


def test_damaged_and_foreign_addresses_are_named(both):
    _, memory = both
    shard = "/acts/shard-00001.safetensors"
    content = memory.cat_file(shard)
    memory.pipe_file(shard, content[:-7])
    with pytest.raises(CorruptShardError, match=r"memory://acts/shard-00001\.safetensors is truncated"):
        ActivationStore.open("memory://acts")
    memory.pipe_file(shard, b"\xff" * len(content))
    store = ActivationStore.open("memory://acts")
    with pytest.raises(CorruptShardError, match="is not a shard"):
        store[:]
    memory.rm_file(shard)
    with pytest.raises(CorruptShardError, match="is missing"):
        ActivationStore.open("memory://acts")
    with pytest.raises(StoreError, match="memory://nothing is no activation store"):
        ActivationStore.open("memory://nothing")
    with pytest.raises(ConfigError, match="cannot be opened"):
        place_of("nosuchkind://bucket/acts")
