"""What training takes in memory: said before it is allocated, near to what is measured, and what to lower."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sessions import CONFIG, CONFIGS, TRAIN, rows, same, start, state

import nb_sae as ns
from nb_sae.errors import NotEnoughMemoryError
from nb_sae.sae.memory import MemoryBudget


@pytest.fixture
def source() -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(rows())


# --- memory ---


def test_the_memory_budget_is_printed_before_it_is_allocated(source, capsys, monkeypatch):
    monkeypatch.setattr("nb_sae.sae.running.TrainingState", lambda *args, **others: pytest.fail("allocated"))
    monkeypatch.setattr("nb_sae.sae.memory.free_bytes", lambda device: 10_000)
    with pytest.raises(NotEnoughMemoryError, match=r"are free\. Lower SAEConfig\.d_sae"):
        ns.Session(source, CONFIG, TRAIN, device="cpu")
    line = capsys.readouterr().out
    assert line.startswith("Training 32 latents of width 8 on cpu: ")
    assert line.count("\n") == 1


def test_the_weights_of_the_budget_are_the_bytes_that_are_there(source):
    for config in CONFIGS.values():
        session = start(source, config).run(steps=1, progress=False)
        assert session.memory.weights == pytest.approx(sum(one.nbytes for one in session.sae.parameters()), rel=0.01)
        moments = sum(value.nbytes for name, value in state(session).items() if ".exp_avg" in name)
        assert session.memory.moments == pytest.approx(moments, rel=0.01)


def test_a_batch_that_does_not_fit_is_answered_with_one_that_does():
    config = ns.SAEConfig.topk(4, d_sae=64).resolve(16)
    budget = MemoryBudget.of(config, ns.TrainConfig(batch_rows=65_536).resolve(10**6), 16, None, torch.device("cpu"))
    free = budget.state + 1_000 * budget.per_row
    assert "TrainConfig.batch_rows to 512" in budget.advice(free)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: 1")])
def test_running_out_of_memory_says_what_was_needed_and_loses_nothing(source, monkeypatch, error):
    session = start(source).run(steps=3, progress=False)

    def exhausted(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(session._state, "backward", exhausted)
        with pytest.raises(NotEnoughMemoryError, match=r"= about .*did not fit.*Lower"):
            session.run(progress=False)
    assert same(state(session.run(progress=False)), state(start(source).run(progress=False)))


def test_other_errors_of_torch_come_out_as_they_are(source, monkeypatch):
    session = start(source)

    def broken(*args):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(session._state, "backward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        session.run(progress=False)


MEASURE = """
import os
import sys
import torch
import nb_sae as ns
from nb_sae.sae.memory import MemoryBudget
from test_memory import KINDS

def peak():
    line = next(one for one in open("/proc/self/status") if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def session(name, d_sae, width, batch):
    store = ns.ActivationStore.from_tensor(torch.randn(2 * batch, width))
    store.statistics()
    train = ns.TrainConfig(rows=40 * batch, batch_rows=batch, autocast=None, dead_after_rows=4 * batch, looks_from=0.0)
    before = peak()
    made = ns.Session(store, KINDS[name](d_sae), train, device="cpu", progress=False).run(steps=6, progress=False)
    return made.memory.total, peak() - before

for name in sys.argv[1:]:
    child = os.fork()  # what one kind leaves free is not there for the next
    if child == 0:
        session(name, 64, 16, 32)  # what torch itself takes when it is first used
        open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
        print(name, *session(name, 2048, 256, 512), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
KINDS = {
    "topk": lambda n: ns.SAEConfig.topk(16, d_sae=n),
    "one look": lambda n: ns.SAEConfig.msae(d_sae=n, budgets=(8, 16, 32), residual=False),
    "rounds": lambda n: ns.SAEConfig.msae(d_sae=n, budgets=(8, 16, 32), residual=True),
    "looks": lambda n: ns.SAEConfig.msae(d_sae=n, budgets=(8, 16, 32, 64), residual=True, looks=4),
    "jump_relu": lambda n: ns.SAEConfig.jump_relu(16, d_sae=n),
    "gated": lambda n: ns.SAEConfig.gated(d_sae=n),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says how much a process took")
def test_the_estimate_is_near_to_the_measured_peak():
    """In a child, whose peak is its own. The bounds are wide: allocators differ, and so do the ways of a step."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *KINDS],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        *name, estimate, measured = line.split()
        assert 0.8 < int(estimate) / int(measured) < 1.6, f"{name}: {line}"
    assert done.stdout.count("\n") == len(KINDS)
