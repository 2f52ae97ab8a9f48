"""What goes wrong in a training monitor, or costs too much, is seldom tried again and takes no training with it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import sessions as small
import torch
from monitor_fakes import fake_monitor
from test_control import TRAIN, until
from test_widgets_monitor import points
from test_widgets_wire import read
from widget_fakes import built

import nb_sae as ns
from nb_sae.errors import ConfigError, WidgetError
from nb_sae.widgets import monitor as module
from nb_sae.widgets import monitor_looks, wire
from nb_sae.widgets.monitor import TrainMonitor
from nb_sae.widgets.monitor_inputs import MonitorInputs

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")


@pytest.fixture
def store():
    return ns.ActivationStore.from_tensor(small.rows())


def failing(calls: Counter, what: str):
    def fail(*_, **__):
        calls[what] += 1
        raise RuntimeError(what)

    return fail


def test_a_look_that_fails_is_the_last_of_its_run_is_said_and_the_numbers_go_on(store, monkeypatch):
    calls = Counter()
    monkeypatch.setattr(monitor_looks.Forming, "follow", failing(calls, "no rows"))
    monkeypatch.setattr(module, "UPDATES_PER_SECOND", 1e9)
    monkeypatch.setattr(module, "SHARE", 1e9)  # an update is due at every step
    monitor = TrainMonitor()
    session = small.start(store, train=TRAIN, on_log=monitor)
    seen = []
    passed = module._Watch.passed
    monkeypatch.setattr(module._Watch, "passed", lambda own: (passed(own), seen.append(monitor.runs[0]["step"])))
    session.run(progress=False)
    assert calls["no rows"] == 1
    assert seen == list(range(1, 21))
    assert [note["text"] for note in monitor.notes] == ["Not shown: RuntimeError: no rows"]
    assert points(monitor)["step"].tolist() == session.log["step"].to_list()


def test_an_update_that_fails_is_not_tried_at_every_step(store, monkeypatch):
    calls = Counter()
    monitor = TrainMonitor(look=False)
    monkeypatch.setattr(wire, "pack", failing(calls, "no wire"))
    session = small.start(store, train=TRAIN, on_log=monitor).run(progress=False)
    assert session.finished
    assert calls["no wire"] < 10


def test_a_picture_that_cannot_be_drawn_is_not_tried_at_every_update(store, monkeypatch):
    calls = Counter()
    monitor = TrainMonitor(look=False)
    monitor._shown = SimpleNamespace(update=failing(calls, "no screen"))
    monitor._picture_due = 0.0
    watch = monitor.watch(small.start(store, train=TRAIN))
    for _ in range(5):
        watch.changed()
    assert calls["no screen"] == 1
    assert [note["text"] for note in monitor.notes] == ["Not shown: RuntimeError: no screen"]


def test_sites_beyond_what_a_monitor_shows_are_trained_all_the_same():
    count = module.MOST_RUNS + 2
    stores = {f"site{at}": ns.ActivationStore.from_tensor(small.rows(64, seed=at)) for at in range(count)}
    train = ns.TrainConfig(rows=64, batch_rows=32)
    monitor = TrainMonitor(look=False)
    with pytest.warns(UserWarning, match="not watched: WidgetError: A monitor shows at most 16 runs"):
        trainings = ns.train_all(stores, small.CONFIG, train, device="cpu", on_log=monitor, progress=False)
    assert trainings.finished
    assert not trainings.failed
    assert len(monitor.runs) == module.MOST_RUNS


def test_a_fork_beyond_what_a_monitor_shows_ends_no_training(store):
    monitor = TrainMonitor(look=False)
    for number in range(module.MOST_RUNS - 1):
        monitor({"site": f"{number}", "step": 1})
    session = small.start(store, train=TRAIN, on_log=monitor)
    forked = []
    passed = session.take_step

    def step(*given, **named):
        passed(*given, **named)
        if session.step == 5:
            forked.append(session.control.fork(learning_rate=1e-4))

    session.take_step = step
    with pytest.warns(UserWarning, match="not watched"):
        session.run(progress=False)
    assert session.finished
    assert forked[0].result(timeout=1).finished


def test_an_input_is_read_once_however_often_it_is_looked_at():
    read_times = Counter()

    class Texts:
        modality, keys = "text", [f"{at}" for at in range(4)]

        def __len__(self):
            return 4

        def __getitem__(self, number):
            read_times[number] += 1
            return f"text {number}"

    inputs = MonitorInputs(Texts())
    for _ in range(3):
        assert inputs.cut([(0, 0), (1, 2), (1, 3)])[0]["text"].to_list() == ["text 0", "text 1", "text 1"]
    assert read_times == {0: 1, 1: 1}


@pytest.mark.parametrize("error", [SyntaxError("broken PNG"), ValueError("no image"), KeyError("gone")])
def test_an_input_that_cannot_be_read_leaves_the_look(store, error):
    class Broken:
        modality, keys = "image", ()

        def __len__(self):
            return 10**6

        def __getitem__(self, number):
            raise error

    monitor = TrainMonitor(inputs=Broken())
    small.start(store, train=TRAIN, on_log=monitor).run(progress=False)
    assert list(monitor.notes) == []
    assert set(read(monitor.looks_header, monitor.looks, "inputs", "thumb")) == {-1}


def test_numbers_of_an_own_loop_may_be_those_of_numpy():
    monitor = TrainMonitor()
    monitor({"step": np.int64(3), "loss": np.float32(0.5), "l0": np.float64(2.0)})
    until(lambda: monitor.runs and monitor.runs[0]["latest"])
    with monitor._sending:
        shown = {name: values.tolist() for name, values in points(monitor).items()}
    assert shown == {"step": [3], "loss": [0.5], "l0": [2.0]}


def test_the_last_line_of_an_own_loop_comes_though_nobody_says_that_it_is_the_last():
    monitor = TrainMonitor()
    for step in range(1, 51):
        monitor({"step": step, "loss": 1 / step})
    until(lambda: monitor.runs and monitor.runs[0]["latest"]["step"] == 50)
    with monitor._sending:
        assert points(monitor)["step"].tolist() == list(range(1, 51))
    for _ in range(100):
        monitor({"step": 51, "loss": 0.5})
    assert sum(isinstance(one, threading.Timer) for one in threading.enumerate()) <= 1


def test_runs_side_by_side_share_what_looks_may_take(monkeypatch):
    def wait(runs: int) -> float:
        monitor = fake_monitor(runs, pictures=False)
        for one in monitor.held:
            one.control.state = "running"
            one.step = 300
        monitor._bring()
        watch = monitor._watches[monitor._runs[0].name]
        probe = watch._probe
        look = type(probe).look
        watch._probe = SimpleNamespace(
            **{name: getattr(probe, name) for name in ("rows", "shown", "input_ids", "tokens")},
            look=lambda of: (time.sleep(0.1), look(probe, of))[1],
        )
        watch._look(0.0)
        return watch._look_due - time.perf_counter()

    alone, beside = wait(1), wait(4)
    assert beside / alone == pytest.approx(4, rel=0.4)


def test_watching_draws_no_random_number_and_leaves_gradients_on(store):
    before, numbers = torch.get_rng_state(), str(np.random.get_state(legacy=False))
    small.start(store, train=TRAIN, on_log=TrainMonitor()).run(progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state(legacy=False)) == numbers
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("what", "said"),
    [({"sessions": 3}, r"given a int; expected sessions in a list.*on_log=monitor"), ({"save_to": 3}, "save_to=3")],
)
def test_what_a_monitor_cannot_take_is_refused(what, said):
    with pytest.raises(WidgetError, match=said):
        TrainMonitor(**what)


def test_a_session_that_is_given_alone_is_told_where_it_belongs(store):
    with pytest.raises(WidgetError, match="given a Session; expected sessions in a list"):
        TrainMonitor(small.start(store))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("on_log", "said"), [(TrainMonitor, r"on_log=TrainMonitor\(\)"), (3, "cannot be called")])
def test_a_monitor_without_its_brackets_is_refused_where_it_is_given(store, on_log, said):
    with pytest.raises(ConfigError, match=said):
        small.start(store, on_log=on_log)
    with pytest.raises(ConfigError, match=said):
        small.start(store).fork(on_log=on_log)
    with pytest.raises(ConfigError, match=said):
        ns.train_all({"a": store}, small.CONFIG, on_log=on_log)
