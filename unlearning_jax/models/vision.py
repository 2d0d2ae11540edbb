"""Image transformers: CLIP's image tower, and the ViT of classifiers.

Both cut an image into patches, put a token in front, and run a transformer; a
linear layer reads that token's state. They differ in a norm before the first
layer, in biases, and in the activation.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from unlearning_jax.models.clip import ClipEncoder, check_activation
from unlearning_jax.models.flax_layers import Conv, Dense, Embed
from unlearning_jax.models.layers import layer_norm


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Shapes of a tower; the defaults are CLIP's ViT-B/32.

  Attributes:
    hidden_size: width of a token.
    intermediate_size: width of the layers' hidden units.
    num_hidden_layers: depth.
    num_attention_heads: of every layer.
    image_size: side of the square image, in pixels.
    patch_size: side of a patch, in pixels.
    outputs: width of the last linear layer's output.
    hidden_act: name of an activation, as in transformers.
    layer_norm_eps: of every norm.
    is_clip: whether there is a norm before the first layer, and no bias in the
      patch embedding and the last linear layer.
  """

  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  image_size: int = 224
  patch_size: int = 32
  outputs: int = 512
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  is_clip: bool = True
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    check_activation("VisionConfig", self.hidden_act)
    if self.image_size % self.patch_size:
      raise ValueError(
        f"VisionConfig: image_size={self.image_size} is not a multiple of "
        f"patch_size={self.patch_size}"
      )

  @property
  def tokens(self) -> int:
    """Patches, and the token in front of them."""
    return (self.image_size // self.patch_size) ** 2 + 1


class VisionTransformer(nn.Module):
  """Normalized images to the tower's outputs: an embedding, or logits."""

  config: VisionConfig

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b o"]:
    """Outputs of the first token."""
    c = self.config
    patch = (c.patch_size, c.patch_size)
    x = Conv(
      c.hidden_size, patch, strides=patch, padding="VALID",
      use_bias=not c.is_clip, dtype=c.dtype, name="patch_embedding",
    )(images)  # fmt: skip
    x = x.reshape(len(x), -1, c.hidden_size)
    first = self.param(
      "class_embedding", nn.initializers.normal(0.02), (c.hidden_size,)
    )
    first = jnp.broadcast_to(first, (len(x), 1, c.hidden_size))
    x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
    positions = Embed(c.tokens, c.hidden_size, name="position_embedding")
    x = x + positions(jnp.arange(c.tokens))[None]
    if c.is_clip:
      x = layer_norm("pre_norm", c.layer_norm_eps)(x)
    x = ClipEncoder(
      c.num_hidden_layers, c.num_attention_heads, c.intermediate_size,
      c.hidden_act, c.layer_norm_eps, c.dtype, name="transformer",
    )(x.astype(c.dtype), None)  # fmt: skip
    x = layer_norm("post_norm", c.layer_norm_eps)(x[:, 0])
    return Dense(c.outputs, use_bias=not c.is_clip, dtype=c.dtype, name="head")(
      x
    )
