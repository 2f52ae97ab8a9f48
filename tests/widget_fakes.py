"""Small analyses with planted contents, as `nb_sae.analysis` would make them. For tests of what shows tables."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw

from nb_sae.analysis import schema
from nb_sae.types import Modality, Site
from nb_sae.widgets import base

BINS = 40
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "abc\u202egnp.exe",
    "\u2067\u200f\u061cright\u2069",
    "null\0bell\a\x1b[31m",
    "line\nbreak\ttab",
    "<!-- <![CDATA[ ]]> -->",
    "'\"`${alert(1)}{{7*7}}",
    "👩\u200d🔬 Ünïcödé 漢字 العربية",
    "x" * 400,
)
LONE_SURROGATE = "lone \ud83d surrogate"


@dataclass(frozen=True)
class FakeAnalysis:
    """The tables of an analysis, without the code that makes them."""

    latents: pl.DataFrame
    examples: pl.DataFrame
    quality: pl.DataFrame
    inputs: pl.DataFrame
    site: Site
    modality: Modality
    pictures: pl.DataFrame | None = None
    contexts: pl.DataFrame | None = None
    d_sae: int = 0
    rows: int = 0
    budgets: tuple[int, ...] = (4, 8, 16, 32)
    widths: tuple[int, ...] = ()
    title: str = "fake"
    promoted: pl.DataFrame | None = None
    extra: dict[str, object] = field(default_factory=dict)


@cache
def thumb(number: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A drawn face-like picture, different for every number, as WebP."""
    rng = np.random.default_rng(number)
    background, skin, ink = (
        tuple(int(c) for c in rng.integers(lo, hi, 3)) for lo, hi in ((90, 240), (150, 250), (0, 90))
    )
    image = Image.new("RGB", (size[0] * 4, size[1] * 4), background)
    draw = ImageDraw.Draw(image)
    w, h = image.size
    cx, cy = w * rng.uniform(0.42, 0.58), h * rng.uniform(0.5, 0.58)
    rx, ry = w * rng.uniform(0.22, 0.3), h * rng.uniform(0.3, 0.38)
    draw.ellipse((cx - rx * 1.15, cy - ry * 1.25, cx + rx * 1.15, cy + ry * 0.6), fill=ink)
    draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=skin)
    for side in (-1, 1):
        x = cx + side * rx * 0.42
        draw.ellipse((x - w * 0.035, cy - h * 0.06, x + w * 0.035, cy), fill=ink)
    draw.arc((cx - rx * 0.45, cy + ry * 0.2, cx + rx * 0.45, cy + ry * 0.6), 10, 170, fill=ink, width=6)
    out = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(out, "WEBP", quality=80, method=4)
    return out.getvalue()


WORDS = re.findall(
    r"\S+",
    """▁the ▁of ▁a ▁model ▁returns ▁list . ↵ ▁values ▁if ▁given ▁is ▁raise ▁ValueError ▁default , ▁path ▁to ▁file ▁self
    ( ) ▁args : ▁and ▁or ▁not ▁number s ▁string ▁object _ name ▁key ▁type ▁int ▁None ▁True ▁array ▁shape ▁with""",
)
WORDS = tuple(word.replace("▁", " ").replace("↵", "\n") for word in WORDS)


@cache
def fake_analysis(
    kind: str = "patches",
    *,
    d_sae: int = 64,
    inputs: int = 40,
    top: int = 16,
    interval: int = 4,
    seed: int = 0,
    hostile: bool = False,
    pictures: bool = True,
) -> FakeAnalysis:
    """`kind`: "patches" (8×8 grid and CLS), "pooled" (one row per image) or "text". The last latent is dead."""
    rng = np.random.default_rng(seed)
    site = {
        "patches": Site("visual.transformer.resblocks.2", 64, False, 1, 65, (8, 8)),
        "pooled": Site("image_embed", 64, True),
        "text": Site("gpt_neox.layers.3", 64, False, 0, 64, None),
    }[kind]
    modality: Modality = "text" if kind == "text" else "image"
    rows = inputs * (1 if site.pooled else site.positions)
    keys = [f"{number:06d}.jpg" if modality == "image" else f"doc {number}" for number in range(inputs)]
    title = "Demo CLIP on drawn faces" if modality == "image" else "Demo LM on documentation"
    words = WORDS
    if hostile:
        keys = [HOSTILE[n % len(HOSTILE)] for n in range(inputs)]
        title, words = HOSTILE[0], [*HOSTILE[:9], *WORDS[:3]]
    analysis = FakeAnalysis(
        latents=_latents(rng, d_sae, rows),
        examples=pl.DataFrame(schema=schema.EXAMPLES),
        quality=pl.DataFrame(schema=schema.QUALITY),
        inputs=pl.DataFrame({"input_id": range(inputs), "key": keys}, schema=schema.INPUTS),
        site=site, modality=modality, d_sae=d_sae, rows=rows, title=title,
    )  # fmt: skip
    if modality == "text":
        tokens = [[words[i] for i in rng.integers(0, len(words), site.positions)] for _ in range(inputs)]
        frame = {"input_id": range(inputs), "start": [0] * inputs, "tokens": tokens}
        contexts = pl.DataFrame(frame, schema=schema.CONTEXTS)
        analysis = replace(analysis, contexts=contexts, promoted=_promoted(rng, d_sae, words))
    elif pictures:
        frame = {
            "input_id": range(inputs), "width": [64] * inputs, "height": [64] * inputs,
            "webp": [thumb(n) for n in range(inputs)],
        }  # fmt: skip
        analysis = replace(analysis, pictures=pl.DataFrame(frame, schema=schema.PICTURES))
    return replace(analysis, examples=_examples(rng, analysis, inputs, top, interval))


def _latents(rng: np.random.Generator, d_sae: int, rows: int) -> pl.DataFrame:
    active = np.maximum(1, (rows * rng.beta(0.6, 12, d_sae)).astype(int))
    active[-1] = 0
    top = rng.gamma(3.0, 1.5, d_sae) + 0.5
    top[-1] = 0
    histograms = []
    for latent in range(d_sae):
        share = rng.exponential(0.25, active[latent])
        histograms.append(np.histogram(np.clip(share, 0, 1), BINS, (0, 1))[0].tolist())
    frame = {
        "latent": range(d_sae), "density": active / rows, "active_rows": active, "mean": top * 0.3, "max": top,
        "level": np.arange(d_sae) % 4, "dead": active == 0, "histogram": histograms, "histogram_max": top,
    }  # fmt: skip
    return pl.DataFrame(frame, schema=schema.LATENTS)


def _promoted(rng: np.random.Generator, d_sae: int, words: Sequence[str], top: int = 10) -> pl.DataFrame:
    lines = []
    for latent in range(d_sae):
        for side, sign in (("write", 1), ("write", -1), ("read", 1), ("read", -1)):
            for rank, logit in enumerate(np.sort(rng.gamma(2.0, 0.2, top))[::-1]):
                token = int(rng.integers(len(words)))
                name = "promoted" if sign > 0 else "suppressed"
                p = float(np.exp(-6 * logit))
                lines.append((latent, side, name, rank, token, words[token], sign * logit, sign * 5 * logit, p))
    return pl.DataFrame(lines, schema=schema.PROMOTED, orient="row")


def _examples(rng: np.random.Generator, analysis: FakeAnalysis, inputs: int, top: int, interval: int) -> pl.DataFrame:
    lines = []
    for latent, largest, dead in analysis.latents.select("latent", "max", "dead").iter_rows():
        if dead:
            continue
        wanted = [("top", -1, rank, largest * (1 - 0.03 * rank)) for rank in range(top)]
        for step in range(10):
            wanted += [
                ("interval", step, rank, largest * (step + rng.uniform(0.05, 0.95)) / 10) for rank in range(interval)
            ]
        for kind, step, rank, act in wanted:
            lines.append(
                _example(rng, analysis.site, latent, kind, step, rank, int(rng.integers(inputs)), max(act, 1e-3))
            )
    return pl.DataFrame(lines, schema=schema.EXAMPLES, orient="row")


def _example(rng, site: Site, latent: int, kind: str, step: int, rank: int, input_id: int, act: float) -> tuple:
    if site.pooled:
        return latent, kind, step, rank, input_id, 0, act, 0, [act], [0]
    places = np.arange(site.positions)
    if site.grid:
        row, column = rng.integers(0, 8, 2)
        peak = 1 + int(row) * 8 + int(column)
        patch = np.arange(64)
        near = np.hypot(patch // 8 - row, patch % 8 - column)
        acts = np.concatenate([[0.0], np.where(near < 2.4, act * np.exp(-(near**2) / 2.5), 0.0)])
        acts[peak] = act
    else:
        peak = int(rng.integers(site.positions))
        acts = np.where(rng.random(site.positions) < 0.06, act * rng.random(site.positions), 0.0)
        acts[peak] = act
    return latent, kind, step, rank, input_id, peak, act, 0, acts.tolist(), places.tolist()


@dataclass(frozen=True)
class FakeReading:
    """What `ns.reader` gives, with planted numbers."""

    tokens: tuple[str, ...]
    activations: np.ndarray
    strongest: pl.DataFrame
    next_token: np.ndarray | None


def fake_read(text: str, latents: Sequence[int]) -> FakeReading:
    """Five tokens, a hostile one among them: latent n is active on token n modulo 5, with 1 + n / 10."""
    tokens = (*[" " + word for word in (*text.split(), "a", "b", "c", "d")][:4], HOSTILE[0])
    acts = np.zeros((5, len(latents)), np.float32)
    for place, latent in enumerate(latents):
        acts[latent % 5, place] = 1 + latent / 10
    effect = np.where(acts > 0, 0.25, 0.0).astype(np.float32)
    effect[-1] = np.nan
    strongest = pl.DataFrame({"latent": [4, 1], "act": [1.4, 1.1], "token": [4, 1]})
    return FakeReading(tokens, acts, strongest, effect)


@pytest.fixture
def built(tmp_path_factory, monkeypatch) -> None:
    """The scripts themselves are tested in a browser; where they are not built, any text will do."""
    names = [
        f"{stem}.{kind}"
        for stem in ("feature", "concept", "bias", "attribution", "flow", "atlas", "monitor")
        for kind in ("js", "css")
    ]
    names.append("shared.js")
    if not all((base.STATIC / name).exists() for name in names):
        static = tmp_path_factory.mktemp("static")
        for name in names:
            (static / name).write_text("export default {}")
        monkeypatch.setattr(base, "STATIC", static)
