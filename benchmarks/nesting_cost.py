"""What nesting costs: time of a whole step against the number of budgets, and against the number of latents.

    python benchmarks/nesting_cost.py                 # levels 1…8 at 6,144 latents; 2,048…131,072 latents
    python benchmarks/nesting_cost.py --quick
    python benchmarks/nesting_cost.py --clock cpu --docs

Levels double from 16 upwards (16, 32, …), each beside the plain TopK of its largest budget. With the number of latents
grow weights and Adam's moments (16 bytes · 2 · d · n), so the batch is stated with the figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from charts import Panel, lines
from train_step import ROOT, Ours, Product, rows, timed

SMALLEST = 16


def medians(runs: dict[str, Any], rounds: int, clock: Any, device: torch.device) -> dict[str, float]:
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, clock, device))
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def against_levels(batch: int, d: int, n: int, rounds: int, clock: Any, device: torch.device) -> list[dict[str, Any]]:
    x, found = rows(batch, d).to(device), []
    for levels in range(1, 9):
        budgets = tuple(SMALLEST << level for level in range(levels))
        if budgets[-1] > n:
            break
        runs = {"nested": Ours(x, n, budgets, "bfloat16"), "plain": Ours(x, n, budgets[-1:], "bfloat16")}
        runs["product"] = Product(x, n, torch.bfloat16)
        found.append({"levels": levels, "k": budgets[-1], **medians(runs, rounds, clock, device)})
        print(f"{levels} levels to k={budgets[-1]:>5}: " + line(found[-1]), flush=True)
    return found


def against_latents(
    batch: int, d: int, sizes: list[int], rounds: int, clock: Any, device: torch.device
) -> list[dict[str, Any]]:
    x, found = rows(batch, d).to(device), []
    for n in sizes:
        budgets = tuple(SMALLEST << level for level in range(4))
        runs = {"nested": Ours(x, n, budgets, "bfloat16"), "plain": Ours(x, n, budgets[-1:], "bfloat16")}
        runs["product"] = Product(x, n, torch.bfloat16)
        found.append({"n": n, **medians(runs, rounds, clock, device)})
        print(f"n={n:>7,}, budgets {budgets}: " + line(found[-1]), flush=True)
    return found


def line(found: dict[str, Any]) -> str:
    ratio = found["nested"] / found["plain"]
    return f"nested {found['nested']:8.1f} ms, plain {found['plain']:8.1f} ms, {ratio:.2f}×"


def draw(result: dict[str, Any]) -> None:
    def panel(title: str, key: str, x_name: str, logarithmic: bool) -> Panel:
        points = result["levels" if key == "levels" else "latents"]
        series = {name: [(point[key], point[name]) for point in points] for name in ("nested", "plain")}
        return title, x_name, series, logarithmic

    panels = [
        panel(f"{result['batch']:,} rows, {result['n']:,} latents", "levels", "budgets, doubling from 16", False),
        panel(f"{result['wide_batch']:,} rows, budgets 16…128", "n", "latents", True),
    ]
    title = "A step with nested budgets, and with the largest one alone"
    lines(ROOT / "docs/nesting_cost.svg", title, panels, unit="ms")
    (ROOT / "docs/nesting_cost.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--wide-batch", type=int, default=256, help="rows of a batch while the latents grow")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--largest", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--docs", action="store_true")
    arguments = parser.parse_args()
    n = 6144
    if arguments.quick:
        arguments.batch, arguments.wide_batch, arguments.d, n, arguments.rounds = 64, 32, 48, 512, 2
        arguments.largest = 4096
    if arguments.clock == "cpu":
        torch.set_num_threads(1)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rest = (arguments.rounds, clock, device)
    levels = against_levels(arguments.batch, arguments.d, n, *rest)
    sizes = [size for power in range(11, 18) if (size := 1 << power) <= arguments.largest]
    latents = against_latents(arguments.wide_batch, arguments.d, sizes, *rest)
    result = {"d": arguments.d, "n": n, "batch": arguments.batch, "wide_batch": arguments.wide_batch}
    result |= {"clock": arguments.clock, "device": device.type, "levels": levels, "latents": latents}
    if arguments.docs:
        draw(result)


if __name__ == "__main__":
    main()
