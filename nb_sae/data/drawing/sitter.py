"""What the parts of one face share while it is drawn."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from nb_sae.data.drawing.canvas import Canvas, Colour


@dataclass
class Sitter:
    """One face while it is being drawn: its attributes, its chance, and the choices several parts share."""

    canvas: Canvas
    has: Collection[str]
    rng: np.random.Generator
    skin: Colour
    hair: Colour
    line: Colour
    line_width: float
    rx: float
    yaw: float
    length: float
    """How far down the hair reaches."""

    def pick(self, colours: tuple[Colour, ...]) -> Colour:
        """One of the colours, slightly varied."""
        return jitter(self.rng, colours[int(self.rng.integers(len(colours)))])

    def between(self, low: float, high: float) -> float:
        """A uniform number."""
        return low + (high - low) * float(self.rng.random())


def jitter(rng: np.random.Generator, colour: Colour, by: float = 9.0) -> Colour:
    """The colour with each channel moved by up to `by`."""
    moved = np.asarray(colour) + rng.uniform(-by, by, 3)
    return tuple(int(c) for c in np.clip(moved, 0, 255))
