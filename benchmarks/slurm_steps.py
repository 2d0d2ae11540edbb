"""Starts two steps of one SLURM allocation at once, again and again.

  salloc -n4 python benchmarks/slurm_steps.py --times=20 --one_port=1 \
    --out=benchmarks/results/slurm_steps.json

Each step is an evaluation of its own seed, in two processes. It ends right when
its rows are those of one process that ran alone; or it refuses the other's
process, and says so. Anything else is counted as what it is. `--one_port` says
how often both are given the same port besides, as JAX itself would do. A later
start adds to the counts of the record.
"""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl import app, flags

from unlearning_jax.record import read_rows

OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
TIMES = flags.DEFINE_integer("times", 20, "Times that two steps start at once.")
ONE_PORT = flags.DEFINE_integer("one_port", 0, "Times with one port.")
RUN = [
  sys.executable, "-m", "unlearning_jax.launch.main", "evaluate",
  "--config=evaluate_shapes:tiny,task=object,name=star",
  "--config.rows_per_group=1", "--config.other_rows=2",
  "--config.batch_size=2", "--config.sampling.num_inference_steps=2",
]  # fmt: skip
SEEDS = (1, 2)
# Of a step that waits for somebody who does not come.
LIMIT_S = 200
GOOD = ("ended right", "refused the other")
# What JAX does to a process where two steps share a coordinator.
ABORTED = "aborted by JAX, with no rows"
REFUSED = "joined with another command than process 0"


def command(folder: pathlib.Path, seed: int) -> list[str]:
  """The evaluation of a seed."""
  return [*RUN, f"--config.seed={seed}", f"--workdir={folder / str(seed)}"]


def start(folder: pathlib.Path, seed: int, port: str) -> subprocess.Popen:
  """A step of two processes; its log is beside its folder."""
  step = ["srun", "-n2", "--exact", "--kill-on-bad-exit=0"]
  given = {"JAX_COORDINATOR_PORT": port} if port else {}
  with (folder / f"{seed}.log").open("w") as log:
    return subprocess.Popen(
      [*step, *command(folder, seed), "--distributed"],
      env={**os.environ, **given}, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip


def same(rows: dict, wanted: dict) -> bool:
  """Whether the rows are those; a pixel may be rounded to its neighbour."""
  if rows.keys() != wanted.keys():
    return False
  for name, row in rows.items():
    if row | {"scores": None} != wanted[name] | {"scores": None}:
      return False
    for head, scores in row["scores"].items():
      alone = wanted[name]["scores"][head]
      if not np.allclose(scores, alone, rtol=0.02, atol=1e-4):
        return False
  return True


def rows_of(folder: pathlib.Path) -> dict:
  """The rows of a run, by id."""
  found = read_rows(folder)
  by_id = {row["id"]: row for row in found}
  assert len(by_id) == len(found), f"{folder}: a row twice"
  return by_id


def outcome(folder: pathlib.Path, seed: int, status: int, alone: dict) -> str:
  """What became of a step."""
  if status == 0:
    right = same(rows_of(folder / str(seed)), alone[seed])
    return "ended right" if right else "ended with other rows"
  text = (folder / f"{seed}.log").read_text(errors="replace")
  recorded = (folder / str(seed)).exists() and rows_of(folder / str(seed))
  if recorded:
    return "failed, with rows"
  if REFUSED in text:
    return "refused the other"
  return ABORTED if "Python error: Aborted" in text else "failed otherwise"


def ended(step: subprocess.Popen) -> int:
  """Waits for a step, which is ended after a while; its status."""
  try:
    return step.wait(LIMIT_S)
  except subprocess.TimeoutExpired:
    step.terminate()
    return step.wait()


def measure(counts: dict[str, int], port: str, alone: dict):
  """Starts two steps at once, and counts what became of each."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    steps = [start(folder, seed, port) for seed in SEEDS]
    statuses = [ended(step) for step in steps]
    counts["times"] = counts.get("times", 0) + 1
    for seed, status in zip(SEEDS, statuses, strict=True):
      what = outcome(folder, seed, status, alone)
      counts[what] = counts.get(what, 0) + 1
      if what not in GOOD:
        print((folder / f"{seed}.log").read_text()[-3000:])
  print(counts, flush=True)


def main(_):
  """Measures, prints and records."""
  assert "SLURM_JOB_ID" in os.environ, "start it with salloc -n4"
  alone = {}
  for seed in SEEDS:
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      quiet = subprocess.DEVNULL
      subprocess.run(command(folder, seed), check=True, stdout=quiet)
      alone[seed] = rows_of(folder / str(seed))
  # Else one could have the other's rows unseen.
  assert not same(alone[SEEDS[0]], alone[SEEDS[1]])
  out = pathlib.Path(OUT.value) if OUT.value else None
  before = json.loads(out.read_text()) if out and out.exists() else {}
  record = {
    "ports_of_their_own": before.get("ports_of_their_own", {}),
    "one_port": before.get("one_port", {}),
    "rows_of_a_step": len(alone[SEEDS[0]]),
    "slurm": subprocess.check_output(["srun", "--version"], text=True).strip(),
    "jax": jax.__version__,
    "python": platform.python_version(),
    "date": datetime.date.today().isoformat(),
  }
  ports = [""] * TIMES.value + ["61999"] * ONE_PORT.value
  for port in ports:
    counts = record["one_port" if port else "ports_of_their_own"]
    measure(counts, port, alone)
    if out:
      out.write_text(json.dumps(record, indent=1) + "\n")
  assert record["ports_of_their_own"].keys() <= {"times", *GOOD}, record
  assert record["one_port"].keys() <= {"times", *GOOD, ABORTED}, record


if __name__ == "__main__":
  app.run(main)
