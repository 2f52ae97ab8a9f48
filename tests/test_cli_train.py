from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rank_workers import command_line, start
from store_fakes import SMALL, FakeInputs, FakeModel, colours

import nb_sae as ns
from nb_sae import cli
from nb_sae.errors import ConfigError, InputNotFoundError
from nb_sae.train_file import TrainFile, train_from_file

ROOT = Path(__file__).parent.parent
FILE = """
[store]
path = "acts"
test = 0.2
seed = 1

[sae]
kind = "msae"
d_sae = 24
budgets = [1, 2, 4]
level_weights = [3, 2, 1]

[train]
rows = 1_500
batch_rows = 50
warmup_steps = 5
seed = 2

[output]
path = "runs/a"
save_every_rows = 500
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A store on disk and a file beside it."""
    ns.ActivationStore.collect(
        FakeModel(), FakeInputs(colours(120)), site="tokens", path=tmp_path / "acts", **{**SMALL, "dtype": "float32"}
    )
    (tmp_path / "train.toml").write_text(FILE)
    return tmp_path


def same(one: ns.Dictionary, other: ns.Dictionary) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))


def test_the_command_makes_what_the_notebook_makes(folder, capsys, monkeypatch):
    monkeypatch.chdir("/")  # relative paths are relative to the file
    assert cli.main(["train", str(folder / "train.toml"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "FVU on 120 rows held out, k=4: 0." in printed
    train, _ = ns.ActivationStore.open(folder / "acts").split(0.2, seed=1)
    config = ns.SAEConfig.msae(d_sae=24, budgets=(1, 2, 4), level_weights=(3, 2, 1))
    settings = ns.TrainConfig(rows=1_500, batch_rows=50, warmup_steps=5, seed=2)
    expected = ns.train_sae(train, config, settings, device="cpu", progress=False)
    made = ns.Dictionary.load(folder / "runs/a/dictionary")
    assert same(made, expected)
    assert ns.Session.load(folder / "runs/a", train).finished


def test_a_second_run_is_refused_and_resume_goes_on_where_it_stopped(folder, capsys):
    file = folder / "train.toml"
    file.write_text(FILE.replace("rows = 1_500", "rows = 1_500\ndecay_fraction = 0.0"))
    whole = train_from_file(file, device="cpu", progress=False).dictionary
    assert cli.main(["train", str(file), "--quiet"]) == 2
    assert "holds another session" in capsys.readouterr().err
    assert cli.main(["train", str(file), "--quiet", "--resume"]) == 0  # nothing is left to do
    other = folder / "other.toml"
    other.write_text(file.read_text().replace("runs/a", "runs/b"))
    asked = TrainFile.read(other)
    train, _ = asked.stores()
    part = ns.Session(train, asked.config, asked.train, device="cpu", save_to=asked.output, progress=False)
    part.run(steps=13, progress=False)
    resumed = train_from_file(other, resume=True, device="cpu", progress=False)
    assert same(resumed.dictionary, whole)
    other.write_text(other.read_text().replace("d_sae = 24", "d_sae = 32"))
    assert cli.main(["train", str(other), "--resume", "--quiet"]) == 2
    assert "d_sae" in capsys.readouterr().err


def test_resume_begins_where_nothing_is_saved(folder):
    assert train_from_file(folder / "train.toml", resume=True, device="cpu", progress=False).finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(folder, number):
    file = folder / "train.toml"
    file.write_text(FILE.replace("rows = 1_500", "rows = 500_000"))
    process = start(command_line, ["train", str(file), "--device", "cpu"], folder / "said")
    deadline = time.monotonic() + 60
    while not (folder / "runs/a/session.json").exists():
        assert process.is_alive(), "ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 130
    assert "interrupted and saved. Go on with: nb-sae train --resume" in (folder / "said").read_text()
    train, _ = TrainFile.read(file).stores()
    there = ns.Session.load(folder / "runs/a", train)
    assert 0 < there.step < 10_000
    assert (folder / "runs/a/dictionary/dictionary.json").exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("batch_rows = 50", "batch_row = 50", r"\[train\] has no key 'batch_row'. Closest: batch_rows"),
        ("budgets =", "budget =", r"\[sae\] has no key 'budget'. Closest: budgets"),
        ("[output]", "[outputs]", r"has no section 'outputs'. Closest: output"),
        ('kind = "msae"', 'kind = "mase"', r"kind='mase' is not one of msae, .*Closest: msae"),
        ("batch_rows = 50", 'batch_rows = "many"', r"\[train\]: a value is of the wrong kind"),
        ("batch_rows = 50", "batch_rows = -1", r"\[train\]: batch_rows=-1 must be above 0"),
        ("budgets = [1, 2, 4]", "budgets = [4, 2]", r"\[sae\]: budgets="),
        ('path = "acts"', "", r'\[store\] needs path = "…"'),
        ("[store]", "[store", "is not a readable TOML file"),
        ('kind = "msae"', 'kind = "topk"', r"needs|missing|argument"),
    ],
)
def test_a_wrong_file_is_refused_at_the_call(folder, before, after, message):
    file = folder / "train.toml"
    file.write_text(FILE.replace(before, after))
    with pytest.raises(ConfigError, match=message):
        TrainFile.read(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputNotFoundError, match=r"none\.toml does not exist"):
        TrainFile.read(tmp_path / "none.toml")


def test_every_kind_of_dictionary_can_be_asked_for(folder):
    file = folder / "train.toml"
    start = FILE.index("kind ="), FILE.index("[train]")
    for settings, sparsity in (
        ('kind = "topk"\nk = 3\nd_sae = 24', "top_k"),
        ('kind = "batch_topk"\nk = 3\nd_sae = 24', "batch_top_k"),
        ('kind = "relu"\nl1_weight = 0.2\nd_sae = 24', "relu"),
        ('kind = "jump_relu"\ntarget_l0 = 4\nd_sae = 24\nbandwidth = 0.2', "jump_relu"),
        ('kind = "gated"\nd_sae = 24', "gated"),
        ('kind = "msae"\nd_sae = 24\nwidths = [8, 24]\nloss = "nmse"', "top_k"),
    ):
        file.write_text(FILE[: start[0]] + settings + "\n" + FILE[start[1] :])
        assert TrainFile.read(file).config.sparsity == sparsity


def test_collect_command_writes_a_store_that_train_reads(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\n\nit was a dark night\n" * 3)
    command = ["collect", "--texts", str(tmp_path / "texts.txt"), "--site", "blocks.0", "--out", str(tmp_path / "s")]
    site = ns.load_lm("demo").hook_names()[1]
    command[4] = site
    assert cli.main(command) == 0
    assert site in capsys.readouterr().out
    assert ns.ActivationStore.open(tmp_path / "s").inputs.height == 6
    assert cli.main([*command[:2], str(tmp_path / "none.txt"), *command[3:]]) == 2


def test_torchrun_trains_in_two_processes_what_one_trains(folder):
    """By the launcher itself; the weights differ by the order of sums alone."""
    file = folder / "train.toml"
    file.write_text(FILE.replace("seed = 2", 'seed = 2\ndtype = "float64"'))
    whole = train_from_file(file, device="cpu", progress=False).dictionary
    file.write_text(file.read_text().replace("runs/a", "runs/b"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nb_sae.cli",
        "train", str(file), "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FVU on 120 rows held out, k=4") == 1, "one process prints"
    made = ns.Dictionary.load(folder / "runs/b/dictionary")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(getattr(made, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
