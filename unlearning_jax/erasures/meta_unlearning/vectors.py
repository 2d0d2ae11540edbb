"""What trains as one vector."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unlearning_jax.finetune.partition import Leaves


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Leaves by path as one vector, and back.

  An optimizer of hundreds of leaves compiles for longer than the rest of it.
  """

  names: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]

  @classmethod
  def of(cls, leaves: Leaves) -> "Shapes":
    """The shapes of leaves."""
    names = tuple(sorted(leaves))
    return cls(names, tuple(leaves[name].shape for name in names))

  def join(self, leaves: Leaves) -> Float[np.ndarray, " n"]:
    """The vector of such leaves, on the host."""
    return np.concatenate([np.ravel(leaves[name]) for name in self.names])

  def split(self, vector: Any) -> Leaves:
    """The leaves of a vector."""
    ends = np.cumsum([math.prod(shape) for shape in self.shapes])
    parts = (np if isinstance(vector, np.ndarray) else jnp).split(
      vector, ends[:-1]
    )
    return {
      name: part.reshape(shape)
      for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
    }
