"""Training steps of other libraries, run by `train_step.py` in their own environment.

Reads names from standard input and answers each with one line of JSON: the seconds of one step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # its Triton path fails on a CPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

Step = Callable[[torch.Tensor], object]


def sparsify_topk(d: int, n: int, device: str) -> Step:
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    sae = SparseCoder(d, SparseCoderConfig(num_latents=n, k=64), device=device)
    optimizer = SignSGD(sae.parameters(), lr=1e-4)
    silent = torch.zeros(n, device=device)

    def step(x: torch.Tensor) -> None:  # as its trainer
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, dead_mask=silent > 10_000_000)
        fired = torch.zeros(n, dtype=torch.bool, device=device)
        fired[out.latent_indices.flatten()] = True
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent.add_(len(x)).masked_fill_(fired, 0)

    return step


def overcomplete_topk(d: int, n: int, device: str) -> Step:
    from overcomplete.sae import TopKSAE
    from overcomplete.sae.trackers import DeadCodeTracker

    sae = TopKSAE(d, n, top_k=64, device=device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)
    tracker = DeadCodeTracker(n, device)

    def step(x: torch.Tensor) -> None:  # as its train_sae without monitoring
        optimizer.zero_grad()
        _, codes, x_hat = sae(x)
        loss = (x - x_hat).square().mean()
        tracker.update(codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


def dictionary_learning_topk(d: int, n: int, device: str) -> Step:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10_000, activation_dim=d, dict_size=n, k=64, layer=0, lm_name="x", device=device, warmup_steps=10
    )
    counter = iter(range(10**9))
    return lambda x: trainer.update(next(counter), x)


def dictionary_learning_matryoshka(d: int, n: int, device: str) -> Step:
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    trainer = MatryoshkaBatchTopKTrainer(
        steps=10_000,
        activation_dim=d,
        dict_size=n,
        k=64,
        layer=0,
        lm_name="x",
        group_fractions=[1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2],
        device=device,
        warmup_steps=10,
    )
    counter = iter(range(10**9))
    return lambda x: trainer.update(next(counter), x)


def _sae_lens(name: str, d: int, n: int, device: str) -> Step:
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    common = {"d_in": d, "d_sae": n, "device": device, "dtype": "float32", "k": 64}
    if name == "matryoshka":
        widths = [n // 16, n // 8, n // 4, n // 2, n]
        config = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**common, matryoshka_widths=widths)
        sae = sae_lens.MatryoshkaBatchTopKTrainingSAE(config)
    elif name == "batch":
        sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**common))
    else:
        sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**common))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)
    silent, frequency = torch.zeros(n, device=device), torch.zeros(n, device=device)

    def step(x: torch.Tensor) -> None:  # as its SAETrainer
        sae.train()
        out = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x, dead_neuron_mask=silent > 1000, coefficients={}, n_training_steps=0, is_logging_step=False
            )
        )
        with torch.no_grad():
            firing = out.feature_acts.bool().float()
            silent.add_(1)
            silent[firing.sum(-2).bool()] = 0
            frequency.add_(firing.sum(0))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


PEERS: dict[str, Callable[[int, int, str], Step]] = {
    "sparsify TopK-64": sparsify_topk,
    "overcomplete TopK-64": overcomplete_topk,
    "sae-lens TopK-64": lambda d, n, device: _sae_lens("top", d, n, device),
    "sae-lens BatchTopK-64": lambda d, n, device: _sae_lens("batch", d, n, device),
    "dictionary-learning TopK-64": dictionary_learning_topk,
    "sae-lens Matryoshka, 5 widths": lambda d, n, device: _sae_lens("matryoshka", d, n, device),
    "dictionary-learning Matryoshka, 5 groups": dictionary_learning_matryoshka,
}


def main() -> None:
    rows_file, n, device, clock_name = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    clock = time.process_time if clock_name == "cpu" else time.perf_counter
    x = torch.load(rows_file, weights_only=True).to(device)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        name = line.strip()
        try:
            if name not in steps:
                steps[name] = PEERS[name](x.shape[1], n, device)
                steps[name](x)
            start = clock()
            steps[name](x)
            if device != "cpu":
                torch.cuda.synchronize()
            answer = {"seconds": clock() - start}
        except Exception as error:  # a peer that cannot run is reported, not hidden
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
