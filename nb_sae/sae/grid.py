"""Where many trainings stand, in one table: as a frame, as text, as HTML that needs no widget."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from nb_sae.sae.site_training import SiteTraining

GRID = pl.Schema(
    {
        "site": pl.String,
        "state": pl.Enum(["waiting", "training", "stopped", "done", "failed"]),
        "step": pl.UInt64,
        "steps": pl.UInt64,  # planned
        "rows": pl.UInt64,  # trained on so far, repeats counted
        "fvu": pl.Float64,  # of the last logged batch, at the largest budget; null before the first line of the log
        "l0": pl.Float64,  # active latents per row of that batch
        "dead": pl.Float64,  # share of latents silent for `dead_after_rows`
        "rows_per_second": pl.Float64,  # of its own steps, those of the other sites not counted
        "d_sae": pl.UInt32,
        "error": pl.String,  # what ended a failed one
    }
)
_HEADS = {"rows_per_second": "rows/s", "d_sae": "latents"}


def grid(sites: Iterable[SiteTraining]) -> pl.DataFrame:
    """One line per site."""
    return pl.DataFrame([_line(one) for one in sites], schema=GRID)


def grid_text(sites: Iterable[SiteTraining]) -> str:
    """The same for a terminal."""
    lines = _cells(sites)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def grid_html(sites: Iterable[SiteTraining]) -> str:
    """The same for a notebook; text from data is escaped."""
    head, *lines = _cells(sites)
    style = "border-collapse: collapse; font-variant-numeric: tabular-nums"

    def row(tag: str, cells: list[str]) -> str:
        aligned = ["left" if column < 2 else "right" for column in range(len(cells))]
        return "".join(
            f'<{tag} style="text-align: {side}; padding: 2px 10px">{html.escape(cell)}</{tag}>'
            for side, cell in zip(aligned, cells, strict=True)
        )

    body = "".join(f"<tr>{row('td', line)}</tr>" for line in lines)
    return f'<table style="{style}"><thead><tr>{row("th", head)}</tr></thead><tbody>{body}</tbody></table>'


def _line(one: SiteTraining) -> dict[str, Any]:
    latest = one.latest
    fvu = [value for name, value in latest.items() if name.startswith("fvu")]
    seconds = latest.get("seconds") or 0.0
    return {
        "site": one.site,
        "state": one.state,
        "step": one.step,
        "steps": one.train.steps,
        "rows": one.rows_seen,
        "fvu": fvu[-1] if fvu else None,
        "l0": latest.get("l0"),
        "dead": latest.get("dead"),
        "rows_per_second": latest["rows"] / seconds if seconds else None,
        "d_sae": one.config.d_sae,
        "error": None if one.error is None else str(one.error),
    }


def _cells(sites: Iterable[SiteTraining]) -> list[list[str]]:
    names = ["site", "state", "step", "rows", "fvu", "l0", "dead", "rows_per_second", "d_sae"]
    lines = [[_HEADS.get(name, name) for name in names]]
    for one in sites:
        line = _line(one)
        line["step"] = f"{line['step']:,} of {line['steps']:,}"
        lines.append([_shown(name, line[name]) for name in names])
    return lines


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "dead":
        return f"{value:.1%}"
    if name == "rows_per_second":
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
