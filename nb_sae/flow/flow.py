"""What `feature_flow` found: three tables, the paths through them, and a folder to keep them in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from nb_sae.atomic import fresh_folder, read_header, write_json
from nb_sae.errors import FormatError
from nb_sae.flow.graph import Birth, FlowGraph
from nb_sae.flow.schema import EDGES, FLOW_LATENTS, FLOW_NULLS
from nb_sae.tables import read_tables, write_tables

FORMAT = "nb_sae.flow"
VERSION = 1
_TABLES = {"edges": EDGES, "latents": FLOW_LATENTS, "nulls": FLOW_NULLS}


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureFlow:
    """Latents of many sites and how they continue one another. Holds tables only."""

    sites: list[str]
    """In the order of the forward pass: of a block attention, MLP, residual stream; a final embedding last."""
    edges: pl.DataFrame
    """`schema.EDGES`: the nearest sources of every target latent, by pair of sites, target latent and rank."""
    latents: pl.DataFrame
    """`schema.FLOW_LATENTS`: one line per latent of every site, by site and latent."""
    nulls: pl.DataFrame
    """`schema.FLOW_NULLS`: for every pair of sites what random dictionaries give, and the threshold that is used."""
    about: dict[str, Any]
    """Every setting, where each site lies, and under "left_out" what was not matched and why."""

    def chain(self, site: str, latent: int, *, cut: bool = True) -> pl.DataFrame:
        """The path of a feature through the model, from where it comes to where it goes: `schema.CHAIN`, by step.

        Towards the input from each latent to the latent that it matches in the residual stream before; where that is
        below the threshold, to the module that it matches; from a module on to the residual stream that it reads.
        Towards the output from each latent to the one that it matches best in the next residual site or the embedding.

        Args:
            site: Where to begin.
            latent: Its number there; it is step 0.
            cut: End at the last step that reaches its threshold. False: follow the best matches all the way.

        Raises:
            ConfigError: no such site or latent; names the closest sites.
        """
        return self.graph.chain(site, latent, cut=cut)

    def neighbourhood(self, site: str, latent: int, steps: int = 2, *, above: bool = True) -> pl.DataFrame:
        """The edges that can be reached from a latent in so many steps, in either direction: rows of `edges`.

        Args:
            site: Where to begin.
            latent: Its number there.
            steps: How many edges away, at least 1.
            above: Only through edges that reach their threshold. False: also through those inside the null.

        Raises:
            ConfigError: no such site or latent, or fewer steps than 1.
        """
        return self.graph.neighbourhood(site, latent, steps, above=above)

    def born(self, site: str, latent: int) -> Birth:
        """Where the feature of a latent is first found: back along the residual stream while the threshold is reached.

        Raises:
            ConfigError: no such site or latent.
        """
        return self.graph.born(site, latent)

    @cached_property
    def graph(self) -> FlowGraph:
        """The tables as a graph, for paths."""
        return FlowGraph(self.sites, self.edges, self.latents, self.nulls)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a folder of Parquet files and one JSON. It appears under its name in one step, when it is complete.

        Raises:
            PathExistsError: something is there and `overwrite` is False.
        """
        folder = Path(path)
        with fresh_folder(folder, overwrite=overwrite) as fresh:
            write_tables(fresh, {name: getattr(self, name) for name in _TABLES})
            header = {"format": FORMAT, "version": VERSION, "sites": list(self.sites), "about": self.about}
            write_json(fresh / "flow.json", header)
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureFlow:
        """Read what `save` wrote.

        Raises:
            InputNotFoundError: no flow there.
            FormatError: another format, a newer version, or a table that does not fit its schema.
        """
        folder = Path(path)
        header = read_header(folder / "flow.json", FORMAT, VERSION)
        tables = read_tables(folder, _TABLES, again="Run feature_flow again.")
        known = set(tables["latents"]["site"].unique())
        if set(header.get("sites", ())) != known or "about" not in header:
            raise FormatError(f"{folder / 'flow.json'} does not name the sites of its tables. Run feature_flow again.")
        return cls(sites=header["sites"], about=header["about"], **tables)

    def __repr__(self) -> str:
        kinds = self.latents["kind"].drop_nulls().value_counts(sort=True)
        told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.iter_rows())
        above = int(self.edges["above"].sum())
        left = f"; left out: {'; '.join(self.about['left_out'])}" if self.about["left_out"] else ""
        return (
            f"FeatureFlow({len(self.sites)} sites, {self.latents.height:,} latents"
            f"{f' ({told})' if told else ''}, {above:,} of {self.edges.height:,} edges above their threshold{left})"
        )
