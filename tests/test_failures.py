"""A loss that is not finite: the run stops before it, and goes on once the rows or the learning rate are mended."""

from __future__ import annotations

import pytest
from sessions import CONFIGS, Rows, rows, same, start, state

import nb_sae as ns
from nb_sae.errors import NonFiniteError
from nb_sae.sae import optim, running


@pytest.fixture
def source() -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(rows())


# --- a loss that is not finite ---


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stops_with_the_last_good_state_kept(name, value):
    shared = Rows.from_tensor(rows())
    train = ns.TrainConfig(rows=640, batch_rows=32, ema_decay=0.9, log_every=5, resample_every=96, dead_after_rows=64)

    def spoil(epoch, number, batch):
        batch = batch.clone()
        if (epoch, number) == (0, 6):
            batch[3, 2] = value
        return batch

    shared.spoil = spoil
    session = start(shared, CONFIGS[name], train)
    with pytest.raises(NonFiniteError, match=r"step 6 \(rows 192 to 224 of the run\)"):
        session.run(progress=False)
    good = start(ns.ActivationStore.from_tensor(rows()), CONFIGS[name], train).run(steps=6, progress=False)
    assert session.step == 6
    assert same(state(session), state(good))
    assert session.log["step"].to_list() == [5]
    with pytest.raises(NonFiniteError, match="step 6"):
        session.run(progress=False)
    assert same(state(session), state(good))
    del shared.spoil  # the rows are mended: it goes on as if nothing had been
    session.run(progress=False)
    whole = start(ns.ActivationStore.from_tensor(rows()), CONFIGS[name], train).run(progress=False)
    assert same(state(session), state(whole))


def test_a_batch_can_be_left_out():
    shared = Rows.from_tensor(rows())
    shared.spoil = lambda epoch, number, batch: batch * float("nan") if (epoch, number) == (0, 6) else batch
    session = start(shared)
    with pytest.raises(NonFiniteError, match=r"skip\(\)"):
        session.run(progress=False)
    session.skip().run(progress=False)
    assert session.finished
    assert all(value.isfinite().all() for value in state(session).values())


# --- a run that diverges ---


def diverged(source, steps=4, **settings) -> tuple[ns.Session, ns.Session]:
    """A session whose learning rate was raised far too high after `steps`, and a fork of it from before."""
    session = start(source, **settings).run(steps=steps, progress=False)
    good = session.fork(progress=False)
    session.change(learning_rate=1e25)
    with pytest.raises(
        NonFiniteError, match=rf"learning_rate=….*aside, at step {steps}, and run\(\) goes on"
    ) as caught:
        session.run(progress=False)
    assert session.step > steps
    told = f"at step {session.step} (rows {session.rows_seen:,} to {session.rows_seen + 32:,} of the run)"
    assert told in str(caught.value)
    assert "e+25" in str(caught.value) or "e+24" in str(caught.value), "the rate is named"
    assert all(value.isfinite().all() for value in state(session).values())
    return session, good


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [0, 4])
def test_a_diverged_run_goes_on_from_its_last_sound_state_at_a_lower_rate(source, name, steps):
    train = ns.TrainConfig(rows=640, batch_rows=32, dead_after_rows=64, ema_decay=0.9)
    session, good = diverged(source, steps, config=CONFIGS[name], train=train)
    failed = session.step
    session.change(learning_rate=1e-3)
    assert session.step == steps
    assert session.log["step"].to_list() == list(range(1, steps + 1)) if steps else session.log.is_empty()
    assert same(state(session), state(good))
    good.change(learning_rate=1e-3).run(progress=False)
    assert session.run(progress=False).finished
    assert same(state(session), state(good))
    assert session.log.drop("seconds").equals(good.log.drop("seconds"))
    assert session.dictionary.provenance["changes"][-1] == {
        "step": steps, "learning_rate": 1e-3, "went_back_from": failed
    }  # fmt: skip


def test_a_fork_and_other_settings_go_back_too(source):
    session, good = diverged(source)
    twin = session.fork(progress=False, learning_rate=1e-3, budgets=(1, 3, 8))
    good.change(learning_rate=1e-3, budgets=(1, 3, 8)).run(progress=False)
    assert same(state(twin.run(progress=False)), state(good))
    assert session.step > 4


def test_a_rate_that_is_not_lower_leaves_the_session_where_it_stands(source):
    session, _ = diverged(source)
    failed = session.step
    assert session.change(learning_rate=1e26).step == failed
    session, _ = diverged(source)
    assert session.change(level_weights=(3, 1)).step == failed


def test_a_lower_rate_does_not_go_back_where_nothing_diverged(source):
    shared = Rows.from_tensor(rows())
    shared.spoil = lambda epoch, number, batch: batch * float("nan") if (epoch, number) == (0, 6) else batch
    session = start(shared)
    with pytest.raises(NonFiniteError):
        session.run(progress=False)
    session.skip().change(learning_rate=1e-3)
    assert session.step == 7, "the batch was at fault and is left out"
    session = start(source).run(steps=7, progress=False).change(learning_rate=1e-3)
    assert session.step == 7


def test_a_state_that_is_finite_but_ruined_is_not_put_aside():
    shared = Rows.from_tensor(rows())
    session = start(shared).run(steps=4, progress=False)
    good = session.fork(progress=False)
    session.change(learning_rate=1e6).run(steps=9, progress=False)
    assert session.log["loss"].is_finite().all()
    assert session.log["fvu_k4"][-1] > 10, "the rate was meant to ruin it"
    shared.spoil = lambda epoch, number, batch: batch * float("nan")
    with pytest.raises(NonFiniteError, match="aside, at step 4"):
        session.run(progress=False)
    assert same(state(session.change(learning_rate=1e-3)), state(good))


def test_a_sound_run_puts_its_state_aside_ten_times(source, monkeypatch):
    kept = []
    real = running.keep
    monkeypatch.setattr(running, "keep", lambda *args, **place: kept.append(place["step"]) or real(*args, **place))
    start(source, train=ns.TrainConfig(rows=40 * 32, batch_rows=32)).run(progress=False)
    assert kept == list(range(0, 40, 4))


def test_without_room_nothing_is_put_aside_and_the_way_back_is_a_save(source, tmp_path, monkeypatch):
    session = start(source)
    assert 0 < session.memory.kept == session.memory.moments + session.memory.moments // 2
    monkeypatch.setattr("nb_sae.sae.memory.KEPT_SHARE", 1e-12)
    assert "to go back to" not in str(start(source).memory)
    session = start(source, save_to=tmp_path / "s").run(steps=4, progress=False).change(learning_rate=1e25)
    with pytest.raises(NonFiniteError, match=r"go back to a fork or a save from before \(the last save is in .*s\)"):
        session.run(progress=False)
    failed = session.step
    assert session.change(learning_rate=1e-3).step == failed


def test_without_the_fused_kernel_a_failed_step_changes_nothing_either(source, monkeypatch):
    monkeypatch.setattr(optim, "has_fused_adam", lambda device: False)
    shared = Rows.from_tensor(rows())
    shared.spoil = lambda epoch, number, batch: batch * float("nan") if number == 3 else batch
    session = start(shared)
    with pytest.raises(NonFiniteError, match="step 3"):
        session.run(progress=False)
    assert same(state(session), state(start(source).run(steps=3, progress=False)))
