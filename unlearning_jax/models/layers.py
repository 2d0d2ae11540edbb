"""Blocks that the UNet and the VAE share, with torch's numerics."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from unlearning_jax.models import fast
from unlearning_jax.models.flax_layers import Conv, Dense, GroupNorm, LayerNorm


def group_norm(
  name: str, groups: int, epsilon: float, kernels: str = "exact"
) -> nn.Module:
  """GroupNorm in float32, whatever the compute dtype of the blocks around it.

  The variance takes two passes, as in torch: at a mean of 100, the one-pass
  E[x^2] - E[x]^2 loses 4e-3 of the output.
  """
  if fast.used(kernels):
    return fast.GroupNorm(groups, epsilon, name=name)
  return GroupNorm(
    groups, epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32,
    name=name,
  )  # fmt: skip


def layer_norm(name: str, epsilon: float = 1e-5) -> LayerNorm:
  """LayerNorm in float32, for the reasons of `group_norm`."""
  return LayerNorm(
    epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, name=name
  )


def conv3(
  channels: int,
  name: str,
  dtype: DTypeLike,
  kernels: str = "exact",
  quick: Callable[..., Array] = fast.conv3,
) -> Conv:
  """A 3x3 convolution that keeps the size; `quick` with fast kernels."""
  return Conv(
    channels, (3, 3), padding=((1, 1), (1, 1)), dtype=dtype, name=name,
    conv_general_dilated=quick if fast.used(kernels) else None,
  )  # fmt: skip


class ResnetBlock(nn.Module):
  """norm-silu-conv twice, with the time embedding added between."""

  channels: int
  groups: int
  epsilon: float
  dtype: DTypeLike = jnp.float32
  kernels: str = "exact"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"] | None = None
  ) -> Float[Array, "b h w o"]:
    """Applies the block; a 1x1 convolution carries a change of width."""

    def norm(name: str) -> nn.Module:
      return group_norm(name, self.groups, self.epsilon, self.kernels)

    def conv(name: str) -> Conv:
      return conv3(self.channels, name, self.dtype, self.kernels)

    hidden = nn.silu(norm("norm1")(x))
    hidden = conv("conv1")(hidden)
    if temb is not None:
      shift = Dense(self.channels, dtype=self.dtype, name="time_emb_proj")
      hidden = hidden + shift(nn.silu(temb))[:, None, None]
    hidden = nn.silu(norm("norm2")(hidden))
    hidden = conv("conv2")(hidden)
    if x.shape[-1] != self.channels:
      x = Conv(self.channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
    return x + hidden


class Downsample(nn.Module):
  """A convolution of stride 2; UNet and VAE pad differently."""

  padding: tuple[tuple[int, int], tuple[int, int]]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """Halves height and width."""
    return Conv(
      x.shape[-1], (3, 3), strides=(2, 2), padding=self.padding,
      dtype=self.dtype, name="conv",
    )(x)  # fmt: skip


class Upsample(nn.Module):
  """Nearest-neighbor upsampling, then a convolution."""

  dtype: DTypeLike = jnp.float32
  kernels: str = "exact"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], shape: tuple[int, ...] | None = None
  ) -> Float[Array, "b i j c"]:
    """Doubles height and width, or takes those of `shape`, which may be odd."""
    _, height, width, channels = x.shape
    target = (2 * height, 2 * width) if shape is None else shape[1:3]
    rows = np.arange(target[0]) * height // target[0]
    columns = np.arange(target[1]) * width // target[1]
    if target == (2 * height, 2 * width):
      if fast.used(self.kernels):
        folded = fast.upsampled_conv3
        return conv3(channels, "conv", self.dtype, self.kernels, folded)(x)
      x = x.repeat(2, axis=1).repeat(2, axis=2)
    else:
      x = x[:, rows][:, :, columns]
    return conv3(channels, "conv", self.dtype, self.kernels)(x)
