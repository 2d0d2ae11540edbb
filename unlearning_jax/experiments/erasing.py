"""An erasure as a config describes it, for `erase` and `attack_matrix`."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from unlearning_jax import (
  checkpoints,
  concepts,
  durable,
  erasures,
  finetune,
  lists,
  sharding,
)
from unlearning_jax.edits import Edit, edit_between, load_edit, save_edit
from unlearning_jax.record import progress, training_log, workdir

# What a killed run goes on from, in its folder.
_STATES, _DRAWN = "checkpoints", "drawn"


def erase(
  path: pathlib.Path,
  sd: Any,
  params: Any,
  config: Any,
  hooks: Mapping[str, Callable[..., Any]] | None = None,
) -> Edit:
  """The edit: made, or read back where an earlier start had made it.

  Args:
    path: of the edit's file; process 0 writes it, and beside it what
      `launch.amend` needs, where the method has that.
    sd: the model.
    params: its parameters.
    config: `method`, `hparams`, `concepts` and `seed`.
    hooks: for the method, where it has them, as `keep`.
  """
  if path.exists():
    return load_edit(path)
  phrases, hparams = wanted(config), dict(config.hparams)
  hooks = {"keep": functools.partial(_keep, path.parent), **(hooks or {})}
  accepted = erasures.hyperparameters(config.method)
  hparams |= {name: hook for name, hook in hooks.items() if name in accepted}
  made = erasures.bind(config.method, hparams)(
    sd, params, phrases, jax.random.key(config.seed)
  )
  if not isinstance(made, Edit):
    made = edit_between(
      params, made, method=config.method, concepts=phrases, diagnostics={}
    )
  if jax.process_index() == 0:
    save_edit(made, path)
  return made


def _keep(folder: pathlib.Path, statistics: Any):
  if jax.process_index() == 0:
    statistics.save(folder / "statistics.safetensors")


def wanted(config: Any) -> tuple[concepts.Concept, ...]:
  """The concepts that the config lists, each holding its list as well.

  Raises:
    ValueError: an unknown key or list; a blank, repeated or contradictory
      phrase.
  """
  known = [field.name for field in dataclasses.fields(concepts.Concept)]
  for concept in config.concepts:
    for key in concept:
      concepts.check_choice("concepts key", key, known)
  listed = tuple(concepts.Concept(**concept) for concept in config.concepts)
  if config.get("preserve"):
    erased = {concepts.same_phrase(concept.erase) for concept in listed}
    held = tuple(
      phrase
      for phrase in lists.load(config.preserve)
      if concepts.same_phrase(phrase) not in erased
    )
    listed = tuple(
      dataclasses.replace(c, preserve=(*c.preserve, *held)) for c in listed
    )
  conflict = config.hparams.get("allow_conflict", False)
  concepts.check_concepts(listed, allow_conflict=conflict)
  return listed


def recorded(
  run: workdir.Workdir, every: int, *, tensorboard: bool = False
) -> dict[str, Callable[..., Any]]:
  """The hooks of `erase` that show, record and resume what takes long.

  Args:
    run: the run's record.
    every: steps between states to go on from.
    tensorboard: write events too.
  """
  return {
    "collect": functools.partial(_collect, run),
    "trainer": functools.partial(_train, run, every, tensorboard),
  }


def tidy(run: workdir.Workdir):
  """Removes what a killed run would have gone on from: the edit is made."""
  sharding.wait_for_all("edit made")
  if run.is_writer:
    for name in (_STATES, _DRAWN):
      shutil.rmtree(run.path / name, ignore_errors=True)


def _train(
  run: workdir.Workdir,
  every: int,
  tensorboard: bool,
  *args: Any,
  num_steps: int,
  **options: Any,
):
  """`finetune.train_erasure`, from the last checkpoint on."""
  saved, at = run.path / _STATES, range(every, num_steps, every)
  done = checkpoints.latest_step(saved) or 0

  def begin(state: finetune.TrainState) -> finetune.TrainState:
    # On the host: each process trains by itself, on devices of its own.
    return checkpoints.restore(saved, jax.device_get(state)) if done else state

  def on_state(now: int, state: finetune.TrainState):
    if now in at:
      checkpoints.save(saved, now, jax.device_get(state))

  log = training_log.TrainingLog(
    run, "train", num_steps, done, tensorboard=tensorboard
  )
  with log:
    return finetune.train_erasure(
      *args, num_steps=num_steps, begin=begin, at=at, on_metrics=log,
      on_state=on_state, **options,
    )  # fmt: skip


def _collect(
  run: workdir.Workdir, name: str, count: int, make: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
  """What `make` makes of each number, kept until the edit is made."""
  folder, found = run.path / _DRAWN, []
  files = [folder / f"{name}-{i:05}.safetensors" for i in range(count)]
  done = sum(file.exists() for file in files)
  with progress.Progress(f"draw {name}", count, done=done) as bar:
    for file in files:
      if file.exists():
        found.append(durable.load_tensors(file)[0][name])
        continue
      found.append(make(len(found)))
      if run.is_writer:
        durable.save_tensors(file, {name: found[-1]}, {})
      bar.update()
  return found
