"""Parents and children across Matryoshka levels, cut around one latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from nb_sae.errors import WidgetError, closest
from nb_sae.flow import schema
from nb_sae.widgets.flow_tables import FlowIndex

PAIRS = 400
"""Pairs that one message holds; those of the family come first, then those of the largest lift."""
_KINDS = {
    "parent": pl.UInt32, "child": pl.UInt32, "parent_level": pl.UInt8, "child_level": pl.UInt8, "both_rows": pl.UInt32,
    "conditional": pl.Float32, "base_rate": pl.Float32, "lift": pl.Float32, "q_value": pl.Float32,
}  # fmt: skip


class FlowTrees:
    """The trees of a flow's sites.

    Args:
        index: The flow.
        tree: A frame TREE for `start`, or `{site: frame}`; what holds the frame as `.frame` or `.pairs`, and how many
            pairs the search finds where there is nothing to find as `.found_null`, will do as well.
        start: The site that a single frame is about.

    Raises:
        WidgetError: not such a frame, or a site that is not in the flow.
    """

    def __init__(self, index: FlowIndex, tree: Any, start: str) -> None:
        given = tree if isinstance(tree, Mapping) else {} if tree is None else {start: tree}
        self.frames: dict[str, pl.DataFrame] = {}
        self.found_null: dict[str, int] = {}
        for site, one in given.items():
            if site not in index.sites:
                raise WidgetError(
                    f"tree speaks of the site {site!r}, which is not in this flow. "
                    f"{closest(str(site), index.sites)}Choose from flow.sites."
                )
            frame = next((held for name in ("frame", "pairs") if (held := getattr(one, name, None)) is not None), one)
            self.frames[site] = _checked(site, frame, int(index.counts[index.sites.index(site)]))
            found = getattr(one, "found_null", None)
            if found is not None:
                self.found_null[site] = int(found)

    def __bool__(self) -> bool:
        return bool(self.frames)

    def cut(self, site: str, latent: int, most: int = PAIRS) -> pl.DataFrame:
        """The pairs of the latent's ancestors and descendants, then the strongest of all, `most` at the most."""
        frame = self.frames.get(site, pl.DataFrame(schema=_KINDS))
        parent, child = frame["parent"].to_numpy(), frame["child"].to_numpy()
        family = np.zeros(frame.height, bool)
        for here, there in ((child, parent), (parent, child)):
            reached = np.array([latent])
            while len(reached):
                step = np.isin(here, reached) & ~family
                family |= step
                reached = np.unique(there[step])
        order = np.argsort(~family, kind="stable")[:most]  # the frame is sorted by lift
        return frame[order]


def _checked(site: str, frame: Any, count: int) -> pl.DataFrame:
    missing = [name for name in _KINDS if name not in getattr(frame, "columns", ())]
    if not isinstance(frame, pl.DataFrame) or missing:
        raise WidgetError(
            f"tree is a {type(frame).__name__} for {site} without {', '.join(missing) or 'columns'}. Give what "
            f"ns.level_tree returns: a frame with {', '.join(schema.TREE)}."
        )
    frame = frame.select(
        pl.col(name).cast(kind).fill_null(float("nan") if kind == pl.Float32 else 0) for name, kind in _KINDS.items()
    )
    for end in ("parent", "child"):
        last = frame[end].max()
        if isinstance(last, int) and last >= count:
            raise WidgetError(f"tree names the {end} {last} at {site}, which has 0 … {count - 1} in this flow.")
    return frame.sort("lift", "parent", "child", descending=[True, False, False])
