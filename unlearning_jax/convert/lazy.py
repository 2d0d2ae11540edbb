"""Tensors that stay in their file until somebody needs their numbers.

Models are read and compared with them, one tensor at a time: no model is held
twice, and two models of four gigabytes are compared in less than one. A `Lazy`
has what an array has as far as the readers of this room use it; numpy reads it
as it reads an array.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


class Lazy:
  """A tensor that is computed anew each time that its numbers are needed.

  Attributes:
    shape: the tensor's.
    dtype: its type.
    make: gives its numbers.
  """

  def __init__(
    self, make: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: Any
  ):
    self.make, self.shape, self.dtype = make, tuple(shape), np.dtype(dtype)

  @property
  def ndim(self) -> int:
    """The number of axes."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """The number of numbers."""
    return int(np.prod(self.shape, dtype=object))

  def __len__(self) -> int:
    return self.shape[0]

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    return np.asarray(self.make(), dtype)

  def __getitem__(self, key: Any) -> "Lazy":
    # An array of this shape that takes no memory.
    shape = np.broadcast_to(np.zeros((), np.bool_), self.shape)[key].shape
    return Lazy(lambda: np.asarray(self)[key], shape, self.dtype)

  def reshape(self, *shape: Any) -> "Lazy":
    """The same numbers in another shape."""
    new = np.broadcast_to(np.zeros((), np.bool_), self.shape)
    found = new.reshape(*shape).shape
    return Lazy(lambda: np.asarray(self).reshape(found), found, self.dtype)

  def transpose(self, axes: tuple[int, ...]) -> "Lazy":
    """The same numbers with the axes in another order."""
    shape = tuple(self.shape[axis] for axis in axes)
    return Lazy(lambda: np.asarray(self).transpose(axes), shape, self.dtype)

  def astype(self, dtype: Any, copy: bool = True) -> "Lazy":
    """The same numbers in another type."""
    if self.dtype == dtype:
      return self
    return Lazy(
      lambda: np.asarray(self).astype(dtype, copy=copy), self.shape, dtype
    )

  def tobytes(self) -> bytes:
    """The bytes of its numbers, in order."""
    return np.asarray(self).tobytes()

  def then(self, make: Callable[[np.ndarray], Any]) -> Any:
    """What `make`, which keeps shape and type, will make of it."""
    return Lazy(lambda: make(np.asarray(self)), self.shape, self.dtype)
