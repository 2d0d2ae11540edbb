"""The settings of a matrix of attacks, checked before anything is loaded."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from unlearning_jax import attacks, erasures, settings
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.experiments import attack
from unlearning_jax.experiments.attack import rows, victims
from unlearning_jax.settings import Output

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Erased:
  """A victim that the matrix erases; `str` is its folder."""

  task: str
  victim: str

  def __str__(self) -> str:
    return f"{self.task}/{self.victim}"


@dataclasses.dataclass(frozen=True)
class Cell(Erased):
  """One attack on one victim of one task; `str` is its folder."""

  attack: str

  def __str__(self) -> str:
    return f"{super().__str__()}/{self.attack}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
  """An attack of a matrix.

  Attributes:
    method: the attack, see `attacks.methods`.
    hparams: fields of its `Hparams` besides those of budget and task.
    changes: dotted key of the common settings -> this attack's own value.
    control: the column to compare it with; "" for the matrix's control.
  """

  method: Output[str]
  hparams: Output[Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  changes: Output[Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  control: Output[str] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A task of a matrix: what was erased.

  Attributes:
    targets: the targets, as `attack.Settings.targets`.
    concepts: the concepts to erase, fields of `Concept` each.
    hparams: hyperparameters of every attack on the task.
  """

  targets: Output[tuple[Mapping[str, str], ...]]
  concepts: Output[tuple[Concept, ...]]
  hparams: Output[Mapping[str, Any]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    check_concepts(self.concepts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Every attack on every victim of every task.

  Attributes:
    common: fields of `attack.Settings` that all cells have.
    attacks: name -> attack.
    tasks: name -> task.
    erasures: method -> its hyperparameters, for victims that are erased here.
    columns: names of `attacks`, in the order in which they run.
    control: the column that the others are compared with.
    budget: hyperparameters of all attacks.
    title: the title of the page.
  """

  common: Output[Mapping[str, Any]]
  attacks: Output[Mapping[str, Column]]
  tasks: Output[Mapping[str, Task]]
  erasures: Output[Mapping[str, Mapping[str, Any]]]
  columns: Output[tuple[str, ...]]
  control: Output[str]
  budget: Output[Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  title: Output[str] = ""

  def __post_init__(self):
    if self.common.get("judge") is None:
      raise ValueError(
        "common.judge=None: a matrix compares rates; name a judge"
      )
    for name in self.columns:
      check_choice("columns", name, list(self.attacks))
    check_choice("control", self.control, self.columns)
    for name in self.columns:
      own = self.attacks[name].control or self.control
      check_choice(f"attacks.{name}.control", own, self.columns)
    for method, hparams in self.erasures.items():
      erasures.bind(method, hparams)
      if not erasures.module(method).CHANGES:
        raise ValueError(
          f"erasures.{method}: it guides and changes no weight, and a matrix "
          "attacks edits; use launch.attack with --config.guidance"
        )
    for task in self.tasks:
      for name in self.columns:
        own = self.attack(Cell(task, BASE, name))
        _check_plain(own)
        if attacks.bind(own.method, own.hparams).is_probe or own.never_knew:
          raise ValueError(
            f"attacks.{name}: a matrix has no control networks for a probe or "
            "for never_knew; use launch.attack"
          )
        if own.hparams.get("pool"):
          raise ValueError(
            f"attacks.{name}.hparams.pool={own.hparams['pool']!r}: a matrix "
            "draws no pool of images; use launch.attack"
          )
        beside = self.control_of(Cell(task, BASE, name))
        luck = self.attack(beside)
        theirs = luck.sharing
        # New seeds and plain prompts have no words to share.
        shares = luck.hparams.get("kind", "random") == "random"
        if own.method != "controls" and shares and own.sharing != theirs:
          raise ValueError(
            f"attacks.{name}: has {own.sharing} and its control "
            f"{beside.attack!r} {theirs}; give attacks.{name}.control a column "
            "that shares words likewise"
          )
      own = self.attack(Cell(task, BASE, self.columns[0]))
      victims.check_guidance(own, rows.listed(own))

  def cells(self, given: Iterable[Erased] = ()) -> list[Cell]:
    """Every cell; those of the first attack come first.

    Args:
      given: victims that other runs made.
    """
    return [
      Cell(task, victim, name)
      for name in self.columns
      for task in self.tasks
      for victim in self.victims(task, given)
    ]

  def victims(self, task: str, given: Iterable[Erased] = ()) -> list[str]:
    """The victims of a task, in the table's order."""
    added = [one.victim for one in given if one.task == task]
    return [BASE, *self.erasures, *added]

  def check_given(self, given: Iterable[Erased]):
    """Refuses victims of other runs with an unknown task or a taken name.

    Raises:
      ValueError: naming the victim.
    """
    for one in given:
      check_choice("--edits", one.task, list(self.tasks))
      if one.victim in (BASE, *self.erasures):
        raise ValueError(f"--edits: '{one}' is not a new <task>/<name>")

  def control_of(self, cell: Cell) -> Cell:
    """The cell to compare a cell with: its own control, or the matrix's."""
    own = self.attacks[cell.attack].control or self.control
    return dataclasses.replace(cell, attack=own)

  def config(self, cell: Cell) -> dict[str, Any]:
    """The config of a cell, as `launch.attack` would have it."""
    column, task = self.attacks[cell.attack], self.tasks[cell.task]
    found = {
      **self.common,
      "method": column.method,
      "hparams": {**self.budget, **task.hparams, **column.hparams},
    }
    for key, value in column.changes.items():
      found = settings.changed(found, settings.nested(key, value))
    title = f"{cell.attack} on {cell.victim}, {cell.task}"
    return found | {"targets": task.targets, "title": title}

  def attack(self, cell: Cell) -> attack.Settings:
    """The settings of a cell."""
    return settings.build(attack.Settings, self.config(cell))


def _check_plain(own: attack.Settings):
  """Refuses settings of an attack that a matrix would not follow.

  Raises:
    ValueError: naming the key.
  """
  kept: dict[str, Any] = {"victim": own.victim, "new_words": own.new_words}
  guiding = dataclasses.asdict(own.guidance)
  kept |= {f"guidance.{key}": value for key, value in guiding.items()}
  kept["diffusion_classifier.timesteps"] = own.diffusion_classifier.timesteps
  for key, value in kept.items():
    if value:
      raise ValueError(
        f"common.{key}={value!r}: a matrix does not follow it; use "
        "launch.attack"
      )
