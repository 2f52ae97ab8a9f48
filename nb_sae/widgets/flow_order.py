"""Where each latent stands in its column of the flow's graph: near what it is linked to, so that few edges cross."""

from __future__ import annotations

import numpy as np

SWEEPS = 3
"""Passes over the layers, there and back."""


def column_order(
    first: np.ndarray,
    edges: tuple[np.ndarray, np.ndarray, np.ndarray],
    into: np.ndarray,
    out: np.ndarray,
) -> np.ndarray:
    """Place of every node in its column, 0 … 1: barycentres over the edges above their threshold.

    It depends on the flow alone, so two latents never change their order, whatever is shown beside them.

    Args:
        first: First node of every site, and the number of nodes.
        edges: Source, target and cosine of every edge.
        into: Numbers of the edges above their threshold, by target.
        out: The same, by source.

    Source:
        The barycentre method of layered drawings: Sugiyama, Tagawa & Toda 1981, doi:10.1109/TSMC.1981.4308636.
    """
    source, target, cosine = edges
    counts = np.diff(first)
    y = np.concatenate([(np.arange(count) + 0.5) / max(1, count) for count in counts] or [np.zeros(0)])
    forward = range(len(counts))
    for _ in range(SWEEPS):
        for rows, here, there, places in ((into, target, source, forward), (out, source, target, forward[::-1])):
            bounds = np.searchsorted(here[rows], first)
            for place in places:
                mine = rows[bounds[place] : bounds[place + 1]]
                if len(mine):
                    span = slice(int(first[place]), int(first[place + 1]))
                    _settle(y, span, here[mine], there[mine], cosine[mine])
    return y


def _settle(y: np.ndarray, span: slice, ends: np.ndarray, others: np.ndarray, cosines: np.ndarray) -> None:
    """Order one column by the mean place of its neighbours, the nearest ones leading; without any, as it was."""
    own = y[span]
    weights = cosines.astype(np.float64) ** 4
    held = np.bincount(ends - span.start, weights, len(own))
    moved = np.bincount(ends - span.start, weights * y[others], len(own))
    wanted = np.where(held > 0, np.divide(moved, held, out=np.zeros_like(held), where=held > 0), own)
    order = np.lexsort((np.arange(len(own)), wanted))
    own[order] = (np.arange(len(own)) + 0.5) / len(own)
