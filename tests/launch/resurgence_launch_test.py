"""`launch.resurgence` as a user starts it: dry, killed, begun again."""

import json
import runpy
import time
from unittest import mock

import pytest

from tests.support import scripts
from tests.support.resurgence_cases import small_study
from unlearning_jax.experiments.resurgence import tuning

# Of two concepts, so that each of two processes erases and tunes one.
SHARED = """
from unlearning_jax.configs import resurgence


def get_config():
  block = {
    "methods": ("mace",), "concepts": ("star", "quill"), "sets": ("in",),
    "algorithms": ("lora",), "defenses": ("none",), "seeds": (0,),
  }
  counts = {"explicit": 2, "words": 1, "others": 1, "tuned": 2}
  config = resurgence.study([block], (1, 2), counts)
  config.batch_size, config.floor = 8, 0.0
  config.sampling.num_inference_steps = 2
  for erasure in config.erasures.values():
    erasure.hparams.update(
      {"num_images": 2, "num_inference_steps": 2, "num_steps": 2}
    )
  config.algorithms.lora.batch_size = config.algorithms.lora.data.count = 4
  return config
"""

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def arguments(tmp_path):
  """Of a study in a folder, with more flags."""
  (tmp_path / "config.py").write_text(small_study("uce", ("near", "control")))
  config = f"--config={tmp_path}/config.py"
  return lambda folder, *more: (config, f"--workdir={tmp_path / folder}", *more)


def rows(folder):
  file = folder / "results.jsonl"
  lines = file.read_text().splitlines() if file.exists() else ()
  return {row["id"]: row for row in map(json.loads, lines)}


def test_a_dry_run_writes_nothing(arguments, scripts_in_turn, tmp_path):
  dry = scripts_in_turn("resurgence", *arguments("dry", "--dry_run"))
  said = dry.finish().stdout
  assert "2 cells from 1 erased models" in said and "device-hours" in said
  assert not (tmp_path / "dry").exists()


def test_a_killed_study_ends_with_the_same_rows(
  arguments, scripts_in_turn, tmp_path
):
  said = scripts_in_turn(__name__, *arguments("whole")).finish().stdout
  whole = rows(tmp_path / "whole")
  assert "2 of 2 cells measured, 0 failed" in said
  process = scripts.Run(__name__, *arguments("cut"))
  while "uce/star/near/full/none/0@1" not in rows(tmp_path / "cut"):
    assert process.returncode is None, process.stderr[-2000:]
    time.sleep(0.05)
  process.kill()
  assert not (tmp_path / "cut" / "DONE").exists()
  scripts_in_turn(__name__, *arguments("cut")).finish()
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
  # Two conditions; the base and three steps; six groups of prompts.
  assert len(table) == 1 + 2 * 4 * 6


@pytest.mark.multiprocess
def test_two_processes_share_a_study(scripts_in_turn, tmp_path):
  config = tmp_path / "config.py"
  config.write_text(SHARED)
  found = []
  for processes in (1, 2):
    folder = tmp_path / str(processes)
    arguments = [f"--config={config}", f"--workdir={folder}"]
    if processes == 1:
      said = scripts_in_turn(__name__, *arguments).finish().stdout
    else:
      started = scripts.start(__name__, arguments, processes, quick=True)
      scripts.run_all(started)
      said = started[0].stdout
    assert "2 of 2 cells measured, 0 failed" in said
    assert (folder / "DONE").exists() and (folder / "report.html").exists()
    files = sorted(folder.glob("results*.jsonl"))
    assert len(files) == processes and all(f.stat().st_size for f in files)
    lines = [line for f in files for line in f.read_text().splitlines()]
    found.append({row["id"]: row for row in map(json.loads, lines)})
    assert len(found[-1]) == len(lines)
  assert found[0] == found[1]
  # Both cells in one program draw the same; it may round otherwise.
  packed = [f"--workdir={tmp_path / 'packed'}", "--config.pack=2"]
  scripts_in_turn(__name__, f"--config={config}", *packed).finish()
  for key, row in rows(tmp_path / "packed").items():
    alone = found[0][key]
    assert row.get("right") == alone.get("right")
    for name, value in row.get("drift", {}).items():
      assert value == pytest.approx(alone["drift"][name], rel=1e-2, abs=1e-6)


if __name__ == "__main__":
  # What waits a minute is saved at once; drift is seen in fewer images.
  with mock.patch.multiple(tuning, SAVE_AFTER=0, _PROBES=8):
    runpy.run_module("launch.resurgence", run_name="__main__")
