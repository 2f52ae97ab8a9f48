"""Faces drawn from their attributes: `face` puts together what `headgear` and `scenery` draw on a `canvas`."""

from nb_sae.data.drawing.face import draw_face

__all__ = ["draw_face"]
