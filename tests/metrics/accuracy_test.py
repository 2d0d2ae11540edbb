"""Accuracy by head, class and group; changes against the base."""

import numpy as np
import pytest

from unlearning_jax import statistics
from unlearning_jax.judges import Judge
from unlearning_jax.metrics import accuracy

HEADS = {"object": ("star", "ring"), "colour": ("red", "blue", "green")}
JUDGE = Judge("toy", lambda images: {}, HEADS)


def judged_rows():
  rows = [
    {"group": "explicit", "attributes": {"object": "star", "colour": 0}},
    {"group": "explicit", "attributes": {"object": 0, "colour": -1}},
    {"group": "synonyms", "attributes": {"object": "star", "colour": None}},
    {"group": "others", "attributes": {"object": "ring", "colour": "blue"}},
  ]
  rows = [{"id": i, "prompt": f"p{i}", **row} for i, row in enumerate(rows)]
  scores = {
    "object": np.eye(2)[[0, 1, 0, 1]],
    "colour": np.eye(3)[[0, 0, 1, 2]],
  }
  return accuracy.judge_rows(rows, scores, JUDGE)


def test_accuracy_per_head_class_and_group():
  counts = {m.name: (m.k, m.n) for m in accuracy.measure(judged_rows())}
  assert counts == {
    "object/star/explicit": (1, 2),
    "object/star/synonyms": (1, 1),
    "object/star/all": (2, 3),
    "object/all/explicit": (1, 2),
    "object/all/synonyms": (1, 1),
    "object/ring/others": (1, 1),
    "object/ring/all": (1, 1),
    "object/all/others": (1, 1),
    "object/all/all": (3, 4),
    "colour/red/explicit": (1, 1),
    "colour/red/all": (1, 1),
    "colour/all/explicit": (1, 1),
    "colour/blue/others": (0, 1),
    "colour/blue/all": (0, 1),
    "colour/all/others": (0, 1),
    "colour/all/all": (1, 2),
  }
  for m in accuracy.measure(judged_rows()):
    assert m.value == m.k / m.n
    assert (m.low, m.high) == statistics.wilson(m.k, m.n)


def test_judged_rows_speak_in_names():
  row = judged_rows()[1]
  assert row["attributes"] == {"object": "star", "colour": None}
  assert row["judged"] == {"object": "ring", "colour": "red"}
  assert row["id"] == 1


@pytest.mark.parametrize(
  "attributes, message",
  [
    ({"object": "sun"}, "object 'sun': the judge knows .'star', 'ring'"),
    ({"object": 2}, "object 2: the judge knows"),
    ({"style": "neon"}, "attribute 'style': the judge has heads"),
  ],
)
def test_what_the_judge_does_not_know_is_refused(attributes, message):
  scores = {"object": np.ones((1, 2)), "colour": np.ones((1, 3))}
  row = {"group": "others", "attributes": attributes}
  with pytest.raises(ValueError, match=message):
    accuracy.judge_rows([row], scores, JUDGE)
  with pytest.raises(ValueError, match=r"'colour': shape .*allowed: \(1, 3\)"):
    accuracy.judge_rows([row], {"object": np.ones((1, 2))}, JUDGE)


def test_changes_are_paired():
  before = judged_rows()
  after = [{**r, "judged": {**r["judged"], "object": "ring"}} for r in before]
  changes = {c.name: c for c in accuracy.compare(before, after)}
  assert set(changes) == {m.name for m in accuracy.measure(before)}
  star = changes["object/star/all"]
  assert star.value == pytest.approx(-2 / 3) and star.low == -1
  assert star.p == pytest.approx(0.5)
  assert changes["colour/all/all"].value == 0
  repeated = [{**r, "prompt": "same"} for r in before]
  again = {c.name: c for c in accuracy.compare(repeated, repeated)}
  assert again["object/all/all"].p is None
  with pytest.raises(ValueError, match="row 0 is not a pair: prompt"):
    list(accuracy.compare(before, repeated))


def test_several_seeds_of_a_prompt_are_not_so_many_prompts():
  """Ten prompts of which each has its fate; five images of each are no news."""
  rows = [
    {
      "group": "explicit", "prompt": f"prompt {i}", "repeat": j, "model": "x",
      "id": f"{i}/{j}", "attributes": {"object": "star"},
      "judged": {"object": "star" if i % 2 else "ring"},
    }
    for i in range(10)
    for j in range(5)
  ]  # fmt: skip
  once = [row for row in rows if not row["repeat"]]
  (all_, *_), (alone, *_) = map(accuracy.METRIC.measure, (rows, once))
  assert (all_.k, all_.n, all_.clusters, all_.method) == (
    25,
    50,
    10,
    "bootstrap",
  )
  assert (alone.k, alone.n, alone.clusters, alone.method) == (
    5,
    10,
    0,
    "wilson",
  )
  # Images from one generator are told by `sample`.
  samples = [{**row, "sample": row["repeat"]} for row in rows]
  for row in samples:
    del row["repeat"]
  assert next(iter(accuracy.METRIC.measure(samples))) == all_
  # Where all prompts agree, there are ten of them, not 50.
  right = [{**row, "judged": row["attributes"]} for row in rows]
  sure = next(iter(accuracy.METRIC.measure(right)))
  assert (sure.low, sure.high) == statistics.wilson(10, 10)
  low, high = statistics.wilson(25, 50)
  assert all_.high - all_.low > 1.7 * (high - low)
