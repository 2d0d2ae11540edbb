"""ResNet-50 for inference: every batch norm is folded into its convolution."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from unlearning_jax.models.flax_layers import Conv, Dense


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Shapes of a network; the defaults are ResNet-50's.

  Attributes:
    depths: blocks of each stage.
    widths: output channels of each stage.
    stem: channels of the first convolution.
    classes: logits.
    stride_first: whether a block's first convolution, the 1x1, halves the
      image; otherwise its second, the 3x3, does.
  """

  depths: tuple[int, ...] = (3, 4, 6, 3)
  widths: tuple[int, ...] = (256, 512, 1024, 2048)
  stem: int = 64
  classes: int = 1000
  stride_first: bool = False


def _conv(x: Array, channels: int, side: int, stride: int, name: str) -> Array:
  # torch pads both sides alike, whatever the stride.
  padding = ((side // 2, side // 2),) * 2
  return Conv(
    channels, (side, side), strides=(stride, stride), padding=padding, name=name
  )(x)


class _Bottleneck(nn.Module):
  width: int
  stride: int
  stride_first: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    inner = self.width // 4
    first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
    hidden = nn.relu(_conv(x, inner, 1, first, "conv1"))
    hidden = nn.relu(_conv(hidden, inner, 3, second, "conv2"))
    hidden = _conv(hidden, self.width, 1, 1, "conv3")
    if self.stride != 1 or x.shape[-1] != self.width:
      x = _conv(x, self.width, 1, self.stride, "shortcut")
    return nn.relu(x + hidden)


class ResNet(nn.Module):
  """Normalized images to logits."""

  config: ResNetConfig

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
    """Logits of the classes."""
    c = self.config
    x = nn.relu(_conv(images, c.stem, 7, 2, "stem"))
    # Zeros as padding never exceed a value, because a relu came before.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = nn.max_pool(x, (3, 3), (2, 2))
    for i, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
      for j in range(depth):
        stride = 2 if i and not j else 1
        x = _Bottleneck(width, stride, c.stride_first, name=f"block{i}_{j}")(x)
    return Dense(c.classes, name="head")(jnp.mean(x, axis=(1, 2)))
