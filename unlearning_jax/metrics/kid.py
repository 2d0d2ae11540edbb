"""Kernel Inception distance: the unbiased squared MMD of features.

  k(x, y) = (x . y / d + 1)^3

Its value is the mean over random subsets of both sets, as published. Unlike FID
it does not fall with the count. Features are kept, 8 KB a picture, of at most
`most` pictures. Where more were drawn, the number's name says so, as
`kid/t2i/2000-of-10000`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unlearning_jax import metrics
from unlearning_jax.metrics import (
  Estimate,
  Images,
  Row,
  features,
  references,
  samples,
)
from unlearning_jax.metrics.features import Features
from unlearning_jax.metrics.references import BASE, Reference
from unlearning_jax.metrics.samples import State

NEEDS = features.NEEDS
VERBS = ("evaluate", "measure")
# Rows of a kernel's matrix that are computed at a time.
_CHUNK = 1000
_SEED = 0


class Subsets(NamedTuple):
  """How many subsets, and how large."""

  number: int
  size: int


def metric(
  stack: str = "t2i",
  reference: str = "",
  subsets: int = 100,
  subset_size: int = 1000,
  most: int = 10_000,
  network: str = features.NETWORK,
  judges_dir: str = "",
) -> metrics.Metric:
  """KID of each model's pictures to a reference.

  Args:
    stack: how pictures are resized: t2i, clean, pytorch-fid, torch-fidelity.
    reference: a folder of photographs, an `.npz` of ours, or base.
    subsets: random subsets.
    subset_size: pictures of each. Where a set has no more, there is one value
      of all pictures, and no spread.
    most: pictures of a model whose features are kept.
    network: inception-2015, or `package.module:name` of your own `Features`.
    judges_dir: the folder of weights; "" for the environment's.

  Raises:
    ValueError: a file is missing, the reference does not fit, or a number is
      too small.
  """
  for key, value in (("subsets", subsets), ("subset_size", subset_size)):
    if value < 2:
      raise ValueError(f"metric kid: {key}={value}: must be 2 or more")
  if most < subset_size:
    raise ValueError(
      f"metric kid: most={most}: must be subset_size={subset_size} or more"
    )
  of = features.load("kid", network, stack, judges_dir)
  compared = Reference("kid", reference)
  held = compared.check(of, vectors=True)
  return metrics.Metric(
    "kid", dict, partial(_update, of, most), partial(samples.merge, most=most),
    partial(_compute, compared, of, Subsets(subsets, subset_size)),
    verbs=VERBS, needs=compared.needs,
    identity=f"{of.identity}, reference {held}",
  )  # fmt: skip


def _update(
  of: Features, most: int, state: State, images: Images, rows: Sequence[Row]
) -> State:
  vectors = of(images).astype(np.float32)
  for model in dict.fromkeys(row["model"] for row in rows):
    own = [i for i, row in enumerate(rows) if row["model"] == model]
    ids = [str(rows[i]["id"]) for i in own]
    state = samples.add(state, model, ids, vectors[own], most)
  return state


def _compute(
  reference: Reference, of: Features, subsets: Subsets, state: State
) -> list[Estimate]:
  models = [m for m in sorted(state) if not (reference.is_base and m == BASE)]
  found: list[Estimate] = []
  for model in models:
    own, drawn = state[model]["arrays"], state[model]["n"]
    kept = f"{len(own)}-of-" if len(own) < drawn else ""
    name = f"{of.name}/{kept}{drawn}"
    other = (
      state.get(BASE, {"arrays": own[:0]})["arrays"]
      if reference.is_base
      else reference.vectors(of)
    )
    found += _estimates(name, model, own, other, subsets)
  count = sum(int(held["n"]) for held in state.values())
  return found or [references.nothing(f"kid/{of.name}", count)]


def _estimates(
  name: str, model: str, own: np.ndarray, other: np.ndarray, subsets: Subsets
) -> Iterator[Estimate]:
  n, least = len(own), min(len(own), len(other))
  made = partial(Estimate, n=n, unit="distance", model=model)
  to = f"{n} pictures to {len(other)}"
  if least < 2:
    why = f"{to}: two of each are the least"
    yield made(f"kid/{name}", None, method="none", failed=why)
    return
  if least <= subsets.size:
    method = f"none: {to} at once; a spread needs smaller subsets"
    yield made(f"kid/{name}", mmd(own, other), method=method)
    return
  rng = np.random.default_rng(_SEED)
  values = [
    mmd(*(x[rng.choice(len(x), subsets.size, False)] for x in (own, other)))
    for _ in range(subsets.number)
  ]
  said = f"{subsets.number} subsets of {subsets.size}, {to}"
  method = f"none: mean of {said}, which overlap"
  yield made(f"kid/{name}", float(np.mean(values)), method=method)
  method = f"none: standard deviation over {said}"
  yield made(f"kid-spread/{name}", float(np.std(values)), method=method)


def mmd(
  first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]
) -> float:
  """The unbiased squared MMD with the cubic kernel, in float64.

  A picture is not compared with itself: sum_{i != j} k(x_i, x_j) / (n (n - 1))
  + the same of y - 2 mean k(x_i, y_j).
  """
  x, y = (np.asarray(v, np.float64) for v in (first, second))
  inside = sum(
    (_total(v, v) - _kernel((v * v).sum(axis=1), v.shape[1]).sum())
    / (len(v) * (len(v) - 1))
    for v in (x, y)
  )
  return float(inside - 2 * _total(x, y) / (len(x) * len(y)))


def _total(x: np.ndarray, y: np.ndarray) -> float:
  starts = range(0, len(x), _CHUNK)
  parts = (x[start : start + _CHUNK] @ y.T for start in starts)
  return float(sum(_kernel(part, x.shape[1]).sum() for part in parts))


def _kernel(products: np.ndarray, width: int) -> np.ndarray:
  return (products / width + 1) ** 3
