"""A flow between sites whose matches are given, without any matching, and dictionaries that can be read by eye."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch
from torch import Tensor

import nb_sae as ns
from nb_sae.flow.schema import CHAIN, EDGES, FLOW_LATENTS


@dataclass
class PlantedFlow:
    """Implements `flow.sources.Flow`, with a chain that follows `match_residual` towards the input."""

    sites: list[str]
    latents: pl.DataFrame
    edges: pl.DataFrame
    about: dict[str, Any] = field(default_factory=lambda: {"rule": "cosine"})

    def chain(self, site: str, latent: int) -> pl.DataFrame:
        lines = {(line["site"], line["latent"]): line for line in self.latents.iter_rows(named=True)}
        residual = self.edges.filter(pl.col("kind") == "residual")
        sources = dict(residual.select("target_site", "source_site").iter_rows())
        here, step = lines[site, latent], 0
        found: list[tuple[Any, ...]] = [(0, site, latent, here["layer"], here["lane"], None, None, None)]
        while here["match_residual"] is not None and here["site"] in sources:
            step, cosine = step - 1, here["s_residual"]
            here = lines[sources[here["site"]], here["match_residual"]]
            found.append((step, here["site"], here["latent"], here["layer"], here["lane"], cosine, 0.0, cosine > 0.3))
        return pl.DataFrame(found[::-1], schema=CHAIN, orient="row")


def flow_of(
    sizes: Mapping[str, int],
    matches: Mapping[str, Mapping[str, tuple[str, list[list[int]]]]],
    *,
    cosine: float = 0.9,
    lanes: Mapping[str, str] | None = None,
) -> PlantedFlow:
    """Sites with their numbers of latents; target site → lane → (source site, per latent its sources, best first)."""
    latents, edges = [], []
    for layer, (site, d_sae) in enumerate(sizes.items()):
        for latent in range(d_sae):
            line: dict[str, Any] = dict.fromkeys(FLOW_LATENTS.names())
            line |= {"site": site, "latent": latent, "layer": layer, "lane": (lanes or {}).get(site, "residual")}
            for lane, (source, ranked) in matches.get(site, {}).items():
                if ranked[latent]:
                    line |= {f"s_{lane}": cosine, f"match_{lane}": ranked[latent][0], f"p_{lane}": 0.0}
                edges += [
                    (source, one, site, latent, cosine - 0.1 * rank, rank, 0.0, True, lane)
                    for rank, one in enumerate(ranked[latent])
                ]
            latents.append(line)
    frames = pl.DataFrame(latents, schema=FLOW_LATENTS), pl.DataFrame(edges, schema=EDGES, orient="row")
    return PlantedFlow(list(sizes), *frames)


def plain_dictionary(
    directions: Tensor, site: str | None = None, *, threshold: float | None = None, **about: Any
) -> ns.Dictionary:
    """Reads and writes along the rows of `directions`; every latent above the threshold (of 0) is active."""
    weights = {
        "W_enc": directions.T.float().contiguous(),
        "b_enc": torch.zeros(len(directions)),
        "W_dec": directions.float(),
        "b_dec": torch.zeros(directions.shape[1]),
    }
    if threshold is not None:
        weights["threshold"] = torch.full((len(directions),), threshold)
        about["sparsity"] = "jump_relu"
    return ns.Dictionary(weights, site=site, **about)


def store_of(x: Tensor, site: str, **about: Any) -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(x.float(), site=site, **about)
