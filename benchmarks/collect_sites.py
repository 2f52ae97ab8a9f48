"""What 12 sites from one pass cost over the pass without hooks; the bound is 1.25 × that pass plus the write.

    python benchmarks/collect_sites.py                          # GPT-2's form, random weights: 8 layers of width 384
    python benchmarks/collect_sites.py --layers 12 --width 768

Residual stream, attention and MLP output of the last four layers of a model without a head, so that both passes run the
same modules. The bare pass is the model on the same batches from the same decoder, its result thrown away. The write is
that of the same bytes as the same files (checksum, sync, rename) by itself; its rate is printed. Runs are interleaved;
the fastest of each counts, and processor time of all threads is printed for a machine with other work. Exits with 1 if
the bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nb_sae as ns
from nb_sae.machine import readable_bytes
from nb_sae.models.lm import LanguageModel
from nb_sae.store import files
from nb_sae.store.decoding import Decoder, decoded
from nb_sae.types import Modality, Prepared

BOUND, SITES, VOCABULARY = 1.25, 12, 4096


class Contexts:
    """Contexts of random tokens, numbered."""

    modality: Modality = "text"
    name = "random tokens"

    def __init__(self, count: int) -> None:
        self._keys = [f"{number:06d}" for number in range(count)]

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, input_id: int) -> str:
        return str(input_id)


class Tokens:
    """A context from its number: no tokenizer takes part."""

    def __init__(self, positions: int, vocabulary: int) -> None:
        self.positions, self.vocabulary = positions, vocabulary

    def __call__(self, raw: str) -> Prepared:
        generator = torch.Generator().manual_seed(int(raw))
        return Prepared(torch.randint(0, self.vocabulary, (1, self.positions), generator=generator))


class RandomModel(LanguageModel):
    """GPT-2's form, no head, no tokenizer."""

    def __init__(self, layers: int, width: int, positions: int) -> None:
        import transformers

        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=width // 64, n_positions=positions,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        module = transformers.GPT2Model(config)
        super().__init__(module, tokenizer=None, context_tokens=positions, name="random GPT-2")

    def preprocessor(self, modality: Modality = "text", *, context_tokens: int | None = None) -> Any:
        return Tokens(self.context_tokens, VOCABULARY)

    @property
    def last_sites(self) -> list[str]:
        layers = len(self.module.h)  # pyright: ignore
        return [
            f"h.{layer}{part}" for layer in range(layers - SITES // 3, layers) for part in (".attn", ".mlp", "")
        ]  # fmt: skip


@torch.no_grad()
def bare(model: RandomModel, inputs: Contexts, batch: int) -> None:
    decoder = Decoder(inputs, model.preprocessor())
    ranges = [range(start, min(start + batch, len(inputs))) for start in range(0, len(inputs), batch)]
    with decoded(decoder, ranges, workers=0, pin=False) as batches:
        for one in batches:
            model.forward(one.tensor)


def write(rows: Tensor, folder: Path, shards: int) -> None:
    """The bytes of every shard of every site, as they are written when they are collected."""
    for site in range(SITES):
        for number, part in enumerate(rows.chunk(shards)):
            files.write_rows(folder / f"{site}-{number}", [part], d_in=rows.shape[1], dtype=rows.dtype)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    start, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - worked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--positions", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=4)
    arguments = parser.parse_args()
    model, inputs = RandomModel(arguments.layers, arguments.width, arguments.positions), Contexts(arguments.inputs)
    sites, batch = model.last_sites, arguments.batch
    rows = torch.randn(arguments.inputs * arguments.positions, arguments.width).half()
    size = SITES * rows.nbytes
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "collect": [], "write": []}
    bare(model, Contexts(batch), batch)
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            times["bare"].append(timed(lambda: bare(model, inputs, batch)))
            times["collect"].append(timed(lambda f=folder: collect(model, inputs, sites, f / "acts", batch)))
            shards = len(list((folder / "acts").glob("*/*.safetensors"))) // SITES
            times["write"].append(timed(lambda f=folder, n=shards: write(rows, f, n)))
    print(
        f"{arguments.layers} layers of width {arguments.width}, {arguments.inputs} contexts of {arguments.positions} "
        f"tokens, {SITES} sites, {readable_bytes(size)} in float16, {torch.get_num_threads()} thread(s), torch "
        f"{torch.__version__}, fastest of {arguments.repeats}\n"
    )
    print("| seconds | bare pass | write | collect | (collect − write) / bare |\n| --- | ---: | ---: | ---: | ---: |")
    best: dict[str, float] = {}
    for place, clock in enumerate(("wall", "processor")):
        pass_s, write_s, collect_s = (min(one[place] for one in times[name]) for name in ("bare", "write", "collect"))
        ratio = (collect_s - write_s) / pass_s
        best[clock] = ratio
        print(f"| {clock} | {pass_s:.2f} | {write_s:.2f} | {collect_s:.2f} | {ratio:.3f} |")
        if clock == "wall":
            print_rate = f"written at {readable_bytes(size / write_s)}/s"
    print(f"\n{print_rate}; bound {BOUND} on the wall clock: {'held' if best['wall'] <= BOUND else 'MISSED'}")
    return int(best["wall"] > BOUND)


def collect(model: RandomModel, inputs: Contexts, sites: list[str], path: Path, batch: int) -> None:
    ns.ActivationStore.collect(
        model, inputs, site=sites, path=path, batch_inputs=batch, workers=0, progress=False, inputs_per_shard=4 * batch
    )


if __name__ == "__main__":
    sys.exit(main())
