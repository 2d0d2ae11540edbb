"""Signed distances of the twelve objects on a unit box, y pointing down."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "h w"]
Corners = Float[np.ndarray, "n 2"] | Sequence[tuple[float, float]]


def disc(x: Plane, y: Plane, cx: float, cy: float, radius: float) -> Plane:
  """Distance to a disc, negative inside."""
  return np.hypot(x - cx, y - cy) - np.float32(radius)


def box(x: Plane, y: Plane, cx: float, cy: float, w: float, h: float) -> Plane:
  """Distance to an axis-aligned box of half sizes `w` and `h`."""
  dx, dy = np.abs(x - cx) - w, np.abs(y - cy) - h
  outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
  return outside + np.minimum(np.maximum(dx, dy), 0)


def polygon(x: Plane, y: Plane, corners: Corners) -> Plane:
  """Distance to a simple polygon's nearest edge, negative inside."""
  a = np.asarray(corners, np.float32)[:, :, None, None]
  edge = np.roll(a, -1, axis=0) - a
  px, py = x - a[:, 0], y - a[:, 1]
  ex, ey = edge[:, 0], edge[:, 1]
  t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
  squared = (px - t * ex) ** 2 + (py - t * ey) ** 2
  above = py >= 0
  # A point is inside if a ray from it crosses an odd number of edges. An edge
  # is crossed if the point lies between its ends in y, on the side that the
  # edge's direction asks for.
  straddles = above != (py - ey >= 0)
  left = (px * ey > py * ex) == (ey > 0)
  inside = np.logical_xor.reduce(straddles & left, axis=0)
  distance = np.sqrt(squared.min(axis=0))
  return np.where(inside, -distance, distance)


def _star_corners() -> Float[np.ndarray, "10 2"]:
  angle = np.pi * (np.arange(10) / 5 - 0.5)
  radius = np.where(np.arange(10) % 2 == 0, 1.1, 0.48)
  return np.stack(
    [radius * np.cos(angle), radius * np.sin(angle) + 0.08], axis=1
  )


def _heart_corners() -> Float[np.ndarray, "24 2"]:
  t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
  y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
  return np.stack([np.sin(t) ** 3, -y / 15 - 0.12], axis=1)


def _moon_corners() -> Float[np.ndarray, "22 2"]:
  # Two arcs that meet in the horns at (0.55, +-0.957).
  outer = np.pi + np.linspace(1.865, -1.865, 12)
  inner = np.pi + np.linspace(-1.395, 1.395, 12)[1:-1]
  return np.concatenate(
    [
      np.stack([0.26 + np.cos(outer), np.sin(outer)], axis=1),
      np.stack([0.72 + 0.972 * np.cos(inner), 0.972 * np.sin(inner)], axis=1),
    ]
  )


_STAR, _HEART, _MOON = _star_corners(), _heart_corners(), _moon_corners()
_ARROW = [
  (-0.96, -0.25), (-0.02, -0.25), (-0.02, -0.92), (1.0, 0),
  (-0.02, 0.92), (-0.02, 0.25), (-0.96, 0.25),
]  # fmt: skip
_HOUSE = [
  (0, -1), (0.38, -0.65), (0.38, -0.98), (0.72, -0.98), (0.72, -0.33),
  (1.05, -0.02), (0.74, -0.02), (0.74, 0.95), (-0.74, 0.95), (-0.74, -0.02),
  (-1.05, -0.02),
]  # fmt: skip
_PETALS = [
  (0.64 * np.sin(a), -0.64 * np.cos(a)) for a in np.arange(5) * np.pi * 0.4
]


def _flower(x, y):
  petals = [disc(x, y, cx, cy, 0.35) for cx, cy in _PETALS]
  return np.minimum.reduce([disc(x, y, 0, 0, 0.36), *petals])


def _fish(x, y):
  # Two crossing discs make the pointed body; the tail is a deep fork.
  body = np.maximum(
    disc(x, y, -0.28, -0.26, 0.88), disc(x, y, -0.28, 0.26, 0.88)
  )
  tail = polygon(x, y, [(0.22, 0), (1.0, -0.86), (0.74, 0), (1.0, 0.86)])
  return np.minimum(body, tail)


SILHOUETTES = {
  "circle": lambda x, y: disc(x, y, 0, 0, 0.92),
  "square": lambda x, y: box(x, y, 0, 0, 0.82, 0.82),
  "triangle": lambda x, y: polygon(
    x, y, [(0, -1), (1.02, 0.85), (-1.02, 0.85)]
  ),
  "star": lambda x, y: polygon(x, y, _STAR),
  "heart": lambda x, y: polygon(x, y, _HEART),
  "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.74) - 0.21,
  "cross": lambda x, y: np.minimum(
    box(x, y, 0, 0, 0.95, 0.29), box(x, y, 0, 0, 0.29, 0.95)
  ),
  "moon": lambda x, y: polygon(x, y, _MOON),
  "arrow": lambda x, y: polygon(x, y, _ARROW),
  "flower": _flower,
  "house": lambda x, y: polygon(x, y, _HOUSE),
  "fish": _fish,
}

# Parts drawn inside the silhouette in a contrasting tone.
DETAILS = {
  "flower": lambda x, y: disc(x, y, 0, 0, 0.3),
  "house": lambda x, y: box(x, y, 0, 0.66, 0.2, 0.3),
  "fish": lambda x, y: disc(x, y, -0.64, -0.1, 0.14),
}
