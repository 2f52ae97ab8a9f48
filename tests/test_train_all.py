"""One dictionary per site: as if trained alone, in turns, within a budget, stopped, killed and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from sessions import CONFIG, TRAIN, Rows, rows, same, start, state

import nb_sae as ns
from nb_sae.errors import ConfigError, NonFiniteError, NotEnoughMemoryError, PathExistsError, StoreError
from nb_sae.sae import many
from nb_sae.sae.many import train_all

HERE = Path(__file__).parent
SITES = ("blocks.0", "blocks.1", "blocks.2")


def stores(kind=ns.ActivationStore, sites=SITES) -> dict[str, ns.ActivationStore]:
    return {site: kind.from_tensor(rows(seed=number), site=site) for number, site in enumerate(sites, start=1)}


def train(given=None, config=CONFIG, plan=TRAIN, **others):
    return train_all(stores() if given is None else given, config, plan, device="cpu", progress=False, **others)


@pytest.fixture
def every_step(monkeypatch):
    """A turn is one step."""
    monkeypatch.setattr(many, "TURN_SECONDS", 0.0)


def interrupt_at(site, step):
    def on_log(line):
        if (line["site"], line["step"]) == (site, step):
            os.kill(os.getpid(), signal.SIGINT)

    return on_log


# --- what is trained ---


def test_every_site_ends_as_if_it_had_been_trained_alone(every_step):
    trainings = train()
    assert trainings.finished
    assert list(trainings.dictionaries) == list(SITES)
    for site, store in stores().items():
        alone = start(store).run(progress=False)
        assert same(state(trainings[site].session), state(alone))
        assert torch.equal(trainings.dictionaries[site].W_dec, alone.dictionary.W_dec)
        assert trainings.dictionaries[site].site == site
        assert trainings[site].log.drop("seconds").equals(alone.log.drop("seconds"))


def test_sites_may_have_settings_of_their_own_and_are_named_by_their_stores():
    configs = dict.fromkeys(SITES, CONFIG) | {"blocks.1": ns.SAEConfig.topk(3, d_sae=16)}
    trainings = train(list(stores().values()), configs)
    assert {site: one.d_sae for site, one in trainings.dictionaries.items()} == {
        "blocks.0": 32, "blocks.1": 16, "blocks.2": 32,
    }  # fmt: skip
    assert trainings["blocks.1"].dictionary.budgets == (3,)


def test_sites_advance_in_turns_and_can_be_looked_at_meanwhile(every_step):
    seen = []
    train(on_log=lambda line: seen.append((line["step"], line["site"])), plan=replace(TRAIN, log_every=5))
    assert seen == [(step, site) for step in (5, 10, 15, 20) for site in SITES]


# --- the grid ---


def test_the_grid_says_where_every_site_stands(every_step):
    trainings = train(on_log=interrupt_at("blocks.1", 7))
    frame = trainings.frame
    assert frame["site"].to_list() == list(SITES)
    assert frame["state"].to_list() == ["stopped"] * 3
    assert frame["step"].to_list() == [7, 7, 6]
    assert frame["rows"].to_list() == [7 * 32, 7 * 32, 6 * 32]
    last = trainings["blocks.0"].session.log.row(-1, named=True)
    assert frame["fvu"][0] == last["fvu_k4"]
    assert (frame["l0"][0], frame["dead"][0]) == (last["l0"], last["dead"])
    # What the others take is not in its rate.
    assert frame["rows_per_second"][0] == pytest.approx(last["rows"] / last["seconds"])
    log = trainings.log
    assert log.columns[0] == "site"
    assert log.group_by("site", maintain_order=True).agg(pl.col("step").max())["step"].to_list() == [7, 7, 6]


def test_the_grid_shows_as_text_and_as_html_that_is_escaped():
    given = {"<b>": ns.ActivationStore.from_tensor(rows(), site="<b>")}
    trainings = train(given)
    text = repr(trainings)
    assert text.splitlines()[0].split() == ["site", "state", "step", "rows", "fvu", "l0", "dead", "rows/s", "latents"]
    assert "<b>" in text
    assert "20 of 20" in text
    page = trainings._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert page.count("<tr>") == 2


def test_a_notebook_shows_the_grid_below_the_bar(monkeypatch):
    shown = []

    class Display:
        def display(self, bundle, **others):
            shown.append(bundle)
            return self

        def update(self, bundle, **others):
            shown.append(bundle)

    pytest.importorskip("IPython")
    monkeypatch.setattr("nb_sae.progress.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", Display().display)
    train_all(stores(), CONFIG, TRAIN, device="cpu")
    assert all(site in shown[-1]["text/html"] for site in SITES)
    assert shown[-1]["text/html"].count(">done<") == 3
    assert "train 3 dictionaries" in shown[-1]["text/plain"]


# --- stopping and going on ---


def test_an_interrupt_keeps_everything_and_running_again_goes_on_bit_for_bit(every_step):
    trainings = train(on_log=interrupt_at("blocks.1", 7))
    assert trainings.stopped_early
    assert list(trainings.dictionaries) == list(SITES)
    assert not trainings.finished
    trainings.run(progress=False)
    assert trainings.finished
    assert not trainings.stopped_early
    for site, one in train().items():
        assert same(state(trainings[site].session), state(one.session))


def test_an_interrupt_in_the_first_turn_leaves_the_others_waiting():
    trainings = train(on_log=interrupt_at("blocks.0", 3))
    assert trainings.frame["state"].to_list() == ["stopped", "waiting", "waiting"]
    assert list(trainings.dictionaries) == ["blocks.0"]
    assert trainings.run(progress=False).finished


def test_calling_again_with_the_path_goes_on_and_skips_what_is_done(tmp_path, every_step):
    plan = replace(TRAIN, log_every=1)
    stopped = train(plan=plan, path=tmp_path, on_log=interrupt_at("blocks.1", 7))
    assert stopped.stopped_early
    taken = []
    again = train(plan=plan, path=tmp_path, on_log=lambda line: taken.append((line["site"], line["step"])))
    assert again.finished
    assert min(step for site, step in taken if site == "blocks.0") == 8
    assert min(step for site, step in taken if site == "blocks.2") == 7
    whole = train(plan=plan)
    for site in SITES:
        assert torch.equal(again.dictionaries[site].W_enc, whole.dictionaries[site].W_enc)
    taken.clear()
    third = train(plan=plan, path=tmp_path, on_log=taken.append)
    assert taken == []
    assert third.finished
    assert third.frame.drop("rows_per_second").equals(again.frame.drop("rows_per_second"))
    assert torch.equal(third.dictionaries["blocks.2"].W_enc, whole.dictionaries["blocks.2"].W_enc)
    assert third["blocks.2"].log["step"].to_list() == list(range(1, 21))


def test_what_was_trained_without_a_path_can_be_saved_and_continued(tmp_path, every_step):
    stopped = train(on_log=interrupt_at("blocks.1", 7))
    stopped.save(tmp_path)
    again = train(path=tmp_path)
    assert again.finished
    whole = train()
    assert torch.equal(again.dictionaries["blocks.2"].W_enc, whole.dictionaries["blocks.2"].W_enc)
    assert ns.Session.load(tmp_path / "blocks.1").finished


KILLED = """
import os, signal, sys
import torch
from test_train_all import TRAIN, CONFIG, stores
from nb_sae.sae import many
many.TURN_SECONDS = 0.0

def on_log(line):
    if line["site"] == "blocks.1" and line["step"] == 11:
        os.kill(os.getpid(), signal.SIGKILL)

settings = {"device": "cpu", "path": sys.argv[1], "save_every_rows": 96, "progress": False}
many.train_all(stores(), CONFIG, TRAIN, on_log=on_log, **settings)
"""


def test_a_killed_run_goes_on_from_its_last_saves(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        cwd=HERE, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    first = []
    again = train(path=tmp_path, save_every_rows=96, on_log=lambda line: first.append((line["site"], line["step"])))
    assert min(step for site, step in first if site == "blocks.0") == 10
    whole = train()
    for site in SITES:
        assert torch.equal(again.dictionaries[site].W_enc, whole.dictionaries[site].W_enc)


# --- the byte budget ---


def open_at_once(monkeypatch) -> list[int]:
    counts = []
    wait = many._Run._admit

    def admit(run, interrupted):
        wait(run, interrupted)
        counts.append(sum(one.state == "training" for one in run.trainings.values()))

    monkeypatch.setattr(many._Run, "_admit", admit)
    return counts


def test_as_many_train_at_once_as_the_budget_holds(monkeypatch, every_step):
    need = train()["blocks.0"].needed_bytes()
    counts = open_at_once(monkeypatch)
    whole = train(memory_bytes=3 * need)
    assert max(counts) == 3
    counts.clear()
    # Two at once, then the third beside the dictionaries of those that are done.
    two = train(memory_bytes=int(2.5 * need))
    assert counts[0] == max(counts) == 2
    assert counts[-1] == 1
    assert [one.session is None for one in two.values()] == [True, True, False]
    assert two.finished
    for site in SITES:
        assert torch.equal(two.dictionaries[site].W_enc, whole.dictionaries[site].W_enc)
        assert two[site].log.height == 20
    counts.clear()
    train(memory_bytes=int(1.4 * need))
    assert max(counts) == 1


def test_one_site_that_needs_more_than_the_budget_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("nb_sae.sae.running.TrainingState", lambda *args, **others: pytest.fail("allocated"))
    with pytest.raises(NotEnoughMemoryError, match=r"'blocks\.0': Training 32 latents .*memory_bytes=10,000"):
        train(memory_bytes=10_000)
    with pytest.raises(ConfigError, match="memory_bytes=0"):
        train(memory_bytes=0)


def test_a_training_that_was_put_away_without_files_can_not_be_saved_as_a_session(tmp_path, every_step):
    need = train()["blocks.0"].needed_bytes()
    trainings = train(memory_bytes=int(1.4 * need))
    with pytest.raises(ConfigError, match="put away to make room"):
        trainings.save(tmp_path / "later")
    saved = train(memory_bytes=int(1.4 * need), path=tmp_path / "now")
    assert ns.Session.load(tmp_path / "now" / "blocks.0").finished
    assert saved.dictionaries["blocks.0"].d_sae == 32


def test_on_a_gpu_every_training_has_a_stream_and_a_turn_is_one_step(monkeypatch):
    """The order of calls, on fakes: no GPU takes part."""
    told = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            told.append((self.name, "waits for", other.name))

        def __enter__(self):
            told.append((self.name, "begins"))

        def __exit__(self, *error):
            told.append((self.name, "ends"))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("own"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    with monkeypatch.context() as patch:
        patch.setattr(many._Run, "to_the_end", lambda run, show: None)
        trainings = train()
    one = trainings["blocks.0"]
    one.open()
    lane = many._Lane([one], torch.device("cuda"))
    with many.progress_bar(None, "rows", "x", enabled=False) as bar:
        lane.turn(bar, lambda: False)
        lane.turn(bar, lambda: False)
    assert one.step == 2
    lane.end()
    assert one.state == "stopped"
    turn = [("own", "begins"), ("own", "ends")]
    assert told == [("own", "waits for", "main"), *turn, *turn, ("main", "waits for", "own")]


def test_copies_to_go_back_to_must_fit_beside_a_gpu(monkeypatch):
    """On a GPU the copy of the last sound state lies in main memory, where all of them have to fit."""
    with monkeypatch.context() as patch:
        patch.setattr(many._Run, "to_the_end", lambda run, show: None)
        trainings = train()
    run = many._Run(trainings, list(trainings.values()))
    trainings["blocks.0"].open()
    run.device = torch.device("cuda")
    kept = trainings["blocks.1"].memory.kept
    for free, fits in ((3 * kept, True), (2 * kept, False)):
        monkeypatch.setattr(many, "free_bytes", lambda device, free=free: free)
        assert run._fits(trainings["blocks.1"]) is fits
    trainings["blocks.0"].close()


def test_pairs_of_sites_are_trained_as_transcoders():
    x, y = (ns.ActivationStore.from_tensor(rows(seed=seed), site=site) for seed, site in ((1, "a"), (2, "b")))
    trainings = train({"a": ns.pair(x, y)}, ns.SAEConfig.topk(4, d_sae=32))
    assert trainings.dictionaries["a"].target == "b"
    assert trainings["a"].needed_bytes() == trainings["a"].memory.total


# --- failures ---


class Broken(Rows):
    def spoil(self, epoch, number, batch):
        return batch * float("nan") if (epoch, number) == (0, 5) else batch


def test_a_site_that_fails_drops_out_and_the_others_end():
    given = stores() | {"blocks.1": Broken.from_tensor(rows(seed=2), site="blocks.1")}
    with pytest.warns(UserWarning, match=r"'blocks\.1' ended early: The loss stopped being a number"):
        trainings = train(given)
    assert trainings.frame["state"].to_list() == ["done", "failed", "done"]
    assert "stopped being a number" in trainings.frame["error"][1]
    assert isinstance(trainings.failed["blocks.1"], NonFiniteError)
    assert list(trainings.dictionaries) == ["blocks.0", "blocks.2"]
    assert trainings["blocks.1"].session.step == 5
    trainings["blocks.1"].session.skip()
    assert trainings.run(progress=False).finished


@pytest.mark.filterwarnings("ignore:The training of")
def test_a_failed_site_that_was_put_away_is_never_begun_anew(tmp_path, every_step):
    def given():
        return stores() | {"blocks.1": Broken.from_tensor(rows(seed=2), site="blocks.1")}

    one_by_one = {"memory_bytes": int(1.4 * train()["blocks.0"].needed_bytes())}
    trainings = train(given(), **one_by_one)
    assert trainings["blocks.1"].session is None
    for _ in range(2):
        assert trainings.frame.filter(pl.col("state") == "failed").select("site", "step").rows() == [("blocks.1", 5)]
        trainings.run(progress=False)
    lines = []
    settings = {"path": tmp_path, "save_every_rows": 96, "on_log": lines.append, **one_by_one}
    saved = train(given(), **settings)
    lines.clear()
    saved.run(progress=False)
    assert [line["step"] for line in lines] == [4, 5]
    assert saved["blocks.1"].state == "failed"


def test_continuing_counts_what_is_held_already_as_room(monkeypatch, every_step):
    """Without a stated budget: what stopped trainings hold is no longer free, and is theirs."""
    need = train()["blocks.0"].needed_bytes()
    free = [5 * need]
    monkeypatch.setattr(many, "free_bytes", lambda device: free[0])
    counts = open_at_once(monkeypatch)
    trainings = train(on_log=interrupt_at("blocks.2", 3))
    assert max(counts) == 3
    counts.clear()
    free[0] = 2 * need
    trainings.run(progress=False)
    assert max(counts) == 3


def test_an_error_of_the_users_own_function_comes_out_and_the_others_are_saved(tmp_path, every_step):
    def on_log(line):
        if (line["site"], line["step"]) == ("blocks.1", 4):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(path=tmp_path, on_log=on_log)
    assert ns.Session.load(tmp_path / "blocks.0").step == 4
    assert train(path=tmp_path).finished


# --- what is refused ---


def test_stores_that_are_not_what_they_should_be_are_named():
    given = stores()
    with pytest.raises(ConfigError, match="No stores were given"):
        train({})
    with pytest.raises(ConfigError, match=r"One store is given for 'blocks\.0' and for 'x'"):
        train({**given, "x": given["blocks.0"]})
    with pytest.raises(ConfigError, match=r"Two of the stores are of site 'blocks\.0'"):
        train([given["blocks.0"], stores()["blocks.0"]])
    with pytest.raises(StoreError, match=r"given for 'blocks\.0' come from site 'blocks\.1'. Another store is given"):
        train({"blocks.0": given["blocks.1"], "blocks.1": given["blocks.0"]})
    with pytest.raises(ConfigError, match="holds a Tensor; expected an ActivationStore"):
        train({"blocks.0": rows()})
    with pytest.raises(ConfigError, match="Got a str"):
        train("blocks.0")


def test_settings_that_do_not_fit_are_refused_with_the_site_before_anything_is_trained():
    with pytest.raises(ConfigError, match=r"given for 'block\.1', which is none.*Closest: blocks\.1"):
        train(config={"block.1": CONFIG})
    with pytest.raises(ConfigError, match=r"No configuration is given for 'blocks\.1', 'blocks\.2'"):
        train(config={"blocks.0": CONFIG})
    wide = replace(CONFIG, d_sae=None, expansion=1, budgets=(2, 12))
    other = ns.ActivationStore.from_tensor(torch.randn(100, 16), site="wide")
    given = {"wide": other, **stores()}
    with pytest.raises(ConfigError, match=r"'blocks\.0': .*12"):
        train(given, wide)
    for given, message in (
        ({"save_every_rows": 10}, "needs path="),
        ({"save_every_rows": -1, "path": "never/made"}, "must be at least 1"),
        ({"memory_bytes": "1GB"}, "memory_bytes='1GB': expected a number"),
        ({"memory_bytes": float("nan")}, "memory_bytes=nan"),
        ({"config": dict.fromkeys(stores())}, r"config\['blocks\.0'\] is a NoneType; expected an SAEConfig"),
        ({"on_log": "print"}, "cannot be called"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(**given)
    with pytest.raises(ConfigError, match="device='gpu' is no device"):
        ns.train_all(stores(), CONFIG, device="gpu")
    with pytest.raises(ConfigError, match="train is a dict; expected a TrainConfig"):
        ns.train_all(stores(), CONFIG, {"epochs": 1})
    with pytest.raises(KeyError, match=r"Closest: blocks\.0"):
        train()["block.0"]


def test_what_is_saved_must_be_of_the_same_rows_and_settings(tmp_path):
    train(path=tmp_path)
    other = {site: ns.ActivationStore.from_tensor(torch.randn(400, 16), site=site) for site in SITES}
    with pytest.raises(StoreError, match=r"'blocks\.0': These are not the rows.*d_in was 8, 16 is given"):
        train(other, path=tmp_path)
    with pytest.raises(ConfigError, match=r"'blocks\.0': .*other settings: d_sae=64 \(saved: 32\)"):
        train(config=replace(CONFIG, d_sae=64), path=tmp_path)


def test_a_path_that_is_a_file_is_refused_before_the_work(tmp_path):
    taken = tmp_path / "sessions"
    taken.write_text("mine")
    with pytest.raises(PathExistsError, match="is no folder"):
        train(path=taken)
    assert taken.read_text() == "mine"
