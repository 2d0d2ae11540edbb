"""Attacks from Python, with the rows, lanes and budget of the scripts."""

import importlib
from collections.abc import Mapping
from typing import Any

from unlearning_jax import attacks, settings
from unlearning_jax.api import given as given_
from unlearning_jax.api.erasing import Subject, concept
from unlearning_jax.api.results import Table, pivot
from unlearning_jax.api.runs import Path, opener, page, plain
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import attack as experiment
from unlearning_jax.experiments.attack import victims
from unlearning_jax.experiments.attack.control import Control
from unlearning_jax.experiments.attack.control import own as of_victim
from unlearning_jax.model import Model

# The budget of a row in the attack matrix: images, and steps for each image.
BUDGET = {"blocks": 9, "iterations": 25}
CONTROLS = ("random", "seed", "none")


def attack(
  model: Model,
  subject: Subject | str,
  method: str = "unlearn_diff_atk",
  *,
  control: str | None = None,
  rows: int = 20,
  out: Path | None = None,
  hparams: Mapping[str, Any] | None = None,
  **changes: Any,
) -> Table:
  """Attacks an erased model, row by row.

  A row is a prompt for the concept with a seed. 20 rows, each with 9 blocks of
  25 iterations, take about a minute on two cores in the Shapes world.

  Args:
    model: the victim.
    subject: what was erased, from `ul.concept`, or its name.
    method: the attack, one of `ul.attacks()`.
    control: `random`, `seed` or `none` runs this control first, on the same
      rows with as many images, and compares; None runs no control.
    rows: the number of the world's prompts for each group.
    out: a folder that keeps the run, and `<out>-control` its control; None
      keeps both in memory.
    hparams: hyperparameters of the attack that differ from its defaults.
    **changes: fields of `experiments.attack.Settings` that differ.

  Returns:
    The rates with their intervals; `rows` has one record for each prompt.

  Raises:
    ValueError: an attack, control, setting or hyperparameter is unknown; or no
      judge knows the concept and there is no `prompt_table`.
  """
  check_choice("method", method, attacks.methods())
  model = given_.model("attack: model", model)
  if isinstance(subject, str):
    subject = concept(model, subject)
  if not isinstance(subject, Subject):
    raise ValueError(
      f"attack: subject={subject!r}: take one from ul.concept, or its name"
    )
  if not isinstance(hparams, Mapping | None):
    raise ValueError(f"attack: hparams={hparams!r}: give {{'blocks': 2}}")
  own = budget(method) | dict(hparams or {})
  given = configured(model, subject, method, rows, own, changes)
  # Refuses what it can before the control has run.
  victims.bind(given)
  beside: Control | None = None
  name = model.name
  by_model: dict[str, list[Mapping[str, Any]]] = {}
  if control is not None:
    check_choice("control", control, CONTROLS)
    folder = None if out is None else f"{out}-control"
    luck = _control(control, model, subject, rows, hparams or {}, changes)
    run, document = _run(luck, model, folder)
    beside = Control(control, run.rows(), plain(luck))
    by_model[control] = document["measures"]
  run, document = _run(given, model, out, beside)
  named = {f"{n} network": d for n, d in document.get("networks", {}).items()}
  for column, one in {method: document, **named}.items():
    by_model[column] = one["measures"]
  title = f"{method} on {name}, {subject.name!r}"
  if beside is not None:
    paired = document["control"]["paired"]
    title += (
      f": won {paired['only_attack']} rows that {control} lost, lost "
      f"{paired['only_control']} that it won, McNemar p={paired['p']:.2g}"
    )
  return pivot(
    title,
    by_model,
    rows=tuple(of_victim(run.rows())),
    summary=document,
    page=page(run.path),
  )


def _control(kind, model, subject, rows, hparams, changes):
  """The settings of an attack's control."""
  own = {"blocks": BUDGET["blocks"], **hparams, "kind": kind}
  own = {k: own[k] for k in ("blocks", "kind", "num_tokens") if k in own}
  # Of the attack alone; plain prompts share no words.
  apart = {"never_knew", "new_words"}
  apart |= set() if kind == "random" else {"sharing"}
  left = {k: v for k, v in changes.items() if k not in apart}
  return configured(model, subject, "controls", rows, own, left)


def budget(method: str) -> dict[str, int]:
  """The default budget of a row: images, and steps for each image."""
  steps = {} if method == "controls" else {"iterations": 25}
  return {"blocks": BUDGET["blocks"], **steps}


def configured(
  model: Model,
  subject: Subject,
  method: str,
  rows: int,
  hparams: Mapping[str, Any],
  changes: Mapping[str, Any],
) -> experiment.Settings:
  """The settings of the shipped config, with changes."""
  module = importlib.import_module(f"unlearning_jax.configs.attack_{method}")
  size = "tiny" if subject.world else "sd14"
  place = f",task={subject.task},name={subject.name}" if subject.world else ""
  values = module.get_config(size + place).to_dict()
  known = values["hparams"]
  for key in hparams:
    # Some attacks take no steps.
    if key in BUDGET and key not in known:
      continue
    known[key] = hparams[key]
  for key in changes:
    if key in known:
      given = {key: changes[key]}
      raise ValueError(f"attack: {key} is the attack's own: hparams={given}")
  own = {"model": model.source, "rows_per_group": rows}
  own |= given_.computing(model)
  values = settings.changed(values | own, changes)
  if subject.world:
    values.setdefault("targets", (subject.target,))
  return settings.build(experiment.Settings, values)


def _run(
  given: experiment.Settings,
  model: Model,
  out: Path | None,
  beside: Control | None = None,
) -> tuple[Any, dict[str, Any]]:
  opened = opener(out, given)
  document = experiment.run(given, opened, victim=model, beside=beside or "")
  return opened(), document
