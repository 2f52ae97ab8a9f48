"""Run, interrupt, look, change, fork, several sessions on one stream."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from sessions import CONFIG, CONFIGS, TRAIN, Rows, rows, same, start, state

import nb_sae as ns
from nb_sae import machine
from nb_sae.errors import ConfigError, StoreError
from nb_sae.sae import session as session_module


@pytest.fixture
def source() -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(rows())


# --- run, interrupt, look ---


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_run_in_pieces_equals_run_in_one(source, config):
    whole = start(source, config).run(progress=False)
    pieces = start(source, config)
    for steps in (3, 7, 1000):
        pieces.run(steps=steps, progress=False)
    assert pieces.step == whole.step == 20
    assert same(state(pieces), state(whole))
    assert pieces.log["loss"].to_list() == whole.log["loss"].to_list()


def test_an_interrupt_stops_after_the_step_and_loses_nothing(source):
    session = start(source)
    session.on_log = lambda record: os.kill(os.getpid(), signal.SIGINT) if record["step"] == 5 else None
    session.run(progress=False)
    assert session.stopped_early
    assert session.step == 5
    session.run(progress=False)
    assert session.finished
    assert not session.stopped_early
    assert same(state(session), state(start(source).run(progress=False)))


def test_finished_session_says_how_to_go_on_and_extends(source):
    session = start(source).run(progress=False)
    with pytest.raises(ConfigError, match="extend"):
        session.run(progress=False)
    session.extend(320).run(progress=False)
    assert session.step == 30


def test_equal_rows_are_refused():
    with pytest.raises(StoreError, match="All rows are equal"):
        start(ns.ActivationStore.from_tensor(torch.ones(10, 4)))


# --- log ---


def test_on_log_comes_at_the_stated_rate_and_at_the_end(source):
    seen = []
    train = ns.TrainConfig(rows=640, batch_rows=32, log_every=6)
    start(source, train=train, on_log=seen.append).run(progress=False)
    assert [record["step"] for record in seen] == [6, 12, 18, 20]
    assert all(0 < record["fvu_k4"] <= record["fvu_k2"] * 1.01 for record in seen)
    lines = start(source, train=ns.TrainConfig(rows=640, batch_rows=32, log_points=4)).run(progress=False).log
    assert lines["step"].to_list() == [5, 10, 15, 20]


def test_an_on_log_that_raises_comes_out_and_loses_nothing(source):
    session = start(source)

    def broken(record):
        if record["step"] == 4:
            raise RuntimeError("monitor broke")

    session.on_log = broken
    with pytest.raises(RuntimeError, match="monitor broke"):
        session.run(progress=False)
    assert session.step == 4
    assert session.log.height == 4, "the line that on_log was given is kept"
    session.on_log = None
    whole = start(source).run(progress=False)
    assert same(state(session.run(progress=False)), state(whole))
    assert session.log["loss"].to_list() == whole.log["loss"].to_list()


def test_numbers_on_a_gpu_are_read_when_the_next_line_is_due(source, monkeypatch):
    from nb_sae.sae.logbook import Logbook

    session, seen = start(source), []
    session.on_log = seen.append
    waiting = []

    class Slow(machine.Readback):
        def wait(self):
            waiting.append(session.step)
            return super().wait()

    monkeypatch.setattr("nb_sae.sae.logbook.Readback", Slow)
    monkeypatch.setattr(Logbook, "waits", staticmethod(lambda numbers: False))
    session.run(steps=3, progress=False)
    assert waiting == [2, 3, 3], "line 1 is read at step 2, line 2 at step 3, line 3 at the end"
    assert [record["step"] for record in seen] == [1, 2, 3]


# --- change ---


def test_a_changed_setting_holds_from_the_next_step_on(source):
    session = start(source).run(steps=5, progress=False)
    before = state(session)
    session.change(learning_rate=1e-12, level_weights=[3, 1], dead_after_rows=10, log_every=2)
    assert same(before, state(session)), "changing moves nothing"
    session.run(steps=2, progress=False)
    after = state(session)
    assert (after["W_enc"] - before["W_enc"]).abs().max() < 1e-6
    assert not torch.equal(after["adam.W_enc.exp_avg"], before["adam.W_enc.exp_avg"])
    assert session._state._weights == (0.75, 0.25)
    assert session.dictionary.provenance["changes"] == [
        {"step": 5, "learning_rate": 1e-12, "level_weights": [3, 1], "dead_after_rows": 10, "log_every": 2}
    ]


def test_a_change_to_what_it_is_already_changes_no_bit(source):
    session = start(source).run(steps=5, progress=False)
    session.change(learning_rate=session.train.learning_rate, budgets=(2, 4)).run(progress=False)
    assert same(state(session), state(start(source).run(progress=False)))


@pytest.mark.parametrize("config", [CONFIG, CONFIGS["batch_top_k"]], ids=["top_k", "batch_top_k"])
def test_budgets_may_change_and_take_over_what_the_next_larger_one_knew(source, config):
    session = start(source, config).run(steps=5, progress=False)
    silent = session._state.silent_rows.clone()
    session.change(budgets=(1, 3, 8))
    assert torch.equal(session._state.silent_rows, silent[[0, 1, 1]])
    session.run(progress=False)
    assert session.dictionary.budgets == (1, 3, 8)
    assert {"fvu_k2", "fvu_k1", "fvu_k8"} <= set(session.log.columns)
    assert session.show()["fvu"].is_finite().all()
    assert "k=8" in repr(session)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_sae": 64}, "d_sae cannot change.*shape"),
        ({"sparsity": "relu"}, "sparsity cannot change"),
        ({"seed": 1}, "order of the rows"),
        ({"batch_rows": 64}, "count batches"),
        ({"learningrate": 1e-3}, "no setting.*learning_rate"),
        ({"learning_rate": -1}, "above 0"),
        ({"budgets": (4, 2)}, "ascending"),
        ({"budgets": (4, 200)}, "larger than d_sae"),
        ({"widths": (8, 16)}, "must end at d_sae=32"),
        ({"level_weights": (1, 2, 3)}, "one weight for each"),
        ({"rows": 10}, "rows were seen already"),
    ],
)
def test_changes_outside_the_method_are_refused_and_nothing_changes(source, settings, message):
    session = start(source).run(steps=5, progress=False)
    before = session.config, session.train
    with pytest.raises(ConfigError, match=message):
        session.change(learning_rate=1.0, **settings) if "learning_rate" not in settings else session.change(**settings)
    assert (session.config, session.train) == before
    assert same(state(session.run(progress=False)), state(start(source).run(progress=False)))


def test_learned_level_scales_follow_the_budgets_and_cannot_come_or_go(source):
    config = ns.SAEConfig(d_sae=32, budgets=(2, 4), scale_levels=True)
    session = start(source, config).run(steps=5, progress=False)
    scales = session.sae.log_level_scale.detach().clone()
    session.change(budgets=(1, 3, 8))
    assert torch.equal(session.sae.log_level_scale.detach(), scales[[0, 1, 1]])
    assert session.run(progress=False).finished
    with pytest.raises(ConfigError, match="3 and 1 levels"):
        session.change(budgets=(4,))


# --- fork, together ---


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fork_goes_its_own_way_and_leaves_the_first_alone(source, name):
    train = ns.TrainConfig(rows=640, batch_rows=32, ema_decay=0.9, resample_every=200, dead_after_rows=64)
    session = start(source, CONFIGS[name], train).run(steps=7, progress=False)
    twin = session.fork(progress=False)
    other = session.fork(progress=False, learning_rate=1e-1)
    other.run(progress=False)
    twin.run(progress=False)
    session.run(progress=False)
    whole = start(source, CONFIGS[name], train).run(progress=False)
    assert same(state(session), state(whole))
    assert same(state(twin), state(whole))
    assert not torch.equal(state(other)["W_dec"], state(whole)["W_dec"])
    assert twin.source is session.source
    assert twin.log["loss"].to_list() == whole.log["loss"].to_list()


def test_sessions_together_equal_each_alone_and_read_every_batch_once():
    shared = Rows.from_tensor(rows())
    configs = [CONFIG, CONFIGS["relu"], CONFIGS["batch_top_k"]]
    plans = [TRAIN, ns.TrainConfig(rows=320, batch_rows=32), TRAIN]
    sessions = [start(shared, config, train) for config, train in zip(configs, plans, strict=True)]
    shared.read = 0
    ns.train_together(sessions, steps=4, progress=False)
    assert [one.step for one in sessions] == [4, 4, 4]
    ns.train_together(sessions, progress=False)
    assert [one.step for one in sessions] == [20, 10, 20]
    assert shared.read == 20
    for session, config, train in zip(sessions, configs, plans, strict=True):
        alone = start(ns.ActivationStore.from_tensor(rows()), config, train).run(progress=False)
        assert same(state(session), state(alone))


def test_sessions_that_cannot_share_batches_are_refused(source):
    one = start(source)
    cases = {
        "source": start(ns.ActivationStore.from_tensor(rows())),
        "batch_rows": start(source, train=ns.TrainConfig(rows=640, batch_rows=64)),
        "seed": start(source, train=ns.TrainConfig(rows=640, batch_rows=32, seed=1)),
        "step": start(source).run(steps=1, progress=False),
    }
    for what, other in cases.items():
        with pytest.raises(ConfigError, match=f"their {what} differs"):
            ns.train_together([one, other], progress=False)
    with pytest.raises(ConfigError, match="each once"):
        ns.train_together([one, one], progress=False)


def test_a_session_that_fails_leaves_the_others_of_its_company_whole(source):
    def broken(record):
        if record["step"] == 3:
            raise RuntimeError("monitor broke")

    sessions = [start(source, on_log=broken), start(source, CONFIGS["relu"])]
    with pytest.raises(RuntimeError, match="monitor broke") as caught:
        ns.train_together(sessions, progress=False)
    assert "session 0 of 2" in caught.value.__notes__[0]
    assert [one.step for one in sessions] == [3, 3]
    sessions[0].on_log = None
    ns.train_together(sessions, progress=False)
    assert same(state(sessions[0]), state(start(source).run(progress=False)))


def test_the_session_module_offers_train_sae(source):
    dictionary = session_module.train_sae(source, CONFIG, TRAIN, device="cpu", progress=False)
    assert dictionary.d_sae == 32
