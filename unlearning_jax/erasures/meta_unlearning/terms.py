"""The terms of Meta-Unlearning at theta and at w, and their gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearning_jax import finetune
from unlearning_jax.erasures.resalign import lanes
from unlearning_jax.erasures.resalign.losses import Losses
from unlearning_jax.finetune.partition import Leaves

# The sets of images, in the order of their numbers.
SETS = ("concept", "related", "irrelevant")
_CONCEPT, _RELATED, _IRRELEVANT = range(3)
# The terms at theta, and those at w, in the order of `WEIGHTS`.
_AT_THETA, _AT_W = slice(0, 2), slice(2, None)


class Passes(NamedTuple):
  """Gradients that are computed in turn; leaves are led by them.

  A pass is a term, or a step of a tuning. So one loop serves both, whose
  gradient is compiled once.

  Attributes:
    begin: the row of weights that it starts from; -1 for those that the pass
      before it left.
    lane: whose tuning it is.
    step: the tuning's step; -1 for a term.
    of: the set of images.
    share: a term's weight; 0 for a step of a tuning.
    row: the sum that a term is added to.
    base: the key that its draws are folded from.
  """

  begin: Int[Array, "*p"]
  lane: Int[Array, "*p"]
  step: Int[Array, "*p"]
  of: Int[Array, "*p"]
  share: Float[Array, "*p"]
  row: Int[Array, "*p"]
  base: Int[Array, "*p"]


class State(NamedTuple):
  """What a pass leaves.

  Attributes:
    weights: where the tuning is.
    first: Adam's first moment. It is not needed among terms, so there L_con's
      slope stands in its place.
    second: Adam's second moment.
    sums: of terms' gradients, so that no more are held where there are more
      terms.
  """

  weights: Float[Array, " n"]
  first: Float[Array, " n"]
  second: Float[Array, " n"]
  sums: Float[Array, "r n"]


def passes(h: Any, parsed: lanes.Lanes) -> list[tuple[Any, ...]]:
  """The terms at theta; then each lane's steps, and the terms at its w.

  For "first_order" the terms at every w have one sum. For "unrolled" the
  weights have a row of each lane's w already. So no steps are listed, and each
  w has a sum of its own.

  Returns:
    The numbers of each pass, in the order of `Passes`.
  """
  first_order, apart = h.hypergrad == "first_order", h.preset == "reference"
  held = zip((_IRRELEVANT, _RELATED), h.weights[_AT_THETA], strict=True)
  listed: list[tuple[Any, ...]]
  listed = [(0, 0, -1, of, share, 0, 0) for of, share in held]
  for lane, count in enumerate(parsed.steps):
    begin, row = (0, 1) if first_order else (1 + lane, 1 + lane)
    own = [
      (step, parsed.of[lane], 0.0, 2 + lane)
      for step in range(count if first_order else 0)
    ]
    own += [
      (-1, of, -share / len(parsed.of), int(apart))
      for of, share in enumerate(h.weights[_AT_W])
    ]
    listed += [
      (-1 if i else begin, lane, step, of, share, row, base)
      for i, (step, of, share, base) in enumerate(own)
    ]
  return listed


def tuned(
  tuning: Callable[..., Array],
  parsed: lanes.Lanes,
  theta: Float[Array, " n"],
  own: PRNGKeyArray,
) -> tuple[Float[Array, "l n"], Callable[[Array], tuple[Array]]]:
  """Every lane's w, and the way back from gradients at w to those at theta.

  Args:
    tuning: (weights, key, set) -> the denoising loss on the set.
    parsed: the lanes.
    theta: the trained weights.
    own: draw the images that the lanes are tuned on.
  """

  def one(its: tuple[Array, lanes.Lanes, PRNGKeyArray]) -> Array:
    begin, lane, own = its

    def loss(weights: Array, key: PRNGKeyArray) -> Array:
      return tuning(weights, key, lane.of)

    return lanes.tune(loss, begin, lane, own, int(max(parsed.steps)))

  def every(thetas: Array) -> Array:
    return jax.lax.map(one, (thetas, jax.tree.map(jnp.asarray, parsed), own))

  return jax.vjp(every, jnp.broadcast_to(theta, (len(own), len(theta))))


def meta_gradient(
  losses: Losses,
  h: Any,
  theta: Float[Array, " n"],
  unravel: Callable[[Array], Leaves],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], Float[Array, " n"], finetune.Metrics]:
  """Value and gradient in theta of all terms but L_erase, and metrics.

  Args:
    losses: `tuning(weights, key, set, rows)` is the denoising loss on a set.
    theta: the trained weights, in one vector: sums over hundreds of leaves
      compile for long.
    unravel: makes leaves of a vector.
    key: draws images, timesteps and noise.
  """
  keys, parsed = jax.random.split(key, 3), lanes.parse(h.lanes)
  count, own = len(h.lanes), jax.random.split(keys[0], len(h.lanes))

  @finetune.in_loop
  def tuning(weights: Array, key: PRNGKeyArray, of: Array) -> Array:
    return losses.tuning(unravel(weights), key, of, h.batch_size)

  starts, back = theta[None], None
  if h.hypergrad == "unrolled":
    w, back = tuned(tuning, parsed, theta, own)
    starts = jnp.concatenate([starts, w])
  listed = [np.array(column) for column in zip(*passes(h, parsed), strict=True)]
  its = Passes(*map(jnp.asarray, listed))
  its = its._replace(share=its.share.astype(theta.dtype))
  is_term = listed[Passes._fields.index("step")] < 0
  sums, *found = _run(
    tuning, its, jax.tree.map(jnp.asarray, parsed), starts,
    jnp.concatenate([keys[1:], own]), bool(is_term.all()),
  )  # fmt: skip
  values, squares, products = (each[np.flatnonzero(is_term)] for each in found)
  at_w = back(sums[1:])[0] if back else sums[1:]
  gradient = sums[0] + at_w.sum(0)
  # A tuning that has diverged must not be left out of the mean in silence.
  gradient = jnp.where(jnp.isfinite(values).all(), gradient, jnp.nan)
  ends, squares, products = (
    its[_AT_W].reshape(count, len(SETS)) for its in (values, squares, products)
  )
  named = {
    "irrelevant": values[0], "related": values[1],
    **{f"tuned_{name}": ends[:, i].mean() for i, name in enumerate(SETS)},
  }  # fmt: skip
  value = values @ its.share[np.flatnonzero(is_term)]
  return value, gradient, named | slope_and_cosine(squares, products)


def _run(
  tuning: Callable[..., Array],
  listed: Passes,
  parsed: lanes.Lanes,
  starts: Float[Array, "s n"],
  bases: PRNGKeyArray,
  only_terms: bool,
) -> tuple[Array, Array, Array, Array]:
  """The sums of terms' gradients, and three numbers of every pass.

  They are its value, and its gradient's products with itself and with L_con's.
  """

  def term(state: State, its: Passes, slope: Array):
    sums = state.sums.at[its.row].add(its.share * slope)
    concept = jnp.where(its.of == _CONCEPT, slope, state.first)
    products = jnp.stack([slope @ slope, concept @ slope])
    return state._replace(first=concept, sums=sums), products

  def step(state: State, its: Passes, slope: Array):
    first, second = (
      jnp.where(its.step > 0, moment, 0)
      for moment in (state.first, state.second)
    )
    lane = jax.tree.map(lambda leaf: leaf[its.lane], parsed)
    moved = lanes.moved((state.weights, first, second), slope, its.step, lane)
    return State(*moved, state.sums), jnp.zeros(2, slope.dtype)

  def one(state: State, its: Passes):
    weights = jnp.where(its.begin < 0, state.weights, starts[its.begin])
    number = jnp.where(its.step < 0, its.of, its.step)
    key = jax.random.fold_in(bases[its.base], number)
    value, slope = jax.value_and_grad(tuning)(weights, key, its.of)
    state = state._replace(weights=weights)
    if only_terms:
      state, products = term(state, its, slope)
    else:
      state, products = jax.lax.cond(
        its.step < 0, term, step, state, its, slope
      )
    return state, (value, products)

  zero = jnp.zeros_like(starts[0])
  rows = max(len(starts), 2)
  begin = State(zero, zero, zero, jnp.zeros((rows, len(zero)), zero.dtype))
  end, (values, products) = jax.lax.scan(one, begin, listed)
  return end.sums, values, products[:, 0], products[:, 1]


def slope_and_cosine(
  squares: Float[Array, "l s"], products: Float[Array, "l s"]
) -> finetune.Metrics:
  """The squared slope of L_con at w, and its cosine with that of L_rel.

  Relearning is slow where the slope is small, and breaks what is related where
  the cosine is negative.

  Args:
    squares: each slope's with itself, of each lane and set.
    products: with that of L_con.
  """
  con, rel = squares[:, _CONCEPT], squares[:, _RELATED]
  sizes = jnp.sqrt(jnp.maximum(con * rel, 1e-30))
  cosine = products[:, _RELATED] / sizes
  return {"slope": con.mean(), "cosine": cosine.mean()}
