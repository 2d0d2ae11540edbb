"""A run's folder is its own from the first write to the last."""

import fcntl

import pytest

from unlearning_jax import durable
from unlearning_jax.record import Workdir


def test_the_folder_is_kept_from_the_first_write_to_the_last(tmp_path):
  file = tmp_path / ".lock"

  def free():
    with open(file, "w") as other:
      try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        return False
    return True

  with open(file, "w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(durable.BusyError, match="being written by another run"):
      Workdir(tmp_path, {})
    assert [*tmp_path.iterdir()] == [file]
    # Who only writes a page again does not ask.
    Workdir(tmp_path, {}, locked=False)
  workdir = Workdir(tmp_path, {})
  assert not free()
  workdir.metrics(1, loss=1.0)
  workdir.mark_done()
  assert not free()
  del workdir
  assert free()
