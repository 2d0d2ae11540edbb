"""Euclidean projection onto the probability simplex."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def project(values: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
  """The nearest point with entries >= 0 that sum to one, exactly.

  argmin_p |p - x|^2 = max(x - mu, 0), where mu makes the sum one. With x
  sorted downwards, the support is the longest prefix whose j-th entry exceeds
  (x_1 + ... + x_j - 1) / j (Held, Wolfe & Crowder 1974; Duchi et al. 2008).
  The published attack bisects for mu, and can be off by percents in the sum.

  Args:
    values: any finite numbers.
  """
  size = values.shape[-1]
  # Shift-invariant: without the shift, large entries would cost digits.
  values = values - values.max(axis=-1, keepdims=True)
  falling = -jnp.sort(-values, axis=-1)
  rank = jnp.arange(1, size + 1, dtype=values.dtype)
  rank = rank.reshape((1,) * (values.ndim - 1) + (size,))
  inside = falling * rank > jnp.cumsum(falling, axis=-1) - 1
  count = jnp.maximum(inside.sum(axis=-1, keepdims=True), 1)
  lowest = jnp.take_along_axis(falling, count - 1, axis=-1)
  # Summed anew over the support: the running sum has lost digits by there.
  support = values >= lowest
  total = jnp.where(support, values, 0).sum(axis=-1, keepdims=True)
  mu = (total - 1) / support.sum(axis=-1, keepdims=True)
  return jnp.maximum(values - mu, 0)
