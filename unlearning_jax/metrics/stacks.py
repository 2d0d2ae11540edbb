"""How an image becomes 299 x 299 pixels for Inception, as each tool does it.

The same pictures have another FID by another stack, so a number carries its
stack's name, and numbers of different stacks are never compared.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from unlearning_jax.judges.pixels import Pixels
from unlearning_jax.models.inception import SIDE

Picture = UInt8[np.ndarray, "h w 3"]
Levels = Float[np.ndarray, "299 299 3"]


@dataclasses.dataclass(frozen=True)
class Stack:
  """A tool's resize and range.

  Attributes:
    name: as it is given and reported.
    resize: a picture to levels from 0 to 255.
    middle: the level that becomes 0; the range is from -1 to 1.
    used_by: whose numbers these are.
  """

  name: str
  resize: Callable[[Picture], Levels]
  middle: float
  used_by: str

  def __call__(
    self, images: UInt8[np.ndarray, "n h w 3"]
  ) -> Float[np.ndarray, "n 299 299 3"]:
    """Resizes pictures one by one."""
    levels = np.stack([self.resize(image) for image in images])
    middle = np.float32(self.middle)
    return (levels.astype(np.float32) - middle) / middle


_SQUARE = Pixels((SIDE, SIDE), 0, "bicubic", (0, 0, 0), (1, 1, 1))


def _cropped(image: Picture) -> Levels:
  """The middle square, by Pillow in whole levels."""
  rows, columns = image.shape[:2]
  side = min(rows, columns)
  top, left = (rows - side) // 2, (columns - side) // 2
  return _SQUARE.resized(image[top : top + side, left : left + side])


def _unrounded(image: Picture) -> Levels:
  """Squashed, each channel by Pillow in float: not rounded, but clipped."""
  planes = [
    np.asarray(
      Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
      )
    )
    for plane in np.moveaxis(image, -1, 0)
  ]
  return np.clip(np.stack(planes, -1), 0, 255)


def _bilinear(image: Picture, half: float) -> Levels:
  """Squashed between the two nearest pixels, without smoothing.

  Args:
    image: the picture.
    half: where a pixel's own place is: 0.5 in its middle, 0 at its corner.
  """
  x = image.astype(np.float32)
  for axis in (0, 1):
    count = x.shape[axis]
    scale = np.float32(count / SIDE)
    place = (np.arange(SIDE, dtype=np.float32) + np.float32(half)) * scale
    place = np.maximum(place - np.float32(half), 0)
    low = np.minimum(place.astype(int), count - 1)
    high = np.minimum(low + 1, count - 1)
    share = np.expand_dims(place - low.astype(np.float32), (1 - axis, 2))
    first, second = (np.take(x, i, axis) for i in (low, high))
    x = first + (second - first) * share
  return x


STACKS = {
  stack.name: stack
  for stack in (
    Stack(
      "t2i", _cropped, 127.5, "text2image-benchmark: AdvUnlearn, Unlearned-DM"
    ),
    Stack("clean", _unrounded, 128, "clean-fid's mode clean"),
    Stack(
      "pytorch-fid", lambda image: _bilinear(image, 0.5), 127.5, "pytorch-fid"
    ),
    Stack(
      "torch-fidelity", lambda image: _bilinear(image, 0), 128,
      "torch-fidelity, torchmetrics",
    ),
  )
}  # fmt: skip
