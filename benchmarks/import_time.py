"""How long `import nb_sae` takes in a fresh interpreter; the bound is 0.15 s (median).

python benchmarks/import_time.py [repeats]
"""

from __future__ import annotations

import statistics
import subprocess
import sys

BOUND_S = 0.15
_SNIPPET = "import time; start = time.perf_counter(); import nb_sae; print(time.perf_counter() - start)"


def import_seconds(repeats: int) -> list[float]:
    """Seconds per `import nb_sae`, each in an interpreter of its own; the first, which may compile, is not counted."""
    runs = [
        float(subprocess.run([sys.executable, "-c", _SNIPPET], capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats + 1)
    ]
    return runs[1:]


def main() -> int:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    seconds = import_seconds(repeats)
    median = statistics.median(seconds)
    print(
        f"import nb_sae: median {median * 1e3:.1f} ms of {repeats} "
        f"({min(seconds) * 1e3:.1f}-{max(seconds) * 1e3:.1f}), bound {BOUND_S * 1e3:.0f} ms"
    )
    return int(median >= BOUND_S)


if __name__ == "__main__":
    sys.exit(main())
