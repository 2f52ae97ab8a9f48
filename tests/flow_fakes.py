"""Random and planted feature flows in the schema of `nb_sae.flow`, without the matching that makes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from nb_sae.flow import schema

THRESHOLD = 0.5
MODULE_THRESHOLD = 0.4


@dataclass(frozen=True)
class FakeFlow:
    """The frames of a flow, and what was planted."""

    edges: pl.DataFrame
    latents: pl.DataFrame
    nulls: pl.DataFrame
    sites: list[str]
    about: dict = field(default_factory=lambda: {"rule": "cosine", "title": "Planted flow", "left_out": []})
    carried: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(layers, latents): number of each carried feature in each residual site, -1 before it is born."""


def fake_flow(
    layers: int = 4,
    d_sae: int = 60,
    *,
    modules: bool = True,
    embedding: bool = True,
    top: int = 4,
    newborn: float = 0.3,
    seed: int = 0,
) -> FakeFlow:
    """Carried features keep a cosine near 0.9; a share of each layer is new, half of those written by the MLP.

    The MLP also writes a tenth of the carried ones: those are processed. What is new and not written is unexplained.
    """
    rng = np.random.default_rng(seed)
    residual = [f"blocks.{layer}.hook_resid_post" for layer in range(layers)]
    sites, lane, layer_of = [], [], []
    for layer, site in enumerate(residual):
        if modules:
            for kind, name in (("attention", "attn"), ("mlp", "mlp")):
                sites.append(f"blocks.{layer}.hook_{name}_out")
                lane.append(kind)
                layer_of.append(layer)
        sites.append(site)
        lane.append("residual")
        layer_of.append(layer)
    if embedding:
        sites.append("image_embed")
        lane.append("embedding")
        layer_of.append(layers)
    places = [i for i, one in enumerate(lane) if one in ("residual", "embedding")]
    count = [d_sae] * len(sites)
    parts: list[dict[str, np.ndarray]] = []
    columns = [_blank(n) for n in count]
    carried = np.tile(np.arange(d_sae), (len(places), 1))
    for step, place in enumerate(places):
        if step == 0:
            continue
        before = places[step - 1]
        order = rng.permutation(d_sae)  # latent t of this site carries latent order[t]
        new = rng.random(d_sae) < newborn
        cosine = np.where(new, rng.uniform(0.1, 0.3, d_sae), rng.uniform(0.8, 0.97, d_sae)).astype(np.float32)
        parts.append(_edges(rng, before, place, order, cosine, top, lane[before], THRESHOLD, d_sae))
        inverse = np.argsort(order)
        carried[step] = np.where(carried[step - 1] >= 0, inverse[carried[step - 1]], -1)
        carried[step] = np.where((carried[step] >= 0) & ~new[carried[step]], carried[step], -1)
        own, was = columns[place], columns[before]
        own["s_residual"], own["match_residual"] = cosine, order
        own["p_residual"] = np.where(new, 0.6, 1e-9)
        if lane[place] == "residual":
            own["kind"] = np.where(new, "unexplained", "translated").astype(object)
        was["carried_to"], was["carried"], was["p_carried"] = inverse, cosine[inverse], own["p_residual"][inverse]
        inside = [i for i, one in enumerate(lane) if one in ("attention", "mlp") and layer_of[i] == layer_of[place]]
        for module in inside if lane[place] == "residual" else []:
            written = (rng.random(d_sae) < np.where(new, 0.5, 0.1)) & (lane[module] == "mlp")
            near = np.where(written, rng.uniform(0.6, 0.9, d_sae), rng.uniform(0.05, 0.3, d_sae)).astype(np.float32)
            source = rng.permutation(d_sae)
            parts.append(_edges(rng, module, place, source, near, top, lane[module], MODULE_THRESHOLD, d_sae))
            own[f"s_{lane[module]}"], own[f"match_{lane[module]}"] = near, source
            own[f"p_{lane[module]}"] = np.where(written, 1e-8, 0.7)
            own["kind"] = np.where(written, np.where(new, "newborn", "processed"), own["kind"])
    frames = [
        pl.DataFrame({"site": [site] * n, "latent": np.arange(n), "layer": [layer] * n, "lane": [one] * n, **held})
        for site, n, layer, one, held in zip(sites, count, layer_of, lane, columns, strict=True)
    ]
    latents = pl.concat(frames, how="vertical_relaxed").select(
        pl.col(name).cast(kind) for name, kind in schema.FLOW_LATENTS.items()
    )
    edges = pl.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    names = dict(enumerate(sites))
    edges = edges.with_columns(
        pl.col("source_site").replace_strict(names, return_dtype=pl.String),
        pl.col("target_site").replace_strict(names, return_dtype=pl.String),
        pl.col("kind").replace_strict(dict(enumerate(schema.LANES)), return_dtype=pl.String),
    ).select(pl.col(name).cast(kind) for name, kind in schema.EDGES.items())
    return FakeFlow(edges, latents, _nulls(edges, d_sae), sites, carried=carried)


def _blank(count: int) -> dict:
    floats = ("s_residual", "s_attention", "s_mlp", "p_residual", "p_attention", "p_mlp", "carried", "p_carried")
    numbers = ("match_residual", "match_attention", "match_mlp", "carried_to")
    empty = pl.Series([None] * count)
    return {"kind": empty, **dict.fromkeys((*floats, *numbers), empty)}


def _edges(rng, before, place, source, cosine, top, lane, threshold, d_sae) -> dict[str, np.ndarray]:
    """Every target's best source and `top - 1` others inside the null."""
    rest = rng.integers(0, d_sae, (d_sae, top - 1))
    sources = np.concatenate([source[:, None], rest], 1)
    weak = np.minimum(rng.uniform(0.05, 0.25, (d_sae, top - 1)), cosine[:, None] * 0.9).astype(np.float32)
    cosines = np.concatenate([cosine[:, None], -np.sort(-weak, 1)], 1)
    size = d_sae * top
    return {
        "source_site": np.full(size, before), "source_latent": sources.ravel(),
        "target_site": np.full(size, place), "target_latent": np.repeat(np.arange(d_sae), top),
        "cosine": cosines.ravel(), "rank": np.tile(np.arange(top), d_sae),
        "p": np.where(cosines.ravel() >= threshold, 1e-9, 0.6), "above": cosines.ravel() >= threshold,
        "kind": np.full(size, schema.LANES.index(lane)),
    }  # fmt: skip


def _nulls(edges: pl.DataFrame, d_sae: int) -> pl.DataFrame:
    lines = []
    for source, target, kind in edges.select("source_site", "target_site", "kind").unique(maintain_order=True).rows():
        used = THRESHOLD if kind == "residual" else MODULE_THRESHOLD
        own = edges.filter((pl.col("source_site") == source) & (pl.col("target_site") == target))
        lines.append({
            "source_site": source, "target_site": target, "d_in": 64, "sources": d_sae, "draws": 1000, "mean": 0.31,
            "expected": 0.3, "q999": used, "paper": 0.5 if kind == "residual" else 0.15, "threshold": used,
            "rule": "null", "targets": d_sae,
            "targets_above": own.filter(pl.col("above"))["target_latent"].n_unique(),
        })  # fmt: skip
    return pl.DataFrame(lines, schema=schema.FLOW_NULLS)


def fake_tree(d_sae: int = 60) -> pl.DataFrame:
    """A latent's parent is a level above it: 0 … 3, then 4 … 15, then the others; 17 is a child of 3 as well."""
    lines = []
    for child in range(4, d_sae):
        parent, level = (child % 4, 1) if child < 16 else (4 + child % 12, 2)
        base = 0.02 + 0.01 * (child % 7)
        lines.append(
            (parent, child, level - 1, level, 40 + child, 0.9 - 0.005 * child % 0.3, base, 0.9 / base, 1e-6, 1e-4)
        )
    if d_sae > 17:
        lines.append((3, 17, 0, 2, 30, 0.6, 0.1, 6.0, 1e-6, 1e-4))
    return pl.DataFrame(lines, schema=schema.TREE, orient="row")
