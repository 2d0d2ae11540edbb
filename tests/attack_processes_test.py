"""An attack's rows: the same on any devices and processes, and after kills."""

import json
import random
import signal
import time

import pytest
from processes_test import TIMEOUT, launch, rows, start

SMALL = [
  "--config.per_group=13",
  "--config.lanes=4",
  "--config.batch_size=2",
  "--config.hparams.blocks=3",
  "--config.hparams.iterations=3",
  "--config.hparams.k=2",
  "--config.sampling.num_steps=4",
  "--config.sampling.guidance_scale=1.0",
]
KILLS = 10

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def flags(workdir):
  # The model itself: without guidance some prompts work, some do with tokens.
  config = "configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star"
  return [f"--config={config}", f"--workdir={workdir}"]


def plain(value):
  """Without what a row cost in seconds; floats to four digits."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items() if k != "seconds"}
  if isinstance(value, list):
    return [plain(v) for v in value]
  return pytest.approx(value, rel=1e-4, abs=1e-6) if (
    isinstance(value, float)
  ) else value  # fmt: skip


def same(found, whole):
  assert found.keys() == whole.keys()
  for name, row in whole.items():
    found[name].pop("seconds")
    assert found[name] == plain(row)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The folder of an undisturbed run on one device, and its rows."""
  folder = tmp_path_factory.mktemp("attack") / "one"
  launch("attack", flags(folder), small=SMALL)
  found = rows(folder)
  assert len(found) == 13
  assert len({row["status"] for row in found.values()}) > 1
  return folder, found


@pytest.mark.parametrize("processes, devices", [(1, 8), (2, 1), (2, 4)])
def test_devices_and_processes(processes, devices, whole, tmp_path):
  shape = {"processes": processes, "devices": devices}
  launch("attack", flags(tmp_path), small=SMALL, **shape)
  same(rows(tmp_path), whole[1])
  assert len(list(tmp_path.glob("results*.jsonl"))) == processes
  ends = [f / "summary.json" for f in (tmp_path, whole[0])]
  one, two = (json.loads(end.read_text())["accounting"] for end in ends)
  assert one == two and (tmp_path / "DONE").exists()


def test_killed_at_random_moments(whole, tmp_path):
  """Ten kills, each after a fifth of a run at most; then it may end."""
  began, ended = (
    (whole[0] / name).stat().st_mtime for name in ("provenance.json", "DONE")
  )
  moments = random.Random(0)
  kills, left = 0, []
  while kills < KILLS and not (tmp_path / "DONE").exists():
    (process,) = start("attack", flags(tmp_path), small=SMALL)
    deadline = time.monotonic() + TIMEOUT
    while starts(tmp_path) < kills + 1:
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.02)
    time.sleep(moments.uniform(0, (ended - began) / 5))
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
      kills += 1
    process.communicate()
    left.append(len(rows(tmp_path)))
  assert kills == KILLS, "the run ended before it was killed often enough"
  assert left == sorted(left) and any(0 < n < 13 for n in left), left
  launch("attack", flags(tmp_path), small=SMALL)
  same(rows(tmp_path), whole[1])


def starts(folder):
  file = folder / "provenance.json"
  return len(json.loads(file.read_text())["runs"]) if file.exists() else 0
