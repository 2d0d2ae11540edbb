"""Batches: every row once an epoch, and nothing depends on what came before."""

import numpy as np
import pytest

from unlearning_jax.data import Batches, taken


def batches(rows=23, size=4, **options):
  arrays = {"x": np.arange(rows), "y": np.arange(rows)[:, None] * [1.0, -1.0]}
  return Batches(arrays, size, **options)


def epoch(data, number):
  steps = data.steps_per_epoch
  return np.concatenate(
    [data[step]["x"] for step in range(number * steps, (number + 1) * steps)]
  )


def test_an_epoch_visits_each_row_once():
  data = batches(rows=24)
  assert data.steps_per_epoch == 6
  orders = [epoch(data, number) for number in range(3)]
  for order in orders:
    assert sorted(order) == list(range(24))
  # Shuffled, and anew each time.
  assert len({tuple(order) for order in (*orders, range(24))}) == 4


def test_the_incomplete_last_batch_is_left_out():
  data = batches(rows=23)
  assert data.steps_per_epoch == 5
  assert all(len(data[step]["x"]) == 4 for step in range(11))
  assert len(set(epoch(data, 0))) == 20
  # Not always the same rows.
  seen = set().union(*(epoch(data, number) for number in range(5)))
  assert seen == set(range(23))


def test_a_batch_depends_on_its_step_and_the_seed_only():
  in_order, fresh = batches(), batches()
  history = [in_order[step] for step in range(20)]
  for step in (17, 3, 17, 0):
    np.testing.assert_array_equal(fresh[step]["x"], history[step]["x"])
  assert not np.array_equal(batches(seed=1)[0]["x"], fresh[0]["x"])


def test_arrays_stay_together():
  batch = batches()[7]
  np.testing.assert_array_equal(batch["y"], batch["x"][:, None] * [1.0, -1.0])


def test_processes_together_have_the_batches_of_one():
  whole = batches(size=6)
  parts = [batches(size=6, part=(i, 3)) for i in range(3)]
  for step in (0, 2, 7):
    found = [part[step]["x"] for part in parts]
    assert [len(rows) for rows in found] == [2, 2, 2]
    np.testing.assert_array_equal(np.concatenate(found), whole[step]["x"])
  with pytest.raises(ValueError, match="batch_size=4: 3 processes"):
    batches(part=(0, 3))


def test_errors():
  with pytest.raises(ValueError, match="unequal length.*'x': 3.*'y': 4"):
    Batches({"x": np.zeros(3), "y": np.zeros(4)}, 1)
  with pytest.raises(ValueError, match="no arrays"):
    Batches({}, 1)
  for size in (0, 8):
    with pytest.raises(ValueError, match=f"batch_size={size}.*1 and the 7"):
      batches(rows=7, size=size)


def captioned(**options):
  """Three images with 1, 3 and 2 captions; a caption's row says whose it is."""
  arrays = {
    "image": np.arange(3), "context": np.array([0, 10, 11, 12, 20, 21]),
    "first_caption": np.array([0, 1, 4]), "captions": np.array([1, 3, 2]),
  }  # fmt: skip
  return Batches(arrays, 3, **options)


def test_every_epoch_draws_one_of_an_images_captions():
  data, seen = captioned(), set()
  for step in range(40):
    batch = data[step]
    assert set(batch) == {"image", "context"}
    np.testing.assert_array_equal(batch["context"] // 10, batch["image"])
    seen |= set(batch["context"].tolist())
  assert seen == {0, 10, 11, 12, 20, 21}
  # A function of seed, epoch and row.
  again = [captioned()[step]["context"] for step in (7, 3)]
  np.testing.assert_array_equal(again, [data[7]["context"], data[3]["context"]])
  other = captioned(seed=1)
  assert any(
    not np.array_equal(other[i]["context"], data[i]["context"])
    for i in range(9)
  )


def test_one_caption_each_is_shuffled_as_rows_without_captions_are():
  arrays = {"image": np.arange(23), "context": np.arange(23)}
  ones = {"first_caption": np.arange(23), "captions": np.ones(23, int)}
  plain, counted = Batches(arrays, 4), Batches(arrays | ones, 4)
  for step in range(12):
    for name in arrays:
      np.testing.assert_array_equal(plain[step][name], counted[step][name])


def test_the_first_caption_without_a_draw():
  found = taken(captioned().arrays, np.array([2, 1]))
  assert found["context"].tolist() == [20, 10]
