"""Matching two dictionaries of 16,384 × 768 by decoder cosine, beside the matrix product alone.

    python benchmarks/flow_matching.py                  # bounds: 1.6 × the product in this run, 300 MB beside inputs
    python benchmarks/flow_matching.py --large          # 65,536 × 2,304: the whole process within 4 GB (~7 minutes)
    python benchmarks/flow_matching.py --large --targets 4096   # the same memory with a part of the targets
    python benchmarks/flow_matching.py --paths          # chain and neighbourhood in a flow of 12 sites × 16,384

Time of product and matching are taken in turns, and the best of each counts; the null is drawn apart and its time is
shown. Memory is the largest resident size of a process of its own that makes a flow of two dictionaries, encoders and
null included. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time

import psutil
import torch

from nb_sae.flow.flow import FeatureFlow
from nb_sae.flow.links.making import DRAWS, feature_flow
from nb_sae.flow.links.matching import BLOCK_BYTES, nearest_rows
from nb_sae.flow.links.nulls import isotropic_null
from nb_sae.sae.dictionary import Dictionary

LATENTS, WIDTH, TOP = 16_384, 768, 8
LARGE = 65_536, 2_304
TIMES_BOUND, BESIDE_BOUND_MB, LARGE_BOUND_GB, PATH_BOUND_MS = 1.6, 300, 4.0, 100


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.empty(count, width)
    for part in made.split(1024):
        part.copy_(torch.randn(part.shape, generator=generator))
        part /= part.norm(dim=-1, keepdim=True)
    return made


def dictionary(site: str, latents: int, width: int, seed: int) -> Dictionary:
    W_dec, b_enc, b_dec = rows(latents, width, seed), torch.zeros(latents), torch.zeros(width)
    W_enc = W_dec.T.clone(memory_format=torch.contiguous_format)
    return Dictionary({"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, site=site)


def product(a: torch.Tensor, b: torch.Tensor) -> None:
    block = BLOCK_BYTES // (4 * len(b))
    held = torch.empty(block, len(b))
    for first in range(0, len(a), block):
        part = a[first : first + block]
        torch.mm(part, b.T, out=held[: len(part)])


class Peak:
    """Largest resident size of this process while the block runs, looked at every 5 ms."""

    def __enter__(self) -> Peak:
        self._process, self._stop = psutil.Process(), threading.Event()
        self.before = self.largest = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.largest = max(self.largest, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.largest = max(self.largest, self._process.memory_info().rss)


def memory(latents: int, width: int, targets: int) -> int:
    """Run by `in_own_process`: MB beside the inputs, and MB of the whole process."""
    before, after = (
        dictionary("blocks.0.hook_out", latents, width, 0),
        dictionary("blocks.1.hook_out", targets, width, 1),
    )
    small = {site: dictionary(site, 64, width, 0) for site in ("blocks.0.hook_out", "blocks.1.hook_out")}
    feature_flow(small, draws=1000, progress=False)  # what the libraries themselves take
    with Peak() as peak:
        feature_flow({"blocks.0.hook_out": before, "blocks.1.hook_out": after}, top=TOP, progress=False)
    print(f"{(peak.largest - peak.before) / 1e6:.0f} {peak.largest / 1e6:.0f}")
    return 0


def in_own_process(latents: int, width: int, targets: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--memory", str(latents), str(width), str(targets)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout.split()
    return float(told[0]), float(told[1])


def speed(repeats: int) -> bool:
    a, b = rows(LATENTS, WIDTH, 0), rows(LATENTS, WIDTH, 1)
    products, matches = [], []
    for _ in range(repeats):
        for seconds, run in ((products, lambda: product(a, b)), (matches, lambda: nearest_rows(a, b, TOP))):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    isotropic_null(WIDTH, LATENTS, draws=DRAWS, seed=0)
    null = time.perf_counter() - started
    beside, whole = in_own_process(LATENTS, WIDTH, LATENTS)
    times = min(matches) / min(products)
    print(f"{LATENTS:,} × {WIDTH}, top {TOP}, {torch.get_num_threads()} threads, best of {repeats}")
    print(f"{'product alone':<24}{min(products):8.2f} s")
    print(f"{'matching':<24}{min(matches):8.2f} s   {times:.2f} ×   bound {TIMES_BOUND} ×")
    print(f"{'null, once per width':<24}{null:8.2f} s   {DRAWS:,} draws")
    print(f"{'beside the inputs':<24}{beside:8.0f} MB   bound {BESIDE_BOUND_MB} MB   (process {whole:.0f} MB)")
    return times <= TIMES_BOUND and beside <= BESIDE_BOUND_MB


def large(targets: int) -> bool:
    started = time.perf_counter()
    beside, whole = in_own_process(*LARGE, targets)
    took = time.perf_counter() - started
    print(f"{LARGE[0]:,} × {LARGE[1]:,}, {targets:,} targets: {took:.0f} s with making the rows")
    print(
        f"{'whole process':<24}{whole / 1e3:8.2f} GB   bound {LARGE_BOUND_GB} GB   (beside the inputs {beside:.0f} MB)"
    )
    return whole / 1e3 <= LARGE_BOUND_GB


def paths() -> bool:
    """Twelve residual sites whose rows are those of the site before, shuffled, with noise: long chains everywhere."""
    width, dictionaries, before = 16, {}, rows(LATENTS, 16, 0)
    for layer in range(12):
        site = f"blocks.{layer}.hook_out"
        dictionaries[site] = Dictionary.from_weights(
            before.T.contiguous(), torch.zeros(LATENTS), before, torch.zeros(width), budgets=(8,), site=site
        )
        before = before[torch.randperm(LATENTS, generator=torch.Generator().manual_seed(layer))]
    flow = feature_flow(dictionaries, thresholds={"residual": 0.9}, progress=False)
    flow.chain(flow.sites[5], 0)
    slowest = {"chain": 0.0, "neighbourhood": 0.0, "born": 0.0}
    for latent in range(0, LATENTS, 1024):
        for name, run in _questions(flow, latent).items():
            started = time.perf_counter()
            run()
            slowest[name] = max(slowest[name], 1e3 * (time.perf_counter() - started))
    for name, took in slowest.items():
        print(f"{name:<24}{took:8.1f} ms   bound {PATH_BOUND_MS} ms   ({flow.edges.height:,} edges)")
    return max(slowest.values()) <= PATH_BOUND_MS


def _questions(flow: FeatureFlow, latent: int):
    site = flow.sites[5]
    return {
        "chain": lambda: flow.chain(site, latent),
        "neighbourhood": lambda: flow.neighbourhood(site, latent, 2),
        "born": lambda: flow.born(flow.sites[-1], latent),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--targets", type=int, default=LARGE[0])
    parser.add_argument("--paths", action="store_true")
    parser.add_argument("--memory", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        return memory(*arguments.memory)
    if arguments.large:
        return int(not large(arguments.targets))
    if arguments.paths:
        return int(not paths())
    return int(not speed(arguments.repeats))


if __name__ == "__main__":
    sys.exit(main())
