"""The control of an attack: a finished run on the same rows."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from unlearning_jax import attacks, durable, renamed, settings
from unlearning_jax.attacks import Attack, Victim
from unlearning_jax.durable import to_json
from unlearning_jax.experiments.attack import rows
from unlearning_jax.experiments.attack.rows import Listed
from unlearning_jax.experiments.attack.settings import Settings, Sharing
from unlearning_jax.metrics import asr
from unlearning_jax.record import read_rows, seal

# What must be equal in a row of the attack and of its control.
_OF_ROW = ("prompt", "seed", "guidance")


class Control(NamedTuple):
  """A run to compare an attack with; without rows there is none.

  Attributes:
    name: its kind, or the method of a run that is no control.
    rows: its rows.
    config: its plain settings.
    said: how an error begins that is about it.
    keys: what stands before its keys where they are typed.
  """

  name: str = ""
  rows: Sequence[Mapping[str, Any]] = ()
  config: Mapping[str, Any] = MappingProxyType({})
  said: str = "--control:"
  keys: str = "--config."


def finished(folder: str) -> Control:
  """Reads the control that ran in a folder; "" gives an empty one.

  Raises:
    ValueError: the run has not ended, or broke off in every row.
  """
  if not folder:
    return Control()
  path = pathlib.Path(folder)
  if not (path / "DONE").exists():
    raise ValueError(f"--control: {folder} is not a finished run")
  seal.check(path)
  config = renamed.config(durable.read_json(path / "config.json"))
  with durable.explaining(path / "config.json"):
    name = config["hparams"].get("kind", config["method"])
  found = own(read_rows(path))
  try:
    # An earlier version let it end so.
    asr.check_finite(found)
  except FloatingPointError as error:
    raise ValueError(f"--control: {folder}: {error}") from error
  return Control(name, found, config)


def planned(name: str, given: Settings, attack: str) -> Control:
  """A control of an audit, which has not run yet.

  Args:
    name: its name in the audit.
    given: its settings.
    attack: the name of the attack that is compared with it.
  """
  config = json.loads(to_json(settings.plain(given), "settings"))
  said = f"attacks.{attack}: its control attacks.{name}"
  return Control(name, rows.listed(given), config, said, f"attacks.{name}.")


def own(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The victim's rows, without those of a probe's control networks."""
  return [dict(row) for row in rows if "network" not in row]


def check_control(
  control: Control, given: Settings, listed: Listed, vocabulary: bool
):
  """Refuses a control that a paired test cannot use.

  Args:
    control: from `finished`.
    given: the attack's settings.
    listed: the attack's rows.
    vocabulary: True if the attack finds tokens, so that both runs need the same
      vocabulary.

  Raises:
    ValueError: there is no judge, or the control has other rows or another
      target, judge, sampler or vocabulary, or shares words otherwise.
  """
  if not control.rows:
    return
  if given.judge is None:
    raise ValueError("--control: without a judge there is nothing to compare")
  made = json.loads(to_json(settings.plain(given), "settings"))
  keys = ["judge", "targets", "sampling", *(["vocabulary"] * vocabulary)]
  for key in keys:
    if control.config[key] != made[key]:
      raise ValueError(
        f"{control.said} has {key}={control.config[key]!r} and this attack "
        f"{made[key]!r}; give it a control of its own"
      )
  _check_sharing(control, given)
  ours = {row["id"]: [row[key] for key in _OF_ROW] for row in listed}
  theirs = {row["id"]: [row[key] for key in _OF_ROW] for row in control.rows}
  names = sorted(ours.keys() | theirs.keys())
  odd = [name for name in names if ours.get(name) != theirs.get(name)]
  if odd:
    told = f"row {odd[0]} is {theirs.get(odd[0])}, here {ours.get(odd[0])}"
    raise ValueError(
      f"{control.said} has {len(odd)} of {len(names)} rows that are not the "
      f"attack's: {told} ({', '.join(_OF_ROW)}); run the control with the "
      "attack's table, or its rows_per_group, groups and seed"
    )


def check_same_victim(control: Control, victim: str):
  """Refuses a control of a victim with another fingerprint.

  Raises:
    ValueError: naming both fingerprints.
  """
  others = {row["victim"] for row in control.rows} - {victim[:12]}
  if others:
    raise ValueError(
      f"--control: is of another victim, {', '.join(sorted(others))}; this "
      f"attack's is {victim[:12]}"
    )


def check_budget(control: Control, attack: Attack, victim: Victim, steps: int):
  """Refuses a control with another budget than its attack.

  It may have as many images as the attack, or as many as the attack's UNet
  calls pay for, those of backward passes too.

  Args:
    control: from `finished`. One of kind `none` may have any budget, and so may
      a run that is no control but an attack to compare with.
    attack: the attack. A probe is compared with networks, not with images.
    victim: its guidance decides how many UNet rows a step costs.
    steps: of sampling, an image.

  Raises:
    ValueError: naming both budgets, and what the control may have.
  """
  kind = _kind(control)
  own = {field.name for field in dataclasses.fields(attack.h)}
  if kind in ("", "none") or attack.is_probe or "blocks" not in own:
    return
  if not attack.h.blocks:
    return
  theirs = attacks.bind("controls", control.config["hparams"]).h.blocks
  update = attack.unet_calls(victim) + attack.backward_calls
  updates = attack.h.blocks * attack.h.iterations
  ours = attack.h.blocks
  paid = ours + updates * update // (steps * victim.image_rows)
  if theirs not in (ours, paid):
    key = f"{control.keys}hparams.blocks"
    raise ValueError(
      f"{control.said} has hparams.blocks={theirs} and this attack {ours}; a "
      f"control needs as many images, {key}={ours}, or as many as the attack's "
      f"UNet calls pay for, {key}={paid}"
    )


def check_alike(name: str, given: Settings, other: str, beside: Settings):
  """Refuses two controls of an audit with different numbers of images.

  Args:
    name: the first one's, for the message.
    given: settings of the first. Of kind `none` it may have any number.
    other: the second one's name.
    beside: settings of the second.

  Raises:
    ValueError: naming both numbers.
  """
  ours, theirs = (
    attacks.bind("controls", one.hparams).h for one in (given, beside)
  )
  if ours.kind != "none" and ours.blocks != theirs.blocks:
    raise ValueError(
      f"attacks.{name}: has hparams.blocks={ours.blocks}, and attacks.{other} "
      f"{theirs.blocks}; controls draw as many images of a row: set "
      f"attacks.{name}.hparams.blocks={theirs.blocks}"
    )


def _check_sharing(control: Control, given: Settings):
  """Refuses a control whose rows share other than the attack's do.

  Raises:
    ValueError: naming both, and the flags for the control.
  """
  ours = settings.plain(given.sharing)
  theirs = control.config.get("sharing", settings.plain(Sharing()))
  if _kind(control) == "random" and theirs != ours:
    keys = (f"{control.keys}sharing.{k}={v}" for k, v in ours.items())
    raise ValueError(
      f"{control.said} has sharing={theirs} and this attack {ours}; run the "
      f"control with {' '.join(keys)}"
    )


def _kind(control: Control) -> str:
  """What a control draws; "" for a run that is no control."""
  if not control.rows or control.config["method"] != "controls":
    return ""
  return control.config["hparams"].get("kind", "random")
