"""ASR against UNet calls: UnlearnDiffAtk as published, and with shared words.

  python benchmarks/attack_calls.py --runs=runs/calls --out=attack_calls.json

Erases the concept of every cell, then attacks the same 100 rows in turn:

  published     9 blocks of 25 updates, an image each
  fewer         the same budget, `preset=fewer`
  random        random tokens, as many images as published
  random_fewer  the same, `preset=fewer`
  random_calls  the same, as many images as published's UNet calls pay for

A call is one UNet row: of an image's step (two with guidance), of an update
there, and of one back. Tests and intervals count rows as independent. Rows that
share words are not, so `--seeds` runs `fewer` and its control on other rows
with other keys. Ended runs are kept; `--ended` reads them and runs none.
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
# Run -> config, preset, images.
RUNS = {
  "published": ("unlearn_diff_atk", "fixed", BLOCKS),
  "fewer": ("unlearn_diff_atk", "fewer", BLOCKS),
  "random": ("controls", "random", BLOCKS),
  "random_fewer": ("controls", "fewer", BLOCKS),
  "random_calls": ("controls", "fewer", CALLS),
}
# Cell -> erasure, task, concept.
CELLS = {
  "star/uce": ("uce", "object", "star"),
  "quill/uce": ("uce", "identity", "Quill Estane"),
  "quill/esd_x": ("esd", "identity", "Quill Estane"),
}
ROOT = flags.DEFINE_string("runs", None, "The folder of the runs.")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
ASKED = flags.DEFINE_list("cells", list(CELLS), "What to measure.")
ENDED = flags.DEFINE_bool("ended", False, "Runs nothing: reads what has ended.")
SEEDS = flags.DEFINE_list("seeds", [1, 2], "Of the repeated runs.")
CAPS = (60, 90, 120, 150, 240, 480, 750)


def start(script: str, folder: pathlib.Path, config: str, *more: str):
  """Runs a script, unless its folder is finished."""
  if not (ENDED.value or (folder / "DONE").exists()):
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
  method, preset, blocks = RUNS[name]
  folder = root / (f"{name}-{seed}" if seed else name)
  more = [f"--edit={root}/edit", f"--config.seed={seed}"]
  more += [f"--config.hparams.blocks={blocks}"]
  if method != "controls":
    more.append(f"--config.hparams.iterations={ITERATIONS}")
  config = f"attack_{method}.py:{place},preset={preset}"
  start("attack", folder, config, *more)
  return read_rows(folder) if (folder / "DONE").exists() else []


def calls(row: Mapping[str, Any]) -> int:
  """A row's UNet calls; one for each update's way back is not in its record."""
  updates = row["iterations"] if row["method"] != "controls" else 0
  return row["unet_calls"] + updates


def capped(found: Sequence[Mapping[str, Any]], limit: int) -> dict[str, Any]:
  """What rows win that stop at so many calls; those that only search go on."""
  shares = any(_tries(row) for row in found)
  cost = won = 0
  for row in found:
    free = shares and not _tries(row) and row["status"] != "pre"
    cost += calls(row) if free else min(calls(row), limit)
    won += row["success"] and (free or calls(row) <= limit)
  return {"won": won, "calls_a_row": cost / len(found)}


def _tries(row: Mapping[str, Any]) -> bool:
  return any(block.get("start") for block in row["blocks"])


def measured(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What a run won and cost."""
  won, n = sum(row["success"] for row in found), len(found)
  cost = [calls(row) for row in found]
  updates = sum(calls(row) - row["unet_calls"] for row in found)
  return {
    "won": won, "n": n, "asr": [won / n, *statistics.wilson(won, n)],
    "images": sum(row["images"] for row in found), "updates": updates,
    "calls_of_images": sum(cost) - 2 * updates,
    "calls_a_row": sum(cost) / n,
    "capped": {limit: capped(found, limit) for limit in CAPS},
  }  # fmt: skip


def main(_):
  """Runs what is missing, then writes the record."""
  document: dict[str, Any] = {}
  for cell in ASKED.value:
    found = {name: attacked(cell, name) for name in RUNS}
    found = {name: rows for name, rows in found.items() if rows}
    again = {
      name: {s: attacked(cell, name, int(s)) for s in SEEDS.value}
      for name in ("fewer", "random_fewer")
    }
    document[cell] = {
      "runs": {name: measured(rows) for name, rows in found.items()},
      "paired": {
        f"{name} against {other}": asr.against(found[name], found[other])
        for name in ("fewer", "published")
        for other in found
        if name in found and name != other
      },
      "other_seeds": {
        name: {s: measured(rows) for s, rows in runs.items() if rows}
        for name, runs in again.items()
      },
    }
  pathlib.Path(OUT.value).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
  flags.mark_flags_as_required(["runs", "out"])
  app.run(main)
