"""Finished runs, made small once, and what reads their records."""

import functools
import importlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import unlearning_jax as ul
from unlearning_jax import settings
from unlearning_jax.experiments import audit, common, sweep
from unlearning_jax.experiments.audit import compare, packing
from unlearning_jax.record import Workdir, read_rows
from unlearning_jax.report import document, index, leaderboard

# Stages of the audit, which are runs of other verbs.
STAGES = {
  "evaluate": "evaluate",
  "attack": "attack/UCE2023/unlearn_diff_atk",
  "resurgence": "resurgence/UCE2023/lora",
}
# Nobody reads them here, or only their owner does.
_LARGE = ("checkpoints", "events", "statistics.safetensors")
_FEW = {
  "batch_size": 8, "grid_rows": 1, "sampling": {"num_inference_steps": 2},
}  # fmt: skip


@functools.cache
def scratch() -> str:
  """A folder for what lasts as long as the process."""
  held = tempfile.TemporaryDirectory(prefix="fuzz-runs-")
  _HELD.append(held)
  return held.name


_HELD: list[Any] = []


def make(root: pathlib.Path):
  """Erases, tunes and audits in the Shapes world, as little as there is."""
  base = ul.load("shapes")
  star = ul.concept(base, "star")
  erased = ul.erase(base, star, "uce", out=root / "erase")
  ul.finetune(erased, steps=2, out=root / "finetune")
  configs: Any = importlib.import_module("unlearning_jax.configs.audit")
  values = configs.values("shapes-star~rows_per_group=2,other_rows=3")
  values["evaluate"] = settings.changed(values["evaluate"], _FEW)
  for name, one in values["attacks"].items():
    own: dict[str, Any] = {"blocks": 1, "kind": name}
    if name == "unlearn_diff_atk":
      own = {"blocks": 1, "iterations": 1}
    more = _FEW | {"lanes": 2, "hparams": own}
    values["attacks"][name] = settings.changed(one, more)
  few = {"num_steps": 2, "checkpoints": (1, 2), "batch_size": 8, "log_every": 1}
  values["tunings"]["lora"] |= few
  values["tunings"]["lora"]["data"] |= {"count": 8}
  opened = functools.partial(
    common.workdir, str(root / "audit"), values, audit.Settings
  )
  given = settings.build(audit.Settings, values)
  audit.run(given, opened, {"base": base, "UCE2023": erased})


def loaders(folder: str) -> Iterator[tuple[str, Callable, Callable]]:
  """What reads records: a name, what writes a whole one, what reads it.

  Args:
    folder: keeps the runs; they are made if it is empty. "" makes none.
  """
  runs = pathlib.Path(folder or scratch())
  if folder and not (runs / "audit" / "DONE").exists():
    make(runs)
  places = {"erase": runs / "erase", "finetune": runs / "finetune"}
  places |= {verb: runs / "audit" / at for verb, at in STAGES.items()}
  for verb, place in places.items():
    copy = functools.partial(_copy, place)
    yield f"run of {verb}", copy, _open
    yield f"start of {verb}", copy, functools.partial(_start, place)
  yield "run to list", functools.partial(_copy, places["evaluate"]), _listed
  yield "leaderboard", functools.partial(_copy, places["evaluate"]), _board
  yield "audit", functools.partial(_copy, runs / "audit"), _audit
  yield "sweep", _write_sweep, _sweep


def _copy(source: pathlib.Path, root: pathlib.Path):
  """A copy without a seal, of which a damaged file is read as an old run's."""

  def left_out(_: str, names: list[str]) -> list[str]:
    return [
      n for n in names if n.endswith((".zip", ".html", ".npz")) or n in _LARGE
    ]

  shutil.copytree(source, root / "runs" / "run", ignore=left_out)
  for seal in root.rglob("DONE"):
    seal.write_text("")


def _open(root: pathlib.Path):
  run = ul.open(root / "runs" / "run")
  str(run)
  run._repr_html_()
  if (root / "runs" / "run" / "edit.safetensors").is_file():
    common.read_made(root / "runs" / "run")


def _start(whole: pathlib.Path, root: pathlib.Path):
  """A second start, of the same config, base and judge."""
  config, made = (
    json.loads((whole / name).read_text())
    for name in ("config.json", "provenance.json")
  )
  run = Workdir(root / "runs" / "run", config)
  run.rows()
  run.read_metrics()
  run.metrics(1_000_000, loss=1.0)
  keys = ("base_fingerprint", "judge_hashes", "inputs", "seeds")
  facts = {key: made["runs"][0][key] for key in keys}
  run.record_provenance(devices={}, **facts)


def _listed(root: pathlib.Path):
  index.write(root / "runs")
  document.read(root / "runs" / "run")


def _board(root: pathlib.Path):
  leaderboard.lines([root / "runs" / "run"])


def _audit(root: pathlib.Path):
  place = root / "runs" / "run"
  compare.printed(compare.compare(str(place), str(place)))
  with (root / "audit.zip").open("wb") as file:
    packing.pack(place, file, redact=True)


def _write_sweep(root: pathlib.Path):
  cells = [
    {"id": f"{i}", "values": {"x": i}, "method": "uce"} for i in range(2)
  ]
  place = root / "runs" / "run"
  for one in cells:
    cell = place / "cells" / one["id"]
    cell.mkdir(parents=True)
    (cell / "cost.json").write_text('{"seconds": 2.5}')
    (cell / "provenance.json").write_text('{"runs": []}')
    (cell / "results.jsonl").write_text('{"id": 1}\n')
    (cell / "summary.json").write_text(json.dumps({
      "models": ["base", "UCE"],
      "erased": [{"head": "object", "class": "star"}],
      "measures": {"base": [], "UCE": [
        {"name": "object/star/explicit", "value": 0.5, "low": 0.1, "high": 0.9,
         "k": 1, "n": 2}
      ]},
    }))  # fmt: skip
    (cell / "DONE").write_text("")
  plan = {"verb": "evaluate", "keys": ["x"], "cells": cells}
  (place / "sweep.json").write_text(json.dumps(plan))


def _sweep(root: pathlib.Path):
  place = root / "runs" / "run"
  table = sweep.table
  document_ = table.conclude(place)
  table.lines(document_)
  table.printed(place)
  table.first_seconds(place, [one["id"] for one in document_["cells"]])
  for one in document_["cells"]:
    read_rows(place / "cells" / str(one["id"]))
