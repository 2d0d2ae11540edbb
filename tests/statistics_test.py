"""Intervals and tests against published figures, scipy and simulation."""

import numpy as np
import pytest
from scipy import stats

from unlearning_jax import statistics

# 95 % Wilson intervals in percent, worked out by hand for the benchmark's N.
WILSON = {
  (30, 142): (15.2, 28.6),
  (104, 142): (65.4, 79.8),
  (16, 142): (7.1, 17.5),
  (0, 142): (0, 2.6),
  (16, 50): (20.8, 45.8),
  (1, 50): (0.4, 10.5),
  (0, 50): (0, 7.1),
  (3, 50): (2.1, 16.2),
}


@pytest.mark.parametrize("counts", WILSON)
def test_wilson_published(counts):
  got = [round(100 * end, 1) for end in statistics.wilson(*counts)]
  assert tuple(got) == WILSON[counts]


@pytest.mark.parametrize("n", [1, 7, 500])
def test_wilson_against_scipy(n):
  for k in range(0, n + 1, max(1, n // 7)):
    want = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
    got = statistics.wilson(k, n, 0.9)
    np.testing.assert_allclose(got, (want.low, want.high), atol=1e-12)
    assert 0 <= got[0] <= k / n <= got[1] <= 1


@pytest.mark.parametrize("k, n", [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(k, n):
  with pytest.raises(ValueError, match=f"got k={k}, n={n}"):
    statistics.wilson(k, n)


@pytest.mark.parametrize("lost, gained", [(0, 0), (5, 0), (3, 9), (40, 41)])
def test_mcnemar_is_the_binomial_test(lost, gained):
  same = [(0, 0)] * 4 + [(1, 1)] * 6
  pairs = np.array([(1, 0)] * lost + [(0, 1)] * gained + same, bool)
  want = 1.0
  if lost + gained:
    want = stats.binomtest(lost, lost + gained).pvalue
  got = statistics.mcnemar(pairs[:, 0], pairs[:, 1])
  assert got == pytest.approx(want, rel=1e-12)


def test_mcnemar_survives_large_counts():
  before = np.ones(3000, bool)
  assert 0 <= statistics.mcnemar(before, ~before) < 1e-300


def test_bootstrap_covers_the_truth_about_95_times_in_100():
  rng = np.random.default_rng(0)
  covered = 0
  for trial in range(200):
    # A drop of 0.3, and prompts that differ: 40 prompts of 3 images.
    ease = rng.uniform(0.4, 0.9, 40).repeat(3)
    before = rng.random(120) < ease
    after = rng.random(120) < ease - 0.3
    prompts = np.arange(40).repeat(3).tolist()
    mean, low, high = statistics.paired_bootstrap(
      before, after, prompts, num_draws=400, seed=trial
    )
    assert low <= mean <= high
    covered += low <= -0.3 <= high
  assert 180 <= covered <= 198, covered


def test_bootstrap_over_prompts_is_wider_than_over_images():
  # Every prompt's ten images share their fate.
  before = np.ones(200, bool)
  after = (np.arange(20) % 2).astype(bool).repeat(10)
  prompts = [f"prompt {i}" for i in range(20) for _ in range(10)]
  _, low, high = statistics.paired_bootstrap(before, after, prompts)
  _, low1, high1 = statistics.paired_bootstrap(before, after, range(200))
  assert high - low > 2 * (high1 - low1)
  assert (low, high) == statistics.paired_bootstrap(before, after, prompts)[1:]


def test_bootstrap_refuses_what_is_not_paired():
  with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
    statistics.paired_bootstrap(np.zeros(2), np.zeros(3), [1, 2])
  with pytest.raises(ValueError, match="1 prompts for 2 images"):
    statistics.paired_bootstrap(np.zeros(2), np.zeros(2), [1])
  with pytest.raises(ValueError, match="n >= 1"):
    statistics.mcnemar(np.zeros(0, bool), np.zeros(0, bool))


# multipletests(p, method="holm") of statsmodels 0.15.0.
HOLM = [
  ([0.01, 0.04, 0.03, 0.5], [0.04, 0.09, 0.09, 0.5]),
  (
    [0.2, 0.001, 0.0499, 0.012, 0.03, 0.8],
    [0.4, 0.006, 0.1497, 0.06, 0.12, 0.8],
  ),
  ([0.6, 0.9], [1.0, 1.0]),
]


@pytest.mark.parametrize("p, wanted", HOLM)
def test_holm_is_statsmodels(p, wanted):
  got = statistics.holm({str(i): one for i, one in enumerate(p)})
  np.testing.assert_allclose([*got.values()], wanted, rtol=1e-12)


def test_holm_by_hand():
  p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}
  got = statistics.holm(p)
  assert list(got) == list(p)
  assert got == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.5})
