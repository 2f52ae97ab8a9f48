"""Rows per second from a store on disk to the training step, and the share of a step that waits for rows.

    python benchmarks/loading.py            # 200,000 rows of 768 float16 numbers, streamed: nothing is kept in memory
    python benchmarks/loading.py --quick

The file is written first and dropped from the page cache where the system allows it, so the first epoch reads the
disk. Batches are read ahead in the background: what counts is how long a step waits for the next one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from train_step import Ours

import nb_sae as ns


def write(path: Path, rows: int, d: int) -> None:
    random = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, d))
    for start in range(0, rows, 8192):
        block = out[start : start + 8192]
        block[:] = random.standard_normal(block.shape, dtype=np.float32)
    out.flush()


def forget(path: Path) -> bool:
    """Drop the file from the page cache."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--n", type=int, default=6144)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=None, help="where the file is written; default: a temporary one")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.d, arguments.n, arguments.batch, arguments.steps = 5000, 48, 512, 256, 10
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "rows.npy"
        write(path, arguments.rows, arguments.d)
        store = ns.ActivationStore.from_file(path)
        store.resident_bytes = 0  # as for a store larger than memory
        cold = forget(path)
        start, count = time.perf_counter(), 0
        for batch in store.batches(arguments.batch, seed=0, device=device):
            count += len(batch)
        alone = count / (time.perf_counter() - start)
        forget(path)
        for name, budgets in (("TopK-64", (64,)), ("MSAE 16…256", (16, 32, 64, 128, 256))):
            waited, worked, steps = 0.0, 0.0, 0
            ours: Ours | None = None
            before = time.perf_counter()
            for batch in store.batches(arguments.batch, seed=0, device=device):
                arrived = time.perf_counter()
                ours = ours or Ours(batch, arguments.n, budgets, "bfloat16")
                ours.x = batch
                ours()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                done = time.perf_counter()
                if steps:  # the first batch opens the store and builds the weights
                    waited, worked = waited + arrived - before, worked + done - arrived
                before, steps = done, steps + 1
                if steps > arguments.steps:
                    break
            rate, each = (steps - 1) * arguments.batch / (waited + worked), 1e3 / (steps - 1)
            share = waited / (waited + worked)
            print(
                f"{name}: {rate:,.0f} rows/s from disk to step; waiting for rows {share:.1%} of it "
                f"({each * waited:.1f} of {each * (waited + worked):.1f} ms; bound 10 %)"
            )
        bytes_ = alone * arguments.d * 2 / 1e6
        print(f"Loading alone: {alone:,.0f} rows/s, {bytes_:,.0f} MB/s, {'cold' if cold else 'warm'} file, {device}.")


if __name__ == "__main__":
    main()
