"""Two processes of four devices, by `local` and by SLURM: one device's rows.

Each verb is started as a user would start it, with the smallest budget.
"""

import csv
import json
import pathlib
import shutil
import subprocess
import time

import numpy as np
import pytest
from unlearning_jax.launch import slurm

from tests.support import scripts
from unlearning_jax import durable

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
NO_SLURM = (
  not shutil.which("sinfo")
  or subprocess.run(["sinfo"], capture_output=True).returncode != 0
)
FEW = [
  "--config.rows_per_group=1", "--config.other_rows=6", "--config.grid_rows=1",
  "--config.batch_size=4", "--config.sampling.num_inference_steps=2",
]  # fmt: skip
RUNS = {
  "erase": ["--config=erase_uce:tiny,name=star", *FEW],
  "attack": [
    "--config=attack_unlearn_diff_atk:tiny,task=object,name=star",
    "--config.rows_per_group=5", "--config.groups=('explicit',)",
    "--config.lanes=2", "--config.batch_size=2", "--config.hparams.blocks=2",
    "--config.hparams.iterations=2", "--config.sampling.num_inference_steps=4",
  ],
  "finetune": [
    "--config=finetune_lora:tiny,without=object/star", "--config.data.count=16",
    "--config.batch_size=8", "--config.num_steps=3",
    "--config.checkpoints=(1,3)", "--config.log_every=1",
  ],
  "evaluate": ["--config=evaluate_shapes:tiny,name=star", *FEW],
  "sweep": [
    "--config=erase_uce:tiny", "--grid=concept=star,moon",
    "--grid=hparams.erase_scale=0.5,1", *FEW,
  ],
  "audit": [
    "--protocol=shapes-star~rows_per_group=1,other_rows=3,steps=2",
    "--skip=finetune,resurgence", "--lanes=2", "--batch_size=4",
  ],
}  # fmt: skip
EDITS = {
  "attack": "--edit", "finetune": "--edit", "evaluate": "--edits",
  "audit": "--edits",
}  # fmt: skip
VERDICT = ("victim", "question", "verdict", "value", "low", "high", "n")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Verb -> the folder of its run in one process of one device."""
  root = tmp_path_factory.mktemp("alone")

  def made(verb):
    folder = root / verb
    if not folder.exists():
      flags = words(verb, made, folder)[1:]
      scripts.run_all(scripts.start(verb, flags, quick=True))
    return folder

  return made


def words(verb, made, folder):
  """The command line of a verb after the launcher's."""
  edits = [f"{EDITS[verb]}={made('erase')}"] if verb in EDITS else []
  return [verb, *RUNS[verb], *edits, f"--workdir={folder}"]


def locally(command, folder):
  scripts.run(
    "local", "--processes=2", "--devices=4", f"--logs={folder}", "--", *command,
    env=scripts.QUICK,
  ).finish()  # fmt: skip


def by_slurm(command, folder):
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setenv("JAX_NUM_CPU_DEVICES", "4")
    patch.setenv("JAX_PLATFORMS", "cpu")
    patch.setenv("XLA_FLAGS", scripts.QUICK["XLA_FLAGS"])
    job = slurm.submit(slurm.script(slurm.Job(tasks_per_node=2), command))
  until = time.monotonic() + scripts.TIMEOUT
  state = ["squeue", "--noheader", f"--job={job}", "--format=%T"]
  try:
    while subprocess.run(state, capture_output=True, text=True).stdout.strip():
      assert time.monotonic() < until
      time.sleep(0.5)
  finally:
    subprocess.run(["scancel", job], capture_output=True)


# Their own tests start the same processes: `attack_processes_test`,
# `finetune_processes_test` and `processes_test`.
ELSEWHERE = ("attack", "finetune", "evaluate")
needs_slurm = pytest.mark.skipif(NO_SLURM, reason="there is no SLURM here")
CASES = [
  pytest.param(verb, locally, id=f"{verb}-local")
  for verb in RUNS
  if verb not in ELSEWHERE
] + [
  pytest.param(verb, by_slurm, id=f"{verb}-slurm", marks=needs_slurm)
  for verb in RUNS
]


@pytest.mark.parametrize("verb, start", CASES)
def test_two_processes_of_four_devices(verb, start, alone, tmp_path):
  whole, folder, logs = alone(verb), tmp_path / "run", tmp_path / "logs"
  logs.mkdir()
  start(words(verb, alone, folder), logs)
  said = "".join(path.read_text() for path in logs.glob("*.log"))[-3000:]
  found, wanted, kept = rows(folder), rows(whole), tensors(whole)
  assert wanted.keys() == found.keys() and (wanted or kept), said
  for name, row in wanted.items():
    assert found[name] == near(row), name
  same_tensors(tensors(folder), kept)
  assert verdicts(folder) == near(verdicts(whole))
  assert table(folder) == near(table(whole))
  shared(verb, folder)


def rows(root):
  """All rows below a folder without their cost, by folder and id."""
  found = {}
  for file in sorted(root.rglob("results*.jsonl")):
    run = str(file.parent.relative_to(root))
    for line in file.read_text().splitlines():
      row = json.loads(line)
      assert (run, row["id"]) not in found
      found[run, row["id"]] = bare(row)
  return found


def bare(value):
  """Without what it cost in seconds."""
  if isinstance(value, dict):
    return {k: bare(v) for k, v in value.items() if k != "seconds"}
  return [*map(bare, value)] if isinstance(value, list) else value


def verdicts(root):
  """Those of an audit, as its summary has them."""
  found = json.loads((root / "summary.json").read_text()).get("verdicts", [])
  return [{key: one.get(key) for key in VERDICT} for one in found]


def near(value):
  """What a value must equal; a pixel may round to its neighbour."""
  if isinstance(value, dict):
    return {k: near(v) for k, v in value.items()}
  if isinstance(value, list):
    return [near(one) for one in value]
  if isinstance(value, float):
    return pytest.approx(value, rel=0.02, abs=1e-4)
  return value


def tensors(root):
  """All that the runs hand on: the leaves of every edit, by file and name."""
  found = {}
  for file in sorted(root.rglob("*.safetensors")):
    if "checkpoints" not in file.parts:
      leaves = durable.load_tensors(file)[0]
      found |= {(str(file.relative_to(root)), n): x for n, x in leaves.items()}
  return found


def same_tensors(found, wanted):
  assert found.keys() == wanted.keys()
  for name, leaf in wanted.items():
    gap = np.linalg.norm(np.float64(found[name]) - leaf)
    # Adam's first steps divide tiny gradients by their own size.
    assert gap <= 2e-3 * np.linalg.norm(leaf), (name, gap)


def table(root):
  """The cells of a sweep's table, or of the like."""
  file = root / "results.csv"
  if not file.exists():
    return []
  with file.open() as opened:
    return [
      {k: number(v) for k, v in row.items()} for row in csv.DictReader(opened)
    ]


def number(text):
  try:
    return float(text)
  except ValueError:
    return text


def shared(verb, folder: pathlib.Path):
  """Both processes had rows of their own; a sweep's cell has one's devices."""
  if verb == "sweep":
    cells = [*folder.glob("cells/*/provenance.json")]
    assert len(cells) == 4
    counts = {devices(file)["process_count"] for file in cells}
    assert counts == {1} and {devices(f)["count"] for f in cells} == {4}
    return
  file = next(iter(sorted(folder.rglob("provenance.json"))))
  assert devices(file)["process_count"] == 2 and devices(file)["count"] == 8


def devices(file):
  return json.loads(file.read_text())["runs"][-1]["devices"]
