"""Time and memory of naming 16k latents by 20k embedded words, beside the one blocked matrix product it needs.

    python benchmarks/naming.py [--quick] [--repeats 3]

Bounds: the search for names takes ≤ 1.6 times the blocked product alone (the null apart), and `name_concepts` ≤ 1 GB
above its inputs. Product and search are timed in turn in one process, the least of the repeats counts. Memory is the
growth of the resident set (read in a thread) during the whole call, null included. Exits 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

import psutil
import torch

import nb_sae as ns
from nb_sae.concepts.naming import RUNNER_UPS, name_concepts
from nb_sae.concepts.nearest import BLOCK_BYTES, nearest_words
from nb_sae.concepts.words import EmbeddedWords
from nb_sae.data.vocabulary import Vocabulary

RATIO, BYTES = 1.6, 1e9


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    random = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(random, dim=-1)


def product(directions: torch.Tensor, transposed: torch.Tensor) -> None:
    """The same product in the same blocks, into one buffer, and nothing else."""
    block = max(1, BLOCK_BYTES // (4 * transposed.shape[1]))
    held = torch.empty(min(block, len(directions)), transposed.shape[1])
    for part in directions.split(block):
        torch.mm(part, transposed, out=held[: len(part)])


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_growth(call) -> tuple[float, int]:
    """Seconds, and how far the resident set rose above where it was."""
    process, done, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    took = seconds(call)
    done.set()
    watcher.join()
    return took, peak[0] - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4k latents and 20k words of width 256")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    latents, words, width = (4096, 20_000, 256) if arguments.quick else (16_384, 20_000, 768)
    directions, vectors = unit(latents, width, 0), unit(words, width, 1)
    listed = tuple(f"word{i}" for i in range(words))
    embedded = EmbeddedWords(vocabulary=Vocabulary(words=listed, phrases=listed, name="made up"), vectors=vectors)
    dictionary = ns.Dictionary.from_weights(directions.T, torch.zeros(latents), directions, torch.zeros(width))
    transposed = vectors.T.contiguous()
    took, grown = peak_growth(lambda: name_concepts(dictionary, None, embedded))
    alone, search = [], []
    for _ in range(arguments.repeats):
        alone.append(seconds(lambda: product(directions, transposed)))
        search.append(seconds(lambda: nearest_words(directions, vectors, None, RUNNER_UPS + 1)))
    ratio = min(search) / min(alone)
    print(f"{latents:,} latents × {words:,} words × {width}, {torch.get_num_threads()} threads")
    print(f"blocked product alone {min(alone):.2f} s, search {min(search):.2f} s: {ratio:.2f} times (bound {RATIO})")
    print(f"name_concepts in all, null included: {took:.2f} s, +{grown / 1e6:,.0f} MB above its inputs (bound 1,000)")
    sys.exit(int(ratio > RATIO or grown > BYTES))


if __name__ == "__main__":
    main()
