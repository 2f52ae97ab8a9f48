"""What lies behind and below a drawn face: the background, the neck and what is worn on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from nb_sae.data.drawing.canvas import Canvas, arc, mix, oval, smooth

if TYPE_CHECKING:
    from nb_sae.data.drawing.canvas import Colour
    from nb_sae.data.drawing.sitter import Sitter

INK = (34, 26, 32)
PAPERS = (
    (250, 214, 120), (140, 196, 232), (164, 214, 160), (240, 170, 150), (196, 176, 228), (232, 228, 216),
    (90, 120, 160), (70, 130, 120), (210, 110, 90), (250, 240, 200), (60, 66, 92), (180, 200, 210),
)  # fmt: skip
CLOTHES = (
    (200, 60, 60), (50, 90, 170), (60, 140, 90), (240, 200, 80), (120, 80, 150), (70, 74, 84), (240, 236, 228),
    (230, 130, 60), (110, 180, 200), (230, 150, 180),
)  # fmt: skip


SHIRT = (246, 247, 252)


def draw_background(canvas: Canvas, rng: np.random.Generator) -> None:
    """Cover the whole canvas with a plain colour, a gradient or a pattern."""
    one, other = (_pick(rng, PAPERS), _pick(rng, PAPERS))
    canvas.place(1.0, 0j)
    canvas.fill(np.array([0, 1, 1 + 1j, 1j], dtype=complex), one)
    kind = int(rng.integers(8))
    soft = mix(one, other, float(rng.uniform(0.3, 0.7)))
    if kind in (1, 2):
        ramp = Image.linear_gradient("L") if kind == 1 else Image.radial_gradient("L")
        canvas.image.paste(Image.new("RGB", canvas.image.size, other), (0, 0), ramp.resize(canvas.image.size))
    elif kind == 3:
        step = float(rng.uniform(0.12, 0.25))
        for x in np.arange(-1.0, 1.2, 2 * step):
            canvas.fill(np.array([x, x + step, x + step + 0.7 + 1j, x + 0.7 + 1j], dtype=np.complex128), soft)
    elif kind == 4:
        step = float(rng.uniform(0.16, 0.26))
        for x in np.arange(0.05, 1.1, step):
            for y in np.arange(0.05, 1.1, step):
                canvas.fill(oval(x + 1j * y, 0.04, 0.04)[::3], soft)
    elif kind == 5:
        for _ in range(4):
            at = complex(*rng.random(2))
            canvas.fill(oval(at, *rng.uniform(0.1, 0.3, 2)), (*other, 130))
    elif kind == 6:
        edge = rng.uniform(0.45, 0.75, 5)
        hills = smooth(np.linspace(-0.1, 1.1, 5) + 1j * edge, closed=False)
        canvas.fill(np.concatenate([hills, [1.1 + 1.1j, -0.1 + 1.1j]]), soft)
    elif kind == 7:
        x = float(rng.uniform(0.25, 0.75))
        canvas.fill(np.array([0, x, 1 - x + 1j, 1j]), soft)


def draw_clothes(face: Sitter) -> None:
    """Neck, shoulders, and a necklace or a necktie."""
    canvas, width = face.canvas, face.line_width
    cloth = SHIRT if "Wearing_Necktie" in face.has else face.pick(CLOTHES)
    edge = mix(cloth, INK, 0.55)
    neck = 0.36 if "Chubby" in face.has else 0.3
    wide = face.between(1.05, 1.4)
    body = smooth(
        [
            -neck - 0.05 + 1.24j,
            -wide * 0.8 + 1.42j,
            -wide - 0.1 + 2.4j,
            wide + 0.1 + 2.4j,
            wide * 0.8 + 1.42j,
            neck + 0.05 + 1.24j,
        ]
    )
    canvas.fill(body, cloth, edge, width)
    throat = np.array([-neck + 0.6j, neck + 0.6j, neck + 0.07 + 1.3j, 1.44j, -neck - 0.07 + 1.3j])
    canvas.fill(throat, mix(face.skin, INK, 0.13), edge, width)
    if "Wearing_Necklace" in face.has:
        _draw_necklace(face, neck)
    elif "Wearing_Necktie" in face.has:
        _draw_necktie(face, neck)
    elif face.rng.random() < 0.3:
        canvas.stroke(arc(1.2j, neck + 0.12, 0.26, 0.0, 0.5), edge, 0.08)


def _draw_necklace(face: Sitter, neck: float) -> None:
    colour = face.pick(((255, 210, 40), (255, 250, 240), (226, 30, 70), (30, 190, 210)))
    edge = mix(colour, INK, 0.75)
    chain = arc(1.1j, neck + 0.22, 0.34, -0.02, 0.52, 8)
    for bead in chain:
        face.canvas.fill(oval(bead, 0.14, 0.14)[::3], colour, edge, 0.04)
    face.canvas.fill(oval(1.5j, 0.17, 0.17)[::3], colour, edge, 0.04)


def _draw_necktie(face: Sitter, neck: float) -> None:
    canvas = face.canvas
    tie = face.pick(((190, 20, 40), (20, 50, 140), (20, 20, 26), (20, 110, 70), (100, 20, 110)))
    white = (250, 250, 252)
    for side in (-1, 1):
        flap = np.array(
            [side * (neck + 0.1) + 1.02j, side * 0.06 + 1.26j, side * 0.46 + 1.6j, side * (neck + 0.34) + 1.2j]
        )
        canvas.fill(flap, white, INK, 0.04)
    canvas.fill(
        np.array([-0.2 + 1.14j, 0.2 + 1.14j, 0.13 + 1.34j, 0.32 + 2.2j, -0.32 + 2.2j, -0.13 + 1.34j]), tie, INK, 0.045
    )
    canvas.stroke([-0.14 + 1.35j, 0.14 + 1.35j], mix(tie, INK, 0.6), 0.05)


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    moved = np.asarray(colours[int(rng.integers(len(colours)))]) + rng.uniform(-14, 14, 3)
    return tuple(int(c) for c in np.clip(moved, 0, 255))
