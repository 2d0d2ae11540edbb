"""The runs that `stops` disturbs, and what a run leaves.

Every verb with a folder, in the Shapes world, with the smallest settings.
"""

import collections
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from unlearning_jax.launch import local

from unlearning_jax import durable
from unlearning_jax.record import read_rows
from unlearning_jax.shapes import model_folder

# What no two runs share, wherever it stands.
TIMES = {
  "seconds", "seconds_per_row", "wall_s", "memory_bytes", "provenance",
  "command", "started",
}  # fmt: skip
DRAWN = [
  "--config.rows_per_group=1", "--config.other_rows=2", "--config.grid_rows=1",
  "--config.batch_size=2", "--config.sampling.num_inference_steps=2",
]  # fmt: skip
ATTACK = [
  "--config=attack_unlearn_diff_atk:tiny,task=unsafe",
  "--config.rows_per_group=4", "--config.groups=('implied',)",
  "--config.lanes=2", "--config.batch_size=2", "--config.hparams.blocks=2",
  "--config.hparams.iterations=2", "--config.hparams.num_tokens=2",
  "--config.sampling.num_inference_steps=2",
]  # fmt: skip
ESD = [
  "--config=erase_esd:tiny", "--edit_only", "--checkpoint_every=2",
  "--config.hparams.num_steps=8", "--config.hparams.num_inference_steps=2",
  "--config.hparams.batch_size=2",
]  # fmt: skip
TUNED = [
  "--config=finetune_lora:tiny,without=object/star", "--edit={uce}",
  "--config.batch_size=4", "--config.data.count=8", "--config.num_steps=6",
  "--config.checkpoints=(1,3,6)", "--config.log_every=1",
  "--config.checkpoint_every=2",
]  # fmt: skip
EVALUATED = [
  "--config=evaluate_shapes:tiny,task=object,name=star", "--edits={uce}",
  *DRAWN,
]  # fmt: skip
MATRIX = [
  "--config=attack_matrix_shapes:object", "--config.common.rows_per_group=2",
  "--config.common.lanes=2", "--config.common.batch_size=2",
  "--config.common.sampling.num_inference_steps=2", "--config.budget.blocks=1",
  "--config.columns=('none', 'random')",
]  # fmt: skip
STUDY = """
from unlearning_jax.configs import resurgence


def get_config():
  block = {
    "methods": ("uce",), "concepts": ("star",), "sets": ("near", "control"),
    "algorithms": ("full",), "defenses": ("none",), "seeds": (0,),
  }
  counts = {"explicit": 4, "words": 1, "others": 1, "tuned": 2}
  config = resurgence.study([block], (1, 2), counts)
  config.batch_size, config.sampling.num_inference_steps = 8, 2
  for tuning in config.algorithms.values():
    tuning.batch_size, tuning.data.count = 4, 8
  return config
"""
# An audit with two images of two iterations, and two steps of tuning.
SHORT_AUDIT = """
import runpy
from unlearning_jax.configs import audit
audit._BUDGETS["quick"] = audit._BUDGETS["quick"]._replace(
  rows=2, blocks=2, iterations=2, tunings={"lora": (1, 2)})
runpy.run_module("launch.audit", run_name="__main__", alter_sys=True)
"""
AUDIT = [
  "--protocol=shapes-star~rows_per_group=1,other_rows=2,steps=2",
  "--edits={uce}", "--lanes=2", "--batch_size=2",
]  # fmt: skip


class Case(NamedTuple):
  """A verb with its flags, in so many processes."""

  verb: str
  flags: Sequence[str]
  processes: int = 1


CASES = {
  "uce": Case("erase", ["--config=erase_uce:tiny", *DRAWN]),
  "esd": Case("erase", ESD),
  "attack": Case("attack", ATTACK),
  "evaluate": Case("evaluate", EVALUATED),
  "finetune": Case("finetune", TUNED),
  "sweep": Case(
    "sweep",
    ["--config=erase_uce:tiny", "--grid=hparams.erase_scale=0.5,1", *DRAWN],
  ),
  "audit": Case("audit", AUDIT),
  "resurgence": Case("resurgence", ["--config={work}/study.py"]),
  "attack_matrix": Case("attack_matrix", MATRIX),
  "convert": Case("convert", [f"--input={model_folder()}"]),
  "audit, 2 processes": Case("audit", AUDIT, 2),
  "evaluate, 2 processes": Case("evaluate", EVALUATED, 2),
  "attack, 2 processes": Case("attack", ATTACK, 2),
  "esd, 2 processes": Case("erase", ESD, 2),
  "finetune, 2 processes": Case("finetune", TUNED, 2),
}


def start(case: Case, folder: pathlib.Path) -> list[subprocess.Popen]:
  """The processes of a run, which append to `<folder>.log`."""
  work = folder.parents[1]
  names = {"work": work, "uce": work / "whole/uce"}
  command = [sys.executable, "-m", f"launch.{case.verb}"]
  if case.verb == "audit":
    command = [sys.executable, "-c", SHORT_AUDIT]
  command += [text.format(**names) for text in case.flags]
  command += (
    [f"--output={folder / 'model'}", "--overwrite"]
    if case.verb == "convert"
    else [f"--workdir={folder}"]
  )
  if case.processes > 1:
    command.append("--distributed")
  with folder.with_suffix(".log").open("ab") as log:
    return [
      subprocess.Popen(
        command, stdout=log, stderr=log, env={**os.environ, **more},
        cwd=pathlib.Path(__file__).resolve().parents[1],
      )
      for more in local.environments(case.processes, 1)
    ]  # fmt: skip


def scrubbed(value: Any) -> Any:
  """A JSON value without what no two runs share."""
  if isinstance(value, Mapping):
    return {k: scrubbed(v) for k, v in value.items() if k not in TIMES}
  return [*map(scrubbed, value)] if isinstance(value, list) else value


def contents(folder: pathlib.Path) -> dict[str, Any]:
  """What a finished run left: name -> what must be equal."""
  found: dict[str, Any] = {}
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    is_state = {"checkpoints", "leases"} & {*path.parts}
    if (is_state and "tmp" not in path.name) or path.is_dir():
      continue
    if re.fullmatch(r"results[-\d]*\.jsonl", path.name):
      rows = sorted(read_rows(path.parent), key=lambda row: str(row["id"]))
      found[f"{path.parent.relative_to(folder)}: rows"] = scrubbed(rows)
    elif path.name == "metrics.jsonl":
      lines = [json.loads(line) for line in path.read_text().splitlines()]
      counts = collections.Counter(line["step"] for line in lines)
      found[f"{name}: steps that stand twice"] = counts.total() - len(counts)
      # A study counts what it has spent, which stops add to.
      if "what" not in lines[0]:
        found[name] = scrubbed(sorted(lines, key=lambda line: line["step"]))
    elif path.suffix == ".safetensors":
      tensors, facts = durable.load_tensors(path)
      sums = {k: zlib.crc32(v.tobytes()) for k, v in tensors.items()}
      found[name] = [sums, facts]
    elif path.suffix == ".csv":
      text = path.read_text().replace(str(folder), ".")
      found[name] = scrubbed([*csv.DictReader(text.splitlines())])
    elif path.suffix == ".png":
      found[name] = zlib.crc32(path.read_bytes())
    elif path.suffix == ".json" and path.name != "provenance.json":
      text = path.read_text().replace(str(folder), ".")
      found[name] = scrubbed(json.loads(text))
    else:
      # Pages and archives hold times; leftover files would be more names.
      found[name] = None
  return found


def differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
  """Where two values differ, in words."""
  if isinstance(was, dict) and isinstance(now, dict):
    for key in sorted(was.keys() | now.keys()):
      one, other = was.get(key, "absent"), now.get(key, "absent")
      yield from differences(one, other, f"{name}/{key}")
  elif isinstance(was, list) and isinstance(now, list):
    if len(was) != len(now):
      yield f"{name}: {len(was)} entries, {len(now)} after stops"
    for i, (one, other) in enumerate(zip(was, now, strict=False)):
      yield from differences(one, other, f"{name}[{i}]")
  elif was != now:
    yield f"{name}: {was!r:.100} -> {now!r:.100}"
