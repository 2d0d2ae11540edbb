"""Hooks of an erasure that record it, and go on with what was recorded."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from unlearning_jax import checkpoints, durable, erasures, finetune, processes
from unlearning_jax.erasures import Hooks
from unlearning_jax.record import Recorder, training_log
from unlearning_jax.stable_diffusion import Params

STATISTICS = "statistics.safetensors"
# What a killed run goes on from.
_STATES, _DRAWN = "checkpoints", "drawn"


def keeping(folder: pathlib.Path, writes: bool) -> Hooks:
  """Hooks that keep the statistics from which `launch.amend` goes on."""

  def keep(found: erasures.Saved):
    if writes:
      found.save(folder / STATISTICS)

  return Hooks(keep=keep)


def recorded(run: Recorder, every: int, *, tensorboard: bool = False) -> Hooks:
  """Hooks that show, record and resume the parts that take long.

  Args:
    run: the record.
    every: steps between checkpoints.
    tensorboard: True writes TensorBoard events too.
  """
  return dataclasses.replace(
    keeping(run.path, run.is_writer),
    collect=functools.partial(_collect, run),
    trainer=functools.partial(
      _train, run, every, tensorboard, itertools.count()
    ),
  )


def tidy(run: Recorder):
  """Removes checkpoints and drawn images once the edit is made."""
  processes.wait_for_all("edit made")
  if run.is_writer:
    for pattern in (f"{_STATES}*", _DRAWN):
      for folder in run.path.glob(pattern):
        shutil.rmtree(folder, ignore_errors=True)


class Training(NamedTuple):
  """How a training begins and is recorded.

  Attributes:
    begin: maps its first state to the one to start from.
    watch: keeps its metrics and states.
  """

  begin: Callable[[finetune.TrainState], finetune.TrainState]
  watch: finetune.Watch


@contextlib.contextmanager
def training(
  run: Recorder,
  every: int,
  num_steps: int,
  turn: int = 0,
  *,
  tensorboard: bool = False,
  label: str = "train",
) -> Iterator[Training]:
  """Records a training while inside, and goes on from its last checkpoint.

  Args:
    run: the record.
    every: steps between checkpoints.
    num_steps: the step at which it ends.
    turn: trainings that the erasure asked for before this one.
    tensorboard: True writes TensorBoard events too.
    label: of the line that shows progress; "" shows none.
  """
  saved = run.path / (f"{_STATES}-{turn}" if turn else _STATES)
  at = range(every, num_steps, every)
  done = checkpoints.latest_step(saved) or 0

  def begin(state: finetune.TrainState) -> finetune.TrainState:
    # On the host, since each process trains on devices of its own.
    return checkpoints.restore(saved, jax.device_get(state)) if done else state

  def on_state(now: int, state: finetune.TrainState):
    if now in at:
      run.guard()
      checkpoints.save(saved, now, jax.device_get(state))

  def on_stop(now: int, state: finetune.TrainState):
    # Each process trains alone, and all would have to meet in a checkpoint.
    if jax.process_count() == 1:
      run.guard()
      checkpoints.save_new(saved, now, jax.device_get(state))

  log = training_log.TrainingLog(
    run, label, num_steps, done, tensorboard=tensorboard
  )
  watch = finetune.Watch(
    at=at, on_metrics=log, on_state=on_state, on_stop=on_stop
  )
  with log:
    yield Training(begin, watch)


def _train(
  run: Recorder,
  every: int,
  tensorboard: bool,
  turns: Iterator[int],
  *args: Any,
  num_steps: int,
  **options: Any,
) -> Params:
  """`finetune.train_erasure`, which goes on from the last checkpoint."""
  turn = next(turns)
  with training(run, every, num_steps, turn, tensorboard=tensorboard) as own:
    return finetune.train_erasure(
      *args, num_steps=num_steps, begin=own.begin, watch=own.watch, **options
    )


def _collect(
  run: Recorder, name: str, count: int, make: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
  """The results of `make` for 0 to count - 1, kept until the edit is made."""
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
        run.guard()
        durable.save_tensors(file, {name: found[-1]}, {})
      bar.update()
  return found
