"""What the states of all attacks have in common.

An attack's state is a NamedTuple of arrays led by the lanes. Its first fields
are `key`, `count` (iterations done) and `alive` (False once the lane held NaN
or infinity).
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine.victim import Batch

State = TypeVar("State")


def row_keys(key: Array, batch: Batch) -> Array:
  """A key for every lane, which depends on its row's number alone."""
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
  """Positions in the vocabulary, drawn evenly, that a lane begins with."""
  size = len(batch.vocabulary)
  # Iterations fold in their count, which never reaches this number.
  first = jax.vmap(lambda k: jax.random.fold_in(k, 2**31))(keys)
  return jax.vmap(lambda k: jax.random.randint(k, shape, 0, size))(first)


def normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
  """Unit noise of every lane, from its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def advance(state: Any, finite: Sequence[Array], **changes: Array | Any) -> Any:
  """The state after an iteration; a lane that is not finite stays as it was.

  Args:
    state: the state before it.
    finite: arrays led by the lanes. A lane that holds NaN or infinity in one of
      them is no longer alive.
    **changes: new values of the fields that the iteration changed.
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


def keep_lanes(keep: Array, new: State, old: State) -> State:
  """`new` in the lanes where `keep`, `old` in the others."""

  def choose(a: Array, b: Array) -> Array:
    return jnp.where(keep.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(choose, new, old)


def rms(gradient: Float[Array, "b ..."]) -> Float[Array, " b"]:
  """Each lane's root mean square, to compare with the weight decay."""
  return jnp.sqrt(jnp.square(gradient.reshape(len(gradient), -1)).mean(axis=1))
