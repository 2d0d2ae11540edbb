"""Results that hold as long as the arrays that they were computed from.

A model's fingerprint, the Gram of its projections: each reads hundreds of
megabytes and takes as long as an edit. A jax array cannot be changed, so the
same arrays have the same results. A numpy array can be, and is read anew.
"""

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

# Models whose results are kept; the arrays themselves are not.
_MODELS = 4
T = TypeVar("T")


def once(
  function: Callable[[Mapping[str, Any]], T],
) -> Callable[[Mapping[str, Any]], T]:
  """`function`, which reads arrays by path, called once for the same arrays.

  Callers share its result and must not change it.
  """
  known: dict[Any, tuple[list[weakref.ref], T]] = {}

  @functools.wraps(function)
  def remembered(leaves: Mapping[str, Any]) -> T:
    if not all(isinstance(leaf, jax.Array) for leaf in leaves.values()):
      return function(leaves)
    key = tuple((path, id(leaf)) for path, leaf in leaves.items())
    found = known.get(key)
    # The number of an array that is gone may be another's by now.
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
