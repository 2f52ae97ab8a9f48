"""Orders from another thread: carried out between two steps, and training ends as if nobody had asked."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import Future

import pytest
import sessions as small
import torch

import nb_sae as ns
from nb_sae.errors import ConfigError, NonFiniteError, PathExistsError
from nb_sae.sae.control import Border


@pytest.fixture
def store():
    return ns.ActivationStore.from_tensor(small.rows())


class At:
    """An `on_log` that hands over to another thread after a line, and waits until that thread let it go on."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act, self.error = step, act, None
        self.steps: list[int] = []

    def __call__(self, line) -> None:
        self.steps.append(line["step"])
        if line["step"] == self.step:
            thread = threading.Thread(target=self._run)
            thread.start()
            thread.join()
            assert self.error is None, self.error

    def _run(self) -> None:
        try:
            self.act()
        except Exception as error:
            self.error = error


def later(act) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def until(true, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


STEPS = 20
TRAIN = ns.TrainConfig(rows=32 * STEPS, batch_rows=32, dead_after_rows=200, log_every=1)


def test_pause_holds_between_two_steps_and_the_run_ends_bit_for_bit(store):
    bare = small.start(store, train=TRAIN).run(progress=False)
    session = small.start(store, train=TRAIN)
    session.on_log = At(5, session.control.pause)
    held = []

    def watch():
        until(lambda: session.control.state == "paused")
        held.append((session.step, small.state(session)))
        time.sleep(0.2)
        held.append((session.step, small.state(session)))
        session.control.proceed()

    thread = later(watch)
    session.run(progress=False)
    thread.join()
    assert held[0][0] == held[1][0] == 5
    assert small.same(held[0][1], held[1][1])
    assert session.finished
    assert session.control.state == "idle"
    assert small.same(small.state(session), small.state(bare))


def test_a_pause_is_not_counted_as_training_time(store):
    session = small.start(store, train=TRAIN)
    session.on_log = At(5, session.control.pause)

    def resume():
        until(lambda: session.control.state == "paused")
        time.sleep(0.5)
        session.control.proceed()

    thread = later(resume)
    start = time.monotonic()
    session.run(progress=False)
    thread.join()
    assert time.monotonic() - start - session.seconds >= 0.45


def test_stop_ends_the_run_after_the_step_and_loses_nothing(store):
    session = small.start(store, train=TRAIN)
    session.on_log = At(7, session.control.stop)
    session.run(progress=False)
    assert (session.step, session.stopped_early) == (7, True)
    session.on_log = None
    session.run(progress=False)
    assert small.same(small.state(session), small.state(small.start(store, train=TRAIN).run(progress=False)))


def test_an_interrupt_ends_a_pause(store):
    session = small.start(store, train=TRAIN)
    session.on_log = At(5, session.control.pause)

    def interrupt():
        until(lambda: session.control.state == "paused")
        signal.raise_signal(signal.SIGINT)

    # A signal reaches the main thread, whoever raises it.
    thread = later(interrupt)
    session.run(progress=False)
    thread.join()
    assert (session.step, session.stopped_early) == (5, True)


def test_a_save_asked_for_by_another_thread_goes_on_bit_for_bit(store, tmp_path):
    asked: list[Future] = []
    session = small.start(store, train=TRAIN)
    session.on_log = At(6, lambda: asked.append(session.control.save(tmp_path / "one")))
    session.run(progress=False)
    folder = asked[0].result(timeout=1)
    loaded = ns.Session.load(folder, store, device="cpu")
    assert loaded.step == 6
    loaded.run(progress=False)
    assert small.same(small.state(loaded), small.state(session))


def test_a_session_saves_into_its_own_folder_while_it_runs(store, tmp_path):
    asked: list[Future] = []
    session = small.start(store, train=TRAIN, save_to=tmp_path / "own", save_every_rows=10**9)
    session.on_log = At(6, lambda: asked.append(session.control.save()))
    steps = []
    asked_step = At(7, lambda: steps.append(ns.Session.load(tmp_path / "own", device="cpu").step))
    ask_to_save = session.on_log

    def both(line):
        ask_to_save(line)
        asked_step(line)

    session.on_log = both
    session.run(progress=False)
    assert asked[0].result(timeout=1) == tmp_path / "own"
    assert steps == [6]


def test_a_fork_joins_the_loop_and_ends_as_one_that_was_forked_by_hand(store):
    asked: list[Future] = []
    session = small.start(store, train=TRAIN)
    session.on_log = At(6, lambda: asked.append(session.control.fork(learning_rate=1e-4)))
    session.run(progress=False)
    fork = asked[0].result(timeout=1)
    by_hand = small.start(store, train=TRAIN)
    by_hand.run(steps=6, progress=False)
    twin = by_hand.fork(learning_rate=1e-4, progress=False).run(progress=False)
    assert fork.finished
    assert small.same(small.state(fork), small.state(twin))
    assert not small.same(small.state(fork), small.state(session))
    assert fork.log["step"].to_list() == list(range(1, STEPS + 1))


def test_the_loop_goes_on_with_a_fork_when_the_first_is_stopped(store):
    session = small.start(store, train=TRAIN)

    def fork_and_stop():
        session.control.fork(learning_rate=1e-4)
        session.control.stop()

    session.on_log = At(6, fork_and_stop)
    forks = []
    fork = session.fork
    session.fork = lambda **what: forks.append(fork(**what)) or forks[-1]
    session.run(progress=False)
    assert session.step == 6
    assert forks[0].finished


def test_a_setting_that_may_not_change_is_refused_and_training_goes_on(store):
    asked: list[Future] = []
    session = small.start(store, train=TRAIN)
    session.on_log = At(6, lambda: asked.append(session.control.fork(seed=3)))
    session.run(progress=False)
    assert session.finished
    with pytest.raises(ConfigError, match="seed cannot change"):
        asked[0].result(timeout=1)


def test_orders_to_a_session_that_does_not_run(store, tmp_path):
    session = small.start(store, train=TRAIN)
    for order in (session.control.pause, session.control.proceed, session.control.stop):
        with pytest.raises(ConfigError, match="not running"):
            order()
    with pytest.raises(ConfigError, match="no folder of its own"):
        session.control.save()
    assert session.control.save(tmp_path / "one").result(timeout=1) == tmp_path / "one"
    with pytest.raises(PathExistsError):
        small.start(store, train=TRAIN).control.save(tmp_path / "one").result(timeout=1)
    assert session.control.fork(learning_rate=1e-4).result(timeout=1).train.learning_rate == 1e-4


def test_orders_left_when_a_run_fails_are_refused(store):
    session = small.start(store, train=TRAIN)
    asked: list[Future] = []

    def ask_and_fail(line):
        asked.append(session.control.fork(learning_rate=1e-4))
        raise OSError("the disk is full")

    session.on_log = ask_and_fail
    with pytest.raises(OSError, match="disk"):
        session.run(progress=False)
    with pytest.raises(ConfigError, match="ended before"):
        asked[0].result(timeout=1)
    assert session.control.state == "idle"


def test_one_of_several_is_stopped_and_the_others_end_as_if_alone(store):
    alone = small.start(store, train=TRAIN).run(progress=False)
    one, other = small.start(store, train=TRAIN), small.start(store, train=TRAIN)
    one.on_log = At(6, one.control.stop)
    ns.train_together([one, other], progress=False)
    assert (one.step, one.stopped_early, other.finished, other.stopped_early) == (6, True, True, False)
    assert small.same(small.state(other), small.state(alone))


def test_one_site_of_many_is_stopped_and_goes_on_later(store, monkeypatch):
    monkeypatch.setattr("nb_sae.sae.many.TURN_SECONDS", 0.0)
    stores = {name: ns.ActivationStore.from_tensor(small.rows(seed=at)) for at, name in enumerate("ab")}
    found = {}

    def stop_a(line):
        if line["site"] == "a" and line["step"] == 4:
            found["trainings"]["a"].session.control.stop()

    run = ns.Trainings.run

    def keep(self, **what):
        found["trainings"] = self
        return run(self, **what)

    monkeypatch.setattr(ns.Trainings, "run", keep)
    trainings = ns.train_all(stores, small.CONFIG, TRAIN, device="cpu", on_log=stop_a, progress=False)
    assert [trainings[site].state for site in "ab"] == ["stopped", "done"]
    assert trainings["a"].step == 4
    assert trainings.run(progress=False).finished


def test_hundred_orders_from_threads_are_all_answered_and_change_nothing(store):
    bare = small.start(store, train=TRAIN).run(progress=False)
    session = small.start(store, train=TRAIN)
    asked: list[Future] = []
    going = threading.Event()

    def pester():
        while not going.is_set():
            asked.append(session.control.change(log_every=1))
            time.sleep(0.002)

    threads = [later(pester) for _ in range(4)]
    session.run(progress=False)
    going.set()
    for thread in threads:
        thread.join()
    assert len(asked) > 4
    assert all(one.result(timeout=1) is session for one in asked)
    assert small.same(small.state(bare), small.state(session))


def test_a_pause_without_a_loop_costs_nothing():
    border, sessions = Border(), []
    start = time.monotonic()
    border(sessions)
    assert time.monotonic() - start < 0.01
    assert not border.holds


def test_several_processes_are_stopped_together_only(store, monkeypatch):
    session = small.start(store, train=TRAIN)
    monkeypatch.setattr(session.group, "world", 2, raising=False)
    for order in (session.control.pause, session.control.save, session.control.fork, session.control.change):
        with pytest.raises(ConfigError, match="2 train together"):
            order()


def test_a_probe_gives_what_the_dictionary_gives(store):
    from nb_sae.sae.probe import Probe

    session = small.start(store, train=TRAIN).run(progress=False)
    probe = Probe(session, rows=100, seed=3)
    look = probe.look(session)
    x = store[probe.rows]
    dictionary = session.dictionary
    mean = torch.as_tensor(session.target_mean).float()
    for at, k in enumerate(look.ks):
        x_hat = dictionary.decode(dictionary.encode(x, k=k))
        assert look.fvu[at] == pytest.approx(float((x - x_hat).square().sum() / (x - mean).square().sum()), rel=1e-4)
        error = (x - x_hat)[probe.shown].square().sum(-1) / (x - mean)[probe.shown].square().sum(-1)
        torch.testing.assert_close(torch.as_tensor(look.explained[:, at]).float(), 1 - error, rtol=1e-3, atol=1e-4)
    assert probe.input_ids == probe.rows.tolist()
    assert look.ks == session.config.budgets


@pytest.mark.parametrize("name", ["relu", "jump_relu", "batch_top_k", "gated"])
def test_a_probe_of_a_rule_that_sets_no_k_has_one_level(store, name):
    from nb_sae.sae.probe import Probe

    session = small.start(store, small.CONFIGS[name], TRAIN).run(progress=False)
    look = Probe(session, rows=50).look(session)
    assert look.ks == (None,)
    assert look.x_hat.shape == (8, 1, 8)


def test_a_source_without_rows_by_number_gives_no_probe(store):
    from nb_sae.errors import StoreError
    from nb_sae.sae.probe import Probe

    class Stream(small.Rows):
        def __getitem__(self, rows):
            raise StoreError("A stream keeps no rows.")

    with pytest.raises(StoreError, match="keeps no rows"):
        Probe(small.start(Stream.from_tensor(small.rows())))


def test_a_split_dictionary_is_not_looked_at_by_one_process_alone(store, monkeypatch):
    from nb_sae.sae.probe import Probe

    session = small.start(store, train=TRAIN)
    monkeypatch.setattr(session.group, "latent_shares", 2, raising=False)
    with pytest.raises(ConfigError, match="one of 2 parts"):
        Probe(session)


# What drops out, and what fails


@pytest.mark.parametrize(
    ("given", "said"), [({"a": 1}, r"a dict; .*list\(sessions.values\(\)\)"), (3, "a int"), ([1], "a list")]
)
def test_what_is_no_list_of_sessions_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        ns.train_together(given)


def test_one_that_was_stopped_is_saved_and_hears_while_the_others_go_on(store, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    one, other = (small.start(store, train=TRAIN, save_to=at, save_every_rows=10**9) for at in folders)
    seen = []

    def look():
        forked = one.control.fork(learning_rate=1e-4).result(timeout=1)
        seen.append((one.control.state, ns.Session.load(folders[0], device="cpu").step, forked.step))

    one.on_log, other.on_log = At(6, one.control.stop), At(9, look)
    ns.train_together([one, other], progress=False)
    assert seen == [("idle", 6, 6)]
    assert other.finished


def test_those_beside_one_that_fails_are_saved_and_stand_ready(store, tmp_path):
    def fail(line):
        if line["step"] == 7:
            raise OSError("the disk is full")

    one = small.start(store, train=TRAIN, on_log=fail)
    other = small.start(store, train=TRAIN, save_to=tmp_path / "own", save_every_rows=10**9)
    with pytest.raises(OSError, match="disk"):
        ns.train_together([one, other], progress=False)
    loaded = ns.Session.load(tmp_path / "own", store, device="cpu")
    assert (loaded.step, other.step, other.stopped_early) == (7, 7, True)
    loaded.run(progress=False)
    assert small.same(small.state(loaded), small.state(small.start(store, train=TRAIN).run(progress=False)))


def test_a_fork_leaves_its_origin_as_it_would_have_been(store):
    bare = small.start(store, train=TRAIN).run(progress=False)
    session = small.start(store, train=TRAIN)
    session.on_log = At(6, lambda: session.control.fork(learning_rate=1e-2, budgets=(2, 8)))
    session.run(progress=False)
    assert small.same(small.state(bare), small.state(session))


@pytest.mark.parametrize("together", [False, True])
def test_a_failed_step_that_a_save_finds_ends_the_run(tmp_path, together):
    source = small.Rows.from_tensor(small.rows())
    source.spoil = lambda epoch, number, batch: (  # pyright: ignore[reportAttributeAccessIssue]
        batch * float("nan") if (epoch, number) == (0, 4) else batch
    )
    train = ns.TrainConfig(rows=32 * STEPS, batch_rows=32, dead_after_rows=200, log_every=10**6)
    session = small.start(source, train=train)
    take_step, asked = session.take_step, []

    def step(*given, **named):
        take_step(*given, **named)
        if session.step == 6:  # no line of the log is due before the end
            asked.append(session.control.save(tmp_path / "one"))

    session.take_step = step
    others = [small.start(source, train=train)] if together else []
    with pytest.raises(NonFiniteError, match="at step 4"):
        ns.train_together([session, *others], progress=False)
    assert session.step == 4
    with pytest.raises(NonFiniteError):
        asked[0].result(timeout=1)
    assert not (tmp_path / "one" / "session.json").exists()


def test_a_run_goes_on_where_who_watches_it_fails(store):
    class Blind:
        def __call__(self, line): ...

        def watch(self, session, name=None):
            raise RuntimeError("no screen")

    session = small.start(store, train=TRAIN, on_log=Blind())
    with pytest.warns(UserWarning, match="not watched: RuntimeError: no screen"):
        session.run(progress=False)
    assert session.finished


def test_orders_that_come_faster_than_they_are_done_leave_time_to_train(store):
    session = small.start(store, train=TRAIN)
    asked: list[Future] = []

    def again(_done):
        if session.control.state != "idle" and len(asked) < 1000:
            asked.append(session.control.change(log_every=1))
            asked[-1].add_done_callback(again)

    session.on_log = At(5, lambda: again(None))
    session.run(progress=False)
    assert session.finished
    assert 5 < len(asked) <= STEPS  # one at each border after it began
    assert all(one.result(timeout=1) is session for one in asked)
