"""The terms of Meta-Unlearning at theta and at w, and their gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import finetune
from unlearning_jax.erasures.resalign import lanes
from unlearning_jax.erasures.resalign.losses import Losses
from unlearning_jax.finetune.partition import Leaves

# The sets of images, in the order of their numbers.
SETS = ("concept", "related", "irrelevant")
_CONCEPT, _RELATED, _IRRELEVANT = range(3)
# The terms at theta, and those at w, in the order of `WEIGHTS`.
_AT_THETA, _AT_W = slice(0, 2), slice(2, None)


def tuned(
  tuning: Callable[..., Array],
  h: Any,
  theta: Float[Array, " n"],
  key: PRNGKeyArray,
) -> tuple[Float[Array, "l n"], Callable[[Array], Array]]:
  """Every lane's w, and the way back from gradients at w to those at theta.

  Args:
    tuning: (weights, key, set) -> the denoising loss on the set.
    theta: the trained weights.
    key: draws the images that lanes are tuned on.
  """
  parsed = lanes.parse(h.lanes)
  count, longest = len(h.lanes), int(max(parsed.steps))

  def one(its: tuple[Array, lanes.Lanes, PRNGKeyArray]) -> Array:
    begin, lane, own = its

    def loss(weights: Array, key: PRNGKeyArray) -> Array:
      return tuning(weights, key, lane.of)

    return lanes.tune(loss, begin, lane, own, longest)

  rest = jax.tree.map(jnp.asarray, parsed), jax.random.split(key, count)
  thetas = jnp.broadcast_to(theta, (count, len(theta)))

  def every(thetas: Array) -> Array:
    return jax.lax.map(one, (thetas, *rest))

  if h.hypergrad == "first_order":
    return every(thetas), lambda g: g
  w, back = jax.vjp(every, thetas)
  return w, lambda g: back(g)[0]


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
  keys, count = jax.random.split(key, 3), len(h.lanes)

  @finetune.in_loop
  def tuning(weights: Array, key: PRNGKeyArray, of: Array) -> Array:
    return losses.tuning(unravel(weights), key, of, h.batch_size)

  w, back = tuned(tuning, h, theta, keys[0])
  # theta and every w in one, so that the gradient is compiled once.
  points = jnp.concatenate([theta[None], w])
  noise = (keys[1], keys[2] if h.preset == "reference" else keys[1])
  of = [_IRRELEVANT, _RELATED, *count * (_CONCEPT, _RELATED, _IRRELEVANT)]
  at = [0, 0, *(1 + i for i in range(count) for _ in SETS)]
  drawn = [
    jax.random.fold_in(noise[min(point, 1)], which)
    for point, which in zip(at, of, strict=True)
  ]
  held, broken = h.weights[_AT_THETA], [-share for share in h.weights[_AT_W]]

  # Sums, so that no more gradients are held where there are more terms.
  def term(
    sums: tuple[Array, Array], its: tuple[Array, Array, Array, PRNGKeyArray]
  ) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    (at_points, concept), (point, which, share, own) = sums, its
    value, slope = jax.value_and_grad(tuning)(points[point], own, which)
    concept = jnp.where(which == _CONCEPT, slope, concept)
    at_points = jax.lax.dynamic_update_index_in_dim(
      at_points, at_points[point] + share * slope, point, 0
    )
    return (at_points, concept), (value, slope @ slope, concept @ slope)

  (sums, _), (values, squares, products) = jax.lax.scan(
    term,
    (jnp.zeros_like(points), jnp.zeros_like(theta)),
    (
      jnp.array(at), jnp.array(of),
      jnp.array([*held, *count * broken], theta.dtype), jnp.stack(drawn),
    ),
  )  # fmt: skip
  # A tuning that has diverged must not be left out of the mean in silence.
  whole = jnp.isfinite(values).all()
  gradient = jnp.where(whole, sums[0] + back(sums[1:]).mean(0), jnp.nan)
  ends, squares, products = (
    its[_AT_W].reshape(count, len(SETS)) for its in (values, squares, products)
  )
  value = jnp.array(held) @ values[_AT_THETA]
  value += (ends @ jnp.array(broken)).mean()
  named = {
    "irrelevant": values[0], "related": values[1],
    **{f"tuned_{name}": ends[:, i].mean() for i, name in enumerate(SETS)},
  }  # fmt: skip
  return value, gradient, named | slope_and_cosine(squares, products)


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
