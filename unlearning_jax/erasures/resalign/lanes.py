"""The tunings that ResAlign makes in each step: one lane each.

A lane is written as "optimizer/learning rate/steps/set", such as
"sgd/1e-4/20/2". ResAlign has two more kinds:

  sgd/1e-4/5/1+3       DreamBooth's: the loss on set 3, the prior set, is added
  adamw-full/1e-6/5/2  AdamW on all of the UNet's weights

Lanes of one kind differ only in numbers, so `tune` runs all of them at once,
each as long as the longest; a lane that has ended stands still.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from unlearning_jax.concepts import check_choice

Tree = TypeVar("Tree")

OPTIMIZERS = ("sgd", "adam")
FULL = "adamw-full"
_B1, _B2, _EPS = 0.9, 0.999, 1e-8


class Lanes(NamedTuple):
  """L tunings; one of them where a leaf has no axis."""

  adam: Bool[np.ndarray, "*L"]
  learning_rate: Float[np.ndarray, "*L"]
  steps: Int[np.ndarray, "*L"]
  # The set of images that it learns.
  of: Int[np.ndarray, "*L"]
  # The prior set; -1 where there is none.
  prior: Int[np.ndarray, "*L"]
  # Whether it tunes all weights.
  full: Bool[np.ndarray, "*L"]


def parse(names: Sequence[str], every_kind: bool = False) -> Lanes:
  """Reads lanes.

  Args:
    names: the lanes.
    every_kind: whether a lane may have a prior set, or tune all weights.

  Raises:
    ValueError: there is none, two are the same, or one is not four words of
      which three are numbers; says how a lane is written.
  """
  if not names:
    raise ValueError("lanes=(): give one or more, as 'sgd/1e-4/20/0'")
  rows = [_parsed(name, every_kind) for name in names]
  if len(set(rows)) < len(rows):
    raise ValueError(f"lanes={tuple(names)}: two are the same; leave one out")
  adam, rate, *rest = (np.array(column) for column in zip(*rows, strict=True))
  return Lanes(adam, rate.astype(np.float32), *rest)


def _parsed(
  name: str, every_kind: bool
) -> tuple[bool, float, int, int, int, bool]:
  kind, *words = name.split("/")
  numbers = []
  try:
    rate, steps, own = words
    numbers = [float(word) for word in (rate, steps, *own.split("+"))]
    good = len(numbers) <= (4 if every_kind else 3)
    good &= all(math.isfinite(x) and x >= 0 for x in numbers)
    good = good and not any(x % 1 for x in numbers[1:])
  except ValueError:
    good = False
  if not good:
    more = (
      ", in 'sgd/1e-4/5/1+3' with a prior set, or in 'adamw-full/1e-6/5/2' for "
      "the whole UNet"
    )
    raise ValueError(
      f"lanes: {name!r} is no optimizer/learning rate/steps/set, as in "
      f"'sgd/1e-4/20/0'{more if every_kind else ''}"
    )
  known = (*OPTIMIZERS, FULL) if every_kind else OPTIMIZERS
  check_choice("lanes: the optimizer", kind, known)
  rate, *whole = [*numbers, -1][:4]
  steps, of, prior = map(int, whole)
  return kind != "sgd", rate, steps, of, prior, kind == FULL


def tune(
  loss: Callable[[Tree, PRNGKeyArray], Float[Array, ""]],
  theta: Tree,
  lane: Lanes,
  key: PRNGKeyArray,
  longest: int,
  twice: bool = False,
  decay: float = 0.0,
) -> Tree:
  """The weights w of one lane, differentiable in theta.

  Args:
    loss: (weights, key) -> the loss of a batch that the key draws.
    theta: where the lane begins.
    lane: its numbers, without an axis.
    key: draws each step's batch.
    longest: the most steps of any lane.
    twice: whether Adam's moments are corrected for their start twice, as in the
      release: its first step is 0.32 of the learning rate.
    decay: AdamW's.
  """

  # Its steps are made again on the way back: only weights are kept.
  @jax.checkpoint
  def step(state: tuple[Tree, Tree, Tree], i: Array):
    weights, first, second = state
    g = jax.grad(loss)(weights, jax.random.fold_in(key, i))
    first = jax.tree.map(lambda m, x: _B1 * m + (1 - _B1) * x, first, g)
    second = jax.tree.map(lambda v, x: _B2 * v + (1 - _B2) * x * x, second, g)
    count = i + 1.0
    sizes = (1 - _B1**count, 1 - _B2**count)

    def moved(x: Array, g: Array, m: Array, v: Array) -> Array:
      # A weight without a gradient stands still. Its root of 0 has no slope,
      # and 1 / _EPS for a slope would drown all others on the way back.
      moves = v > 0
      root = jnp.sqrt(jnp.where(moves, v, 1) / sizes[1])
      by_adam = jnp.where(moves, m / sizes[0] / (root + _EPS), 0)
      if twice:
        by_adam *= jnp.sqrt(sizes[1]) / sizes[0]
      change = lane.learning_rate * jnp.where(lane.adam, by_adam, g)
      if decay:
        change += lane.learning_rate * decay * x
      return jnp.where(i < lane.steps, x - change, x)

    weights = jax.tree.map(moved, weights, g, first, second)
    return (weights, first, second), None

  zeros = jax.tree.map(jnp.zeros_like, theta)
  (weights, *_), _ = jax.lax.scan(
    step, (theta, zeros, zeros), jnp.arange(longest)
  )
  return weights
