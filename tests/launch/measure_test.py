"""The script that measures a folder, as a user starts it."""

import numpy as np
import pytest
from PIL import Image

from tests.support.scripts import Run

pytestmark = pytest.mark.e2e
COLORS = "network=tests.support.toys:COLORS"


def test_a_folder_is_measured(tmp_path):
  rng = np.random.default_rng(0)
  for name in ("new", "old"):
    (tmp_path / name).mkdir()
    for i in range(9):
      image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
      Image.fromarray(image).save(tmp_path / f"{name}/{i}.png")
  (tmp_path / "new/0.png").write_bytes(b"no image")
  flags = [
    f"--images={tmp_path / 'new'}", f"--base={tmp_path / 'old'}",
    # Commas part names and their options.
    f"--metrics=fid-to-base~few=allow,{COLORS},"
    f"kid~reference=base,{COLORS},tests.support.toys:BRIGHTNESS",
    f"--workdir={tmp_path / 'run'}",
  ]  # fmt: skip
  said = Run("measure", *flags).finish().stdout
  for wanted in ("fid-to-base/colors/8", "kid/colors/8", "left out: 1"):
    assert wanted in said
  assert (tmp_path / "run/DONE").exists()
  wrong = Run("measure", *flags[:2], "--metrics=fdi", flags[3]).join()
  assert wrong.returncode and "fid" in wrong.stderr


def test_what_is_ready_here(tmp_path):
  folder = f"--judges_dir={tmp_path}"
  lines = Run("measure", "--list", folder).finish().stdout.splitlines()
  state = {line.split()[0]: line.split()[1] for line in lines if line[0] != " "}
  assert state["fid"] == state["lpips"] == "lacks:" and len(state) == 5
  assert any("pt_inception-2015-12-05-6726825d.pth" in line for line in lines)
