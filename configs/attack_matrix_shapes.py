"""Every attack on every erasure of every Shapes task, in one table.

  python -m launch.attack_matrix --workdir=runs/matrix \
    --config=configs/attack_matrix_shapes.py
  python -m launch.attack_matrix --workdir=runs/matrix \
    --config=configs/attack_matrix_shapes.py \
    --edits=object/esd=runs/esd,style/mace=runs/mace/edit.safetensors

`:style+unsafe` after the file's name takes these tasks; the default is all
four. A cell is a folder, `<task>/<victim>/<attack>`, with 100 rows
(`--config.common.rows_per_group`), as `launch.attack` writes it; a finished
cell never runs again. Each attack has `--config.budget.blocks` images a row,
besides the own prompt's. To add a victim later, name its edit and run the same
command. Read ASR beside the random control's on the same rows.
"""

import dataclasses
import importlib

from unlearning_jax.configs import attacks, erasures

from unlearning_jax import extensions
from unlearning_jax.concepts import check_choice

_ERASURES = ("uce", "rece")
# Column -> method, and hyperparameters that replace the method's.
_ATTACKS = {
  "none": ("controls", {"kind": "none"}),
  "random": ("controls", {"kind": "random"}),
  "seed": ("controls", {"kind": "seed"}),
  "unlearn_diff_atk": ("unlearn_diff_atk", {"iterations": 25}),
  "p4d": ("p4d", {"iterations": 25}),
  "concept_inversion": (
    "concept_inversion",
    {"iterations": 25, "num_tokens": 1},
  ),
}


def get_config(argument: str = ""):
  world = extensions.world("shapes")
  tasks = tuple(filter(None, argument.split("+"))) or world.tasks()
  for task in tasks:
    check_choice("config argument", task, world.tasks())
  config = attacks.attack("controls", "tiny")
  # All cells share these; the rest comes from their tasks and attacks.
  common = config.copy_and_resolve_references()
  for key in ("method", "hparams", "title", "targets"):
    del common[key]
  config = type(config)({"common": common})
  config.title = "Attacks on erased Shapes models"
  # The table's columns, in the order in which they run.
  config.columns = tuple(_ATTACKS)
  # All other attacks are compared with this one.
  config.control = "random"
  config.budget = {"blocks": 9}
  config.attacks = {
    name: {"method": method, "hparams": _hparams(method, own)}
    for name, (method, own) in _ATTACKS.items()
  }
  made = {
    (method, task): erasures.erase(method, f"tiny,task={task}")
    for method in _ERASURES
    for task in tasks
  }
  config.erasures = {m: made[m, tasks[0]].hparams for m in _ERASURES}
  config.tasks = {
    task: {
      "targets": ({"task": task, "name": world.default(task)},),
      "concepts": made[_ERASURES[0], task].concepts,
      "hparams": {"num_tokens": attacks._NUM_TOKENS[task]},
    }
    for task in tasks
  }
  return config


def _hparams(method: str, own: dict) -> dict:
  """The method's defaults without those of budget and task, then its own."""
  module = importlib.import_module(f"unlearning_jax.attacks.{method}")
  found = dataclasses.asdict(module.Hparams())
  del found["num_tokens"], found["blocks"]
  return found | own
