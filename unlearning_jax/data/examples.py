"""Captioned images: files, bytes or pixels, with one or more captions."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from unlearning_jax import pictures


class Example(NamedTuple):
  """A captioned image.

  Attributes:
    image: a file, its encoded bytes, or its pixels.
    caption: its caption, or the first; "" trains the empty prompt.
    others: its other captions. Every epoch draws one of all.
  """

  image: pathlib.Path | bytes | np.ndarray
  caption: str
  others: tuple[str, ...] = ()

  @property
  def captions(self) -> tuple[str, ...]:
    """All captions."""
    return (self.caption, *self.others)


def fingerprint(examples: Sequence[Example]) -> str:
  """SHA-256 of captions and images, or the bytes of their files, in order.

  It does not depend on files' names and times: a copy of a folder is the same
  data, and a folder with a replaced image is not. Every process reads every
  file for it, because each must refuse data other than it began with.
  """
  total = hashlib.sha256()
  for example in examples:
    image, captions = example.image, example.captions
    if isinstance(image, pathlib.Path):
      with image.open("rb") as file:
        held = hashlib.file_digest(file, "sha256")
    elif isinstance(image, bytes):
      held = hashlib.sha256(image)
    else:
      held = hashlib.sha256(repr(image.shape).encode() + image.tobytes())
    for caption in captions:
      total.update(hashlib.sha256(caption.encode()).digest())
    total.update(held.digest())
  return total.hexdigest()


def read_images(
  examples: Sequence[Example], size: tuple[int, int]
) -> UInt8[np.ndarray, "n h w 3"]:
  """Scales images to cover `size`, (height, width), and crops their center.

  Raises:
    ValueError: a file is not an image, or has more than 8 bits a channel.
  """
  out = np.empty((len(examples), *size, 3), np.uint8)
  for i, example in enumerate(examples):
    out[i] = _fit(_open(example.image), size)
  return out


def _open(image: pathlib.Path | bytes | np.ndarray) -> PIL.Image.Image:
  if isinstance(image, np.ndarray):
    return PIL.Image.fromarray(image)
  name = "the image" if isinstance(image, bytes) else image
  opened = pictures.read(image)
  if opened.mode.startswith(("I", "F")):
    # Pillow would cut its levels at 255.
    raise ValueError(
      f"{name}: has more than 8 bits a channel; convert it first"
    )
  try:
    # Cameras store the orientation in EXIF; transparency becomes black.
    return PIL.ImageOps.exif_transpose(opened).convert("RGB")
  # What the camera stored is damaged.
  except (ValueError, TypeError, LookupError, SyntaxError, OSError) as error:
    raise ValueError(f"{name}: not a readable image: {error}") from error


def _fit(image: PIL.Image.Image, size: tuple[int, int]) -> np.ndarray:
  (height, width), (w, h) = size, image.size
  scale = max(height / h, width / w)
  wide, high = max(int(w * scale), width), max(int(h * scale), height)
  if (wide, high) != (w, h):
    image = image.resize((wide, high), PIL.Image.Resampling.BILINEAR)
  left, top = round((wide - width) / 2), round((high - height) / 2)
  return np.asarray(image.crop((left, top, left + width, top + height)))
