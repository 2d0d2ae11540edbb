"""Flax's layers, for networks whose parameters are there.

Wherever a layer is called, Flax traces how each of its parameters would begin,
only to compare shapes. That is half of what it takes to trace a UNet.
"""

import contextvars
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_DRAWN = contextvars.ContextVar("drawn", default=True)


def parameter_shapes(network: nn.Module, *inputs: Any) -> Any:
  """Shapes and dtypes of what `network.init` would draw, for such inputs."""
  given = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)
  return jax.tree.map(lambda leaf: leaf, _shapes(network, *given))


# A process reads many models of the same networks.
@functools.lru_cache(maxsize=32)
def _shapes(network: nn.Module, *inputs: jax.ShapeDtypeStruct) -> Any:
  before = _DRAWN.set(False)
  try:
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
  finally:
    _DRAWN.reset(before)


class Reads(nn.Module):
  """A module that reads a parameter of the right shape, and traces nothing."""

  @nn.nowrap
  def param(self, name: str, init_fn: Any, *args: Any, **kwargs: Any) -> Any:
    """As Flax's; `args`, if there are any, are a shape, and perhaps a dtype."""
    if args and self.has_variable("params", name):
      value = self.get_variable("params", name)
      if np.shape(value) == tuple(args[0]):
        return value
    elif args and not _DRAWN.get():
      value = jnp.zeros(*args)
      self.put_variable("params", name, value)
      return value
    return super().param(name, init_fn, *args, **kwargs)


class Conv(Reads, nn.Conv):
  """`nn.Conv`."""


class Dense(Reads, nn.Dense):
  """`nn.Dense`."""


class Embed(Reads, nn.Embed):
  """`nn.Embed`."""


class GroupNorm(Reads, nn.GroupNorm):
  """`nn.GroupNorm`."""


class LayerNorm(Reads, nn.LayerNorm):
  """`nn.LayerNorm`."""
