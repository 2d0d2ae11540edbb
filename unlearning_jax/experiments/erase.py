"""Erasing: an edit, or guidance, made once and read back after a restart."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from unlearning_jax import (
  checkpoints,
  concepts,
  durable,
  erasures,
  finetune,
  guidance,
  lists,
  sharding,
)
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import Edit, save_edit
from unlearning_jax.erasures import NO_HOOKS, Erasure, Hooks
from unlearning_jax.experiments import common
from unlearning_jax.guidance import Guidance
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder, training_log
from unlearning_jax.stable_diffusion import Params

STATISTICS = "statistics.safetensors"
# What a killed run goes on from, in its folder.
_STATES, _DRAWN = "checkpoints", "drawn"


def made(
  path: pathlib.Path,
  model: Model,
  erasure: Erasure,
  phrases: Sequence[Concept],
  seed: int,
  hooks: Hooks = NO_HOOKS,
  writes: bool = True,
) -> Edit | Guidance:
  """What an erasure makes, or read back where an earlier start had made it.

  Args:
    path: of the edit's file; guidance lies beside it, as `guidance.json`.
    model: the base.
    erasure: from `erasures.bind`.
    phrases: what to erase.
    seed: of all that it draws.
    hooks: see `erasures.Hooks`.
    writes: whether this process keeps it: one of those that make it together.
  """
  guided = path.with_name(common.GUIDANCE)
  for file in (path, guided):
    if file.exists():
      return common.read_made(file)
  key = jax.random.key(seed)
  found = erasure(model.sd, model.params, phrases, key, hooks)
  if writes and isinstance(found, Guidance):
    guidance.save(found, guided)
  elif writes and isinstance(found, Edit):
    save_edit(found, path)
  return found


def wanted(
  listed: Sequence[Mapping[str, Any]],
  held: str = "",
  allow_conflict: bool = False,
) -> tuple[Concept, ...]:
  """The concepts that a config lists, each holding a list as well.

  Args:
    listed: fields of `Concept` each.
    held: name of a list to preserve; what is erased is left out of it.
    allow_conflict: see `uce.Hparams`.

  Raises:
    ValueError: an unknown key or list; a blank, repeated or contradictory
      phrase.
  """
  known = [field.name for field in dataclasses.fields(Concept)]
  for concept in listed:
    for key in concept:
      concepts.check_choice("concepts key", key, known)
  found = tuple(Concept(**concept) for concept in listed)
  if held:
    erased = {concepts.same_phrase(concept.erase) for concept in found}
    kept = tuple(
      phrase
      for phrase in lists.load(held)
      if concepts.same_phrase(phrase) not in erased
    )
    found = tuple(
      dataclasses.replace(c, preserve=(*c.preserve, *kept)) for c in found
    )
  concepts.check_concepts(found, allow_conflict=allow_conflict)
  return found


def keeping(folder: pathlib.Path, writes: bool) -> Hooks:
  """Hooks that keep the statistics, from which `launch.amend` goes on."""

  def keep(statistics: erasures.Saved):
    if writes:
      statistics.save(folder / STATISTICS)

  return Hooks(keep=keep)


def recorded(run: Recorder, every: int, *, tensorboard: bool = False) -> Hooks:
  """Hooks that show, record and resume what takes long.

  Args:
    run: the run's record.
    every: steps between states to go on from.
    tensorboard: write events too.
  """
  return dataclasses.replace(
    keeping(run.path, run.is_writer),
    collect=functools.partial(_collect, run),
    trainer=functools.partial(_train, run, every, tensorboard),
  )


def tidy(run: Recorder):
  """Removes what a killed run would have gone on from: the edit is made."""
  sharding.wait_for_all("edit made")
  if run.is_writer:
    for name in (_STATES, _DRAWN):
      shutil.rmtree(run.path / name, ignore_errors=True)


def _train(
  run: Recorder,
  every: int,
  tensorboard: bool,
  *args: Any,
  num_steps: int,
  **options: Any,
) -> Params:
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
  run: Recorder, name: str, count: int, make: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
  """What `make` makes of each number, kept until the edit is made."""
  folder, found = run.path / _DRAWN, []
  files = [folder / f"{name}-{i:05}.safetensors" for i in range(count)]
  done = sum(file.exists() for file in files)
  with run.progress(f"draw {name}", count, done=done) as bar:
    for file in files:
      if file.exists():
        found.append(durable.load_tensors(file)[0][name])
        continue
      found.append(make(len(found)))
      if run.is_writer:
        durable.save_tensors(file, {name: found[-1]}, {})
      bar.update()
  return found
