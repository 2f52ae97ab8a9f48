from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nb_sae.errors import ConfigError
from nb_sae.store import ActivationStore, order
from nb_sae.store.order import LANES, ShuffledOrder

ROWS, WIDTH = 9_000, 4


@pytest.fixture
def store(monkeypatch) -> ActivationStore:
    """Rows that hold their number, in three buffers: two of 200 blocks, cut into lanes, and a short one."""
    monkeypatch.setattr(order, "BLOCK_BYTES", 20 * WIDTH * 4)
    monkeypatch.setattr(order, "BUFFER_BYTES", 200 * 20 * WIDTH * 4)
    return ActivationStore.from_tensor(torch.arange(ROWS * WIDTH, dtype=torch.float32).view(ROWS, WIDTH))


def streamed(store: ActivationStore) -> ActivationStore:
    """The same rows as a view, which is read from where it lies."""
    view = store.subset(list(range(ROWS)))
    view.resident_bytes = 0
    return view


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("resident", [True, False])
def test_the_shares_of_all_processes_are_the_batches_of_one(store, count, resident):
    whole = list(store.batches(840, seed=2, epoch=1))
    source = store if resident else streamed(store)
    parts = [list(source.batches(840, seed=2, epoch=1, share=(i, count))) for i in range(count)]
    assert len(whole) == ROWS // 840
    for step, batch in enumerate(whole):
        for i in range(count):
            assert torch.equal(parts[i][step], batch[i::count])


def test_a_share_goes_on_in_mid_epoch(store):
    source = streamed(store)
    everything = list(source.batches(120, seed=0, share=(1, 4)))
    for skip in (1, 33, 34, 70, len(everything)):
        rest = list(source.batches(120, seed=0, share=(1, 4), skip=skip))
        assert len(rest) == len(everything) - skip
        assert all(torch.equal(one, other) for one, other in zip(rest, everything[skip:], strict=True))


def test_each_process_reads_only_its_share_and_no_row_twice(store, monkeypatch):
    source = streamed(store)
    read_rows: list[int] = []
    read = source._reader.read_range

    def counted(start: int, stop: int) -> torch.Tensor:
        read_rows.extend(range(start, stop))
        return read(start, stop)

    monkeypatch.setattr(source._reader, "read_range", counted)
    by_process = []
    for i in range(4):
        read_rows.clear()
        for _ in source.batches(400, seed=0, share=(i, 4)):
            pass
        assert len(read_rows) == len(set(read_rows))
        by_process.append(set(read_rows))
    last_buffer = ROWS - 2 * 200 * 20  # too short for lanes: everybody reads it
    for rows in by_process:
        assert len(rows) <= 2 * (200 * 20 // 4 + LANES) + last_buffer
    common = set.intersection(*by_process)
    assert len(common) <= last_buffer + 2 * LANES
    assert set.union(*by_process) == set(range(ROWS))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3000), block=st.integers(1, 5), blocks=st.integers(1, 400), count=st.integers(1, 9),
    seed=st.integers(0, 2),
)  # fmt: skip
def test_shares_of_any_order_partition_it(rows, block, blocks, count, seed):
    arguments = {"seed": seed, "epoch": 1, "block_rows": block, "buffer_rows": block * blocks}
    whole = ShuffledOrder(rows, **arguments)
    everything = np.concatenate([whole.row_numbers(number) for number in range(whole.buffers)])
    assert sorted(everything.tolist()) == list(range(rows))
    for index in range(count):
        share = ShuffledOrder(rows, **arguments, share=(index, count))
        mine = []
        for number in range(share.buffers):
            there = np.concatenate([np.arange(*run) for run in share.runs(number)])
            assert (np.diff(there) > 0).all()
            assert np.array_equal(there[share.places(number)], share.row_numbers(number))
            mine.append(share.row_numbers(number))
        assert np.array_equal(np.concatenate(mine), everything[index::count])
        assert share.starts[-1] == len(everything[index::count])


def test_lanes_mix_as_well_as_one_shuffle(store):
    """Every batch holds rows from all over its buffer, and two epochs pair rows differently."""
    batch = next(iter(store.batches(384, seed=0)))[:, 0].numpy() / WIDTH
    assert len(np.unique(batch // 450)) == 20, "a twentieth of the store is missing"
    first, second = (next(iter(store.batches(384, seed=0, epoch=epoch)))[:, 0].tolist() for epoch in (0, 1))
    assert len(set(first) & set(second)) < 80  # by chance 384²/9000 = 16, within a common buffer 37
    order_of_rows = torch.cat(list(store.batches(500, seed=0)))[:, 0].numpy()
    assert abs(np.corrcoef(order_of_rows[:4000:192], np.arange(21))[0, 1]) < 0.6


def test_batches_that_cannot_be_shared_out_are_refused(store):
    with pytest.raises(ConfigError, match=r"100 rows cannot be shared out evenly among 3 .* multiple of 3"):
        store.batches(100, seed=0, share=(0, 3))
    with pytest.raises(ConfigError, match=r"share=\(2, 2\) does not exist"):
        store.batches(100, seed=0, share=(2, 2))
