"""One bias report over 100 concepts × 20,000 rows, probe, controls, conditions and retrieval included, in ≤ 60 s.

    python benchmarks/bias_report.py [--rows 20000] [--latents 4096] [--width 512] [--concepts 100]

Rows are sparse sums of random directions; what is timed does not depend on what they mean. Prints the seconds of each
call; exit status 1 if the bound is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.concepts.bias import bias_report

BOUND_S = 60.0
ACTIVE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 20_000), ("latents", 4096), ("width", 512), ("concepts", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    dictionary, x = planted(arguments.rows, arguments.latents, arguments.width)
    random = np.random.default_rng(0)
    attributes = pl.DataFrame(
        {
            "key": [str(number) for number in range(len(x))],
            "Male": random.random(len(x)) < 0.4,
            "Young": random.random(len(x)) < 0.6,
            "race": random.choice(list("abcdefg"), len(x)),
        }
    )
    store = ns.ActivationStore.from_tensor(x)
    queries = {str(number): dictionary.W_dec[number] for number in range(12)}
    concepts = list(range(arguments.concepts))
    missed = False
    for target, given in (("Male", ("Young",)), ("race", ("Male",))):
        start, cpu = time.perf_counter(), time.process_time()
        report = bias_report(dictionary, store, attributes, target, concepts, given=given, queries=queries)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        bound = f", bound {BOUND_S:.0f} s" if target == "Male" else ""
        print(f"{report}: {wall:.1f} s ({cpu:.1f} s of one core), load {os.getloadavg()[0]:.1f}{bound}", flush=True)
        missed |= target == "Male" and wall > BOUND_S
    start = time.perf_counter()
    report.mitigate(concepts[:3])
    print(f"mitigate: {time.perf_counter() - start:.1f} s")
    sys.exit(missed)


def planted(rows: int, latents: int, width: int) -> tuple[ns.Dictionary, torch.Tensor]:
    """A top-k dictionary of random directions and rows of `ACTIVE` of them."""
    generator = torch.Generator().manual_seed(0)
    W = F.normalize(torch.randn(latents, width, generator=generator), dim=-1)
    dictionary = ns.Dictionary.from_weights(
        W.T.contiguous(), torch.zeros(latents), W, torch.zeros(width), budgets=(16, ACTIVE)
    )
    x = torch.empty(rows, width)
    for start in range(0, rows, 4096):
        part = x[start : start + 4096]
        chosen = torch.rand(len(part), latents, generator=generator).topk(ACTIVE).indices
        part.copy_((torch.rand(*chosen.shape, 1, generator=generator) * W[chosen]).sum(1))
    return dictionary, x


if __name__ == "__main__":
    main()
