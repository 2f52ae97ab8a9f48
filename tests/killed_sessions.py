"""Run as a process: kills a training run that saves at every step, many times, and reads what each kill left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import nb_sae as ns

TRAIN = ns.TrainConfig(rows=32 * 40, batch_rows=32, ema_decay=0.9)
CONFIG = ns.SAEConfig.batch_topk((2, 4), d_sae=32)


def source() -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)))


def write_reference(folder: Path) -> None:
    """The state after every step of a run that nobody stops."""
    session = ns.Session(source(), CONFIG, TRAIN, device="cpu", progress=False)
    while not session.finished:
        session.run(steps=1, progress=False)
        save_file({name: value.clone() for name, value in session._state.tensors().items()}, folder / f"{session.step}")


def continue_run(path: Path, reference: Path, ready: int) -> None:
    """Check what is saved against the reference, say so, and train on."""
    if (path / "session.json").exists():
        session = ns.Session.load(path, source(), device="cpu")
        expected, found = load_file(reference / f"{session.step}"), session._state.tensors()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), f"step {session.step} differs"
        assert session.log["step"].to_list()[-1] == session.step
        assert session.save_to == path
    else:
        session = ns.Session(source(), CONFIG, TRAIN, device="cpu", progress=False, save_to=path, save_every_rows=32)
    session.on_log = lambda record: os.write(ready, record["step"].to_bytes(1, "little"))
    os.write(ready, session.step.to_bytes(1, "little"))
    if not session.finished:
        session.run(progress=False)


def child(work, *arguments) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    # What is imported late is imported once here, not by every child: the optimiser brings half of torch with it.
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True)
    for name in ("Session", "ActivationStore"):
        getattr(ns, name)
    reference, path = folder / "reference", folder / "session"
    reference.mkdir()
    _, status = os.waitpid(child(write_reference, reference), 0)
    assert status == 0, "no reference"
    # This process only forks: what children need of polars' threads must not have been started here.
    chance, done, steps = random.Random(0), 0, set()
    while done < kills:
        reader, ready = os.pipe()
        pid = child(continue_run, path, reference, ready)
        os.close(ready)
        told = os.read(reader, 1)
        if not told:
            os.waitpid(pid, 0)
            sys.exit(f"after {done} kills nothing could be continued")
        steps.add(told[0])
        for _ in range(chance.randrange(6)):  # some steps further, then anywhere in a step or a save
            os.read(reader, 1)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(reader)
        if os.WIFSIGNALED(status):
            done += 1
        elif status == 0:
            shutil.rmtree(path)  # it got to its end: begin again
        else:
            sys.exit(f"a child failed after {done} kills")
    print(f"{done} kills, states of {len(steps)} different steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
