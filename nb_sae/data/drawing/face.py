"""Draw one cartoon-like face from its attributes.

Owns what each attribute looks like. Where the attributes come from is not known here; whatever is not an attribute
(pose, background, clothes, hair length, line) is drawn at random and tells nothing about them. The unit of length is
half a face: the face reaches from -1 to 1 downwards.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from PIL import Image

from nb_sae.data.drawing.canvas import Canvas, Colour, Points, arc, mirror, mix, oval, smooth
from nb_sae.data.drawing.headgear import draw_hair_back, draw_hair_front, draw_hat
from nb_sae.data.drawing.scenery import draw_background, draw_clothes
from nb_sae.data.drawing.sitter import Sitter, jitter

SKINS: tuple[Colour, ...] = (
    (240, 192, 140), (228, 176, 118), (214, 156, 104), (196, 138, 90),
    (172, 112, 70), (146, 92, 56), (118, 72, 44), (94, 56, 36),
)  # fmt: skip
PALE: Colour = (255, 238, 230)
HAIRS: dict[str, Colour] = {
    "Black_Hair": (26, 22, 30),
    "Blond_Hair": (246, 210, 92),
    "Brown_Hair": (116, 66, 30),
    "Gray_Hair": (176, 180, 186),
}
OTHER_HAIRS: tuple[Colour, ...] = (
    (214, 74, 30), (196, 56, 70), (230, 110, 170), (130, 84, 190), (52, 122, 200), (40, 160, 150), (90, 160, 70),
)  # fmt: skip
LIPSTICKS: tuple[Colour, ...] = ((206, 10, 44), (226, 30, 110), (160, 14, 84), (236, 52, 40))
SHADOWS: tuple[Colour, ...] = ((116, 74, 220), (30, 130, 220), (0, 160, 140), (214, 60, 170))
IRISES: tuple[Colour, ...] = ((66, 42, 26), (40, 92, 168), (52, 128, 70), (96, 70, 40), (34, 32, 40))
INK: Colour = (34, 26, 32)


def draw_face(has: Collection[str], rng: np.random.Generator, size: int = 64) -> Image.Image:
    """Draw a face of `size` × `size` pixels, RGB.

    Args:
        has: CelebA names of the attributes that hold.
        rng: Decides everything that is not an attribute.
        size: Side in pixels.
    """
    canvas = Canvas(size, 4 if size <= 96 else 3 if size <= 160 else 2)
    draw_background(canvas, rng)
    tilt = np.exp(1j * np.radians(rng.uniform(-11, 11)))
    scale = 0.325 * rng.uniform(0.92, 1.08)
    centre = 0.5 + rng.uniform(-0.04, 0.04) + 1j * (0.475 + rng.uniform(-0.025, 0.03))
    canvas.place(scale * tilt, centre)
    face = _sit(canvas, has, rng)
    bald = "Bald" in has
    if not bald:
        draw_hair_back(face)
    draw_clothes(face)
    _draw_head(face)
    _draw_cheeks(face)
    _draw_age(face)
    _draw_beard(face)
    _draw_nose(face)
    _draw_mouth(face)
    _draw_mustache(face)
    _draw_eyes(face)
    if not bald:
        draw_hair_front(face)
    elif "Wearing_Hat" not in has:
        shine = mix(face.skin, (255, 255, 255), 0.6)
        canvas.fill(oval(-0.25 - 0.74j, 0.17, 0.09), shine)
    _draw_brows(face)
    if "Wearing_Hat" in has:
        draw_hat(face)
    if "Eyeglasses" in has:
        _draw_glasses(face)
    if "Wearing_Earrings" in has:
        _draw_earrings(face)
    return canvas.finish()


def _sit(canvas: Canvas, has: Collection[str], rng: np.random.Generator) -> Sitter:
    skin = jitter(rng, PALE if "Pale_Skin" in has else SKINS[int(rng.integers(len(SKINS)))], 7)
    named = [colour for name, colour in HAIRS.items() if name in has]
    other = (HAIRS["Black_Hair"], HAIRS["Brown_Hair"]) if "Bald" in has else OTHER_HAIRS
    hair = jitter(rng, named[0] if named else other[int(rng.integers(len(other)))])
    line = mix(INK, skin, 0.25 * rng.random()) if rng.random() < 0.75 else mix(skin, INK, 0.6)
    return Sitter(
        canvas=canvas,
        has=has,
        rng=rng,
        skin=skin,
        hair=hair,
        line=line,
        line_width=float(rng.uniform(0.03, 0.075)),
        rx=float(rng.uniform(1.0, 1.08) if "Chubby" in has else rng.uniform(0.7, 0.78)),
        yaw=float(rng.uniform(-0.09, 0.09)),
        length=float(rng.choice([0.2, 0.3, 0.85, 1.1, 1.6, 1.75])),
    )


def _draw_head(face: Sitter) -> None:
    canvas, rx, skin = face.canvas, face.rx, face.skin
    chubby = "Chubby" in face.has
    for side in (-1, 1):
        ear = side * rx * 1.02 + 0.04j
        canvas.fill(oval(ear, 0.15, 0.21), skin, face.line, face.line_width)
        canvas.stroke(arc(ear, 0.06, 0.1, 0.55, 0.95, 6), mix(skin, INK, 0.3), 0.04)
    turn = np.linspace(0, 2 * np.pi, 44, endpoint=False)
    below = np.clip(np.sin(turn), 0, None)
    jaw = face.between(-0.04, 0.0) if chubby else face.between(0.1, 0.3)
    x = rx * np.cos(turn) * (1 - jaw * below**2)
    if chubby:
        x = x * (1 + 0.1 * below * (1 - below))
    y = np.sin(turn) * np.where(np.sin(turn) > 0, 1.0, 0.98)
    canvas.fill(x + 1j * y, skin, face.line, face.line_width)
    if chubby:
        canvas.stroke(arc(0.84j, 0.42, 0.2, 0.06, 0.44), mix(skin, INK, 0.4), 0.05)


def _draw_cheeks(face: Sitter) -> None:
    if "Rosy_Cheeks" not in face.has:
        return
    dark = sum(face.skin) < 400
    colour = (246, 60, 84) if dark else (255, 88, 110)
    for side in (-1, 1):
        spot = face.yaw + side * face.rx * 0.6 + 0.3j
        face.canvas.fill(oval(spot, 0.25, 0.19), (*colour, 150))
        face.canvas.fill(oval(spot, 0.17, 0.12), (*colour, 170))


def _draw_age(face: Sitter) -> None:
    if "Young" in face.has:
        return
    canvas, yaw = face.canvas, face.yaw
    crease = mix(face.skin, (50, 34, 44), 0.75)
    for y, width in ((-0.78, 0.26), (-0.66, 0.36), (-0.54, 0.3)):
        canvas.stroke(arc(yaw + 1j * (y + 0.03), width, 0.06, 0.55, 0.95), crease, 0.06)
    for side in (-1, 1):
        corner = yaw + side * 0.34
        canvas.fill(oval(corner + 0.16j, 0.24, 0.12), (*mix(face.skin, (80, 50, 90), 0.65), 190))
        canvas.stroke(arc(corner + 0.12j, 0.25, 0.17, 0.06, 0.44, 8), crease, 0.06)
        fold = [0.22 + 0.28j, 0.42 + 0.44j, 0.46 + 0.78j]
        canvas.stroke(smooth([yaw + side * z.real + 1j * z.imag for z in fold], False), crease, 0.075)


def _jaw(face: Sitter, top: float, inner: float) -> Points:
    """The band along the jaw: outside it follows the face, inside an oval around the mouth."""
    outside = arc(0j, face.rx * 0.97, 1.07, top, 0.5 - top, 18)
    inside = arc(face.yaw + 0.3j, face.rx * inner, 0.42, 0.5, 0.0, 14)
    return np.concatenate([outside, inside])


def _draw_beard(face: Sitter) -> None:
    has, canvas = face.has, face.canvas
    edge = mix(face.hair, INK, 0.5)
    if "5_o_Clock_Shadow" in has:
        tone = mix(face.skin, (40, 46, 66), 0.5 if sum(face.skin) > 420 else 0.62)
        canvas.fill(_jaw(face, 0.03, 0.5), (*tone, 170))
        dots = face.rng.random((46, 2))
        for u, v in dots:
            at = (0.72 + 0.25 * v) * (face.rx * np.cos(np.pi * u) + 1j * np.sin(np.pi * u))
            if at.imag > 0.3:
                canvas.fill(oval(at, 0.025, 0.025)[::6], mix(tone, INK, 0.6))
    elif "Goatee" in has:
        half = [0.76j, 0.2 + 0.8j, 0.34 + 0.88j, 0.27 + 1.12j]
        shape = np.array([*half, 1.46j, *(complex(-z.real, z.imag) for z in half[:0:-1])])
        canvas.fill(smooth(shape) + face.yaw * 0.8, face.hair, edge, 0.05)
        for x in (-0.1, 0.1):
            canvas.stroke([face.yaw * 0.8 + x + 0.92j, face.yaw * 0.8 + 0.4 * x + 1.26j], edge, 0.045)
    elif "No_Beard" not in has and "Mustache" not in has:
        canvas.fill(_jaw(face, 0.015, 0.66), face.hair, edge, 0.04)


def _draw_mustache(face: Sitter) -> None:
    if "Mustache" not in face.has:
        return
    curl = face.between(-0.12, 0.16)
    half = [0.36j, 0.16 + 0.31j, 0.36 + 0.4j, 0.54 + (0.44 - curl) * 1j, 0.36 + 0.53j, 0.12 + 0.5j, 0.46j]
    shape = smooth(half)
    edge = mix(face.hair, INK, 0.5)
    for side in (shape, mirror(shape)):
        face.canvas.fill(side + face.yaw, face.hair, edge, 0.035)


def _draw_nose(face: Sitter) -> None:
    canvas, at = face.canvas, face.yaw * 1.4
    tone, line = mix(face.skin, (206, 70, 60), 0.45), mix(face.skin, INK, 0.66)
    if "Big_Nose" in face.has:
        half = [-0.16j, 0.13 + 0.0j, 0.33 + 0.18j, 0.27 + 0.34j, 0.38j]
        shape = np.array([*half, *(complex(-z.real, z.imag) for z in half[3:0:-1])])
        canvas.fill(smooth(shape) + at, tone, line, 0.06)
        canvas.fill(oval(at - 0.08 + 0.1j, 0.07, 0.08), mix(tone, (255, 255, 255), 0.5))
    elif face.rng.random() < 0.5:
        canvas.stroke(arc(at + 0.17j, 0.075, 0.06, 0.02, 0.48, 7), line, 0.045)
    else:
        side = 1 if face.yaw >= 0 else -1
        canvas.stroke([at + 0.04j, at + side * 0.07 + 0.2j, at + 0.21j], line, 0.045)


def _draw_mouth(face: Sitter) -> None:
    has, canvas, at = face.has, face.canvas, face.yaw + 0.58j
    smiling, opened, painted = "Smiling" in has, "Mouth_Slightly_Open" in has, "Wearing_Lipstick" in has
    lips = face.pick(LIPSTICKS) if painted else mix(face.skin, (130, 50, 50), 0.5)
    inside, teeth = (88, 16, 26), (255, 255, 250)
    lip_width = 0.13 if painted else 0.055
    wide = face.between(0.42, 0.5)
    if smiling and opened:
        top = arc(at - 0.12j, wide, 0.05, 0.5, 0.0, 10)
        shape = np.concatenate([top, arc(at - 0.12j, wide, 0.4, 0.0, 0.5, 14)])
        canvas.fill(shape, inside)
        canvas.fill(np.concatenate([top, arc(at - 0.1j, wide * 0.94, 0.14, 0.0, 0.5, 10)]), teeth)
        canvas.stroke(np.append(shape, shape[0]), lips, lip_width)
    elif opened:
        canvas.fill(oval(at + 0.03j, 0.17, 0.19), inside)
        canvas.fill(oval(at + 0.12j, 0.11, 0.07), (226, 96, 100))
        edge = oval(at + 0.03j, 0.17, 0.19)
        canvas.stroke(np.append(edge, edge[:2]), lips, lip_width)
    else:
        bend = 0.4 if smiling else -face.between(0.02, 0.16)
        if not smiling:
            wide *= 0.66
        x = np.linspace(-wide, wide, 13)
        curve = at + x + 1j * bend * (0.35 - (x / wide) ** 2)
        if painted:
            bow = 0.1 * (1 - (x / wide) ** 2)
            canvas.fill(np.concatenate([curve - 1j * bow * 1.1, (curve + 1.5j * bow)[::-1]]), lips, lips, 0.06)
            canvas.stroke(curve, mix(lips, INK, 0.65), 0.035)
        else:
            canvas.stroke(curve, mix(lips, INK, 0.55), 0.09)
        if smiling:
            for end in (curve[0], curve[-1]):
                canvas.stroke([end - 0.06 - 0.02j, end + 0.06 - 0.02j], mix(face.skin, INK, 0.5), 0.045)


def _draw_eyes(face: Sitter) -> None:
    has, canvas = face.has, face.canvas
    narrow, made_up = "Narrow_Eyes" in has, "Heavy_Makeup" in has
    iris, white, dots = face.pick(IRISES), (255, 255, 255), face.rng.random() < 0.25 and sum(face.skin) > 330
    shadow = face.pick(SHADOWS) if made_up else white
    glance = face.between(-0.04, 0.04)
    tall = 0.055 if narrow else face.between(0.16, 0.19)
    for side in (-1, 1):
        at = face.yaw + side * 0.34 - 0.08j
        if made_up:
            canvas.fill(
                np.concatenate([arc(at - 0.02j, 0.27, 0.27, 0.5, 1.0), arc(at, 0.26, 0.02, 0.0, 0.5, 4)]), shadow
            )
        if dots:
            canvas.fill(oval(at, 0.17 if narrow else 0.1, 0.045 if narrow else 0.15), INK)
        else:
            canvas.fill(oval(at, 0.2 if narrow else 0.185, tall), white, face.line, 0.035)
            canvas.fill(oval(at + glance, 0.09, min(tall, 0.1)), iris)
            canvas.fill(oval(at + glance, 0.045, min(tall, 0.055)), INK)
        if narrow:
            canvas.stroke(arc(at + 0.01j, 0.23, 0.06, 0.52, 0.98, 8), INK, 0.055)
        else:
            canvas.fill(oval(at + glance + 0.04 - 0.05j, 0.03, 0.035), white)
        if made_up:
            canvas.stroke(arc(at, 0.23, tall + 0.02, 0.5, 1.0, 8), INK, 0.07)
            for x, y in ((0.2, -0.08), (0.24, -0.02)):
                start = at + side * x + 1j * y
                canvas.stroke([start, start + side * 0.13 - 0.12j], INK, 0.05)


def _draw_brows(face: Sitter) -> None:
    has = face.has
    colour = mix(face.hair, INK, 0.55)
    bushy, arched = "Bushy_Eyebrows" in has, "Arched_Eyebrows" in has
    slant = face.between(-0.05, 0.05)
    rise = 0.3 if arched else 0.0
    lift = -0.34 if arched else -0.38
    for side in (-1, 1):
        inner, outer = (0.11, 0.58) if bushy else (0.17, 0.52)
        x = np.linspace(inner, outer, 9)
        u = (x - inner) / (outer - inner)
        y = lift - rise * (1 - np.abs(2 * u - 1) ** 1.5) + slant * (u - 0.5)
        curve = face.yaw + side * x + 1j * y
        if bushy:
            face.canvas.stroke(curve, colour, 0.21)
            for point in curve[1::2]:
                face.canvas.stroke([point + 0.04j, point + side * 0.06 - 0.14j], colour, 0.06)
        else:
            face.canvas.stroke(curve, colour, 0.055)


def _draw_glasses(face: Sitter) -> None:
    canvas, rng = face.canvas, face.rng
    frame = mix(face.pick(((20, 20, 24), (190, 24, 40), (24, 70, 170), (120, 60, 20), (20, 110, 80))), INK, 0.1)
    width, square = face.between(0.075, 0.11), rng.random() < 0.5
    for side in (-1, 1):
        at = face.yaw + side * 0.34 - 0.06j
        unit = oval(0j, 1.0, 1.0)
        if square:
            unit = np.sign(unit.real) * np.abs(unit.real) ** 0.45 + 1j * np.sign(unit.imag) * np.abs(unit.imag) ** 0.45
        rim = at + 0.285 * unit.real + 0.25j * unit.imag
        canvas.fill(rim, (210, 235, 255, 60))
        canvas.stroke(np.append(rim, rim[:2]), frame, width)
        canvas.stroke([at + side * 0.28 - 0.06j, side * face.rx * 1.0 - 0.1j], frame, width * 0.9)
    canvas.stroke(arc(face.yaw - 0.06j, 0.07, 0.06, 0.5, 1.0, 5), frame, width * 0.9)


def _draw_earrings(face: Sitter) -> None:
    canvas = face.canvas
    colour = face.pick(((255, 206, 30), (255, 206, 30), (230, 30, 60), (40, 190, 230), (250, 250, 255)))
    edge, kind = mix(colour, INK, 0.65), face.rng.random()
    for side in (-1, 1):
        lobe = side * face.rx * 1.07 + 0.26j
        if kind < 0.4:
            ring = oval(lobe + 0.24j, 0.2, 0.25)
            canvas.stroke(np.append(ring, ring[:2]), edge, 0.18)
            canvas.stroke(np.append(ring, ring[:2]), colour, 0.11)
        elif kind < 0.7:
            canvas.fill(oval(lobe + 0.14j, 0.2, 0.21), colour, edge, 0.04)
        else:
            canvas.fill(lobe + 0.22 * np.array([0, 0.8 + 1.6j, 2.9j, -0.8 + 1.6j]), colour, edge, 0.04)
