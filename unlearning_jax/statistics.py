"""Intervals and paired tests for counts of images.

A percentage always comes with its count and interval. Methods that were tried
on the same prompts are compared prompt by prompt.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Real


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
  """Wilson's score interval for `k` successes in `n` trials.

  With z the normal quantile and p = k / n:
  (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

  Example:
    >>> low, high = wilson(30, 142)
    >>> f"{low:.3f} {high:.3f}"
    '0.152 0.286'

  Raises:
    ValueError: n < 1, or k outside 0..n.
  """
  if n < 1 or not 0 <= k <= n:
    raise ValueError(f"wilson: want 0 <= k <= n and n >= 1, got k={k}, n={n}")
  z = NormalDist().inv_cdf(0.5 + confidence / 2)
  p = k / n
  centre = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  # Rounding would miss these exact ends by one unit in the last place.
  low = 0.0 if k == 0 else (centre - half) / scale
  high = 1.0 if k == n else (centre + half) / scale
  return low, high


def mcnemar(
  before: Bool[np.ndarray, " n"], after: Bool[np.ndarray, " n"]
) -> float:
  """The exact two-sided McNemar test: did paired outcomes change?

  Without a change, half of the pairs that differ would go each way. With b and
  c pairs that differ in the one and the other way, the p value is
  min(1, 2 P(Binomial(b + c, 1/2) <= min(b, c))), and 1 if no pair differs.

  Args:
    before: outcomes; pairs must be independent, so one per prompt.
    after: outcomes of the same prompts.
  """
  before, after = _paired(before, after)
  lost = int(np.sum(before & ~after))
  gained = int(np.sum(~before & after))
  differ = lost + gained
  tail = sum(math.comb(differ, i) for i in range(min(lost, gained) + 1))
  # Integers until the last division, because 2.0**-n is 0 beyond n = 1074.
  return min(1.0, 2 * tail / 2**differ)


def paired_bootstrap(
  before: Real[np.ndarray, " n"] | Bool[np.ndarray, " n"],
  after: Real[np.ndarray, " n"] | Bool[np.ndarray, " n"],
  prompts: Sequence[Hashable],
  *,
  num_draws: int = 10_000,
  confidence: float = 0.95,
  seed: int = 0,
) -> tuple[float, float, float]:
  """The mean of `after - before` with a percentile interval over prompts.

  It draws whole prompts with all their images. Images of one prompt resemble
  each other, so drawing single images would make the interval too narrow.

  Args:
    before: outcomes or scores, one per image.
    after: those of the same images under the other model.
    prompts: which prompt each image belongs to.
    num_draws: bootstrap replicates.
    confidence: of the interval.
    seed: of the draws.

  Returns:
    (difference, low, high).

  Raises:
    ValueError: lengths differ, or there are no images.
  """
  before, after = _paired(before, after)
  difference = after.astype(np.float64) - before.astype(np.float64)
  if len(prompts) != len(difference):
    raise ValueError(
      f"bootstrap: {len(prompts)} prompts for {len(difference)} images"
    )
  number = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
  owner = np.array([number[p] for p in prompts])
  sums = np.bincount(owner, weights=difference)
  counts = np.bincount(owner).astype(np.float64)
  rng = np.random.default_rng(seed)
  means = []
  chunk = max(1, 2**20 // len(sums))  # draws at a time: a few MB
  for start in range(0, num_draws, chunk):
    size = (min(chunk, num_draws - start), len(sums))
    drawn = rng.integers(len(sums), size=size)
    means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
  tail = (1 - confidence) / 2
  low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
  return float(difference.mean()), float(low), float(high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
  """Holm's correction of p values for several comparisons.

  The i-th smallest of m, from i = 0, is multiplied by m - i, but stays at least
  as large as the corrected value before it.
  """
  adjusted: dict[str, float] = {}
  running = 0.0
  ranked = sorted(p_values.items(), key=lambda item: item[1])
  for i, (name, p) in enumerate(ranked):
    running = max(running, min(1.0, p * (len(ranked) - i)))
    adjusted[name] = running
  return {name: adjusted[name] for name in p_values}


def _paired(
  before: np.ndarray, after: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  before, after = np.asarray(before), np.asarray(after)
  if before.shape != after.shape or before.ndim != 1 or not before.size:
    raise ValueError(
      "paired outcomes: want two (n,) arrays, n >= 1, got shapes "
      f"{before.shape} and {after.shape}"
    )
  return before, after
