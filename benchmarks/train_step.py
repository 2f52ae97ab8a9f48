"""One whole training step, ours beside a dense reference and other libraries, interleaved in one run.

Every round runs each candidate once on the same rows; the table gives medians, in milliseconds and in units of one
float32 matrix product of the step's size measured in the same rounds. A step is encoding, selection, decoding, the way
back, Adam, unit decoder rows and counting silence.

    python benchmarks/train_step.py                       # 1,024 rows, d 768, 6,144 latents
    python benchmarks/train_step.py --quick               # seconds, small sizes: checks that everything runs
    python benchmarks/train_step.py --clock cpu           # processor time of one thread: for a machine with other work
    python benchmarks/train_step.py --docs                # writes docs/speed.json, the table in docs/speed.md, a figure

Peers run in .venv-peers (scripts/peers_env.sh), if it is there. On CUDA the sizes of the GPU's bounds are run too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from charts import bars

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import dense_reference
import planted
from peer_steps import PEERS

from nb_sae.sae.config import SAEConfig
from nb_sae.sae.step import TrainingState
from nb_sae.sae.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
NESTED = (16, 32, 64, 128, 256)


def eight(n: int) -> tuple[int, ...]:
    """64, 128, … below n, and n: the paper's levels."""
    budgets = [k for power in range(20) if (k := 64 << power) < n]
    return (*budgets, n)


def rows(count: int, d: int) -> torch.Tensor:
    """Rows with structure: 32 of 2,048 atoms and noise, of unit mean square."""
    x, _ = planted.sparse_rows(planted.atoms(2048, d), count, active=32)
    x = x + 0.3 * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    return x / x.square().mean().sqrt()


class Ours:
    """A step as `Session` takes it."""

    def __init__(
        self, x: torch.Tensor, n: int, budgets: tuple[int, ...], autocast: str | None, *, residual: bool = False
    ) -> None:
        config = SAEConfig.msae(d_sae=n, budgets=budgets, residual=residual).resolve(x.shape[1])
        train = TrainConfig(rows=10**9, batch_rows=len(x), autocast=autocast, learning_rate=1e-3)
        self.state = TrainingState(config, train.resolve(10**9), x.shape[1], device=x.device)
        self.x, self.step = x, 0

    def __call__(self) -> None:
        self.state.backward(self.x, self.x, self.step)
        self.state.apply(self.step)
        self.step += 1


class Dense:
    """Every level by itself in float32, fused Adam: autograd through `dense_reference`."""

    def __init__(self, x: torch.Tensor, n: int, budgets: tuple[int, ...]) -> None:
        self.ours, self.budgets = Ours(x, n, budgets, None), budgets
        self.silent = torch.zeros(n, device=x.device)

    def __call__(self) -> None:
        sae, x = self.ours.state.sae, self.ours.x
        self.ours.state.optimizer.zero_grad(set_to_none=True)
        pre = torch.addmm(sae.b_enc, x - sae.b_dec, sae.W_enc)
        weights = [1 / len(self.budgets)] * len(self.budgets)
        loss, _, _ = dense_reference.dense_loss(
            x, pre, sae.W_dec, sae.b_dec, budgets=self.budgets, level_weights=weights
        )
        loss.backward()
        self.ours.state.apply(self.ours.step)
        self.ours.step += 1
        self.silent.add_(len(x)).masked_fill_((pre > 0).any(0), 0)


class Product:
    """One product of the step's size: the unit."""

    def __init__(self, x: torch.Tensor, n: int, dtype: torch.dtype) -> None:
        self.x, self.W = x.to(dtype), torch.randn(x.shape[1], n, device=x.device, dtype=dtype)

    def __call__(self) -> None:
        self.x @ self.W


class Peers:
    """The other libraries, in a process of their own environment."""

    def __init__(self, x: torch.Tensor, n: int, clock: str) -> None:
        python = ROOT / ".venv-peers/bin/python"
        self.process: subprocess.Popen[str] | None = None
        if not python.exists():
            print(f"{python.relative_to(ROOT)} is not there: no peers. Make it with scripts/peers_env.sh.")
            return
        self._file = Path(tempfile.mkdtemp()) / "rows.pt"
        torch.save(x.cpu(), self._file)
        command = [python, Path(__file__).with_name("peer_steps.py"), self._file, str(n), x.device.type, clock]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def seconds(self, name: str) -> float | str:
        assert self.process is not None
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        print(name, file=stdin, flush=True)
        answer = json.loads(stdout.readline() or '{"error": "the process ended"}')
        return answer.get("seconds", answer.get("error"))

    def close(self) -> None:
        if self.process and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()
            self._file.unlink()


def timed(run: Callable[[], Any], clock: Callable[[], float], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(
    batch: int, d: int, n: int, rounds: int, clock_name: str, device: torch.device, peers: bool
) -> dict[str, Any]:
    """Medians in milliseconds by name."""
    clock = time.process_time if clock_name == "cpu" else time.perf_counter
    x = rows(batch, d).to(device)
    levels = eight(n)
    half = "bfloat16"
    ours: dict[str, Callable[[], Any]] = {
        "product, float32": Product(x, n, torch.float32),
        "product, bfloat16": Product(x, n, torch.bfloat16),
        "ours TopK-64, bfloat16": Ours(x, n, (min(64, n),), half),
        "ours MSAE 16…256, bfloat16": Ours(x, n, tuple(k for k in NESTED if k <= n), half),
        f"ours MSAE {len(levels)} budgets, bfloat16": Ours(x, n, levels, half),
        "ours MSAE 16…256 in rounds, bfloat16": Ours(x, n, tuple(k for k in NESTED if k <= n), half, residual=True),
        "ours TopK-64, float32": Ours(x, n, (min(64, n),), None),
        "ours MSAE 16…256, float32": Ours(x, n, tuple(k for k in NESTED if k <= n), None),
        f"ours MSAE {len(levels)} budgets, float32": Ours(x, n, levels, None),
        f"dense reference, {len(levels)} budgets": Dense(x, n, levels),
    }
    others = Peers(x, n, clock_name) if peers else None
    names = list(PEERS) if others and others.process else []
    for run in ours.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in (*ours, *names)}
    errors: dict[str, str] = {}
    for _ in range(rounds):
        for name, run in ours.items():
            seconds[name].append(timed(run, clock, device))
        for name in names:
            found = others.seconds(name) if others else "no peers"
            if isinstance(found, str):
                errors[name] = found
            else:
                seconds[name].append(found)
    if others:
        others.close()
    sae = ours["ours TopK-64, float32"].state.sae  # pyright: ignore[reportFunctionMemberAccess]
    with torch.no_grad():
        positives = float((sae.pre_activations(x) > 0).sum(1).float().mean())
    return {
        "batch": batch,
        "d": d,
        "n": n,
        "rounds": rounds,
        "clock": clock_name,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "torch": torch.__version__,
        "positives_per_row": positives,
        "milliseconds": {name: 1e3 * statistics.median(times) for name, times in seconds.items() if times},
        "errors": errors,
    }


def floors(result: dict[str, Any]) -> str:
    """What the arithmetic and the bytes alone cost."""
    batch, d, n = result["batch"], result["d"], result["n"]
    flops, parameters = 2 * batch * d * n, 2 * d * n
    return (
        f"One product is {flops / 1e9:.1f} GFLOP. A step needs at least two of them for the encoder (one in float32 "
        f"TopK, whose encoder gradient is a gather), and reads or writes {28 * parameters / 1e6:.0f} MB for Adam "
        f"(28 bytes for each of {parameters / 1e6:.1f} M weights)."
    )


def table(result: dict[str, Any]) -> str:
    times = result["milliseconds"]
    unit = times["product, float32"]
    clock = "processor time" if result["clock"] == "cpu" else "wall time"
    lines = [
        f"{result['batch']:,} rows, d {result['d']:,}, {result['n']:,} latents, {result['device']}, "
        f"{result['threads']} thread(s), {clock}, medians of {result['rounds']} interleaved rounds, "
        f"torch {result['torch']}.",
        "",
        "| step | ms | float32 products | rows/s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, time_ in times.items():
        lines.append(f"| {name} | {time_:,.1f} | {time_ / unit:.2f} | {result['batch'] / time_ * 1e3:,.0f} |")
    lines += [f"| {name} | did not run: {error} | | |" for name, error in result["errors"].items()]
    return "\n".join([*lines, "", floors(result)])


def write_docs(result: dict[str, Any]) -> None:
    """The numbers, the table between its marks in docs/speed.md, and a figure."""
    docs = ROOT / "docs"
    (docs / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    page = docs / "speed.md"
    text = page.read_text()
    start, stop = "<!-- train_step -->\n", "<!-- /train_step -->"
    before, rest = text.split(start)
    page.write_text(before + start + table(result) + "\n" + stop + rest.split(stop)[1])
    times = {name: value for name, value in result["milliseconds"].items() if not name.startswith("product")}
    bars(docs / "train_step.svg", "One training step", times, marked="ours", unit="milliseconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--n", type=int, default=6144)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--docs", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch, arguments.d, arguments.n, arguments.rounds = 64, 48, 512, 2
    if arguments.clock == "cpu":
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
    sizes = (arguments.batch, arguments.d, arguments.n, arguments.rounds, arguments.clock)
    result = measure(*sizes, torch.device("cpu"), not arguments.no_peers)
    print(table(result))
    if arguments.docs:
        write_docs(result)
    if not torch.cuda.is_available():
        print("\nNo GPU here: the GPU's bounds are not measured.")
        return
    device = torch.device("cuda")
    for batch, d, n in ((4096, 768, 6144), (4096, 2304, 65_536)):
        if arguments.quick:
            batch, d, n = 64, 48, 512
        print("\n" + table(measure(batch, d, n, arguments.rounds, "wall", device, not arguments.no_peers)))


if __name__ == "__main__":
    main()
