"""What collecting costs over the bare model forward on the same loader (bound: 10 %).

Both are run in turns in one process, on the same inputs, with the same decode pipeline and batch size; the bare
forward is `encode_image` on the batches of that pipeline, its result thrown away.

    python benchmarks/collect.py --inputs 4000 --workers 2
    python benchmarks/collect.py --model ViT-B-32 --random-weights --inputs 20000 --workers 8
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import nb_sae as ns
from nb_sae.store.decoding import Decoder, decoded
from nb_sae.types import HookedModel, Modality


class NoiseImages:
    """Pictures of noise, kept in memory, so that only decoding work of the preprocessing is left."""

    modality: Modality = "image"
    name = "noise"

    def __init__(self, count: int, pixels: int) -> None:
        random = np.random.default_rng(0)
        self._pictures = [
            Image.fromarray(random.integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)) for _ in range(256)
        ]
        self._keys = [f"{number:06d}" for number in range(count)]

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, input_id: int) -> Image.Image:
        return self._pictures[input_id % len(self._pictures)]


def load(arguments: argparse.Namespace) -> HookedModel:
    if not arguments.random_weights:
        return ns.load_clip(arguments.model, device=arguments.device)
    import open_clip

    module, _, preprocess = open_clip.create_model_and_transforms(arguments.model, device=arguments.device or "cpu")
    return ns.load_clip(module.eval(), preprocess=preprocess, name=f"{arguments.model} (random)")


def bare_forward(model: HookedModel, inputs: NoiseImages, batch: int, workers: int) -> None:
    decoder = Decoder(inputs, model.preprocessor("image"))
    ranges = [range(start, min(start + batch, len(inputs))) for start in range(0, len(inputs), batch)]
    with decoded(decoder, ranges, workers=workers, pin=model.device.type == "cuda") as batches, torch.no_grad():
        for one in batches:
            if one.tensor is not None:
                model.module.encode_image(one.tensor.to(model.device, non_blocking=True))
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def collect(model: HookedModel, inputs: NoiseImages, batch: int, workers: int, sites: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ns.ActivationStore.collect(
            model, inputs, site=sites, path=Path(folder) / "s", batch_inputs=batch, workers=workers, progress=False
        )


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process and its workers: these hold also on a busy machine."""

    def cpu() -> float:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    wall_start, cpu_start = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - wall_start, cpu() - cpu_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--random-weights", action="store_true", help="build the open_clip model without a download")
    parser.add_argument("--site", action="append", help="may be repeated; default: image_embed")
    parser.add_argument("--inputs", type=int, default=4000)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    model, inputs = load(arguments), NoiseImages(arguments.inputs, arguments.pixels)
    sites = arguments.site or ["image_embed"]
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "collect": []}
    small = NoiseImages(arguments.batch * 2, arguments.pixels)
    bare_forward(model, small, arguments.batch, 0)
    collect(model, small, arguments.batch, 0, sites)
    for _ in range(arguments.repeats):
        times["bare"].append(seconds(lambda: bare_forward(model, inputs, arguments.batch, arguments.workers)))
        times["collect"].append(seconds(lambda: collect(model, inputs, arguments.batch, arguments.workers, sites)))
    report: dict[str, object] = {
        "model": model.name, "device": str(model.device), "threads": torch.get_num_threads(), "sites": sites,
        "inputs": len(inputs), "batch": arguments.batch, "workers": arguments.workers,
    }  # fmt: skip
    for place, clock in enumerate(("wall", "cpu")):
        bare, full = ([one[place] for one in times[name]] for name in ("bare", "collect"))
        report[clock] = {
            "bare_s": round(statistics.median(bare), 3),
            "collect_s": round(statistics.median(full), 3),
            "ratio_of_medians": round(statistics.median(full) / statistics.median(bare), 3),
            "all_ratios": [round(b / a, 3) for a, b in zip(bare, full, strict=True)],
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
