"""A small supersampled canvas on which shapes are arrays of complex numbers (x + iy, y downwards).

Owns curves, fills and strokes; it knows nothing of faces. A placement `z ↦ turn·z + origin` moves, scales and
tilts everything that is drawn after it, so one set of coordinates serves every picture size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, ...]
"""Red, green, blue and, where it is see-through, alpha; 0–255."""
Points = NDArray[np.complexfloating[Any, Any]]
"""Complex numbers, one per point."""

_CIRCLE: Points = np.exp(2j * np.pi * np.arange(36) / 36)
_STEPS = np.arange(6) / 6
# Catmull-Rom: weights of the four neighbouring points at each sixth of a span.
_SPLINE = 0.5 * np.stack(
    [
        -(_STEPS**3) + 2 * _STEPS**2 - _STEPS,
        3 * _STEPS**3 - 5 * _STEPS**2 + 2,
        -3 * _STEPS**3 + 4 * _STEPS**2 + _STEPS,
        _STEPS**3 - _STEPS**2,
    ]
)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """The colour `share` of the way from `one` to `other`."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one[:3], other[:3], strict=True))


def oval(centre: complex, rx: float, ry: float) -> Points:
    """An ellipse with its axes along x and y."""
    return centre + rx * _CIRCLE.real + 1j * ry * _CIRCLE.imag


def arc(centre: complex, rx: float, ry: float, start: float, stop: float, points: int = 12) -> Points:
    """Part of an ellipse; angles in turns from the right, clockwise on the screen."""
    angle = 2 * np.pi * np.linspace(start, stop, points)
    return centre + rx * np.cos(angle) + 1j * ry * np.sin(angle)


def smooth(points: Points | Sequence[complex], closed: bool = True) -> Points:
    """A curve through the points (Catmull-Rom), six steps a span."""
    z = np.asarray(points, dtype=np.complex128)
    if closed:
        around = np.stack([np.roll(z, 1), z, np.roll(z, -1), np.roll(z, -2)])
    else:
        padded = np.concatenate([z[:1], z, z[-1:]])
        around = np.stack([padded[:-3], padded[1:-2], padded[2:-1], padded[3:]])
    curve: Points = np.dot(around.T, _SPLINE).ravel()
    return curve if closed else np.concatenate([curve, z[-1:]])


def mirror(points: Points) -> Points:
    """The same shape on the other side of the vertical axis."""
    return -np.conj(points)


class Canvas:
    """A square picture of `size` pixels, drawn `oversample` times larger and averaged down."""

    def __init__(self, size: int, oversample: int) -> None:
        self.oversample = oversample
        self.side = size * oversample
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        self.turn: complex = self.side
        self.origin: complex = 0j

    def place(self, turn: complex, origin: complex) -> None:
        """From here on draw `z` at `turn * z + origin`, both in picture widths."""
        self.turn = turn * self.side
        self.origin = origin * self.side

    def fill(self, z: Points, colour: Colour, line: Colour | None = None, width: float = 0.0) -> None:
        """Fill a closed shape and, where `width` > 0, draw its edge; `width` in the shape's own unit."""
        flat = self._flat(z)
        self.draw.polygon(flat, fill=colour)
        if line is not None and width > 0:
            self.draw.line([*flat, *flat[:4]], fill=line, width=self._pixels(width))

    def stroke(self, z: Points | Sequence[complex], colour: Colour, width: float) -> None:
        """Draw an open line with round ends."""
        flat = self._flat(np.asarray(z, dtype=complex))
        pixels = self._pixels(width)
        self.draw.line(flat, fill=colour, width=pixels, joint="curve" if len(flat) < 10 else None)
        if pixels > self.oversample and len(colour) == 3:
            r = pixels / 2 - 0.5
            for x, y in (flat[:2], flat[-2:]):
                self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def finish(self) -> Image.Image:
        """The averaged picture."""
        return self.image.reduce(self.oversample)

    def _flat(self, z: Points) -> list[float]:
        return (z * self.turn + self.origin).view(np.float64).tolist()

    def _pixels(self, width: float) -> int:
        return max(1, round(width * abs(self.turn)))
