"""A run's folder is its own from the first write to the last."""

import dataclasses
import fcntl

import pytest

from unlearning_jax import durable
from unlearning_jax.experiments import common
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
    # A start that only writes the page again asks for no lock.
    Workdir(tmp_path, {}, locked=False)
  workdir = Workdir(tmp_path, {})
  assert not free()
  workdir.metrics(1, loss=1.0)
  workdir.mark_done()
  assert not free()
  del workdir
  assert free()


@dataclasses.dataclass(frozen=True)
class Given:
  seed: int = 0


def test_a_folder_that_one_of_several_processes_cannot_open(
  tmp_path, monkeypatch
):
  """Is no stage's own failure: the others wait for this process."""
  (tmp_path / "notes.md").touch()
  with pytest.raises(ValueError, match="notes.md") as alone:
    common.workdir(str(tmp_path), {}, Given)
  assert not isinstance(alone.value, durable.BusyError)
  monkeypatch.setattr("jax.process_count", lambda: 2)
  with pytest.raises(durable.BusyError, match="notes.md"):
    common.workdir(str(tmp_path), {}, Given)


def test_a_held_lock_whose_file_is_gone_is_taken_anew(tmp_path):
  file = tmp_path / ".lock"
  held = durable.lock(file, tmp_path)
  file.unlink()
  again = durable.lock(file, tmp_path)
  assert again is not held and file.exists()


def test_no_remedy_deletes_rows(tmp_path):
  file = tmp_path / "results.jsonl"
  with open(file, "w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(durable.BusyError, match="put a copy in the place of"):
      durable.JsonLines(file).append({"id": 1}, what="row")
