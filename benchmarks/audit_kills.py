"""Kills audits at random instants, and compares with one left alone.

  python benchmarks/audit_kills.py --out=benchmarks/results/audit_kills.json

The audit has few rows and runs every stage in the Shapes model. Each start is
killed (SIGKILL) after a random time, at most as long as a whole audit takes,
until there were enough kills. An audit that ends earlier is followed by
another. All must end with the summary, the rows and the images of the one that
was left alone, but for times.
"""

import datetime
import hashlib
import json
import pathlib
import platform
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

from unlearning_jax.record import read_rows

OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
KILLS = flags.DEFINE_integer("kills", 10, "How often a start is killed.")
SEED = flags.DEFINE_integer("seed", 0, "Decides when.")
WORKER = flags.DEFINE_bool("worker", False, "Audit in this folder.")
_FOLDER = "audit"


def audit():
  """The audit itself, below the folder in which it was started."""
  import importlib

  import unlearning_jax as ul
  from unlearning_jax import settings
  from unlearning_jax.experiments import audit, common, evaluate

  configs = importlib.import_module("unlearning_jax.configs.audit")
  protocol = "shapes-star~rows_per_group=4,other_rows=4,steps=4"
  few = {"num_steps": 8, "checkpoints": (4, 8), "batch_size": 8}
  search = {"hparams": {"blocks": 2, "iterations": 5}}
  changes = {
    "attacks": {
      "random": {"hparams": {"blocks": 2}},
      "seed": {"hparams": {"blocks": 2}},
      "unlearn_diff_atk": search,
    },
    "tunings": {"lora": few},
  }
  values = settings.changed(configs.values(protocol), changes)
  given = settings.build(audit.Settings, values)
  edit = pathlib.Path("..", "edit")
  if not edit.exists():
    ul.erase(ul.load("shapes"), "star", "uce", out=edit)
  audit.run(
    given,
    lambda: common.workdir(_FOLDER, values, audit.Settings),
    evaluate.read_models(given.evaluate, [str(edit)]),
  )


def start(folder: pathlib.Path) -> subprocess.Popen:
  """A process that audits in a folder, or goes on with what is there."""
  folder.mkdir(exist_ok=True)
  script = pathlib.Path(__file__).absolute()
  command = [sys.executable, str(script), "--worker"]
  return subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)


def killed(
  root: pathlib.Path, names: list[str], most_s: float
) -> list[dict[str, Any]]:
  """Audits until there were enough kills; says when and where each was.

  Args:
    root: gets a folder for each audit.
    names: the stages of an audit, in order.
    most_s: the seconds that a whole audit takes.
  """
  kills, draw, number = [], random.Random(SEED.value), 0
  while len(kills) < KILLS.value:
    folder, number = root / f"killed-{number}", number + 1
    while True:
      worker, after = start(folder), draw.uniform(0, most_s)
      try:
        if len(kills) == KILLS.value:
          after = None
        assert worker.wait(after) == 0
        break
      except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
      place = folder / _FOLDER
      left = (one for one in names if not (place / one / "DONE").exists())
      stage = next(left, "the page") if place.exists() else "the start"
      kills.append(
        {"audit": number, "after_s": round(after or 0, 1), "stage": stage}
      )
  return kills


def told(folder: pathlib.Path) -> dict[str, Any]:
  """What an audit left, without times."""
  place = folder / _FOLDER
  summary = json.loads((place / "summary.json").read_text())
  del summary["provenance"]
  names = [one["name"] for one in summary["stages"]]
  for one in (*summary["stages"], *summary["cost"]):
    one["seconds"] = one["memory_bytes"] = None
  rows = {
    f"{name}: {row['id']}": row | {"seconds": None}
    for name in names
    if (place / name / "results.jsonl").exists()
    for row in read_rows(place / name)
  }
  images = {
    str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in place.rglob("*.png")
  }
  return {"summary": summary, "rows": rows, "images": images}


def main(_):
  """Measures and compares."""
  if WORKER.value:
    return audit()
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    # The first one compiles.
    for folder in ("warm", "alone"):
      began = time.monotonic()
      assert start(root / folder).wait() == 0
      lone_s = time.monotonic() - began
    alone = told(root / "alone")
    stages = [one["name"] for one in alone["summary"]["stages"]]
    kills = killed(root, stages, lone_s)
    others = [told(path) for path in sorted(root.glob("killed-*"))]
  record = {
    "kills": len(kills),
    "killed": kills,
    "audits": len(others),
    "rows": len(alone["rows"]),
    "images": len(alone["images"]),
    **{
      f"{key}_equal": all(one[key] == value for one in others)
      for key, value in alone.items()
    },
    "lone_audit_s": round(lone_s, 1),
    "python": platform.python_version(),
    "command": " ".join(["python", *sys.argv]),
    "date": datetime.date.today().isoformat(),
  }
  text = json.dumps(record, indent=1)
  print(text)
  if OUT.value:
    pathlib.Path(OUT.value).write_text(text + "\n")
  assert all(record[f"{key}_equal"] for key in alone)


if __name__ == "__main__":
  app.run(main)
