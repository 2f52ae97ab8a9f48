"""The weight logit lens of GPT-2's width and vocabulary, beside the matrix products alone.

    python benchmarks/logit_lens.py                  # 4,096 latents × 768 against 50,257 tokens, both sides
    python benchmarks/logit_lens.py --latents 24576  # the size of a trained dictionary

Bounds: 1.7 × the processor time of the products in the same run (null included), and 300 MB beside model and dictionary
while it runs: memory is a block of logits and latents × top, never latents × vocabulary (0.8 GB for 4,096 latents).
Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

import psutil
import torch
import transformers

import nb_sae as ns
from nb_sae.analysis.lens import BLOCK_BYTES, logit_lens

WIDTH, VOCABULARY, TOP = 768, 50_257, 10
TIMES_BOUND, BESIDE_BOUND_MB = 1.7, 300


def model() -> ns.types.HookedModel:
    config = transformers.GPT2Config(n_layer=1, n_embd=WIDTH, n_head=12, vocab_size=VOCABULARY, n_positions=128)
    return ns.load_lm(transformers.GPT2LMHeadModel(config))


def dictionary(latents: int) -> ns.Dictionary:
    rows = torch.nn.functional.normalize(
        torch.randn(latents, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    return ns.Dictionary.from_weights(
        rows.T.contiguous(), torch.zeros(latents), rows, torch.zeros(WIDTH), site="transformer.h.0"
    )


def products(one: ns.Dictionary, unembed: torch.Tensor) -> None:
    for rows in (one.W_dec, one.W_enc.T):
        for part in rows.split(BLOCK_BYTES // (4 * VOCABULARY)):
            part @ unembed


class Peak:
    """Largest resident size of this process while the block runs, looked at every 5 ms."""

    def __enter__(self) -> Peak:
        self.start = self.most = psutil.Process().memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def beside_mb(self) -> float:
        return (self.most - self.start) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, psutil.Process().memory_info().rss)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=4096)
    latents = parser.parse_args().latents
    lm, one = model(), dictionary(latents)
    logit_lens(lm, one, latents=[0], top=TOP)  # what is loaded on first use
    unembed = lm.module.lm_head.weight.detach().T
    start = time.process_time()
    products(one, unembed)
    alone = time.process_time() - start
    with Peak() as peak:
        start = time.process_time()
        frame = logit_lens(lm, one, top=TOP)
        taken = time.process_time() - start
    print(f"{latents:,} latents × {WIDTH} against {VOCABULARY:,} tokens, both sides, top {TOP}")
    print(f"{'products alone':24s}{alone:8.1f} s")
    print(f"{'logit lens':24s}{taken:8.1f} s   {taken / alone:.2f} × (bound {TIMES_BOUND})")
    print(f"{'memory beside':24s}{peak.beside_mb:8.0f} MB  (bound {BESIDE_BOUND_MB})")
    print(f"{'table':24s}{frame.height:8,} lines, {frame.estimated_size() / 2**20:.0f} MB")
    return int(taken > TIMES_BOUND * alone or peak.beside_mb > BESIDE_BOUND_MB)


if __name__ == "__main__":
    sys.exit(main())
