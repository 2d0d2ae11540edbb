"""A disk that is full: what a run says of it, and that it goes on with room."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.launch import erase_resume_test
from tests.support import scripts, toy_sweep
from unlearning_jax import durable
from unlearning_jax.convert import output
from unlearning_jax.experiments import hooks, sweep
from unlearning_jax.record import Workdir


@pytest.fixture
def disk(tmp_path):
  """Mounts a disk of so many KiB, or gives the mounted one another size."""
  folder = tmp_path / "disk"
  folder.mkdir()

  def sized(kib):
    again = "remount," if folder.is_mount() else ""
    command = f"mount -t tmpfs -o {again}size={kib}k none {folder}".split()
    if subprocess.run(command, check=False, capture_output=True).returncode:
      pytest.skip("only root can mount a small disk")
    return folder

  yield sized
  if folder.is_mount():
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_rows_go_on_once_there_is_room(disk):
  picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)

  def draw(folder):
    run = Workdir(folder, {})
    for key in {*range(20)} - run.done_ids():
      image = run.save_image(f"{key}", picture)
      run.append_row({"id": key, "image": image, "why": "x" * 3000})
    run.save_summary({"n": len(run.rows())})
    run.mark_done()

  folder = disk(60)
  for _ in range(2):
    with pytest.raises(OSError, match="No space left.*disk/") as error:
      draw(folder)
    assert durable.is_full(error.value) and not (folder / "DONE").exists()
    disk(100)
  disk(1000)
  draw(folder)
  run = Workdir(folder, {})
  assert [row["id"] for row in run.rows()] == [*range(20)] and run.is_done
  assert not [*folder.rglob("*.part")]


def train(folder):
  run = Workdir(folder, {})
  return erase_resume_test.train(hooks.recorded(run, 2).trainer)


@pytest.mark.slow
def test_a_training_goes_on_once_there_is_room(disk, tmp_path):
  folder = disk(32)
  # In a process of its own: what the storage leaves behind would disturb the
  # tests that follow.
  cut = scripts.run(__name__, folder)
  assert cut.returncode == 1 and "No space left on device" in cut.stderr
  disk(4000)
  (tmp_path / "whole").mkdir()
  weights = []
  for place in (folder, tmp_path / "whole"):
    scripts.run(__name__, place).finish()
    weights.append(np.load(place / "w.npy"))
  np.testing.assert_array_equal(*weights)
  assert [*erase_resume_test.losses(folder)] == [2, 4, 5]
  assert not [*pathlib.Path(folder).rglob("*tmp*")]


def test_a_conversion_names_the_file(disk):
  path = disk(60) / "a.safetensors"
  with pytest.raises(ValueError, match=f"{path}: cannot be written") as error:
    output.write_safetensors(path, {"w": np.zeros(99_999)}, "float32")
  assert durable.is_full(error.value)


def test_a_read_only_folder_is_refused(disk):
  folder = disk(60)
  Workdir(folder, {}).append_row({"id": 1})
  subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
  with pytest.raises(ValueError, match="cannot be written: .*ead-only.*mend"):
    Workdir(folder, {})


@pytest.mark.parametrize("begun", [False, True])
def test_so_is_that_of_a_sweep(begun, disk, monkeypatch):
  toy_sweep.install(monkeypatch)
  folder, planned = disk(1000), toy_sweep.plan(1)
  if begun:
    sweep.run(planned, folder)
  subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
  with pytest.raises(ValueError, match="cannot be written: .*ead-only.*mend"):
    sweep.run(planned, folder)


if __name__ == "__main__":
  np.save(f"{sys.argv[1]}/w.npy", train(sys.argv[1]))
