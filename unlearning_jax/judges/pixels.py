"""Pixels as a published judge saw them: read, resized and cropped by Pillow.

Pillow's resize takes two passes, the width first, and rounds to whole levels
after each; a resize in float differs from it by up to nine levels. So pictures
are resized on the host, by Pillow, and only then become float.
"""

import dataclasses
import os

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from unlearning_jax import pictures

_METHODS = {
  "bicubic": Image.Resampling.BICUBIC,
  "bilinear": Image.Resampling.BILINEAR,
}
# Pillow's modes of eight bits that have no transparency.
_PLAIN = ("RGB", "L", "1")


@dataclasses.dataclass(frozen=True)
class Pixels:
  """What a network sees of an image.

  Attributes:
    size: of the shorter side, whole; or height and width, whatever the shape.
    crop: side of the square that is cut from the middle; 0 for none.
    method: bicubic or bilinear.
    mean: of each channel, of levels from 0 to 1.
    std: likewise.
    middle: how half a pixel of a margin is rounded: `floor`, as transformers
      does, or `round` (to even), as torchvision does.
  """

  size: int | tuple[int, int]
  crop: int
  method: str
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  middle: str = "floor"

  def __call__(
    self, images: UInt8[np.ndarray, "n h w 3"]
  ) -> Float[np.ndarray, "n r c 3"]:
    """Resizes, crops and normalizes images, one by one."""
    seen = np.stack([self.resized(image) for image in images])
    levels = seen.astype(np.float32) / np.float32(255)
    mean, std = (np.array(v, np.float32) for v in (self.mean, self.std))
    return (levels - mean) / std

  def resized(
    self, image: UInt8[np.ndarray, "h w 3"]
  ) -> UInt8[np.ndarray, "r c 3"]:
    """An image of the network's size, still in levels from 0 to 255."""
    height, width = image.shape[:2]
    if isinstance(self.size, int):
      # torchvision and transformers both cut the longer side down.
      short = min(height, width)
      rows = int(self.size * height / short)
      columns = int(self.size * width / short)
    else:
      rows, columns = self.size
    whole = Image.fromarray(image)
    if (columns, rows) != whole.size:
      whole = whole.resize((columns, rows), _METHODS[self.method])
    seen = np.asarray(whole)
    return self._cropped(seen) if self.crop else seen

  def _cropped(self, seen: np.ndarray) -> np.ndarray:
    margins = [(side - self.crop) / 2 for side in seen.shape[:2]]
    if min(margins) < 0:
      raise ValueError(
        f"pixels: a crop of {self.crop} does not fit into {seen.shape[:2]}"
      )
    top, left = (
      round(m) if self.middle == "round" else int(m) for m in margins
    )
    return seen[top : top + self.crop, left : left + self.crop]

  def __str__(self) -> str:
    """In words, for a record."""
    size = self.size
    shape = (
      f"shorter side {size}"
      if isinstance(size, int)
      else f"{size[0]}x{size[1]}"
    )
    cut = f", middle {self.crop}x{self.crop}" if self.crop else ""
    return (
      f"RGB, {shape} (Pillow, {self.method}){cut}, mean {self.mean}, std "
      f"{self.std}"
    )


def read(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
  """An image file as RGB levels.

  Grey becomes three equal channels, a palette its colors. Transparency that
  hides nothing is dropped.

  Args:
    path: a file of `pictures.FORMATS`.

  Raises:
    ValueError: it is not an image, or it has more than 8 bits a channel,
      another color space than RGB, or something transparent. Judges see such
      images in different ways, and none of them says so.
  """
  return _rgb(pictures.read(path), os.fspath(path))


def _rgb(image: Image.Image, name: str) -> np.ndarray:
  if image.mode == "P" or "transparency" in image.info:
    transparent = "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
  if image.mode in ("RGBA", "LA", "PA"):
    alpha = np.asarray(image.getchannel("A"))
    if alpha.min() < 255:
      raise ValueError(
        f"{name}: {np.mean(alpha < 255):.1%} of it is transparent; lay it on a "
        "background of your choice first"
      )
    return np.asarray(image.convert("RGB"))
  if image.mode not in _PLAIN:
    raise ValueError(
      f"{name}: is of mode {image.mode}; allowed: 8-bit RGB or grey. Convert "
      "it first"
    )
  return np.asarray(image.convert("RGB"))
