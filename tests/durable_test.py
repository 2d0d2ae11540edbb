"""Files that a kill cannot damage; `record/workdir_test` has the rest."""

import fcntl
import os
import pathlib

from unlearning_jax import durable


def test_what_dead_writers_left_is_removed(tmp_path):
  part = tmp_path / "images" / ".a.png.0123abcd.part"
  part.parent.mkdir()
  living, new = ".b.png.0123abcd.part", ".new.png.0123abcd.part"
  # Another program's files, whatever their names end in.
  others = {".mine", ".cache.0123abcd", ".x.part"}
  for name in (part.name, living, new, *others):
    part.with_name(name).touch()
    if name != new:
      os.utime(part.with_name(name), (1e9, 1e9))
  with open(part.with_name(living), "rb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    durable.sweep(tmp_path)
  left = {path.name for path in part.parent.iterdir()}
  assert left == {living, new, *others}


def test_the_file_of_a_dead_writer_is_known(tmp_path):
  with durable.replacing(tmp_path / "a.png") as file:
    left = pathlib.Path(str(file.name))
  left.touch()
  os.utime(left, (1e9, 1e9))
  durable.sweep(tmp_path)
  assert not left.exists()
