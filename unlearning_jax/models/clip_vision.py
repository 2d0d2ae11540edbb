"""The CLIP image tower and the projections that make a CLIP score."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from unlearning_jax.models.clip import ACTIVATIONS, IGNORED, ClipEncoder
from unlearning_jax.models.config import read_config
from unlearning_jax.models.layers import layer_norm


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
  """The keys of CLIP's `vision_config`, and the width of the joint space."""

  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  image_size: int = 224
  patch_size: int = 32
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  projection_dim: int = 512
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    if self.hidden_act not in ACTIVATIONS:
      raise ValueError(
        f"ClipVisionConfig: hidden_act={self.hidden_act!r} is not supported; "
        f"allowed: {', '.join(ACTIVATIONS)}"
      )


class _Embeddings(nn.Module):
  config: ClipVisionConfig

  @nn.compact
  def __call__(self, images: Array) -> Array:
    c = self.config
    size = (c.patch_size, c.patch_size)
    patches = nn.Conv(
      c.hidden_size, size, size, "VALID", use_bias=False,
      dtype=c.dtype, name="patch_embedding",
    )(images)  # fmt: skip
    patches = patches.reshape(len(images), -1, c.hidden_size)
    token = self.param(
      "class_embedding", nn.initializers.normal(0.02), (c.hidden_size,)
    )
    first = jnp.broadcast_to(token, (len(images), 1, c.hidden_size))
    x = jnp.concatenate([first, patches], axis=1)
    table = nn.Embed(x.shape[1], c.hidden_size, name="position_embedding")
    return x + table(jnp.arange(x.shape[1]))[None]


class _VisionTransformer(nn.Module):
  config: ClipVisionConfig

  @nn.compact
  def __call__(self, images: Array) -> Array:
    c = self.config
    x = _Embeddings(c, name="embeddings")(images)
    # The missing letter is in every published checkpoint.
    x = layer_norm("pre_layrnorm", c.layer_norm_eps)(x)
    x = ClipEncoder(
      c.num_hidden_layers,
      c.num_attention_heads,
      c.intermediate_size,
      c.hidden_act,
      c.layer_norm_eps,
      c.dtype,
      name="encoder",
    )(x, None)
    return layer_norm("post_layernorm", c.layer_norm_eps)(x[:, 0])


class ClipProjections(nn.Module):
  """Image tower and both projections; the text tower is `ClipTextModel`."""

  config: ClipVisionConfig

  @classmethod
  def from_config(
    cls, config: Mapping[str, Any], **overrides: Any
  ) -> "ClipProjections":
    """Builds the module from a `vision_config`.

    Raises:
      ValueError: the config asks for something this tower does not do.
    """
    config = {k: v for k, v in config.items() if k not in IGNORED}
    fixed = {"num_channels": 3}
    return cls(read_config(ClipVisionConfig, config, fixed, **overrides))

  @nn.compact
  def __call__(
    self, images: Float[Array, "b H W 3"], pooled: Float[Array, "b d"]
  ) -> tuple[Float[Array, "b p"], Float[Array, "b p"], Float[Array, ""]]:
    """Unit vectors of images and texts, and the logit scale (before exp).

    Args:
      images: normalised as the tower expects.
      pooled: text states at the end of the text.
    """
    c = self.config

    def project(name: str, x: Array) -> Array:
      out = nn.Dense(c.projection_dim, use_bias=False, name=name)(x)
      return out / jnp.linalg.norm(out, axis=-1, keepdims=True)

    image = _VisionTransformer(c, name="vision_model")(images)
    scale = self.param("logit_scale", nn.initializers.constant(2.66), ())
    return (
      project("visual_projection", image),
      project("text_projection", pooled),
      scale,
    )
