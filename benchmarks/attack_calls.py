"""ASR against UNet calls: UnlearnDiffAtk as published, and with shared words.

  python benchmarks/attack_calls.py --runs=runs/calls --out=attack_calls.json

Erases the concept of every cell, then attacks the same 100 rows in turn:

  published     9 blocks of 25 updates, an image each
  fewer         the same budget, `preset=fewer`
  random        random tokens, as many images as published
  random_fewer  the same, `preset=fewer`
  random_calls  the same, as many images as published's UNet calls pay for

A call is one UNet row: of an image's step (two with guidance), of an update
there, and of an update back. The paired test is McNemar's. It and the intervals
count rows as independent. Rows that share words are not, so `--seeds` runs
`fewer` and its control again on other rows with other keys, and the record has
the rate of each. Finished runs are kept: type the command again after a stop.
Half an hour on two cores; `--cells=star/uce` takes ten minutes.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from unlearning_jax import statistics
from unlearning_jax.metrics import asr
from unlearning_jax.record import read_rows

STEPS, BLOCKS, ITERATIONS = 15, 9, 25
# An update costs a call there and one back.
CALLS = BLOCKS + 2 * BLOCKS * ITERATIONS // (2 * STEPS)
# Run -> config, preset, images, what it is compared with.
RUNS = {
  "published": ("unlearn_diff_atk", "fixed", BLOCKS, "random"),
  "fewer": ("unlearn_diff_atk", "fewer", BLOCKS, "random_fewer"),
  "random": ("controls", "random", BLOCKS, ""),
  "random_fewer": ("controls", "fewer", BLOCKS, "random"),
  "random_calls": ("controls", "fewer", CALLS, ""),
}
# Cell -> erasure, task, concept.
CELLS = {
  "star/uce": ("uce", "object", "star"),
  "quill/uce": ("uce", "identity", "Quill Estane"),
  "quill/esd_x": ("esd", "identity", "Quill Estane"),
}
ROOT = flags.DEFINE_string("runs", None, "The folder of the runs.")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
ASKED = flags.DEFINE_list("cells", list(CELLS), "Cells to measure.")
SEEDS = flags.DEFINE_list("seeds", [1, 2, 3, 4], "Of the repeated runs.")
# A row's calls up to which ASR is given.
UP_TO = (60, 120, 240, 480, 750)


def start(script: str, folder: pathlib.Path, config: str, *more: str):
  """Runs a script, unless its folder is finished."""
  if not (folder / "DONE").exists():
    flag = [f"--workdir={folder}", f"--config=configs/{config}", *more]
    command = [sys.executable, "-m", f"launch.{script}", *flag]
    subprocess.run(command, check=True)


def attacked(cell: str, name: str, seed: int = 0) -> list[dict[str, Any]]:
  """The rows of a run, which is made if it is not there."""
  root = pathlib.Path(ROOT.value) / cell
  erasure, task, concept = CELLS[cell]
  place = f"tiny,task={task},name={concept}"
  start(
    "erase", root / "edit", f"erase_{erasure}.py:{place}",
    "--config.rows_per_group=2", "--config.other_rows=2",
  )  # fmt: skip
  method, preset, blocks, _ = RUNS[name]
  folder = root / (name if seed == 0 else f"{name}-{seed}")
  more = [f"--edit={root}/edit", f"--config.seed={seed}"]
  more += [f"--config.hparams.blocks={blocks}"]
  if method != "controls":
    more.append(f"--config.hparams.iterations={ITERATIONS}")
  config = f"attack_{method}.py:{place},preset={preset}"
  start("attack", folder, config, *more)
  return read_rows(folder)


def calls(row: Mapping[str, Any]) -> int:
  """A row's UNet calls; one for each update's way back is not in its record."""
  updates = row["iterations"] if row["method"] != "controls" else 0
  return row["unet_calls"] + updates


def measured(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What a run won and cost."""
  won, n = sum(row["success"] for row in found), len(found)
  cost = [calls(row) for row in found]
  updates = sum(calls(row) - row["unet_calls"] for row in found)
  started = [r for r in found if r["blocks"] and r["blocks"][-1].get("start")]
  return {
    "won": won, "n": n, "asr": [won / n, *statistics.wilson(won, n)],
    "won_by_shared_words": sum(row["success"] for row in started),
    "images": sum(row["images"] for row in found), "updates": updates,
    "calls_of_images": sum(cost) - 2 * updates,
    "calls_a_row": sum(cost) / n,
    # Each attack draws a row's own prompt once.
    "calls_a_row_besides_own_prompt": sum(cost) / n - 2 * STEPS,
    "won_within_calls": {
      limit: sum(r["success"] and calls(r) <= limit for r in found)
      for limit in UP_TO
    },
  }  # fmt: skip


def main(_):
  """Runs what is missing, then writes the record."""
  document: dict[str, Any] = {"cells": {}}
  for cell in ASKED.value:
    found = {name: attacked(cell, name) for name in RUNS}
    rows = {name: measured(one) for name, one in found.items()}
    for name, (_, _, _, control) in RUNS.items():
      for other in filter(None, ("published", control)):
        if name != other:
          paired = asr.against(found[name], found[other])
          rows[name][f"against_{other}"] = paired
      rows[name]["calls_by_published"] = (
        rows[name]["calls_a_row"] / rows["published"]["calls_a_row"]
      )
    again = {
      name: {s: measured(attacked(cell, name, int(s))) for s in SEEDS.value}
      for name in ("fewer", "random_fewer")
    }
    document["cells"][cell] = {"runs": rows, "other_seeds": again}
  text = json.dumps(document, indent=1)
  pathlib.Path(OUT.value).write_text(text + "\n")


if __name__ == "__main__":
  flags.mark_flags_as_required(["runs", "out"])
  app.run(main)
