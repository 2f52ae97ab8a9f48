"""What the atlas draws of each latent: its place as two 16-bit numbers, and every column to colour by as one byte.

A byte is 0 where the value is missing, else 1 … 255 between the column's ends; of a column of categories it is the
category's number plus 1. The exact values stay in the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from nb_sae.errors import WidgetError
from nb_sae.widgets import wire

MAX_POINTS = 100_000
"""Points that a page draws within its time; of more latents, those with the largest density."""
MAX_CATEGORIES = 64
_PLACE = ("latent", "x", "y")
_TAKEN = (*_PLACE, "skipped", "density", "level", "max")


@dataclass(frozen=True)
class Column:
    """One byte per point, and what it stands for."""

    key: str
    label: str
    kind: str
    """"linear" or "log" between `low` and `high`, or "category"."""
    codes: np.ndarray
    low: float = 0.0
    high: float = 0.0
    categories: tuple[str, ...] = ()

    @property
    def about(self) -> dict[str, Any]:
        """What the browser must know of it."""
        return {
            "key": self.key, "label": self.label, "kind": self.kind, "low": self.low, "high": self.high,
            "categories": list(self.categories),
        }  # fmt: skip


@dataclass(frozen=True)
class Points:
    """The latents that are on the map, by number, their places and the columns to colour by."""

    latents: np.ndarray
    x: np.ndarray
    y: np.ndarray
    """0 … 65,535, y upwards; both in the same scale unless the axes are values."""
    columns: tuple[Column, ...]
    axes: tuple[str, ...]
    """Names of x and y where they are values; none for a map."""
    left_out: int
    """Latents that have a place but are not drawn, because there are more than `MAX_POINTS`."""

    def frame(self, keys: Sequence[str], d_sae: int) -> pl.DataFrame:
        """The table of the browser. `skipped` counts the latents without a place between a point and the one before.

        It is left out where the points are the latents 0 … d_sae - 1; as a rule it is a quarter of their numbers.
        """
        shown = {"x": self.x, "y": self.y} | {one.key: one.codes for one in self.columns if one.key in keys}
        if len(self.latents) < d_sae:
            skipped = np.diff(self.latents.astype(np.int64), prepend=-1) - 1
            shown = {"skipped": skipped.astype(np.min_scalar_type(int(skipped.max(initial=0)))), **shown}
        return pl.DataFrame(shown)

    def column(self, key: Any) -> Column:
        """Raises `WidgetError` for no column of the map."""
        found = next((one for one in self.columns if one.key == key), None)
        if found is None:
            raise WidgetError(f"colour={key!r} is no column of this map. Choose {', '.join(self.keys)}.")
        return found

    @property
    def keys(self) -> list[str]:
        """Names of the columns."""
        return [one.key for one in self.columns]


def make_points(analysis: Any, layout: Any, values: Any) -> Points:
    """Points of `layout`, or of density against largest activation where there is none.

    Raises:
        WidgetError: the layout, or a column of `values`, cannot be drawn.
    """
    stats = analysis.latents.sort("latent")
    axes: tuple[str, ...] = ()
    if layout is None:
        axes = ("density", "largest activation")
        alive = stats.filter(~pl.col("dead") & (pl.col("density") > 0) & (pl.col("max") > 0))
        placed = alive.select("latent", x=pl.col("density").log10(), y=pl.col("max").log10())
    else:
        placed = _read_layout(layout, analysis.d_sae)
    given = [name for name in placed.columns if name not in _PLACE]
    kept = placed.join(stats.select("latent", "density"), on="latent", how="left")
    if kept.height > MAX_POINTS:
        kept = kept.sort("density", "latent", descending=[True, False]).head(MAX_POINTS)
    kept = kept.sort("latent")
    at = kept["latent"].to_numpy()
    own = {name: kept[name] for name in given} | {
        name: series.gather(at) for name, series in _read_values(values, analysis.d_sae).items()
    }
    stats = stats[at.tolist()]
    columns = [
        replace(_numbers("density", stats["density"].to_numpy(), log=True), label="density"),
        _categories("level", stats["level"]),
        *(_column(name, series) for name, series in own.items()),
        replace(_numbers("max", stats["max"].to_numpy()), label="largest activation"),
    ]
    x, y = _places(kept["x"].to_numpy(), kept["y"].to_numpy(), stretch=bool(axes))
    return Points(at, x, y, tuple(columns), axes, placed.height - kept.height)


def _read_layout(layout: Any, d_sae: int) -> pl.DataFrame:
    frame = getattr(layout, "frame", layout)
    if not isinstance(frame, pl.DataFrame):
        raise WidgetError(
            f"layout is a {type(layout).__name__}; expected what ns.layout(dictionary) gives, or a frame with latent, "
            "x and y."
        )
    if missing := [name for name in _PLACE if name not in frame.columns]:
        raise WidgetError(
            f"layout has the columns {', '.join(frame.columns)}; {', '.join(missing)} is missing. "
            "Give latent, x and y, one row per latent."
        )
    if not frame["latent"].dtype.is_integer() or not all(frame[name].dtype.is_numeric() for name in ("x", "y")):
        kinds = ", ".join(f"{name} {frame[name].dtype}" for name in _PLACE)
        raise WidgetError(f"layout has {kinds}; expected a whole number and two numbers.")
    latents = frame["latent"]
    if latents.null_count() or latents.n_unique() < frame.height:
        raise WidgetError("layout names a latent twice, or none. Give one row per latent.")
    if frame.height and not 0 <= int(latents.min()) <= int(latents.max()) < d_sae:  # pyright: ignore[reportArgumentType]
        raise WidgetError(
            f"layout speaks of latents {latents.min()} … {latents.max()}; this analysis has 0 … {d_sae - 1}. "
            "Lay out the dictionary that was analysed."
        )
    if not (frame["x"].cast(pl.Float64).is_finite() & frame["y"].cast(pl.Float64).is_finite()).fill_null(False).all():
        raise WidgetError("layout holds places that are missing or infinite. Leave those latents out.")
    own = [name for name in frame.columns if name not in _PLACE]
    return frame.select(pl.col("latent").cast(pl.UInt32), pl.col("x", "y").cast(pl.Float64), *own)


def _read_values(values: Any, d_sae: int) -> dict[str, pl.Series]:
    """Columns of the user, one value per latent of the dictionary."""
    if values is None:
        return {}
    if isinstance(values, pl.DataFrame):
        if "latent" not in values.columns or values["latent"].n_unique() < values.height:
            raise WidgetError("values is a frame without a column latent, or with a latent twice. Give one row each.")
        latents = values["latent"]
        if not latents.dtype.is_integer() or not latents.is_between(0, d_sae - 1).all(ignore_nulls=False):
            raise WidgetError(
                f"values names latents that this analysis has not; expected whole numbers 0 … {d_sae - 1}."
            )
        every = pl.DataFrame({"latent": np.arange(d_sae)}, schema={"latent": pl.Int64})
        own = values.with_columns(pl.col("latent").cast(pl.Int64))
        joined = every.join(own, on="latent", how="left", maintain_order="left")
        return {name: joined[name] for name in joined.columns if name != "latent"}
    if not isinstance(values, Mapping):
        raise WidgetError(f"values is a {type(values).__name__}. Give {{name: one value per latent}}, or a frame.")
    found = {}
    for name, column in values.items():
        try:
            series = pl.Series(str(name), column)
        except (TypeError, ValueError, RuntimeError, pl.exceptions.PolarsError) as error:
            raise WidgetError(
                f"values[{name!r}] is a {type(column).__name__} that makes no column ({error}). "
                "Give a list, an array or a series with one value per latent."
            ) from error
        if len(series) != d_sae:
            raise WidgetError(f"values[{name!r}] holds {len(series)} values; this analysis has {d_sae} latents.")
        found[str(name)] = series
    return found


def _column(name: str, series: pl.Series) -> Column:
    if name in _TAKEN:
        raise WidgetError(f"A column is called {name!r}, as one that the map has already. Rename it.")
    if series.dtype.is_float() or (series.dtype.is_integer() and series.n_unique() > MAX_CATEGORIES):
        return _numbers(name, series.cast(pl.Float64).to_numpy())
    if series.dtype.is_integer() or series.dtype in (pl.Boolean, pl.String, pl.Categorical, pl.Enum):
        return _categories(name, series)
    raise WidgetError(f"Column {name!r} has type {series.dtype}; a map is coloured by numbers or by a few categories.")


def _numbers(name: str, values: np.ndarray, *, log: bool = False) -> Column:
    known = np.isfinite(values) & ((values > 0) | (not log))
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    scaled = np.zeros(len(values))
    if high > low:
        ends = (np.log(low), np.log(high)) if log else (low, high)
        inside = np.log(values[known]) if log else values[known]
        scaled[known] = (inside - ends[0]) / (ends[1] - ends[0])
    codes = np.where(known, 1 + np.rint(scaled * 254), 0).astype(np.uint8)
    label = wire.visible_text(name)
    return Column(name, label, "log" if log else "linear", codes, low, high)


def _categories(name: str, series: pl.Series) -> Column:
    found = series.drop_nulls().unique().cast(pl.String if series.dtype == pl.Categorical else series.dtype).sort()
    if len(found) > MAX_CATEGORIES:
        raise WidgetError(
            f"Column {name!r} has {len(found):,} different values; at most {MAX_CATEGORIES} have colours of their own. "
            "Give numbers, or fewer groups."
        )
    number = {value: place + 1 for place, value in enumerate(found.to_list())}
    codes = np.array([number.get(value, 0) for value in series.to_list()], np.uint8)
    return Column(name, wire.visible_text(name), "category", codes, categories=tuple(map(wire.visible_text, number)))


def _places(x: np.ndarray, y: np.ndarray, *, stretch: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both from 0 to 65,535, in one scale about their middle unless `stretch`."""
    if not len(x):
        return np.zeros(0, np.uint16), np.zeros(0, np.uint16)
    sizes = [float(one.max() - one.min()) for one in (x, y)]
    both = []
    for one, own in zip((x, y), sizes, strict=True):
        size = own if stretch else max(sizes)
        middle = (float(one.max()) + float(one.min())) / 2
        share = (one - middle) / size + 0.5 if size > 0 else np.full(len(one), 0.5)
        both.append(np.rint(np.clip(share, 0, 1) * 65_535).astype(np.uint16))
    return both[0], both[1]


def bits_of(latents: Iterable[int], d_sae: int) -> bytes:
    """A set of latents as one bit each, the lowest bit of the first byte being latent 0."""
    chosen = np.zeros(d_sae, np.uint8)
    chosen[np.fromiter(latents, np.int64)] = 1
    return np.packbits(chosen, bitorder="little").tobytes()


def latents_of(bits: Any, d_sae: int) -> list[int]:
    """The latents of `bits_of`, ascending. Raises `WidgetError` for another number of bytes."""
    block = np.frombuffer(bits, np.uint8)
    if len(block) != (d_sae + 7) // 8:
        raise WidgetError(f"A selection of {len(block)} bytes for {d_sae} latents. Reload the page.")
    return np.flatnonzero(np.unpackbits(block, bitorder="little", count=d_sae)).tolist()
