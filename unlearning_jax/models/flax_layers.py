"""Flax's layers, for networks whose parameters are there.

Wherever a layer is called, Flax traces how each of its parameters would begin,
only to compare shapes. That is half of what it takes to trace a UNet.
"""

from typing import Any

import flax.linen as nn
import numpy as np


class Reads(nn.Module):
  """A module that reads a parameter of the right shape, and traces nothing."""

  @nn.nowrap
  def param(self, name: str, init_fn: Any, *args: Any, **kwargs: Any) -> Any:
    """As Flax's; the first of `args`, if there is one, is the shape."""
    if args and self.has_variable("params", name):
      value = self.get_variable("params", name)
      if np.shape(value) == tuple(args[0]):
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
