"""AutoencoderKL: images to latents and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from unlearning_jax.models import fast, layers
from unlearning_jax.models.attention import dot_product_attention
from unlearning_jax.models.config import read_config
from unlearning_jax.models.flax_layers import Conv, Dense

_FIXED = {"act_fn": "silu"}
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VaeConfig:
  """The keys of `vae/config.json` that shape the network."""

  in_channels: int = 3
  out_channels: int = 3
  latent_channels: int = 4
  block_out_channels: tuple[int, ...] = (64,)
  down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
  up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
  layers_per_block: int = 1
  norm_num_groups: int = 32
  scaling_factor: float = 0.18215
  use_quant_conv: bool = True
  use_post_quant_conv: bool = True
  mid_block_add_attention: bool = True
  kernels: str = "exact"
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    levels = len(self.block_out_channels)
    for key, block in (
      ("down_block_types", "DownEncoderBlock2D"),
      ("up_block_types", "UpDecoderBlock2D"),
    ):
      if getattr(self, key) != (block,) * levels:
        raise ValueError(
          f"VaeConfig: {key}={getattr(self, key)!r} is not supported; "
          f"allowed: {block!r} for each of the {levels} levels"
        )
    # Latents are multiplied and divided by it, in float32.
    if not np.float32(1e-30) < self.scaling_factor < np.float32(1e30):
      raise ValueError(
        f"VaeConfig: scaling_factor={self.scaling_factor!r}; allowed: numbers "
        "above 0 that float32 holds, such as 0.18215"
      )
    fast.check(self.kernels)

  def resnet(self, channels: int, name: str) -> layers.ResnetBlock:
    """A resnet block with this model's options."""
    return layers.ResnetBlock(
      channels, self.norm_num_groups, _EPSILON, self.dtype, self.kernels,
      name=name,
    )  # fmt: skip

  def head(self, x: Array, channels: int) -> Array:
    """Final norm, silu and float32 convolution of encoder and decoder."""
    norm = layers.group_norm(
      "conv_norm_out", self.norm_num_groups, _EPSILON, self.kernels
    )
    x = nn.silu(norm(x)).astype(jnp.float32)
    return layers.conv3(channels, "conv_out", jnp.float32, self.kernels)(x)


class _Attention(nn.Module):
  groups: int
  dtype: DTypeLike
  kernels: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape, width = x.shape, x.shape[-1]
    norm = layers.group_norm("group_norm", self.groups, _EPSILON, self.kernels)
    hidden = norm(x).reshape(shape[0], -1, width)

    def project(name: str, y: Array) -> Array:
      return Dense(width, dtype=self.dtype, name=name)(y)

    # One head as wide as the feature map.
    query, key, value = (
      project(name, hidden)[:, :, None] for name in ("to_q", "to_k", "to_v")
    )
    out = dot_product_attention(query, key, value, kernels=self.kernels)
    out = out[:, :, 0]
    return x + project("to_out_0", out).reshape(shape)


class _Mid(nn.Module):
  config: VaeConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    x = c.resnet(x.shape[-1], "resnets_0")(x)
    if c.mid_block_add_attention:
      x = _Attention(
        c.norm_num_groups, c.dtype, c.kernels, name="attentions_0"
      )(x)
    return c.resnet(x.shape[-1], "resnets_1")(x)


class _Block(nn.Module):
  """The resnets of one level, then its resampling, if any."""

  config: VaeConfig
  channels: int
  num_layers: int
  resample: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    for i in range(self.num_layers):
      x = c.resnet(self.channels, f"resnets_{i}")(x)
    if self.resample == "down":
      # Stable Diffusion's encoder pads below and to the right only.
      padding = ((0, 1), (0, 1))
      x = layers.Downsample(padding, c.dtype, name="downsamplers_0")(x)
    elif self.resample == "up":
      x = layers.Upsample(c.dtype, c.kernels, name="upsamplers_0")(x)
    return x


class _Encoder(nn.Module):
  config: VaeConfig

  @nn.compact
  def __call__(self, images: Array) -> Array:
    c = self.config
    widths = c.block_out_channels
    x = layers.conv3(widths[0], "conv_in", c.dtype, c.kernels)(
      images.astype(c.dtype)
    )
    for i, width in enumerate(widths):
      last = i == len(widths) - 1
      x = _Block(
        c, width, c.layers_per_block, "none" if last else "down",
        name=f"down_blocks_{i}",
      )(x)  # fmt: skip
    x = _Mid(c, name="mid_block")(x)
    return c.head(x, 2 * c.latent_channels)


class _Decoder(nn.Module):
  config: VaeConfig

  @nn.compact
  def __call__(self, latents: Array) -> Array:
    c = self.config
    widths = c.block_out_channels[::-1]
    x = layers.conv3(widths[0], "conv_in", c.dtype, c.kernels)(latents)
    x = _Mid(c, name="mid_block")(x)
    for i, width in enumerate(widths):
      last = i == len(widths) - 1
      x = _Block(
        c, width, c.layers_per_block + 1, "none" if last else "up",
        name=f"up_blocks_{i}",
      )(x)  # fmt: skip
    return c.head(x, c.out_channels)


class AutoencoderKL(nn.Module):
  """The variational autoencoder; its caller multiplies by `scaling_factor`."""

  config: VaeConfig

  @classmethod
  def from_config(
    cls, config: Mapping[str, Any], **overrides: Any
  ) -> "AutoencoderKL":
    """The module that a `vae/config.json` asks for; see `read_config`.

    Args:
      **overrides: `dtype` of the computation.
    """
    return cls(read_config(VaeConfig, config, _FIXED, **overrides))

  def setup(self):  # noqa: D102
    c = self.config
    self.encoder = _Encoder(c)
    self.decoder = _Decoder(c)
    if c.use_quant_conv:
      self.quant_conv = Conv(2 * c.latent_channels, (1, 1), dtype=jnp.float32)
    if c.use_post_quant_conv:
      self.post_quant_conv = Conv(c.latent_channels, (1, 1), dtype=c.dtype)

  def encode(
    self, images: Float[Array, "b H W 3"]
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Mean and log variance of the posterior of images in [-1, 1]."""
    moments = self.encoder(images)
    if self.config.use_quant_conv:
      moments = self.quant_conv(moments)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Images, nominally in [-1, 1], of unscaled latents."""
    x = latents.astype(self.config.dtype)
    if self.config.use_post_quant_conv:
      x = self.post_quant_conv(x)
    return self.decoder(x)

  def __call__(self, images: Float[Array, "b H W 3"]) -> Array:
    """Reconstructs from the posterior's mean; `init` needs every parameter."""
    return self.decode(self.encode(images)[0])
