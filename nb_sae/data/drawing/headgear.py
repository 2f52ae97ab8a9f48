"""What a drawn face wears on its head: hair of every length and texture, and hats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nb_sae.data.drawing.canvas import Points, arc, mix, oval, smooth

if TYPE_CHECKING:
    from nb_sae.data.drawing.sitter import Sitter

INK = (34, 26, 32)
HATS = ((206, 40, 50), (36, 92, 180), (40, 140, 90), (240, 170, 40), (110, 60, 150), (60, 60, 70), (236, 120, 160))


def draw_hair_back(face: Sitter) -> None:
    """The hair behind the head; its colour stays visible at the sides under any hat."""
    rx, low = face.rx, face.length
    wide = rx + face.between(0.14, 0.22)
    dark = mix(face.hair, INK, 0.42)
    flare = 0.12 if low > 0.8 else -0.02
    half = [wide + flare + 1j * low, wide + 0.06 + 1j * (0.5 * low - 0.15), wide + 0.02 - 0.45j, 0.62 * wide - 1.02j]
    outline = _both(half, top=-1.2j - 0.06j * face.rng.random())
    body: Points = smooth(outline)
    if "Wavy_Hair" in face.has:
        body = _wave(body)
    elif "Straight_Hair" in face.has:
        body = np.asarray(outline, dtype=np.complex128)
    face.canvas.fill(body, face.hair, dark, max(face.line_width, 0.04))
    if "Wavy_Hair" in face.has:
        _curls(face, body[(np.abs(body.real) > face.rx - 0.05) | (body.imag < -0.7)], dark)
    if low > 0.8:
        _strands(face, dark, low)
    elif face.rng.random() < 0.2 and "Wearing_Hat" not in face.has:
        bun = oval(-1.3j, 0.33, 0.28)
        face.canvas.fill(_wave(bun) if "Wavy_Hair" in face.has else bun, face.hair, dark, 0.045)


def draw_hair_front(face: Sitter) -> None:
    """The hair over the forehead: a fringe down to the brows with Bangs, a hairline high above them without."""
    rx, has = face.rx, face.has
    wavy, straight = "Wavy_Hair" in has, "Straight_Hair" in has
    dark = mix(face.hair, INK, 0.42)
    edge = rx + 0.06
    crown = smooth(
        [
            -edge - 0.25j,
            -edge * 0.93 - 0.68j,
            -edge * 0.55 - 1.04j,
            -1.16j,
            edge * 0.55 - 1.04j,
            edge * 0.93 - 0.68j,
            edge - 0.25j,
        ],
        closed=False,
    )
    if straight:
        crown = crown + 0.1j * (np.arange(len(crown)) % 6 == 3) * -1.0
    inner = rx - 0.1
    if "Bangs" in has:
        low, teeth = -0.5, 7
        x = np.linspace(inner, -inner, 2 * teeth + 1)
        drop = np.where(np.arange(2 * teeth + 1) % 2 == 0, -0.1, 0.02)
        hairline = x + 1j * (low + (drop if straight else 0.0) - 0.05 * (x / inner) ** 2)
        hairline = hairline if straight else smooth(hairline + (0.1j * np.sin(9 * x) if wavy else 0), closed=False)
    else:
        part = face.between(-0.4, 0.4) * inner
        hairline = smooth(
            [
                inner - 0.2j,
                inner * 0.86 - 0.52j,
                (part + inner) / 2 - 0.74j,
                part - 0.88j,
                (part - inner) / 2 - 0.72j,
                -inner * 0.86 - 0.52j,
                -inner - 0.2j,
            ],
            closed=False,
        )
    shape = np.concatenate([crown, hairline])
    if wavy:
        shape = np.concatenate([_wave(crown), hairline])
    face.canvas.fill(shape, face.hair, dark, max(face.line_width * 0.8, 0.035))
    if "Wearing_Hat" not in has:
        _texture(face, dark)


def draw_hat(face: Sitter) -> None:
    """One of five hats; it covers the head above the brows' upper end and leaves the sides free."""
    canvas, rx = face.canvas, face.rx
    colour = face.pick(HATS)
    band = face.pick(HATS)
    dark, width = mix(colour, INK, 0.55), max(face.line_width, 0.04)
    wide, base = rx + 0.14, -0.62j
    kind = int(face.rng.integers(5))
    if kind == 0:  # knitted cap
        canvas.fill(np.concatenate([arc(base, wide, 0.95, 0.5, 1.0, 18)]), colour, dark, width)
        canvas.fill(_box(-wide - 0.03, wide + 0.03, -0.82, -0.52), band, dark, width)
        for x in np.linspace(-wide * 0.8, wide * 0.8, 6):
            canvas.stroke([x - 0.78j, x - 0.56j], mix(band, INK, 0.4), 0.04)
        canvas.fill(oval(-1.56j, 0.17, 0.17), band, dark, width)
    elif kind == 1:  # cap with a visor
        side = 1 if face.rng.random() < 0.5 else -1
        canvas.fill(arc(base, wide, 0.8, 0.5, 1.0, 18), colour, dark, width)
        visor = [
            side * -0.2 * wide - 0.62j,
            side * 0.8 * wide - 0.68j,
            side * 1.62 * wide - 0.5j,
            side * 0.9 * wide - 0.46j,
        ]
        canvas.fill(smooth(visor), band, dark, width)
        canvas.fill(oval(-1.42j, 0.07, 0.06), band)
    elif kind == 2:  # top hat
        canvas.fill(_box(-wide * 0.8, wide * 0.8, -1.75, -0.62), colour, dark, width)
        canvas.fill(_box(-wide * 0.8, wide * 0.8, -0.92, -0.7), band)
        canvas.fill(oval(-0.6j, wide * 1.35, 0.13), colour, dark, width)
    elif kind == 3:  # wide straw brim
        straw = mix((236, 200, 120), colour, 0.35)
        dark = mix(straw, INK, 0.55)
        canvas.fill(arc(base, wide * 0.86, 0.78, 0.5, 1.0, 18), straw, dark, width)
        canvas.fill(_box(-wide * 0.85, wide * 0.85, -0.84, -0.66), band)
        canvas.fill(oval(-0.6j, wide * 1.75, 0.16), straw, dark, width)
    else:  # party cone
        cone = np.array([-wide * 0.85 - 0.56j, -1.95j, wide * 0.85 - 0.56j])
        canvas.fill(cone, colour, dark, width)
        for x, y in ((-0.3, -0.8), (0.25, -0.85), (0.0, -1.2), (-0.02, -1.5)):
            canvas.fill(oval(x + 1j * y, 0.1, 0.1), band)
        canvas.stroke([-wide * 0.9 - 0.56j, wide * 0.9 - 0.56j], band, 0.14)
        canvas.fill(oval(-1.9j, 0.13, 0.13), band)


def _both(half: list[complex], top: complex) -> list[complex]:
    """The outline from the left foot over the top to the right foot."""
    return [complex(-z.real, z.imag) for z in half] + [top] + half[::-1]


def _wave(z: Points) -> Points:
    """The same outline with bumps along it."""
    step = np.abs(np.diff(z, append=z[:1]))
    way = np.concatenate([[0.0], np.cumsum(step)[:-1]])
    middle = z.mean()
    return z + 0.09 * np.sin(way * 2 * np.pi / 0.42) * (z - middle) / np.maximum(np.abs(z - middle), 1e-6)


def _box(left: float, right: float, top: float, bottom: float) -> Points:
    return np.array([left + 1j * top, right + 1j * top, right + 1j * bottom, left + 1j * bottom])


def _strands(face: Sitter, dark: tuple[int, ...], low: float) -> None:
    """Lines along straight hanging hair."""
    light = mix(face.hair, (255, 255, 255), 0.45)
    y = np.linspace(-0.3, low - 0.06, 14)
    for side in (-1, 1):
        for number, out in enumerate((0.0, 0.08, 0.16)):
            x = side * (face.rx + out + 0.06 * (y > 0.6))
            if "Straight_Hair" in face.has:
                face.canvas.stroke(x + 1j * y, light if number == 1 else dark, 0.05)


def _curls(face: Sitter, along: Points, dark: tuple[int, ...]) -> None:
    """Ringlets along an outline."""
    count = max(4, round(float(np.abs(np.diff(along)).sum()) / 0.3))
    for z in along[np.linspace(0, len(along) - 1, count).astype(int)]:
        face.canvas.fill(oval(z, 0.17, 0.17), face.hair, dark, 0.05)
        face.canvas.stroke(arc(z, 0.07, 0.07, 0.1, 0.8, 6), dark, 0.04)


def _texture(face: Sitter, dark: tuple[int, ...]) -> None:
    light = mix(face.hair, (255, 255, 255), 0.45)
    if "Straight_Hair" in face.has:
        for number, x in enumerate(np.linspace(-0.72, 0.72, 9) * face.rx):
            top, end = -1.16 + 0.3 * x * x, -0.72 - 0.12 * (abs(x) < 0.4)
            face.canvas.stroke([0.75 * x + 1j * top, x + 1j * end], light if number % 2 else dark, 0.06)
    elif "Wavy_Hair" in face.has:
        _curls(face, np.linspace(-0.62, 0.62, 7) * face.rx - 0.98j, dark)
    else:
        face.canvas.stroke(arc(-0.62j, face.rx * 0.72, 0.42, 0.6, 0.72, 7), light, 0.07)
