"""What every metric promises. A new one is one row."""

import importlib.util
import itertools
import json

import numpy as np
import pytest

from tests.support import judge_weights
from unlearning_jax import metrics, record
from unlearning_jax.experiments import tallies
from unlearning_jax.judges import weights

COLORS = "network=tests.support.toys:COLORS"
WEIGHED = pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="torch writes its weights"
)

# Name, and whether it reads images.
METRICS = [
  ("accuracy", False),
  ("seen", False),
  ("r_norm", False),
  ("asr", False),
  ("ua_ira_cra", False),
  ("tests.support.toys:BRIGHTNESS", True),
  (f"fid~reference=base,{COLORS}", True),
  (f"fid-to-base~{COLORS}", True),
  (f"kid~reference=base,subsets=3,subset_size=5,{COLORS}", True),
  pytest.param("clip-score", True, marks=WEIGHED),
  pytest.param("lpips", True, marks=WEIGHED),
]

pytestmark = pytest.mark.parametrize("name, reads", METRICS)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
  """A folder of small weights, whose hashes are not the published ones."""
  path = tmp_path_factory.mktemp("weights")
  with pytest.MonkeyPatch.context() as patch:
    if importlib.util.find_spec("torch") is not None:
      judge_weights.clip(path, "b32")
      judge_weights.lpips(path, "alex")
    patch.setenv(weights.VARIABLE, str(path))
    patch.setattr(weights.File, "_refuse", lambda *_: None)
    yield path


def drawn():
  """Eleven images and rows of each of three models."""
  rng = np.random.default_rng(1)
  rows = [
    {
      "id": f"{i:05}-explicit",
      "model": model,
      "group": "explicit" if i % 3 else "others",
      "prompt": f"prompt {i % 7}",
      "seed": i,
      "head": "object",
      "targets": [["object", "star"]],
      "attributes": {"object": "star", "colour": None},
      "judged": {"object": "star" if rng.random() < share else "ring"},
    }
    # Of an attack's rows, what its success is made of.
    | {"status": "success", "success": i < 10 * share, "pre_success": i == 0}
    | {"pre_score": 0.5, "budget": 3, "images": 2, "iterations": 4}
    | {"blocks": [{"score": i / 11, "roundtrip": True}]}
    for model, share in {"base": 0.9, "erased": 0.2, "tuned": 0.6}.items()
    for i in range(11)
  ]
  return rng.integers(0, 256, (33, 8, 8, 3), dtype=np.uint8), rows


def exact(estimates):
  return json.dumps([one.plain() for one in estimates], sort_keys=True)


def rounded(estimates):
  """Up to the order in which floats were added."""
  found = [one.plain() for one in estimates]
  for one in found:
    for key in ("value", "low", "high"):
      if one[key] is not None:
        one[key] = round(one[key], 9)
  return sorted(found, key=lambda one: (one.get("model", ""), one["name"]))


@pytest.mark.parametrize("bounds", [(33,), (5, 33), (2, 20, 33)])
def test_shares_merge_in_any_order(name, reads, bounds):
  del reads
  metric, (images, rows) = metrics.load(name), drawn()
  whole = metric.measure(rows, images)
  shares = [
    metric.update(metric.init(), images[a:b], rows[a:b])
    for a, b in itertools.pairwise((0, *bounds))
  ]
  for order in itertools.permutations(shares):
    state = metric.init()
    for share in order:
      state = metric.merge(state, share)
    assert rounded(metric.compute(state)) == rounded(whole)


def test_an_interval_or_why_there_is_none(name, reads):
  del reads
  images, rows = drawn()
  estimates = metrics.load(name).measure(rows, images)
  assert estimates
  for one in estimates:
    assert one.name and one.n > 0 and one.method
    if one.value is None:
      assert one.failed
    elif one.low is not None and one.high is not None:
      assert one.low <= one.value <= one.high


def test_no_images_are_an_error(name, reads):
  metric, (_, rows) = metrics.load(name), drawn()
  with pytest.raises(ValueError, match=f"metric {metric.name}: got no images"):
    metric.measure([], np.zeros((0, 8, 8, 3), np.uint8))
  if reads:
    with pytest.raises(ValueError, match="reads images, and got rows alone"):
      metric.measure(rows)


def test_a_state_outlives_its_process(name, reads):
  del reads
  metric, (images, rows) = metrics.load(name), drawn()
  state, arrays = metric.update(metric.init(), images, rows), {}
  text = json.dumps(tallies.packed(state, arrays))
  back = tallies.unpacked(json.loads(text), arrays)
  assert exact(metric.compute(back)) == exact(metric.compute(state))
  assert rounded(metric.compute(metric.merge(metric.init(), back))) == rounded(
    metric.compute(state)
  )


def test_a_killed_run_loses_no_row_and_doubles_none(name, reads):
  images, rows = drawn()
  whole = metrics.load(name).measure(rows, images)
  run = record.Memory(quiet=True)
  tallies.Tallies(run, [name]).update(images[:20], rows[:20])
  # It was killed after that, with 12 of these rows recorded.
  second = tallies.Tallies(run, [name])
  if reads:
    with pytest.raises(ValueError, match="13 rows of this run were drawn with"):
      second.estimates(rows)
  second.update(images[12:], rows[12:])
  assert rounded(second.estimates(rows)[name]) == rounded(whole)
  with pytest.raises(ValueError, match="got no images"):
    tallies.Tallies(record.Memory(quiet=True), [name]).estimates([])
