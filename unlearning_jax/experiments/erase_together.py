"""Makes several edits at once: those that train alike train in one program.

A method's `erase` is a plain function, which asks its trainer for trained
weights and goes on with them. So each erasure is begun, and interrupted where
it asks. What all ask for is trained together. Then each is begun again, and
gets its answer where it asked. What it draws before is drawn once.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from unlearning_jax.erasures import Hooks
from unlearning_jax.experiments import common, erase, hooks
from unlearning_jax.finetune import together
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder
from unlearning_jax.record.progress import Progress
from unlearning_jax.stable_diffusion import Params


class Wanted(NamedTuple):
  """An edit to make.

  Attributes:
    settings: of its run.
    record: of its run, which goes on from what it recorded. An edit that is
      there is kept.
    model: the base.
    failing: a context that records an error of this edit's own.
  """

  settings: erase.Settings
  record: Recorder
  model: Model
  failing: Callable[[], contextlib.AbstractContextManager[Any]]

  @property
  def path(self) -> pathlib.Path:
    """The edit's file."""
    return self.record.path / common.EDIT


def make(wanted: Sequence[Wanted], every: int = 100) -> None:
  """Makes the edits; each is what `erase.made` makes alone.

  Args:
    wanted: the edits. One that fails leaves no file.
    every: steps between states to go on from.
  """
  left: dict[int, _Replay] = {}
  for i, one in enumerate(wanted):
    with one.failing():
      if erase.read(one.path) is None:
        left[i] = _Replay(hooks.recorded(one.record, every))
  turn = 0
  while left:
    asked = {}
    for i, replay in left.items():
      with wanted[i].failing():
        if (asks := _go_on(wanted[i], replay)) is not None:
          asked[i] = asks
    answers = _train(wanted, asked, every, turn) if asked else {}
    turn += 1
    left = {i: left[i].with_answer(found) for i, found in answers.items()}


class _Asks(BaseException):
  """An erasure asks its trainer; no `except Exception` of a method hears it."""

  def __init__(self, asked: together.Asked):
    self.asked = asked


@dataclasses.dataclass
class _Replay:
  """Answers what an erasure asked before, and interrupts it at what is new."""

  own: Hooks
  answers: tuple[Params, ...] = ()
  drawn: list[list[np.ndarray]] = dataclasses.field(default_factory=list)

  def with_answer(self, answer: Params) -> "_Replay":
    return dataclasses.replace(self, answers=(*self.answers, answer))

  def hooks(self) -> Hooks:
    """The hooks of one more beginning."""
    answers, turn = iter(self.answers), 0

    def trainer(*args: Any, **options: Any) -> Params:
      for answer in answers:
        return answer
      raise _Asks(together.Asked(*args, **options))

    def collect(*args: Any) -> list[np.ndarray]:
      nonlocal turn
      if turn == len(self.drawn):
        self.drawn.append(self.own.collect(*args))
      turn += 1
      return self.drawn[turn - 1]

    return dataclasses.replace(self.own, collect=collect, trainer=trainer)


def _go_on(one: Wanted, replay: _Replay) -> together.Asked | None:
  """What the erasure asks for next; None once its edit is made."""
  sd, params, phrases = one.model.sd, one.model.params, one.settings.phrases
  key = jax.random.key(one.settings.seed)
  try:
    found = one.settings.erasure(sd, params, phrases, key, replay.hooks())
  except _Asks as asks:
    return asks.asked
  writes = one.record.is_writer
  erase.keep(one.path, one.model, found, phrases, writes=writes)
  return None


def _train(
  wanted: Sequence[Wanted],
  asked: Mapping[int, together.Asked],
  every: int,
  turn: int,
) -> dict[int, Params]:
  """The trained weights of those that did not fail."""
  members: dict[int, together.Member] = {}
  with contextlib.ExitStack() as recorded:
    for i, asks in asked.items():
      one = wanted[i]
      with one.failing():
        # One line shows the progress of all.
        own = recorded.enter_context(
          hooks.training(one.record, every, asks.num_steps, turn, label="")
        )
        members[i] = together.Member(asks, own.begin, own.watch, one.failing)

    def shown(count: int, total: int, done: int) -> Progress:
      label = f"train {count} together" if count > 1 else "train"
      return Progress(label, total, done=done)

    trained = together.train_together([*members.values()], shown)
  found = zip(members, trained, strict=True)
  return {i: params for i, params in found if params is not None}
