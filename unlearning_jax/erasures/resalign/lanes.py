"""The tunings that ResAlign makes in each step: one lane each, in one program.

A lane is written as "optimizer/learning rate/steps/set", such as
"sgd/1e-4/20/2". Lanes differ only in numbers, so `tune` runs all of them at
once, each as long as the longest; a lane that has ended stands still.
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
_B1, _B2, _EPS = 0.9, 0.999, 1e-8


class Lanes(NamedTuple):
  """L tunings; one of them where a leaf has no axis."""

  adam: Bool[np.ndarray, "*L"]
  learning_rate: Float[np.ndarray, "*L"]
  steps: Int[np.ndarray, "*L"]
  # The set of images that it learns.
  of: Int[np.ndarray, "*L"]


def parse(names: Sequence[str]) -> Lanes:
  """Reads lanes.

  Raises:
    ValueError: there is none, two are the same, or one is not four words of
      which three are numbers; says how a lane is written.
  """
  if not names:
    raise ValueError("lanes=(): give one or more, as 'sgd/1e-4/20/0'")
  rows = [_parsed(name) for name in names]
  if len(set(rows)) < len(rows):
    raise ValueError(f"lanes={tuple(names)}: two are the same; leave one out")
  adam, rate, steps, of = (
    np.array(column) for column in zip(*rows, strict=True)
  )
  return Lanes(adam, rate.astype(np.float32), steps, of)


def _parsed(name: str) -> tuple[bool, float, int, int]:
  words = name.split("/")
  try:
    kind, rate, steps, of = words[0], *map(float, words[1:])
    good = math.isfinite(rate + steps + of) and min(rate, steps, of) >= 0
    good = good and steps % 1 == of % 1 == 0
  except ValueError:
    good = False
  if not good:
    raise ValueError(
      f"lanes: {name!r} is no optimizer/learning rate/steps/set, as in "
      "'sgd/1e-4/20/0'"
    )
  check_choice("lanes: the optimizer", kind, OPTIMIZERS)
  return kind == "adam", rate, int(steps), int(of)


def tune(
  loss: Callable[[Tree, PRNGKeyArray], Float[Array, ""]],
  theta: Tree,
  lane: Lanes,
  key: PRNGKeyArray,
  longest: int,
  twice: bool = False,
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
      return jnp.where(i < lane.steps, x - change, x)

    weights = jax.tree.map(moved, weights, g, first, second)
    return (weights, first, second), None

  zeros = jax.tree.map(jnp.zeros_like, theta)
  (weights, *_), _ = jax.lax.scan(
    step, (theta, zeros, zeros), jnp.arange(longest)
  )
  return weights
