from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import polars as pl
import pytest
import torch
from rank_workers import ITEMS, collect, start
from store_fakes import SMALL, FakeInputs, FakeModel, colours, hashes

from nb_sae.errors import ConfigError, InputError, StoreError
from nb_sae.store import ActivationStore, ranks


@pytest.fixture
def whole(tmp_path) -> Path:
    ActivationStore.collect(FakeModel(), FakeInputs(ITEMS), site="tokens", path=tmp_path / "whole", **SMALL)
    return tmp_path / "whole"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ranks, "POLL_S", 0.02)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_write_the_bytes_that_one_process_writes(tmp_path, whole, world):
    path = tmp_path / "together"
    others = [start(collect, path, rank, world, seconds=0.003 * rank) for rank in range(1, world)]
    store = collect(path, 0, world)
    for process in others:
        process.join(30)
        assert process.exitcode == 0
    assert hashes(path) == hashes(whole)
    assert store.rows.equals(ActivationStore.open(whole).rows)
    assert store.skipped["input_id"].to_list() == [30]


def test_each_rank_runs_the_model_on_its_own_inputs_only(tmp_path, whole):
    path = tmp_path / "s"
    process = start(collect, path, 0, 2, seconds=0.01)
    model = FakeModel()
    ActivationStore.collect(model, FakeInputs(ITEMS), site="tokens", path=path, rank=1, world=2, **SMALL)
    process.join(30)
    assert [size for size, _ in model.calls] == [4, 4, 4, 3, 1]  # shards 1, 3 and 5 of six, without the broken input
    assert hashes(path) == hashes(whole)


def test_a_killed_rank_loses_and_doubles_nothing(tmp_path, whole, monkeypatch):
    path = tmp_path / "s"
    monkeypatch.setattr(ranks, "PATIENCE_S", 0.5)
    victim = start(collect, path, 1, 2, seconds=0.02)
    killer = threading.Thread(target=_kill_after_first_shard, args=(victim, path))
    killer.start()
    with pytest.raises(StoreError, match=r"Rank 0 is done, but \d of 6 shards .* are missing, those of rank 1"):
        collect(path, 0, 2)
    killer.join()
    victim.join()
    there = sorted(file.name for file in (path / "partial").glob("*.json"))
    assert 3 <= len(there) < 6
    with pytest.raises(StoreError, match="incomplete"):
        ActivationStore.open(path)
    again = start(collect, path, 1, 2)
    collect(path, 0, 2)
    again.join(30)
    assert hashes(path) == hashes(whole)


def test_what_ranks_began_one_process_can_finish(tmp_path, whole, monkeypatch):
    path = tmp_path / "s"
    monkeypatch.setattr(ranks, "PATIENCE_S", 0.1)
    with pytest.raises(StoreError, match="those of rank 1, 2"):
        collect(path, 0, 3)
    model = FakeModel()
    ActivationStore.collect(model, FakeInputs(ITEMS), site="tokens", path=path, **SMALL)
    assert sum(size for size, _ in model.calls) == 25  # shards 1, 2, 4 and 5
    assert hashes(path) == hashes(whole)


def test_torchrun_says_who_i_am(monkeypatch):
    assert ranks.Rank.given(None, None) == ranks.Rank(0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert ranks.Rank.given(None, None) == ranks.Rank(3, 8)
    assert ranks.Rank.given(0, 1).alone
    with pytest.raises(ConfigError, match="give both"):
        ranks.Rank.given(1, None)
    with pytest.raises(ConfigError, match="does not exist"):
        ranks.Rank.given(2, 2)


def test_two_processes_with_one_rank_or_without_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "s"
    monkeypatch.setattr(ranks, "PATIENCE_S", 20)
    holder = start(collect, path, 0, 2, seconds=0.3)
    deadline = time.monotonic() + 20
    while not (path / "manifest.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(StoreError, match=r"as rank 0\. Give every process a rank"):
        collect(path, 0, 2)
    with pytest.raises(StoreError, match=r"Another process is collecting into .* Wait for it"):
        collect(path, 0, 1)
    holder.kill()
    holder.join()
    collect(path, 0, 1)


def test_ranks_that_ask_for_different_things_are_refused(tmp_path):
    path = tmp_path / "s"
    holder = start(collect, path, 0, 2, seconds=0.3)
    with pytest.raises(StoreError, match=r"already holds a store of another request|collecting something else"):
        collect(path, 1, 2, items=colours(9))
    holder.kill()
    holder.join()
    with pytest.raises(ConfigError, match="overwrite=True with several processes"):
        ActivationStore.collect(
            FakeModel(), FakeInputs(ITEMS), site="tokens", path=path, rank=0, world=2, overwrite=True, **SMALL
        )


def test_a_rank_without_the_first_rank_gives_up_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE_S", 0.1)
    with pytest.raises(StoreError, match="Rank 0 has not begun"):
        collect(tmp_path / "s", 1, 2)


def test_inputs_that_nobody_can_read_are_an_error_on_every_rank(tmp_path):
    path = tmp_path / "s"
    other = start(collect, path, 1, 2, items=[None] * 20)
    with pytest.raises(InputError):
        collect(path, 0, 2, items=[None] * 20)
    other.join(20)
    assert other.exitcode == 1


def test_the_statistics_and_rows_are_those_of_one_process(tmp_path, whole):
    path = tmp_path / "s"
    other = start(collect, path, 1, 2)
    store = collect(path, 0, 2)
    other.join(20)
    one = ActivationStore.open(whole)
    assert torch.equal(store[:], one[:])
    assert store.rows.select(pl.struct("input_id", "token").is_duplicated().sum()).item() == 0
    assert store.statistics().mean_square_distance == one.statistics().mean_square_distance


def _kill_after_first_shard(victim: BaseProcess, path: Path) -> None:
    while not (path / "partial" / "part-00001.json").exists() and victim.is_alive():
        time.sleep(0.005)
    os.kill(victim.pid or 0, signal.SIGKILL)
