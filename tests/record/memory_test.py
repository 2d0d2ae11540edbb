"""A record in memory says and refuses what one in a folder does."""

import numpy as np
import pytest

from unlearning_jax.record import Memory, Workdir

ROW = {"id": "a", "score": np.float32(0.5), "seen": (1, 2)}
IMAGE = np.zeros((2, 2, 3), np.uint8)


@pytest.fixture(params=["memory", "folder"])
def record(request, tmp_path):
  if request.param == "memory":
    return Memory(quiet=True)
  return Workdir(tmp_path / "run", {})


def test_rows_come_back_as_a_file_would_hold_them(record):
  record.append_row(ROW)
  assert record.rows() == [{"id": "a", "score": 0.5, "seen": [1, 2]}]
  assert record.done_ids() == {"a"}
  record.rows()[0]["score"] = 1.0
  assert record.rows()[0]["score"] == 0.5


@pytest.mark.parametrize(
  "row, message",
  [
    ({"score": 1}, "'id' must be"),
    ({"id": True}, "'id' must be"),
    ({"id": "b", "score": float("nan")}, "'b'"),
  ],
)
def test_rows_that_are_none(record, row, message):
  with pytest.raises(ValueError, match=message):
    record.append_row(row)
  assert record.rows() == []


def test_an_id_is_recorded_once(record):
  record.append_row(ROW)
  with pytest.raises(ValueError, match="'a'"):
    record.append_row(ROW)


def test_images_metrics_and_files(record):
  path = record.save_image("grid/0", IMAGE)
  assert path == "images/grid/0.png" and (record.path / path).is_file()
  with pytest.raises(ValueError, match="image name"):
    record.save_image("../0", IMAGE)
  record.metrics(3, loss=0.5)
  record.metrics(3, rate=0.1)
  assert record.read_metrics()[3]["loss"] == 0.5
  assert record.read_metrics()[3]["rate"] == 0.1
  assert not record.is_done
  record.mark_done()
  assert record.is_done and record.is_writer


def test_provenance_is_kept(record):
  record.record_provenance(devices={"count": 1}, judge_hashes={"one": "ab"})
  (start,) = record.provenance["runs"]
  assert start["judge_hashes"] == {"one": "ab"} and start["versions"]["jax"]
