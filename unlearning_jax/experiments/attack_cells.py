"""The cells of a matrix of attacks: which there are, and how one is run."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from unlearning_jax import attacks, concepts, erasures, sharding
from unlearning_jax import settings as settings_
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine.rows import Row
from unlearning_jax.edits import (
  Edit,
  apply_to_params,
  check_base,
  edit_hash,
  load_edit,
)
from unlearning_jax.experiments import attack, common, erase
from unlearning_jax.experiments.attack import (
  check as checks,
)
from unlearning_jax.experiments.attack import (
  control as controls,
)
from unlearning_jax.experiments.attack import (
  rows,
  summary,
  victims,
)
from unlearning_jax.model import Model
from unlearning_jax.record.workdir import read_rows

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Cell:
  """One attack on one victim of one task; `str` is its folder."""

  task: str
  victim: str
  attack: str

  def __str__(self) -> str:
    return f"{self.task}/{self.victim}/{self.attack}"


class Matrix:
  """All cells, and what they share: a model, its targets, their own images.

  Args:
    config: as `configs/attack_matrix_shapes.py` makes it.
    root: the matrix's folder; a cell's is `<task>/<victim>/<attack>` in it.
    given: edits from elsewhere, by `<task>/<name>`.
  """

  def __init__(
    self,
    config: Any,
    root: pathlib.Path,
    given: Mapping[str, Edit],
  ):
    self.config, self.root, self._given = config, root, given
    host = common.load_model(config.common)
    for edit in given.values():
      check_base(edit, host.params)
    # Processes share no array: each runs cells of its own.
    self._mesh = sharding.make_mesh(devices=jax.local_devices())
    self.sd, self.params = host.sd, self._placed(host.params)
    self._base = dataclasses.replace(host, params=self.params)
    self._tables: dict[str, list[Row]] = {}
    self._check()

  def _check(self):
    """Refuses, by its name, a column that would fail in every cell."""
    for task in self.config.tasks:
      for name in self.config.columns:
        cell = Cell(task, BASE, name)
        own = attack_settings(self.config, cell)
        try:
          checks.fits(self._setup(own, {}), rows.listed(own))
        except ValueError as error:
          raise ValueError(f"{cell}: {error}") from error

  def _setup(self, own: attack.Settings, edits: Mapping[str, Edit]):
    victim = original = Victim(self.params)
    for edit in edits.values():
      # In the weights: so one program serves every victim.
      victim = Victim(self._placed(apply_to_params(edit, self.params)))
    judge, (target,) = common.load_judge(own), common.targets_of(own)
    return victims.Setup(
      given=own, attack=victims.bind(own), base=self._base, victim=victim,
      original=original, mesh=self._mesh, edits=edits, judge=judge,
      target=target, name=victims.fingerprint(victim, dict(edits)),
    )  # fmt: skip

  def run(self, cell: Cell, label: str):
    """Runs a cell to its end, unless it has been; then does nothing.

    Args:
      cell: which.
      label: of its progress line.

    Raises:
      ValueError: its folder holds another run, or its edit is missing.
    """
    config = settings(self.config, cell)
    own = attack_settings(self.config, cell)
    edits = self._edits(cell)
    path = self.root / str(cell)
    listed = rows.listed(own)
    inputs = rows.hashes(own, listed)
    if (path / "DONE").exists():
      _check_done(path, config, edits, inputs)
      return
    run = common.workdir(str(path), config, attack.Settings, alone=True)
    common.begin(run, own, self.params, edits, inputs)
    table = self._table(cell.task)
    setup = self._setup(own, edits)
    check = checks.checker(run, setup, listed)
    for other in self._others(cell):
      records = read_rows(self.root / str(other))
      check = checks.remembering(check, records, f"../{other.attack}")
    done = run.done_ids()
    left = [row for row in table if row.id not in done]
    with run.progress(label, len(table), done=len(done)) as bar:
      for record in attack.attacked(
        run, setup, left, check, lanes=min(own.lanes, len(table))
      ):
        bar.update(note=record["status"])
    control = controls.Control()
    beside = control_of(self.config, cell)
    if beside != cell and (self.root / str(beside) / "DONE").exists():
      control = controls.finished(str(self.root / str(beside)))
    summary.conclude(run, setup, control, self._targets(cell.task))
    run.mark_done()

  def erase(self, task: str, victim: str):
    """Makes the edit of a victim, unless it is there.

    Raises:
      ValueError: the erasure cannot do that.
    """
    path = self._edit_file(task, victim)
    path.parent.mkdir(parents=True, exist_ok=True)
    writes = jax.process_index() == 0
    erase.made(
      path,
      Model(self.sd, self.params),
      erasures.bind(victim, self.config.erasures[victim]),
      erase.wanted(self.config.tasks[task].concepts),
      self.config.common.seed,
      erase.keeping(path.parent, writes),
      writes,
    )

  def _others(self, cell: Cell) -> Iterator[Cell]:
    """A cell of the same victim whose rows tell what their prompts give."""
    for name in self.config.columns:
      other = dataclasses.replace(cell, attack=name)
      if other != cell and (self.root / str(other) / "DONE").exists():
        yield other
        return

  def _edits(self, cell: Cell) -> dict[str, Edit]:
    name = f"{cell.task}/{cell.victim}"
    if cell.victim == BASE:
      return {}
    if name in self._given:
      return {name: self._given[name]}
    file = self._edit_file(cell.task, cell.victim)
    if not file.exists():
      raise ValueError(f"{name}: no edit {file}; its erasure has failed")
    return {name: load_edit(file)}

  def _edit_file(self, task: str, victim: str) -> pathlib.Path:
    return self.root / task / victim / "edit.safetensors"

  def _targets(self, task: str) -> pathlib.Path:
    return self.root / task / "targets"

  def _table(self, task: str) -> list[Row]:
    """A task's rows with their targets, drawn once for all cells."""
    if task not in self._tables:
      own = attack_settings(self.config, cells(self.config, [task], {})[0])
      self._tables[task] = rows.targeted(
        self._base, rows.listed(own), own, self._mesh, self._targets(task)
      )
    return self._tables[task]

  def _placed(self, params: Any) -> Any:
    return sharding.place(params, sharding.replicated(self._mesh))


def _check_done(
  path: pathlib.Path,
  config: Any,
  edits: Mapping[str, Edit],
  inputs: Mapping[str, str],
):
  """Whether a finished cell is the one that is asked for."""
  run = common.workdir(str(path), config, attack.Settings, alone=True)
  hashes = {name: edit_hash(edit) for name, edit in edits.items()}
  run.check_inputs({**hashes, **inputs}, common.NEWER)


def cells(
  config: Any, tasks: Sequence[str], given: Mapping[str, Any]
) -> list[Cell]:
  """Every cell of some tasks, the first attack's first.

  Args:
    config: the matrix's.
    tasks: names from it.
    given: edits from elsewhere, by `<task>/<name>`.
  """
  return [
    Cell(task, victim, attack)
    for attack in config.columns
    for task in tasks
    for victim in victim_names(config, task, given)
  ]


def victim_names(config: Any, task: str, given: Mapping[str, Any]) -> list[str]:
  """The victims of a task, in the table's order."""
  added = [n.split("/", 1)[1] for n in given if n.split("/", 1)[0] == task]
  return [BASE, *config.erasures, *added]


def control_of(config: Any, cell: Cell) -> Cell:
  """What a cell is compared with: its attack's own control, or the matrix's."""
  own = config.attacks[cell.attack].get("control", config.control)
  return dataclasses.replace(cell, attack=own)


def settings(config: Any, cell: Cell) -> Any:
  """The config of a cell, as `launch.attack` would have it."""
  attack, task = config.attacks[cell.attack], config.tasks[cell.task]
  found = ml_collections.ConfigDict(config.common.to_dict())
  found.method = attack.method
  found.hparams = {
    **config.budget,
    **task.hparams,
    **attack.hparams,
  }
  # What an attack changes besides its hyperparameters.
  found.update_from_flattened_dict(attack.get("changes", {}))
  found.targets = tuple(task.targets)
  found.title = f"{cell.attack} on {cell.victim}, {cell.task}"
  return found


def attack_settings(config: Any, cell: Cell) -> attack.Settings:
  """The same, checked."""
  return settings_.build(attack.Settings, settings(config, cell).to_dict())


def check(config: Any, given: Mapping[str, Any]):
  """Finds what is wrong with a matrix before anything is loaded.

  Raises:
    ValueError: naming the key.
    TypeError: a hyperparameter that its method does not have.
  """
  for name in config.columns:
    concepts.check_choice("columns", name, list(config.attacks))
  concepts.check_choice("control", config.control, config.columns)
  for name in config.columns:
    own = config.attacks[name].get("control", config.control)
    concepts.check_choice(f"attacks.{name}.control", own, config.columns)
  _check_common(config.common)
  for name in given:
    task, _, victim = name.partition("/")
    concepts.check_choice("--edits", task, list(config.tasks))
    if not victim or victim in (BASE, *config.erasures):
      raise ValueError(f"--edits: {name!r} is not a new <task>/<name>")
  for cell in cells(config, list(config.tasks), given):
    own = attack_settings(config, cell)
    attacks.bind(own.method, own.hparams)
    if own.hparams.get("pool"):
      raise ValueError(
        f"attacks.{cell.attack}.hparams.pool={own.hparams['pool']!r}: a matrix "
        "draws no pool of images; use launch.attack"
      )
  for task in config.tasks:
    own = attack_settings(config, cells(config, [task], given)[0])
    victims.check_guidance(own, rows.listed(own))


def _check_common(common: Any):
  """Refuses what a cell of a matrix would not do, and would say it did.

  Raises:
    ValueError: naming the key.
  """
  if common.judge is None:
    raise ValueError("common.judge=None: a matrix compares rates; name a judge")
  kept = {"victim": common.victim, "words": common.words}
  kept |= {f"guidance.{key}": value for key, value in common.guidance.items()}
  kept["proxy.timesteps"] = common.proxy.timesteps
  for key, value in kept.items():
    if value:
      raise ValueError(
        f"common.{key}={value!r}: a matrix attacks its edits as they are; use "
        "launch.attack"
      )
