"""Folders of images, as they are judged and measured: listed, read, refused.

A file that would reach networks in different ways (broken, transparent, 16-bit)
is left out by name and with the reason; see `pixels.read`.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from unlearning_jax.judges import pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def files(folder: str | os.PathLike[str]) -> list[str]:
  """The images of a folder and of those in it, by their way from it."""
  root = pathlib.Path(folder)
  found = (p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
  return sorted(path.relative_to(root).as_posix() for path in found)


def check(key: str, folder: str):
  """Checks that there is a folder with images.

  Args:
    key: the setting's name, for messages.
    folder: where images are looked for.

  Raises:
    ValueError: there is not.
  """
  if not pathlib.Path(folder).is_dir():
    raise ValueError(f"{key}={folder!r}: no such folder")
  if not files(folder):
    raise ValueError(
      f"{key}={folder!r}: has no images; looked for {', '.join(SUFFIXES)}"
    )


def batches(
  roots: Sequence[str | os.PathLike[str]], names: Sequence[str], size: int
) -> Iterator[tuple[list[str], tuple[UInt8[np.ndarray, "n h w 3"], ...] | str]]:
  """Reads images of the same names, so many of one size at a time.

  Args:
    roots: the folders.
    names: of `files`.
    size: the most images of a batch.

  Yields:
    Names with their images, an array for each folder; or one name with the
    reason why it is refused.
  """
  held: list[tuple[str, list[np.ndarray]]] = []
  for name in names:
    try:
      images = [pixels.read(pathlib.Path(root) / name) for root in roots]
    except ValueError as error:
      yield [name], str(error)
      continue
    if held and (len(held) == size or _shapes(held[0][1]) != _shapes(images)):
      yield _stacked(held)
      held = []
    held.append((name, images))
  if held:
    yield _stacked(held)


def _shapes(images: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
  return [image.shape for image in images]


def _stacked(
  held: Sequence[tuple[str, list[np.ndarray]]],
) -> tuple[list[str], tuple[np.ndarray, ...]]:
  by_folder = zip(*(images for _, images in held), strict=True)
  return [name for name, _ in held], tuple(map(np.stack, by_folder))
