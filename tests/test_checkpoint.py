"""Save and resume bit for bit, files that are damaged or foreign, two writers, kill −9."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sessions import CONFIG, CONFIGS, TRAIN, Rows, rows, same, start, state

import nb_sae as ns
from nb_sae.errors import ConfigError, FormatError, InputNotFoundError, NonFiniteError, PathExistsError, StoreError

HERE = Path(__file__).parent


@pytest.fixture
def source() -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(rows())


def load(path, source=None, **others) -> ns.Session:
    return ns.Session.load(path, source, device="cpu", **others)


# --- the same bits ---


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_session_continues_bit_for_bit(source, tmp_path, name):
    train = ns.TrainConfig(rows=640, batch_rows=32, ema_decay=0.9, resample_every=160, dead_after_rows=64, log_every=3)
    whole = start(source, CONFIGS[name], train).run(progress=False)
    half = start(source, CONFIGS[name], train).run(steps=15, progress=False)
    half.save(tmp_path / "s")
    half.save(tmp_path / "s")
    again = load(tmp_path / "s", ns.ActivationStore.from_tensor(rows()))
    assert same(state(again), state(half))
    again.run(progress=False)
    assert same(state(again), state(whole))
    assert again.log.drop("seconds").equals(whole.log.drop("seconds"))
    one, other = again.dictionary, whole.dictionary
    assert torch.equal(one.W_enc, other.W_enc)
    assert torch.equal(one.encode(rows()), other.encode(rows()))


def test_a_session_that_was_changed_forked_and_extended_resumes_bit_for_bit(source, tmp_path):
    def history(stop=None):
        session = start(source, CONFIGS["batch_top_k"]).run(steps=5, progress=False)
        session.change(learning_rate=1e-3, budgets=(1, 4, 6), ema_decay=0.95)
        session = session.run(steps=4, progress=False).fork(level_weights=(3, 2, 1), progress=False)
        return session.extend(320).run(steps=stop, progress=False)

    whole, half = history(), history(stop=3)
    half.save(tmp_path / "s")
    again = load(tmp_path / "s", source).run(progress=False)
    assert again.finished
    assert again.step == 30
    assert same(state(again), state(whole))
    assert again.dictionary.provenance == whole.dictionary.provenance
    assert (again.config, again.train) == (whole.config, whole.train)


def test_the_place_in_the_source_is_kept_at_the_end_of_a_pass(source, tmp_path):
    for steps in (11, 12, 13):  # a pass has 12 batches
        half = start(source).run(steps=steps, progress=False)
        half.save(tmp_path / str(steps))
        again = load(tmp_path / str(steps), source).run(progress=False)
        assert same(state(again), state(start(source).run(progress=False)))


def test_a_run_saves_itself_and_goes_on_saving_when_it_is_loaded(source, tmp_path):
    seen = []
    path = tmp_path / "s"
    session = start(source, save_to=path, save_every_rows=128)
    session.on_log = lambda record: seen.append(
        json.loads((path / "session.json").read_text())["step"] if (path / "session.json").exists() else None
    )
    session.run(steps=9, progress=False)
    assert seen == [None, None, None, None, 4, 4, 4, 4, 8], "saved every 128 rows"
    assert load(path).step == 9, "and at the end of a run"
    again = load(path, source)
    assert again.run(progress=False).finished
    assert load(path).step == 20
    assert same(state(load(path)), state(start(source).run(progress=False)))
    assert len(list(path.glob("step-*"))) == 1


def test_an_interrupted_run_has_saved_where_it_stopped(source, tmp_path):
    session = start(source, save_to=tmp_path / "s")
    session.on_log = lambda record: os.kill(os.getpid(), 2) if record["step"] == 5 else None
    session.run(progress=False)
    assert session.stopped_early
    assert load(tmp_path / "s").step == 5


def test_a_failed_step_leaves_the_last_save_to_go_back_to(tmp_path):
    source = Rows.from_tensor(rows())
    source.spoil = lambda epoch, number, batch: batch * float("inf") if number == 6 else batch
    session = start(source, save_to=tmp_path / "s", save_every_rows=128)
    with pytest.raises(NonFiniteError, match="last save is in"):
        session.run(progress=False)
    assert (session.step, load(tmp_path / "s").step) == (6, 4)


# --- what is there ---


def test_a_loaded_session_without_rows_gives_its_dictionary_and_says_what_run_needs(source, tmp_path):
    session = start(source).run(steps=5, progress=False)
    session.save(tmp_path / "s")
    loaded = load(tmp_path / "s")
    assert torch.equal(loaded.dictionary.W_dec, session.dictionary.W_dec)
    assert torch.equal(loaded.fork(progress=False).dictionary.W_dec, session.dictionary.W_dec)
    with pytest.raises(ConfigError, match="source=store"):
        loaded.run(progress=False)


def test_other_rows_are_refused(source, tmp_path):
    start(source).run(steps=5, progress=False).save(tmp_path / "s")
    other = {
        "900 were given": ns.ActivationStore.from_tensor(rows(900)),
        "d_in was 8, 6 is given": ns.ActivationStore.from_tensor(rows()[:, :6]),
        "model was 'tensor', 'another'": ns.ActivationStore.from_tensor(rows(), model="another"),
        "the mean is off": ns.ActivationStore.from_tensor(rows(seed=2)),
        "distance": ns.ActivationStore.from_tensor(2 * rows()),
    }
    for message, store in other.items():
        with pytest.raises(StoreError, match=message):
            load(tmp_path / "s", store)
    assert load(tmp_path / "s", source).step == 5


def test_other_settings_are_refused_and_named(source, tmp_path):
    start(source).run(steps=5, progress=False).save(tmp_path / "s")
    load(tmp_path / "s", source, config=CONFIG, train=TRAIN)
    with pytest.raises(ConfigError, match=r"budgets=\(2, 5\) \(saved: \(2, 4\)\), learning_rate=0.1 \(saved"):
        load(
            tmp_path / "s",
            source,
            config=ns.SAEConfig.msae(d_sae=32, budgets=(2, 5)),
            train=ns.TrainConfig(rows=640, batch_rows=32, dead_after_rows=200, learning_rate=0.1),
        )


def test_another_session_is_not_written_over(source, tmp_path):
    first = start(source).run(steps=5, progress=False)
    first.save(tmp_path / "s")
    other = start(source).run(steps=2, progress=False)
    with pytest.raises(PathExistsError, match=r"another session \(at step 5\).*overwrite=True"):
        other.save(tmp_path / "s")
    with pytest.raises(PathExistsError, match="another session"):
        first.fork(save_to=tmp_path / "s", progress=False)
    with pytest.raises(PathExistsError, match="another session"):
        start(source, save_to=tmp_path / "s")
    assert load(tmp_path / "s").step == 5
    other.save(tmp_path / "s", overwrite=True)
    assert load(tmp_path / "s").step == 2
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PathExistsError, match="not a folder"):
        start(source, save_to=tmp_path / "file")


def test_damaged_foreign_and_newer_files_are_named(source, tmp_path):
    with pytest.raises(InputNotFoundError, match=r"holds no session\.json"):
        load(tmp_path / "nothing")
    folder = start(source).run(steps=5, progress=False).save(tmp_path / "s")
    text = (folder / "session.json").read_text()
    header = json.loads(text)
    inner = folder / header["folder"]
    for change, message in (
        ({"version": 99}, "Update nb_sae"),
        ({"format": "nb_sae.dictionary"}, r"expected 'nb_sae\.session'"),
        ({"sae": {"depth": 3}}, "cannot read"),
        ({"folder": "step-gone"}, "is missing, .* were written"),
    ):
        (folder / "session.json").write_text(json.dumps({**header, **change}))
        with pytest.raises(FormatError, match=message):
            load(folder)
    (folder / "session.json").write_text(text[:100])
    with pytest.raises(FormatError, match="cannot be read"):
        load(folder)
    (folder / "session.json").write_text(text)
    for name in ("state.safetensors", "log.parquet"):
        content = (inner / name).read_bytes()
        for damage in (content[:100], content + b"x", b""):
            (inner / name).write_bytes(damage)
            with pytest.raises(FormatError, match=re.escape(f"{inner / name} has {len(damage):,} bytes")):
                load(folder)
        (inner / name).write_bytes(content)
    content = (inner / "state.safetensors").read_bytes()
    (inner / "state.safetensors").write_bytes(b"\xff" * len(content))
    with pytest.raises(FormatError, match="cannot be read"):
        load(folder)
    (inner / "state.safetensors").write_bytes(content)
    assert load(folder, source).run(progress=False).finished


def test_a_state_that_does_not_fit_its_settings_is_named(source, tmp_path):
    folder = start(source).run(steps=5, progress=False).save(tmp_path / "s")
    header = json.loads((folder / "session.json").read_text())
    file = folder / header["folder"] / "state.safetensors"
    tensors = load_file(file)
    tensors["extra"] = tensors.pop("W_enc")
    save_file(tensors, file)
    header["files"]["state.safetensors"] = file.stat().st_size
    (folder / "session.json").write_text(json.dumps(header))
    with pytest.raises(FormatError, match="does not fit its own settings: W_enc, extra"):
        load(folder)


# --- two writers ---

OTHER = """
import sys, time, torch, nb_sae as ns
from nb_sae.sae.checkpoint import Lock
lock = Lock(__import__("pathlib").Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="locks of the system")
def test_a_second_process_is_refused_by_name_and_the_lock_of_a_dead_one_is_free(source, tmp_path):
    session = start(source).run(steps=5, progress=False)
    folder = session.save(tmp_path / "s")
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"Process {other.pid} on .* is writing the session"):
            session.save(folder)
        writer = load(folder, source)
        writer.save_to = folder
        with pytest.raises(StoreError, match=f"Process {other.pid}"):
            writer.run(progress=False)
        assert writer.step == 5
        assert load(folder).step == 5, "reading needs no lock"
    finally:
        other.kill()
        other.wait()
    assert f'"process": {other.pid}' in (folder / "session.lock").read_text(), "a dead process left its name"
    session.run(steps=1, progress=False).save(folder)
    assert load(folder).step == 6


@pytest.mark.skipif(os.name != "posix", reason="locks of the system")
def test_a_second_session_of_one_process_is_refused_while_the_first_runs(source, tmp_path):
    session = start(source, save_to=tmp_path / "s").run(steps=2, progress=False)
    other = load(tmp_path / "s", source)
    told = []

    def meanwhile(record):
        if not told:
            with pytest.raises(StoreError, match="Another session of this process") as caught:
                other.run(progress=False)
            told.append(caught.value)

    session.on_log = meanwhile
    session.run(progress=False)
    assert told
    assert load(tmp_path / "s").step == 20


# --- kill −9 ---


def test_a_killed_save_leaves_the_session_before_readable(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(HERE)!r})
        from sessions import CONFIG, TRAIN, rows, start
        import nb_sae as ns
        from nb_sae.sae import checkpoint
        session = start(ns.ActivationStore.from_tensor(rows())).run(steps=5, progress=False)
        session.save({str(tmp_path / "s")!r})
        session.run(steps=5, progress=False)
        checkpoint.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        session.save({str(tmp_path / "s")!r})
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert load(tmp_path / "s").step == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_hundred_kills_at_random_moments_lose_nothing_that_was_saved(tmp_path):
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_sessions.py"), str(tmp_path), "100"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "100 kills" in done.stdout
    print(done.stdout.strip(), f"in {time.perf_counter() - started:.0f} s")
