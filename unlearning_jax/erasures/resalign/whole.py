"""Lanes of the whole UNet.

Such a lane begins at W(theta), the weights with theta in them, and ends at
W(theta) + delta. It is of first order, whatever `hypergrad`: delta is held as
it is, and the gradient in theta is that of L(W(theta) + delta),

  (dW / dtheta)^T g    with g the gradient of L in all weights, at the end.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from unlearning_jax import finetune
from unlearning_jax.erasures.resalign import lanes
from unlearning_jax.erasures.resalign.losses import Losses
from unlearning_jax.erasures.resalign.options import Hparams
from unlearning_jax.erasures.resalign.packs import (
  Keys,
  Left,
  Pack,
  Product,
  through,
  tuned,
)
from unlearning_jax.lora import Adapters


def left_by(
  losses: Losses,
  h: Hparams,
  pack: Pack,
  theta: Adapters,
  direct: Adapters,
  keys: Keys,
) -> Left:
  """What a pack of such lanes leaves; they run one after the other.

  Args:
    direct: the gradient at theta of what does not go through w.
    keys: draw the timesteps and the noise of L.
  """
  weights, back = jax.vjp(losses.merged, theta)
  whole = losses.of_weights()
  first = dataclasses.replace(h, hypergrad="first_order")
  concept = finetune.in_loop(lambda w: whole.concept(w, keys, h.concept_batch))

  def one(its: tuple[lanes.Lanes, Array, PRNGKeyArray, PRNGKeyArray]):
    lane, counts, own, bent = its

    def run():
      w = tuned(whole, h, pack, weights, lane, own)
      value, g = jax.value_and_grad(concept)(w)
      (g,) = back(jax.tree.map(lambda leaf: h.resilience * leaf, g))
      return value, *through(first, lane, g, direct, _straight, bent)

    if h.preset == "fixed":
      return run()
    nothing = optax.tree.zeros_like(jax.eval_shape(run))
    return jax.lax.cond(counts, run, lambda: nothing)

  its = pack.lanes, pack.counts, pack.own, pack.bent
  return Left(pack.counts, *jax.lax.map(one, its))


def _straight(*_: object) -> Product:
  """The product with a curvature of zero."""
  return functools.partial(jax.tree.map, jnp.zeros_like)
