"""One Matryoshka SAE against a TopK SAE trained for each k alone, and PCA: tables and figure of docs/quality.md.

    python benchmarks/quality.py [--sets abcd] [--steps 1000] [--seeds 2] [--wide-lm FOLDER] [--out build/quality]
    python benchmarks/quality.py --sets "" --docs         # tables and figure into docs/, from what was measured

Sets: (a) image embeddings of drawn faces, (b) their patch tokens in a late block, (c) residuals of the demo language
model, (d) planted data: 64 dimensions, 256 atoms, 4 active, (e) residuals of a language model of width 384, which
`python scripts/train_demo_lm.py --width 384 --layers 3 --minutes 9 --out FOLDER` makes. Rows are collected once into
`--out`, and every run leaves its lines there: one that is there already is not repeated.

Each dedicated SAE is tuned: recipe (`RECIPES`) × learning rate × encoder scale. The MSAE runs at the defaults.

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
from typing import Any

import torch
from figure import Line, Panel, write_panels  # pyright: ignore[reportMissingImports]

import nb_sae as ns
from nb_sae.sae.metrics.directions import mmcs
from nb_sae.sae.metrics.recovery import recovery_curve

ROOT = Path(__file__).resolve().parents[1]
BATCH_ROWS = 1024
USAGE_ROWS, USAGE_STEP, SURELY_USED = 1_000_000, 100_000, 0.01
"""Rows in which a latent has to be selected; counting ends early once less than this share is unused at every k."""
TEST_ROWS = 20_000
RATES = (6e-3, 1.5e-2)
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"betas": (0.9, 0.999), "principal_axes": False},
    "ours": {"betas": (0.5, 0.99), "principal_axes": True},
}
"""Of the dedicated SAEs: Adam as it is used everywhere, and the settings of the nested default."""
FACES, PATCH_FACES, DOCUMENTS, PLANTED_ROWS = 40_000, 16_000, 9_000, 300_000
RATIO, UNUSED, TRUTH = 1.02, 0.02, 0.95
NAMES = {
    "a": "image embeddings of drawn faces",
    "b": "patch tokens of drawn faces, block 2",
    "c": "demo language model, after layer 2",
    "d": "planted: 256 atoms, 4 active",
    "e": "language model of width 384, after layer 1",
}

Lines = list[dict[str, Any]]


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
    for name in arguments.sets:
        measure(name, load(name, arguments), arguments)
    found = {name: lines for name in NAMES if ks_of(lines := read_lines(arguments.out, name))}
    if arguments.docs:
        write_docs(found)
    missed: list[str] = []
    for name, lines in found.items():
        print(table(name, lines), flush=True)
        missed += misses(name, lines)
    print("\n" + ("\n".join(missed) or "every bound is met"))
    sys.exit(bool(missed))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="abcd", help="letters of the data sets")
    parser.add_argument("--only", choices=("dedicated", "msae"), help="one half of the runs")
    parser.add_argument("--steps", type=int, default=1000, help=f"optimiser steps of {BATCH_ROWS} rows, for every SAE")
    parser.add_argument("--seeds", type=int, default=2, help="runs of the MSAE; the mean is compared")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates of the dedicated SAEs")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=tuple(RECIPES), help="and their recipes")
    parser.add_argument("--encoder-scales", type=float, nargs="+", default=(0.2,), help="and their encoders")
    parser.add_argument("--wide-lm", type=Path, help="folder of the language model for (e)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "quality")
    parser.add_argument("--docs", action="store_true", help="write tables, numbers and figure into docs/")
    arguments = parser.parse_args()
    if unknown := set(arguments.sets) - set(NAMES):
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


def unused(dictionary: ns.Dictionary, source: ns.ActivationStore, ks: Sequence[int]) -> tuple[list[float], int]:
    """Share of latents that no row selects within each k, and how many rows were asked."""
    used = torch.zeros(len(ks), dictionary.d_sae, dtype=torch.bool)
    asked, stop = 0, USAGE_STEP
    for _, rows in source.chunks(8192):
        values, indices = dictionary.encode(rows.float(), max(ks), sparse=True)
        for level, k in enumerate(ks):
            used[level][indices[:, :k][values[:, :k] > 0]] = True
        asked += len(rows)
        if asked >= USAGE_ROWS or (asked >= stop and bool((used.double().mean(-1) > 1 - SURELY_USED).all())):
            break
    return (1 - used.double().mean(-1)).tolist(), asked


def measure(name: str, data: DataSet, arguments: argparse.Namespace) -> None:
    """One line per SAE and k, PCA's first, into the set's file."""
    path, held = arguments.out / f"{name}.jsonl", read_lines(arguments.out, name)
    rows, budgets = arguments.steps * BATCH_ROWS, data.budgets
    held_out = ns.ActivationStore.from_tensor(data.test)

    def keep(lines: Lines) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        print("\n".join(f"({name}) {line}" for line in lines), flush=True)

    def run(sae: str, config: ns.SAEConfig, train: ns.TrainConfig, ks: Sequence[int], **settings: Any) -> None:
        about = {"sae": sae, "steps": arguments.steps, **settings}
        if any(about.items() <= line.items() and line["k"] == ks[0] for line in held):
            return
        started = time.perf_counter()
        dictionary = ns.train_sae(data.train, config, train, progress=False)
        seconds = round(time.perf_counter() - started, 1)
        truth = {} if data.atoms is None else {"truth": mmcs(dictionary, data.atoms).value}
        fvu = recovery_curve(dictionary, data.test, ks)["fvu"]
        shares, asked = unused(dictionary, data.train, ks)
        numbers = zip(ks, fvu, shares, strict=True)
        keep(
            [
                {**about, "k": k, "fvu": f, "unused": u, "asked": asked, "seconds": seconds, **truth}
                for k, f, u in numbers
            ]
        )

    if not any(line["sae"] == "pca" for line in held):
        pca = ns.pca_quality(data.train, held_out, budgets)
        size = {"rows": len(data.train), "d_in": data.train.d_in, "test": len(data.test)}
        keep([{"sae": "pca", "k": k, "fvu": f, **size} for k, f in zip(pca["k"], pca["fvu"], strict=True)])
    ours = ns.SAEConfig.msae().resolve(data.train.d_in)
    trained = set(ours.budgets or ())
    for seed in range(arguments.seeds if arguments.only != "dedicated" else 0):
        train = ns.TrainConfig(rows=rows, batch_rows=BATCH_ROWS, seed=seed)
        run("msae", ns.SAEConfig.msae(), train, sorted({*trained, *budgets}), seed=seed)
    grid = itertools.product(arguments.recipes, arguments.rates, arguments.encoder_scales, budgets)
    for recipe, rate, scale, k in grid if arguments.only != "msae" else ():
        config = ns.SAEConfig.topk(k, encoder_scale=scale, scale_levels=False)
        train = ns.TrainConfig(rows=rows, batch_rows=BATCH_ROWS, learning_rate=rate, **RECIPES[recipe])
        run("dedicated", config, train, [k], recipe=recipe, rate=rate, encoder_scale=scale)


def read_lines(folder: Path, name: str) -> Lines:
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def of(lines: Lines, sae: str, k: int) -> Lines:
    return [line for line in lines if line["sae"] == sae and line["k"] == k]


def ks_of(lines: Lines) -> list[int]:
    """Those that every kind of SAE has."""
    return sorted(
        set.intersection(*({line["k"] for line in lines if line["sae"] == one} for one in ("dedicated", "msae")))
    )


def best(lines: Lines, k: int, *, least_unused: bool = False) -> dict[str, Any]:
    """The dedicated SAE with the lowest FVU; if asked, among those under `UNUSED`, or where none is the fullest one."""
    runs = of(lines, "dedicated", k)
    if least_unused:
        fewest = min(run["unused"] for run in runs)
        runs = [run for run in runs if run["unused"] < UNUSED or (fewest >= UNUSED and run["unused"] == fewest)]
    return min(runs, key=lambda run: run["fvu"])


def mean(lines: Lines, k: int, field: str, sae: str = "msae") -> float:
    values = [line[field] for line in of(lines, sae, k)]
    return sum(values) / len(values)


HEAD = (
    "| k | PCA | dedicated, tuned | unused | the same, < 2 % | MSAE | seeds apart | unused | ratio | ratio, < 2 % |",
    "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def table(name: str, lines: Lines) -> str:
    """Markdown."""
    size = of(lines, "pca", lines[0]["k"])[0]
    runs = len({line["seed"] for line in lines if line["sae"] == "msae"})
    out = [
        f"\n**({name})** {NAMES[name]}, d={size['d_in']}: {size['rows']:,} rows to train on, {size['test']:,} unseen; "
        f"{runs} {'seed' if runs == 1 else 'seeds'}\n",
        *HEAD,
    ]
    for k in ks_of(lines):
        top, full, ours = best(lines, k), best(lines, k, least_unused=True), of(lines, "msae", k)
        fvu, fvus = mean(lines, k, "fvu"), [line["fvu"] for line in ours]
        spread = f"{(max(fvus) - min(fvus)) / fvu:.1%}" if len(fvus) > 1 else "–"
        other = f"{full['fvu']:.4f}" + (f" ({full['unused']:.0%})" if full["unused"] >= UNUSED else "")
        out.append(
            f"| {k} | {mean(lines, k, 'fvu', 'pca'):.4f} | {top['fvu']:.4f} ({top['recipe']}, {top['rate']:g}) | "
            f"{top['unused']:.1%} | {other} | {fvu:.4f} | {spread} | {mean(lines, k, 'unused'):.1%} | "
            f"{fvu / top['fvu']:.3f} | {fvu / full['fvu']:.3f} |"
        )
    if name == "d":
        out.append(f"\nMean max-cosine to the atoms: {mean(lines, ks_of(lines)[0], 'truth'):.3f}.")
    return "\n".join(out)


def misses(name: str, lines: Lines) -> list[str]:
    """Every bound that is not met."""
    found = []
    for k in ks_of(lines):
        ratio = mean(lines, k, "fvu") / best(lines, k)["fvu"]
        if ratio > RATIO:
            found.append(f"({name}) k={k}: FVU {ratio:.3f} × the best dedicated SAE (bound {RATIO})")
    if name == "d" and (truth := mean(lines, 4, "truth")) < TRUTH:
        found.append(f"(d) mean max-cosine {truth:.3f} (bound {TRUTH})")
    if name != "d":
        trained = sorted({line["k"] for line in lines if line["sae"] == "msae"})
        shares = {k: mean(lines, k, "unused") for k in trained}
        found += [f"({name}) k={k}: {u:.1%} unused (bound < {UNUSED:.0%})" for k, u in shares.items() if u >= UNUSED]
    return found


def write_docs(found: dict[str, Lines]) -> None:
    """The tables between their marks in docs/quality.md, the numbers and the figure beside them."""
    page = ROOT / "docs" / "quality.md"
    start, stop = "<!-- tables -->\n", "<!-- /tables -->"
    before, rest = page.read_text(encoding="utf-8").split(start)
    tables = "\n".join(table(name, lines) for name, lines in found.items()).strip()
    page.write_text(f"{before}{start}{tables}\n{stop}{rest.split(stop)[1]}", encoding="utf-8")
    (ROOT / "docs" / "quality.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    panels = []
    for name, lines in found.items():
        ks = ks_of(lines)
        curves = {
            "PCA": [mean(lines, k, "fvu", "pca") for k in ks],
            "one SAE per k": [best(lines, k)["fvu"] for k in ks],
            "one MSAE": [mean(lines, k, "fvu") for k in ks],
        }
        panels.append(Panel(f"({name}) {NAMES[name]}", [Line(label, ks, y) for label, y in curves.items()]))
    write_panels(
        ROOT / "docs" / "quality.svg", panels, x="active latents per row, k", y="FVU on unseen rows",
        title="Reconstruction error against k: lower is better",
    )  # fmt: skip


if __name__ == "__main__":
    main()
