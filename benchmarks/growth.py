"""What a row costs in collectives, over devices and processes at equal work.

  python benchmarks/growth.py --kinds=attack,sample,tune,sweep \
    --out=benchmarks/results/growth.json

Each kind of work is a small run of a verb in the Shapes model. It runs on one
device; then on 2, 4 and 8 of one process; then in 2 and in 4 processes of two
devices each. A hook counts every execution of a program that has collectives,
and the bytes of their results on a device. The rows, or the tuned weights, must
be those of one device. Times are not compared, for two cores are no eight
devices. What is in the record already is not measured again.
"""

import collections
import datetime
import importlib
import json
import os
import pathlib
import platform
import runpy
import sys
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl import app, flags
from unlearning_jax.launch import local, places

from unlearning_jax import durable
from unlearning_jax.experiments.programs import measured
from unlearning_jax.record import read_rows

# Processes, and devices of each.
LAYOUTS = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (4, 2)]
FEW = ["--config.grid_rows=1", "--config.sampling.num_inference_steps=2"]
ROWS = 8
WORK = {
  "attack": [
    "attack", "--config=attack_unlearn_diff_atk:tiny,task=object,name=star",
    f"--config.rows_per_group={ROWS}", "--config.groups=('explicit',)",
    "--config.lanes=8", "--config.batch_size=8", "--config.hparams.blocks=2",
    "--config.hparams.iterations=2", *FEW,
  ],
  "sample": [
    "evaluate", "--config=evaluate_shapes:tiny", "--config.batch_size=8",
    f"--config.other_rows={ROWS}", *FEW,
  ],
  "tune": [
    "finetune", "--config=finetune_lora:tiny,only=object/star",
    "--config.data.count=16", f"--config.batch_size={ROWS}",
    "--config.num_steps=4", "--config.checkpoints=(4,)",
  ],
  "sweep": [
    "sweep", "--config=erase_uce:tiny", "--grid=concept=star,moon",
    "--grid=hparams.erase_scale=0.5,1", "--config.rows_per_group=1",
    "--config.other_rows=4", "--config.batch_size=8", *FEW,
  ],
}  # fmt: skip
COUNTS = "GROWTH_COUNTS"
# Programs keep their collectives, and compile in a third of the time.
SOON = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
# A pixel may round to its neighbour; Adam's first steps divide tiny gradients
# by their own size.
CLOSE, TUNED = 0.02, 2e-3


def count(file: pathlib.Path):
  """Runs the verb of the command line; writes what its programs exchanged."""
  from jax._src import pjit
  from jax._src.interpreters import pxla

  if jax.config.jax_compilation_cache_dir:
    # Else every process but the first compiles everything itself.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    importlib.import_module("tests.support.cache").share()
  found: dict[Any, dict[str, Any]] = {}
  known: dict[int, Any] = {}
  execute = pxla.ExecuteReplicated.__call__

  def counting(self, *arguments):
    program = self.xla_executable
    # It is kept, so that no other gets its id.
    if id(program) not in known:
      text = "\n".join(m.to_string() for m in program.hlo_modules())
      known[id(program)] = program, measured.collectives(text)
    if kinds := known[id(program)][1]:
      one = found.setdefault(
        self.name,
        {"executions": 0, "count": 0, "bytes": 0},
      )
      one["executions"] += 1
      for name in ("count", "bytes"):
        one[name] += sum(kind[name] for kind in kinds.values())
    return execute(self, *arguments)

  mock.patch.object(pxla.ExecuteReplicated, "__call__", counting).start()
  # The fast path of a program that ran before goes past Python.
  mock.patch.object(pjit, "_get_fastpath_data", lambda *_, **__: None).start()
  try:
    runpy.run_module("unlearning_jax.launch.main", run_name="__main__")
  finally:
    file.with_name(f"{file.name}-{os.getpid()}").write_text(json.dumps(found))


def run(
  kind: str, processes: int, devices: int, root: pathlib.Path
) -> tuple[dict, dict]:
  """Runs a kind of work; what its programs exchanged, and its rows."""
  folder = root / f"{processes}-{devices}"
  command = places.command(
    [*WORK[kind], f"--workdir={folder / 'run'}"], processes
  )
  # Past the interpreter and `-m unlearning_jax.launch.main`.
  command = [sys.executable, __file__, *command[3:]]
  added = [
    one | {COUNTS: str(folder / "counts"), "XLA_FLAGS": SOON}
    for one in local.environments(processes, devices)
  ]
  if local.run(command, added, folder):
    raise SystemExit(f"{kind} in {processes} processes failed")
  all_of: dict[str, collections.Counter[str]] = {}
  for file in folder.glob("counts-*"):
    for name, one in json.loads(file.read_text()).items():
      all_of.setdefault(name, collections.Counter()).update(one)
  # A collective is the same in all processes.
  programs = {
    name: {key: value // processes for key, value in one.items()}
    for name, one in sorted(all_of.items())
  }
  return programs, made(folder / "run")


def made(folder: pathlib.Path) -> dict:
  """All rows and tensors of a run, and of its cells."""
  found = {}
  for file in sorted(folder.rglob("provenance.json")):
    place = str(file.parent.relative_to(folder))
    rows = read_rows(file.parent)
    found |= {f"{place}/{row['id']}": row for row in rows}
    assert len({row["id"] for row in rows}) == len(rows), "a row twice"
  for file in sorted(folder.rglob("*.safetensors")):
    if "checkpoints" not in file.parts:
      tensors, _ = durable.load_tensors(file)
      place = str(file.relative_to(folder))
      found |= {f"{place}/{name}": leaf for name, leaf in tensors.items()}
  return found


def same(one: Any, other: Any) -> bool:
  """Whether two rows, tensors or parts of rows are the same but for costs."""
  if isinstance(one, dict):
    keys = one.keys() - {"seconds"}
    return keys == other.keys() - {"seconds"} and all(
      same(one[key], other[key]) for key in keys
    )
  if isinstance(one, list):
    return len(one) == len(other) and all(map(same, one, other))
  if isinstance(one, np.ndarray):
    gap = np.linalg.norm(np.float64(one) - other)
    return bool(gap <= TUNED * np.linalg.norm(np.float64(one)))
  if isinstance(one, float):
    return bool(np.isclose(one, other, rtol=CLOSE, atol=1e-4))
  return one == other


def measure(kind: str, found: list[dict], keep: Callable[[], object]):
  """Measures a kind of work in the layouts that are not in `found` yet."""
  with tempfile.TemporaryDirectory() as name:
    root, alone = pathlib.Path(name), None
    for processes, devices in LAYOUTS:
      shape = {"processes": processes, "devices": processes * devices}
      known = any(shape.items() <= one.items() for one in found)
      # The first is what the others are compared with.
      if known and alone is not None:
        continue
      programs, rows = run(kind, processes, devices, root)
      alone = rows if alone is None else alone
      if known:
        continue
      equal = rows.keys() == alone.keys() and all(
        same(alone[key], rows[key]) for key in alone
      )
      number = sum(isinstance(one, dict) for one in rows.values())
      found.append(
        shape | {"programs": programs, "equal": equal, "rows": number}
        | {"tensors": len(rows) - number}
      )  # fmt: skip
      print(kind, found[-1], flush=True)
      keep()


def main(_):
  """Measures, prints and records."""
  out = pathlib.Path(OUT.value) if OUT.value else None
  record = json.loads(out.read_text()) if out and out.exists() else {}

  def keep():
    if out:
      out.write_text(json.dumps(record, indent=1) + "\n")

  for kind in KINDS.value:
    layouts = record.get(kind, {}).get("layouts", [])
    record[kind] = {
      "command": " ".join(WORK[kind]),
      "layouts": layouts,
      "jax": jax.__version__,
      "python": platform.python_version(),
      "date": datetime.date.today().isoformat(),
    }
    measure(kind, layouts, keep)
    assert all(one["equal"] for one in layouts), kind


if __name__ == "__main__":
  if COUNTS in os.environ:
    count(pathlib.Path(os.environ[COUNTS]))
  else:
    OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
    KINDS = flags.DEFINE_list("kinds", [*WORK], "What to measure.")
    app.run(main)
