"""LPIPS: how far two images are from each other in a network's features.

  d(x, y) = sum_l mean_pixels sum_c w_lc (u_lc(x) - u_lc(y))^2

u_l are the features of layer l, of length one at every pixel, and the weights w
were fitted to what people find alike. The network is AlexNet or VGG-16.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from unlearning_jax.models.flax_layers import Conv

# Each layer: channels, side of the kernel, stride, padding; "pool" with its
# side. A stage ends with the relu whose output is compared.
_ALEX = (
  ((64, 11, 4, 2),),
  (3, (192, 5, 1, 2)),
  (3, (384, 3, 1, 1)),
  ((256, 3, 1, 1),),
  ((256, 3, 1, 1),),
)
_VGG = tuple(
  (*((2,) if stage else ()), *(((channels, 3, 1, 1),) * depth))
  for stage, (channels, depth) in enumerate(
    ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
  )
)
NETWORKS = {"alex": _ALEX, "vgg": _VGG}
# In which place of torchvision's `features` each convolution stands.
PLACES = {
  "alex": (0, 3, 6, 8, 10),
  "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# As the published code has it, added to a length.
_EPSILON = 1e-10


class Lpips(nn.Module):
  """Two images from -1 to 1 to their distance.

  Attributes:
    network: a key of `NETWORKS`.
  """

  network: str

  @nn.compact
  def __call__(self, images: Float[Array, "b 2 h w 3"]) -> Float[Array, " b"]:
    """The distance of each pair."""
    count = len(images)
    both = images.reshape(-1, *images.shape[2:])
    shift, scale = (jnp.array([[[v]]]) for v in (_SHIFT, _SCALE))
    both = (both - shift) / scale
    total = jnp.zeros(count)
    for i, x in enumerate(self._features(both)):
      length = jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))
      unit = (x / (length + _EPSILON)).reshape(count, 2, *x.shape[1:])
      apart = jnp.square(unit[:, 0] - unit[:, 1])
      weighed = Conv(1, (1, 1), use_bias=False, name=f"lin{i}")(apart)
      total = total + jnp.mean(weighed, axis=(1, 2, 3))
    return total

  def _features(self, x: Array) -> Sequence[Array]:
    found, places = [], iter(PLACES[self.network])
    for stage in NETWORKS[self.network]:
      for layer in stage:
        if isinstance(layer, int):
          x = nn.max_pool(x, (layer, layer), (2, 2))
          continue
        channels, side, stride, padding = layer
        convolution = Conv(
          channels, (side, side), strides=(stride, stride),
          padding=((padding, padding),) * 2, name=f"conv{next(places)}",
        )  # fmt: skip
        x = nn.relu(convolution(x))
      found.append(x)
    return found
