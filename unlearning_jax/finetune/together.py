"""Trainings of several erasures, those of one kind in one program."""

import contextlib
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
    state: where it starts, or goes on.
    watch: called as if it trained alone, but with states at `watch.at` only.
    failing: a context that records an error of this member's own.
  """

  asked: Asked
  state: TrainState
  watch: Watch
  failing: Callable[[], contextlib.AbstractContextManager[Any]]


def begin(asked: Asked) -> TrainState:
  """The state of a training before its first step."""
  return init_state(asked.trained, asked.tx, ema=False)


def train_together(members: Sequence[Member]) -> list[Params | None]:
  """Trains several erasures; each ends as if it trained alone.

  Those with one loss, one optimizer and equal shapes share a program. It
  splits them over this process's devices, whole trainings to each.

  Returns:
    The trained parameters of each on the host; None for one that failed.
  """
  kinds: dict[Hashable, list[int]] = {}
  for i, member in enumerate(members):
    kinds.setdefault(_kind(member), []).append(i)
  found: list[Params | None] = [None] * len(members)
  for rows in kinds.values():
    pack = [members[i] for i in rows]
    trained = _train_pack(pack) if len(pack) > 1 else [_train_alone(*pack)]
    for i, params in zip(rows, trained, strict=True):
      found[i] = params
  return found


def _kind(member: Member) -> Hashable:
  """Equal for trainings that one program can do."""
  asked, done = member.asked, int(member.state.step)
  batch = asked.batches[done] if done < asked.num_steps else {}
  leaves, tree = jax.tree.flatten((member.state, asked.frozen, batch))
  shapes = tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves)
  return asked.loss, id(asked.tx), asked.num_steps, done, tree, shapes


def _train_alone(one: Member) -> Params | None:
  with one.failing():
    return train_erasure(
      **one.asked._asdict(), begin=lambda _: one.state, watch=one.watch
    )
  return None


def _train_pack(pack: Sequence[Member]) -> list[Params | None]:
  first, count = pack[0], len(pack)
  devices = jax.local_devices()
  # As few devices as end as soon, since each gets as many trainings.
  each = -(-count // len(devices))
  devices = devices[: -(-count // each)]
  filled = [*pack, *[pack[-1]] * (each * len(devices) - count)]
  step = erasure_step(first.asked.loss, first.asked.tx)
  mesh = sharding.make_mesh(devices=devices)
  alive = set(range(count))
  # `train` takes any state that has a step.
  state: Any = packed.pack([one.state for one in filled])
  final: Any = train(
    state,
    packed.make_packed_step(step, mesh),
    packed.packed_frozen(
      [one.asked.frozen for one in filled], [one.asked.key for one in filled]
    ),
    packed.PackedBatches([one.asked.batches for one in filled]),
    first.asked.key,
    mesh=mesh,
    num_steps=first.asked.num_steps,
    watch=_watch(pack, alive),
    layout=packed.layout,
  )
  return [
    jax.device_get(packed.unpack(final, i).params) if i in alive else None
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

  def on_metrics(done: int, values: dict[str, float]):
    def one(i: int):
      own = {
        name.rpartition("/")[0]: value
        for name, value in values.items()
        if name.rpartition("/")[2] == str(i)
      }
      if not own.pop("alive"):
        raise FloatingPointError(
          f"training: loss or gradient not finite by step {done}"
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
