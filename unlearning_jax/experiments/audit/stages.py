"""The stages of an audit: experiments, each in a folder of its own.

Nothing is drawn or judged here. A stage's folder is as its own launch script
would leave it, so it goes on by itself and has its own page.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from unlearning_jax import convert, erasures, processes
from unlearning_jax import settings as settings_
from unlearning_jax.attacks import Victim
from unlearning_jax.durable import to_json
from unlearning_jax.edits import edit_between, load_edit
from unlearning_jax.experiments import (
  attack,
  common,
  drawing,
  erase,
  evaluate,
  finetune,
  memory,
)
from unlearning_jax.experiments.attack import control
from unlearning_jax.experiments.attack import rows as attack_rows
from unlearning_jax.experiments.attack import victims as attacked
from unlearning_jax.experiments.audit.settings import Settings, Stage
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder, read_rows, seal
from unlearning_jax.report.comparison import BASE, key

CONTROL = "random"
# What a guided victim cannot do.
GUIDED = "it acts by guidance and has no changed weight that could be tuned"


class Audit:
  """An audit that is running: its victims, and what its stages share.

  Args:
    given: the settings.
    models: the base as `base`, and each victim by its name.

  Raises:
    ValueError: there is no victim, a victim has another base, something cannot
      be drawn or attacked, or an attack does not fit its control.
  """

  def __init__(self, given: Settings, models: Mapping[str, Model]):
    self.given, self.base = given, models[BASE]
    self._victims = {
      name: of_base(model, self.base, name)
      for name, model in models.items()
      if name != BASE
    }
    self.names = [*self._victims]
    if given.erase is not None:
      name = given.erase.method.upper()
      self.names.append(name + f"-{len(models)}" * (name in models))
    if not self.names:
      raise ValueError(
        "victims: an audit needs an erased model: --edits=RUN, --erased=FILE, "
        "or --config=erase_uce:tiny"
      )
    for model in (self.base, *self._victims.values()):
      evaluate.check_fits(given.evaluate, model)
    for one in given.attacks.values():
      attacked.bind(one)
    self.stages = given.stages(self.names)
    self._check_controls()

  def _check_controls(self):
    """Refuses attacks that could not be compared with their control."""
    run = {stage.what for stage in self.stages if stage.kind == "attack"}
    beside = self.given.attacks.get(CONTROL)
    if beside is None:
      return
    victims = [Victim.of(model) for model in self._victims.values()]
    if self.given.erase and erasures.module(self.given.erase.method).CHANGES:
      # What it draws and is attacked with costs as many calls as the base's.
      victims.append(Victim(self.base.params))
    for name in sorted(run - {CONTROL}):
      one = self.given.attacks[name]
      if one.judge is None:
        continue
      if one.method == "controls":
        control.check_alike(name, one, CONTROL, beside)
        continue
      bound, listed = attacked.bind(one), attack_rows.listed(one)
      own = control.planned(CONTROL, beside, name)
      control.check_control(own, one, listed, bound.finds == "prompt")
      for victim in victims:
        steps = one.sampling.num_inference_steps
        control.check_budget(own, bound, victim, steps)

  def open(self, record: Recorder):
    """Puts the stages' folders below a record's."""
    self.root, self._guard = record.path, record.guard

  def folder(self, stage: Stage) -> pathlib.Path:
    """The folder of a stage."""
    return self.root / str(stage)

  def why_not(self, stage: Stage) -> str:
    """Why a stage cannot be run for its victim; "" where it can."""
    victim = self._victims.get(stage.victim)
    guided = victim is not None and victim.guidance is not None
    if victim is None and self.given.erase is not None:
      guided = not erasures.module(self.given.erase.method).CHANGES
    return GUIDED if guided and stage.kind in ("finetune", "resurgence") else ""

  def victim(self, name: str) -> Model:
    """A victim; one that is erased here is read from its stage.

    Raises:
      ValueError: its erasure has not ended.
    """
    if name not in self._victims:
      folder = self.folder(Stage("erase"))
      if not (folder / "DONE").exists():
        raise ValueError(f"{name}: its erasure has not ended; see {folder}")
      made = common.read_made(folder)
      self._victims[name] = self.base.with_made(made)
    return self._victims[name]

  def run(self, stage: Stage) -> dict[str, Any]:
    """Runs a stage to its end; returns what it cost.

    Raises:
      ValueError: whatever its experiment raises, or the device has too little
        memory; the message names the flags to halve.
    """
    started = time.monotonic()
    try:
      {
        "erase": self._erase,
        "evaluate": self._evaluate,
        "attack": self._attack,
        "finetune": self._finetune,
        "resurgence": self._resurgence,
      }[stage.kind](stage)
    except jax.errors.JaxRuntimeError as error:
      if not memory.is_short(error):
        raise
      sizes = self.sizes(stage)
      raise ValueError(memory.remedy(error, sizes)) from error
    return {
      "seconds": round(time.monotonic() - started, 3),
      "memory_bytes": _peak(),
    }

  def sizes(self, stage: Stage) -> dict[str, int]:
    """What a stage computes at once, by the names of the audit's flags."""
    given = self.given
    if stage.kind == "attack":
      own = given.attacks[stage.what]
      lanes = given.lanes or own.lanes
      return {"lanes": lanes, "batch_size": given.batch_size or own.batch_size}
    if stage.kind in ("evaluate", "resurgence"):
      return {"batch_size": given.batch_size or given.evaluate.batch_size}
    # The batch of a training decides its result.
    return {}

  def planned(self) -> tuple[Any, ...]:
    """The settings of the stages that run, each as its experiment has them."""
    stages = (one for one in self.stages if not self.why_not(one))
    return tuple(map(self._own, stages))

  def draws_safely(self) -> bool:
    """Whether a victim draws, or may draw, with Safe Latent Diffusion."""
    made = self.given.erase
    if made is not None and not erasures.module(made.method).CHANGES:
      return True
    return any(one.drawing["safe"] for one in self._victims.values())

  def _own(self, stage: Stage) -> Any:
    if stage.kind == "erase":
      return self.given.erase
    if stage.kind == "finetune":
      return self.given.tunings[stage.what]
    if stage.kind == "attack":
      own = self.given.attacks[stage.what]
      return dataclasses.replace(own, **self.sizes(stage))
    return self._drawn()

  def _drawn(self) -> drawing.Settings:
    size = self.given.batch_size or self.given.evaluate.batch_size
    return dataclasses.replace(self.given.evaluate, batch_size=size)

  def _opener(self, stage: Stage, own: Any) -> Callable[[], Recorder]:
    plain = json.loads(to_json(settings_.plain(own), "settings"))
    return functools.partial(
      common.workdir, str(self.folder(stage)), plain, type(own),
      guard=self._guard,
    )  # fmt: skip

  def _erase(self, stage: Stage):
    assert self.given.erase is not None
    opened = self._opener(stage, self.given.erase)
    erase.run(self.given.erase, opened, self.base)

  def _evaluate(self, stage: Stage):
    models = {BASE: self.base} | {n: self.victim(n) for n in self.names}
    own = self._drawn()
    evaluate.run(own, self._opener(stage, own), models)

  def _attack(self, stage: Stage):
    title = f"{stage.what} on {stage.victim}"
    own = dataclasses.replace(self._own(stage), title=title)
    beside = self.folder(dataclasses.replace(stage, what=CONTROL))
    compares = own.method != "controls" and (beside / "DONE").exists()
    drawn, known = self._known(stage, own)
    opened = functools.partial(
      self._with_images, self._opener(stage, own), own, drawn, known
    )
    attack.run(
      own, opened, victim=self.victim(stage.victim),
      # Without a judge there is nothing to compare.
      beside=str(beside) if compares and own.judge else "",
      known=known,
    )  # fmt: skip

  def _known(
    self, stage: Stage, own: attack.Settings
  ) -> tuple[pathlib.Path, list[dict[str, Any]]]:
    """Rows whose own prompts the victim has drawn for another attack.

    Returns:
      The folder of the first finished attack that drew them alike, and its rows
      with an image. Without one there are no rows.

    Raises:
      DamagedError: a file of it differs; so in every process.
    """
    for what, one in self.given.attacks.items():
      folder = self.folder(dataclasses.replace(stage, what=what))
      alike = what != stage.what and _drawn_as(one) == _drawn_as(own)
      if own.judge and alike and (folder / "DONE").exists():
        seal.check(folder, images=True)
        rows = control.own(read_rows(folder))
        return folder, [row for row in rows if row["pre_image"]]
    return self.folder(stage), []

  def _with_images(
    self,
    opened: Callable[[], Recorder],
    own: attack.Settings,
    drawn: pathlib.Path,
    known: Sequence[Mapping[str, Any]],
  ) -> Recorder:
    """A record with the images that other attacks have drawn for its rows.

    These are the victim's of the prompts as given, and the target images.
    """
    record = opened()
    for row in known if record.is_writer else ():
      image = row["pre_image"]
      record.write(image, (drawn / image).read_bytes())
    for other in (
      Stage("attack", victim, what)
      for victim in self.names
      for what, one in self.given.attacks.items()
      if record.is_writer and _targets(one) == _targets(own)
    ):
      targets = self.folder(other) / "images/targets"
      if (self.folder(other) / "DONE").exists() and targets.is_dir():
        for image in sorted(targets.glob("*.png")):
          record.write(f"images/targets/{image.name}", image.read_bytes())
        break
    processes.wait_for_all("images taken")
    return record

  def _finetune(self, stage: Stage):
    own, victim = self.given.tunings[stage.what], self.victim(stage.victim)
    targets = self.given.evaluate.world_targets
    more = finetune.data_of(self.given.data, victim, targets)
    own = dataclasses.replace(own, data=dataclasses.replace(own.data, **more))
    finetune.run(own, self._opener(stage, own), victim)

  def _resurgence(self, stage: Stage):
    tuned = dataclasses.replace(stage, kind="finetune")
    files = sorted((self.folder(tuned) / "steps").glob("*.safetensors"))
    if not files or not (self.folder(tuned) / "DONE").exists():
      raise ValueError(f"{stage}: {tuned} has no checkpoint to draw with")
    victim = self.victim(stage.victim)
    models = {BASE: self.base, stage.victim: victim} | {
      f"step-{int(file.stem)}": victim.with_edit(load_edit(file))
      for file in files
    }
    # The rows are the evaluation's. Its metrics and its protocol's columns
    # need pictures that are not drawn again.
    title = f"{stage.victim} while it is tuned"
    own = dataclasses.replace(
      self._drawn(), metrics=(), columns=(), protocol="", title=title
    )
    opened = functools.partial(
      self._with_drawn, self._opener(stage, own), stage.victim
    )
    evaluate.run(own, opened, models)

  def _with_drawn(
    self, opened: Callable[[], Recorder], victim: str
  ) -> Recorder:
    """A record with the evaluation's rows of base and victim in it."""
    record, drawn = opened(), self.folder(Stage("evaluate"))
    if (drawn / "DONE").exists() and record.is_writer:
      known = record.done_ids()
      for row in read_rows(drawn):
        if row["model"] not in (BASE, victim) or row["id"] in known:
          continue
        name = f"{row['id'].partition('/')[2]}-{key(row['model'])}.png"
        image = drawn / "images" / name
        if image.is_file():
          record.write(f"images/{name}", image.read_bytes())
        record.append_row(row)
    processes.wait_for_all("drawn rows taken")
    return record


def _targets(one: attack.Settings) -> tuple[Any, ...]:
  """What decides the target images of an attack."""
  rows = one.prompt_table, one.groups, one.rows_per_group, one.seed
  return (*rows, one.targets, one.target_images, one.target_drawing)


def _drawn_as(one: attack.Settings) -> tuple[Any, ...]:
  """What decides an attack's images of a prompt, and what is seen in them."""
  how = one.sampling, one.guidance, one.victim, one.judge, one.targets
  return (*how, one.dtype, one.attention, one.kernels)


def of_base(model: Model, base: Model, name: str) -> Model:
  """A victim as the base with what was changed; the base itself is one too.

  Raises:
    ValueError: it was made from another base, or has other shapes.
  """
  same = model.params is base.params
  if model.edit is not None or model.guidance is not None:
    if not same and _hash(model) != _hash(base):
      raise ValueError(
        f"victims: {name} was made from another base than the audit's "
        f"({_hash(model)[:12]}, not {_hash(base)[:12]}); audit it alone, with "
        "its own base"
      )
    return dataclasses.replace(model, sd=base.sd, params=base.params)
  if same or _hash(model) == _hash(base):
    return base
  edit = edit_between(
    base.params, model.params, method=name, concepts=(), diagnostics={}
  )
  return dataclasses.replace(base, edit=edit)


def _hash(model: Model) -> str:
  return convert.params_fingerprint(model.params)


def _peak() -> int | None:
  """The most memory that a device has used; None where it does not count."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use")
