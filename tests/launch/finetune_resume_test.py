"""`launch.finetune` on an erased model, killed midway and begun again."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from unlearning_jax.edits import edit_hash, load_edit

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = (1, 2, 4)
SMALL = [
  "--config.batch_size=4", "--config.data.count=8", "--config.num_steps=4",
  f"--config.checkpoints={STEPS}", "--config.log_every=1",
  "--config.defence.kind=project", "--config.checkpoint_every=3",
]  # fmt: skip

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def start(script, *arguments):
  command = [sys.executable, "-m", f"launch.{script}", *map(str, arguments)]
  return subprocess.Popen(
    command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
  )


def ended(process):
  _, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors.decode()[-2000:]


def finetune(edit, workdir):
  config = "configs/finetune_lora.py:tiny,without=object/star"
  return start(
    "finetune", f"--config={config}", f"--edit={edit}", f"--workdir={workdir}",
    *SMALL,
  )  # fmt: skip


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
  erased = tmp_path / "uce"
  ended(
    start(
      "erase",
      "--config=configs/erase_uce.py:tiny",
      f"--workdir={erased}",
      "--config.per_group=0",
      "--config.others=0",
    )  # fmt: skip
  )
  ended(finetune(erased, tmp_path / "whole"))
  process = finetune(erased, tmp_path / "cut")
  first = tmp_path / "cut" / "steps" / f"{STEPS[0]:06}.safetensors"
  while not first.exists():
    assert process.poll() is None, process.communicate()[1].decode()[-2000:]
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (tmp_path / "cut" / "DONE").exists()
  ended(finetune(erased, tmp_path / "cut"))
  assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
  # Between the steps that are kept, one to go on from; the last two stay.
  kept = {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()}
  assert {"3", "4"} <= kept and "1" not in kept
  edits = []
  for step in STEPS:
    name = f"steps/{step:06}.safetensors"
    whole, cut = (load_edit(tmp_path / run / name) for run in ("whole", "cut"))
    # The hash of every tensor's bytes; a file's metadata come in any order.
    assert edit_hash(whole) == edit_hash(cut)
    assert whole.diagnostics == cut.diagnostics
    edits.append(whole)
  last = edits[-1]
  assert last.method == "uce2023+lora@4"
  assert [c.erase for c in last.concepts][0].endswith("star")
  changes = [edit.diagnostics["relative_change"] for edit in edits]
  assert len(set(changes)) == len(STEPS) and np.isfinite(changes).all()
