"""A map of latents: every decoder direction as a point of the plane, and how many of its neighbours stay near.

layout = ns.layout(dictionary)                       # principal components; method="umap" needs the extra `umap`
layout.frame                                         # latent, x, y
layout.kept.value, layout.kept.null                  # neighbours that stay neighbours, and what chance keeps
ns.AtlasDashboard(analysis, layout=layout)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.errors import ConfigError, MissingDependencyError, NonFiniteError, ShapeError

Method = Literal["pca", "umap"]
LAYOUT = pl.Schema({"latent": pl.UInt32, "x": pl.Float64, "y": pl.Float64})
BLOCK_ENTRIES = 2**24
"""Entries of the similarity matrix that are held at a time."""
NULL_SHUFFLES = 4
MIN_NORM = 1e-8
"""A decoder row shorter than this has no direction: the latent has no place on the map."""


@dataclass(frozen=True)
class NeighboursKept:
    """How much of who is near whom a layout keeps."""

    value: float
    """Mean share of a latent's k nearest by cosine that are among its k nearest on the map, 0–1; NaN: see `reason`."""
    null: float
    """The same when the places are shuffled among the latents; expected is k / (latents - 1)."""
    null_std: float
    """Standard deviation over the shuffles."""
    k: int
    latents: int
    """Latents on the map."""
    sample: int
    """Latents whose neighbours were compared, drawn with the seed; the neighbours are taken from all."""
    reason: str = ""
    """Why `value` is NaN."""


@dataclass(frozen=True, repr=False)
class Layout:
    """Places of latents on a map. Only who is near whom means something, and that as far as `kept` says."""

    frame: pl.DataFrame
    """`latent, x, y`; a latent without a direction is not in it."""
    method: str
    kept: NeighboursKept
    seed: int
    settings: dict[str, float] = field(default_factory=dict)
    """PCA: `explained`, the share of the directions' variance that the plane holds; UMAP: its settings."""

    def __repr__(self) -> str:
        kept = self.kept
        said = f"Layout({self.frame.height:,} latents by {self.method}: "
        if math.isnan(kept.value):
            return f"{said}{kept.reason})"
        return f"{said}{kept.value:.3g} of the {kept.k} nearest stay near, {kept.null:.3g} by chance)"


@torch.no_grad()
def layout(
    dictionary: Any,
    method: Method = "pca",
    *,
    latents: Iterable[int] | None = None,
    neighbours: int = 15,
    min_dist: float = 0.1,
    k: int = 10,
    sample: int = 2_000,
    seed: int = 0,
) -> Layout:
    """Lay the decoder directions out in the plane, by cosine.

    "pca": the first two principal components of the unit rows, each with the sign that makes its largest loading
    positive. "umap": neighbours are drawn together, distances between groups mean little.

    Args:
        dictionary: A `Dictionary`, or directions `(d_sae, d)`.
        method: "pca" is built in; "umap" needs umap-learn.
        latents: Only these, for instance those that are not dead; None: all.
        neighbours: UMAP: how many nearest latents shape a place; larger shows broader groups.
        min_dist: UMAP: how close two points may be drawn.
        k: Neighbours that `kept` compares.
        sample: Latents whose neighbours `kept` compares; more take longer, all against all at most.
        seed: Of UMAP, of the sample and of the shuffles.

    Returns:
        The layout. The same seed gives the same places on one machine.

    Raises:
        ConfigError: an unknown method, fewer than 4 latents with a direction, or a setting outside its bounds.
        MissingDependencyError: "umap" without umap-learn.
        ShapeError: no matrix of directions.
        NonFiniteError: a direction holds NaN or infinity.

    Source:
        McInnes et al. 2018, UMAP, arXiv:1802.03426. The share of neighbours kept: Lee & Verleysen 2009, Quality
        assessment of dimensionality reduction, equation for Q_NX(K), here over a sample.
    """
    if method not in ("pca", "umap"):
        raise ConfigError(f'method={method!r} is no layout. Choose "pca" or "umap".')
    numbers, directions = _directions(dictionary, latents)
    if len(numbers) < 4:
        raise ConfigError(
            f"{len(numbers)} latents have a direction; a map needs at least 4. Train a larger dictionary."
        )
    if not 1 <= k < len(numbers):
        raise ConfigError(f"k={k} neighbours among {len(numbers)} latents; expected 1 ≤ k < {len(numbers)}. Lower k.")
    if method == "pca":
        places, explained = _pca(directions)
        settings = {"explained": explained}
    else:
        settings = {"neighbours": neighbours, "min_dist": min_dist}
        places = _umap(directions, neighbours, min_dist, seed)
    kept = neighbours_kept(directions, places, k=k, sample=sample, seed=seed)
    x, y = places.double().unbind(1)
    frame = pl.DataFrame({"latent": numbers, "x": x.numpy(), "y": y.numpy()}, schema=LAYOUT)
    return Layout(frame, method, kept, seed, settings)


@torch.no_grad()
def neighbours_kept(
    directions: Float[Tensor, "latents d"],
    places: Float[Tensor, "latents 2"],
    *,
    k: int = 10,
    sample: int = 2_000,
    seed: int = 0,
) -> NeighboursKept:
    """How many of the k nearest by cosine are among the k nearest on the map, beside what chance keeps.

    Args:
        directions: Any lengths; only their cosines count.
        places: On the map, in the same order.
        k: Neighbours.
        sample: Latents that are compared with all others.
        seed: Of the sample and of the shuffles.

    Raises:
        ShapeError: not as many places as directions.
        ConfigError: k outside [1, latents), or no latent in the sample.
        NonFiniteError: a direction or a place holds NaN or infinity.
    """
    count = len(directions)
    if places.shape != (count, 2):
        raise ShapeError(f"Places of shape {tuple(places.shape)} for {count} directions; expected ({count}, 2).")
    if not 1 <= k < count or sample < 1:
        raise ConfigError(f"k={k} neighbours of {sample} among {count} latents; expected 1 ≤ k < {count}, sample ≥ 1.")
    if not (directions.isfinite().all() and places.isfinite().all()):
        raise NonFiniteError("A direction or a place holds NaN or infinity, so nobody is near it. Leave it out.")
    unit, flat = torch.nn.functional.normalize(directions.float()), places.float()
    for what, points in (("directions are equal", unit), ("places are the same point", flat)):
        if (points == points[0]).all():
            return NeighboursKept(math.nan, math.nan, math.nan, k, count, 0, f"all {what}, so nobody is nearest")
    generator = torch.Generator().manual_seed(seed)
    asked = torch.randperm(count, generator=generator)[:sample]
    by_cosine = _nearest(unit, asked, k, _cosines)
    value = _shared(by_cosine, _nearest(flat, asked, k, _closeness))
    shuffled = []
    for _ in range(NULL_SHUFFLES):
        # The latent whose place is `one` is `latents[one]`. Neighbours are looked for among places and then named, so
        # that ties, which go by number, favour no latent.
        latents = torch.randperm(count, generator=generator)
        places_asked = latents.argsort()[asked]
        shuffled.append(_shared(by_cosine, latents[_nearest(flat, places_asked, k, _closeness)]))
    shuffled = torch.stack(shuffled)
    return NeighboursKept(float(value), float(shuffled.mean()), float(shuffled.std()), k, count, len(asked))


def _directions(dictionary: Any, latents: Iterable[int] | None) -> tuple[np.ndarray, Tensor]:
    """Numbers of the latents that have a direction, and their unit decoder rows."""
    given = getattr(dictionary, "W_dec", dictionary)
    rows = torch.as_tensor(given).detach().float().cpu() if isinstance(given, Tensor | np.ndarray) else None
    if rows is None or rows.ndim != 2:
        shape = tuple(rows.shape) if rows is not None else type(dictionary).__name__
        raise ShapeError(f"layout was given {shape}; expected a Dictionary or directions (d_sae, d).")
    numbers = torch.arange(len(rows)) if latents is None else _checked(latents, len(rows))
    chosen = rows[numbers]
    bad = ~chosen.isfinite().all(1)
    if bad.any():
        raise NonFiniteError(
            f"The decoder row of latent {int(numbers[bad][0])} holds NaN or infinity ({int(bad.sum())} do). "
            "Train again with a lower learning rate, or leave them out with latents=."
        )
    norms = chosen.norm(dim=1)
    points = norms > MIN_NORM
    return numbers[points].numpy(), chosen[points] / norms[points, None]


def _checked(latents: Iterable[int], d_sae: int) -> Tensor:
    given = np.asarray(list(latents))
    if given.size and (given.ndim != 1 or given.dtype.kind not in "iu"):
        raise ConfigError(f"latents holds {given.flat[0]!r}; expected the numbers of latents, 0 … {d_sae - 1}.")
    if given.size and not 0 <= given.min() <= given.max() < d_sae:
        wrong = given.min() if given.min() < 0 else given.max()
        raise ConfigError(f"latents holds {wrong}; this dictionary has 0 … {d_sae - 1}.")
    return torch.from_numpy(np.unique(given).astype(np.int64))


def _pca(unit: Tensor) -> tuple[Tensor, float]:
    """Scores on the first two components, and the share of the variance that they hold."""
    centred = unit.double() - unit.double().mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)
    if unit.shape[1] == 1:  # one axis: the second is empty
        axes, variances = torch.cat([torch.zeros_like(axes), axes], 1), torch.cat([variances.new_zeros(1), variances])
    plane = axes[:, [-1, -2]]
    loading = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    plane = torch.where(loading < 0, -plane, plane)
    total = float(variances.clamp_min(0).sum())
    return centred @ plane, float(variances[-2:].clamp_min(0).sum()) / total if total > 0 else math.nan


def _umap(unit: Tensor, neighbours: int, min_dist: float, seed: int) -> Tensor:
    count = len(unit)
    if not 2 <= neighbours < count:
        raise ConfigError(f"neighbours={neighbours} of {count} latents; expected 2 ≤ neighbours < {count}.")
    if not 0 <= min_dist <= 1:
        raise ConfigError(f"min_dist={min_dist} is outside 0 … 1, the spread that the points are drawn with.")
    try:
        umap = import_module("umap")
    except ImportError as error:
        raise MissingDependencyError(
            "method=\"umap\" needs umap-learn, which is not installed. Run: pip install 'nb-sae[umap]', "
            'or use method="pca".'
        ) from error
    # One thread: with more, the order of updates and so the places differ from run to run.
    mapper = umap.UMAP(n_neighbors=neighbours, min_dist=min_dist, metric="cosine", random_state=seed, n_jobs=1)
    return torch.from_numpy(np.asarray(mapper.fit_transform(unit.numpy()), np.float64))


def _cosines(asked: Tensor, points: Tensor) -> Tensor:
    return asked @ points.T


def _closeness(asked: Tensor, points: Tensor) -> Tensor:
    return -torch.cdist(asked, points, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest(points: Tensor, asked: Tensor, k: int, near: Any) -> Tensor:
    """The k nearest others of each asked point."""
    block = max(1, BLOCK_ENTRIES // len(points))
    found = []
    for rows in asked.split(block):
        scores = near(points[rows], points)
        scores[torch.arange(len(rows)), rows] = -math.inf
        found.append(scores.topk(k, dim=1).indices)
    return torch.cat(found)


def _shared(a: Tensor, b: Tensor) -> Tensor:
    """Mean share of each row's entries that the other row holds too."""
    return (a[:, :, None] == b[:, None, :]).any(-1).double().mean()
