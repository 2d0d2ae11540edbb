"""`preprocessor_config.json`, as transformers reads it -> `Pixels`."""

import pathlib
from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable
from unlearning_jax.judges.pixels import Pixels

# Pillow's numbers of its resize methods.
_METHODS = {2: "bilinear", 3: "bicubic"}
# From this size on transformers' ConvNext processor squashes, and cuts nothing.
_SQUASHED = 384


def vit(judge: str, path: pathlib.Path) -> Pixels:
  """An image of whatever shape is resized to height and width.

  Args:
    judge: for messages.
    path: the file.

  Raises:
    ValueError: a value that is missing, or that a ViT's processor has not.
  """
  given = durable.read_json(path)
  size = given.get("size")
  if isinstance(size, int):
    size = {"height": size, "width": size}
  if not isinstance(size, dict) or set(size) != {"height", "width"}:
    raise ValueError(
      f"judge {judge}: {path}: size={size}; wanted a height and a width"
    )
  return _made(judge, path, given, (size["height"], size["width"]), 0)


def convnext(judge: str, path: pathlib.Path) -> Pixels:
  """The shorter side is resized to size / crop_pct, the middle is cut out.

  Args:
    judge: for messages.
    path: the file.

  Raises:
    ValueError: a value that is missing, or that a ConvNext's processor has not.
  """
  given = durable.read_json(path)
  size = given.get("size")
  size = size.get("shortest_edge") if isinstance(size, dict) else size
  if not isinstance(size, int) or size >= _SQUASHED:
    raise ValueError(
      f"judge {judge}: {path}: size={given.get('size')}; wanted a "
      f"shortest_edge below {_SQUASHED}"
    )
  short = int(size / given.get("crop_pct", 0.875))
  return _made(judge, path, given, short, size)


def _made(
  judge: str,
  path: pathlib.Path,
  given: Mapping[str, Any],
  size: int | tuple[int, int],
  crop: int,
) -> Pixels:
  method = _METHODS.get(given.get("resample", 0))
  mean, std = given.get("image_mean"), given.get("image_std")
  if method is None or not mean or not std:
    raise ValueError(
      f"judge {judge}: {path}: resample={given.get('resample')}, image_mean="
      f"{mean}, image_std={std}; wanted 2 (bilinear) or 3 (bicubic), and both"
    )
  return Pixels(size, crop, method, tuple(mean), tuple(std))
