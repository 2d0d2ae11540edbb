"""Kills workers of a sweep at random, and compares with a sweep left alone.

  python benchmarks/sweep_kills.py --out=benchmarks/results/sweep_kills.json

Three workers erase with UCE in the Shapes model and draw a few pictures, one
cell after another. Ten times a random one is killed (SIGKILL) after a random
time, and a new one starts. Half of the kills are by each of two kinds of
workers: those that see each other's locks, as on one machine, and those that
know only each other's signs of life, as on several. Every cell must be done
once, with no row twice, and the table must be that of a lone worker.
"""

import collections
import datetime
import json
import pathlib
import platform
import random
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from unlearning_jax.experiments import sweep
from unlearning_jax.record import leases, read_rows

OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
KILLS = flags.DEFINE_integer("kills", 10, "Workers that are killed.")
SEED = flags.DEFINE_integer("seed", 0, "Decides who is killed, and when.")
WORKER = flags.DEFINE_string("worker", None, "Work in this folder.")
ALONE = flags.DEFINE_bool("alone", False, "Trust no lock.")
SCALES = [0.1 * i for i in range(1, 13)]


def planned() -> sweep.Sweep:
  """Erasures, each with a few pictures."""
  import importlib

  configs = importlib.import_module("unlearning_jax.configs.sweep")
  few = {
    "rows_per_group": 1, "other_rows": 2, "grid_rows": 1, "batch_size": 4,
    "sampling.num_inference_steps": 2,
  }  # fmt: skip
  base = configs.base("erase", "erase_uce:tiny", changes=few)
  grid = [("concept", ["star", "moon"]), ("hparams.erase_scale", SCALES)]
  return sweep.plan("erase", base, grid)


def work(folder: str) -> int:
  """One worker."""
  if ALONE.value:
    leases._boot = lambda: ""
  return sweep.run(
    planned(),
    pathlib.Path(folder),
    held=lambda place: leases.Leases(place, beat_s=0.5, dead_s=5),
  )


def start(folder: pathlib.Path, *arguments: str) -> subprocess.Popen:
  """A worker of its own."""
  command = [sys.executable, __file__, f"--worker={folder}", *arguments]
  return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def killed(folder: pathlib.Path, draw: random.Random) -> list[float]:
  """Runs three workers, kills some; returns the seconds of every kill."""
  kills, began, workers = [], time.monotonic(), []
  while len(kills) < KILLS.value:
    kind = ["--alone"] * (len(kills) >= KILLS.value // 2)
    while len(workers) < 3:
      workers.append(start(folder, *kind))
    time.sleep(draw.uniform(4, 16))
    victim = workers.pop(draw.randrange(3))
    if victim.poll() is not None:
      break  # Nothing is left to do, so nobody can be killed at it.
    victim.kill()
    victim.wait()
    kills.append(round(time.monotonic() - began, 1))
  while len(workers) < 3:
    workers.append(start(folder))
  assert not any([one.wait() for one in workers])
  return kills


def main(_):
  """Measures both and compares."""
  if WORKER.value:
    return work(WORKER.value)
  cells = planned().cells
  with tempfile.TemporaryDirectory() as root:
    alone, together = pathlib.Path(root, "alone"), pathlib.Path(root, "three")
    began = time.monotonic()
    assert start(alone).wait() == 0
    lone_s = time.monotonic() - began
    began = time.monotonic()
    kills = killed(together, random.Random(SEED.value))
    three_s = time.monotonic() - began
    taken = collections.Counter(
      path.stem for path in (together / "leases").iterdir()
    )
    ends = [len([*(together / "cells").glob(f"{c.id}/DONE")]) for c in cells]
    rows = [read_rows(together / "cells" / c.id) for c in cells]
    own = [read_rows(alone / "cells" / c.id) for c in cells]
    tables = [(f / "results.csv").read_text() for f in (alone, together)]
  record = {
    "cells": len(cells),
    "kills": len(kills),
    "killed_at_s": kills,
    "cells_done": sum(ends),
    "cells_with_several_leases": sum(n > 1 for n in taken.values()),
    "leases": taken.total(),
    "rows_equal": rows == own,
    "rows": sum(map(len, rows)),
    "tables_equal": tables[0] == tables[1],
    "lone_worker_s": lone_s,
    "three_workers_s": three_s,
    "python": platform.python_version(),
    "command": " ".join(["python", *sys.argv]),
    "date": datetime.date.today().isoformat(),
  }
  text = json.dumps(record, indent=1)
  print(text)
  if OUT.value:
    pathlib.Path(OUT.value).write_text(text + "\n")
  assert ends == [1] * len(cells) and tables[0] == tables[1]


if __name__ == "__main__":
  app.run(main)
