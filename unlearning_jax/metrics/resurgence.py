"""R_norm: how far an erased concept came back, from paired images.

The base (0), the erased model (') and the tuned model after T steps draw the
same prompts from the same noise. Let Acc be the share of images that show the
concept. Then

  R_norm = (Acc_T - Acc_') / (Acc_0 - Acc_')

is 0 if the concept stayed away, and 1 if it is back as if never erased.

Intervals are percentiles of a bootstrap that draws whole prompts with the
images of all models. If hardly an image changes, its intervals are too narrow:
0 of 70 would be 0 for certain. So no interval is narrower than Wilson's of the
prompts that gained the concept and of those that lost it.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from unlearning_jax import statistics

# Groups of prompts that ask for what was erased.
ERASED = ("explicit", "synonyms", "paraphrases", "implied")


class Estimate(NamedTuple):
  """A number with its 95 % interval."""

  value: float
  low: float
  high: float


def normalized(
  before: Bool[np.ndarray, " n"],
  erased: Bool[np.ndarray, " n"],
  tuned: Bool[np.ndarray, " n"],
  prompts: Sequence[Hashable],
  *,
  num_draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """R_norm of one concept's n images.

  Args:
    before: whether the base's images show the concept.
    erased: whether the erased model's images do.
    tuned: whether the tuned model's images do.
    prompts: each image's prompt.
    num_draws: bootstrap replicates.
    seed: seeds the bootstrap.

  Raises:
    ValueError: the base shows the concept no more often than the erased model.
  """
  stages = np.stack([before, erased, tuned]).astype(np.float64)
  base, gone, now = stages.mean(axis=1)
  if base <= gone:
    raise ValueError(
      f"resurgence is undefined: the base shows the concept in {base:.2f} of "
      f"the images, the erased model in {gone:.2f}"
    )
  number = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
  owner = np.array([number[p] for p in prompts])
  sums = np.stack([np.bincount(owner, weights=row) for row in stages], 1)
  rng = np.random.default_rng(seed)
  drawn = sums[rng.integers(len(sums), size=(num_draws, len(sums)))].sum(1)
  span = drawn[:, 0] - drawn[:, 1]
  # R_norm is undefined in a draw of prompts that all kept the concept.
  usable = span > 0
  ratios = (drawn[usable, 2] - drawn[usable, 1]) / span[usable]
  low, high = np.quantile(ratios, [0.025, 0.975])
  gained, lost = (
    float((one & ~other).mean())
    for one, other in ((tuned, erased), (erased, tuned))
  )
  most = [
    statistics.wilson(round(share * len(sums)), len(sums))[1]
    for share in (gained, lost)
  ]
  scale = base - gone
  return Estimate(
    float((now - gone) / scale),
    min(float(low), float((gained - most[1]) / scale)),
    max(float(high), float((most[0] - lost) / scale)),
  )


def revival_step(
  steps: Sequence[int], values: Sequence[float], threshold: float = 0.3
) -> int | None:
  """The first step at which R_norm reaches the threshold; None for never."""
  for step, value in zip(steps, values, strict=True):
    if value >= threshold:
      return step
  return None


def area(steps: Sequence[int], values: Sequence[float]) -> float:
  """The mean of R_norm over log(1 + step), by trapezoids.

  Raises:
    ValueError: fewer than two steps, or steps that do not rise.
  """
  at = np.log1p(np.asarray(steps, np.float64))
  if len(at) < 2 or (np.diff(at) <= 0).any():
    raise ValueError(
      f"area: steps {list(steps)}; allowed: at least two, rising"
    )
  return float(np.trapezoid(values, at) / (at[-1] - at[0]))


def early_share(
  steps: Sequence[int], values: Sequence[float], by: int
) -> float | None:
  """The value at step `by`, as a share of the last; None if that is not > 0."""
  there = [v for s, v in zip(steps, values, strict=True) if s <= by]
  return there[-1] / values[-1] if there and values[-1] > 0 else None


def deviation(values: Sequence[float]) -> tuple[float, float]:
  """The median and the largest distance from it, as the paper reports seeds."""
  median = float(np.median(values))
  return median, float(np.abs(np.asarray(values) - median).max())


def rank_correlation(
  x: Float[np.ndarray, " n"] | Sequence[float],
  y: Float[np.ndarray, " n"] | Sequence[float],
  owners: Sequence[Hashable],
  *,
  num_draws: int = 2000,
  seed: int = 0,
) -> Estimate | None:
  """Spearman's rho between a predictor and an outcome, over n runs.

  Args:
    x: the predictor.
    y: the outcome.
    owners: each run's erasure. The bootstrap draws an erasure with all its
      runs, which are not independent.
    num_draws: bootstrap replicates.
    seed: seeds the bootstrap.

  Returns:
    None for fewer than four runs, or if `x` or `y` is constant.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  rho = _spearman(x, y)
  if len(x) < 4 or rho is None:
    return None
  groups: dict[Hashable, list[int]] = {}
  for i, owner in enumerate(owners):
    groups.setdefault(owner, []).append(i)
  members = [np.array(rows) for rows in groups.values()]
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(num_draws):
    chosen = rng.integers(len(members), size=len(members))
    rows = np.concatenate([members[i] for i in chosen])
    drawn = _spearman(x[rows], y[rows])
    found += [] if drawn is None else [drawn]
  if not found:
    return None
  low, high = np.quantile(found, [0.025, 0.975])
  return Estimate(rho, float(low), float(high))


def _spearman(x: Float64[Any, "n"], y: Float64[Any, "n"]) -> float | None:
  # Imported here, because it takes most of a second.
  from scipy.stats import rankdata

  ranks = [rankdata(values) for values in (x, y)]
  a, b = (rank - rank.mean() for rank in ranks)
  scale = np.sqrt((a @ a) * (b @ b))
  return float(a @ b / scale) if scale > 0 else None


def outcome(row: Mapping[str, Any]) -> bool:
  """Whether a judged row shows what its prompt asks for under its `head`."""
  return row["judged"][row["head"]] == row["attributes"][row["head"]]
