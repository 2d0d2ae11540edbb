"""What the lanes of every attack have in common: a beginning and a step.

An attack's state is a NamedTuple led by the lanes whose first fields are
`key`, `count` (iterations done) and `alive` (nothing was NaN or infinite yet).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine.victim import Batch


def row_keys(key: Array, batch: Batch) -> Array:
  """A key for every lane, from its row's number and nothing else."""
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(batch.number)


def begin(
  key: Array, batch: Batch
) -> tuple[Array, Int[Array, " b"], Bool[Array, " b"]]:
  """The first fields of a state before its first iteration."""
  lanes = len(batch.number)
  return (
    row_keys(key, batch),
    jnp.zeros(lanes, jnp.int32),
    jnp.ones(lanes, bool),
  )


def random_tokens(
  keys: Array, batch: Batch, shape: tuple[int, ...]
) -> Int[Array, "b ..."]:
  """Positions in the vocabulary to begin with, drawn evenly for each lane."""
  size = len(batch.vocabulary)
  # No iteration ever folds this number in.
  first = jax.vmap(lambda k: jax.random.fold_in(k, 2**31))(keys)
  return jax.vmap(lambda k: jax.random.randint(k, shape, 0, size))(first)


def advance(state: Any, finite: Sequence[Array], **changes: Array | Any) -> Any:
  """The state after an iteration; a lane that is not finite stays as it was.

  Args:
    state: before.
    finite: arrays led by the lanes, none of which may hold NaN or infinity.
    **changes: the fields that the iteration changed.
  """
  alive = state.alive & all_finite(*finite)
  old = state._replace(count=state.count + 1, alive=alive)
  return keep_lanes(alive, old._replace(**changes), old)


def all_finite(*trees: Array) -> Array:
  """Which lanes hold neither NaN nor infinity in any of the arrays."""
  lanes = [
    jnp.isfinite(x).reshape(len(x), -1).all(axis=1) for x in trees
  ]  # fmt: skip
  return jnp.stack(lanes).all(axis=0)


def keep_lanes(keep: Array, new: Any, old: Any) -> Any:
  """`new` in the lanes where `keep`, `old` in the others."""

  def choose(a: Array, b: Array) -> Array:
    return jnp.where(keep.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(choose, new, old)


def rms(gradient: Float[Array, "b ..."]) -> Float[Array, " b"]:
  """Each lane's root mean square: what weight decay is to be held against."""
  return jnp.sqrt(jnp.square(gradient.reshape(len(gradient), -1)).mean(axis=1))
