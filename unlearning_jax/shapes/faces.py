"""Portraits: a procedural face as a list of painted layers."""

import numpy as np
from jaxtyping import Float

from unlearning_jax.shapes import silhouettes as sd
from unlearning_jax.shapes import vocabulary

Plane = Float[np.ndarray, "h w"]
Layer = tuple[Plane, vocabulary.Rgb]

_INK = (30, 24, 34)
_SHIRT = (96, 104, 120)
_SPIKES = [
  (-0.72, -0.2), (-0.88, -0.85), (-0.42, -0.66), (-0.3, -1.12), (0.0, -0.74),
  (0.3, -1.12), (0.42, -0.66), (0.88, -0.85), (0.72, -0.2),
]  # fmt: skip


def _ellipse(x: Plane, y: Plane, cx, cy, w, h) -> Plane:
  """Distance to an ellipse, exact only at its outline, which is enough here."""
  u, v = (x - cx) / w, (y - cy) / h
  return (np.hypot(u, v) - 1) * min(w, h)


def _cap(x: Plane, y: Plane) -> Plane:
  """The hair on top, which ends in a fringe."""
  skull = _ellipse(x, y, 0, -0.12, 0.74, 0.84)
  return np.maximum(skull, y + 0.34 + 0.25 * np.abs(x) * np.abs(x))


def _hair_behind(hair: str, x: Plane, y: Plane) -> Plane | None:
  if hair == "long":
    strands = sd.box(x, y, 0, 0.25, 0.72, 0.62) - 0.14
    return np.minimum(strands, _ellipse(x, y, 0, -0.2, 0.86, 0.82))
  if hair == "curly":
    curls = [
      sd.disc(x, y, 0.74 * np.sin(a), -0.3 - 0.6 * np.cos(a), 0.36)
      for a in np.linspace(-2.0, 2.0, 6)
    ]
    return np.minimum.reduce(curls)
  if hair == "spiky":
    return sd.polygon(x, y, _SPIKES)
  if hair == "tied":
    return sd.disc(x, y, 0, -0.98, 0.36)
  return None


def face_layers(
  face: vocabulary.Face, x: Plane, y: Plane
) -> tuple[list[Layer], Plane]:
  """The layers of a face, from back to front.

  Args:
    face: the face's attributes.
    x: coordinates to the right, 0 in the middle, 1 at half the face's height.
    y: coordinates down, likewise.

  Returns:
    (signed distance, color) of each layer, and the whole figure's distance.
  """
  hair = vocabulary.HAIR_COLOURS[face.hair_colour]
  skin = vocabulary.SKINS[face.skin]
  head = _ellipse(x, y, 0, 0, 0.66, 0.84)
  shoulders = _ellipse(x, y, 0, 1.5, 1.15, 0.62)
  behind = _hair_behind(face.hair, x, y)
  cap = _cap(x, y)
  layers = [] if behind is None else [(behind, hair)]
  layers += [
    (shoulders, _SHIRT),
    (sd.box(x, y, 0, 0.85, 0.24, 0.25), skin),
    (head, skin),
    (cap, hair),
  ]
  if face.beard:
    jaw = np.maximum(head - 0.05, 0.28 - y - 0.3 * x * x)
    layers.append((jaw, hair))
  mouth = _ellipse(x, y, 0, 0.48, 0.24, 0.09)
  layers.append((mouth, (176, 44, 52)))
  if face.glasses:
    # Frames are thick and lenses pale, so that both survive at 32 pixels.
    lens = sd.disc(np.abs(x), y, 0.31, -0.04, 0.2)
    frame = np.minimum(lens - 0.1, sd.box(x, y, 0, -0.06, 0.66, 0.05))
    layers += [(frame, _INK), (lens, (196, 232, 246))]
  layers.append((sd.disc(np.abs(x), y, 0.31, -0.04, 0.1), _INK))
  figure = np.minimum.reduce([distance for distance, _ in layers])
  return layers, figure
