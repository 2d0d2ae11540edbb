"""UNet2DCondition: the noise predictor of Stable Diffusion."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from unlearning_jax.models import fast, layers
from unlearning_jax.models.attention import IMPLEMENTATIONS, Attention
from unlearning_jax.models.config import read_config
from unlearning_jax.models.flax_layers import Conv, Dense

_FIXED = {
  "act_fn": "silu",
  "downsample_padding": 1,
  "mid_block_scale_factor": (1, 1.0),
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "resnet_time_scale_shift": "default",
  "time_embedding_type": "positional",
  "transformer_layers_per_block": 1,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "attention_type": "default",
  "dropout": 0.0,
  # No effect: the softmax here is always float32.
  "upcast_attention": (None, False, True),
  # No effect without an addition_embed_type, which is refused.
  "addition_embed_type_num_heads": 64,
  "resnet_skip_time_act": False,
  "resnet_out_scale_factor": (1, 1.0),
}
_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """The keys of `unet/config.json` that shape the network."""

  in_channels: int = 4
  out_channels: int = 4
  flip_sin_to_cos: bool = True
  freq_shift: float = 0
  down_block_types: tuple[str, ...] = (_DOWN[0],) * 3 + (_DOWN[1],)
  up_block_types: tuple[str, ...] = (_UP[1],) + (_UP[0],) * 3
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  layers_per_block: int = 2
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  cross_attention_dim: int = 1280
  attention_head_dim: int | tuple[int, ...] = 8
  use_linear_projection: bool = False
  attention: str = "auto"
  kernels: str = "exact"
  dtype: DTypeLike = jnp.float32
  # Whether the backward pass computes each block's inner activations again.
  remat: bool = False
  # Whether it computes only those again that cost little; see `_is_kept`.
  lean: bool = False

  def __post_init__(self):
    for key, allowed in (
      ("down_block_types", _DOWN),
      ("up_block_types", _UP),
    ):
      blocks = getattr(self, key)
      for block in blocks:
        if block not in allowed:
          raise ValueError(
            f"UNetConfig: {key} has {block!r}; allowed: {', '.join(allowed)}"
          )
      if len(blocks) != len(self.block_out_channels):
        raise ValueError(
          f"UNetConfig: {key} has {len(blocks)} entries, block_out_channels "
          f"{len(self.block_out_channels)}"
        )
    if not isinstance(self.layers_per_block, int):
      raise ValueError(
        f"UNetConfig: layers_per_block={self.layers_per_block!r} is not "
        "supported; allowed: one integer for all levels"
      )
    if len(self.heads) != len(self.block_out_channels):
      raise ValueError(
        f"UNetConfig: attention_head_dim={self.heads} has {len(self.heads)} "
        f"entries, block_out_channels {len(self.block_out_channels)}"
      )
    if self.attention not in IMPLEMENTATIONS:
      raise ValueError(
        f"UNetConfig: attention={self.attention!r}; allowed: "
        f"{', '.join(IMPLEMENTATIONS)}"
      )
    fast.check(self.kernels)

  @property
  def heads(self) -> tuple[int, ...]:
    """Attention heads per level, which the file calls attention_head_dim."""
    value = self.attention_head_dim
    if isinstance(value, tuple):
      return value
    return (value,) * len(self.block_out_channels)


class _Geglu(nn.Module):
  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array) -> Array:
    hidden = Dense(2 * self.width, dtype=self.dtype, name="proj")(x)
    value, gate = jnp.split(hidden, 2, axis=-1)
    return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
  """GEGLU feed-forward: a * gelu(b), with the exact gelu."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
    """Applies the two layers and keeps the width."""
    width = x.shape[-1]
    hidden = _Geglu(4 * width, self.dtype, name="net_0")(x)
    return Dense(width, dtype=self.dtype, name="net_2")(hidden)


class TransformerBlock(nn.Module):
  """Self-attention, cross-attention to the text, feed-forward."""

  heads: int
  attention: str
  dtype: DTypeLike = jnp.float32
  kernels: str = "exact"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b l c"], context: Float[Array, "b k d"]
  ) -> Float[Array, "b l c"]:
    """Applies the block, with a norm before each part."""
    norm = layers.layer_norm

    def attention(name: str) -> Attention:
      return Attention(
        self.heads, self.attention, self.dtype, self.kernels, name=name
      )

    x = x + attention("attn1")(norm("norm1")(x))
    x = x + attention("attn2")(norm("norm2")(x), context)
    return x + FeedForward(self.dtype, name="ff")(norm("norm3")(x))


class Transformer2D(nn.Module):
  """A transformer block over the pixels of a feature map."""

  heads: int
  groups: int
  linear: bool
  attention: str
  dtype: DTypeLike = jnp.float32
  kernels: str = "exact"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], context: Float[Array, "b k d"]
  ) -> Float[Array, "b h w c"]:
    """Adds the block's output to `x`."""
    shape, width = x.shape, x.shape[-1]
    # Stable Diffusion takes 1e-6 here; `norm_eps` is for the resnets.
    hidden = layers.group_norm("norm", self.groups, 1e-6, self.kernels)(x)

    def project(name: str, y: Array) -> Array:
      if self.linear:
        return Dense(width, dtype=self.dtype, name=name)(y)
      conv = Conv(width, (1, 1), dtype=self.dtype, name=name)
      return conv(y.reshape(shape)).reshape(y.shape)

    hidden = project("proj_in", hidden.reshape(shape[0], -1, width))
    hidden = TransformerBlock(
      self.heads,
      self.attention,
      self.dtype,
      self.kernels,
      name="transformer_blocks_0",
    )(hidden, context)
    return x + project("proj_out", hidden).reshape(shape)


def _is_kept(primitive: Any, *given: Any, **_: object) -> bool:
  """Whether a lean block keeps what a primitive makes for its gradient.

  It keeps what layers make, and computes norms, gates and scores of attention
  again. It also does so with the layer before a gate, which makes eight times
  what it reads. At Stable Diffusion's sizes it has 0.13 of a forward's work.
  """
  if primitive.name == "conv_general_dilated":
    return True
  if primitive.name != "dot_general" or given[1].ndim != 2:
    return False
  read, made = given[1].shape
  return made < 8 * read


def _again(block: Any, config: UNetConfig) -> Any:
  """A block whose backward pass computes again what the config says."""
  if config.remat:
    return nn.remat(block)
  return nn.remat(block, policy=_is_kept) if config.lean else block


class _Stage(nn.Module):
  """The resnets, attentions and resampling of one down, mid or up block."""

  config: UNetConfig
  channels: int
  heads: int
  num_layers: int
  cross_attention: bool

  def resnet(self, i: int, x: Array, temb: Array) -> Array:
    c = self.config
    block = layers.ResnetBlock
    return _again(block, c)(
      self.channels,
      c.norm_num_groups,
      c.norm_eps,
      c.dtype,
      c.kernels,
      name=f"resnets_{i}",
    )(x, temb)

  def attend(self, i: int, x: Array, context: Array) -> Array:
    c = self.config
    return _again(Transformer2D, c)(
      self.heads,
      c.norm_num_groups,
      c.use_linear_projection,
      c.attention,
      c.dtype,
      c.kernels,
      name=f"attentions_{i}",
    )(x, context)


class _Down(_Stage):
  downsample: bool = True

  @nn.compact
  def __call__(self, x: Array, temb: Array, context: Array):
    skips = []
    for i in range(self.num_layers):
      x = self.resnet(i, x, temb)
      if self.cross_attention:
        x = self.attend(i, x, context)
      skips.append(x)
    if self.downsample:
      x = layers.Downsample(
        ((1, 1), (1, 1)), self.config.dtype, name="downsamplers_0"
      )(x)
      skips.append(x)
    return x, skips


class _Mid(_Stage):
  @nn.compact
  def __call__(self, x: Array, temb: Array, context: Array) -> Array:
    x = self.resnet(0, x, temb)
    x = self.attend(0, x, context)
    return self.resnet(1, x, temb)


class _Up(_Stage):
  upsample: bool = True

  @nn.compact
  def __call__(self, x, temb, context, skips, next_shape):
    for i in range(self.num_layers):
      x = self.resnet(i, jnp.concatenate([x, skips[-1 - i]], -1), temb)
      if self.cross_attention:
        x = self.attend(i, x, context)
    if self.upsample:
      x = layers.Upsample(
        self.config.dtype, self.config.kernels, name="upsamplers_0"
      )(x, next_shape)
    return x


class _TimeEmbedding(nn.Module):
  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = Dense(self.width, dtype=self.dtype, name="linear_1")(x)
    return Dense(self.width, dtype=self.dtype, name="linear_2")(nn.silu(x))


def timestep_frequencies(half: int, freq_shift: float) -> np.ndarray:
  """exp(-ln(10000) i / (half - freq_shift)) in float32, (half,).

  A frequency is multiplied by t, up to 999, so one unit in its last place shows
  in the output. The exponent is rounded as in torch, the exponential to the
  nearest float32. torch's exponential is one unit off for a few frequencies,
  other ones on other processors.
  """
  exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32)
  exponent = exponent / np.float32(half - freq_shift)
  return np.exp(exponent.astype(np.float64)).astype(np.float32)


def timestep_embedding(
  timesteps: Shaped[Array, "b"], width: int, flip: bool, freq_shift: float
) -> Float[Array, "b width"]:
  """Sines and cosines of t times each frequency; cosines first if `flip`."""
  frequencies = timestep_frequencies(width // 2, freq_shift)
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None]
  parts = (jnp.cos(angles), jnp.sin(angles))
  return jnp.concatenate(parts if flip else parts[::-1], axis=-1)


class UNet2DCondition(nn.Module):
  """Predicts noise (or velocity) from latents, timestep and text states."""

  config: UNetConfig

  @classmethod
  def from_config(
    cls, config: Mapping[str, Any], **overrides: Any
  ) -> "UNet2DCondition":
    """The module that a `unet/config.json` asks for; see `read_config`.

    Args:
      **overrides: `dtype` of the computation, `attention` implementation.
    """
    return cls(read_config(UNetConfig, config, _FIXED, **overrides))

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b h w c"],
    timesteps: Shaped[Array, "b"],
    context: Float[Array, "b l d"],
  ) -> Float[Array, "b h w c"]:
    """Predicts the noise or velocity, in float32.

    Args:
      latents: scaled and noisy.
      timesteps: training steps, 0 to T-1; some samplers visit fractions.
      context: text states.
    """
    c = self.config
    channels = c.block_out_channels
    temb = timestep_embedding(
      timesteps, channels[0], c.flip_sin_to_cos, c.freq_shift
    )
    temb = _TimeEmbedding(4 * channels[0], c.dtype, name="time_embedding")(
      temb.astype(c.dtype)
    )
    context = context.astype(c.dtype)
    conv_in = layers.conv3(channels[0], "conv_in", c.dtype, c.kernels)
    x = conv_in(latents.astype(c.dtype))

    skips = [x]
    for i, kind in enumerate(c.down_block_types):
      x, new = _Down(
        c, channels[i], c.heads[i], c.layers_per_block,
        kind.startswith("Cross"), i < len(channels) - 1,
        name=f"down_blocks_{i}",
      )(x, temb, context)  # fmt: skip
      skips += new
    x = _Mid(c, channels[-1], c.heads[-1], 2, True, name="mid_block")(
      x, temb, context
    )
    for i, kind in enumerate(c.up_block_types):
      level = len(channels) - 1 - i
      taken = c.layers_per_block + 1
      here, skips = skips[-taken:], skips[:-taken]
      x = _Up(
        c, channels[level], c.heads[level], taken,
        kind.startswith("Cross"), level > 0, name=f"up_blocks_{i}",
      )(x, temb, context, here, skips[-1].shape if skips else None)  # fmt: skip
    norm = layers.group_norm(
      "conv_norm_out", c.norm_num_groups, c.norm_eps, c.kernels
    )
    x = nn.silu(norm(x)).astype(jnp.float32)
    return layers.conv3(c.out_channels, "conv_out", jnp.float32, c.kernels)(x)
