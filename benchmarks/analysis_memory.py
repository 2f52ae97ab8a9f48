"""Peak memory of `analyze` at two store sizes: it is bounded by latents × examples, not by rows.

    python benchmarks/analysis_memory.py [--rows 200000 1600000]

Each size runs in a process of its own on rows on disk. The figure is the growth of the anonymous resident set
(RssAnon, read in a thread) while `analyze` runs: pages of the mapped file belong to the system, not to us.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

D_IN, D_SAE, TOKENS = 64, 512, 64


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not report RssAnon")


def measure(rows: int, folder: Path) -> dict[str, float]:
    import numpy as np
    import torch

    import nb_sae as ns

    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=-1)
    dictionary = ns.Dictionary.from_weights(
        directions.T.contiguous(), torch.zeros(D_SAE), directions, torch.zeros(D_IN), budgets=(4, 8, 16)
    )
    file = folder / f"{rows}.npy"
    written = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(rows, D_IN))
    for start in range(0, rows, 100_000):
        stop = min(rows, start + 100_000)
        written[start:stop] = torch.randn(stop - start, D_IN, generator=generator).numpy()
    written.flush()
    del written
    store = ns.ActivationStore.from_file(file)
    before, peak, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    ns.analyze(dictionary, store, top=16, per_interval=2, progress=False)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return {"rows": rows, "peak_mib": (peak[0] - before) / 2**20, "seconds": seconds, "rows_per_s": rows / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_600_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.folder)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows:
            command = [sys.executable, __file__, "--one", str(rows), "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print("{rows:>10,} rows: peak +{peak_mib:.0f} MiB, {rows_per_s:,.0f} rows/s".format(**results[-1]))
    print(
        f"ratio of peaks: {results[-1]['peak_mib'] / results[0]['peak_mib']:.2f} for "
        f"{results[-1]['rows'] / results[0]['rows']:.0f} times the rows"
    )


if __name__ == "__main__":
    main()
