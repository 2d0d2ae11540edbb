"""Files that a kill cannot damage; `record/workdir_test` has the rest."""

import errno
import fcntl
import os
import pathlib

import pytest

from unlearning_jax import durable


def test_what_dead_writers_left_is_removed(tmp_path):
  part = tmp_path / "images" / ".a.png.0123abcd.part"
  part.parent.mkdir()
  living = ".b.png.0123abcd.part"
  # Another program's files, whatever their names end in.
  others = {".mine", ".cache.0123abcd", ".x.part"}
  for name in (part.name, living, *others):
    part.with_name(name).touch()
  with open(part.with_name(living), "rb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    durable.sweep(tmp_path)
  left = {path.name for path in part.parent.iterdir()}
  assert left == {living, *others}


def test_a_file_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
  swept, path = [], tmp_path / "a.txt"
  lock = fcntl.flock

  def late(file, how):
    if not swept:
      swept.append(file)
      # The first that is made has no lock yet.
      durable.sweep(tmp_path)
      assert not [*tmp_path.iterdir()]
    lock(file, how)

  monkeypatch.setattr(fcntl, "flock", late)
  with durable.replacing(path) as file:
    file.write(b"whole")
    durable.sweep(tmp_path)
  assert path.read_bytes() == b"whole" and [*tmp_path.iterdir()] == [path]


def test_the_file_of_a_dead_writer_is_known(tmp_path):
  with durable.replacing(tmp_path / "a.png") as file:
    left = pathlib.Path(str(file.name))
  left.touch()
  durable.sweep(tmp_path)
  assert not left.exists()


def test_a_lock_lasts_as_long_as_its_object(tmp_path):
  file = tmp_path / ".lock"
  held = durable.lock(file, tmp_path)
  # Within a process it is the same.
  assert durable.lock(file, tmp_path) is held
  with open(file) as other, pytest.raises(BlockingIOError):
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
  del held
  assert not file.exists()


def test_what_another_process_holds_is_refused(tmp_path):
  file = tmp_path / ".lock"
  with open(file, "w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(durable.BusyError, match="another run; wait for it"):
      durable.lock(file, tmp_path)
    assert file.exists()
  assert durable.lock(file, tmp_path)
  assert not file.exists()


def test_a_lock_whose_file_its_last_owner_removed_is_taken_anew(
  tmp_path, monkeypatch
):
  file, lock = tmp_path / ".lock", fcntl.flock

  def late(opened, how):
    monkeypatch.setattr(fcntl, "flock", lock)
    # Between the opening and the locking.
    file.unlink()
    lock(opened, how)

  monkeypatch.setattr(fcntl, "flock", late)
  held = durable.lock(file, tmp_path)
  with open(file) as other, pytest.raises(BlockingIOError):
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
  assert held


def test_half_a_line_is_taken_back(tmp_path, monkeypatch):
  lines = durable.JsonLines(tmp_path / "rows.jsonl")
  lines.append({"id": 1}, what="row")
  write = os.write

  def fails(file, data):
    if len(data) > 5:
      return write(file, data[:5])
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(os, "write", fails)
    with pytest.raises(OSError, match="No space left .*rows.jsonl") as error:
      lines.append({"id": 2}, what="row")
  assert durable.is_full(error.value)
  lines.append({"id": 3}, what="row")
  assert [row["id"] for row in lines.read()] == [1, 3]


def test_a_full_disk_is_known_below_other_errors():
  try:
    try:
      raise OSError(errno.ENOSPC, "full")
    except OSError as error:
      raise RuntimeError("no save") from error
  except RuntimeError as error:
    assert durable.is_full(error)
  assert not durable.is_full(ValueError("a"))
