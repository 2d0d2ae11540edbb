"""The image side of the Shapes world's CLIP.

It has convolutions instead of CLIP's transformer: on 60,000 small images they
learn to tell silhouettes apart within minutes, and patches do not.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from unlearning_jax.models import layers


class Projections(nn.Module):
  """Maps images and text states to unit vectors of one space.

  Attributes:
    widths: channels of each level; each level halves the size.
    projection_dim: p, the width of the joint space.
    groups: groups of the norms.
  """

  widths: tuple[int, ...] = (16, 32, 64, 128)
  projection_dim: int = 128
  groups: int = 8

  @nn.compact
  def __call__(
    self, images: Float[Array, "b H W 3"], pooled: Float[Array, "b d"]
  ) -> tuple[Float[Array, "b p"], Float[Array, "b p"], Float[Array, ""]]:
    """Unit vectors of images and texts, and the logit scale (before exp).

    Args:
      images: in [-1, 1].
      pooled: text states at the end of text.
    """
    x = layers.conv3(self.widths[0], "conv_in", jnp.float32)(images)
    for i, width in enumerate(self.widths):
      x = layers.ResnetBlock(width, self.groups, 1e-5, name=f"resnets_{i}")(x)
      if i < len(self.widths) - 1:
        padding = ((1, 1), (1, 1))
        x = layers.Downsample(padding, name=f"downsamplers_{i}")(x)
    x = nn.silu(x).reshape(len(images), -1)
    scale = self.param("logit_scale", nn.initializers.constant(2.66), ())
    return (
      self._project("visual_projection", x),
      self._project("text_projection", pooled),
      scale,
    )

  @nn.nowrap
  def _project(self, name: str, x: Array) -> Array:
    out = nn.Dense(self.projection_dim, use_bias=False, name=name)(x)
    return out / jnp.linalg.norm(out, axis=-1, keepdims=True)
