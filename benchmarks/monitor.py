"""What a training monitor takes of the training time, in a real kernel, beside bare runs of the same sessions.

    python benchmarks/monitor.py            # three sizes, two pairs of runs each: about three minutes
    python benchmarks/monitor.py --quick    # one pair of short runs: checks that everything runs

Bound: at most 1 % of the time of a training of a minute, at every size. Counted is the processor time that the training
thread spends in the monitor between the first step and the last ("while"), what the kernel's other threads, which send
the messages, take more than in a bare run ("threads"), and what the beginning and the end take ("once", which a longer
run divides by more). "beside bare" is the ratio of both runs' whole processor time: it scatters as the machine does.
Exits with 1 if the bound is missed, if the weights differ, or if more than four updates came in a second.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BOUND, MINUTE_S = 0.01, 60
SIZES = {
    "small steps": {"rows": 20_000, "d_in": 64, "d_sae": 512, "batch_rows": 128, "seen": 80_000},
    "image embeddings": {"rows": 20_000, "d_in": 512, "d_sae": 2048, "batch_rows": 512, "seen": 40_000},
    "a line of the log each step": {
        "rows": 20_000, "d_in": 64, "d_sae": 512, "batch_rows": 128, "seen": 80_000, "log_every": 1,
    },
}  # fmt: skip

KERNEL = """
import json, time
import torch
import nb_sae as ns

def session(size, monitor):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size["rows"], size["d_in"], generator=generator)
    store = ns.ActivationStore.from_tensor(x)
    train = ns.TrainConfig(rows=size["seen"], batch_rows=size["batch_rows"], log_every=size.get("log_every"))
    return ns.Session(
        store, ns.SAEConfig.msae(d_sae=size["d_sae"]), train, device="cpu", on_log=monitor, progress=False
    )

class Timed:
    '''Adds up the processor time of this thread inside a watch.'''

    def __init__(self, watch, spent):
        self._watch, self._spent = watch, spent

    def _call(self, act, *what):
        began = time.thread_time()
        act(*what)
        self._spent[0] += time.thread_time() - began

    def line(self, record):
        self._call(self._watch.line, record)

    def passed(self):
        self._call(self._watch.passed)

    def changed(self):
        self._call(self._watch.changed)

    def ended(self, error):
        began = time.thread_time()
        self._watch.ended(error)
        self._spent[1] += time.thread_time() - began

def run(size, monitored):
    spent, updates = [0.0, 0.0], []
    monitor = None
    if monitored:
        monitor = ns.TrainMonitor()
        watch, bring = monitor.watch, monitor._bring
        def watched(session, name=None):
            began = time.thread_time()
            timed = Timed(watch(session, name), spent)
            spent[1] += time.thread_time() - began
            return timed
        def counted():
            updates.append(time.perf_counter())
            bring()
        monitor.watch, monitor._bring = watched, counted
    made = session(size, monitor)
    wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    made.run(progress=False)
    wall, cpu, own = time.perf_counter() - wall, time.process_time() - cpu, time.thread_time() - own
    return {
        "wall": wall, "cpu": cpu, "others": cpu - own, "while": spent[0], "once": spent[1], "steps": made.step,
        "updates": len(updates), "weights": float(sum(one.double().sum() for one in made._state.tensors().values())),
    }
"""
PAIR = """
size = json.loads({size!r})
run({{**size, "seen": size["batch_rows"] * 20}}, True)
print(json.dumps([(run(size, False), run(size, True)) if turn % 2 else (run(size, True), run(size, False))[::-1]
                  for turn in range({pairs})]))
"""


def measured(pairs: int, sizes: dict[str, dict]) -> dict[str, list]:
    """Pairs of a bare and a monitored run, by size, from one kernel."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT), extra_arguments=["--HistoryManager.enabled=False"])
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        execute(client, KERNEL)
        found = {}
        for name, size in sizes.items():
            text = execute(client, PAIR.format(size=json.dumps(size), pairs=pairs))
            found[name] = json.loads(text.strip().splitlines()[-1])
        return found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def execute(client, code: str) -> str:
    """What the code printed."""
    printed: list[str] = []

    def take(message: dict) -> None:
        if message["header"]["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=take, timeout=1200, store_history=False)
    if reply["content"]["status"] != "ok":
        raise RuntimeError("\n".join(reply["content"].get("traceback", [])) + "".join(printed))
    return "".join(printed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of short runs")
    arguments = parser.parse_args()
    sizes = {name: dict(size) for name, size in SIZES.items()}
    if arguments.quick:
        for size in sizes.values():
            size["seen"] //= 20
    found = measured(1 if arguments.quick else 2, sizes)
    good = True
    heads = {"size": -30, "steps": 7, "bare s": 8, "ms/step": 9, "updates/s": 11, "while": 8, "threads": 9, "once s": 8}
    print("".join(f"{name:{'<' if wide < 0 else '>'}{abs(wide)}}" for name, wide in heads.items()), "beside bare")
    for name, pairs in found.items():
        shares, ratios = [], []
        for bare, watched in pairs:
            threads = watched["others"] - bare["others"]
            shares.append((watched["while"] / bare["cpu"], threads / bare["cpu"], watched["once"]))
            ratios.append(watched["cpu"] / bare["cpu"] - 1)
            good &= bare["weights"] == watched["weights"]
        bare, watched = pairs[0]
        rate = max(one["updates"] / one["wall"] for _, one in pairs)
        share, threads, once = (float(np.median(one)) for one in zip(*shares, strict=True))
        # The first and the last update come in any case.
        good &= arguments.quick or (share + threads + once / MINUTE_S <= BOUND and rate <= 4 + 3 / watched["wall"])
        print(
            f"{name:<30}{bare['steps']:>7,}{bare['wall']:>8.1f}{bare['wall'] / bare['steps'] * 1e3:>9.2f}{rate:>11.1f}"
            f"{share:>8.2%}{threads:>9.2%}{once:>8.2f}  {min(ratios):.1%} … {max(ratios):.1%}"
        )
    print(f"bound: {BOUND:.0%} of the training time{'' if good else ', missed'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
