"""An attack's rows: the same on any devices and processes, and after kills."""

import json
import random
import time

import pytest

from tests.launch.processes_test import launch, rows
from tests.support import scripts

# More than the lanes of eight devices, and no multiple of any count of lanes.
ROWS = 11
SMALL = [
  f"--config.rows_per_group={ROWS}",
  "--config.groups=('implied',)",
  "--config.lanes=4",
  "--config.batch_size=2",
  "--config.hparams.blocks=3",
  "--config.hparams.iterations=3",
  "--config.hparams.num_tokens=2",
  "--config.sampling.num_inference_steps=4",
]
KILLS = 6

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def flags(workdir):
  # The model itself, and prompts that only imply: some work, some do not.
  config = "configs/attack_unlearn_diff_atk.py:tiny,task=unsafe"
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
  launch("attack", flags(folder), SMALL)
  found = rows(folder)
  assert len(found) == ROWS
  assert len({row["status"] for row in found.values()}) > 1
  return folder, found


@pytest.mark.parametrize("processes, devices", [(1, 8), (2, 1), (2, 4)])
def test_devices_and_processes(processes, devices, whole, tmp_path):
  shape = {"processes": processes, "devices": devices}
  launch("attack", flags(tmp_path), SMALL, **shape)
  same(rows(tmp_path), whole[1])
  assert len(list(tmp_path.glob("results*.jsonl"))) == processes
  ends = [f / "summary.json" for f in (tmp_path, whole[0])]
  one, two = (json.loads(end.read_text())["accounting"] for end in ends)
  assert one == two and (tmp_path / "DONE").exists()


def test_killed_at_random_moments(whole, tmp_path):
  """Six kills, four at any moment and two just after a row; then it ends."""
  began, ended = (
    (whole[0] / name).stat().st_mtime for name in ("provenance.json", "DONE")
  )
  left = kill_often(tmp_path, (ended - began) / 5, KILLS)
  assert left == sorted(left) and any(0 < n < ROWS for n in left), left
  launch("attack", flags(tmp_path), SMALL)
  same(rows(tmp_path), whole[1])


def kill_often(folder, seconds, kills):
  """Starts and kills the run; how many rows there were after each kill.

  A moment is one of the first `seconds` after a start has recorded itself, or
  the first ones after the next row: where little is recorded, both matter.
  """
  moments = random.Random(0)
  left = []
  for kill in range(kills):
    had, started = len(rows(folder)), starts(folder)
    (process,) = scripts.start("attack", [*flags(folder), *SMALL])
    deadline = time.monotonic() + scripts.TIMEOUT

    def wait_until(reached, process=process, deadline=deadline):
      while not reached():
        assert time.monotonic() < deadline
        assert process.returncode is None, "the run ended before it was killed"
        time.sleep(0.02)

    wait_until(lambda started=started: starts(folder) > started)
    if kill % 3 == 2 and had < ROWS:
      wait_until(lambda had=had: len(rows(folder)) > had)
      time.sleep(moments.uniform(0, seconds / 20))
    else:
      time.sleep(moments.uniform(0, seconds))
    process.kill()
    left.append(len(rows(folder)))
  return left


def starts(folder):
  file = folder / "provenance.json"
  return len(json.loads(file.read_text())["runs"]) if file.exists() else 0
