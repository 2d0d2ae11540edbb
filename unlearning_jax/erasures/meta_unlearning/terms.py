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
  losses: Losses, h: Any, theta: Leaves, key: PRNGKeyArray
) -> tuple[Leaves, Callable[[Leaves], Leaves]]:
  """Every lane's w, and the way back from gradients at w to those at theta.

  Args:
    theta: the trained leaves.
    key: draws the images that lanes are tuned on.
  """
  parsed = lanes.parse(h.lanes)
  count, longest = len(h.lanes), int(max(parsed.steps))

  def one(its: tuple[Leaves, lanes.Lanes, PRNGKeyArray]) -> Leaves:
    begin, lane, own = its

    def loss(weights: Leaves, key: PRNGKeyArray) -> Array:
      return losses.tuning(weights, key, lane.of, h.batch_size)

    return lanes.tune(loss, begin, lane, own, longest)

  rest = jax.tree.map(jnp.asarray, parsed), jax.random.split(key, count)
  thetas = jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), theta
  )

  def every(thetas: Leaves) -> Leaves:
    return jax.lax.map(one, (thetas, *rest))

  if h.hypergrad == "first_order":
    return every(thetas), lambda g: g
  w, back = jax.vjp(every, thetas)
  return w, lambda g: back(g)[0]


def meta_gradient(
  losses: Losses, h: Any, theta: Leaves, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Leaves, finetune.Metrics]:
  """Value and gradient in theta of all terms but L_erase, and metrics.

  Args:
    losses: `tuning(weights, key, set, rows)` is the denoising loss on a set.
    theta: the trained leaves.
    key: draws images, timesteps and noise.
  """
  keys, count = jax.random.split(key, 3), len(h.lanes)
  w, back = tuned(losses, h, theta, keys[0])
  # theta and every w in one, so that the gradient is compiled once.
  points = jax.tree.map(
    lambda one, more: jnp.concatenate([one[None], more]), theta, w
  )
  noise = (keys[1], keys[2] if h.preset == "reference" else keys[1])
  of = [_IRRELEVANT, _RELATED, *count * (_CONCEPT, _RELATED, _IRRELEVANT)]
  at = [0, 0, *(1 + i for i in range(count) for _ in SETS)]
  drawn = [
    jax.random.fold_in(noise[min(point, 1)], which)
    for point, which in zip(at, of, strict=True)
  ]

  def term(its: tuple[Array, Array, PRNGKeyArray]) -> tuple[Array, Leaves]:
    point, which, own = its
    weights = jax.tree.map(lambda leaf: leaf[point], points)
    gradient = jax.value_and_grad(losses.tuning)
    return gradient(weights, own, which, h.batch_size)

  values, slopes = jax.lax.map(
    term, (jnp.array(at), jnp.array(of), jnp.stack(drawn))
  )
  held, broken = (jnp.asarray(h.weights[cut]) for cut in (_AT_THETA, _AT_W))
  direct = jax.tree.map(lambda x: jnp.tensordot(held, x[_AT_THETA], 1), slopes)
  after = jax.tree.map(
    lambda x: x[_AT_W].reshape(count, len(SETS), *x.shape[1:]), slopes
  )
  through = back(
    jax.tree.map(lambda x: -jnp.tensordot(x, broken, (1, 0)), after)
  )
  # A tuning that has diverged must not be left out of the mean in silence.
  whole = jnp.isfinite(values).all()
  gradient = jax.tree.map(
    lambda x, y: jnp.where(whole, x + y.mean(0), jnp.nan), direct, through
  )
  ends = values[_AT_W].reshape(count, len(SETS))
  value = held @ values[_AT_THETA] - (ends @ broken).mean()
  named = {
    "irrelevant": values[0], "related": values[1],
    **{f"tuned_{name}": ends[:, i].mean() for i, name in enumerate(SETS)},
  }  # fmt: skip
  return value, gradient, named | slope_and_cosine(after)


def slope_and_cosine(slopes: Leaves) -> finetune.Metrics:
  """The squared slope of L_con at w, and its cosine with that of L_rel.

  Relearning is slow where the slope is small, and breaks what is related where
  the cosine is negative.

  Args:
    slopes: gradients at w; leaves (lanes, sets, ...).
  """
  gram = jnp.zeros(())
  for leaf in jax.tree.leaves(slopes):
    flat = leaf.reshape(*leaf.shape[:2], -1)
    gram = gram + jnp.einsum("lin,ljn->lij", flat, flat)
  con, both, rel = (
    gram[:, i, j]
    for i, j in (
      (_CONCEPT, _CONCEPT), (_CONCEPT, _RELATED), (_RELATED, _RELATED)
    )
  )  # fmt: skip
  cosine = both / jnp.sqrt(jnp.maximum(con * rel, 1e-30))
  return {"slope": con.mean(), "cosine": cosine.mean()}
