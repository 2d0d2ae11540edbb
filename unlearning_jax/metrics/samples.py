"""Arrays of at most so many rows, the same ones in whatever order they come.

Which rows stay is decided by a hash of their ids, as if by lot, so that states
merge in any order, and models keep the same rows.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

State = Mapping[str, Mapping[str, Any]]


def add(
  state: State,
  model: str,
  ids: Sequence[str],
  arrays: Shaped[np.ndarray, "n ..."],
  most: int,
) -> State:
  """Adds rows of a model.

  Args:
    state: model -> `n`, rows that were seen; `ids` and `arrays` of those kept.
    model: whose rows these are.
    ids: the rows' names.
    arrays: one for each.
    most: rows of a model that are kept.
  """
  given = {"n": len(ids), "ids": list(ids), "arrays": arrays}
  return merge(state, {model: given}, most)


def merge(first: State, second: State, most: int) -> State:
  """The rows of both; they are different ones."""
  found = dict(first)
  for model, new in second.items():
    had = found.get(model, {"n": 0, "ids": [], "arrays": new["arrays"][:0]})
    ids = [*had["ids"], *new["ids"]]
    order = sorted(range(len(ids)), key=lambda i: _lot(ids[i]))[:most]
    both = np.concatenate([had["arrays"], new["arrays"]])
    found[model] = {
      "n": had["n"] + new["n"],
      "ids": [ids[i] for i in order],
      "arrays": both[order],
    }
  return found


def _lot(name: str) -> bytes:
  return hashlib.sha256(name.encode()).digest()
