"""Fast forms of what the UNet and the VAE compute on a CPU: `kernels="fast"`.

Each form is the same function as the exact one, rounded in another order. XLA's
matrix products and convolutions are fast on a CPU; its reductions, copies and
turned kernels are slow, and these forms have fewer of them. An accelerator has
other strengths: there, `fast` computes the exact forms. The comments' figures
are CPU seconds of one thread, and docs/performance.md has the whole table.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from unlearning_jax.models.flax_layers import Reads

KERNELS = ("exact", "fast")
# Queries whose scores are alive at once, of one head of a large layer.
_QUERIES = 256
_KEEP = ((1, 1), (1, 1))
Padding = tuple[tuple[int, int], tuple[int, int]]


def check(kernels: str):
  """Refuses a choice of kernels that does not exist.

  Raises:
    ValueError: naming what is allowed.
  """
  if kernels not in KERNELS:
    raise ValueError(
      f"kernels={kernels!r} is unknown; allowed: {', '.join(KERNELS)}"
    )


def has_accelerator() -> bool:
  """Whether JAX computes on something else than a CPU."""
  return jax.default_backend() != "cpu"


def used(kernels: str) -> bool:
  """Whether the fast forms compute: somebody chose them, and JAX has a CPU."""
  return kernels == "fast" and not has_accelerator()


def computed_dtype(dtype: DTypeLike, kernels: str) -> DTypeLike:
  """The type that networks compute in.

  XLA gains nothing by bfloat16 on a CPU, so the fast forms compute in float32
  there. Parameters stay in the type that they are stored in.
  """
  return jnp.float32 if used(kernels) else dtype


class GroupNorm(Reads):
  """`layers.group_norm`: the same parameters, and variance in two passes.

  A sum over pixels leaves one number a channel, and channels lie side by side
  in memory. What is left to sum over a group's channels is a small product.
  On 8 x 8 pixels of 64 channels this is 3.2 times as fast.
  """

  groups: int
  epsilon: float

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalizes every group of channels, in float32."""
    width = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (width,))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    size = width // self.groups
    # Gives every channel its group's mean.
    share = np.kron(np.eye(self.groups), np.full((size, size), 1 / size))
    share = share.astype(np.float32)

    def mean(values: Array) -> Array:
      return jnp.dot(values.mean(1), share, precision="highest")[:, None]

    pixels = x.reshape(len(x), -1, width).astype(jnp.float32)
    centered = pixels - mean(pixels)
    gain = lax.rsqrt(mean(centered * centered) + self.epsilon)
    gain *= scale[None, None]
    return (centered * gain + bias[None, None]).reshape(x.shape)


def _plain(x: Array, kernel: Array, padding: Padding) -> Array:
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, padding: Padding) -> Array:
  """A convolution whose gradient to `x` is a forward convolution too.

  In a loop XLA folds the turning of the kernel into the convolution, and such
  a convolution runs outside its fast kernels. Turned by itself, the kernel is
  turned once, before the loop: a gradient to the text takes 0.64 of the time.
  """
  return _plain(x, kernel, padding)


def _forward(x: Array, kernel: Array, padding: Padding) -> Any:
  return _plain(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, kept: tuple[Array, Array], slope: Array) -> Any:
  x, kernel = kept
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  (low, high), (left, right) = padding
  rows, columns = kernel.shape[0] - 1, kernel.shape[1] - 1
  opposite = ((rows - low, rows - high), (columns - left, columns - right))
  _, pull = jax.vjp(lambda k: _plain(x, k, padding), kernel)
  # Plain, so that the gradient has a derivative of its own, as curvature needs.
  return _plain(slope, turned, opposite), *pull(slope)


_convolve.defvjp(_forward, _backward)


def conv3(x: Array, kernel: Array, *_: object, **__: object) -> Array:
  """What `layers.conv3` computes, in the form that `nn.Conv` calls."""
  return _convolve(x, kernel, _KEEP)


def upsampled_conv3(x: Array, kernel: Array, *_: object, **__: object) -> Array:
  """`conv3` of `x`, twice as high and wide, which is never made.

  Of the nine pixels that an output reads, at most four differ. The weights of
  equal pixels are added first, which leaves four 2 x 2 kernels, one for each
  output of a 2 x 2 square, and 4 of 9 products: 2 to 3 times as fast.
  """
  lines: list[Any] = []
  for row in (0, 1):
    tall = _folded(kernel, row, axis=0)
    line: list[Any] = [
      _convolve(
        x,
        _folded(tall, column, axis=1),
        ((1 - row, row), (1 - column, column)),
      )
      for column in (0, 1)
    ]
    lines.append(jnp.stack(line, 3))
  batch, height, width = x.shape[:3]
  return jnp.stack(lines, 2).reshape(batch, 2 * height, 2 * width, -1)


def _folded(kernel: Array, place: int, axis: int) -> Array:
  """Two weights for three, where the second pixel repeats the one at `place`.

  Args:
    kernel: three long on `axis`.
    place: 0 for outputs that read a pixel before them once and theirs twice, 1
      for those that read theirs twice and the next once.
  """
  a, b, c = jnp.moveaxis(kernel, axis, 0)
  return jnp.stack([a, b + c] if place == 0 else [a + b, c], axis)


def _attend(query: Array, key: Array, value: Array) -> Array:
  """softmax(Q K^T) V, divided by the weights' sum after the product with V.

  The output is smaller than the weights, and their sum is a product with
  ones: 1.4 times as fast.
  """
  scores = query @ key.swapaxes(-1, -2)
  weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
  total = weights @ jnp.ones((*key.shape[:-1], 1), weights.dtype)
  return (weights @ value) / total


def attention(
  query: Float[Array, "b q heads c"],
  key: Float[Array, "b k heads c"],
  value: Float[Array, "b k heads c"],
  *,
  chunked: bool,
) -> Float[Array, "b q heads c"]:
  """What `attention.dot_product_attention` computes.

  Args:
    chunked: whether one head's scores of `_QUERIES` queries are alive at once.
      They fit in a core's cache: at Stable Diffusion's size a layer of 4,096
      tokens takes 0.3 of the time.
  """
  query, key, value = (
    x.astype(jnp.float32).swapaxes(1, 2) for x in (query, key, value)
  )
  query *= query.shape[-1] ** -0.5
  if not chunked:
    return _attend(query, key, value).swapaxes(1, 2)
  batch, heads, tokens, width = query.shape
  size = min(_QUERIES, tokens)
  padding = -tokens % size
  query = jnp.pad(query, ((0, 0), (0, 0), (0, padding), (0, 0)))

  def one_head(given: tuple[Array, Array, Array]) -> Array:
    queries, *rest = given
    # The backward pass computes a chunk's scores again.
    attend = jax.checkpoint(lambda chunk: _attend(chunk, *rest))
    return lax.map(attend, queries)

  flat = [x.reshape(batch * heads, *x.shape[2:]) for x in (key, value)]
  queries = query.reshape(batch * heads, -1, size, width)
  out = lax.map(one_head, (queries, *flat))
  out = out.reshape(batch, heads, tokens + padding, -1)
  return out[:, :, :tokens].swapaxes(1, 2)
