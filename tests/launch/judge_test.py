"""The judge's script as a user starts it."""

import numpy as np
import pytest
from PIL import Image

from tests.support.scripts import Run

pytestmark = pytest.mark.e2e
JUDGE = "--judge=tests.support.toys:WARMTH"


def test_a_folder_is_judged_and_decided_again(tmp_path):
  (tmp_path / "pictures").mkdir()
  for level in (250, 200, 5):
    image = np.full((8, 8, 3), level, np.uint8)
    Image.fromarray(image).save(tmp_path / f"pictures/{level}.png")
  workdir = f"--workdir={tmp_path / 'run'}"
  images = f"--images={tmp_path / 'pictures'}"
  first = Run("judge", JUDGE, images, workdir).finish()
  assert "2 of 3" in first.stdout
  second = Run("judge", workdir, "--threshold=0.9").finish()
  assert "2 of 3" not in second.stdout and "1 of 3" in second.stdout
  wrong = Run("judge", JUDGE, images, workdir, "--threshold=0.9").join()
  assert wrong.returncode and "--workdir=RUN alone" in wrong.stderr
  wrong = Run("judge", JUDGE, workdir).join()
  assert wrong.returncode and "--judge, --images: give both" in wrong.stderr


def test_what_is_ready_here(tmp_path):
  (tmp_path / "resnet50-11ad3fa6.pth").write_bytes(b"")
  folder = f"--judges_dir={tmp_path}"
  lines = Run("judge", "--list", folder).finish().stdout.splitlines()
  state = {line.split()[0]: line.split()[1] for line in lines if line[0] != " "}
  assert state["shapes"] == state["resnet50-v2"] == "ready"
  assert state["q16"] == "lacks:"
  assert any(f"Put it into {tmp_path}" in line for line in lines)
  images = f"--images={tmp_path}"
  workdir = f"--workdir={tmp_path / 'run'}"
  run = Run("judge", "--judge=q16", images, workdir, folder).join()
  assert run.returncode and "is missing: it is" in run.stderr
  assert f"Put it into {tmp_path}" in run.stderr
  assert not (tmp_path / "run").exists()
