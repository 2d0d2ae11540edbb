"""Trainings of several erasures, those of one kind in one program."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from unlearning_jax import sharding
from unlearning_jax.finetune import packed
from unlearning_jax.finetune.loop import (
  Batched,
  Loss,
  Params,
  TrainState,
  Watch,
  erasure_step,
  init_state,
  train,
  train_erasure,
)
from unlearning_jax.record.progress import Progress

Context = contextlib.AbstractContextManager[Any]


class Asked(NamedTuple):
  """What an erasure asks to be trained; see `train_erasure`."""

  loss: Loss
  tx: optax.GradientTransformation
  trained: Params
  frozen: Any
  batches: Batched
  key: PRNGKeyArray
  batch_size: int
  num_steps: int


class Member(NamedTuple):
  """One of the trainings.

  Attributes:
    asked: what is trained.
    begin: maps its first state to the one to start from, as a resume does.
    watch: called as if it trained alone, but with states at `watch.at` only.
    failing: a context that records an error of this member's own.
  """

  asked: Asked
  begin: Callable[[TrainState], TrainState]
  watch: Watch
  failing: Callable[[], Context]


def train_together(
  members: Sequence[Member],
  shown: Callable[[int, int, int], Progress],
) -> list[Params | None]:
  """Trains several erasures; each ends as if it trained alone.

  Those with one loss, one optimizer and equal shapes share a program. It
  splits them over this process's devices, whole trainings to each. A training
  that is not finite at any step fails; alone it fails at watched steps only.

  Args:
    members: the trainings.
    shown: maps (trainings, their steps, those done before) to a line of
      progress.

  Returns:
    The trained parameters of each on the host; None for one that failed.
  """
  states: list[TrainState | None] = [None] * len(members)
  kinds: dict[Hashable, list[int]] = {}
  for i, one in enumerate(members):
    with one.failing():
      # On the host: a device need not hold the states of the others.
      first = jax.device_get(
        init_state(one.asked.trained, one.asked.tx, ema=False)
      )
      state = one.begin(first)
      kinds.setdefault(_kind(one.asked, state), []).append(i)
      states[i] = state
  found: list[Params | None] = [None] * len(members)
  for rows in kinds.values():
    pack, own = [members[i] for i in rows], []
    for i in rows:
      own.append(states[i])
      states[i] = None
    steps, done = pack[0].asked.num_steps, int(own[0].step)
    with shown(len(pack), steps, done) as bar:
      run = _alone if len(pack) == 1 else _train_pack
      trained = run(pack, own, functools.partial(_shows, bar, done))
    for i, params in zip(rows, trained, strict=True):
      found[i] = params
  return found


def _kind(asked: Asked, state: TrainState) -> Hashable:
  """Equal for trainings that one program can do."""
  done = int(state.step)
  batch = asked.batches[done] if done < asked.num_steps else {}
  leaves, tree = jax.tree.flatten((state, asked.frozen, batch))
  shapes = tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves)
  return asked.loss, id(asked.tx), asked.num_steps, done, tree, shapes


def _shows(bar: Progress, done: int, watch: Watch) -> Watch:
  """A watch that moves the line of progress, too."""

  def on_metrics(now: int, values: dict[str, float]):
    nonlocal done
    watch.on_metrics(now, values)
    bar.update(now - done)
    done = now

  return dataclasses.replace(watch, on_metrics=on_metrics)


def _alone(
  pack: Sequence[Member],
  states: list[TrainState],
  shows: Callable[[Watch], Watch],
) -> list[Params | None]:
  """Trains a pack of one."""
  (one,), (state,) = pack, states
  with one.failing():
    trained = train_erasure(
      **one.asked._asdict(), begin=lambda _: state, watch=shows(one.watch)
    )
    return [trained]
  return [None]


class _NobodyLeft(Exception):
  """All of a pack have failed."""


def _train_pack(
  pack: Sequence[Member],
  states: list[TrainState],
  shows: Callable[[Watch], Watch],
) -> list[Params | None]:
  """Trains a pack; `states` is empty afterwards."""
  first, count = pack[0], len(pack)
  devices = jax.local_devices()
  # As few devices as end as soon, since each gets as many trainings.
  each = -(-count // len(devices))
  devices = devices[: -(-count // each)]
  filled = [*pack, *[pack[-1]] * (each * len(devices) - count)]
  step = erasure_step(first.asked.loss, first.asked.tx)
  mesh = sharding.make_mesh(devices=devices)
  alive = set(range(count))
  states += [states[-1]] * (len(filled) - count)

  def stacked() -> Any:
    """Their state, which nobody else holds: it is as large as all of them."""
    state = packed.pack(states)
    states.clear()
    return state

  try:
    # `train` takes any state that has a step.
    final: Any = train(
      stacked(),
      packed.make_packed_step(step, mesh),
      packed.packed_frozen(
        [one.asked.frozen for one in filled], [one.asked.key for one in filled]
      ),
      packed.PackedBatches([one.asked.batches for one in filled]),
      first.asked.key,
      mesh=mesh,
      num_steps=first.asked.num_steps,
      watch=shows(_watch(pack, alive)),
      layout=packed.layout,
    )
  except _NobodyLeft:
    return [None] * count
  return [
    packed.taken(final.runs.params, i) if i in alive else None
    for i in range(count)
  ]


def _watch(pack: Sequence[Member], alive: set[int]) -> Watch:
  """Calls each living member's own watch; one that fails is alive no more."""
  first = pack[0].watch

  def each(call: Callable[[int], object]):
    for i in sorted(alive):
      alive.discard(i)
      with pack[i].failing():
        call(i)
        alive.add(i)
    if not alive:
      raise _NobodyLeft

  def on_metrics(done: int, values: dict[str, float]):
    def one(i: int):
      own = {
        name.rpartition("/")[0]: value
        for name, value in values.items()
        if name.rpartition("/")[2] == str(i)
      }
      if not own.pop("alive"):
        raise FloatingPointError(
          f"training: loss, gradient or another metric not finite by step "
          f"{done}"
        )
      pack[i].watch.on_metrics(done, own)

    each(one)

  def on_state(done: int, state: Any):
    if done in first.at:
      each(lambda i: pack[i].watch.on_state(done, packed.unpack(state, i)))

  def on_stop(done: int, state: Any):
    each(lambda i: pack[i].watch.on_stop(done, packed.unpack(state, i)))

  return Watch(
    every=first.every, at=first.at, on_metrics=on_metrics, on_state=on_state,
    on_stop=on_stop,
  )  # fmt: skip
