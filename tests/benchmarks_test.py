"""The benchmark of full-size programs, run on tiny ones."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(tmp_path, *arguments):
  """What it measured, the ceiling first."""
  out = tmp_path / "record.json"
  script = ROOT / "benchmarks/full_size.py"
  subprocess.run(
    [
      sys.executable, script, "--size=tiny", "--rows=2", "--dtype=float32",
      "--seconds=0.01", f"--out={out}", *arguments,
    ],
    env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
  )  # fmt: skip
  return json.loads(out.read_text())["measured"]


@pytest.mark.e2e
def test_programs_are_timed_and_one_that_fails_is_passed_over(tmp_path):
  ceiling, *found = run(
    tmp_path, "--parts=unet,lora", "--attention=cudnn,dense"
  )
  assert ceiling["tflop_s"] > 0
  programs = [(one["attention"], one["part"]) for one in found]
  assert programs == [
    (attention, part)
    for attention in ("cudnn", "dense")
    for part in ("unet", "lora")
  ]
  for failed in found[:2]:
    assert failed["error"].startswith("ValueError: attention='cudnn'")
    assert "seconds" not in failed
  for one in found[2:]:
    assert "error" not in one
    for figure in ("seconds", "rows_s", "tflop", "tflop_s", "of_ceiling"):
      assert one[figure] > 0
    assert one["gib"]["total"] > 0 and one["calls"] >= 1
  # The gradient of the adapters, and of what lies between them and the loss.
  assert 2 < found[3]["tflop"] / found[2]["tflop"] < 3


@pytest.mark.e2e
def test_compiling_alone_times_nothing(tmp_path):
  (one,) = run(tmp_path, "--parts=unet", "--compile_only", "--jobs=2")
  assert one["compile_s"] > 0 and one["gib"]["argument"] > 0
  assert "error" not in one and "seconds" not in one
