"""Caches results of a model's arrays for as long as the arrays exist.

A fingerprint or the Gram of projections reads hundreds of megabytes and takes
as long as an edit. JAX arrays cannot change, so the same arrays have the same
result. Nor can the arrays of a model that was read from files, which are
read-only. The result of arrays that can change is computed every time.
"""

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

# Number of models whose results are kept; the arrays themselves are not kept.
_MODELS = 4
T = TypeVar("T")


def frozen(array: np.ndarray) -> np.ndarray:
  """The array, which nobody can change from now on."""
  owner: Any = array
  while isinstance(owner, np.ndarray):
    owner.flags.writeable = False
    owner = owner.base
  return array


def _fixed(leaf: Any) -> bool:
  while isinstance(leaf, np.ndarray) and not leaf.flags.writeable:
    if leaf.base is None:
      return True
    leaf = leaf.base
  return isinstance(leaf, jax.Array)


def once(
  function: Callable[[Mapping[str, Any]], T],
) -> Callable[[Mapping[str, Any]], T]:
  """Calls `function`, of arrays by path, once for the same fixed arrays.

  Callers share its result and must not change it.
  """
  known: dict[Any, tuple[list[weakref.ref], T]] = {}

  @functools.wraps(function)
  def remembered(leaves: Mapping[str, Any]) -> T:
    if not all(map(_fixed, leaves.values())):
      return function(leaves)
    key = tuple((path, id(leaf)) for path, leaf in leaves.items())
    found = known.get(key)
    # The id of a deleted array may belong to another one by now.
    if found and all(
      reference() is leaf
      for reference, leaf in zip(found[0], leaves.values(), strict=True)
    ):
      return found[1]
    result = function(leaves)
    known.pop(key, None)
    known[key] = [weakref.ref(leaf) for leaf in leaves.values()], result
    while len(known) > _MODELS:
      known.pop(next(iter(known)), None)
    return result

  return remembered
