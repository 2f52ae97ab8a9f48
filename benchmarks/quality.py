"""One Matryoshka SAE against a TopK SAE trained for each k alone, and PCA: the tables of docs/quality.md.

    python benchmarks/quality.py [--sets abcd] [--steps 1000] [--seeds 2] [--wide-lm FOLDER] [--out build/quality]

Sets: (a) image embeddings of drawn faces, (b) their patch tokens in a late block, (c) residuals of the demo language
model, (d) planted data: 64 dimensions, 256 atoms, 4 active, (e) residuals of a language model of width 384, which
`python scripts/train_demo_lm.py --width 384 --layers 3 --minutes 9 --out FOLDER` makes. Rows are collected once into
`--out`. Every dedicated SAE is tuned (learning rate × encoder scale), the MSAE runs at the library's defaults.

Bounds: FVU on unseen rows ≤ 1.02 × the best dedicated SAE at every k, < 2 % of latents unused at every k over a
million training rows or the whole store; on (d) mean max-cosine to the atoms ≥ 0.95. Exit status 1 if one is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import nb_sae as ns
from nb_sae.sae.metrics.directions import mmcs
from nb_sae.sae.metrics.recovery import recovery_curve

ROOT = Path(__file__).resolve().parents[1]
BATCH_ROWS = 1024
USAGE_ROWS = 1_000_000
TEST_ROWS = 20_000
RATES = (6e-3, 1.5e-2)
ENCODER_SCALES = (0.2, 1.0)
FACES, PATCH_FACES, DOCUMENTS, PLANTED_ROWS = 40_000, 16_000, 9_000, 300_000
RATIO, UNUSED, TRUTH = 1.02, 0.02, 0.95


@dataclass(frozen=True)
class DataSet:
    """Rows to train on and rows to judge by, in memory, and the k's that count."""

    train: ns.ActivationStore
    test: torch.Tensor
    budgets: tuple[int, ...]
    atoms: torch.Tensor | None = None


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    missed = []
    for name in arguments.sets:
        data = load(name, arguments)
        lines = measure(name, data, arguments)
        (arguments.out / f"{name}.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
        print(table(name, data, lines), flush=True)
        missed += misses(name, lines)
    print("\n".join(missed) or "every bound is met")
    sys.exit(bool(missed))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="abcd", help="letters of the data sets")
    parser.add_argument("--steps", type=int, default=1000, help=f"optimiser steps of {BATCH_ROWS} rows, for every SAE")
    parser.add_argument("--seeds", type=int, default=2, help="runs of the MSAE; the mean is compared")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates of the dedicated SAEs")
    parser.add_argument("--encoder-scales", type=float, nargs="+", default=ENCODER_SCALES, help="and their encoders")
    parser.add_argument("--wide-lm", type=Path, help="folder of the language model for (e)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "quality")
    arguments = parser.parse_args()
    if unknown := set(arguments.sets) - set("abcde"):
        parser.error(f"--sets {arguments.sets}: no data set is called {sorted(unknown)}; use letters of abcde")
    if "e" in arguments.sets and arguments.wide_lm is None:
        parser.error("(e) needs --wide-lm, a folder that scripts/train_demo_lm.py wrote")
    return arguments


def load(name: str, arguments: argparse.Namespace) -> DataSet:
    """Collect or reopen the rows of a data set and hold some of its inputs back."""
    if name == "d":
        return planted()
    folder = arguments.out / "rows" / name
    if name in "ab":
        faces = ns.demo_faces(FACES if name == "a" else PATCH_FACES, seed=1)
        site, tokens = ("image_embed", "all") if name == "a" else ("visual.transformer.resblocks.2", "patches")
        store = ns.ActivationStore.collect(ns.load_clip("demo"), faces, site=site, path=folder, tokens=tokens)
    else:
        lm = ns.load_lm("demo") if name == "c" else ns.load_lm(str(arguments.wide_lm))
        layer = 2 if name == "c" else 1
        store = ns.ActivationStore.collect(lm, documentation(), site=f"gpt_neox.layers.{layer}", path=folder)
    train, test = store.split(test=0.1, seed=0)
    return DataSet(train, first_rows(test, TEST_ROWS), quarters(store.d_in))


def documentation() -> ns.Texts:
    """Docstrings and documentation of the installed packages, as the demo language model read them."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from demo_lm_corpus import collect_corpus  # pyright: ignore[reportMissingImports]

    documents = sorted(collect_corpus(ROOT / "pyproject.toml").train, key=lambda document: document.text)
    random.Random(0).shuffle(documents)
    return ns.texts([document.text for document in documents[:DOCUMENTS]], name="documentation")


def planted() -> DataSet:
    """Sparse sums of known directions."""
    sys.path.insert(0, str(ROOT / "tests"))
    from planted import atoms, sparse_rows  # pyright: ignore[reportMissingImports]

    directions = atoms()
    train = ns.ActivationStore.from_tensor(sparse_rows(directions, PLANTED_ROWS, seed=1)[0], site="planted")
    return DataSet(train, sparse_rows(directions, TEST_ROWS, seed=99)[0], (4, 8), directions)


def quarters(d_in: int) -> tuple[int, ...]:
    """d/24, d/12, d/6 and d/3, as the nearest powers of two."""
    first = 2 ** round(torch.tensor(d_in / 24).log2().item())
    return tuple(first * 2**step for step in range(4))


def first_rows(source: ns.ActivationStore, limit: int) -> torch.Tensor:
    parts, held = [], 0
    for _, rows in source.chunks(8192):
        parts.append(rows.float())
        held += len(rows)
        if held >= limit:
            break
    return torch.cat(parts)[:limit]


def measure(name: str, data: DataSet, arguments: argparse.Namespace) -> list[dict]:
    """One line per SAE and k, PCA's first."""
    rows = arguments.steps * BATCH_ROWS
    seen = first_rows(data.train, USAGE_ROWS)
    held_out = ns.ActivationStore.from_tensor(data.test)
    pca = ns.pca_quality(data.train, held_out, data.budgets)
    lines: list[dict] = [{"sae": "pca", "k": k, "fvu": f} for k, f in zip(pca["k"], pca["fvu"], strict=True)]

    def run(sae: str, config: ns.SAEConfig, train: ns.TrainConfig, ks: Sequence[int], **settings: float) -> None:
        started = time.perf_counter()
        dictionary = ns.train_sae(data.train, config, train, progress=False)
        seconds = round(time.perf_counter() - started, 1)
        truth = {} if data.atoms is None else {"truth": mmcs(dictionary, data.atoms).value}
        fvu, usage = recovery_curve(dictionary, data.test, ks), recovery_curve(dictionary, seen, ks)
        for k, f, dead in zip(ks, fvu["fvu"], usage["dead"], strict=True):
            lines.append({"sae": sae, "k": k, "fvu": f, "unused": dead, "seconds": seconds, **settings, **truth})
            print(f"({name}) {lines[-1]}", flush=True)

    for k, rate, scale in itertools.product(data.budgets, arguments.rates, arguments.encoder_scales):
        config = ns.SAEConfig.topk(k, encoder_scale=scale, scale_levels=False)
        plain = ns.TrainConfig(
            rows=rows, batch_rows=BATCH_ROWS, learning_rate=rate, betas=(0.9, 0.999), principal_axes=False
        )
        run("dedicated", config, plain, [k], rate=rate, encoder_scale=scale)
    default = ns.SAEConfig.msae().resolve(data.train.d_in)
    trained = default.budgets or ()
    for seed in range(arguments.seeds):
        train = ns.TrainConfig(rows=rows, batch_rows=BATCH_ROWS, seed=seed)
        run("msae", default, train, sorted({*trained, *data.budgets}), seed=seed)
    for k in data.budgets:
        train = ns.TrainConfig(rows=rows, batch_rows=BATCH_ROWS)
        run("dedicated, our recipe", ns.SAEConfig.topk(k), train, [k])
    return lines


def best(lines: list[dict], k: int) -> dict:
    return min((line for line in lines if line["sae"] == "dedicated" and line["k"] == k), key=lambda line: line["fvu"])


def mean(lines: list[dict], k: int, field: str, sae: str = "msae") -> float:
    values = [line[field] for line in lines if line["sae"] == sae and line["k"] == k]
    return sum(values) / len(values)


def table(name: str, data: DataSet, lines: list[dict]) -> str:
    """Markdown."""
    out = [
        f"\n({name}) {len(data.train):,} rows of width {data.train.d_in}, {len(data.test):,} unseen\n",
        "| k | PCA | dedicated, tuned | unused | rate, encoder | our recipe, one k | MSAE | unused | ratio |",
        "| ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for k in data.budgets:
        top = best(lines, k)
        fvu = mean(lines, k, "fvu")
        out.append(
            f"| {k} | {mean(lines, k, 'fvu', 'pca'):.4f} | {top['fvu']:.4f} | {top['unused']:.1%} | {top['rate']:g}, "
            f"{top['encoder_scale']:g} | {mean(lines, k, 'fvu', 'dedicated, our recipe'):.4f} | {fvu:.4f} | "
            f"{mean(lines, k, 'unused'):.1%} | {fvu / top['fvu']:.3f} |"
        )
    if data.atoms is not None:
        out.append(f"\nmean max-cosine to the truth: {mean(lines, data.budgets[0], 'truth'):.3f}")
    return "\n".join(out)


def misses(name: str, lines: list[dict]) -> list[str]:
    """Every bound that is not met."""
    found = []
    for k in sorted({line["k"] for line in lines if line["sae"] == "dedicated"}):
        ratio = mean(lines, k, "fvu") / best(lines, k)["fvu"]
        if ratio > RATIO:
            found.append(f"({name}) k={k}: FVU {ratio:.3f} × the dedicated SAE (bound {RATIO})")
    if name == "d" and (truth := mean(lines, 4, "truth")) < TRUTH:
        found.append(f"(d) mean max-cosine {truth:.3f} (bound {TRUTH})")
    if name != "d":
        trained = sorted({line["k"] for line in lines if line["sae"] == "msae"})
        shares = {k: mean(lines, k, "unused") for k in trained}
        found += [f"({name}) k={k}: {u:.1%} unused (bound < {UNUSED:.0%})" for k, u in shares.items() if u >= UNUSED]
    return found


if __name__ == "__main__":
    main()
