"""`launch.finetune` on an erased model, killed, stopped and begun again."""

import json
import time

import numpy as np
import pytest

from tests.support import scripts
from unlearning_jax.edits import edit_hash, load_edit

STEPS = (1, 2, 4)
SMALL = [
  "--config.batch_size=4", "--config.data.count=8", "--config.num_steps=4",
  f"--config.checkpoints={STEPS}", "--config.log_every=1",
  "--config.defense.kind=project", "--config.checkpoint_every=3",
]  # fmt: skip

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def finetune(edit, workdir):
  config = "configs/finetune_lora.py:tiny,without=object/star"
  return scripts.Run(
    "finetune", f"--config={config}", f"--edit={edit}", f"--workdir={workdir}",
    *SMALL,
  )  # fmt: skip


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
  erased = tmp_path / "uce"
  scripts.run(
    "erase", "--config=configs/erase_uce.py:tiny", f"--workdir={erased}",
    "--edit_only",
  ).finish()  # fmt: skip
  finetune(erased, tmp_path / "whole").finish()
  process = finetune(erased, tmp_path / "cut")
  first = tmp_path / "cut" / "steps" / f"{STEPS[0]:06}.safetensors"
  while not first.exists():
    assert process.returncode is None, process.stderr[-2000:]
    time.sleep(0.05)
  process.kill()
  assert not (tmp_path / "cut" / "DONE").exists()
  process = finetune(erased, tmp_path / "cut")
  while not (tmp_path / "cut" / "steps" / "000002.safetensors").exists():
    assert process.returncode is None, process.stderr[-2000:]
    time.sleep(0.05)
  assert process.stop() == 75 and "the same command goes on" in process.stderr
  finetune(erased, tmp_path / "cut").finish()
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
