"""Adam with a step count for each lane, so that a lane can start at any time.

Kingma and Ba, ICLR 2015, Algorithm 1; decoupled decay as in Loshchilov and
Hutter, ICLR 2019.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# `coupled` adds an L2 term to the gradient (Adam); `decoupled` shrinks the
# values themselves (AdamW).
DECAYS = ("coupled", "decoupled")
_B1, _B2, _EPS = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
  """m and v, the running means of gradient and square, and each lane's step."""

  mean: Float[Array, "b ..."]
  square: Float[Array, "b ..."]
  count: Int[Array, " b"]


def start(values: Float[Array, "b ..."]) -> Moments:
  """The moments before the first step."""
  zeros = jnp.zeros_like(values)
  return Moments(zeros, zeros, jnp.zeros(len(values), jnp.int32))


def update(
  values: Float[Array, "b ..."],
  gradient: Float[Array, "b ..."],
  moments: Moments,
  *,
  learning_rate: float,
  weight_decay: float,
  decay: str,
) -> tuple[Float[Array, "b ..."], Moments]:
  """One step, equal to that of `torch.optim.Adam` or `AdamW`.

  Args:
    values: the parameters.
    gradient: the gradient of each lane's own loss.
    moments: from `start` or the last `update`.
    learning_rate: alpha.
    weight_decay: lambda.
    decay: `coupled` or `decoupled`.
  """
  if decay == "coupled":
    gradient = gradient + weight_decay * values
  else:
    values = values * (1 - learning_rate * weight_decay)
  count = moments.count + 1
  mean = _B1 * moments.mean + (1 - _B1) * gradient
  square = _B2 * moments.square + (1 - _B2) * gradient**2
  age = count.astype(values.dtype).reshape((-1,) + (1,) * (values.ndim - 1))
  unbiased = mean / (1 - _B1**age)
  spread = jnp.sqrt(square / (1 - _B2**age)) + _EPS
  new = values - learning_rate * unbiased / spread
  return new, Moments(mean, square, count)
