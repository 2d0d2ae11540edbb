"""Reads a pickled numpy array without an unpickler that can run code.

Q16's two vectors are published as such pickles. This unpickler knows three
words: make an array, name its type, fill it.
"""

import os
import pickle
from typing import Any

import numpy as np
from jaxtyping import Float

from unlearning_jax import durable
from unlearning_jax.convert.unpickler import Within, check_memo

_TYPES = {"f2": np.float16, "f4": np.float32, "f8": np.float64}
_CORRUPT = (
  pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError,
  AttributeError, OverflowError, MemoryError,
)  # fmt: skip


class _Type:
  __slots__ = ("name",)

  def __init__(self, name: str, *_: object):
    self.name = name

  def __setstate__(self, state: Any):
    if state[1] not in ("<", "="):
      raise pickle.UnpicklingError(f"byte order {state[1]!r}")


class _Array:
  __slots__ = ("state",)

  def __init__(self, *_: object):
    self.state: Any = None

  def __setstate__(self, state: Any):
    self.state = state


_GLOBALS = {
  ("numpy", "dtype"): _Type,
  ("numpy", "ndarray"): _Array,
  ("numpy.core.multiarray", "_reconstruct"): _Array,
  ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class _Unpickler(pickle.Unpickler):
  """An unpickler that imports nothing."""

  def find_class(self, module: str, name: str) -> Any:
    """Resolves a global from the table, or refuses it."""
    if (module, name) not in _GLOBALS:
      raise pickle.UnpicklingError(
        f"it asks for {module}.{name}, which no array needs; refused, and "
        "nothing was executed"
      )
    return _GLOBALS[module, name]


def read_array(path: str | os.PathLike[str]) -> Float[np.ndarray, "..."]:
  """The float array, as float32, that `pickle.dump(array, file)` wrote.

  Raises:
    ValueError: the file is missing or corrupt, holds anything but one array of
      floats, or asks for another global.
  """
  try:
    durable.check_plain(path)
    with open(path, "rb") as file:
      check_memo(Within(file))
      file.seek(0)
      found = _Unpickler(Within(file)).load()
    if not isinstance(found, _Array) or found.state is None:
      raise ValueError(f"it holds a {type(found).__name__}, not an array")
    _, shape, kind, columns_first, raw = found.state
    if kind.name not in _TYPES or type(raw) is not bytes:
      raise ValueError("it does not hold plain floats")
    flat = np.frombuffer(raw, np.dtype(_TYPES[kind.name]).newbyteorder("<"))
    array = flat.reshape(shape, order="F" if columns_first else "C")
  except (*_CORRUPT, OSError) as error:
    raise ValueError(
      f"{os.fspath(path)}: not a readable array: {error}"
    ) from error
  return array.astype(np.float32)
