"""FID, KID, LPIPS and CLIP score against independent computations.

Goldens are of packages that are not installed here; see `tests/goldens`.
"""

import dataclasses

import numpy as np
import pytest

from tests.support import toys
from unlearning_jax import metrics
from unlearning_jax.metrics import kid, moments, samples
from unlearning_jax.metrics.features import Features

COLORS = "network=tests.support.toys:COLORS"


def far(x, y):
  """The distance by eigenvalues of the product, which is not symmetric."""
  a, b = (np.cov(v, rowvar=False) for v in (x, y))
  roots = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()
  apart = np.square(x.mean(0) - y.mean(0)).sum()
  return apart + np.trace(a) + np.trace(b) - 2 * roots


def rows_of(n, model="images"):
  return [
    {"id": f"{i:04}", "model": model, "group": "g", "prompt": "p", "seed": i}
    for i in range(n)
  ]


def gaussian(x):
  return moments.gaussian(moments.add({}, x, rows_of(len(x)))["images"])


def test_the_distance_of_normal_distributions():
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(6, 6))
  x, y = rng.normal(size=(2, 400, 6))
  y = y @ mix + 1
  first, second = gaussian(x), gaussian(y)
  np.testing.assert_allclose(first.covariance, np.cov(x, rowvar=False))
  assert moments.frechet(first, second) == pytest.approx(far(x, y), rel=1e-9)
  assert moments.frechet(first, first) == pytest.approx(0, abs=1e-9)
  # A shift adds its square; a rotation of both changes nothing.
  moved = moments.frechet(first, gaussian(x + [3, 0, 0, 0, 0, 0]))
  assert moved == pytest.approx(9, rel=1e-9)
  turn, _ = np.linalg.qr(mix)
  turned = moments.frechet(gaussian(x @ turn), gaussian(y @ turn))
  assert turned == pytest.approx(far(x, y), rel=1e-9)
  # Of fewer vectors than features too: roots of what is 0 stay 0.
  few = rng.normal(size=(2, 4, 6))
  found = moments.frechet(*map(gaussian, few))
  assert found == pytest.approx(far(*few), rel=1e-6)


def test_the_mean_discrepancy_by_single_pairs():
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)) + 0.5

  def kernel(a, b):
    return (a @ b / 3 + 1) ** 3

  def inside(v):
    pairs = [(i, j) for i in range(len(v)) for j in range(len(v)) if i != j]
    return np.mean([kernel(v[i], v[j]) for i, j in pairs])

  across = np.mean([kernel(a, b) for a in x for b in y])
  wanted = inside(x) + inside(y) - 2 * across
  assert kid.mmd(x, y) == pytest.approx(wanted, rel=1e-12)


def test_the_mean_discrepancy_is_unbiased(monkeypatch):
  monkeypatch.setattr(kid, "_CHUNK", 7)
  rng = np.random.default_rng(2)
  drawn = [kid.mmd(*rng.normal(size=(2, 20, 4))) for _ in range(300)]
  assert abs(np.mean(drawn)) < 3 * np.std(drawn) / 300**0.5
  assert min(drawn) < 0


def test_too_few_pictures_are_refused_or_named():
  name = f"fid-to-base~{COLORS}"
  rng = np.random.default_rng(3)
  images = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
  rows = rows_of(6, "base") + rows_of(6)
  (one,) = metrics.load(name).measure(rows, images)
  assert one.value is None and one.name == "fid-to-base/colors/6"
  assert "6 pictures: the covariance of 6 features needs more" in one.failed
  (one,) = metrics.load(f"{name},few=allow").measure(rows, images)
  assert one.value > 0 and one.name == "fid-to-base-rank-deficient/colors/6"
  (one,) = metrics.load(name).measure(rows[:11], images[:11])
  assert one.failed == "the base drew 6 pictures, and this model 5"
  (one,) = metrics.load(f"{name},count=9").measure(rows, images)
  assert one.failed.startswith("6 pictures, and 9 are wanted")
  (one,) = metrics.load(name).measure(rows[:6], images[:6])
  assert one.failed == "no model but the base drew anything"


def test_a_spread_needs_subsets_smaller_than_the_set():
  rng = np.random.default_rng(4)
  images = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
  rows = rows_of(6, "base") + rows_of(6)
  name = f"kid~reference=base,subsets=4,{COLORS}"
  (one,) = metrics.load(f"{name},subset_size=6").measure(rows, images)
  assert one.low is None and "a spread needs smaller subsets" in one.method
  x, y = toys.COLORS(images[6:]), toys.COLORS(images[:6])
  assert one.value == pytest.approx(kid.mmd(x, y), rel=1e-4)
  value, spread = metrics.load(f"{name},subset_size=5").measure(rows, images)
  assert spread.name == "kid-spread/colors/6" and spread.value > 0
  assert "mean of 4 subsets of 5" in value.method
  # Of some of the pictures only, and named so.
  few, _ = metrics.load(f"{name},subset_size=4,most=5").measure(rows, images)
  assert (few.name, few.n) == ("kid/colors/5-of-6", 5)
  with pytest.raises(ValueError, match="most=3: must be subset_size=5"):
    metrics.load(f"{name},subset_size=5,most=3")


def test_features_that_are_no_numbers_are_refused():
  broken = Features("b", 2, lambda x: np.full((len(x), 2), np.nan), "b")
  with pytest.raises(ValueError, match="NaN or infinity for 3 of 3 images"):
    broken(np.zeros((3, 4, 4, 3), np.uint8))
  short = dataclasses.replace(toys.COLORS, width=7)
  with pytest.raises(ValueError, match=r"\(3, 6\); wanted \(3, 7\)"):
    short(np.zeros((3, 4, 4, 3), np.uint8))


def test_a_sample_is_the_same_in_any_order():
  rng = np.random.default_rng(5)
  names = [f"row {i}" for i in range(40)]
  values = np.arange(40)[:, None]
  kept = []
  for _ in range(3):
    order, state = rng.permutation(40), {}
    for part in np.split(order, [7, 20]):
      ids = [names[i] for i in part]
      state = samples.add(state, "m", ids, values[part], most=9)
    kept.append(state["m"])
    assert [names[i] for i in state["m"]["arrays"][:, 0]] == state["m"]["ids"]
  assert kept[0]["n"] == 40 and len(kept[0]["ids"]) == 9
  assert kept[0]["ids"] == kept[1]["ids"] == kept[2]["ids"]


@pytest.mark.parametrize("name", ["fid", "kid~most=10,subset_size=5"])
def test_a_state_is_as_large_for_any_number_of_pictures(name):
  joined = "," if "~" in name else "~"
  metric = metrics.load(f"{name}{joined}reference=base,{COLORS}")
  image = np.zeros((10, 8, 8, 3), np.uint8)
  state, sizes = metric.init(), []
  for start in range(0, 100, 10):
    rows = [r | {"id": f"{start} {r['id']}"} for r in rows_of(10)]
    state = metric.update(state, image, rows)
    sizes.append(sum(np.size(v) for v in state["images"].values()))
  assert len(set(sizes)) == 1 and state["images"]["n"] == 100


def test_options_and_spellings():
  with pytest.raises(ValueError, match="did you mean 'reference'|reference"):
    metrics.load("fid~referense=base")
  with pytest.raises(ValueError, match="accuracy has no options"):
    metrics.load("accuracy~x=1")
  with pytest.raises(ValueError, match="count='many' is not a int"):
    metrics.load("fid~count=many")
  with pytest.raises(ValueError, match="network=.* is Judge, not metrics.feat"):
    metrics.load("fid~reference=base,network=tests.support.toys:WARMTH")
  assert metrics.load(f"fid_to_base~{COLORS}").name == "fid-to-base"
  assert {"clip-score", "fid", "r_norm"} <= set(metrics.names())
  assert "fid" in metrics.reading("measure")
  assert "accuracy" not in metrics.reading("measure")


@pytest.mark.parametrize("name", ["fid-to-base", "clip-score", "lpips"])
def test_what_is_missing_is_named(name, tmp_path):
  with pytest.raises(ValueError, match=f"metric {name}: .* is missing: it is"):
    metrics.load(name, judges_dir=str(tmp_path))
