"""Mean and covariance of features in one pass, and the distance of two.

A state holds, for each model, the number of vectors, their sum and the sum of
their outer products, in float64: as much memory for any number of images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from unlearning_jax.metrics import Row

State = Mapping[str, Mapping[str, Any]]


class Gaussian(NamedTuple):
  """The normal distribution of features.

  Attributes:
    n: vectors that it was estimated from.
    mean: of each feature.
    covariance: unbiased, divided by n - 1.
  """

  n: int
  mean: Float[np.ndarray, " d"]
  covariance: Float[np.ndarray, "d d"]


def add(
  state: State, features: Float[np.ndarray, "n d"], rows: Sequence[Row]
) -> State:
  """Adds the vectors of rows to their models' sums."""
  exact = np.asarray(features, np.float64)
  found: dict[str, Mapping[str, Any]] = {}
  for model in dict.fromkeys(row["model"] for row in rows):
    own = exact[[i for i, row in enumerate(rows) if row["model"] == model]]
    sums = {"n": len(own), "sum": own.sum(axis=0), "outer": own.T @ own}
    found[model] = sums
  return merge(state, found)


def merge(first: State, second: State) -> State:
  """The sums of both; they counted different images."""
  found = dict(first)
  for model, sums in second.items():
    had = found.get(model)
    found[model] = {k: had[k] + sums[k] for k in sums} if had else sums
  return found


def gaussian(sums: Mapping[str, Any]) -> Gaussian:
  """Mean and covariance of one model's sums; of one vector, zeros."""
  n, mean = sums["n"], sums["sum"] / sums["n"]
  covariance = (sums["outer"] - n * np.outer(mean, mean)) / max(n - 1, 1)
  return Gaussian(n, mean, covariance)


def frechet(first: Gaussian, second: Gaussian) -> float:
  """The squared Frechet distance of two normal distributions.

  |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of that root is the sum
  of the roots of the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), which
  has the eigenvalues of C1 C2. Rounding may make some a little negative; they
  count as 0, and so does such a distance.
  """
  values, vectors = np.linalg.eigh(first.covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  shared = np.linalg.eigvalsh(root @ second.covariance @ root)
  trace = np.trace(first.covariance) + np.trace(second.covariance)
  apart = np.sum(np.square(first.mean - second.mean))
  distance = apart + trace - 2 * np.sqrt(np.maximum(shared, 0)).sum()
  return max(float(distance), 0.0)
