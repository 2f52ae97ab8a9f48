"""The training monitor on the Python side: the numbers of the log, little of the time, orders from other threads."""

from __future__ import annotations

import base64
import gc
import io
import json
import math
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import planted
import plotly.graph_objects as go
import polars as pl
import pytest
import sessions as small
import torch
from monitor_fakes import fake_monitor
from PIL import Image
from test_control import TRAIN, At, later, until
from test_widgets_wire import read
from widget_fakes import HOSTILE, built

import nb_sae as ns
from nb_sae.errors import NonFiniteError, WidgetError
from nb_sae.widgets import monitor as module
from nb_sae.widgets import monitor_looks, monitor_runs, wire
from nb_sae.widgets.hearing import hear_while_busy
from nb_sae.widgets.monitor import TrainMonitor
from nb_sae.widgets.picture import MAX_BYTES

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")
FIXTURE = Path(__file__).parent / "fixtures" / "monitor.json"


@pytest.fixture
def store():
    return ns.ActivationStore.from_tensor(small.rows())


def points(monitor: TrainMonitor, run: int = 0) -> dict[str, np.ndarray]:
    name = f"run{run}"
    columns = [one["name"] for one in monitor.points_header["tables"][name]["columns"]]
    return {one: np.asarray(read(monitor.points_header, monitor.points, name, one)) for one in columns}


def ask(monitor: TrainMonitor, kind: str, **what) -> dict:
    """Send a request as the browser does, and give the answer."""
    sent = []
    monitor.send = lambda content, buffers=None: sent.append(content)
    monitor._on_request(None, {"id": 7, "kind": kind, **what}, [])
    return sent[-1]


def at(step: int, act, monitor: TrainMonitor):
    """Let another thread act after a line of the log of the session that `monitor` watches."""
    hand_over = At(step, act)
    watch = monitor.watch

    def watched(session, name=None):
        followed = watch(session, name)
        line = followed.line
        followed.line = lambda record: (line(record), hand_over(record))[0]
        return followed

    monitor.watch = watched
    return monitor


# The numbers


def test_a_monitored_run_gives_the_weights_of_a_bare_one_bit_for_bit(store):
    bare = small.start(store, train=TRAIN).run(progress=False)
    watched = small.start(store, train=TRAIN, on_log=TrainMonitor()).run(progress=False)
    assert small.same(small.state(bare), small.state(watched))
    assert bare.log.drop("seconds").equals(watched.log.drop("seconds"))


@pytest.mark.parametrize("name", sorted(small.CONFIGS))
def test_shown_numbers_are_those_of_the_log(store, name):
    monitor = TrainMonitor()
    session = small.start(store, small.CONFIGS[name], TRAIN, on_log=monitor).run(progress=False)
    log, shown = session.log, points(monitor)
    assert shown["step"].tolist() == log["step"].to_list()
    for column in set(log.columns) - {"step", "rows"}:
        np.testing.assert_array_equal(shown[column], log[column].to_numpy().astype(np.float32))
    [run] = monitor.runs
    assert run["latest"] == session.latest
    assert (run["state"], run["step"], run["steps"], run["left"]) == ("done", 20, 20, 0)
    assert [one["fvu"] for one in run["quality"]] == pytest.approx(session.show()["fvu"].to_list())


def test_kept_points_are_thinned_evenly_and_the_last_is_among_them():
    kept = monitor_runs.Points(100)
    for step in range(1, 1002):
        kept.add({"step": step, "loss": 1 / step})
        assert len(kept) <= 100
        assert kept.frame()["step"][-1] == step
    frame = kept.frame()
    steps = frame["step"].to_numpy()
    assert (np.diff(steps[:-1]) == kept.stride).all()
    assert steps[0] == 1
    assert len(steps) > 50
    np.testing.assert_array_equal(frame["loss"].to_numpy(), 1 / steps)


def test_all_runs_together_keep_no_more_than_two_thousand_points():
    monitor = TrainMonitor()
    for site in "abcde":
        for step in range(1, 1500):
            monitor({"site": site, "step": step, "loss": 1.0})
    assert sum(len(run.points) for run in monitor._runs) <= monitor_runs.KEPT_POINTS
    assert [run.points.frame()["step"][-1] for run in monitor._runs] == [1499] * 5


def test_a_budget_that_is_added_on_the_way_has_no_numbers_before():
    kept = monitor_runs.Points()
    kept.add({"step": 1, "fvu_k2": 0.5})
    kept.add({"step": 2, "fvu_k2": 0.4, "fvu_k4": 0.2})
    assert np.isnan(kept.frame()["fvu_k4"][0])
    assert kept.quality() == [(2, None, "fvu_k2", pytest.approx(0.45)), (4, None, "fvu_k4", 0.2)]


def test_time_left_is_what_is_left_at_the_measured_speed(store):
    monitor = TrainMonitor(look=False)
    session = small.start(store, train=TRAIN, on_log=monitor)
    session.run(steps=10, progress=False)
    [run] = monitor.runs
    assert (run["state"], run["step"]) == ("ready", 10)
    assert run["left"] == pytest.approx(10 * 32 / run["rate"])
    assert run["rate"] == pytest.approx(10 * 32 / session.seconds, rel=0.5)


# Little of the time


def test_updates_come_at_most_four_times_a_second_however_cheap(store, monkeypatch):
    monkeypatch.setattr(module, "SHARE", 1.0)
    monitor = TrainMonitor(look=False)
    sent = []
    bring = monitor._bring
    monkeypatch.setattr(monitor, "_bring", lambda: (sent.append(time.perf_counter()), bring()))
    session = small.start(store, train=TRAIN)
    watch = monitor.watch(session)
    monkeypatch.setattr(session, "control", SimpleNamespace(state="running", stopping=False))
    watch.passed()
    sent.clear()
    end = time.perf_counter() + 1.1
    while time.perf_counter() < end:
        watch.passed()
    assert 2 <= len(sent) <= 5
    assert min(np.diff(sent)) >= 0.25


def test_an_update_that_costs_much_comes_seldom(store, monkeypatch):
    monitor = TrainMonitor(look=False)
    pack = wire.pack

    def slow(frames):
        time.sleep(0.02)
        return pack(frames)

    monkeypatch.setattr(module.wire, "pack", slow)
    monitor._bring()
    assert monitor._due - time.perf_counter() > 0.02 / module.SHARE - 0.5


def test_a_step_between_two_updates_costs_next_to_nothing(store):
    monitor = TrainMonitor(look=False)
    session = small.start(store, train=TRAIN)
    watch = monitor.watch(session)
    monitor._due = math.inf
    started = time.perf_counter()
    for _ in range(10_000):
        watch.passed()
    assert (time.perf_counter() - started) / 10_000 < 20e-6


def test_many_short_runs_are_not_looked_at_each_time(store, monkeypatch):
    monitor = TrainMonitor()
    session = small.start(store, train=TRAIN, on_log=monitor)
    looked = []
    probe = session.probe()

    def look(of):
        looked.append(of.step)
        time.sleep(0.02)
        return type(probe).look(probe, of)

    monkeypatch.setattr(session, "probe", lambda: SimpleNamespace(**vars(probe), look=look))
    for _ in range(20):
        session.run(steps=1, progress=False)
    # The first, the last, and as many between as took a twentieth of the time.
    assert looked[0] == 0
    assert looked[-1] == 20
    assert len(looked) <= 6
    assert points(monitor)["step"].tolist() == list(range(1, 21))


def test_a_saved_view_stays_small(store):
    monitor = TrainMonitor()
    small.start(store, train=TRAIN, on_log=monitor).run(progress=False)
    for step in range(1, 5_000):
        monitor({"site": "long", "step": step, **{f"fvu_k{k}": 0.5 for k in (1, 2, 4, 8, 16, 32)}, "loss": 1.0})
    monitor._bring()
    state = {name: value for name, value in monitor.get_state().items() if name not in ("_esm", "_css")}
    held = [len(base64.b64encode(one)) if isinstance(one, bytes) else len(json.dumps(one)) for one in state.values()]
    assert sum(held) < 250_000


# How it ends


def test_a_run_that_diverges_leaves_what_was_drawn_and_says_why(store):
    class Spoiled(small.Rows):
        def spoil(self, epoch, number, batch):
            return batch * math.nan if (epoch, number) == (1, 2) else batch

    monitor = TrainMonitor()
    session = small.start(Spoiled.from_tensor(small.rows()), train=TRAIN, on_log=monitor)
    with pytest.raises(NonFiniteError):
        session.run(progress=False)
    [run] = monitor.runs
    assert run["state"] == "failed"
    assert "stopped being a number" in run["why"]
    assert points(monitor)["step"].tolist() == session.log["step"].to_list() != []
    session.skip(3)
    session.run(progress=False)
    assert (monitor.runs[0]["state"], monitor.runs[0]["why"]) == ("done", "")
    assert points(monitor)["step"].tolist() == session.log["step"].to_list()


def test_an_interrupt_that_ends_a_run_at_once_is_named(store):
    monitor = TrainMonitor()

    class Killed(small.Rows):
        def spoil(self, epoch, number, batch):
            if (epoch, number) == (0, 5):
                raise KeyboardInterrupt
            return batch

    with pytest.raises(KeyboardInterrupt):
        small.start(Killed.from_tensor(small.rows()), train=TRAIN, on_log=monitor).run(progress=False)
    assert (monitor.runs[0]["state"], monitor.runs[0]["why"]) == ("failed", "an interrupt")


def test_what_fails_in_the_monitor_is_shown_and_ends_no_training(store, monkeypatch):
    monitor = TrainMonitor()
    session = small.start(store, train=TRAIN, on_log=monitor)
    monkeypatch.setattr(monitor_looks.Forming, "follow", lambda *_: 1 / 0)
    session.run(progress=False)
    assert session.finished
    assert any(note["error"] and "ZeroDivisionError" in note["text"] for note in monitor.notes)


def test_a_stream_is_trained_without_a_look_and_it_is_said(store):
    class Stream(small.Rows):
        def __getitem__(self, rows):
            raise ns.errors.StoreError("A stream keeps no rows.")

    monitor = TrainMonitor()
    small.start(Stream.from_tensor(small.rows()), train=TRAIN, on_log=monitor).run(progress=False)
    assert [note["text"] for note in monitor.notes if "No look at rows" in note["text"]]
    assert set(monitor.looks_header["tables"]) <= {"inputs"}


def test_a_monitor_keeps_no_session_alive(store):
    monitor = TrainMonitor()
    session = small.start(store, train=TRAIN, on_log=monitor).run(progress=False)
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None
    assert "not there any more" in ask(monitor, "save", run=0, folder="x")["error"]["cause"]
    assert monitor.quality["MSAE 2…4, 32 latents"].height == 2


# Orders


def test_pause_and_proceed_from_the_browser(store):
    monitor = TrainMonitor(look=False)
    bare = small.start(store, train=TRAIN).run(progress=False)
    session = small.start(store, train=TRAIN, on_log=at(5, lambda: ask(monitor, "pause", run=0), monitor))
    seen = []

    def go_on():
        until(lambda: monitor.runs and monitor.runs[0]["state"] == "paused")
        seen.append(monitor.runs[0]["step"])
        ask(monitor, "proceed", run=0)

    thread = later(go_on)
    session.run(progress=False)
    thread.join()
    assert seen == [5]
    assert monitor.runs[0]["state"] == "done"
    assert small.same(small.state(session), small.state(bare))


def test_stop_from_the_browser(store):
    monitor = TrainMonitor(look=False)
    session = small.start(store, train=TRAIN, on_log=at(6, lambda: ask(monitor, "stop", run=0), monitor))
    session.run(progress=False)
    assert (session.step, monitor.runs[0]["state"]) == (6, "stopped")


def test_save_and_fork_from_the_browser_are_done_between_two_steps_and_noted(store, tmp_path):
    monitor = TrainMonitor(look=False)
    answers = []

    def act():
        answers.append(ask(monitor, "save", run=0, folder=str(tmp_path / "one")))
        answers.append(ask(monitor, "fork", run=0, settings={"learning_rate": "0.0001"}))

    session = small.start(store, train=TRAIN, on_log=at(6, act, monitor))
    session.run(progress=False)
    assert [one["ok"] for one in answers] == [True, True]
    assert [note["error"] for note in monitor.notes] == [False, False]
    assert "saved at step 6" in monitor.notes[0]["text"]
    assert monitor.saved == [tmp_path / "one"]
    assert str(tmp_path) not in json.dumps([monitor.notes, monitor.runs, monitor.about])
    assert ask(monitor, "place", run=0)["folder"] == "runs/msae-2-4-32-latents-step-20"
    assert ns.Session.load(tmp_path / "one", device="cpu").step == 6
    [(name, fork)] = monitor.forks.items()
    assert name == "MSAE 2…4, 32 latents · learning_rate=0.0001"
    assert fork.train.learning_rate == 1e-4
    assert fork.finished
    assert [run["name"] for run in monitor.runs] == ["MSAE 2…4, 32 latents", name]
    assert points(monitor, 1)["step"].tolist() == fork.log["step"].to_list()


def test_an_order_that_cannot_be_done_is_noted_and_training_goes_on(store):
    monitor = TrainMonitor(look=False)
    wanted = {"seed": "3"}
    session = small.start(
        store, train=TRAIN, on_log=at(6, lambda: ask(monitor, "fork", run=0, settings=wanted), monitor)
    )
    session.run(progress=False)
    assert session.finished
    [note] = monitor.notes
    assert note["error"]
    assert "seed cannot change" in note["text"]
    assert note["asked"] == 7


def test_requests_that_make_no_sense_are_answered(store, tmp_path):
    monitor = TrainMonitor()
    session = small.start(store, train=TRAIN, on_log=monitor).run(progress=False)
    for kind, what, said in (
        ("pause", {"run": 0}, "not running"),
        ("pause", {"run": 3}, "no run 3"),
        ("pause", {"run": "x"}, "no run"),
        ("save", {"run": 0, "folder": " "}, "Give a folder"),
        ("fork", {"run": 0}, "Name a setting"),
        ("fork", {"run": 0, "settings": {}}, "Name a setting"),
        ("dance", {"run": 0}, "no request of kind"),
    ):
        answer = ask(monitor, kind, **what)
        assert answer["ok"] is False
        assert said in answer["error"]["cause"]
    settings = ask(monitor, "settings", run=0)["settings"]
    assert settings["learning_rate"] == session.train.learning_rate
    assert "seed" not in settings


@pytest.mark.parametrize(
    ("typed", "value"),
    [("0.001", 0.001), ("None", None), ("2, 4", (2, 4)), ("[2, 4]", [2, 4]), ("uniform", "uniform"),
     ("__import__('os')", "__import__('os')")],
)  # fmt: skip
def test_a_typed_setting_is_read_as_a_value_and_never_run(typed, value):
    assert module._value(typed) == value


def test_messages_go_to_the_subshell_that_the_front_end_asks_for():
    spoke_last = SimpleNamespace(_reply_subshell_for=lambda data, asked: None)  # as ipykernel 7.4 routes them
    widget = SimpleNamespace(comm=spoke_last)
    hear_while_busy(widget)
    assert widget.comm._reply_subshell_for({}, "a subshell") == "a subshell"
    assert widget.comm._reply_subshell_for({}, None) is None
    hear_while_busy(SimpleNamespace(comm=None))  # no kernel, no comm


# Several


def test_sessions_that_train_together_stand_beside_each_other(store):
    monitor = TrainMonitor()
    one, two = (small.start(store, train=TRAIN, on_log=monitor) for _ in range(2))
    ns.train_together([one, two], progress=False)
    assert [run["name"] for run in monitor.runs] == ["MSAE 2…4, 32 latents", "MSAE 2…4, 32 latents (2)"]
    assert [run["state"] for run in monitor.runs] == ["done", "done"]
    figure = ns.plots.pareto(monitor.quality)
    assert isinstance(figure, go.Figure)
    assert [list(trace.y) for trace in figure.data] == [  # pyright: ignore[reportAttributeAccessIssue]
        pytest.approx(session.show()["fvu"].to_list()) for session in (one, two)
    ]


def test_sites_that_train_in_turns_are_named(monkeypatch):
    stores = {name: ns.ActivationStore.from_tensor(small.rows(seed=at)) for at, name in enumerate("ab")}
    monitor = TrainMonitor()
    trainings = ns.train_all(stores, small.CONFIG, TRAIN, device="cpu", on_log=monitor, progress=False)
    assert [run["name"] for run in monitor.runs] == ["a", "b"]
    assert [run["latest"] for run in monitor.runs] == [trainings[site].latest for site in "ab"]


def test_sessions_that_are_done_are_shown_by_name(store):
    one, two = (small.start(store, train=TRAIN).run(progress=False) for _ in range(2))
    monitor = TrainMonitor({"before": one, "after": two}, title="Two")
    assert [(run["name"], run["state"]) for run in monitor.runs] == [("before", "done"), ("after", "done")]
    assert points(monitor, 1)["step"].tolist() == two.log["step"].to_list()


def test_a_rule_that_sets_no_k_stands_at_its_measured_l0(store):
    monitor = TrainMonitor()
    session = small.start(store, small.CONFIGS["relu"], TRAIN, on_log=monitor).run(progress=False)
    [frame] = monitor.quality.values()
    assert frame["k"].to_list() == [None]
    assert frame["l0"][0] == pytest.approx(session.log["l0"].tail(10).mean())
    assert len(ns.plots.pareto(monitor.quality).data) == 1  # pyright: ignore[reportArgumentType]


# Looks


def look(values: list[list[float]], indices: list[list[int]]) -> SimpleNamespace:
    return SimpleNamespace(values=np.asarray(values, np.float32), indices=np.asarray(indices))


def test_latents_are_chosen_by_the_rule_and_replaced_when_they_fall_silent():
    forming = monitor_looks.Forming()
    rows = 16
    # Latent 0 is everywhere, 1 on one row, 2 on four, 3 on three.
    values, indices = np.zeros((rows, 2)), np.zeros((rows, 2), int)
    values[:, 0] = 1
    indices[:4, 1], values[:4, 1] = 2, [1, 4, 3, 2]
    indices[4:7, 1], values[4:7, 1] = 3, 1
    indices[7, 1], values[7, 1] = 1, 9
    first = forming.follow(look(values.tolist(), indices.tolist()))
    assert first["latent"].to_list() == [2, 3]
    assert first["rows"].to_list()[0] == [1, 2, 3, 0]
    assert first["acts"].to_list()[0] == [4, 3, 2, 1]
    assert first["kept"].to_list() == [None, None]
    values[:4, 1] = 0
    second = forming.follow(look(values.tolist(), indices.tolist()))
    assert second["latent"].to_list() == [3]
    assert second["kept"].to_list() == [3.0]
    assert second["chance"].to_list() == pytest.approx([9 / 16])


def test_named_latents_stay_though_they_are_silent():
    forming = monitor_looks.Forming([7])
    frame = forming.follow(look([[0.0]] * 4, [[0]] * 4))
    assert frame["latent"].to_list() == [7]
    assert (frame["active"][0], frame["rows"].to_list()) == (0, [[]])


def test_strongest_rows_that_are_random_stay_as_often_as_chance_says():
    rng = np.random.default_rng(0)
    forming, kept, chance = monitor_looks.Forming([0]), [], []
    for _ in range(300):
        frame = forming.follow(look(rng.random((64, 1)).tolist(), [[0]] * 64))
        if frame["kept"][0] is not None:
            kept.append(frame["kept"][0])
            chance.append(frame["chance"][0])
    assert np.mean(kept) == pytest.approx(np.mean(chance), abs=4 * np.std(kept) / len(kept) ** 0.5)


def test_after_training_on_planted_atoms_the_strongest_rows_of_a_latent_share_an_atom():
    x, truth = planted.sparse_rows(planted.atoms(32, 16), 2000, active=2)
    store = ns.ActivationStore.from_tensor(x)
    monitor = TrainMonitor()
    config, train = ns.SAEConfig.topk(k=2, d_sae=64), ns.TrainConfig(rows=60_000, batch_rows=200)
    small.start(store, config, train, on_log=monitor).run(progress=False)
    assert monitor.looks_header["tables"]["forming0"]["rows"] == monitor_looks.FEATURES
    shared = []
    for lists in read(monitor.looks_header, monitor.looks, "forming0", "rows"):
        ids = [int(read(monitor.looks_header, monitor.looks, "inputs", "input_id")[row]) for row in lists]
        shared.append(int((truth[ids] > 0).sum(0).max()) / len(ids))
    chance = torch.stack([(truth[torch.randperm(2000)[:4]] > 0).sum(0).max() / 4 for _ in range(100)]).mean()
    assert float(chance) < 0.5
    assert np.mean(shared) > 0.85


def test_inputs_are_shown_once_each_and_what_cannot_be_read_has_no_picture(store):
    class Pictures:
        modality, name, keys = "image", "drawn", [f"{number}.png" for number in range(400)]

        def __len__(self):
            return 400

        def __getitem__(self, number):
            if number % 7 == 0:
                raise ns.errors.InputError("broken")
            return Image.new("RGB", (300, 200), (number % 255, 90, 90))

    monitor = TrainMonitor(inputs=Pictures())
    small.start(store, train=TRAIN, on_log=monitor).run(progress=False)
    ids = read(monitor.looks_header, monitor.looks, "inputs", "input_id")
    thumbs = read(monitor.looks_header, monitor.looks, "inputs", "thumb")
    assert [int(one) >= 0 for one in thumbs] == [int(one) % 7 != 0 for one in ids]
    ends = monitor.thumbs_header["ends"]
    first = Image.open(io.BytesIO(monitor.thumbs[: ends[0]]))
    assert max(first.size) <= 96


# Display, bad input


def test_picture_and_summary_say_where_each_run_stands(store):
    monitor = TrainMonitor(title=HOSTILE[0])
    assert "0 runs" in monitor._summary()
    empty = monitor.picture()
    small.start(store, train=TRAIN, on_log=monitor).run(progress=False)
    for number, name in enumerate(HOSTILE):
        monitor({"site": name, "step": number + 1, "fvu_k4": 0.5})
    drawn = monitor.picture()
    assert drawn != empty
    assert len(drawn) <= MAX_BYTES
    assert Image.open(io.BytesIO(drawn)).width == 1800
    assert "done at step 20 of 20, FVU k = 2" in monitor._summary()
    assert "\x1b" not in monitor._summary()


def test_the_picture_in_the_notebook_is_drawn_anew_at_the_end(store, monkeypatch):
    updated = []
    monitor = TrainMonitor()
    monitor._shown = SimpleNamespace(update=lambda bundle, **about: updated.append(bundle["text/plain"]))
    small.start(store, train=TRAIN, on_log=monitor).run(progress=False)
    assert len(updated) == 1
    assert "done at step 20" in updated[0]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"sessions": [3]}, "given a int; expected sessions"),
        ({"latents": "12"}, "expected numbers of latents"),
        ({"latents": [-1]}, "expected numbers of latents"),
        ({"inputs": 3}, "Give the images or texts"),
    ],
)
def test_what_is_no_session_latent_or_input_is_refused(what, said):
    with pytest.raises(WidgetError, match=said):
        TrainMonitor(**what)


def test_a_line_without_a_step_is_refused():
    with pytest.raises(WidgetError, match="has a step"):
        TrainMonitor()({"loss": 1.0})


def test_more_runs_than_fit_are_refused():
    monitor = TrainMonitor()
    for number in range(module.MOST_RUNS):
        monitor({"site": f"{number}", "step": 1})
    with pytest.raises(WidgetError, match="at most 16"):
        monitor({"site": "more", "step": 1})


def test_two_threads_may_train_into_one_monitor(store):
    monitor = TrainMonitor()
    sessions = [small.start(store, train=TRAIN, on_log=monitor) for _ in range(2)]
    threads = [threading.Thread(target=one.run, kwargs={"progress": False}) for one in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run["state"] for run in monitor.runs] == ["done", "done"]
    for number, run in enumerate(monitor._runs):
        assert points(monitor, number)["step"].tolist() == run.session.log["step"].to_list()


def test_frames_of_a_look_can_be_packed_for_every_rule(store):
    for config in small.CONFIGS.values():
        monitor = TrainMonitor()
        small.start(store, config, TRAIN, on_log=monitor).run(progress=False)
        assert [note for note in monitor.notes if note["error"]] == []
        tables = monitor.looks_header["tables"]
        assert tables["sample0"]["rows"] == 8
        assert isinstance(pl.DataFrame({"k": read(monitor.looks_header, monitor.looks, "levels0", "k")}), pl.DataFrame)


# The contract with the browser's side


def fixture() -> dict:
    """A monitor of two runs as the browser gets it; names are hostile."""
    monitor = fake_monitor(2, pictures=False, step=40)
    monitor({"site": HOSTILE[0], "step": 7, "fvu_k4": 0.5, "loss": 0.25})
    monitor._note("one", HOSTILE[1], error=True)
    monitor._bring()
    names = ("about", "runs", "notes", "points_header", "points", "looks_header", "looks", "thumbs_header", "thumbs")
    state = {name: getattr(monitor, name) for name in names}
    state["notes"] = [{**note, "at": 0.0} for note in state["notes"]]
    binary = [name for name, value in state.items() if isinstance(value, bytes)]
    return {
        "state": {n: base64.b64encode(v).decode() if isinstance(v, bytes) else v for n, v in state.items()},
        "binary": binary,
    }


def test_the_committed_fixture_is_what_python_writes():
    committed = json.loads(FIXTURE.read_text(encoding="utf-8"))
    made = json.loads(json.dumps(fixture()))
    assert committed == made, "python tests/test_widgets_monitor.py writes it anew; vitest must then pass as well"


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(fixture(), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
