"""Files that a kill cannot damage; `record/workdir_test` has the rest."""

import fcntl
import os

from unlearning_jax import durable


def test_what_dead_writers_left_is_removed(tmp_path):
  part = tmp_path / "images" / ".a.png.0123abcd"
  part.parent.mkdir()
  for name in (part.name, ".b.png.0123abcd", ".mine", ".new.png.0123abcd"):
    part.with_name(name).touch()
    if "new" not in name:
      os.utime(part.with_name(name), (1e9, 1e9))
  with open(part.with_name(".b.png.0123abcd"), "rb") as living:
    fcntl.flock(living, fcntl.LOCK_EX)
    durable.sweep(tmp_path)
  left = {path.name for path in part.parent.iterdir()}
  assert left == {".b.png.0123abcd", ".mine", ".new.png.0123abcd"}
