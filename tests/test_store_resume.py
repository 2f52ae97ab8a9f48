from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_fakes import SMALL, FakeInputs, FakeModel, colours, hashes

from nb_sae.errors import (
    StoreError,
)
from nb_sae.store import ActivationStore, files


def test_an_interrupted_collection_resumes_and_ends_with_the_same_bytes(tmp_path, capsys):
    inputs = FakeInputs([*colours(30), None, *colours(10)])
    ActivationStore.collect(FakeModel(), inputs, site="tokens", path=tmp_path / "whole", **SMALL)

    def interrupt(number: int) -> None:
        if number == 6:
            raise KeyboardInterrupt

    model = FakeModel()
    model.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        ActivationStore.collect(
            model, inputs, site="tokens", path=tmp_path / "part", **{**SMALL, "progress": True}
        )  # fmt: skip
    assert "2 of 6 shards are kept" in capsys.readouterr().out
    with pytest.raises(StoreError, match=r"2 of 6 shards .* again with the same"):
        ActivationStore.open(tmp_path / "part")
    again = FakeModel()
    ActivationStore.collect(again, inputs, site="tokens", path=tmp_path / "part", **SMALL)
    assert len(again.calls) == 7  # four shards of two batches, the last one short: only what was missing
    assert hashes(tmp_path / "part") == hashes(tmp_path / "whole")


def test_a_killed_collection_resumes_and_ends_with_the_same_bytes(tmp_path):
    script = Path(__file__).parent / "store_fakes.py"
    ActivationStore.collect(FakeModel(), FakeInputs(colours(40)), site="tokens", path=tmp_path / "whole", **SMALL)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "part")])
    deadline = time.monotonic() + 40
    while not (tmp_path / "part" / "partial" / "part-00001.json").exists():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(StoreError, match="incomplete"):
        ActivationStore.open(tmp_path / "part")
    model = FakeModel()
    ActivationStore.collect(model, FakeInputs(colours(40)), site="tokens", path=tmp_path / "part", **SMALL)
    assert 0 < len(model.calls) < 10
    assert hashes(tmp_path / "part") == hashes(tmp_path / "whole")


def test_a_failure_at_any_write_leaves_a_store_that_resumes(tmp_path, monkeypatch):
    inputs = FakeInputs(colours(12))
    ActivationStore.collect(FakeModel(), inputs, site=["tokens", "pooled"], path=tmp_path / "whole", **SMALL)
    expected = hashes(tmp_path / "whole")
    replace, moves = os.replace, 0
    for fail_at in range(1, 40):
        moves = 0

        def failing(source: str, target: str, fail_at: int = fail_at) -> None:
            nonlocal moves
            moves += 1
            if moves == fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        path = tmp_path / f"at-{fail_at}"
        monkeypatch.setattr(os, "replace", failing)
        try:
            ActivationStore.collect(FakeModel(), inputs, site=["tokens", "pooled"], path=path, **SMALL)
        except (StoreError, OSError):
            monkeypatch.setattr(os, "replace", replace)
            ActivationStore.collect(FakeModel(), inputs, site=["tokens", "pooled"], path=path, **SMALL)
            assert hashes(path) == expected
        else:
            break
    assert fail_at > 15, "too few writes were seen"


def test_a_full_disk_is_named_and_what_was_finished_stays(tmp_path, monkeypatch):
    write = files.write_rows

    def full(path: Path, *arguments: object, **settings: object) -> files.FileMark:
        if "00002" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *arguments, **settings)

    monkeypatch.setattr(files, "write_rows", full)
    with pytest.raises(StoreError, match=r"No space is left .* 2 of 3 shards are kept"):
        ActivationStore.collect(FakeModel(), FakeInputs(colours(20)), site="tokens", path=tmp_path / "s", **SMALL)


def test_a_damaged_finished_shard_is_collected_again_on_resume(tmp_path):
    inputs = FakeInputs(colours(24))
    ActivationStore.collect(FakeModel(), inputs, site="tokens", path=tmp_path / "whole", **SMALL)
    model = FakeModel()
    model.on_call = lambda number: (_ for _ in ()).throw(KeyboardInterrupt) if number == 6 else None
    with pytest.raises(KeyboardInterrupt):
        ActivationStore.collect(model, inputs, site="tokens", path=tmp_path / "part", **SMALL)
    shard = tmp_path / "part" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    ActivationStore.collect(FakeModel(), inputs, site="tokens", path=tmp_path / "part", **SMALL)
    assert hashes(tmp_path / "part") == hashes(tmp_path / "whole")


def test_a_folder_that_another_process_fills_is_left_alone(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    assert fcntl is not None
    (tmp_path / "s").mkdir()
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "s" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StoreError, match="Another process is collecting"):
            ActivationStore.collect(FakeModel(), FakeInputs(colours(4)), site="tokens", path=tmp_path / "s", **SMALL)
        holder.communicate()
    ActivationStore.collect(FakeModel(), FakeInputs(colours(4)), site="tokens", path=tmp_path / "s", **SMALL)


def test_an_interrupted_removal_leaves_a_store_that_can_be_overwritten(tmp_path, monkeypatch):
    inputs = FakeInputs(colours(12))
    ActivationStore.collect(FakeModel(), inputs, site="tokens", path=tmp_path / "s", **SMALL)
    unlink = Path.unlink

    def failing(path: Path, **more: bool) -> None:
        if path.name == "shard-00001.safetensors":
            raise KeyboardInterrupt
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.raises(KeyboardInterrupt):
        ActivationStore.collect(FakeModel(), inputs, site="pooled", path=tmp_path / "s", overwrite=True, **SMALL)
    monkeypatch.setattr(Path, "unlink", unlink)
    store = ActivationStore.collect(FakeModel(), inputs, site="pooled", path=tmp_path / "s", overwrite=True, **SMALL)
    assert store.site.name == "pooled"
