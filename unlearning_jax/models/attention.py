"""Scaled dot-product attention: dense, in chunks, or as a fused kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from unlearning_jax.models import fast
from unlearning_jax.models.flax_layers import Dense

# "auto" splits a layer into chunks from this many scores per head. At Stable
# Diffusion's sizes the dense form keeps 4,096 x 4,096 x 8 heads x 4 bytes, or
# 512 MiB, a layer; the five layers of 1,024 tokens add 0.5 GiB to a gradient.
_CHUNK_FROM_SCORES = 2**20
_CHUNK = 512

IMPLEMENTATIONS = ("auto", "dense", "chunked", "cudnn")
# Cross-attention stores its probabilities in this collection when the caller
# makes it mutable; see `functional.apply_with_attention`.
PROBABILITIES = "attention_probabilities"


def _weights(query: Array, key: Array) -> Array:
  scale = query.shape[-1] ** -0.5
  scores = jnp.einsum(
    "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
  )
  return jax.nn.softmax(scores * scale, axis=-1)


def _attend(weights: Array, value: Array) -> Array:
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def _dense(query: Array, key: Array, value: Array) -> Array:
  return _attend(_weights(query, key), value)


def _chunked(query: Array, key: Array, value: Array, chunk: int) -> Array:
  batch, tokens, heads, width = query.shape
  padding = -tokens % chunk
  padded = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
  chunks = padded.reshape(batch, -1, chunk, heads, width).swapaxes(0, 1)
  # The inner checkpoint makes the backward pass recompute the scores of one
  # chunk at a time; without it every chunk's scores stay alive.
  attend = jax.checkpoint(lambda q: _dense(q, key, value))
  out = jax.lax.map(attend, chunks).swapaxes(0, 1)
  return out.reshape(batch, tokens + padding, heads, -1)[:, :tokens]


def check(implementation: str, dtype: DTypeLike):
  """Checks that this machine can compute attention so, in `dtype`.

  Raises:
    ValueError: `implementation` is unknown, or is "cudnn" although `dtype` is
      not bfloat16 or float16, or JAX does not run on an NVIDIA GPU.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"attention={implementation!r} is unknown; allowed: "
      f"{', '.join(IMPLEMENTATIONS)}"
    )
  if implementation != "cudnn":
    return
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    raise ValueError(
      f"attention='cudnn' does not compute in {jnp.dtype(dtype)}: set "
      "dtype=bfloat16, or attention='auto'"
    )
  if (backend := jax.default_backend()) != "gpu":
    raise ValueError(
      f"attention='cudnn' needs an NVIDIA GPU, and JAX runs on {backend!r}: "
      "set attention='auto'"
    )


def _cudnn(query: Array, key: Array, value: Array) -> Array:
  # The kernel's backward pass refuses an odd number of tokens. A text has 77,
  # so few that dense attention is cheap.
  if query.shape[1] % 2 or key.shape[1] % 2:
    return _dense(query, key, value)
  return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def dot_product_attention(
  query: Float[Array, "b q heads c"],
  key: Float[Array, "b k heads c"],
  value: Float[Array, "b k heads c"],
  *,
  implementation: str = "auto",
  chunk: int = _CHUNK,
  kernels: str = "exact",
) -> Float[Array, "b q heads c"]:
  """softmax(Q K^T / sqrt(c)) V in the dtype of `value`, the softmax in float32.

  Args:
    implementation: "dense" keeps all scores. "chunked" takes `chunk` queries
      at a time and recomputes their scores in the backward pass. "auto" does
      so only where the scores would be large. "cudnn" is the fused kernel of
      NVIDIA's GPUs, which keeps no scores; it becomes "dense" where a number
      of tokens is odd.

  Raises:
    ValueError: as `check`.
  """
  check(implementation, query.dtype)
  if implementation == "cudnn":
    return _cudnn(query, key, value)
  large = query.shape[1] * key.shape[1] >= _CHUNK_FROM_SCORES
  chunked = implementation == "chunked" or (implementation == "auto" and large)
  if fast.used(kernels):
    return fast.attention(query, key, value, chunked=chunked)
  if chunked:
    return _chunked(query, key, value, min(chunk, query.shape[1]))
  return _dense(query, key, value)


class Attention(nn.Module):
  """Multi-head attention of the UNet."""

  heads: int
  implementation: str = "auto"
  dtype: DTypeLike = jnp.float32
  kernels: str = "exact"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b q c"],
    context: Float[Array, "b k d"] | None = None,
  ) -> Float[Array, "b q c"]:
    """Attends from `x` to `context`; without a context, to itself."""
    captured = context is not None and self.is_mutable_collection(PROBABILITIES)
    context = x if context is None else context
    width = x.shape[-1]

    def heads(name: str, source: Array) -> Array:
      out = Dense(width, use_bias=False, dtype=self.dtype, name=name)(source)
      return out.reshape(*out.shape[:-1], self.heads, width // self.heads)

    query, key, value = (
      heads(name, source)
      for name, source in (("to_q", x), ("to_k", context), ("to_v", context))
    )
    if captured and not self.is_initializing():
      weights = _weights(query, key)
      self.put_variable(PROBABILITIES, "weights", weights)
      out = _attend(weights, value)
    else:
      out = dot_product_attention(
        query, key, value, implementation=self.implementation,
        kernels=self.kernels,
      )  # fmt: skip
    out = out.reshape(x.shape)
    return Dense(width, dtype=self.dtype, name="to_out_0")(out)
