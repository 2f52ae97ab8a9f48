"""What a bias report says, held against data whose answer is known.

    python benchmarks/bias_truth.py [coverage] [null] [demo] [demo-null]

coverage    latents planted directly: 95 % intervals of association (alone, inside strata, rank correlation), reliance
            and error gaps cover the true value in 93–97 % of concept × 50 seeds, pooled.
null        latents planted directly, no effect anywhere: at most 10 % of 50 seeds flag anything after correction.
demo        drawn faces, P(attribute | Male) as the answer key: the sign of every drawn attribute with a latent of
            AUC ≥ 0.9 and a planted difference ≥ 0.15; an attribute that correlates only through Male loses its effect
            inside Male; what the probe leans on agrees with training again on data balanced in each attribute.
demo-null   drawn faces of the unbiased table: at most 10 % of 50 seeds of 300 faces flag anything.

Prints the figures; exit status 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import nb_sae as ns
from nb_sae.concepts.bias import bias_report
from nb_sae.concepts.bias.classifier import auc, train_probe
from nb_sae.concepts.bias.labels import read_label
from nb_sae.data.faces import BIASED, DRAWN
from nb_sae.statistics import dense_ranks, rank_biserial, rank_correlation

SEEDS = 50
SHARED_ROWS_SEEDS = 300
"""For reliance: its intervals of one seed are about the same rows, so that 50 seeds would say it to ± 4 % only."""
FLAGGED = 0.05
COVERED = (0.93, 0.97)
FALSE_SEEDS = 0.10
LEAST_AUC, LEAST_DIFFERENCE, LEAST_AGREEMENT = 0.9, 0.15, 0.8
NULL_FACES = 300


def main() -> None:
    parts: dict[str, Callable[[], bool]] = {
        "coverage": coverage, "null": null, "demo": demo, "demo-null": demo_null,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="all of them where none is named")
    chosen = parser.parse_args().parts or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"no part is called {sorted(unknown)}; there are {list(parts)}")
    held = [parts[name]() for name in chosen]
    sys.exit(not all(held))


def said(what: str, *, holds: bool) -> bool:
    print(f"{'ok    ' if holds else 'MISSED'} {what}", flush=True)
    return holds


# Planted latents

WIDTH = 40
CONCEPTS = 30
Z = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Planted:
    """Concepts with random densities, strengths and dependence on a group and a stratum.

    Directions are orthogonal beside a common one, so that a dictionary reads every activation exactly.
    """

    def __init__(self, seed: int, *, effect: float) -> None:
        random = np.random.default_rng(seed)
        self.density = np.exp(random.uniform(np.log(0.02), np.log(0.7), CONCEPTS))
        self.lift = np.exp(effect * random.normal(0, 0.5, CONCEPTS))  # of the density, in the group
        self.strength = np.exp(effect * random.normal(0, 0.3, CONCEPTS))  # of an active row, in the group
        self.by_stratum = np.exp(effect * random.normal(0, 0.5, CONCEPTS))
        basis = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
        self.W, self.middle = torch.from_numpy(basis[:CONCEPTS].copy()), torch.from_numpy(10 * basis[CONCEPTS])
        self.probe = torch.from_numpy(random.normal(size=WIDTH).astype(np.float32))
        self.effect = effect
        self.dictionary = ns.Dictionary.from_weights(
            self.W.T.contiguous(), torch.zeros(CONCEPTS), self.W, self.middle, threshold=torch.full((CONCEPTS,), 1e-3)
        )

    def draw(self, rows: int, random: np.random.Generator) -> Z:
        """Activations, group, stratum, and a quantity on which every third concept depends."""
        stratum = random.random(rows) < 0.4
        group = random.random(rows) < np.where(stratum, 0.5 + 0.2 * self.effect, 0.5 - 0.2 * self.effect)
        quantity = random.normal(size=rows) + self.effect * stratum
        density = self.density * np.where(group[:, None], self.lift, 1) * np.where(stratum[:, None], self.by_stratum, 1)
        on = random.random((rows, CONCEPTS)) < np.clip(density, 0, 0.95)
        scale = np.where(group[:, None], self.strength, 1)
        drift = np.exp(0.3 * self.effect * quantity[:, None] * (np.arange(CONCEPTS) % 3 == 0))
        return on * scale * drift * random.gamma(3, 0.5, (rows, CONCEPTS)), group, stratum, quantity

    def rows(self, z: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(z.astype(np.float32)) @ self.W + self.middle

    def chance(self, x: torch.Tensor) -> torch.Tensor:
        """A fixed classifier that is not linear."""
        return (1.5 * torch.tanh(x @ self.probe - self.middle @ self.probe)).sigmoid()

    def report(self, rows: int, seed: int, **settings: Any) -> Any:
        random = np.random.default_rng((seed, 7))
        z, group, stratum, quantity = self.draw(rows, random)
        attributes = pl.DataFrame({"group": group, "stratum": stratum, "quantity": quantity})
        store = ns.ActivationStore.from_tensor(self.rows(z))
        return bias_report(
            self.dictionary, store, attributes, concepts=list(range(CONCEPTS)), seed=seed, images=0, **settings
        )


SMALL: dict[str, Any] = {"target": "group", "grid": 2, "controls": 0, "min_n": 10}


def coverage() -> bool:
    """Pooled over concepts and seeds, each seed with other data from the same populations."""
    holds = True
    worlds = [Planted(number, effect=1.0) for number in range(5)]
    truths = [Truth(world) for world in worlds]
    for rows in (300, 1500):
        hits: dict[str, list[bool]] = {}
        for seed in range(SEEDS):
            world, truth = worlds[seed % 5], truths[seed % 5]
            found = world.report(rows, seed, classifier=world.chance, given=["stratum"], **SMALL)
            hits.setdefault("association", []).extend(covered(found.association, truth.alone))
            hits.setdefault("association inside strata", []).extend(covered(found.conditional, truth.inside(found)))
            hits.setdefault("accuracy gap of a concept", []).extend(covered_gaps(found.gaps, truth.gaps))
            quantity = world.report(rows, seed, target="quantity", classifier=None)
            hits.setdefault("rank correlation", []).extend(covered(quantity.association, truth.correlation))
        for seed in range(SHARED_ROWS_SEEDS):
            world, truth = worlds[seed % 5], truths[seed % 5]
            frame = world.report(rows, seed + SEEDS, classifier=world.chance, **SMALL).reliance
            hits.setdefault("reliance", []).extend(covered(frame, truth.reliance(frame)))
        for name, hit in hits.items():
            rate = float(np.mean(hit))
            inside = COVERED[0] <= rate <= COVERED[1]
            holds &= said(f"{name}, {rows} rows: {rate:.3f} of {len(hit):,} intervals cover", holds=inside)
    return holds


class Truth:
    """The population's values, from a sample so large that its error does not count."""

    def __init__(self, world: Planted) -> None:
        self.world = world
        z, group, stratum, quantity = world.draw(300_000, np.random.default_rng(123))
        levels = [dense_ranks(column.round(4)) for column in z.T]
        self.alone = [rank_biserial(one, group).effect for one in levels]
        self._inside = [
            [rank_biserial(one[stratum == s], group[stratum == s]).effect for one in levels] for s in (0, 1)
        ]
        other = dense_ranks(quantity.round(3))
        self.correlation = [rank_correlation(one, other).effect for one in levels]
        self.z, self.x = z[:20_000], world.rows(z[:20_000])
        right = (world.chance(world.rows(z)).numpy() >= 0.5) == group
        self.gaps = [right[column > 0].mean() - right[column == 0].mean() for column in z.T]

    def inside(self, found: Any) -> list[float]:
        """Averaged with the weights that the sizes of the strata at hand give."""
        n = {row["group"]: row["n"] for row in found.groups.iter_rows(named=True)}
        pairs = [(n[f"group × {name}"], n[f"not group × {name}"]) for name in ("not stratum", "stratum")]
        weights = np.array([a * b / (a + b + 1) for a, b in pairs])
        return list(np.average(np.array(self._inside), axis=0, weights=weights))

    def reliance(self, found: pl.DataFrame) -> list[float]:
        """At the low and high that the report took: those are its settings, not its estimate."""
        values = []
        for number, row in enumerate(found.iter_rows(named=True)):
            chances = [
                self.world.chance(
                    self.x
                    + torch.from_numpy((row[end] - self.z[:, number]).astype(np.float32))[:, None]
                    * self.world.W[number]
                ).mean()
                if row[end] is not None
                else torch.tensor(torch.nan)
                for end in ("low", "high")
            ]
            values.append(float(chances[1] - chances[0]))
        return values


def covered(frame: pl.DataFrame, truth: list[float]) -> list[bool]:
    return [
        row["ci_low"] - 1e-9 <= true <= row["ci_high"] + 1e-9
        for row, true in zip(frame.iter_rows(named=True), truth, strict=True)
        if row["ci_low"] is not None
    ]


def covered_gaps(frame: pl.DataFrame, truth: list[float]) -> list[bool]:
    lines = frame.filter(pl.col("group") == "all", pl.col("measure") == "accuracy")
    return covered(lines.with_columns(pl.when(~pl.col("masked")).then("ci_low").alias("ci_low")), truth)


def flags(report: Any) -> dict[str, int]:
    """Discoveries at 5 % in each table that is about the data."""
    tables = {name: getattr(report, name) for name in ("association", "conditional", "reliance", "retrieval")}
    return {name: frame.filter(pl.col("q_value") <= FLAGGED).height for name, frame in tables.items()}


def null() -> bool:
    seeds: dict[str, int] = {}
    for seed in range(SEEDS):
        world = Planted(100 + seed, effect=0.0)
        queries = {str(number): world.W[number] for number in range(5)}
        count_seed(seeds, flags(world.report(600, seed, target="group", given=["stratum"], grid=2, queries=queries)))
    return say_seeds("planted latents without any effect", seeds)


def count_seed(seeds: dict[str, int], found: dict[str, int]) -> None:
    for name, count in [*found.items(), ("anything", sum(found.values()))]:
        seeds[name] = seeds.get(name, 0) + (count > 0)


def say_seeds(what: str, seeds: dict[str, int]) -> bool:
    print(f"       {what}, seeds of {SEEDS} with a discovery: {seeds}")
    share = seeds["anything"] / SEEDS
    return said(f"{what}: {share:.0%} of the seeds flag anything", holds=share <= FALSE_SEEDS)


# Drawn faces


class Faces:
    """The demo CLIP, a dictionary of biased faces, and stores of drawn ones."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="bias-truth-")
        self.clip = ns.load_clip("demo", device="cpu")
        self.faces, self.store = self.drawn(3000, 0, "biased")
        # Nested widths, as in tests/concept_world.py: they keep an attribute in one latent.
        config = ns.SAEConfig.relu(d_sae=256, widths=(32, 256), l1_weight=0.05)
        self.dictionary = ns.train_sae(self.store, config, ns.TrainConfig(rows=400_000), progress=False)

    def drawn(self, count: int, seed: int, table: str) -> tuple[Any, ns.ActivationStore]:
        faces = ns.demo_faces(count, seed=seed, table=table)
        path = Path(self.folder.name) / f"{table}-{seed}"
        store = ns.ActivationStore.collect(self.clip, faces, site="image_embed", path=path, workers=0, progress=False)
        return faces, store

    def best_latents(self, attributes: pl.DataFrame, store: ns.ActivationStore) -> dict[str, int]:
        """Attribute → the latent that separates it best, where its AUC is at least `LEAST_AUC`."""
        z = self.dictionary.encode(store[:]).numpy()
        live = np.flatnonzero((z > 0).any(0))
        found = {}
        for name in DRAWN:
            scores = [auc(z[:, latent], attributes[name].to_numpy()) for latent in live]
            best = int(np.argmax(scores))
            if scores[best] >= LEAST_AUC:
                found[name] = int(live[best])
        twice = [latent for latent in found.values() if list(found.values()).count(latent) > 1]
        return {name: latent for name, latent in found.items() if latent not in twice}


def demo() -> bool:
    world = Faces()
    attributes = world.faces.attributes
    latents = world.best_latents(attributes, world.store)
    print(f"       {len(latents)} of {len(DRAWN)} drawn attributes have a latent of their own with AUC ≥ {LEAST_AUC}")
    report = bias_report(world.dictionary, world.store, attributes, "Male", latents)
    print(f"       probe of Male: accuracy {report.about['accuracy_test']:.3f} on held-out faces, {report!r}")
    held = [signs(report), through_male(world, latents), agreement(world, report, latents)]
    return all(held)


def signs(report: Any) -> bool:
    wrong, counted = [], 0
    for row in report.association.iter_rows(named=True):
        planted = BIASED[row["concept"]][1] - BIASED[row["concept"]][0]
        if abs(planted) >= LEAST_DIFFERENCE:
            counted += 1
            if np.sign(row["effect"]) != np.sign(planted) or row["q_value"] > FLAGGED:
                wrong.append(row["concept"])
    return said(f"sign and significance of {counted} planted differences; wrong: {wrong or 'none'}", holds=not wrong)


def through_male(world: Faces, latents: dict[str, int]) -> bool:
    """Targets and attributes that depend on Male and on nothing else in common.

    Some latents of a dictionary trained on biased faces read the target's own picture. Whether one does is seen on
    faces of the unbiased table, where nothing goes with anything: those latents are left out of the bound and counted.
    """
    faces, store = world.drawn(2000, 1, "balanced")
    shift = {name: BIASED[name][1] - BIASED[name][0] for name in latents}
    strong = {name: latent for name, latent in latents.items() if abs(shift[name]) >= 0.25}
    pairs = alone = left = impure = impure_left = 0
    ratio = []
    for target in strong:
        apart = {name: latent for name, latent in strong.items() if not together(name, target)}
        found = bias_report(
            world.dictionary, world.store, world.faces.attributes, target, apart, given=["Male"], classifier=None
        )
        fair = bias_report(world.dictionary, store, faces.attributes, target, apart, classifier=None)
        reads = dict(fair.association.select("concept", "q_value").iter_rows())
        inside = {row["concept"]: row for row in found.conditional.iter_rows(named=True)}
        for row in found.association.iter_rows(named=True):
            within = inside[row["concept"]]
            if reads[row["concept"]] <= FLAGGED:
                impure += 1
                impure_left += within["q_value"] <= FLAGGED
                continue
            pairs += 1
            alone += row["q_value"] <= FLAGGED
            left += within["q_value"] <= FLAGGED
            ratio.append((row["effect"], within["effect"]))
    before, after = np.abs(np.array(ratio)).mean(0)
    print(f"       left out: {impure} pairs whose latent reads the target itself ({impure_left} flagged inside Male)")
    said(f"{pairs} pairs through Male alone: {alone} flagged; mean |effect| {before:.3f}", holds=True)
    return said(
        f"inside Male: {left} flagged ({left / pairs:.0%}), mean |effect| {after:.3f}",
        holds=left <= 0.1 * pairs and after < before / 2,
    )


def together(one: str, other: str) -> bool:
    """Whether two attributes depend on each other given Male, by the rules of the drawing."""
    from nb_sae.data.face_table import GROUPS, NEEDS_HAIR

    sets = [set(names) for names in GROUPS.values()]
    sets += [{*GROUPS["hair"], *NEEDS_HAIR}]
    return one == other or any({one, other} <= names for names in sets)


def agreement(world: Faces, report: Any, latents: dict[str, int]) -> bool:
    """What the probe loses of an attribute when trained on data in which it is balanced, and what it leans on.

    The use of an attribute is the mean probability of its bearers less that of the others, inside Male and not Male,
    on other faces; balanced data is a resample of the training faces in which it does not go with Male.
    """
    faces, store = world.drawn(3000, 2, "biased")
    held, labels = store[:], faces.attributes
    train, x = read_label(world.faces.attributes, "Male"), world.store[:]
    random = np.random.default_rng(0)
    effects = dict(report.reliance.select("concept", "effect").iter_rows())
    whole = train_probe(x, torch.from_numpy(train.codes), train, ("Male",))
    pairs = []
    for name in latents:
        bearer = world.faces.attributes[name].to_numpy()
        weights = balancing(train.codes == 1, bearer)
        again = []
        for _ in range(5):
            rows = random.choice(len(x), len(x), p=weights)
            again.append(
                use(train_probe(x[rows], torch.from_numpy(train.codes[rows]), train, ("Male",)), held, labels, name)
            )
        pairs.append((effects[name], use(whole, held, labels, name) - float(np.mean(again))))
    leaned, lost = np.array(pairs).T
    signed, size = spearman(leaned, lost), spearman(np.abs(leaned), np.abs(lost))
    print(f"       reliance against what training on balanced data takes away, {len(pairs)} attributes")
    return said(f"Spearman {signed:.3f} with signs, {size:.3f} of sizes", holds=signed >= LEAST_AGREEMENT)


def balancing(male: np.ndarray, bearer: np.ndarray) -> np.ndarray:
    """Weights of rows under which the attribute is as frequent in both groups (Kamiran & Calders 2012, reweighing)."""
    weights = np.zeros(len(male))
    for group in (False, True):
        for held in (False, True):
            cell = (male == group) & (bearer == held)
            weights[cell] = (male == group).mean() * (bearer == held).mean() / max(cell.mean(), 1e-9)
    return weights / weights.sum()


def use(probe: Any, x: torch.Tensor, labels: pl.DataFrame, name: str) -> float:
    chance, bearer, male = probe.probabilities(x)[:, 0].numpy(), labels[name].to_numpy(), labels["Male"].to_numpy()
    gaps = [chance[bearer & (male == side)].mean() - chance[~bearer & (male == side)].mean() for side in (False, True)]
    return float(np.mean(gaps))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return rank_correlation(dense_ranks(a), dense_ranks(b)).effect


def demo_null() -> bool:
    world = Faces()
    seeds: dict[str, int] = {}
    for seed in range(SEEDS):
        faces, store = world.drawn(NULL_FACES, 100 + seed, "balanced")
        texts = ["a smiling face", "a face with glasses", "a face with a hat"]
        report = bias_report(
            world.dictionary,
            store,
            faces.attributes,
            "Male",
            given=["Smiling"],
            clip=world.clip,
            queries=texts,
            seed=seed,
        )
        count_seed(seeds, flags(report))
    return say_seeds(f"{NULL_FACES} faces of the unbiased table", seeds)


if __name__ == "__main__":
    main()
