"""The Inception network of 2015 whose features FID and KID compare.

It is not torchvision's Inception v3: an average over a window leaves out the
padding around the image, and the last block takes a maximum there instead. Its
weights were trained with another graph too, with 1008 classes. Every batch norm
is folded into its convolution, and the classifier is left out.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from unlearning_jax.models.flax_layers import Conv

WIDTH = 2048
SIDE = 299

# A convolution: (name, channels, kernel, stride, padding); sides are (rows,
# columns). A branch is a sequence of them.
Layer = tuple[str, int, tuple[int, int], int, tuple[int, int]]


def _layer(
  name: str,
  channels: int,
  kernel: int | tuple[int, int] = 1,
  stride: int = 1,
  same: bool = True,
) -> Layer:
  rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
  padding = (rows // 2, columns // 2) if same else (0, 0)
  return name, channels, (rows, columns), stride, padding


def _apply(x: Array, layer: Layer) -> Array:
  name, channels, kernel, stride, (rows, columns) = layer
  convolution = Conv(
    channels, kernel, strides=(stride, stride),
    padding=((rows, rows), (columns, columns)), name=name,
  )  # fmt: skip
  return nn.relu(convolution(x))


def _max(x: Array, stride: int = 2, padding: int = 0) -> Array:
  # Zeros as padding never exceed a value, because a relu came before.
  around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  return nn.max_pool(jnp.pad(x, around), (3, 3), (stride, stride))


def _mean(x: Array) -> Array:
  """The mean over each 3 x 3 window, of the pixels that exist."""
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


class _Block(nn.Module):
  """Branches side by side, the last of which is after a pool.

  Attributes:
    branches: each a sequence of layers; a tuple of layers in it forks.
    pool: "mean" or "max", before the layer `branch_pool`; "stride" for a bare
      maximum that halves the image.
    pooled: channels of `branch_pool`.
  """

  branches: tuple[tuple[Any, ...], ...]
  pool: str
  pooled: int = 0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    found = []
    for branch in self.branches:
      y = x
      for layer in branch:
        if isinstance(layer[0], str):
          y = _apply(y, layer)
        else:
          y = jnp.concatenate([_apply(y, one) for one in layer], -1)
      found.append(y)
    if self.pool == "stride":
      found.append(_max(x))
    else:
      y = _mean(x) if self.pool == "mean" else _max(x, 1, 1)
      found.append(_apply(y, _layer("branch_pool", self.pooled)))
    return jnp.concatenate(found, -1)


def _early(pooled: int) -> dict[str, Any]:
  """35 x 35 pixels."""
  return {
    "branches": (
      (_layer("branch1x1", 64),),
      (_layer("branch5x5_1", 48), _layer("branch5x5_2", 64, 5)),
      (
        _layer("branch3x3dbl_1", 64),
        _layer("branch3x3dbl_2", 96, 3),
        _layer("branch3x3dbl_3", 96, 3),
      ),
    ),
    "pool": "mean",
    "pooled": pooled,
  }


def _middle(inner: int) -> dict[str, Any]:
  """17 x 17 pixels; a 7 x 7 window is a row and a column."""
  row, column = (1, 7), (7, 1)
  return {
    "branches": (
      (_layer("branch1x1", 192),),
      (
        _layer("branch7x7_1", inner),
        _layer("branch7x7_2", inner, row),
        _layer("branch7x7_3", 192, column),
      ),
      (
        _layer("branch7x7dbl_1", inner),
        _layer("branch7x7dbl_2", inner, column),
        _layer("branch7x7dbl_3", inner, row),
        _layer("branch7x7dbl_4", inner, column),
        _layer("branch7x7dbl_5", 192, row),
      ),
    ),
    "pool": "mean",
    "pooled": 192,
  }


def _late(pool: str) -> dict[str, Any]:
  """8 x 8 pixels."""
  return {
    "branches": (
      (_layer("branch1x1", 320),),
      (
        _layer("branch3x3_1", 384),
        (
          _layer("branch3x3_2a", 384, (1, 3)),
          _layer("branch3x3_2b", 384, (3, 1)),
        ),
      ),
      (
        _layer("branch3x3dbl_1", 448),
        _layer("branch3x3dbl_2", 384, 3),
        (
          _layer("branch3x3dbl_3a", 384, (1, 3)),
          _layer("branch3x3dbl_3b", 384, (3, 1)),
        ),
      ),
    ),
    "pool": pool,
    "pooled": 192,
  }


_BLOCKS: dict[str, dict[str, Any]] = {
  "Mixed_5b": _early(32),
  "Mixed_5c": _early(64),
  "Mixed_5d": _early(64),
  "Mixed_6a": {
    "branches": (
      (_layer("branch3x3", 384, 3, 2, same=False),),
      (
        _layer("branch3x3dbl_1", 64),
        _layer("branch3x3dbl_2", 96, 3),
        _layer("branch3x3dbl_3", 96, 3, 2, same=False),
      ),
    ),
    "pool": "stride",
  },
  "Mixed_6b": _middle(128),
  "Mixed_6c": _middle(160),
  "Mixed_6d": _middle(160),
  "Mixed_6e": _middle(192),
  "Mixed_7a": {
    "branches": (
      (
        _layer("branch3x3_1", 192),
        _layer("branch3x3_2", 320, 3, 2, same=False),
      ),
      (
        _layer("branch7x7x3_1", 192),
        _layer("branch7x7x3_2", 192, (1, 7)),
        _layer("branch7x7x3_3", 192, (7, 1)),
        _layer("branch7x7x3_4", 192, 3, 2, same=False),
      ),
    ),
    "pool": "stride",
  },
  "Mixed_7b": _late("mean"),
  "Mixed_7c": _late("max"),
}


class Inception(nn.Module):
  """Images of 299 x 299 pixels, from -1 to 1, to the 2048 pooled features."""

  @nn.compact
  def __call__(self, images: Float[Array, "b 299 299 3"]) -> Array:
    """Features (b, 2048)."""
    x = _apply(images, _layer("Conv2d_1a_3x3", 32, 3, 2, same=False))
    x = _apply(x, _layer("Conv2d_2a_3x3", 32, 3, same=False))
    x = _max(_apply(x, _layer("Conv2d_2b_3x3", 64, 3)))
    x = _apply(x, _layer("Conv2d_3b_1x1", 80))
    x = _max(_apply(x, _layer("Conv2d_4a_3x3", 192, 3, same=False)))
    for name, shape in _BLOCKS.items():
      x = _Block(**shape, name=name)(x)
    return jnp.mean(x, axis=(1, 2))
