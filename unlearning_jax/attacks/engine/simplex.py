"""Euclidean projection onto the probability simplex."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def project(values: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
  """The nearest point whose entries are >= 0 and sum to one.

  argmin_p |p - x|^2 = max(x - mu, 0), where mu makes the sum one. With x
  sorted downwards, the support is the longest prefix whose j-th entry exceeds
  (x_1 + ... + x_j - 1) / j (Held, Wolfe & Crowder 1974; Duchi et al. 2008).
  UnlearnDiffAtk's release bisects for mu instead; its sums can be off by
  percents.

  Args:
    values: x, finite.
  """
  size = values.shape[-1]
  # A shift does not move the result, and keeps the digits of large entries.
  values = values - values.max(axis=-1, keepdims=True)
  falling = -jnp.sort(-values, axis=-1)
  rank = jnp.arange(1, size + 1, dtype=values.dtype)
  rank = rank.reshape((1,) * (values.ndim - 1) + (size,))
  inside = falling * rank > jnp.cumsum(falling, axis=-1) - 1
  count = jnp.maximum(inside.sum(axis=-1, keepdims=True), 1)
  lowest = jnp.take_along_axis(falling, count - 1, axis=-1)
  # A new sum over the support: the running sum has lost digits by now.
  support = values >= lowest
  total = jnp.where(support, values, 0).sum(axis=-1, keepdims=True)
  mu = (total - 1) / support.sum(axis=-1, keepdims=True)
  return jnp.maximum(values - mu, 0)
