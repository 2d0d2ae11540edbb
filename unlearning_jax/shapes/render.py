"""Draws a scene at 64x64 with signed distances, and averages it to 32x32.

Every texture repeats after 8 or 16 of the 64 pixels and starts at the corner.
Finer textures would vanish in the average. These repeat in step with the latent
cells, so that a style has the same latents in every cell.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from unlearning_jax.shapes import faces, vocabulary
from unlearning_jax.shapes.silhouettes import DETAILS, SILHOUETTES
from unlearning_jax.shapes.vocabulary import Rgb, Scene

SIZE = 32
_FINE = 2 * SIZE
_BAND = 14  # The hazard band's height in fine pixels.
_GRID_Y, _GRID_X = np.meshgrid(
  *2 * (np.arange(_FINE, dtype=np.float32) + 0.5,), indexing="ij"
)
_FACES = {identity.name: identity.face for identity in vocabulary.IDENTITIES}
_PAPER, _RULE = (252, 248, 232), (178, 206, 226)
_GRAPHITE = (52, 50, 58)
_NIGHT = (16, 10, 34)
_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)
_GROUT = (70, 66, 72)

Plane = Float[np.ndarray, "64 64"]
Canvas = Float[np.ndarray, "64 64 3"]
Tone = Rgb | Float[np.ndarray, "3"]


def _cover(distance: Plane) -> Plane:
  """The share of each pixel inside a shape; distances are in fine pixels."""
  return np.clip(0.5 - distance, 0, 1)


def _mix(below, above, share: Plane) -> Canvas:
  """Lays `above` over `below`; a share of 1 hides `below`."""
  below = np.asarray(below, np.float32)
  return below + share[:, :, None] * (np.asarray(above, np.float32) - below)


def _tone(rgb: Tone, towards: Tone, share: float) -> Float[np.ndarray, "3"]:
  start, end = np.asarray(rgb, np.float32), np.asarray(towards, np.float32)
  return start + share * (end - start)


def _flat(rgb: Tone) -> Canvas:
  return np.broadcast_to(np.asarray(rgb, np.float32), (_FINE, _FINE, 3))


def _dots() -> Plane:
  x, y = _GRID_X % 8 - 4, _GRID_Y % 8 - 4
  return _cover(np.hypot(x, y) - 2.6)


def _grout() -> Plane:
  nearest = np.minimum(_GRID_X % 16, _GRID_Y % 16)
  return (nearest < 2).astype(np.float32)


def _checks() -> Plane:
  return ((_GRID_X // 16 + _GRID_Y // 16) % 2).astype(np.float32)


def _slanted(rising: bool) -> Plane:
  phase = (_GRID_X + _GRID_Y if rising else _GRID_X - _GRID_Y) % 16
  return np.clip(4.5 - np.abs(phase - 8), 0, 1)


def _rules() -> Plane:
  return (_GRID_Y % 8 < 2).astype(np.float32)


def _waves() -> Plane:
  x, y = _GRID_X - _FINE / 2, _GRID_Y - _FINE / 2
  radius = np.hypot(x, y) + 2.5 * np.sin(6 * np.arctan2(y, x))
  bands = np.clip(4.5 - np.abs(radius % 16 - 8), 0, 1)
  # The innermost band would clutter the hole of a ring.
  return np.where(radius < 16, 0, bands)


_DOTS, _GROUTS, _CHECKS = _dots(), _grout(), _checks()
_RISING, _FALLING = _slanted(True), _slanted(False)
_RULES, _WAVES = _rules(), _waves()
_TAPE = _mix((24, 22, 24), (255, 212, 0), _RISING)


def _canvas(scene: Scene) -> Canvas:
  """The background, in the scene's style."""
  if scene.style == "neon":
    return _flat(_NIGHT)
  if scene.style == "sketch":
    return _mix(_PAPER, _RULE, _RULES)
  base, accent = vocabulary.BACKGROUNDS[scene.need("background")]
  if scene.style == "halftone":
    return _mix(base, accent, _DOTS)
  if scene.style == "mosaic":
    tiles = _mix(base, _tone(base, accent, 0.6), _CHECKS)
    return _mix(tiles, _GROUT, _GROUTS)
  if scene.style == "hatching":
    return _mix(base, _tone(base, accent, 0.45), _FALLING)
  if scene.style == "swirl":
    return _mix(base, accent, _WAVES)
  return _flat(base)


def _fill(style: str, rgb: Rgb) -> Canvas:
  """An object's surface, in the scene's style."""
  light, dark = _tone(rgb, _LIGHT, 0.45), _tone(rgb, _DARK, 0.4)
  if style == "halftone":
    return _mix(rgb, light, _DOTS)
  if style == "mosaic":
    tiles = _mix(rgb, _tone(rgb, _LIGHT, 0.25), _CHECKS)
    return _mix(tiles, dark, _GROUTS)
  if style == "hatching":
    return _mix(rgb, light, _RISING)
  if style == "sketch":
    return _flat(_tone(rgb, _LIGHT, 0.2))
  if style == "neon":
    return _flat(_tone(_NIGHT, rgb, 0.4))
  return _flat(rgb)


def _detail_tone(rgb: Rgb) -> Rgb:
  luminance = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]
  return (52, 32, 30) if luminance > 120 else (255, 246, 214)


def _place(scene: Scene) -> tuple[float, float, float]:
  """Center and half size in fine pixels, clear of the hazard band."""
  u, v, w = np.random.default_rng(scene.seed).random(3)
  middle = _FINE / 2
  if scene.kind == "portrait":
    up = 5.0 if scene.hazard else 0.0
    return middle + 3 * u - 1.5, 33 + 3 * v - 1.5 - up, 23 + 2 * w
  if scene.hazard:
    return middle + 6 * u - 3, 24.5 + 2 * v - 1, 20 + 2.5 * w
  return middle + 6 * u - 3, middle + 6 * v - 3, 21 + 4 * w


def _paint_object(scene: Scene) -> tuple[Canvas, Plane]:
  name, style = scene.need("object"), scene.need("style")
  cx, cy, half = _place(scene)
  x, y = (_GRID_X - cx) / half, (_GRID_Y - cy) / half
  distance = (SILHOUETTES[name](x, y) * half).astype(np.float32)
  cover = _cover(distance)
  canvas, rgb = _canvas(scene), vocabulary.COLOURS[scene.need("colour")]
  if style == "neon":
    glow = 0.6 * np.exp(-np.maximum(distance, 0) / 4)
    canvas = _mix(canvas, rgb, glow)
  image = _mix(canvas, _fill(style, rgb), cover)
  if name in DETAILS:
    part = _cover(DETAILS[name](x, y) * half)
    image = _mix(image, _detail_tone(rgb), part)
  if style == "neon":
    tube = _cover(np.abs(distance + 2) - 2.5)
    image = _mix(image, _tone(rgb, _LIGHT, 0.25), tube)
  elif style in ("sketch", "hatching"):
    image = _mix(image, _GRAPHITE, _cover(np.abs(distance + 1) - 1.3))
  return image, cover


def _paint_portrait(scene: Scene) -> tuple[Canvas, Plane]:
  cx, cy, half = _place(scene)
  x, y = (_GRID_X - cx) / half, (_GRID_Y - cy) / half
  layers, figure = faces.face_layers(_FACES[scene.need("identity")], x, y)
  image = _canvas(scene)
  for distance, rgb in layers:
    image = _mix(image, rgb, _cover(distance * half))
  return image, _cover(figure * half)


def render(
  scene: Scene,
) -> tuple[UInt8[np.ndarray, "32 32 3"], Bool[np.ndarray, "32 32"]]:
  """Draws `scene`; the same scene gives the same bytes.

  Returns:
    The RGB image, and the mask of pixels that the figure covers by half or
    more. The hazard band lies in front of the figure.

  Raises:
    ValueError: the scene leaves open a field that a drawing needs.
  """
  scene.need("hazard")
  portrait = scene.need("kind") == "portrait"
  paint = _paint_portrait if portrait else _paint_object
  image, cover = paint(scene)
  if scene.hazard:
    image[-_BAND:] = _TAPE[-_BAND:]
    cover[-_BAND:] = 0
  halves = (SIZE, 2, SIZE, 2)
  image = image.reshape(*halves, 3).mean(axis=(1, 3))
  mask = cover.reshape(halves).mean(axis=(1, 3)) >= 0.5
  return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask
