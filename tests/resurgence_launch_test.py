"""`launch.resurgence` as a user starts it: dry, killed, begun again."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """
from configs import resurgence


def get_config():
  block = {
    "methods": ("uce",), "concepts": ("star",), "sets": ("near", "control"),
    "algorithms": ("full",), "defences": ("none",), "seeds": (0,),
  }
  counts = {"explicit": 6, "words": 3, "others": 4, "tuned": 3}
  config = resurgence.study([block], (1, 2), counts)
  config.batch_size, config.sampling.num_steps = 16, 4
  for tuning in config.algorithms.values():
    tuning.batch_size, tuning.data.count = 4, 8
  return config
"""

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def start(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)

  def launch(folder, *flags):
    command = [sys.executable, "-m", "launch.resurgence", *flags]
    command += [
      f"--config={tmp_path}/config.py",
      f"--workdir={tmp_path / folder}",
    ]
    return subprocess.Popen(
      command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True,
    )  # fmt: skip

  return launch


def ended(process):
  output, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors[-2000:]
  return output


def rows(folder):
  file = folder / "results.jsonl"
  lines = file.read_text().splitlines() if file.exists() else ()
  return {row["id"]: row for row in map(json.loads, lines)}


def test_a_dry_run_writes_nothing(start, tmp_path):
  said = ended(start("dry", "--dry_run"))
  assert "2 cells from 1 erased models" in said and "device-hours" in said
  assert not (tmp_path / "dry").exists()


def test_a_killed_study_ends_with_the_same_rows(start, tmp_path):
  said = ended(start("whole"))
  whole = rows(tmp_path / "whole")
  assert "2 of 2 cells measured, 0 failed" in said
  process = start("cut")
  while "uce/star/near/full/none/0@1" not in rows(tmp_path / "cut"):
    assert process.poll() is None, process.communicate()[1][-2000:]
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (tmp_path / "cut" / "DONE").exists()
  ended(start("cut"))
  assert rows(tmp_path / "cut") == whole
  # A learning rate of nought is exactly the erased model.
  erased = whole["erased/uce/star/0"]["right"]
  for step in (1, 2):
    row = whole[f"uce/star/control/full/none/0@{step}"]
    assert {g: row["right"][g] for g in erased} == erased
    assert row["drift"]["moved"] == row["drift"]["reversion"] == 0
  assert whole["uce/star/near/full/none/0@2"]["drift"]["moved"] > 0
  summary = json.loads((tmp_path / "cut" / "summary.json").read_text())
  assert [c["defined"] for c in summary["conditions"]] == [True, True]
  page = (tmp_path / "cut" / "report.html").read_text()
  assert "What came back" in page and "<script" not in page
  table = (tmp_path / "cut" / "results.csv").read_text().splitlines()
  # Two conditions; the base and three steps; five groups of prompts.
  assert len(table) == 1 + 2 * 4 * 5
