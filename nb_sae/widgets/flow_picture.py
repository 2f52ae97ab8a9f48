"""The static picture of the flow dashboard: the graph, the chosen chain in it, its scores, and its strongest inputs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from PIL import ImageDraw

from nb_sae.flow import schema
from nb_sae.widgets.cards import Limits, cut_cards
from nb_sae.widgets.flow_tables import FlowIndex
from nb_sae.widgets.picture import SCALE, Canvas, tile
from nb_sae.widgets.wire import sig3

WIDTH = 900
ROWS = 18
"""Latents of a site that the picture draws."""
MAX_BYTES = 80_000
"""It counts to the size of a saved view."""
CARDS = 8
_MARGIN, _GAP, _TOP, _CARD = 20, 11, 104, 96
_INK, _DIM, _LINE, _BRAND, _PAPER = (27, 31, 39), (98, 103, 112), (221, 224, 229), (31, 95, 191), (255, 255, 255)
_CHAIN = (178, 95, 0)
_FILLS = {"translated": _BRAND, "processed": (138, 63, 176), "newborn": (11, 122, 117), "unexplained": _PAPER}


def draw_flow(
    index: FlowIndex,
    names: Mapping[int, str],
    analyses: Mapping[str, Any],
    chosen: tuple[str, int],
    about: Mapping[str, Any],
) -> bytes:
    """PNG below 80 kB: the strongest latents of the residual stream, the chosen chain, and what its latents show."""
    node = index.node(*chosen)
    chain = index.chain(node)
    lanes = ["residual", "embedding"]
    shown = index.page([node], ROWS)
    members = [one for one, _ in chain]
    inside = np.array([index.lane[index.site_of[one]] in lanes or one in members for one in shown])
    shown = shown[inside]
    height = ROWS * _GAP + 8
    has_cards = any(index.latent_of(one)[0] in analyses for one in members)
    canvas = Canvas(WIDTH, _TOP + 24 + height + (_CARD + 56 if has_cards else 14) + 26)
    _draw_facts(canvas, index, names, node, about)
    at = _places(index, shown, height)
    _draw_columns(canvas, index, shown, at)
    _draw_edges(canvas, index, shown, at, members)
    _draw_nodes(canvas, index, names, at, members, node)
    if has_cards:
        _draw_cards(canvas, index, analyses, chain, top=_TOP + 24 + height + 14)
    said = f"Static picture: up to {ROWS} of the latents of each site. The live dashboard needs a browser with scripts."
    canvas.text((_MARGIN, canvas.height - 22), said, size=10, fill=_DIM)
    return canvas.png(MAX_BYTES)


def _draw_facts(
    canvas: Canvas, index: FlowIndex, names: Mapping[int, str], node: int, about: Mapping[str, Any]
) -> None:
    site, latent = index.latent_of(node)
    canvas.text((_MARGIN, 13), about["title"], size=11, fill=_DIM, width=WIDTH - 2 * _MARGIN)
    title = names.get(node) or f"Latent {latent}"
    used = canvas.text((_MARGIN, 32), title, size=18, bold=True, width=480)
    canvas.text((_MARGIN + used + 14, 38), f"latent {latent} at {site}", size=11, fill=_DIM, width=340)
    x = float(_MARGIN)
    if index.kind[node] >= 0:
        x += canvas.text((x, 62), schema.KINDS[index.kind[node]], size=13, bold=True) + 24
    for lane, sign in (("residual", "s(R)"), ("attention", "s(A)"), ("mlp", "s(M)")):
        value = float(index.scores[f"s_{lane}"][node])
        if np.isnan(value):
            continue
        x += canvas.text((x, 64), sign, size=11, fill=_DIM) + 6
        x += canvas.text((x, 62), sig3(value), size=13, bold=True) + 6
        threshold = index.threshold_of(node, lane)
        mark = "≥" if value >= threshold else "<"
        x += canvas.text((x, 64), f"{mark} threshold {sig3(threshold)}", size=11, fill=_DIM) + 24


def _places(index: FlowIndex, shown: np.ndarray, height: float) -> dict[int, tuple[float, float]]:
    """Columns by layer, what a block adds before what leaves it; latents in the order of the flow."""
    layers = sorted({index.layer[place] for place in index.site_of[shown]})
    modules = any(index.lane[place] in ("attention", "mlp") for place in index.site_of[shown])
    step = (WIDTH - 2 * _MARGIN - 60) / max(1, len(layers) - 1 + (0.5 if modules else 0))
    at = {}
    for place in np.unique(index.site_of[shown]):
        nodes = sorted((int(one) for one in shown if index.site_of[one] == place), key=lambda one: float(index.y[one]))
        module = index.lane[place] in ("attention", "mlp")
        x = _MARGIN + 26 + step * (layers.index(index.layer[place]) + (0.5 if modules and not module else 0))
        gap = height / max(ROWS, len(nodes))
        start = _TOP + 24 + (height - gap * len(nodes)) / 2 + gap / 2
        for number, node in enumerate(nodes):
            at[node] = (x, start + number * gap)
    return at


def _draw_columns(canvas: Canvas, index: FlowIndex, shown: np.ndarray, at: Mapping[int, tuple[float, float]]) -> None:
    for place in np.unique(index.site_of[shown]):
        if index.lane[place] in ("attention", "mlp"):
            continue
        x = next(at[int(one)][0] for one in shown if index.site_of[one] == place)
        text = "embed" if index.lane[place] == "embedding" else f"{index.layer[place]}"
        canvas.text((x - 3.2 * len(text), _TOP), text, size=11, fill=_DIM)


def _draw_edges(
    canvas: Canvas, index: FlowIndex, shown: np.ndarray, at: Mapping[int, tuple[float, float]], members: list[int]
) -> None:
    draw = ImageDraw.Draw(canvas.image)
    edges = index.edges_frame(shown).sort("above", "cosine")
    for source, target, cosine, above in edges.select("source", "target", "cosine", "above").iter_rows():
        share = 0.25 + 0.6 * min(1.0, max(0.0, cosine)) if above else 0.14
        ink = _BRAND if above else _DIM
        colour = tuple(round(p + (i - p) * share) for p, i in zip(_PAPER, ink, strict=True))
        _curve(draw, at[int(shown[source])], at[int(shown[target])], colour, SCALE if above else 1)
    for before, after in pairwise(members):
        if before in at and after in at:
            _curve(draw, at[before], at[after], _CHAIN, 2 * SCALE + 1)


def _curve(draw: Any, a: tuple[float, float], b: tuple[float, float], colour: Any, width: int) -> None:
    """A smooth line that leaves and arrives level."""
    steps = np.linspace(0, 1, 13)
    rise = steps * steps * (3 - 2 * steps)
    points = [
        ((a[0] + (b[0] - a[0]) * t) * SCALE, (a[1] + (b[1] - a[1]) * r) * SCALE)
        for t, r in zip(steps, rise, strict=True)
    ]
    draw.line(points, fill=colour, width=width, joint="curve")


def _draw_nodes(
    canvas: Canvas,
    index: FlowIndex,
    names: Mapping[int, str],
    at: Mapping[int, tuple[float, float]],
    members: list[int],
    chosen: int,
) -> None:
    draw = ImageDraw.Draw(canvas.image)
    for node, (x, y) in at.items():
        kind = schema.KINDS[index.kind[node]] if index.kind[node] >= 0 else ""
        radius = 4.5 if node == chosen else 3.4 if node in members else 2.6
        edge = _INK if node == chosen else _CHAIN if node in members else _DIM if kind == "unexplained" else _PAPER
        corners = [(x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE]
        fill = _FILLS.get(kind, _DIM)
        shape = draw.rectangle if kind == "processed" else draw.ellipse
        if kind == "newborn":
            corners = [(x * SCALE, corners[1]), (corners[2], corners[3]), (corners[0], corners[3])]
            draw.polygon(corners, fill=fill, outline=edge)
        else:
            shape(corners, fill=fill, outline=edge, width=SCALE if node in members else 1)
    for node in members:
        if node in at:
            x, y = at[node]
            text = names.get(node) or f"#{index.latent_of(node)[1]}"
            canvas.text((max(4.0, min(x - 22, WIDTH - 78)), y - 17), text, size=9.5, width=74)


def _draw_cards(
    canvas: Canvas, index: FlowIndex, analyses: Mapping[str, Any], chain: list[tuple[int, float]], *, top: float
) -> None:
    """The strongest input of every latent of the chain, with its heat map; of texts, the words around the peak."""
    known = [one for one in chain if index.latent_of(one[0])[0] in analyses]
    steps = np.unique(np.linspace(0, len(known) - 1, min(CARDS, len(known))).round().astype(int))
    for number, step in enumerate(steps):
        node, cosine = known[step]
        site, latent = index.latent_of(node)
        place = int(index.site_of[node])
        x = _MARGIN + number * (WIDTH - 2 * _MARGIN) / CARDS
        layer = "embed" if index.lane[place] == "embedding" else f"layer {index.layer[place]}"
        canvas.text((x, top), f"{layer}, #{latent}", size=10, bold=True, width=_CARD)
        if not np.isnan(cosine):
            canvas.text((x, top + 14), f"cosine {sig3(cosine)}", size=9.5, fill=_DIM)
        cards = cut_cards(analyses[site], [latent], Limits(top=1, interval=0, window=(6, 4)))
        _draw_card(canvas, analyses[site], cards.tables, cards.thumbs, (x, top + 30))


def _draw_card(
    canvas: Canvas, analysis: Any, tables: Mapping[str, pl.DataFrame], thumbs: list[bytes], at: tuple[float, float]
) -> None:
    examples = tables["examples"]
    if not examples.height:
        canvas.text(at, "never active", size=10, fill=_DIM)
        return
    row = examples.row(0, named=True)
    if analysis.modality == "text":
        tokens = tables["contexts"]["tokens"][row["context"]].to_list() if row["context"] >= 0 else ["not stored"]
        words = "".join(tokens).split()
        for line in range(5):
            canvas.text((at[0], at[1] + 15 * line), " ".join(words[2 * line : 2 * line + 2]), size=10, width=_CARD)
        return
    thumb = tables["inputs"]["thumb"][row["input"]]
    if thumb < 0:
        canvas.box((*at, at[0] + _CARD, at[1] + _CARD), _LINE)
        return
    canvas.paste(tile(thumbs[thumb], row["map"], analysis.site.grid, _CARD * SCALE), at)
